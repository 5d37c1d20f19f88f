"""Commands that evalkit offers, written so that they can be pasted into a shell."""

import re
import shlex


def command(*words: str) -> str:
    """`python -m evalkit` with these words, those quoted that a shell would take apart."""
    return " ".join(["python -m evalkit", *map(_quoted, words)])


def _quoted(word: str) -> str:
    # shlex quotes everything beyond ASCII too; a shell takes Japanese as it is.
    return shlex.quote(word) if re.search(r"[^\w@%+=:,./\[\]-]", word) else word
