"""Certificate: how many outputs batch size and order change, measured on this machine and this model.

The reference answers one prompt at a time through transformers' `generate`. A different token is a
tie when the two best logits of the reference at that token lie within `TIE`: then arithmetic in
another order may choose either. In float32 only ties may differ. In bfloat16 ties are common and
outputs do differ: the certificate says how many.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evalkit.core.config import MetricsConfig, ProtocolConfig
from evalkit.core.errors import InputError
from evalkit.core.progress import Say, generation
from evalkit.core.types import Completion, Message, Request
from evalkit.engines.local.chat_template import as_text
from evalkit.engines.local.engine import LocalEngine
from evalkit.metrics.intervals import Interval, wilson
from evalkit.runs.suite import LoadedSuite
from evalkit.scoring.scores import GivenAnswer, TaskAnswers, score_tasks
from evalkit.tasks.answers import is_wrong
from evalkit.tasks.prompts import Asking
from evalkit.tasks.spec import TaskSpec

TIE = 1e-4
BATCH_SIZES = (1, 3, 16, 64)


@dataclass(frozen=True)
class RunVariant:
    """A way to run the same requests."""

    batch_size: int
    shuffled: bool

    @property
    def name(self) -> str:
        """Its name in the table."""
        return f"batch {self.batch_size}, {'shuffled' if self.shuffled else 'in order'}"


@dataclass(frozen=True)
class VariantResult:
    """A variant against the reference.

    Attributes:
        requests: how many were compared.
        changed: ids whose tokens differ although no tie explains it.
        ties: ids whose first different token was a tie.
        largest_margin: of the two best logits at a first different token; 0 without one.
        moved: how much each score moved, for those that did.
    """

    variant: RunVariant
    requests: int
    changed: tuple[str, ...]
    ties: tuple[str, ...]
    largest_margin: float
    moved: dict[str, float]

    @property
    def share(self) -> float:
        """Share of outputs that differ at all, 0..1."""
        return (len(self.changed) + len(self.ties)) / self.requests

    @property
    def ci95(self) -> Interval:
        """Wilson's interval of that share: how many of other prompts like these may differ."""
        return wilson(len(self.changed) + len(self.ties), self.requests)


@dataclass(frozen=True)
class _Answers:
    tokens: dict[str, tuple[list[int], list[int]]]
    completions: dict[str, GivenAnswer]


def certify(
    suite: LoadedSuite,
    engine: LocalEngine,
    protocol: ProtocolConfig,
    metrics: MetricsConfig,
    asking: Asking,
    *,
    say: Say,
) -> list[VariantResult]:
    """Runs the suite one prompt at a time and in every variant, and compares.

    Args:
        suite: the samples.
        engine: the engine under test, model loaded.
        protocol: how completions become predictions.
        metrics: the metrics' options.
        asking: how the samples are asked.
        say: receives progress messages, one line at a time.

    Raises:
        InputError: the model can answer none of the prompts.
    """
    asked = [request for task in suite.tasks for request in asking.requests(task)]
    specs = {sample.id: task.spec for task in suite.tasks for sample in task.samples}
    variants = [RunVariant(size, shuffled) for size in BATCH_SIZES for shuffled in (False, True)]
    title = f"1/{len(variants) + 1}: one prompt at a time"
    reference = _answers(engine, asking, specs, asked, title, alone=True)
    if left_out := len(asked) - len(reference.tokens):
        say(f"left out: {left_out} of {len(asked)} prompts, which the model cannot answer")
        asked = [request for request in asked if request.id in reference.tokens]
        suite = _answered(suite, reference)
    before = _scores(suite, reference, protocol, metrics)
    comparisons = []
    for place, variant in enumerate(variants, start=2):
        order = list(asked)
        if variant.shuffled:
            random.Random(variant.batch_size).shuffle(order)
        batched = engine.with_batch_size(variant.batch_size)
        title = f"{place}/{len(variants) + 1}: {variant.name}"
        answers = _answers(batched, asking, specs, order, title, alone=False)
        after = _scores(suite, answers, protocol, metrics)
        comparison = _compare(engine, variant, reference, answers, before, after)
        say(f"{variant.name}: {comparison.share:.1%} of the outputs differ")
        comparisons.append(comparison)
    return comparisons


def _answered(suite: LoadedSuite, reference: _Answers) -> LoadedSuite:
    """The suite with those samples alone that have a completion."""
    tasks = [
        replace(task, samples=tuple(one for one in task.samples if one.id in reference.completions))
        for task in suite.tasks
    ]
    if not any(task.samples for task in tasks):
        raise InputError("the model can answer none of the prompts", where=f"suite {suite.name}")
    return replace(suite, tasks=tuple(task for task in tasks if task.samples))


def _answers(
    engine: LocalEngine,
    asking: Asking,
    specs: Mapping[str, TaskSpec],
    asked: Sequence[Request],
    title: str,
    *,
    alone: bool,
) -> _Answers:
    rows = []
    with generation(title, asked) as work:
        for row in engine.one_at_a_time(asked) if alone else engine.together(asked):
            work.ended(row.request.id, len(row.ids), len(row.new))
            rows.append(row)
    completions = {row.request.id: row.completion(None) for row in rows}
    prompts = {request.id: request.prompt for request in asked}
    return _Answers(
        tokens={row.request.id: (row.ids, row.new) for row in rows},
        completions={
            key: _graded(engine, asking, prompts[key], completion, specs[key])
            for key, completion in completions.items()
        },
    )


def _graded(
    engine: LocalEngine,
    asking: Asking,
    prompt: str | tuple[Message, ...],
    completion: Completion,
    spec: TaskSpec,
) -> GivenAnswer:
    """What a run would grade: the answer behind a thought."""
    if asking.thoughts is None or completion.finish_reason == "error":
        return GivenAnswer(completion.text, completion.finish_reason)
    split = asking.thoughts.reply(
        completion,
        opened=asking.thoughts.opened(as_text(prompt, engine.tokenizer)),
        # The answer's own limit, without the thought.
        output_length=asking.limit(spec),
        tokenizer=engine.tokenizer,
        ends=spec.ends,
        keeps_special=True,
    )
    wrong = is_wrong(split.rule, split.status)
    return GivenAnswer(
        split.answer, completion.finish_reason, split.status, split.thought_tokens, wrong=wrong
    )


def _compare(
    engine: LocalEngine,
    variant: RunVariant,
    reference: _Answers,
    answers: _Answers,
    before: dict[str, float],
    after: dict[str, float],
) -> VariantResult:
    changed: list[str] = []
    ties: list[str] = []
    largest = 0.0
    for key, (ids, expected) in reference.tokens.items():
        found = answers.tokens[key][1]
        if found == expected:
            continue
        pairs = zip(expected, found, strict=False)
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
        margin = engine.margin([*ids, *expected[:first]])
        largest = max(largest, margin)
        (ties if margin <= TIE else changed).append(key)
    moved = {key: after[key] - value for key, value in before.items() if after[key] != value}
    return VariantResult(variant, len(reference.tokens), tuple(changed), tuple(ties), largest, moved)


def _scores(
    suite: LoadedSuite, answers: _Answers, protocol: ProtocolConfig, metrics: MetricsConfig
) -> dict[str, float]:
    given = [TaskAnswers(task.spec, task.samples, answers.completions) for task in suite.tasks]
    # Metrics with a model of their own would compete with the language model for the memory.
    scored = score_tasks(given, protocol, metrics, offline=True)
    return {
        f"{task.spec.name}_{name}": measured.value.value
        for task in scored
        for name, measured in task.measured.items()
        if measured.value.value is not None
    }
