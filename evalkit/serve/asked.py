"""The JSON body of a call -> the requests it makes, or the reason why it is refused."""

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from evalkit.engines.chat_template import render_chat
from evalkit.errors import InputError
from evalkit.types import Message, Request, Role, Sampling

# What would change the answers and is not to be had, with the value that asks for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "min_p": (0,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "ignore_eos": (False,),
    "add_special_tokens": (True,),
    "stop_token_ids": ([],),
}
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
# OpenAI's own default length of a text completion.
_TEXT_TOKENS, _CHAT_TOKENS = 16, 1024
_MOST_STOPS = 16
_ids = count()


class RefusedError(Exception):
    """A call that is not answered: an HTTP status, and OpenAI's fields of an error."""

    def __init__(
        self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = _KINDS.get(status, "server_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True)
class Served:
    """The model behind the endpoint.

    `name` is what calls name it; `vocabulary` the number of its token ids, `max_tokens` the longest
    answer a call may ask for.
    """

    name: str
    tokenizer: Any
    vocabulary: int
    max_tokens: int


@dataclass(frozen=True)
class Asked:
    """One call: its requests in order, and how it wants the answer.

    `extended`: the caller is evalkit; failed requests are answers too. `counted`: a stream ends
    with the token counts.
    """

    requests: tuple[Request, ...]
    chat: bool
    stream: bool
    extended: bool
    counted: bool


def parse(data: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        RefusedError: it is none.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise RefusedError("the body is not JSON") from None
    if not isinstance(body, dict):
        raise RefusedError("the body is not a JSON object")
    return body


def text_call(body: Mapping[str, Any], served: Served) -> Asked:
    """A call of /v1/completions.

    Raises:
        RefusedError: something in it is malformed or not to be had.
    """
    return _asked(body, served, [_text_prompt(part, served) for part in _prompts(body)], chat=False)


def chat_call(body: Mapping[str, Any], served: Served) -> Asked:
    """A call of /v1/chat/completions.

    Raises:
        RefusedError: something in it is malformed, not to be had, or refused by the chat template.
    """
    listed = body.get("messages")
    if not isinstance(listed, list) or not listed:
        raise RefusedError("messages must be a list with at least one message", param="messages")
    messages = tuple(_message(one) for one in listed)
    try:
        render_chat(messages, served.tokenizer)
    except InputError as error:
        raise RefusedError(error.what, param="messages") from None
    return _asked(body, served, [(messages, None)], chat=True)


_Prompt = tuple[str | tuple[Message, ...], tuple[int, ...] | None]


def _asked(body: Mapping[str, Any], served: Served, prompts: list[_Prompt], *, chat: bool) -> Asked:
    _check_model(body, served)
    _check_neutral(body)
    own = body.get("evalkit")
    if own is not None and not isinstance(own, dict):
        raise RefusedError("evalkit must be an object", param="evalkit")
    options = body.get("stream_options") or {}
    temperature = _number(body, "temperature", 1.0, 0.0, 100.0)
    sampling = Sampling(
        do_sample=temperature > 0,
        temperature=temperature or 1.0,
        top_p=_number(body, "top_p", 1.0, 0.0, 1.0),
        top_k=max(0, _integer(body, "top_k", 0, -1, 1 << 31)),
        repetition_penalty=_number(body, "repetition_penalty", 1.0, 1e-3, 1e3),
    )
    length = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    usual = min(_CHAT_TOKENS if chat else _TEXT_TOKENS, served.max_tokens)
    state = (own or {}).get("generator_state")
    requests = tuple(
        Request(
            id=f"r{next(_ids)}",
            prompt=prompt,
            max_new_tokens=_integer(body, length, usual, 1, served.max_tokens),
            stop=_stops(body),
            sampling=sampling,
            seed=_integer(body, "seed", random.getrandbits(31), -(1 << 63), (1 << 63) - 1),
            generator_state=state if isinstance(state, str) else None,
            prompt_ids=ids,
        )
        for prompt, ids in prompts
    )
    return Asked(
        requests=requests,
        chat=chat,
        stream=_flag(body, "stream"),
        extended=own is not None,
        counted=isinstance(options, dict) and bool(options.get("include_usage")),
    )


def _check_model(body: Mapping[str, Any], served: Served) -> None:
    if body.get("model") not in (None, served.name):
        raise RefusedError(
            f"the model {body['model']!r} is not here, only {served.name!r}",
            status=404,
            code="model_not_found",
            param="model",
        )


def _check_neutral(body: Mapping[str, Any]) -> None:
    for name, neutral in _NEUTRAL.items():
        value = body.get(name)
        if value is not None and value not in neutral:
            raise RefusedError(f"{name} is not supported", code="unsupported_parameter", param=name)


def _prompts(body: Mapping[str, Any]) -> list[Any]:
    given = body.get("prompt")
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise RefusedError("prompt must be a text, token ids, or a list of either", param="prompt")
    return [given] if _is_id(given[0]) else given


def _text_prompt(part: Any, served: Served) -> _Prompt:
    if isinstance(part, str):
        return part, None
    if not isinstance(part, list) or not all(_is_id(value) for value in part):
        raise RefusedError("prompt must be a text, token ids, or a list of either", param="prompt")
    if any(not 0 <= value < served.vocabulary for value in part):
        raise RefusedError(f"token ids go from 0 to {served.vocabulary - 1}", param="prompt")
    return "", tuple(part)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _message(one: Any) -> Message:
    role = _ROLES.get(str(one.get("role"))) if isinstance(one, dict) else None
    if role is None:
        raise RefusedError(f"a message needs a role of {', '.join(_ROLES)}", param="messages")
    content = one.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        content = "".join(map(str, texts)) if len(texts) == len(content) else None
    if not isinstance(content, str):
        raise RefusedError("the content of a message must be text", param="messages")
    return Message(role, content)


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    given = body.get("stop")
    stops = [given] if isinstance(given, str) else given or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise RefusedError("stop must be a text or a list of texts", param="stop")
    if len(stops) > _MOST_STOPS:
        raise RefusedError(f"at most {_MOST_STOPS} stop strings", param="stop")
    return tuple(stops)


def _number(body: Mapping[str, Any], name: str, usual: float, least: float, most: float) -> float:
    value = body.get(name)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RefusedError(f"{name} must be a number", param=name)
    if not least <= value <= most:
        raise RefusedError(f"{name} must lie between {least:g} and {most:g}", param=name)
    return float(value)


def _integer(body: Mapping[str, Any], name: str, usual: int, least: int, most: int) -> int:
    value = body.get(name)
    if value is None:
        return usual
    if not _is_id(value):
        raise RefusedError(f"{name} must be a whole number", param=name)
    if not least <= value <= most:
        raise RefusedError(f"{name} must lie between {least} and {most}", param=name)
    return int(value)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RefusedError(f"{name} must be true or false", param=name)
    return bool(value)
