"""judge=local: the judge is a model that evalkit runs itself."""

import time
from collections.abc import Sequence
from typing import Any

from evalkit.core.errors import InputError
from evalkit.core.progress import phase, watch
from evalkit.core.types import Completion, Request, Sampling
from evalkit.core.words import t
from evalkit.mtbench.answers.chat import takes_system_message, with_system
from evalkit.mtbench.judge.calls import Asked, JudgeCall, open_key, unanswered
from evalkit.mtbench.judge.judges import Judge
from evalkit.mtbench.judge.store import CLAIM_SECONDS, CachedReply, JudgmentStore
from evalkit.services.replies import Reply

LENGTHS = ("max_tokens", "max_completion_tokens")
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
# For the chat template (`template_args`).
TEMPLATE = ("reasoning_effort", "chat_template_kwargs")
DEFAULT_LENGTH = 2048


def ask_locally(judge: Judge, calls: Sequence[JudgeCall], store: JudgmentStore) -> Asked:
    """Asks a local model what is not in the store yet.

    Raises:
        InputError: a model that is missing or has no chat template, or an unknown parameter.
        EvalkitError: the model cannot be loaded or computes NaN; what was judged is kept.
    """
    from evalkit.engines import build_engine
    from evalkit.engines.local.tokenizer import load_tokenizer
    from evalkit.engines.models import resolve

    sampling, length, seed = _options(judge.parameters)
    made = judge.engine
    assert made is not None
    resolved = resolve(made.model, offline=made.offline)
    takes_system = takes_system_message(load_tokenizer(resolved))
    asked = Asked()
    # judge.parameters alone decide the sampling: they are part of the cache key.
    with phase(t("loading the judge")):
        built = build_engine(resolved, made.options, made.dtype, bos=made.bos)
    with built as engine:
        while waiting := unanswered(calls, store):
            keys = {key: call for call in waiting if (key := open_key(call, store)) and store.claim(key)}
            store.refresh()
            requests = [
                Request(
                    key,
                    with_system(call.messages, takes_system),
                    length,
                    (),
                    sampling,
                    seed + call.repeat,
                    keep_special=judge.thoughts is not None,
                )
                for key, call in keys.items()
                if key not in store
            ]
            try:
                for completion in watch(engine.generate(requests), requests, t("judging")):
                    asked.add(completion.prompt_tokens, completion.new_tokens)
                    store.add(CachedReply.of(completion.id, _reply(completion, judge.model)))
            finally:
                for key in keys:
                    store.release(key)
            if not keys:
                time.sleep(CLAIM_SECONDS)
                store.refresh()
    return asked


def _reply(completion: Completion, model: str) -> Reply:
    failed = completion.finish_reason == "error"
    return Reply(
        status="overflow" if failed else "ok",
        text=None if failed else completion.raw_text.strip(),
        finish_reason=completion.finish_reason,
        model=model,
        input_tokens=completion.prompt_tokens,
        output_tokens=completion.new_tokens,
        error=completion.error,
    )


def _options(parameters: dict[str, Any]) -> tuple[Sampling, int, int]:
    unknown = set(parameters) - {*SAMPLING, *LENGTHS, *TEMPLATE, "n"}
    if unknown or parameters.get("n", 1) != 1:
        raise InputError(
            f"a local judge does not know {', '.join(sorted(unknown)) or 'n other than 1'}",
            where="option judge.parameters",
            fix=f"known: {', '.join((*SAMPLING, *LENGTHS, *TEMPLATE))}",
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
