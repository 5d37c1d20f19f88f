import importlib

import pytest

from evalkit.__main__ import main
from evalkit.cli.command import VERBS
from evalkit.cli.help import WIDTH, names_of
from evalkit.core.options import all_options

# What the command line itself fills in.
INTERNAL = {"folders", "given"}


def declared(verb: str) -> list[str]:
    return list(names_of(importlib.import_module(f"evalkit.cli.{verb}").OPTIONS))


def test_every_option_has_help_and_a_verb_that_reads_it() -> None:
    options = all_options()
    assert [name for name, option in options.items() if not option.help] == []
    named = {name for verb in VERBS for name in declared(verb)}
    assert named <= set(options)
    missing = {name for name, option in options.items() if option.listed and option.kind != "node"} - named
    assert missing - INTERNAL == set()


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_lists_the_options_in_lines_of_a_terminal(
    verb: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--help"] if verb is None else [verb, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > WIDTH] == []
    if verb is not None:
        words = {line.split()[0].removeprefix("--").replace("-", "_") for line in lines if line.strip()}
        options = all_options()
        shown = {name for name in declared(verb) if options[name].listed and options[name].kind != "node"}
        assert shown <= words


def test_help_shows_defaults_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--help"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["num_few_shots"].endswith("[4]")
    assert "train, dev, test" in lines["split"] and lines["split"].endswith("[dev]")
    assert lines["allow_missing"].endswith("[false]")
    assert "[" not in lines["model.name"]
