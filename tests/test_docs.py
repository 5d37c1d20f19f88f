"""Every command of the README and docs/ is one that evalkit takes, and can be pasted into bash and zsh."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from evalkit.cli.command import VERBS, refuse_other_options
from evalkit.core.options import CommandLine, check_key, load_config, member_of, parse
from evalkit.runs.sweep.launchers import check_launcher
from evalkit.runs.sweep.values import expand

ROOT = Path(__file__).resolve().parents[1]
README, README_JA = ROOT / "README.md", ROOT / "README_ja.md"
PAGES = [README, README_JA, *sorted((ROOT / "docs").glob("*.md"))]
EVALKIT = re.compile(r"(?:[A-Z_]+=\S+ )*(?:sbatch \S+ |exec bash \S+ )?(?:\S*/)?evalkit ")
# What zsh expands, matches or refuses where it stands unquoted; * is meant where it is written.
OPEN = set("[]{}?<>$`!;")


def blocks(page: Path) -> Iterator[str]:
    """The code blocks that hold commands, whole."""
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        if language in ("", "sh", "bash"):
            yield text


@cache
def commands(page: Path) -> tuple[str, ...]:
    """The evalkit commands of a page: lines of its blocks, and code in its text that is no `evalkit ...`."""
    found = []
    for block in blocks(page):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            found += [part for part in line.strip().split(" && ") if EVALKIT.match(part)]
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    inline = re.findall(r"^    (.+)$|`([^`\n]+)`", text, flags=re.M)
    found += [code for code in map("".join, inline) if EVALKIT.match(code) and "..." not in code]
    return tuple(found)


def words(command: str) -> list[str]:
    """The words behind `evalkit`, as bash gives them."""
    given = [word for word in shlex.split(command, comments=True) if word != "&"]
    return given[next(at for at, word in enumerate(given) if word.rpartition("/")[2] == "evalkit") + 1 :]


def unquoted(command: str) -> str:
    """A command without its quoted parts and the values of shell variables."""
    return re.sub(r"""'[^']*'|"[^"]*"|\$\([^)]*\)""", "", command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_pasted(page: Path) -> None:
    for command in commands(page):
        code, _, comment = unquoted(command).partition(" # ")
        assert not OPEN & set(code), f"{page.name}: quote it: {command}"
        # An interactive zsh takes a comment for words: nothing in it may be special.
        assert not re.search(r"""[]['"(){}*?<>|&;$`!\\~]""", comment), f"{page.name}: {command}"
        assert not re.search(r"\.\.\.|…", command), f"{page.name}: not whole: {command}"
        assert "   " not in code.rstrip(), f"{page.name}: an explanation stands behind #: {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_extras_are_quoted(page: Path) -> None:
    for line in re.findall(r"pip install[^`\n]*", page.read_text(encoding="utf-8")):
        assert not OPEN & set(unquoted(line.partition("` ")[0])), f"{page.name}: {line}"


def test_every_command_is_taken() -> None:
    """All words of all commands are composed, as few times as their keys allow: Hydra takes 0.1 s each."""
    lines: list[CommandLine] = []
    for page in PAGES:
        for command in commands(page):
            line = parse(words(command), VERBS)
            refuse_other_options(line)
            if line.launcher:
                check_launcher(line.launcher)
            lines += expand(line) if line.multirun else [line]
    assert len(lines) > 100 and {line.verb for line in lines} == set(VERBS)
    together: list[dict[str, str]] = []
    for word in dict.fromkeys(word for line in lines for word in line.overrides):
        key, _, value = word.partition("=")
        if (kind := check_key(key)) == "group":
            member_of(key, value)
        # A text is taken word for word; test_options composes every member of every group.
        if kind in ("text", "group") and any(key in group for group in together):
            continue
        # A hub name stands for model.path=, datasets for suite.tasks=.
        keys = {key, {"model": "model.path", "suite": "suite.tasks"}.get(key, key)}
        free = next((group for group in together if not keys & group.keys()), None)
        if free is None:
            together.append(free := {})
        free |= dict.fromkeys(keys, "") | {key: word}
    defaults = {"model": "model=hf", "suite": "suite=task", "judge": "judge=openai"}
    for group in together:
        chosen = {key.partition(".")[0] for key in group}
        needed = [word for key, word in defaults.items() if key in chosen and key not in group]
        load_config(CommandLine("run", (*needed, *filter(None, group.values()))))


def test_the_console_script_is_used_throughout() -> None:
    assert README.read_text("utf-8").count("python -m evalkit") == 1
    assert not [page for page in PAGES[1:] if "python -m evalkit " in page.read_text("utf-8")]


def test_the_japanese_readme_has_the_same_commands() -> None:
    def plain(page: Path) -> list[str]:
        shell = [line for block in blocks(page) for line in block.splitlines()]
        return [line.partition(" # ")[0].strip() for line in shell]

    assert plain(README) == plain(README_JA)
    links = [set(re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8"))) for page in (README, README_JA)]
    assert links[0] - {"README_ja.md"} == links[1] - {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"
