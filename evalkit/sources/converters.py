"""The converters by name: pools of samples out of the upstream files of one dataset."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from evalkit.core.errors import InputError
from evalkit.core.text import did_you_mean
from evalkit.sources.readers import SourceFile
from evalkit.sources.splits import Pools

Converter = Callable[[Mapping[str, Sequence[SourceFile]]], Pools]

# Modules are named, not imported: one that parses KNP needs rhoknp, the others do not.
MODULES = {
    "jglue": ("jcommonsenseqa", "jnli", "jsts", "jsquad"),
    "nli": ("jamp", "janli", "jsem", "jsick"),
    "qa": ("jemhopqa", "niilc"),
    "mawps": ("mawps",),
    "mmlu": ("mmlu", "jmmlu"),
    "chabsa": ("chabsa",),
    "wiki_corpus": ("wiki_corpus_e_to_j", "wiki_corpus_j_to_e"),
    "alt": ("alt_e_to_j", "alt_j_to_e"),
    "wiki_annotated": ("wiki_reading", "wiki_ner", "wiki_dependency", "wiki_pas", "wiki_coreference"),
}


# Converters that share no parsing with the others of their source: worth a process of their own.
APART = frozenset({"wiki_coreference"})


def converter(name: str) -> Converter:
    """The converter of that name: role -> files of the source, in the table's order -> pools.

    It is called with the roles that can be had and gives the pools they suffice for.

    Raises:
        InputError: unknown name.
    """
    found: Converter = getattr(import_module(f"evalkit.sources.{_module(name)}"), name)
    return found


def _module(name: str) -> str:
    for module, names in MODULES.items():
        if name in names:
            return module
    known = [name for names in MODULES.values() for name in names]
    raise InputError(f"unknown converter {name!r}{did_you_mean(name, known)}")


def forget() -> None:
    """Frees what converters keep between the datasets of one source."""
    for module in MODULES:
        if forget_module := getattr(sys.modules.get(f"evalkit.sources.{module}"), "forget", None):
            forget_module()
