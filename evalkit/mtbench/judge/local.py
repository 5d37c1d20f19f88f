"""judge=local: the judge is a model that evalkit runs itself."""

import time
from collections.abc import Sequence
from typing import Any

from evalkit.core.config import Config
from evalkit.core.errors import InputError
from evalkit.core.progress import bar
from evalkit.core.text import canonical_json, text_sha256
from evalkit.core.types import Completion, Request, Sampling
from evalkit.core.words import t
from evalkit.engines.local.chat_template import clock_date
from evalkit.mtbench.answers.chat import model_config, takes_system_message, with_system
from evalkit.mtbench.judge.ask import CLAIM_SECONDS, AskResult
from evalkit.mtbench.judge.calls import JudgeCall, open_key, unanswered
from evalkit.mtbench.judge.judges import Judge
from evalkit.mtbench.judge.store import CachedReply, JudgmentStore
from evalkit.services.replies import Reply

LENGTHS = ("max_tokens", "max_completion_tokens")
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
DEFAULT_LENGTH = 2048


def weights_of(judge: Judge, config: Config) -> str:
    """A hash of all that decides a local judge's replies: its files, number format, engine, template date.

    Raises:
        InputError: the model or its chat template is missing.
    """
    from evalkit.engines import identify
    from evalkit.engines.local.tokenizer import load_tokenizer

    found = identify(model_config(judge.model), config.engine, config.dtype, offline=config.data.offline)
    date = clock_date(load_tokenizer(found.model))
    made_of = {"model": found.model.identity, "dtype": found.dtype, "engine_family": found.family}
    return text_sha256(canonical_json(made_of | ({"template_date": date} if date else {})))[:16]


def ask_locally(judge: Judge, config: Config, calls: Sequence[JudgeCall], store: JudgmentStore) -> AskResult:
    """Asks a local model what is not in the store yet.

    Raises:
        InputError: a model that is missing or has no chat template, or an unknown parameter.
        EvalkitError: the model cannot be loaded or computes NaN; what was judged is kept.
    """
    from evalkit.engines import build_engine
    from evalkit.engines.local.tokenizer import load_tokenizer
    from evalkit.engines.models import resolve

    sampling, length, seed = _options(judge.parameters)
    resolved = resolve(model_config(judge.model), offline=config.data.offline)
    takes_system = takes_system_message(load_tokenizer(resolved))
    asked = AskResult()
    # judge.parameters alone decide the sampling: they are part of the cache key.
    built = build_engine(resolved, config.engine, config.dtype, bos=config.protocol.bos)
    with built as engine, bar(t("judging"), len(calls)) as progress:
        while waiting := unanswered(calls, store):
            keys = {key: call for call in waiting if (key := open_key(call, store)) and store.claim(key)}
            store.refresh()
            requests = [
                Request(
                    key, with_system(call.messages, takes_system), length, (), sampling, seed + call.repeat
                )
                for key, call in keys.items()
                if key not in store
            ]
            try:
                for completion in engine.generate(requests):
                    _keep(completion, judge, store, asked)
                    progress.advance()
            finally:
                for key in keys:
                    store.release(key)
            if not keys:
                time.sleep(CLAIM_SECONDS)
                store.refresh()
    return asked


def _keep(completion: Completion, judge: Judge, store: JudgmentStore, asked: AskResult) -> None:
    asked.calls += 1
    asked.input_tokens += completion.prompt_tokens
    asked.output_tokens += completion.new_tokens
    reply = Reply(
        status="overflow" if completion.finish_reason == "error" else "ok",
        text=None if completion.finish_reason == "error" else completion.raw_text.strip(),
        finish_reason=completion.finish_reason,
        model=judge.model,
        input_tokens=completion.prompt_tokens,
        output_tokens=completion.new_tokens,
        error=completion.error,
    )
    store.add(CachedReply.of(completion.id, reply))


def _options(parameters: dict[str, Any]) -> tuple[Sampling, int, int]:
    unknown = set(parameters) - {*SAMPLING, *LENGTHS, "n"}
    if unknown or parameters.get("n", 1) != 1:
        raise InputError(
            f"a local judge does not know {', '.join(sorted(unknown)) or 'n other than 1'}",
            where="option judge.parameters",
            fix=f"known: {', '.join((*SAMPLING, *LENGTHS))}",
        )
    temperature = float(parameters.get("temperature", 1.0))
    sampling = Sampling(
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else 1.0,
        top_p=float(parameters.get("top_p", 1.0)),
        top_k=int(parameters.get("top_k", 0)),
        repetition_penalty=float(parameters.get("repetition_penalty", 1.0)),
    )
    length = next((int(parameters[name]) for name in LENGTHS if name in parameters), DEFAULT_LENGTH)
    return sampling, length, int(parameters.get("seed", 0))
