"""The number of few-shots of a task: the option of the suite, else the task's file, else the command's."""

from pathlib import Path

import pytest

from evalkit.core.errors import InputError
from evalkit.tasks.spec import few_shot_counts, load_spec

TASK = "name: mine\ninstruction: 問い\noutput_length: 5\nmetrics: [exact_match]\n"


def task_file(folder: Path, line: str) -> str:
    (folder / "mine.yaml").write_text(f"{TASK}{line}\n", encoding="utf-8")
    return str(folder / "mine.yaml")


def test_the_option_goes_before_the_file_and_the_file_before_the_command(tmp_path: Path) -> None:
    specs = [load_spec(task_file(tmp_path, "num_few_shots: 2")), load_spec("jamp")]
    assert few_shot_counts(specs, {}, 4) == {"mine": 2, "jamp": 4}
    assert few_shot_counts(specs, {"mine": 0}, 4) == {"mine": 0, "jamp": 4}
    assert few_shot_counts(specs, {"jamp": 1}, 3) == {"mine": 2, "jamp": 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [({"jmap": 2}, "no task 'jmap'; did you mean 'jamp'"), ({"jamp": -1}, "suite.num_few_shots.jamp=-1")],
)
def test_an_unknown_task_or_a_number_below_zero_is_refused(given: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        few_shot_counts([load_spec("jamp")], given, 4)
    assert "option suite.num_few_shots." in str(caught.value)


@pytest.mark.parametrize("value", ["-1", "two", "1.5"])
def test_a_task_file_with_another_number_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(InputError, match="num_few_shots"):
        load_spec(task_file(tmp_path, f"num_few_shots: {value}"))
