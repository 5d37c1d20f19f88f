"""What evalkit says to people, in their language: `t("score")`, and `shown(reason)` for kept sentences.

The English text is the key; evalkit/core/words_ja.yaml holds its Japanese. A text that has none stays
English. `use` is called once, by the command line, before anything is printed.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.core.reasons import Reason, filled

# Options and YAML are imported where they are needed: the first line on the terminal does not wait for them.
if TYPE_CHECKING:
    from evalkit.core.config import Lang

# None: English.
_chosen: "Lang | None" = None


def use(lang: "Lang") -> None:
    """Chooses the language of everything that is shown from now on."""
    global _chosen
    _chosen = lang


def chosen() -> "Lang":
    """The language in use."""
    from evalkit.core.config import Lang

    return _chosen or Lang.en


def t(text: str, /, **values: object) -> str:
    """`text` in the language in use, its {fields} filled in."""
    return shown(Reason(text, **values) if values else text)


def shown(text: str) -> str:
    """A sentence in the language in use: a reason by its template, another text where it has its Japanese."""
    if _chosen is None or _chosen.value != "ja":
        return str(text)
    if not isinstance(text, Reason):
        return catalogue().get(text, text)
    fields = {
        name: _field(value) if isinstance(value, str) else [_field(one) for one in value]
        for name, value in text.fields.items()
    }
    return filled(catalogue().get(text.template, text.template), fields)


def _field(value: str) -> str:
    # Another text in a field is a name or a value, whatever words it has.
    return shown(value) if isinstance(value, Reason) else value


@cache
def catalogue() -> dict[str, str]:
    """English texts with their Japanese."""
    from evalkit.core.files import read_yaml

    content = read_yaml(Path(__file__).with_name("words_ja.yaml"))
    assert isinstance(content, dict)
    return content
