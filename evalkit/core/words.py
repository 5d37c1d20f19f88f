"""What evalkit says to people, in their language: `t("score")`.

The English text is the key; evalkit/words_ja.yaml holds its Japanese. A text that has none stays
English. Sentences that are finished already, because a result keeps them or because several places
say them, are turned by `said`, which finds their key by its fixed words. `use` is called once, by
the command line, before anything is printed.
"""

import re
from functools import cache
from pathlib import Path

from evalkit.core.config import Lang
from evalkit.core.files import read_yaml

_chosen = Lang.en
_SEVERAL = ("reason", "reasons", "why", "error", "fix")


def use(lang: Lang) -> None:
    """Chooses the language of everything that is said from now on."""
    global _chosen
    _chosen = lang


def chosen() -> Lang:
    """The language in use."""
    return _chosen


def t(text: str, /, **values: object) -> str:
    """`text` in the language in use, its {fields} filled in."""
    said = catalogue().get(text, text) if _chosen is Lang.ja else text
    return said.format(**values) if values else said


def said(text: str) -> str:
    """A finished English sentence, or several with semicolons between, in the language in use.

    What stands in the fields of a sentence is turned too where it is a sentence itself.
    """
    if _chosen is not Lang.ja:
        return text
    # A single word is a name rather than a sentence.
    if " " not in text:
        return text
    if text in catalogue():
        return catalogue()[text]
    for pattern, japanese in _patterns():
        if found := pattern.fullmatch(text):
            return japanese.format(**{name: said(value) for name, value in found.groupdict().items()})
    parts = text.split("; ")
    return "; ".join(map(said, parts)) if len(parts) > 1 else text


def _field(name: str) -> str:
    # Only an explanation can be several sentences.
    return f"(?P<{name}>.+?)" if name in _SEVERAL else f"(?P<{name}>[^;]+?)"


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """What a finished sentence looks like, with its Japanese; those with the most fixed words first."""
    field = re.compile(r"\{(\w+)\}")
    found = []
    for english, japanese in catalogue().items():
        fixed, *rest = field.split(english)
        if rest:
            pairs = zip(rest[::2], rest[1::2], strict=True)
            parts = [re.escape(fixed), *(f"{_field(name)}{re.escape(text)}" for name, text in pairs)]
            size = len(fixed) + sum(map(len, rest[1::2]))
            found.append((size, re.compile("".join(parts), re.DOTALL), japanese))
    return [(pattern, japanese) for _, pattern, japanese in sorted(found, key=lambda entry: -entry[0])]


@cache
def catalogue() -> dict[str, str]:
    """English texts with their Japanese."""
    content = read_yaml(Path(__file__).with_name("words_ja.yaml"))
    assert isinstance(content, dict)
    return content
