"""What the terminal says at the end of a run, and the timings it rests on."""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from evalkit.cli.report import print_results
from evalkit.core import words
from evalkit.core.config import Config, Lang
from evalkit.core.errors import InputError
from evalkit.core.types import Completion
from evalkit.leaderboard.card import load_cards
from evalkit.records.environment import read_timings, timed
from evalkit.records.results import MissingMetric, Partial, missing_reasons, read_results
from evalkit.scoring.categories import summarise
from tests.leaderboard.conftest import World
from tests.scored import answers, record_of, score


def said(folder: Path) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100)
    results = read_results(folder / "results.json")
    print_results(results, console, folder)
    return out.getvalue()


def test_what_to_look_at_and_what_to_try(world: World) -> None:
    (world.weak / "timings.json").write_text(json.dumps({"jamp": 1, "niilc": 90.4, "chabsa": 30, "mawps": 2}))
    text = said(world.weak)
    assert "slowest datasets: niilc (90 s), chabsa (30 s), mawps (2 s)" in text
    results = read_results(world.weak / "results.json")
    name, width = text.split("interval): ")[1].split(" (±")[0], float(text.split("(±")[1].split(")")[0])
    widths = {key: (value.ci95[1] - value.ci95[0]) / 2 for key, value in results.scores.items() if value.ci95}
    (metric,) = (
        key for key in widths if key in (f"{name}_pearson", f"{name}_exact_match", f"{name}_char_f1")
    )
    assert widths[metric] == pytest.approx(width, abs=0.0005)
    assert f"evalkit compare {world.weak} {world.strong}" in text
    page = world.results / "leaderboard.html"
    assert f"evalkit leaderboard {world.results}   # the page with every answer: {page}" in text
    assert "--partial" not in text and "licence" not in text and "data: " not in text
    assert text.index("slowest datasets") < text.index("AVG") < text.index("results: ")
    assert "reproduce" not in text, "the card has no such model"


def test_a_metric_that_was_asked_for_and_counts_nowhere_is_not_lost(world: World) -> None:
    missing = MissingMetric("jamp", "bert_score_ja_f1", "it is not here", "prepare it")
    results = replace(read_results(world.weak / "results.json"), missing_metrics=[missing])
    out = io.StringIO()
    print_results(results, Console(file=out, width=100))
    said = "not computed: bert_score_ja_f1 of jamp is missing: it is not here; fetch it with: prepare it"
    assert said in out.getvalue()


def test_what_is_missing_of_the_table_is_fetched_and_scored(world: World) -> None:
    fetch = "evalkit prepare suite=mt"
    missing = [MissingMetric(name, "comet_wmt22", "not here", fetch) for name in ("alt-e-to-j", "alt-j-to-e")]
    results = replace(read_results(world.weak / "results.json"), missing_metrics=missing)
    results = replace(results, partial=Partial(True, missing_reasons(missing)))
    out = io.StringIO()
    print_results(results, Console(file=out, width=100), world.weak)
    assert "comet_wmt22 of alt-e-to-j, alt-j-to-e is missing: not here\n" in out.getvalue()
    assert out.getvalue().count(fetch) == 1
    assert out.getvalue().count(f"next: {fetch} && evalkit score run={world.weak}") == 1


def test_a_category_names_the_datasets_it_is_the_mean_of_and_why_it_lacks_others() -> None:
    task = score(answers(["mawps", "jamp"]))
    own = replace(task[0], spec=replace(task[0].spec, name="my-sums"))
    facts = {"datasets": {"my-sums": {"counts": "exact_match"}}}
    out = io.StringIO()
    print_results(summarise([own, task[1]], record_of(Config()), run=facts), Console(file=out, width=120))
    categories, why = out.getvalue().split("mean of")[1].split("* partial result\n")
    assert re.findall(r"(\w+) \*.* (\S+) *\n", categories) == [("MR", "my-sums"), ("NLI", "jamp")]
    assert why.splitlines() == [
        "  - MR: my-sums is not one of the protocol's datasets",
        "  - MR: mawps is missing: not in this suite",
        "  - NLI: janli, jnli, jsem, jsick is missing: not in this suite",
    ]


def test_in_japanese(world: World) -> None:
    words.use(Lang.ja)
    try:
        text = said(world.weak)
    finally:
        words.use(Lang.en)
    assert "データセット" in text and "最も不確かなデータセット" in text and "次の手順: evalkit" in text


def completions(*names: str) -> Iterator[Completion]:
    for index, name in enumerate(names):
        yield Completion(f"{name}/dev/{index}", "", "", "stop", 1, 1)


def test_timings_add_up_over_commands_and_survive_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("evalkit.records.environment.time.monotonic", lambda: next(clock))
    list(timed(completions("a", "a", "b"), tmp_path, lambda key: key.split("/")[0]))
    assert read_timings(tmp_path) == {"a": 2.0, "b": 1.0}
    stopped = timed(completions("b", "c"), tmp_path, lambda key: key.split("/")[0])
    next(stopped)
    stopped.close()
    assert read_timings(tmp_path) == {"a": 2.0, "b": 2.0}
    (tmp_path / "timings.json").write_text("[1")
    assert read_timings(tmp_path) == {}


def test_results_cleared_with_the_published_figures(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalkit.leaderboard.card.REFERENCE", tmp_path)
    assert f"leaderboard {world.weak.parents[2]}" in said(world.weak)
    with pytest.raises(InputError, match="git checkout -- results/reference"):
        load_cards()
