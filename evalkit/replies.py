"""What is sent to an OpenAI-compatible service, and what its answer amounts to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from evalkit.types import Message

ReplyStatus = Literal["ok", "filtered", "overflow", "api_error"]


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one request after `attempts` calls.

    `text` is None unless the service answered; `model` is what it says has answered. `filtered`:
    the service refused the content. `overflow`: longer than the model's context. `api_error`: it
    failed to the last attempt, and `error` says how; `reachable` is False when no connection could
    be made or kept. `body` is the whole answer as it came.
    """

    status: ReplyStatus
    text: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    attempts: int = 1
    error: str | None = None
    reachable: bool = True
    body: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


def chat_body(model: str, messages: Sequence[Message], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a chat request."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return {"model": model, "messages": turns, **parameters}


def completion_body(model: str, prompt: str | Sequence[int], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a text completion request; the prompt is its exact text, or token ids."""
    return {"model": model, "prompt": prompt if isinstance(prompt, str) else list(prompt), **parameters}


def reply_of_body(body: object) -> Reply | None:
    """The first choice of a chat or text completion's JSON body; None: it is none, or has no choice."""
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(body, dict) or not isinstance(choice, dict):
        return None
    message = choice.get("message")
    if isinstance(message, dict):
        text = message.get("content") or message.get("refusal")
    elif (text := choice.get("text")) is None:
        return None
    if text is not None and not isinstance(text, str):
        return None
    finish_reason, model, usage = choice.get("finish_reason"), body.get("model"), body.get("usage")
    filtered = finish_reason == "content_filter"
    return Reply(
        status="filtered" if filtered else "ok",
        text=text if filtered else text or "",
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        model=model if isinstance(model, str) else None,
        input_tokens=_count(usage, "prompt_tokens"),
        output_tokens=_count(usage, "completion_tokens"),
        error="the service cut its own answer (content_filter)" if filtered else None,
        body=body,
    )


def _count(usage: object, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else None
