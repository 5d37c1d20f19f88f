"""The Harmony format of llm-jp-4 and gpt-oss: a completion -> its thought and its answer.

A conversation is messages: a header (role, channel, recipient), `<|message|>`, a body, an end marker. The
rules are those of llm-jp's own parser (docs/protocol/reasoning.md, section 4), also for damaged text.
"""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

MARKER = re.compile(r"<\|(start|channel|constrain|message|end|return|call)\|>")
END_MARKER = re.compile(r"<\|(?:end|return|call)\|>")

_Kind = Literal["thought", "tool", "content", "ignored"]


class HarmonyAnswer(NamedTuple):
    """What a completion says, nothing stripped.

    Attributes:
        thought: all analysis, joined by newlines; None without any.
        answer: all content, joined by newlines, or with a tool call the raw text from where it begins.
        calls_tool: a function is called.
        has_content: there is a message for the user, perhaps an empty one.
        last: the text ends within it.
    """

    thought: str | None
    answer: str | None
    calls_tool: bool
    has_content: bool
    last: bool


class _Message(NamedTuple):
    at: int
    kind: _Kind
    addressed: bool
    body: str
    closed: bool


def read_harmony(text: str) -> HarmonyAnswer:
    """Reads a completion that continues `<|start|>assistant`; text without markers is the answer."""
    if not any(marker in text for marker in ("<|channel|>", "<|start|>", "<|message|>")):
        return HarmonyAnswer(None, text, False, True, True)
    messages = list(_messages(text))
    thought = "\n".join(one.body for one in messages if one.kind == "thought" and one.body) or None
    border = next((one.at for one in messages if one.addressed and one.kind in ("content", "tool")), 0)
    contents = [one for one in messages if one.kind == "content"]
    last = bool(contents) and not contents[-1].closed
    calls_tool = any(one.kind == "tool" for one in messages)
    if calls_tool:
        answer = text[border:]
    else:
        answer = "\n".join(one.body for one in contents if one.body and one.at >= border)
    return HarmonyAnswer(thought, answer or None, calls_tool, bool(contents), last)


def _messages(text: str) -> Iterator[_Message]:
    # Sections of the open header by the marker that opened each; None between messages.
    header: dict[str, str] | None = {"start": "assistant"}
    section, begin, at = "start", 0, 0
    while marker := MARKER.search(text, at):
        kind = marker[1]
        if header is not None:
            header[section] += text[at : marker.start()]
        at = marker.end()
        if kind in ("end", "return", "call"):
            header = None
        elif kind == "message":
            stop = END_MARKER.search(text, at)
            body = text[at : stop.start() if stop else len(text)]
            yield _message(marker.start() if header is None else begin, header or {}, body, stop is not None)
            header, at = None, stop.end() if stop else len(text)
        elif header is not None and kind == "start":
            header[section] += marker[0]
        else:
            if header is None:
                header, begin = {}, marker.start()
            header[kind], section = "", kind


def _message(at: int, header: dict[str, str], body: str, closed: bool) -> _Message:
    channel = header.get("channel", "").split()
    rest = header.get("start", "").split()[1:] + channel[1:]
    recipient: str | None = None
    if rest and rest[-1].startswith("to="):
        recipient = rest[-1][3:]
    elif rest:
        # The last of several words is the constraint.
        recipient = rest[-2].removeprefix("to=") if len(rest) > 1 else rest[0]
    kind: _Kind = "content"
    if recipient is not None and recipient.startswith("functions."):
        kind = "tool"
    elif channel[:1] == ["analysis"]:
        kind = "thought"
    elif recipient is not None and channel[:1] != ["final"]:
        kind = "ignored"
    return _Message(at, kind, bool(channel) or recipient is not None, body, closed)
