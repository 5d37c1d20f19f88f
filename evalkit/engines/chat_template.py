"""Conversation -> text by the model's chat template, checked before a model sees it.

A template is a program somebody else wrote. It may fail, forget what the user said or write the
date of today, and none of this shows in a score: it is looked for here.
"""

import logging
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from evalkit.config import TEMPLATE_DATE, ModelConfig
from evalkit.errors import InputError, foreign
from evalkit.models.files import chat_template, is_template_text, template_file
from evalkit.types import Message

log = logging.getLogger(__name__)

FIX = "mend it, or take another one: model.chat_template=FILE.jinja"
# What a template may write, and how far its loops may count, for conversations of any length.
_MOST_CHARACTERS = 10_000_000
_MOST_COUNTED = 1_000_000
# A user's words that no template contains by itself; each kind of change to them shows.
_MARK = "Ab cD <i>&'\"\n質問 number"
# How Python shows an object without a text of its own: another in each process.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}>")
# A compiled template is shared by all threads, and so are its limits.
_rendering = threading.Lock()
_warned: set[str] = set()


class ChatTemplate(str):
    """The Jinja text of a chat template.

    Attributes:
        where: the file or option it came from.
        date: what its clock shows, as YYYY-MM-DD.
    """

    where: str
    date: str

    def __new__(
        cls, text: str, where: str = "the tokenizer's chat template", date: str = TEMPLATE_DATE
    ) -> "ChatTemplate":
        """The text with its origin."""
        template = super().__new__(cls, text)
        template.where, template.date = where, date
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
        A `ChatTemplate`; or `own` where it has none or no default among several, which matters only
        to who asks in turns.

    Raises:
        InputError: an option that names no template, or a date that is none.
    """
    _parsed(model.template_date)
    if model.chat_template is not None:
        text = chat_template(model.chat_template, folder)
        given = "" if is_template_text(model.chat_template) else f"={model.chat_template}"
        return ChatTemplate(text, f"option model.chat_template{given}", model.template_date)
    if isinstance(own, dict) and "default" in own:
        own = own["default"]
    if not own or not isinstance(own, str):
        return own
    where = str(template_file(folder)) if folder else "the tokenizer's chat template"
    return ChatTemplate(own, where, model.template_date)


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
    """The date that may stand in rendered conversations; None where the template has no clock."""
    if tokenizer is None:
        return None
    template = template_of(tokenizer)
    return template.date if template.has_clock else None


def render_chat(messages: Sequence[Message], tokenizer: Any) -> str:
    """The text of a conversation whose next turn is the assistant's.

    The text of a system message may be missing in it: some templates put a sentence of their own
    there. That is said once, as a warning.

    Raises:
        InputError: there is no template to use, it fails or refuses these roles, leaves out or
            changes what a user says, or writes another text each time.
    """
    text = rendered(messages, tokenizer)
    if any(one.role == "system" and one.content.strip() not in text for one in messages):
        template = template_of(tokenizer)
        if template not in _warned:
            _warned.add(str(template))
            log.warning("the chat template leaves out the text of the system message (%s)", template.where)
    return text


def rendered(messages: Sequence[Message], tokenizer: Any) -> str:
    """As `render_chat`; nothing is said of a system message."""
    template = template_of(tokenizer)
    text = _render(messages, tokenizer, template)
    if text != _render(messages, tokenizer, template):
        raise _refused("writes another text each time", template)
    said = "".join(message.content for message in messages)
    if any(address not in said for address in _ADDRESS.findall(text)):
        raise _refused("writes an address in memory, another one in each process", template)
    _check_words(messages, text, template)
    # Words that stand in the template anyway, such as a single digit, would hide that it drops them.
    marked = [
        replace(message, content=f"{_MARK} {place}.") if message.role == "user" else message
        for place, message in enumerate(messages)
    ]
    _check_words(marked, _render(marked, tokenizer, template), template)
    return text


def _check_words(messages: Iterable[Message], text: str, template: ChatTemplate) -> None:
    """Refuses a text without the words of every user message, in order, outer white space apart."""
    place = 0
    for words in (message.content.strip() for message in messages if message.role == "user"):
        place = text.find(words, place)
        if place < 0:
            raise _refused("leaves out or changes what the user says", template)
        place += len(words)


def _refused(does: str, template: ChatTemplate) -> InputError:
    return InputError(f"the chat template {does}", where=template.where, fix=FIX)


def _render(messages: Sequence[Message], tokenizer: Any, template: ChatTemplate) -> str:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    turns = [{"role": message.role, "content": message.content} for message in messages]
    # The cache of compiled templates tells a text from a text of another class.
    source = str(template)
    with _rendering, foreign("the chat template fails", where=template.where, fix=FIX):
        limits = _Limits(sum(len(message.content) for message in messages), template.date)
        limits.hold(_compile_jinja_template(source).environment)
        try:
            text = tokenizer.apply_chat_template(
                turns, chat_template=source, tokenize=False, add_generation_prompt=True
            )
        except MemoryError:
            raise _refused("needs more memory than there is", template) from None
    if not isinstance(text, str):
        raise _refused(f"gives no text but {type(text).__name__}", template)
    return text


class _Limits:
    """What one rendering may not do: use chance or today's date, write or count without end."""

    def __init__(self, characters: int, date: str) -> None:
        # A template may repeat what was said, and its macros count what they hand on.
        self._characters = _MOST_CHARACTERS + 100 * characters
        self._counted = _MOST_COUNTED
        self._now = _parsed(date)

    def hold(self, environment: Any) -> None:
        """Puts the limits into the environment of a compiled template."""
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
