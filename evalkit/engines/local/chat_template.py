"""Conversation -> text by the model's chat template, checked before a model sees it.

A template is a program somebody else wrote. It may fail, omit messages or write today's date.
None of this shows in a score, so it is checked here.
"""

import inspect
import logging
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from evalkit.core.config import TEMPLATE_DATE, ModelConfig
from evalkit.core.errors import InputError, foreign
from evalkit.core.text import canonical_json
from evalkit.core.types import Message
from evalkit.engines.models.folder_files import chat_template, is_template_text, template_file

log = logging.getLogger(__name__)

FIX = "mend it, or take another one: model.chat_template=FILE.jinja"
# Limits of a template's output and of its loops, before the length of the conversation is added.
_MOST_CHARACTERS = 10_000_000
_MOST_COUNTED = 1_000_000
# A message that no template contains; any kind of change to it shows.
_MARK = "Ab cD <i>&'\"\n質問 number"
# Python's representation of an object without text, different in each process.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}>")
# A compiled template is shared by all threads, and so are its limits.
_rendering = threading.Lock()
_warned: set[tuple[str, str]] = set()


class ChatTemplate(str):
    """The Jinja text of a chat template.

    Attributes:
        where: the file or option it came from.
        date: what its clock shows, as YYYY-MM-DD.
        args: further variables it reads, such as enable_thinking.
    """

    where: str
    date: str
    args: Mapping[str, Any]

    def __new__(
        cls,
        text: str,
        where: str = "the tokenizer's chat template",
        date: str = TEMPLATE_DATE,
        args: Mapping[str, Any] | None = None,
    ) -> "ChatTemplate":
        """The text with its origin."""
        template = super().__new__(cls, text)
        template.where, template.date, template.args = where, date, dict(args or {})
        return template

    @property
    def has_clock(self) -> bool:
        """Whether it may write the date, in one conversation or another."""
        return "strftime_now" in self


def choose_template(model: ModelConfig, folder: Path | None, own: Any) -> Any:
    """The template a tokenizer gets: that of the options, else its own.

    Args:
        model: the options of the model.
        folder: the tokenizer's folder; None: it has no files.
        own: what the tokenizer brings: a text, texts by name, or None.

    Returns:
        A `ChatTemplate`; or `own` when it is empty or has no default among several, which matters only
        for chats.

    Raises:
        InputError: an option that names no template, or a date that is none.
    """
    _parsed(model.template_date)
    if model.chat_template is not None:
        text = chat_template(model.chat_template, folder)
        given = "" if is_template_text(model.chat_template) else f"={model.chat_template}"
        where = f"option model.chat_template{given}"
        return ChatTemplate(text, where, model.template_date, model.chat_template_args)
    if isinstance(own, dict) and "default" in own:
        own = own["default"]
    if not own or not isinstance(own, str):
        return own
    where = str(template_file(folder)) if folder else "the tokenizer's chat template"
    return ChatTemplate(own, where, model.template_date, model.chat_template_args)


def template_of(tokenizer: Any) -> ChatTemplate:
    """The chat template of a tokenizer.

    Raises:
        InputError: it has none, none that is text, or several without a default.
    """
    found = tokenizer.chat_template
    if isinstance(found, dict) and "default" in found:
        found = found["default"]
    if not found:
        raise InputError(
            "the model's tokenizer has no chat template, so it cannot be asked in turns",
            where="option model.chat_template",
            fix="model.chat_template=FILE.jinja, or take an instruct model",
        )
    if isinstance(found, dict):
        names = sorted(map(str, found))
        raise InputError(
            f"the tokenizer has several chat templates and no default: {', '.join(names)}",
            where=template_file(Path(str(tokenizer.name_or_path))),
            fix=f"choose one by its name, such as model.chat_template={names[0]}, or give a FILE.jinja",
        )
    if not isinstance(found, str):
        raise InputError(f"the chat template is no text but {type(found).__name__}", fix=FIX)
    return found if isinstance(found, ChatTemplate) else ChatTemplate(found)


def clock_date(tokenizer: Any | None) -> str | None:
    """The date that rendered conversations may contain; None when the template has no clock."""
    if tokenizer is None:
        return None
    template = template_of(tokenizer)
    return template.date if template.has_clock else None


def render_chat(messages: Sequence[Message], tokenizer: Any) -> str:
    """The text of a conversation whose next turn is the assistant's.

    The log warns once of a template that replaces the system message by a sentence of its own, changes
    what the assistant said (a thought apart), or ends in EOS or padding.

    Raises:
        InputError: there is no template to use, it fails or refuses these roles, omits or
            changes a user message, omits the assistant's, or writes a different text each time.
    """
    text = rendered(messages, tokenizer)
    template = template_of(tokenizer)
    if any(one.role == "system" and one.content.strip() not in text for one in messages):
        _warn(template, "leaves out the text of the system message")
    if not _has_words(messages, text, "user", "assistant"):
        _warn(template, "changes what the assistant said before")
    ends = (getattr(tokenizer, name, None) for name in ("eos_token", "pad_token"))
    if last := next((str(token) for token in ends if token and text.rstrip().endswith(str(token))), None):
        _warn(template, f"puts {last} behind the prompt, where models begin another text")
    return text


def _warn(template: ChatTemplate, does: str) -> None:
    if (template, does) not in _warned:
        _warned.add((str(template), does))
        log.warning("the chat template %s (%s)", does, template.where)


def as_text(prompt: str | Sequence[Message], tokenizer: Any | None) -> str:
    """A prompt as the text a model sees; without a tokenizer a conversation is its canonical JSON."""
    if isinstance(prompt, str):
        return prompt
    if tokenizer is None:
        return canonical_json([asdict(message) for message in prompt])
    return render_chat(prompt, tokenizer)


def rendered(messages: Sequence[Message], tokenizer: Any) -> str:
    """As `render_chat`, without its warnings."""
    template = template_of(tokenizer)
    text = _render(messages, tokenizer, template)
    if text != _render(messages, tokenizer, template):
        raise _refused("writes another text each time", template)
    said = "".join(message.content for message in messages)
    if any(address not in said for address in _ADDRESS.findall(text)):
        raise _refused("writes an address in memory, another one in each process", template)
    # Words that the template itself contains, such as a digit, would hide that it omits them.
    marked = [
        message if message.role == "system" else replace(message, content=f"{_MARK} {place}.")
        for place, message in enumerate(messages)
    ]
    shown = _render(marked, tokenizer, template)
    if not (_has_words(messages, text, "user") and _has_words(marked, shown, "user")):
        raise _refused("leaves out or changes what the user says", template)
    if not _has_words(marked, shown, "user", "assistant"):
        raise _refused("leaves out or changes what the assistant said before", template)
    return text


def _has_words(messages: Iterable[Message], text: str, *roles: str) -> bool:
    """Whether the text has all messages of these roles, in order; outer white space is ignored.

    Of the assistant's a thought may be left out, as templates of thinking models do.
    """
    place = 0
    for message in messages:
        if message.role in roles:
            said = message.content.split("</think>")[-1] if message.role == "assistant" else message.content
            place = text.find(said.strip(), place)
            if place < 0:
                return False
            place += len(said.strip())
    return True


def _refused(does: str, template: ChatTemplate) -> InputError:
    return InputError(f"the chat template {does}", where=template.where, fix=FIX)


def _render(messages: Sequence[Message], tokenizer: Any, template: ChatTemplate) -> str:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    turns = [{"role": message.role, "content": message.content} for message in messages]
    # A subclass of str has its own entry in the cache of compiled templates.
    source = str(template)
    own = inspect.signature(tokenizer.apply_chat_template).parameters
    if taken := sorted(set(template.args) & set(own)):
        raise InputError(
            f"{', '.join(taken)} is no variable of the template but an option of its rendering",
            where=f"option model.chat_template_args.{taken[0]}",
            fix="leave it out; model.chat_template_args.KEY=VALUE is for variables that the template reads",
        )
    with _rendering, foreign("the chat template fails", where=template.where, fix=FIX):
        limits = _Limits(sum(len(message.content) for message in messages), template.date)
        limits.install(_compile_jinja_template(source).environment)
        try:
            text = tokenizer.apply_chat_template(
                turns, chat_template=source, tokenize=False, add_generation_prompt=True, **template.args
            )
        except MemoryError:
            raise _refused("needs more memory than there is", template) from None
    if not isinstance(text, str):
        raise _refused(f"gives no text but {type(text).__name__}", template)
    return text


class _Limits:
    """Limits of one rendering: no randomness, no current date, no endless output or loops."""

    def __init__(self, characters: int, date: str) -> None:
        # A template may repeat messages, and the output of macros counts again.
        self._characters = _MOST_CHARACTERS + 100 * characters
        self._counted = _MOST_COUNTED
        self._now = _parsed(date)

    def install(self, environment: Any) -> None:
        """Installs the limits in the environment of a compiled template."""
        environment.concat = self._joined
        environment.filters["random"] = _no_chance
        environment.globals |= {
            "strftime_now": self._now.strftime,
            "range": self._range,
            "lipsum": _no_chance,
        }

    def _joined(self, parts: Iterable[str]) -> str:
        kept = []
        for part in parts:
            self._characters -= len(part)
            if self._characters < 0:
                raise OverflowError(f"it writes more than {_MOST_CHARACTERS} characters")
            kept.append(part)
        return "".join(kept)

    def _range(self, *bounds: int) -> range:
        counted = range(*bounds)
        self._counted -= len(counted)
        if self._counted < 0:
            raise OverflowError(f"its loops count further than {_MOST_COUNTED}")
        return counted


def _no_chance(*args: Any, **options: Any) -> str:
    raise ValueError("it draws at random, so no prompt could be made twice")


def _parsed(date: str) -> datetime:
    try:
        return datetime.strptime(date, "%Y-%m-%d")
    except ValueError:
        raise InputError(
            f"not a date: {date!r}",
            where="option model.template_date",
            fix=f"model.template_date={TEMPLATE_DATE} (year-month-day)",
        ) from None
