"""Request bodies of OpenAI-compatible services, and the reading of their answers."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from evalkit.core.text import everywhere, unicode_text
from evalkit.core.types import Message
from evalkit.services.refusals import Refusal, refusal_of

ReplyStatus = Literal["ok", "filtered", "overflow", "api_error"]
# How an answer ended.
End = Literal["stop", "stop_string", "length", "filtered", "failed"]


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one request after `attempts` calls.

    `text` is None unless the service answered; `model` is the name in the answer. `filtered`: the
    service refused the content. `overflow`: longer than the model's context. `api_error`: the last
    attempt failed too, for the reason `error`; `reachable` is False when no connection could be made
    or kept. `body` is the whole answer. `thought` is what the service returned apart from the text as
    the thought before it.
    """

    status: ReplyStatus
    text: str | None = None
    thought: str | None = None
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


def read_reply(
    status: int, headers: Mapping[str, str], content: object, *, needs_text: bool = False
) -> Reply | Refusal:
    """Reads the answer to a chat or text completion: its first choice, or the reason there is none.

    Used for calls and batch files, completions and judgments. `content` is the body, as bytes or as JSON.
    `needs_text`: an empty answer that was not cut off is a failure; behind a thought it is missing, not lost.
    """
    body = json_of(content)
    if not 200 <= status < 300:
        return refusal_of(status, headers, body)
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(body, dict) or not isinstance(choice, dict):
        return refusal_of(status, headers, body, "the service answered without a choice")
    for told in (body, choice):
        if told.get("error"):
            return refusal_of(status, headers, {"error": told["error"]})
    text = _text(choice)
    if isinstance(text, Refusal):
        return text
    given, usage, model = choice.get("finish_reason"), body.get("usage"), body.get("model")
    finish_reason = str(given.get("type") or "") or None if isinstance(given, dict) else given
    reply = Reply(
        status="ok",
        text=text,
        thought=_thought(choice.get("message")),
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        model=model if isinstance(model, str) else None,
        input_tokens=_count(usage, "prompt_tokens", "input_tokens"),
        output_tokens=_count(usage, "completion_tokens", "output_tokens"),
        body=body,
    )
    thought_alone = bool((reply.thought or "").strip())
    return _with_status(reply, choice, headers, needs_text and not thought_alone)


def read_object(status: int, headers: Mapping[str, str], content: object) -> Reply | Refusal:
    """Reads the JSON object that a service gives at an address, as the reply's `body`.

    The arguments are those of `read_reply`.
    """
    body = json_of(content)
    if not isinstance(body, dict) or body.get("error"):
        return refusal_of(status, headers, body, "the service answered without a JSON object")
    return Reply("ok", body=body)


def _with_status(
    reply: Reply, choice: Mapping[str, Any], headers: Mapping[str, str], needs_text: bool
) -> Reply | Refusal:
    end, text = end_of(reply.finish_reason), reply.text or ""
    if end == "filtered":
        error = f"the service cut its own answer ({reply.finish_reason})"
        return replace(reply, status="filtered", text=text or None, error=error)
    if end == "failed":
        reason = f"the answer ended with finish reason {reply.finish_reason}"
        given = choice.get("finish_reason")
        # SGLang gives the error in the finish reason.
        return refusal_of(200, headers, {"error": given} if isinstance(given, dict) else None, reason)
    if text.strip() or (text and not needs_text):
        return reply
    if calls_tool(choice):
        return (
            Refusal("passing", "the service answered with a tool call and no text") if needs_text else reply
        )
    if end == "length" and reply.output_tokens == 0:
        return replace(reply, status="overflow", text=None, error="the prompt leaves no room for an answer")
    unended = end is None and (reply.finish_reason is not None or not reply.output_tokens)
    if unended or (needs_text and end != "length"):
        named = f" (finish reason {reply.finish_reason})" if reply.finish_reason else ""
        return Refusal("passing", f"the service answered without a word{named}")
    return reply


def calls_tool(choice: Mapping[str, Any]) -> bool:
    """Whether a choice calls a function."""
    message = choice.get("message") or {}
    return any(message.get(name) for name in ("tool_calls", "function_call"))


def is_lost(finish_reason: str | None, text: str | None, thought: str | None = None) -> bool:
    """Whether a stored answer is none: it failed, was refused, or is empty, without a thought too."""
    end = end_of(finish_reason)
    return end in ("failed", "filtered") or (
        end != "length" and not (text or "").strip() and not (thought or "").strip()
    )


_ENDS: tuple[tuple[End, re.Pattern[str]], ...] = (
    (
        "stop",
        re.compile(
            r"^(stop|stop_token|stopstringfound|eos|eos_?token|eosfound|end|end_turn|complete|completed"
            r"|finish|finished|done|success|tool_?calls|tool_use|function_call)$"
        ),
    ),
    ("stop_string", re.compile(r"stop_?(sequence|string|word)$")),
    (
        "filtered",
        re.compile(
            r"filter|safety|sensitive|refus|blocklist|blocked|prohibited|recitation|spii|guardrail|toxic"
            r"|moderation|policy"
        ),
    ),
    (
        "length",
        re.compile(
            r"length|max_?(new_|output_)?tokens|maxpredictedtokens|token_limit|context_window|error_limit"
        ),
    ),
    (
        "failed",
        re.compile(
            r"error|fail|abort|cancel|time_?out|timed|resource|overload|unavailable|network|connection|lost"
            r"|disconnect|interrupt|malformed|unload|exceeded|rate_|preempt|kill|shut_?down|crash|user"
        ),
    ),
)


def end_of(finish_reason: str | None) -> End | None:
    """The meaning of a server's finish reason; None: there is none, or an unknown one."""
    name = (finish_reason or "").strip().lower()
    return next((end for end, words in _ENDS if words.search(name)), None)


def json_of(content: object) -> object:
    """A body as JSON. A body that is not JSON: its text, the error in an event stream, or None if cut off.

    Half a character in it becomes U+FFFD.
    """
    body = content
    if isinstance(content, bytes):
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            body = _without_json(content.decode("utf-8", "replace").strip())
        # Gemini puts an error into a list.
        body = body[0] if isinstance(body, list) and body else body
    return everywhere(body, unicode_text)


def _without_json(text: str) -> object:
    events = re.findall(r"^data:\s*(\{.*\})\s*$", text, re.M)
    for event in events:
        with suppress(ValueError, RecursionError):
            told = json.loads(event)
            if told.get("error") or "choices" not in told:
                return told
    if events:
        return "a stream of events, which was not asked for"
    # Half a JSON answer is not an error message; a page or a line of text is.
    return None if text.startswith(("{", "[", '"')) else text


# Thoughts are not part of an answer.
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_content")


def _text(choice: Mapping[str, Any]) -> str | Refusal:
    message = choice.get("message")
    if isinstance(message, dict):
        content = message.get("content") or message.get("refusal")
    elif message is None and "text" in choice:
        content = choice["text"]
    else:
        return Refusal("passing", "the service answered without a message")
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if kind == "refusal" and isinstance(part, dict):
            text = part.get("refusal")
        if kind in _THOUGHTS:
            continue
        if not isinstance(text, str) or kind not in (None, "text", "output_text", "refusal", "str"):
            return Refusal("passing", f"the answer has a part of the type {kind!r}; only text is read")
        texts.append(text)
    return "".join(texts)


def _thought(message: object) -> str | None:
    """The thought that a service returns apart from the content; two names for it are in use."""
    if not isinstance(message, dict):
        return None
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str):
            return str(message[name])
    content = message.get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    texts: list[Any] = []
    for part in parts:
        if part.get("type") in _THOUGHTS:
            given = part.get(part["type"])
            # Mistral's is a list of parts itself.
            inner = given if isinstance(given, list) else [given]
            texts += [one.get("text") if isinstance(one, dict) else one for one in inner]
    return "".join(text for text in texts if isinstance(text, str)) or None


def _count(usage: object, *keys: str) -> int | None:
    for key in keys:
        value = usage.get(key) if isinstance(usage, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            continue
        with suppress(ValueError, OverflowError):
            if (count := int(float(value))) >= 0:
                return count
    return None
