import importlib

import pytest

from evalkit.__main__ import main
from evalkit.cli.command import VERBS, refuse_other_options
from evalkit.cli.help import WIDTH, names_of
from evalkit.core.errors import InputError
from evalkit.core.options import all_options, parse

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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model=13b suite=jaster --dry-run", "`--dry-run` is no option of the verb run"),
        ("prepare suite=jaster --dry-run", "`--dry-run` is no option of the verb prepare"),
        ("prepare suite=jaster num_few_shots=2 out=DIR", "`out=` is no option of the verb prepare"),
        ("judge run=R limit=10", "`limit=` is no option of the verb judge"),
        ("judge run=R engine.parameters.x=1 split=dev", "`split=` is no option of the verb judge"),
        ("list models --partial", "`--partial` is no option of the verb list"),
        ("score suite=jaster completions=DIR seed=1", "`seed=` is no option of the verb score"),
        ("certify model=m suite=sample samples=4", "`samples=` is no option of the verb certify"),
        ("watch=DIR suite=jaster judge=gpt-4", "`judge=` is no option of the verb run"),
        ("-m model=1.8b,13b suite=jaster gpus=8", "`gpus=` is no option of the verb run"),
    ],
)
def test_options_of_other_verbs_are_refused(words: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        refuse_other_options(parse(words.split(), VERBS))
    assert caught.value.what == message and caught.value.fix


def test_a_run_that_shall_be_dry_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=13b", "suite=jaster", "--dry-run"]) == 2
    assert "evalkit plan model=13b suite=jaster" in capsys.readouterr().err
    with pytest.raises(InputError) as caught:
        refuse_other_options(parse(["model=1.8b,13b", "-m", "dry_run=true", "suite=jaster"], VERBS))
    assert caught.value.fix == "evalkit -m plan model=1.8b,13b suite=jaster"


@pytest.mark.parametrize(
    "words",
    [
        "plan model=13b suite=jaster engine=api engine.base_url=http://a/v1 seed=1 gpus=8",
        "score run=R dtype=float32",
        "judge run=R judge=local judge.model=m judge.parameters.top_p=1 engine.device=cpu dtype=float32",
        "model=hf model.path=m suite=jaster suite.num_few_shots.alt-e-to-j=2",
        "card run=R lang=ja data_dir=D offline=true",
    ],
)
def test_options_that_a_verb_takes(words: str) -> None:
    refuse_other_options(parse(words.split(), VERBS))
