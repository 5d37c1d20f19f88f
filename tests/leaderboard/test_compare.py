"""`compare`: the right differences, honest sentences, and refusals that name what differs."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evalkit.__main__ import main
from evalkit.cli.compare import print_steps
from evalkit.cli.printing import report_console
from evalkit.core.durable import read_log
from evalkit.core.errors import InputError
from evalkit.core.text import step_of
from evalkit.leaderboard.collect import find_run
from evalkit.leaderboard.compare import compare
from evalkit.leaderboard.comparison_report import sentences
from evalkit.leaderboard.runs import data_differences, option_differences
from evalkit.leaderboard.steps import trace
from evalkit.records.results import Results, read_results
from tests.leaderboard.conftest import World
from tests.leaderboard.made import Made, make_run, write_data


def values(folder: Path, dataset: str, metric: str) -> dict[str, float]:
    rows, _ = read_log(folder / "scores" / f"{dataset}.jsonl")
    return {key: row["values"][metric] for key, row in rows.items()}


def test_differences_are_those_of_the_results(world: World) -> None:
    found = compare(find_run(world.strong), find_run(world.weak))
    a, b = (json.loads((folder / "results.json").read_text()) for folder in (world.strong, world.weak))
    assert len(found.datasets) == 23 and len(found.categories) == 9
    for line in found.datasets:
        key = f"{line.name}_{line.metric}"
        assert line.difference == pytest.approx(a["scores"][key]["value"] - b["scores"][key]["value"])
    for line in found.categories:
        expected = a["categories"][line.name]["value"] - b["categories"][line.name]["value"]
        assert line.difference == pytest.approx(expected)
        assert line.ci95 is not None and line.ci95[0] <= line.difference <= line.ci95[1]
    assert found.average is not None
    assert found.average.difference == pytest.approx(
        a["average"]["AVG"]["value"] - b["average"]["AVG"]["value"]
    )


def test_flipped_samples_are_listed(world: World) -> None:
    found = compare(find_run(world.strong), find_run(world.weak))
    a, b = values(world.strong, "jamp", "exact_match"), values(world.weak, "jamp", "exact_match")
    assert {flip.id for flip in found.flips if flip.dataset == "jamp"} == {
        key for key in a if a[key] != b[key]
    }


def test_the_other_way_round_is_the_mirror_image(world: World) -> None:
    one = compare(find_run(world.strong), find_run(world.weak), resamples=500)
    two = compare(find_run(world.weak), find_run(world.strong), resamples=500)
    for line, mirrored in zip(one.categories, two.categories, strict=True):
        assert line.difference == pytest.approx(-mirrored.difference)
        assert line.p == pytest.approx(mirrored.p or 0)
        assert line.ci95 is not None
        assert mirrored.ci95 == pytest.approx((-line.ci95[1], -line.ci95[0]))


def test_a_run_against_itself_differs_nowhere(world: World) -> None:
    found = compare(find_run(world.weak), find_run(world.weak))
    assert not found.flips
    assert all(line.difference == 0 and line.p == 1 and not line.verdict for line in found.datasets)
    assert sentences(found)[0].startswith("On average no difference can be told")
    for line in found.datasets:
        if line.metric == "exact_match":
            assert line.ci95 is not None and line.ci95[0] < 0 < line.ci95[1], (
                "equal verdicts are no certainty"
            )
        else:
            assert line.ci95 is None, line.name
    assert all(line.ci95 is None or line.ci95[0] < line.ci95[1] for line in found.categories)


def test_paired_intervals_of_categories_join_those_of_their_datasets(world: World) -> None:
    found = compare(find_run(world.strong), find_run(world.weak))
    lines = {line.name: line for line in found.datasets}
    (nli,) = (line for line in found.categories if line.name == "NLI")
    parts = [lines[name] for name in ("jamp", "janli", "jnli", "jsem", "jsick")]
    below = np.sqrt(sum((part.difference - part.ci95[0]) ** 2 for part in parts if part.ci95)) / 5
    above = np.sqrt(sum((part.ci95[1] - part.difference) ** 2 for part in parts if part.ci95)) / 5
    assert nli.ci95 == pytest.approx((nli.difference - below, nli.difference + above))


def test_sentences_say_what_the_table_says(world: World) -> None:
    found = compare(find_run(world.strong), find_run(world.weak))
    text = " ".join(sentences(found))
    assert "strong-モデル is better on average (+" in text
    assert "weak is better" not in text
    for line in found.categories:
        place = text.index(line.name)
        if line.verdict == "a":
            assert text.rindex("strong-モデル is better on ", 0, place) >= 0
        assert f"{line.name} (" in text or "No difference can be told" in text


def test_datasets_speak_for_themselves_where_their_category_is_not_whole(
    world: World, tmp_path: Path
) -> None:
    tasks = "suite.tasks=[jamp,jemhopqa,mawps]"
    runs = [
        make_run(Made(name, skill, seed), world.data, tmp_path, "suite=task", tasks).folder
        for name, skill, seed in (("good", 0.9, 3), ("bad", 0.1, 4))
    ]
    (text,) = sentences(compare(find_run(runs[0]), find_run(runs[1])))
    assert text.startswith("good is better on MR (+")
    assert "jamp (+" in text and "jemhopqa (+" in text and "mawps" not in text


def test_better_means_that_the_correction_for_many_comparisons_was_passed(world: World) -> None:
    found = compare(find_run(world.strong), find_run(world.weak))
    for line in (*found.datasets, *found.categories):
        assert line.p is not None and line.p_holm is not None and line.p_holm >= line.p
        if line.verdict in ("a", "b"):
            assert line.p_holm < 0.05 and line.ci95 is not None
            assert np.sign(line.ci95[0]) == np.sign(line.ci95[1]) == np.sign(line.difference)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("protocol.strip=true",), "protocol.strip differs: False and True"),
        (("num_few_shots=2",), "num_few_shots differs: 4 and 2"),
        (("protocol.bos=none",), "protocol.bos differs"),
        (("limit=9",), "samples of jamp differs: 24 and 9"),
        (("suite=nli",), "alt-e-to-j is in only one of them"),
        (("generation.do_sample=true", "seed=7"), "generation.do_sample differs"),
    ],
)
def test_what_differs_is_refused_and_named(
    world: World,
    tmp_path: Path,
    options: tuple[str, ...],
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = make_run(Made("other", 0.5, 8), world.data, tmp_path, *options).folder
    assert main(["compare", str(world.weak), str(other), "--long"]) == 2
    said = capsys.readouterr().err
    assert "do not compare" in said and named in said


def test_other_data_is_refused_and_named(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(world.data, tmp_path / "data"))
    path = data / "1.3.1" / "evaluation" / "dev" / "mawps.json"
    path.write_text(path.read_text(encoding="utf-8").replace("（3）", "（03）"), encoding="utf-8")
    other = make_run(Made("other", 0.5, 8), data, tmp_path / "results").folder
    assert main(["compare", str(world.weak), str(other)]) == 2
    assert "data of mawps differs" in capsys.readouterr().err


def test_answers_made_elsewhere_compare_on_the_splits_that_both_read(world: World) -> None:
    own = read_results(world.weak / "results.json")
    hashes = {name: facts["sha256"] for name, facts in own.run["datasets"].items()}
    assert all(found.keys() == {"train", "dev"} for found in hashes.values())

    def elsewhere(**jamp: str) -> Results:
        datasets = {name: {"sha256": {"dev": found["dev"]}} for name, found in hashes.items()}
        datasets["jamp"] = {"sha256": jamp or datasets["jamp"]["sha256"]}
        return replace(own, run={"model": "other", "datasets": datasets})

    for a, b in ((own, elsewhere()), (elsewhere(), own), (elsewhere(), elsewhere())):
        assert data_differences(a, b) == [] == option_differences(a, b)
    for other in (elsewhere(dev="f" * 64), elsewhere(test=hashes["jamp"]["dev"])):
        (why,) = data_differences(own, other)
        assert why.startswith("data of jamp differs")


def test_what_decides_no_figure_is_no_difference(world: World) -> None:
    own = read_results(world.weak / "results.json")

    def with_options(seed: int = 0, **options: object) -> Results:
        named = {key.replace("__", "."): value for key, value in options.items()}
        protocol = replace(own.protocol, options=own.protocol.options | named)
        return replace(own, protocol=protocol, run={**own.run, "identity": {"seed": seed}})

    # The version of COMET names its weights, wherever they are.
    moved = with_options(metrics__comet__checkpoint="/other/place", metrics__comet__dtype="bfloat16")
    assert option_differences(with_options(), moved) == []
    assert option_differences(with_options(), with_options(seed=1)) == []
    for option in ("generation__do_sample", "generation__from_model"):
        drawn = [with_options(seed, **{option: True}) for seed in (1, 2)]
        assert option_differences(*drawn) == ["seed differs: 1 and 2"]


def test_partial_compares_what_both_have(world: World, tmp_path: Path) -> None:
    small = make_run(Made("small", 0.5, 8), world.data, tmp_path, "suite=nli", "limit=10").folder
    found = compare(find_run(small), find_run(world.weak), partial=True)
    assert {line.name for line in found.datasets} == {"jamp", "janli", "jnli", "jsem", "jsick"}
    assert all(line.n == 10 for line in found.datasets)
    assert found.average is None and [line.name for line in found.categories] == ["NLI"]
    a, b = values(small, "jamp", "exact_match"), values(world.weak, "jamp", "exact_match")
    assert found.datasets[0].difference == pytest.approx(np.mean([a[key] - b[key] for key in a]))
    assert any("in only one of them" in remark for remark in found.remarks)


def test_a_correlation_takes_the_gold_answers_from_the_run_that_kept_them(
    world: World, tmp_path: Path
) -> None:
    torn, bare = (Path(shutil.copytree(world.weak, tmp_path / name)) for name in ("torn", "bare"))
    path = torn / "samples" / "jsts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(["garbage\n", *lines[1:]]), encoding="utf-8")
    shutil.rmtree(bare / "samples")
    whole = compare(find_run(world.strong), find_run(world.weak), resamples=200)
    for folder in (torn, bare):
        assert compare(find_run(world.strong), find_run(folder), resamples=200).datasets == whole.datasets
    # Completions that were made elsewhere keep no gold answers.
    found = compare(find_run(bare), find_run(torn), resamples=200)
    assert "jsts" not in {line.name for line in found.datasets} and len(found.datasets) == 22
    assert any(remark.startswith("jsts: pearson needs all gold answers") for remark in found.remarks)


def test_answers_cannot_run_in_a_spreadsheet(world: World, tmp_path: Path) -> None:
    formula = Made("formula", 0.2, 9, also_wrong="=HYPERLINK(1)")
    folder = make_run(formula, world.data, tmp_path, "suite=nli").folder
    command = ["compare", str(folder), str(world.weak), "--partial", f"out={tmp_path}"]
    assert main([*command, "metrics.resamples=100"]) == 0
    with (tmp_path / "flipped.csv").open(encoding="utf-8-sig", newline="") as file:
        answers = {row["prediction_a"] for row in csv.DictReader(file)}
    assert "'=HYPERLINK(1)" in answers and not any(answer.startswith("=") for answer in answers)


def test_the_command_writes_files(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", str(world.strong), str(world.weak), f"out={tmp_path}", "metrics.resamples=500"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "are scored differently (--long shows them" in said and "flipped samples" not in said
    assert said.index("AVG ") < said.index("is better on average")
    (content,) = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert {line["name"] for line in content["categories"]} >= {"NLI", "MT"}
    with (tmp_path / "flipped.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(line["flips"] for line in content["datasets"])
    assert (tmp_path / "comparison.html").stat().st_size > 100_000


def test_bad_words(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(world.weak)]) == 2
    assert main(["compare", str(world.weak), str(tmp_path / "none")]) == 2
    assert main(["compare", str(world.weak), str(tmp_path)]) == 2
    assert main(["compare", str(world.results), str(world.weak)]) == 2
    said = capsys.readouterr().err
    assert "Two or more" in said and "no finished run" in said and "several runs" in said


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my-model-step-1000", ("my-model", 1000)),
        ("exp3_iter_0005000", ("exp3", 5000)),
        ("checkpoint-500", ("", 500)),
        ("global_step1200", ("", 1200)),
        ("m-ckpt-10k", ("m", 10_000)),
        ("llm-jp-3-1.8b", None),
        ("stepford-3b", None),
        ("m-step-3b", None),
    ],
)
def test_steps_in_names(name: str, expected: tuple[str, int] | None) -> None:
    assert step_of(name) == expected


def test_checkpoints_step_by_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", 20)
    folders = [
        str(make_run(Made(f"m-step-{step}", skill, step), data, tmp_path / "results").folder)
        for step, skill in ((10000, 0.9), (900, 0.3))
    ]
    assert main(["compare", *folders, "--steps", f"out={tmp_path / 'steps'}", "metrics.resamples=500"]) == 0
    said = capsys.readouterr().out
    assert said.index(" 900") < said.index("10000") and "↑" in said and "↓" not in said.split("↑ ↓")[0]
    with (tmp_path / "steps" / "steps.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["900", "10000"]
    assert float(rows[0]["AVG_low"]) <= float(rows[0]["AVG"]) <= float(rows[1]["AVG"])
    assert (tmp_path / "steps" / "steps.html").exists()
    tasks = ("suite=task", "suite.tasks=[jsts]")
    runs = [
        find_run(make_run(Made(f"d-step-{step}", skill, step), data, tmp_path / "tasks", *tasks).folder)
        for step, skill in ((1, 0.2), (2, 1.0))
    ]
    points = trace(runs, partial=False, resamples=500)
    assert points[1].gain is not None
    for gain, arrows in ((points[1].gain, True), (replace(points[1].gain, datasets=()), False)):
        print_steps([points[0], replace(points[1], gain=gain)], report_console())
        said = capsys.readouterr().out
        assert ("↑" in said.partition("↑ ↓")[0]) is ("Holm" in said) is arrows
    other = make_run(Made("n-step-1", 0.3, 1), data, tmp_path / "results").folder
    assert main(["compare", folders[0], str(other), "--steps"]) == 2
    assert main(["compare", folders[0], folders[0], "--steps"]) == 2
    said = capsys.readouterr().err
    assert "several models" in said and "twice" in said


THOUGHTS = ("suite=task", "suite.tasks=[jcommonsenseqa,jsts]", "suite.chat=true")


def thinking(world: World, out: Path, name: str, *options: str, skill: float = 0.5) -> Path:
    model = Made(name, skill, seed=len(name), thought="考える。")
    return make_run(model, world.data, out, *THOUGHTS, *options).folder


def test_runs_under_different_rules_compare_only_when_asked(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = thinking(world, tmp_path, "ours", "reasoning.parser=think")
    theirs = thinking(world, tmp_path, "theirs", "reasoning.parser=regex", "reasoning.pattern=k>(.*)")
    plain = make_run(Made("plain", 0.5), world.data, tmp_path, *THOUGHTS[:2]).folder
    assert main(["compare", str(ours), str(theirs)]) == 2
    said = capsys.readouterr().err
    assert "reasoning.parser differs: think and regex k>(.*)" in said and "--across-rules" in said
    assert main(["compare", str(ours), str(plain)]) == 2
    said = capsys.readouterr().err
    assert "reasoning.parser differs: think and none" in said and "suite.chat differs: True and False" in said
    command = ["compare", str(ours), str(plain), "--across-rules", "metrics.resamples=100"]
    assert main([*command, f"out={tmp_path / 'page'}"]) == 0
    said, remark = capsys.readouterr().out, "across rules: suite.chat differs: True and False"
    assert remark in " ".join(said.split())
    page = (tmp_path / "page" / "comparison.html").read_text(encoding="utf-8")
    (text,) = re.findall(r'(?s)<script type="application/json" id="data">(.*?)</script>', page)
    pair = json.loads(text)["pairs"]["0-1"]
    assert remark in pair["remarks"] and pair["lines"].keys() == {"MC", "jcommonsenseqa", "jsts"}


def test_a_rule_is_what_it_is_however_it_was_chosen(world: World, tmp_path: Path) -> None:
    """A scoring by another rule differs from its run; the run's own rule, named, does not."""
    run = thinking(world, tmp_path, "one", "reasoning.parser=think")
    copies = [Path(shutil.copytree(run, tmp_path / f"copy-{rule}" / "run")) for rule in ("think", "swallow")]
    for copy in copies:
        assert main(["score", f"run={copy}", f"reasoning.parser={copy.parent.name[5:]}"]) == 0
    assert not compare(find_run(run), find_run(copies[0])).flips
    named = compare(find_run(run), find_run(copies[0]))
    assert (named.a.model, named.b.model) == (f"one ({run.name})", "one (run)")
    with pytest.raises(InputError, match="think and swallow"):
        compare(find_run(run), find_run(copies[1]))


def test_several_answers_are_paired_by_their_question(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = ("generation.do_sample=true", "reasoning.parser=think")
    good, bad, more = (
        thinking(world, tmp_path, name, *sampling, f"samples={n}", skill=skill)
        for name, n, skill in (("good", 2, 0.8), ("bad", 2, 0.3), ("bad-more", 3, 0.3))
    )
    found = compare(find_run(good), find_run(bad))
    (line,) = found.datasets
    ours, theirs = (values(folder, "jcommonsenseqa", "exact_match_avg@2") for folder in (good, bad))
    assert (line.name, line.metric, line.n) == ("jcommonsenseqa", "exact_match_avg@2", 24)
    assert line.difference == pytest.approx(np.mean(list(ours.values())) - np.mean(list(theirs.values())))
    assert line.ci95 is not None and line.p is not None and line.test == "permutation"
    assert any("jsts: pearson of several answers has no value" in remark for remark in found.remarks)
    assert " / " in found.flips[0].prediction_a
    with pytest.raises(InputError, match="samples differs: 2 and 3") as refused:
        compare(find_run(good), find_run(more))
    assert "metric of" not in str(refused.value)
    (line,) = compare(find_run(good), find_run(more), across_rules=True).datasets
    assert 0 < line.b < line.a
