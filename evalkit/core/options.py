"""The command line -> (verb, Config): flags and folders here, `key=value` through Hydra.

Every mistake is one `InputError` with the near names. Text options and the items of lists are taken
literally: a path with `=`, commas, spaces or Japanese needs no quotes (an item with a comma does). All
other values have Hydra's syntax.
"""

import copy
import dataclasses
import itertools
import math
import os
import re
import types
import typing
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from evalkit.core import assets
from evalkit.core.errors import InputError, first_line
from evalkit.core.files import as_text, read_yaml
from evalkit.core.habits import HABITS, OTHER_ENGINES, OTHER_VERBS, Habits, fits, right_name
from evalkit.core.text import command, did_you_mean, half_character

if typing.TYPE_CHECKING:
    from evalkit.core.config import Config

GROUPS = ("model", "suite", "engine", "judge", "generation")
FLAGS = {
    "--long": "long",
    "--dry-run": "dry_run",
    "--partial": "partial",
    "--across-rules": "across_rules",
    "--steps": "steps",
}
FLAGS_WITH_VALUE = {"--reference": "reference", "--format": "format"}
# The keys below it are task names, which may contain hyphens and full stops.
TASK_COUNTS = "suite.num_few_shots"
# An empty system message is sent as it is.
_MAY_BE_EMPTY = ("suite.system", "ask.system")
# Verbs whose bare words are folders (for list: what to list; for ask: the question).
WORDS = ("list", "leaderboard", "compare", "ask", "agreement", "pairwise")
# What an interactive zsh hands on of a pasted line with a comment, and all behind it.
_COMMENT = "#"


@dataclass(frozen=True)
class CommandLine:
    """A parsed command line. `overrides` are the `key=value` words in order.

    `multirun` (-m): values may be lists to try one by one; `launcher` are the words `hydra/launcher=`
    and `hydra.launcher.*=`, which say how.
    """

    verb: str
    overrides: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    flags: tuple[tuple[str, str | bool], ...] = ()
    help: bool = False
    multirun: bool = False
    launcher: tuple[str, ...] = ()


def parse(
    argv: Iterable[str],
    verbs: Iterable[str],
    options_of: Callable[[str, Iterable[str]], Collection[str]] | None = None,
) -> CommandLine:
    """Parses a command line; the first bare word is the verb, `run` the default.

    Args:
        argv: its words.
        verbs: the verbs that there are.
        options_of: the options that a verb takes beside these words (default: all that there are).

    Raises:
        InputError: an unknown verb or flag, or a bare word where none belongs.
    """
    verb, wants_help, multirun = "", False, False
    overrides: list[str] = []
    launcher: list[str] = []
    folders: list[str] = []
    flags: list[tuple[str, str | bool]] = []
    given = itertools.takewhile(lambda word: word != _COMMENT, map(_unicode, argv))
    words = deque(_with_family(list(given)))
    habits = Habits(all_options, verb=next((word for word in words if word in verbs), ""))

    def own() -> Collection[str]:
        return options_of(habits.verb or "run", habits.words) if options_of else all_options()

    def takes(name: str) -> bool:
        return option_of(name) in own()

    while words:
        word = words.popleft()
        name = word.split("=", 1)[0]
        if word in FLAGS:
            flags.append((FLAGS[word], True))
        elif name in FLAGS_WITH_VALUE:
            value = _flag_value(word, words)
            flags.append((FLAGS_WITH_VALUE[name], value))
            word = f"{name}={value}"
        elif habits.knows(word):
            habits.take(word, words)
            continue
        elif word in ("-h", "--help"):
            wants_help = True
        elif word in ("-m", "--multirun"):
            multirun = True
        elif word.startswith("-"):
            raise _unknown_flag(name, habits.verb, takes)
        elif word.startswith(("hydra.", "hydra/")) and "=" in word:
            launcher.append(word)
        elif _is_override(word) and not (verb == "ask" and _is_question(word, own())):
            overrides.append(word)
        elif not verb and word in verbs:
            verb = word
        elif verb in WORDS:
            folders.append(word)
        else:
            what = f"{word!r} is no option of the verb {verb}" if verb else f"unknown verb {word!r}"
            raise InputError(
                f"{what}{did_you_mean(word, [*verbs, *OTHER_VERBS], OTHER_VERBS)}",
                fix="options are written key=value; evalkit --help",
            )
        habits.words.append(word)
    habits.check(takes)
    if launcher and not multirun:
        raise InputError(f"{launcher[0]} is for several jobs", fix="evalkit -m ...")
    line = CommandLine(verb or "run", tuple(overrides), tuple(folders), tuple(flags), wants_help)
    return dataclasses.replace(line, multirun=multirun, launcher=tuple(launcher))


def _unknown_flag(name: str, verb: str, takes: Callable[[str], bool]) -> InputError:
    """The error for a flag, without its value, which may be a key."""
    # A name near one of another harness is near evalkit's own.
    known = {key: right_name(key, verb) for key in (*HABITS, *all_options())}
    right = {f"--{key}": f"{own}=" for key, own in known.items() if own and takes(own)}
    right |= {one: one for one in ("--help", "--version", "--multirun", *FLAGS, *FLAGS_WITH_VALUE)}
    return InputError(f"unknown flag {name}{did_you_mean(name, right, right)}", fix="evalkit --help")


def _with_family(words: list[str]) -> list[str]:
    """The words with `--reference` made whole where it names no rows: those of the card's family."""
    if not {"card", "leaderboard"} & {*words}:
        return words
    pairs = zip(words, [*words[1:], "-"], strict=True)
    bare = [word == "--reference" and (rest.startswith("-") or _is_override(rest)) for word, rest in pairs]
    return [f"{word}=llm-jp-3" if alone else word for word, alone in zip(words, bare, strict=True)]


def _unicode(word: str) -> str:
    """A word of the command line, checked to be text.

    Raises:
        InputError: bytes that are not UTF-8; Python decodes them to lone surrogates.
    """
    if half_character(word) is None:
        return word
    data = os.fsencode(word)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        shown, fix = data.decode("utf-8", "replace"), "write it in UTF-8; rename a file whose name is not"
    else:
        # The word is UTF-8; the locale is not.
        shown, fix = data.decode("utf-8"), "export PYTHONUTF8=1"
    raise InputError("a word of the command line is not UTF-8 text here", where=shown, fix=fix)


def _flag_value(word: str, rest: deque[str]) -> str:
    name, given, value = word.partition("=")
    if not given:
        value = rest.popleft() if rest else ""
    if not value:
        raise InputError(f"{name} needs a value", fix=f"{name} NAME")
    return value


def _is_override(word: str) -> bool:
    key, given, _ = word.partition("=")
    if key.startswith(f"{TASK_COUNTS}."):
        return bool(given)
    return bool(given) and all(part.isidentifier() for part in key.split("."))


def _is_question(word: str, own: Collection[str]) -> bool:
    """Whether a word of ask is an equation: no option has a name like this, or none takes such a value."""
    name, _, value = word.partition("=")
    known = all_options()
    if "." in name or name in own:
        return False
    # A flag is not written with =.
    short = {one.removeprefix("ask."): one for one in own if one not in FLAGS.values()}
    near = [short[one] for one in get_close_matches(name, short, cutoff=0.75)]
    near += [name] if name in known else []
    return not any(fits(known[one].kind, value) for one in near)


def load_config(line: CommandLine) -> "Config":
    """The validated configuration of a command line.

    Raises:
        InputError: an unknown key, group member or value (with the near names).
    """
    from evalkit.core.config import Config, JudgeMode

    if line.overrides:
        config = _compose(line.overrides, line.verb)
    else:
        config = Config()
    check_ranges(config)
    if config.mode is not JudgeMode.batch and (config.batch.submit or config.batch.results is not None):
        raise InputError(
            "batch.submit= and batch.results= need mode=batch: else every call is made now, at full price",
            fix="add mode=batch, or leave them out",
        )
    config.folders = list(line.folders)
    config.given = [word.partition("=")[0] for word in line.overrides]
    for name, value in line.flags:
        setattr(config, name, value)
    return config


def _compose(overrides: tuple[str, ...], verb: str) -> "Config":
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from evalkit.core.config import Config

    chosen = {word.split("=", 1)[0] for word in overrides}
    for group in ("model", "suite", "judge"):
        inner = next((key for key in chosen if key.startswith(f"{group}.")), None)
        if inner and group not in chosen:
            example = {"model": "hf", "suite": "task", "judge": "NAME, also where it is the preset's own"}
            raise InputError(f"{inner}= is given without {group}=", fix=f"add {group}={example[group]}")
    members: list[str] = []
    values: list[str] = []
    verbatim: list[tuple[str, Any]] = []
    for word in overrides:
        key, _, value = word.partition("=")
        kind = check_key(key)
        if not value and kind in ("group", "text", "texts") and key not in _MAY_BE_EMPTY:
            raise InputError(f"{word} has no value", where=f"option {key}", fix="give one, or leave it out")
        if kind == "group":
            member, texts = member_of(key, value, verb)
            if texts and texts[0] in chosen:
                raise InputError(
                    f"{word} and {texts[0]}= both are given", fix=f"{key}={member} {texts[0]}=..."
                )
            members.append(f"{key}={member}")
            verbatim += [texts] if texts else []
        elif kind == "text":
            verbatim.append((key, None if value == "null" else as_text(value)))
        elif kind == "texts":
            verbatim.append((key, as_text(_items(value))))
        elif kind == "count":
            verbatim.append((TASK_COUNTS, {key.removeprefix(f"{TASK_COUNTS}."): value}))
        elif isinstance(kind, type) and issubclass(kind, Enum):
            values.append(f"{key}={_enum_name(key, value, kind)}")
        else:
            values.append(f"++{word}" if kind is dict else word)
    word = ""
    try:
        composed = copy.deepcopy(_composed(str(assets.CONF), tuple(members)))
        for word in values:
            (override,) = OverridesParser.create().parse_overrides([word])
            if override.is_sweep_override():
                fix = f"one job for each: evalkit -m {word}"
                raise InputError(f"{word} gives several values", where=word, fix=fix)
            _set(composed, override.key_or_group, override.value(), add=override.is_force_add())
        word = ""
        for key, text in verbatim:
            _set(composed, key, text, add=key == TASK_COUNTS)
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise _readable(error, word) from None
    assert isinstance(config, Config)
    return config


@contextmanager
def _hydra_of_our_own() -> Iterator[None]:
    """Sets aside the Hydra of a program that calls evalkit: there can be only one."""
    from hydra.core.global_hydra import GlobalHydra

    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer


def _set(composed: Any, key: str, value: Any, *, add: bool) -> None:
    from omegaconf import OmegaConf

    outer = key.rpartition(".")[0]
    if outer and not add and OmegaConf.select(composed, outer) is None:
        group = key.partition(".")[0]
        raise InputError(
            f"this {group} has no {outer}", where=f"option {key}", fix=f"leave it out, or another {group}="
        )
    OmegaConf.update(composed, key, value, force_add=add)


@cache
def _composed(folder: str, members: tuple[str, ...]) -> Any:
    """The configuration of these members of groups, which takes Hydra 0.15 s; a caller changes a copy."""
    from hydra import compose, initialize_config_dir

    _store_schema()
    with _hydra_of_our_own(), initialize_config_dir(config_dir=folder, version_base="1.3"):
        return compose(config_name="config", overrides=list(members))


@cache
def _store_schema() -> None:
    """Makes Config known to Hydra, which takes a good part of the time of composing."""
    from hydra.core.config_store import ConfigStore

    from evalkit.core.config import Config

    ConfigStore.instance().store(name="evalkit_schema", node=Config)


def _items(value: str) -> list[str]:
    """The items of `[a,'b, c']`; the brackets may be left out."""
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    items = re.findall(r"""\s*('[^']*'|"[^"]*"|[^,]+)\s*(?:,|$)""", inner)
    return [item[1:-1] if item[0] == item[-1] and item[0] in "'\"" else item.strip() for item in items]


def words_of(options: Mapping[str, Any]) -> Iterator[str]:
    """The words `key=value` of options that are given as Python values.

    A mapping stands for the options below its key. None is null; paths, enums, booleans and lists are
    written as on the command line.

    Raises:
        InputError: no option has this name.
    """
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from words_of({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            # Below a mapping values keep their types: a text is quoted for Hydra.
            yield f"{key}={_written(value, quoted=check_key(key) is dict)}"


def _written(value: Any, *, quoted: bool = False, item: bool = False) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(_written(one, quoted=quoted, item=True) for one in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value.value if isinstance(value, Enum) else value)
    if quoted and isinstance(value, str):
        text = text.replace("'", r"\'")
        return f"'{text}'"
    if item and "," in text:
        return f'"{text}"' if "'" in text else f"'{text}'"
    return text


def check_ranges(config: "Config") -> None:
    """Refuses a number outside the range of its field.

    Raises:
        InputError: naming the option.
    """
    for name, option in all_options().items():
        if option.least is None and option.above is None:
            continue
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is None:
            continue
        if not math.isfinite(value):
            problem = "is no finite number"
        elif option.least is not None and value < option.least:
            problem = f"is below {option.least:g}"
        elif option.above is not None and value <= option.above:
            problem = f"is not above {option.above:g}"
        else:
            continue
        raise InputError(f"{name}={value} {problem}", where=f"option {name}")


def check_key(key: str) -> Any:
    """The kind of the option `key`; dict below a mapping, "count" for a number of one task.

    Raises:
        InputError: no option has this name.
    """
    known = all_options()
    if key.startswith(f"{TASK_COUNTS}."):
        return "count"
    if (name := option_of(key)) is None:
        raise InputError(f"unknown option {key!r}{did_you_mean(key, known)}", fix="evalkit --help")
    return known[name].kind


def option_of(key: str) -> str | None:
    """The option that a key sets, for judge.parameters.top_p the mapping judge.parameters; None: no such."""
    known = all_options()
    for end in range(key.count("."), 0, -1):
        outer = key.rsplit(".", end)[0]
        if outer in known and known[outer].kind is dict:
            return outer
    return key if key in known else None


def member_of(group: str, given: str, verb: str = "run") -> tuple[str, tuple[str, Any] | None]:
    """The member of a group that is given, and an option with its value where another name stands for one.

    `model=` also takes a hub name or a folder, `suite=` several suites, datasets and task files. `verb`
    is that of the command.

    Raises:
        InputError: no such name (with the near ones), or several where one is taken.
    """
    members = group_members(group)
    if given in members:
        return given, None
    if group == "model" and _is_place(given):
        return "hf", ("model.path", as_text(given))
    names, items = list(members), _items(given)
    fix = f"evalkit list {group}s"
    if group == "suite":
        # A suite with rules of its own, as mifeval-ja, stays alone.
        names += [path.stem for path in assets.TASKS.glob("*.yaml") if path.stem not in members]
        tasks = [task for item in items for task in _tasks_of_suite(item) or [item]]
        if tasks and all(_is_file(task) or task in names[len(members) :] for task in tasks):
            return "task", ("suite.tasks", as_text(tasks))
        fix += ", evalkit list tasks"
    elif group == "model":
        fix = f"a hub name (owner/name) or a folder that is there; {fix}"
    elif group in ("engine", "generation"):
        fix = f"one of {', '.join(members)}"
    is_known = {"model": _is_place, "suite": _is_file}.get(group, lambda item: False)
    unknown = [item for item in items if item not in names and not is_known(item)]
    if len(items) > 1 and not unknown:
        words = ("-m", *([verb] if verb != "run" else []), f"{group}={_written(items)[1:-1]}")
        what = f"{group}={given} names several that do not go together"
        raise InputError(what, fix=f"one after another: {command(*words)}" if verb not in WORDS else None)
    if unknown:
        given = unknown[0]
    if group == "suite" and Path(given).suffix in (".csv", ".tsv", ".json", ".jsonl"):
        fix = f"a task file in YAML that names {given}, and its path here: docs/own-tasks.md"
    near = did_you_mean(given, [*names, *(OTHER_ENGINES if group == "engine" else ())], OTHER_ENGINES)
    raise InputError(f"unknown {group} {given!r}{near}", fix=fix)


def _is_file(suite: str) -> bool:
    """Whether this names a task file."""
    return suite.endswith((".yaml", ".yml"))


def _tasks_of_suite(name: str) -> list[str]:
    """The datasets of a suite that is nothing but a list of them; else none."""
    path = assets.CONF / "suite" / f"{name}.yaml"
    content = read_yaml(path) if name in group_members("suite") else {}
    assert isinstance(content, dict)
    return list(content["tasks"]) if content.keys() == {"name", "tasks"} else []


def _is_place(model: str) -> bool:
    """Whether this is a hub name or a folder, not several of them."""
    found = Path(model).expanduser().is_dir()
    return found or ("/" in model and "," not in model)


def group_members(group: str) -> list[str]:
    """The names of a config group: the YAML files of conf/<group>/."""
    return sorted(path.stem for path in (assets.CONF / group).glob("*.yaml"))


def _enum_name(key: str, value: str, kind: type[Enum]) -> str:
    for member in kind:
        if value in (member.name, member.value):
            return member.name
    values = [str(member.value) for member in kind]
    raise InputError(
        f"{key}={value} is not one of {', '.join(values)}{did_you_mean(value, values)}", where=f"option {key}"
    )


@dataclass(frozen=True)
class Option:
    """An option as its field declares it.

    `kind`: "group" (a name of conf/<group>/), "node" (options below it), "text", "texts", dict, an Enum
    or a type. `listed` is False where conf/ or the command line itself sets the field.
    """

    kind: Any
    default: Any
    help: str
    least: float | None
    above: float | None
    listed: bool


@cache
def all_options() -> dict[str, Option]:
    """Every option by its dotted name."""
    from evalkit.core.config import Config

    return dict(_walk(Config, ""))


def _walk(config_class: type, prefix: str) -> Iterator[tuple[str, Option]]:
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        inner = _without_none(hints[field.name])
        name = prefix + field.name
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        kind: Any = "text" if inner is str else inner
        if name in GROUPS:
            kind = "group"
        elif dataclasses.is_dataclass(inner):
            kind = "node"
        elif typing.get_origin(inner) is dict:
            kind = dict
        elif inner == list[str]:
            kind = "texts"
        yield name, Option(kind, default, **field.metadata)
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield from _walk(inner, f"{name}.")


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        kept = [part for part in typing.get_args(hint) if part is not type(None)]
        return kept[0] if len(kept) == 1 else hint
    return hint


def _readable(error: Exception, word: str) -> InputError:
    text = first_line(error)
    detail = error.__cause__
    while detail is not None and detail.__cause__ is not None:
        detail = detail.__cause__
    if detail is not None and str(detail):
        text = str(detail).splitlines()[0]
    where = word.removeprefix("++") or getattr(error, "full_key", None) or "command line"
    if kind := re.search(r"could not be converted to (Integer|Float)|is not a valid bool", text):
        wanted = {"Integer": "a whole number", "Float": "a number"}.get(kind[1], "true or false")
        return InputError(f"{where} is not {wanted}", where=f"option {where.partition('=')[0]}")
    return InputError(f"the configuration is not valid: {text}", where=where, fix="evalkit --help")
