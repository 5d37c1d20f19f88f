"""Completions -> the JSON of an answer, whole or as the events of a stream."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from evalkit.serve.asked import Asked, RefusedError, Served
from evalkit.types import Completion, Request


def answer(asked: Asked, completions: Sequence[Completion], served: Served) -> dict[str, Any]:
    """The body of an answer; `evalkit` in each choice carries what a record needs.

    Raises:
        RefusedError: a request could not be answered, and the caller knows no word for that.
    """
    choices = [
        _choice(asked, index, request, completion)
        for index, (request, completion) in enumerate(zip(asked.requests, completions, strict=True))
    ]
    kind = "chat.completion" if asked.chat else "text_completion"
    return {
        "id": _name(asked),
        "object": kind,
        "created": int(time.time()),
        "model": served.name,
        "choices": choices,
        "usage": _usage(completions),
    }


def events(asked: Asked, completions: Sequence[Completion], served: Served) -> Iterator[str]:
    """The same as server-sent events: one with the text, one with the end, of each choice."""
    whole = answer(asked, completions, served)
    usage = whole.pop("usage")
    if asked.chat:
        whole["object"] = "chat.completion.chunk"
    for choice in whole.pop("choices"):
        finish, last = choice["finish_reason"], dict(choice)
        if asked.chat:
            text = {"delta": choice.pop("message")}
            last["delta"] = {}
            last.pop("message")
        else:
            text = {"text": choice["text"]}
            last["text"] = ""
        first = {"index": choice["index"], "logprobs": None, "finish_reason": None, **text}
        yield _event(whole | {"choices": [first]})
        yield _event(whole | {"choices": [last | {"finish_reason": finish}]})
    if asked.counted:
        yield _event(whole | {"choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def _choice(asked: Asked, index: int, request: Request, completion: Completion) -> dict[str, Any]:
    if completion.finish_reason == "error" and not asked.extended:
        code = "context_length_exceeded" if completion.over_context else None
        raise RefusedError(completion.error or "it cannot be answered", code=code, param="prompt")
    text = _before_stop(completion.raw_text, request.stop)
    content: dict[str, Any] = {"text": text}
    if asked.chat:
        content = {"message": {"role": "assistant", "content": text}}
    told = asdict(completion)
    del told["id"]
    finish = "length" if completion.finish_reason == "length" else "stop"
    return {"index": index, "logprobs": None, "finish_reason": finish, **content, "evalkit": told}


def _before_stop(text: str, stops: Sequence[str]) -> str:
    # OpenAI's services leave out the stop string and what came with it.
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _usage(completions: Sequence[Completion]) -> dict[str, int]:
    prompt = sum(completion.prompt_tokens for completion in completions)
    new = sum(completion.new_tokens for completion in completions)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _name(asked: Asked) -> str:
    return f"{'chatcmpl' if asked.chat else 'cmpl'}-{asked.requests[0].id}"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
