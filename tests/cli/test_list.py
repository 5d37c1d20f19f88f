import importlib.util

import pytest

from evalkit.__main__ import main
from evalkit.tasks.spec import CATEGORIES


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["list", *words]) == 0
    return capsys.readouterr().out


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "models").splitlines()
    names = {line.split()[0] for line in lines}
    families = ("1.8b", "3.7b", "13b", "172b-beta1")
    assert names >= {
        *families,
        *(f"{name}-instruct" for name in families),
        "smollm2-135m",
        "gemma3-270m",
        "hf",
        "served",
    }
    assert any("accept_license" in line for line in lines if line.startswith("gemma3"))


def test_models_that_were_not_run_here_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "models", "--long").splitlines()
    marked = {line.split()[0] for line in lines if line.endswith("not run here]")}
    assert {"3.1-1.8b", "3.1-13b-instruct4", "4-8b-thinking", "4-32b-a3b-thinking"} <= marked
    assert all(name.startswith(("3.1-", "4-")) for name in marked)


def test_suites(capsys: pytest.CaptureFixture[str]) -> None:
    names = {line.split()[0] for line in printed(capsys, "suites").splitlines()}
    assert names >= {"jaster", "sample", "task", *(category.lower() for category in CATEGORIES)}


def test_tasks_with_licences_and_citations(capsys: pytest.CaptureFixture[str]) -> None:
    short = printed(capsys, "tasks").splitlines()
    assert len(short) == 24
    long = printed(capsys, "tasks", "--long")
    assert long.count("licence:") == long.count("cite:") == 24 and "not known" not in long


def test_launchers(capsys: pytest.CaptureFixture[str]) -> None:
    names = [line.split()[0] for line in printed(capsys, "launchers").splitlines()]
    assert names == ["basic", "slurm", "submitit_local"]
    if importlib.util.find_spec("submitit"):
        assert "    partition=None" in printed(capsys, "launchers", "--long").splitlines()


def test_an_unknown_list_names_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "task"]) == 2
    assert "'tasks'" in capsys.readouterr().err
