"""Request bodies in the dialect of each server, and answers as completions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evalkit.core.config import BosRule, ServerKind
from evalkit.core.errors import InputError
from evalkit.core.types import REST_OF_CONTEXT, Completion, FinishReason, Request
from evalkit.engines.bos import token_ids
from evalkit.engines.local.tokens import clean_up
from evalkit.services.replies import Reply, calls_tool, end_of

# Settings of every request: the stop string stays in the text, and no sampling filter of the server.
_FIXED: dict[ServerKind, dict[str, Any]] = {
    ServerKind.vllm: {"include_stop_str_in_output": True, "min_p": 0.0},
    ServerKind.sglang: {"no_stop_trim": True, "min_p": 0.0},
    ServerKind.llama_cpp: {"min_p": 0.0},
}
# The value that disables top-k, for servers that have it.
_TOP_K_OFF = {
    ServerKind.vllm: -1,
    ServerKind.sglang: -1,
    ServerKind.llama_cpp: 0,
}
_PENALTY = {
    ServerKind.vllm: "repetition_penalty",
    ServerKind.sglang: "repetition_penalty",
    ServerKind.tgi: "repetition_penalty",
    ServerKind.llama_cpp: "repeat_penalty",
}
# Servers that can write special tokens out, and those that hand arguments to the chat template.
_KEEPS_SPECIAL = (ServerKind.vllm, ServerKind.sglang)
_TAKES_TEMPLATE_ARGS = (*_KEEPS_SPECIAL, ServerKind.llama_cpp)
# Fields that name the stop string that was met.
_STOP_FIELDS = ("stop_reason", "matched_stop", "stopping_word")


def parameters(kind: ServerKind, request: Request, *, defaults: bool) -> tuple[dict[str, Any], list[str]]:
    """The body of a request without its prompt, and the settings this server does not have.

    Servers take omitted settings from the model's own configuration, so every setting they have is
    sent; with `defaults` sampling is left to them.
    """
    sampling = request.sampling
    body: dict[str, Any] = dict(_FIXED.get(kind, {}))
    # Without a limit servers use the rest of the context.
    if request.max_new_tokens != REST_OF_CONTEXT:
        body = {"max_tokens": request.max_new_tokens, **body}
    if request.stop:
        body["stop"] = list(request.stop)
    if request.keep_special and kind in _KEEPS_SPECIAL:
        # The end-of-turn token would be written out as well.
        fixed = {"include_stop_str_in_output", "no_stop_trim"} & set(body)
        body |= {"skip_special_tokens": False, **dict.fromkeys(fixed, False)}
    if defaults:
        return body | {"seed": request.seed}, []
    left_out: list[str] = []
    body["temperature"] = sampling.temperature if sampling.do_sample else 0
    # TGI refuses neutral values.
    sends_neutral = kind is not ServerKind.tgi
    if sampling.do_sample:
        body["seed"] = request.seed
        if sends_neutral or sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if kind in _TOP_K_OFF:
            body["top_k"] = sampling.top_k or _TOP_K_OFF[kind]
        elif sampling.top_k:
            left_out.append("top_k")
    if kind not in _PENALTY:
        left_out += ["repetition_penalty"] if sampling.repetition_penalty != 1 else []
    elif sends_neutral or sampling.repetition_penalty != 1:
        body[_PENALTY[kind]] = sampling.repetition_penalty
    return body, left_out


def template_arguments(kind: ServerKind, args: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a chat body that hands `model.chat_template_args` to the server's template.

    Raises:
        InputError: a server that has no way to take them.
    """
    if not args:
        return {}
    if kind in _TAKES_TEMPLATE_ARGS:
        return {"chat_template_kwargs": dict(args)}
    if unknown := sorted(set(args) - {"reasoning_effort"}):
        raise InputError(
            f"this server ({kind.value}) takes no template arguments: {', '.join(unknown)}",
            where=f"option model.chat_template_args.{unknown[0]}",
            fix="send what it understands by engine.parameters.KEY=VALUE",
        )
    return dict(args)


def stopped_by_its_prompt(request: Request, reply: Reply) -> bool:
    """Whether the stop string that may have ended an answer begins in the prompt.

    transformers looks for stop strings there too: after a prompt that ends in a newline, one more
    newline is to it the blank line that ends an answer.
    """
    text = reply.text or ""
    if not text or not isinstance(request.prompt, str) or end_of(reply.finish_reason) != "stop":
        return False
    whole = request.prompt + text
    return any(len(text) < len(stop) and whole.endswith(stop) for stop in request.stop)


def cut_at_stop(reply: Reply, stops: Sequence[str]) -> Reply:
    """The reply to a request without stop strings as far as the end of the first one that is in it."""
    text = reply.text or ""
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    # The server counted what is cut off too.
    return replace(reply, text=text[: min(ends)], output_tokens=None) if ends else reply


def foreign_completion(
    request: Request, reply: Reply, prompt_text: str, tokenizer: Any | None, context: int | None = None
) -> Completion:
    """The completion in the answer of a server that returns text only.

    Args:
        request: the request.
        reply: `ok`, `filtered` or `overflow`.
        prompt_text: the prompt without special tokens; the protocol's clean-up covers prompt and answer.
        tokenizer: counts the tokens a server does not count; None: they count as 0.
        context: the server's, in tokens; an answer that it ends is a failed one, since its text is cut.
    """
    prompt_tokens = reply.input_tokens or _count(prompt_text, tokenizer)
    error = None if reply.status == "ok" else reply.error or reply.status
    over_context = reply.status == "overflow"
    if error is None and _is_cut(request, reply, prompt_tokens, context):
        over_context = True
        error = f"the server's context of {context} tokens ends after {reply.output_tokens} new tokens"
    if error is not None:
        return Completion.failed(request.id, error, prompt_tokens, over_context=over_context)
    choice: Mapping[str, Any] = reply.body["choices"][0]
    raw, finish = _with_stop_string(
        reply.text or "", choice, reply.finish_reason, request, reply.output_tokens
    )
    if request.keep_special and finish == "stop" and tokenizer is not None and tokenizer.eos_token:
        raw = raw.removesuffix(tokenizer.eos_token)
    return Completion(
        id=request.id,
        text=clean_up(prompt_text + raw)[len(clean_up(prompt_text)) :],
        raw_text=raw,
        finish_reason=finish,
        prompt_tokens=prompt_tokens,
        new_tokens=_count(raw, tokenizer) if reply.output_tokens is None else reply.output_tokens,
        served_thought=reply.thought,
        tool_call=not raw.strip() and calls_tool(choice),
    )


def _is_cut(request: Request, reply: Reply, prompt_tokens: int, context: int | None) -> bool:
    new = reply.output_tokens
    if context is None or new is None or request.max_new_tokens == REST_OF_CONTEXT:
        return False
    full = new < request.max_new_tokens and prompt_tokens + new >= context
    return full and end_of(reply.finish_reason) == "length"


def _with_stop_string(
    text: str, choice: Mapping[str, Any], finish_reason: str | None, request: Request, new_tokens: int | None
) -> tuple[str, FinishReason]:
    """The text with the stop string that ended it, which servers leave out, and why it ended."""
    for name in _STOP_FIELDS:
        met = choice.get(name)
        if isinstance(met, str) and met in request.stop:
            return text if met in text else text + met, "stop_string"
    if any(stop in text for stop in request.stop):
        return text, "stop_string"
    end = end_of(finish_reason)
    if end in ("stop", "stop_string", "length"):
        return text, end
    return text, "length" if new_tokens is not None and new_tokens >= request.max_new_tokens else "stop"


def _count(text: str, tokenizer: Any | None) -> int:
    return len(token_ids(text, tokenizer, BosRule.none)) if tokenizer is not None else 0
