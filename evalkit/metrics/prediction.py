"""Completion -> prediction: the text that is compared with the gold answer.

The rule of llm-jp-eval v1.3.1: everything before the first blank line, NFKC, not stripped (so a
trailing newline makes an exact match fail).
"""

import re
import unicodedata
from functools import cache

from evalkit.core.errors import InputError

BLANK_LINE = "\n\n"


def prediction(
    completion_text: str, *, strip: bool = False, answer_regex: str | None = None, verbatim: bool = False
) -> str:
    """The compared text of a completion.

    Args:
        completion_text: the model's text after the prompt.
        strip: the named deviation `protocol.strip` of later versions and forks: white space around the
            text before the first blank line is removed, before NFKC.
        answer_regex: the named deviation `protocol.answer_regex`: the first match in the whole
            completion (its first group when it has one) replaces the completion; without a match
            the completion stays as it is. Cut, strip and NFKC follow.
        verbatim: the task takes answers as they are: no cut and no NFKC.

    Raises:
        InputError: `answer_regex` is not a regular expression.
    """
    text = completion_text
    if answer_regex is not None and (match := _compiled(answer_regex).search(text)):
        text = match.group(1 if match.re.groups else 0) or ""
    if not verbatim:
        text = text.split(BLANK_LINE, 1)[0]
    if strip:
        text = text.strip()
    return text if verbatim else unicodedata.normalize("NFKC", text)


def gold(text: str) -> str:
    """The compared text of a gold answer: NFKC, nothing else."""
    return unicodedata.normalize("NFKC", text)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"not a regular expression: {error}",
            where="option protocol.answer_regex",
            fix="Python's re syntax; a group marks the answer, as in 答えは(.+?)です",
        ) from None
