"""The data on the arrows between rooms: small, frozen, each with one JSON form (`asdict`).

prepared file -> Sample -> Request -> engine -> Completion -> Score
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "stop_string", "length", "error"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One item of a dataset: `input` and `gold` are the prepared file's strings, untouched."""

    id: str
    input: str
    gold: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat prompt."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; the default is greedy.

    `top_k` 0 and `top_p` 1.0 switch their filters off. Filters run in the order of transformers:
    repetition penalty, temperature, top-k, top-p.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


# `max_new_tokens` of a request that may use whatever its prompt leaves of the model's context.
REST_OF_CONTEXT = 1 << 30


@dataclass(frozen=True, slots=True)
class Request:
    """What an engine is asked for; `id` is unique within one `generate` call.

    `prompt` is the exact text the tokenizer sees (BOS by the engine's BOS rule) or chat messages,
    rendered with the model's chat template. `stop` strings are looked for in the decoded completion.
    `keep_special`: `raw_text` keeps special tokens, which some rules for thoughts need.
    `seed` starts this request's own random generator, or it goes on from `generator_state`, where an
    earlier completion left it.
    """

    id: str
    prompt: str | tuple[Message, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    generator_state: str | None = None
    keep_special: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine gives back.

    `text` follows the protocol's decoding rule (`evalkit.engines.local.tokens.CompletionDecoder`), `raw_text`
    is the plain decoding of the new tokens; both keep the stop string that ended them. Token counts
    include BOS and EOS. `finish_reason`: `stop` an EOS token, `stop_string` a stop string,
    `length` max_new_tokens reached, `error` nothing could be generated (`error` says why).
    `generator_state` is where the request's random generator stood at the end (None: never used).
    `served_thought` is what a server that splits answers itself returned as the thought (None: it does not),
    `tool_call` whether it returned the call of a function in place of a text.
    """

    id: str
    text: str
    raw_text: str
    finish_reason: FinishReason
    prompt_tokens: int
    new_tokens: int
    over_context: bool = False
    error: str | None = None
    generator_state: str | None = None
    served_thought: str | None = None
    tool_call: bool = False

    @classmethod
    def failed(cls, key: str, why: str, prompt_tokens: int, *, over_context: bool = False) -> "Completion":
        """The empty completion of a request that could not be answered; `key` is its id."""
        return cls(key, "", "", "error", prompt_tokens, 0, over_context, why)


@dataclass(frozen=True, slots=True)
class Score:
    """One scored sample: `values` maps a metric name to its value (None: not a per-sample metric).

    `status` says what became of an answer behind a thought, `thought` is there when the scoring split
    the completion anew. A question that was asked several times has the scores of its answers in
    `repeats`; its `values` are over all of them, its prediction is the first. `verdicts` has one entry for
    each instruction in the prompt (`evalkit.metrics.ifeval.Verdict`). `missing` names the keywords that an
    answer lacks, where a metric looks for them.
    """

    id: str
    prediction: str
    values: dict[str, float | None]
    status: str | None = None
    thought: str | None = None
    repeats: tuple["Score", ...] = ()
    verdicts: tuple[Mapping[str, Any], ...] = ()
    missing: tuple[str, ...] = ()


# How a judgment ended; only `ok` and `out_of_range` have a value. `unparsed`: no rating in the text;
# `malformed`: one on which the reference would crash; `answerless`: a thought and nothing after it;
# `filtered`: the service refused the content; `overflow`: longer than the judge's context; `api_error`: the
# service failed to the end, and the next `judge` asks it again.
JudgmentStatus = Literal[
    "ok", "out_of_range", "unparsed", "malformed", "answerless", "filtered", "overflow", "api_error"
]


@dataclass(frozen=True, slots=True)
class Judgment:
    """One judgment of one turn of an answer; `id` is unique within a run.

    `answer` numbers the answers to a question, `repeat` the judgments of one answer (None: read
    from a log, where every row counts). `text` is what the ratings are read from. `rating` is the value
    of the parser that the preset names, or of the reference's, and `rule` what it matched, `strict` that
    of the strict parser; `status` says why a rating is missing. `key` addresses the judgment in the
    shared store; empty for one that was read from a log. Of a judge that thinks, `raw_text` is what
    `text` was split from (None: nothing was split), and `thought` what the service returned apart from it.
    """

    id: str
    model: str
    question_id: int
    category: str
    turn: int
    judge: str
    prompt: str
    text: str | None
    status: JudgmentStatus
    rating: float | None
    rule: str
    strict: float | None
    answer: int = 0
    repeat: int | None = None
    key: str = ""
    served_model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    raw_text: str | None = None
    thought: str | None = None
    finish_reason: str | None = None


class Row(NamedTuple):
    """One sample of a prepared file."""

    input: str
    output: str
