"""--help: of evalkit, or of one verb; the options are made from the fields of the configuration."""

import importlib
import inspect
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum

from omegaconf import MISSING

from evalkit.core.options import FLAGS, FLAGS_WITH_VALUE, Option, all_options

WIDTH = 110

GENERAL = """\
usage: evalkit [VERB] [key=value ...] [flags]

  evalkit model=smollm2-135m suite=sample       try it: a small real model, bundled items
  evalkit prepare suite=jaster                  fetch and verify the data
  evalkit model=1.8b-instruct suite=jaster      the table of the llm-jp-3 model card
  evalkit model=owner/name suite=mc,jamp        any model of the hub or in a folder; any datasets
  evalkit -m model=1.8b,13b suite=jaster        several, one job each (-m or --multirun)

verbs:
{verbs}

options of run that are used most (key=value; the default in brackets, else null):
{options}

exit codes: 0 done, 1 something failed (the rest is kept), 2 bad input, 130 interrupted (resumable)
More: evalkit VERB --help
"""
USED_MOST = (
    "model",
    "model.path",
    "suite",
    "suite.tasks",
    "limit",
    "num_few_shots",
    "dtype",
    "engine",
    "engine.batch_size",
    "engine.device",
    "engine.base_url",
    "data_dir",
    "mirror",
    "offline",
    "allow_missing",
    "out",
    "watch",
    "lang",
    "protocol.bos",
    "protocol.strip",
    "protocol.answer_regex",
)
FLAG_OF = {name: flag for flag, name in FLAGS.items()}
FLAG_OF |= {name: f"{flag} NAME" for flag, name in FLAGS_WITH_VALUE.items()}


def print_help(verbs: Mapping[str, str], verb: str | None) -> int:
    """Prints the general help, or that of `verb`."""
    if verb is None:
        width = max(map(len, verbs)) + 2
        listed = "\n".join(f"  {name:<{width}}{text}" for name, text in verbs.items())
        print(GENERAL.format(verbs=listed, options="\n".join(option_lines(USED_MOST))))
        return 0
    module = importlib.import_module(f"evalkit.cli.{verb}")
    print(inspect.cleandoc(module.__doc__ or ""))
    print("\noptions (key=value; the default in brackets, else null):")
    print("\n".join(option_lines(module.OPTIONS)))
    return 0


def names_of(declared: Iterable[str]) -> Iterator[str]:
    """The options that a verb declares: names, and prefixes that end with a full stop, in this order."""
    for name in declared:
        if name.endswith("."):
            yield from (found for found in all_options() if found.startswith(name))
        else:
            yield name


def option_lines(declared: Iterable[str]) -> Iterator[str]:
    """A line for each option: its name, what it does, its choices and its default."""
    options = {name: all_options()[name] for name in names_of(declared)}
    rows = [
        (FLAG_OF.get(name, name), _explained(name, option))
        for name, option in options.items()
        if option.listed and option.kind != "node"
    ]
    width = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        first, *more = textwrap.wrap(text, WIDTH - 2 - width, break_on_hyphens=False)
        yield f"  {name:<{width}}{first}"
        yield from (" " * (2 + width) + line for line in more)


def _explained(name: str, option: Option) -> str:
    text = option.help
    if isinstance(option.kind, type) and issubclass(option.kind, Enum):
        text += f" ({', '.join(str(member.value) for member in option.kind)})"
    if name in FLAG_OF or option.kind == "group" or option.default in (None, MISSING, [], {}):
        return text
    if isinstance(option.default, Enum):
        return f"{text} [{option.default.value}]"
    shown = str(option.default)
    return f"{text} [{shown.lower() if isinstance(option.default, bool) else shown.removesuffix('.0')}]"
