import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from evalkit.core.config import BosRule, CometConfig, Config, Dtype, MetricsConfig, ProtocolConfig, Split
from evalkit.core.durable import write_lines_atomic
from evalkit.core.errors import InputError
from evalkit.core.types import Sample
from evalkit.leaderboard.card import load_cards
from evalkit.leaderboard.exports import lm_eval_json
from evalkit.leaderboard.frames import figure_rows
from evalkit.leaderboard.join import join_runs
from evalkit.leaderboard.rows import jaster_row
from evalkit.leaderboard.runs import FinishedRun, told_apart
from evalkit.records.results import DatasetRates, Figure, Partial, ProtocolRecord, Results, read_results
from evalkit.scoring.categories import category_members, counted_members, summarise, with_intervals
from evalkit.scoring.scores import Measured, TaskScores
from evalkit.scoring.write import llm_jp_eval_json
from evalkit.tasks.spec import CATEGORIES
from tests.scored import JASTER, answers, record_of, score

MT = ["alt-e-to-j", "alt-j-to-e", "wikicorpus-e-to-j", "wikicorpus-j-to-e"]
PROTOCOL = record_of(Config())


@pytest.fixture(scope="module")
def tasks() -> list[TaskScores]:
    """All 23 datasets, COMET included (its values set by hand)."""
    return [with_comet(task) if task.spec.name in MT else task for task in score(answers())]


def with_comet(task: TaskScores) -> TaskScores:
    value = Figure(0.8, task.rates.n, 0.01, (0.78, 0.82), "1")
    measured = {**task.measured, "comet_wmt22": Measured(value, value.ci95)}
    rates = replace(task.rates, metrics=[*task.rates.metrics, "comet_wmt22"])
    return replace(task, measured=measured, rates=rates, missing=())


def rules_of(results: Results) -> str:
    return FinishedRun(Path(), results, 0.0).rules


def only(tasks: list[TaskScores], *names: str) -> list[TaskScores]:
    return [task for task in tasks if task.spec.name in names]


def test_the_protocols_categories() -> None:
    assert category_members() == {
        "EL": ["chabsa"],
        "FA": ["wiki_coreference", "wiki_dependency", "wiki_ner", "wiki_pas", "wiki_reading"],
        "HE": ["jmmlu", "mmluen"],
        "MC": ["jcommonsenseqa"],
        "MR": ["mawps"],
        "MT": MT,
        "NLI": ["jamp", "janli", "jnli", "jsem", "jsick"],
        "QA": ["jemhopqa", "niilc"],
        "RC": ["jsquad"],
    }


@pytest.mark.parametrize("model", load_cards())
def test_the_card_averages_its_nine_categories(model: str) -> None:
    columns = dict(load_cards()[model].columns)
    average = columns.pop("AVG")
    assert sorted(columns) == list(CATEGORIES)
    # The card averages unrounded values and prints four decimals.
    assert sum(columns.values()) / 9 == pytest.approx(average, abs=1e-4)


def test_a_whole_suite(tasks: list[TaskScores]) -> None:
    results = summarise(tasks, PROTOCOL)
    assert not results.partial.partial and not results.missing_metrics
    scores = {key: value.value for key, value in results.scores.items()}
    nli = [scores[f"{name}_exact_match"] for name in ("jamp", "janli", "jnli", "jsem", "jsick")]
    assert results.categories["NLI"].value == pytest.approx(np.mean(nli), abs=1e-15)
    assert results.categories["NLI"].n == 100
    assert results.categories["MT"].value == pytest.approx(0.8)
    assert results.categories["FA"].value == pytest.approx(
        np.mean(
            [scores["wiki_reading_char_f1"]]
            + [scores[f"wiki_{kind}_set_f1"] for kind in ("ner", "dependency", "pas", "coreference")]
        )
    )
    every = [value.value for value in results.categories.values()]
    assert list(results.categories) == list(CATEGORIES)
    assert results.average["AVG"].value == pytest.approx(np.mean(every), abs=1e-15)
    assert results.average["AVG"].n == 22 * 20
    assert "jsts_pearson" in results.scores and "jsts" in results.datasets


def test_errors_of_averages_add_up_like_independent_ones() -> None:
    results = summarise(score(answers(category_members()["NLI"]), 4000), PROTOCOL)
    errors = [results.scores[f"{name}_exact_match"].stderr for name in category_members()["NLI"]]
    assert results.categories["NLI"].stderr == pytest.approx(np.sqrt(sum(e**2 for e in errors)) / 5, rel=0.1)


def test_a_missing_dataset_makes_its_category_and_the_average_partial(tasks: list[TaskScores]) -> None:
    present = [task for task in tasks if task.spec.name != "jnli"]
    results = summarise(present, PROTOCOL, missing_datasets={"jnli": "its file is not there"})
    four = [results.scores[f"{name}_exact_match"].value for name in ("jamp", "janli", "jsem", "jsick")]
    assert results.categories["NLI"].value == pytest.approx(np.mean(four))
    assert results.partial.categories == {"NLI": ["jnli is missing: its file is not there"]}
    assert results.average["AVG"].value is None and results.average["AVG"].ci95 is None
    assert results.partial.partial and results.partial.datasets == {"jnli": "its file is not there"}
    assert results.categories["MC"].value is not None


def test_missing_samples_do_the_same(tasks: list[TaskScores]) -> None:
    found = summarise(tasks, PROTOCOL, gaps={"jamp": "1 of 100 samples has no completion"})
    assert found.partial.categories == {"NLI": ["jamp: 1 of 100 samples has no completion"]}
    assert found.partial.reasons == ["jamp: 1 of 100 samples has no completion"]
    assert found.categories["NLI"].value is not None
    assert found.average["AVG"].value is None


def test_a_missing_metric_does_the_same(tasks: list[TaskScores]) -> None:
    without = score(answers(["alt-e-to-j"]))
    results = summarise([t for t in tasks if t.spec.name != "alt-e-to-j"] + without, PROTOCOL)
    assert list(results.partial.categories) == ["MT"]
    assert results.partial.categories["MT"] == results.partial.reasons
    assert results.partial.reasons[0].startswith("comet_wmt22 of alt-e-to-j is missing: ")
    assert results.categories["MT"].value == pytest.approx(0.8)
    assert results.average["AVG"].value is None
    assert [(m.dataset, m.metric) for m in results.missing_metrics] == [("alt-e-to-j", "comet_wmt22")]


def test_without_mt_there_is_a_marked_average_of_the_eight_others(tasks: list[TaskScores]) -> None:
    without = [task for task in tasks if task.spec.name not in MT] + score(answers(MT))
    results = summarise(without, PROTOCOL)
    # What is missing is said once, not for each dataset.
    assert len(results.partial.reasons) == 1 and ", ".join(MT) in results.partial.reasons[0]
    assert results.partial.categories == {"MT": results.partial.reasons}
    others = [value.value for name, value in results.categories.items() if name != "MT"]
    average = results.average["AVG_without_MT"]
    assert average.value == pytest.approx(np.mean(others), abs=1e-15) and average.ci95 is not None
    assert results.average["AVG"].value is None
    row = jaster_row(
        FinishedRun(Path("run"), Results.from_json(json.loads(json.dumps(results.to_json()))), 0.0)
    )
    assert row.cells["AVG_without_MT"].partial and "AVG" not in row.cells
    assert not row.cells["NLI"].partial and row.cells["MT"].partial
    assert row.run is not None
    partial = {line["dataset"] for line in figure_rows(row.run) if line["partial"]}
    assert partial == {"MT", "AVG", "AVG_without_MT"}
    exported = lm_eval_json(row.run)
    assert exported["groups"].keys() == exported["group_subtasks"].keys() == {*CATEGORIES} - {"MT"}
    assert exported["evalkit"]["partial"] == list(row.reasons) != []
    assert "AVG_without_MT" not in llm_jp_eval_json(without, results)["scores"]
    # Another incomplete category, and there is none.
    fewer = [task for task in without if task.spec.name != "jnli"]
    assert list(summarise(fewer, PROTOCOL).average) == ["AVG"]


def test_nothing_of_a_category_leaves_its_value_open() -> None:
    results = summarise(score(answers(MT)), PROTOCOL)
    assert results.categories["MT"].value is None and results.categories["MT"].n == 0
    assert results.average == {}


def test_a_suite_of_one_category_is_whole_in_itself(tasks: list[TaskScores]) -> None:
    results = summarise(only(tasks, "jcommonsenseqa"), PROTOCOL)
    assert list(results.categories) == ["MC"] and results.average == {}
    assert not results.partial.partial


def test_part_of_a_category_is_partial(tasks: list[TaskScores]) -> None:
    results = summarise(only(tasks, "jamp", "janli"), PROTOCOL)
    assert results.partial.partial
    assert "jnli is missing: not in this suite" in results.partial.categories["NLI"]


def test_a_task_outside_the_categories_needs_none(tasks: list[TaskScores]) -> None:
    results = summarise(only(tasks, "jsts"), PROTOCOL)
    assert results.categories == {} and not results.partial.partial


def test_a_changed_task_file_does_not_pass_for_the_shipped_one(tasks: list[TaskScores]) -> None:
    (task,) = only(tasks, "mawps")
    changed = replace(task, spec=replace(task.spec, output_length=100))
    results = summarise([changed], PROTOCOL)
    assert results.partial.categories == {"MR": ["mawps: its task file is not the shipped one"]}


def test_other_data_do_not_pass_for_the_published_ones(tasks: list[TaskScores]) -> None:
    named = only(tasks, "mawps", "jcommonsenseqa", "jsts")
    published = {task.spec.name: task.spec.published["1.3.1"]["dev"] for task in named}
    files = {name: {"sha256": {"train": "0" * 64, "dev": digest}} for name, digest in published.items()}
    assert summarise(named, PROTOCOL, run={"datasets": files}).run["other_data"] == {}
    for name in ("mawps", "jsts"):
        files[name]["sha256"]["dev"] = "f" * 64
    results = summarise(named, PROTOCOL, run={"datasets": files})
    # A folder of one's own is warned of and named, but it is no partial result.
    assert not results.partial.partial
    assert results.run["other_data"] == dict.fromkeys(
        ("jsts", "mawps"), "the dev file is not the published one"
    )
    assert rules_of(results) == "llm-jp-eval-1.3.1, other data than published"
    runs = [FinishedRun(Path(str(n)), results, 0.0) for n in range(3)]
    assert {run.rules for run in told_apart(runs)} == {rules_of(results)}
    others = files | {"jsts": {"sha256": {"dev": "e" * 64}}}
    runs.append(FinishedRun(Path("other"), summarise(named, PROTOCOL, run={"datasets": others}), 0.0))
    joined = replace(runs[0], folder=Path("joined"), parts=(runs[0], runs[1]))
    rules = [run.rules for run in told_apart([*runs, joined])]
    assert rules[0] == rules[1] == rules[4] != rules[3]
    assert all(
        re.fullmatch(r"llm-jp-eval-1.3.1, other data than published \(\w{8}\)", rule) for rule in rules
    )


def test_a_version_of_a_metric_is_part_of_the_rules_where_it_differs(tasks: list[TaskScores]) -> None:
    moved = Config(metrics=MetricsConfig(comet=CometConfig(checkpoint="/other/place")))
    usual, same, other = (
        FinishedRun(Path(str(n)), summarise(tasks, record_of(config)), 0.0)
        for n, config in enumerate((Config(), moved, moved))
    )
    assert usual.rules == same.rules == told_apart([usual, same])[0].rules == "llm-jp-eval-1.3.1"
    key = "mawps_exact_match"
    scores = other.results.scores | {key: replace(other.results.scores[key], metric_version="2")}
    alone = replace(other.results, scores=scores, datasets={"mawps": other.results.datasets["mawps"]})
    rules = [run.rules for run in told_apart([usual, same, replace(other, results=alone)])]
    assert rules == [f"llm-jp-eval-1.3.1, exact_match {version}" for version in "112"]
    # What is exported does not depend on the other runs; a version that is not the first one stays named.
    lasting = [run.lasting_rules for run in told_apart([usual, replace(other, results=alone)])]
    assert lasting == ["llm-jp-eval-1.3.1", "llm-jp-eval-1.3.1, exact_match 2"]
    assert usual.lasting_rules == lasting[0]


def comet_run(tasks: list[TaskScores], name: str, version: str, config: CometConfig) -> FinishedRun:
    """A run of all datasets, scored by COMET in a version of its own."""
    results = summarise(tasks, record_of(Config(metrics=MetricsConfig(comet=config))), run={"model": "m"})
    keys = (f"{dataset}_comet_wmt22" for dataset in MT)
    scores = {key: replace(results.scores[key], metric_version=version) for key in keys}
    return FinishedRun(Path(name), replace(results, scores=results.scores | scores), 0.0)


def test_comet_otherwise_than_published_is_a_deviation(tasks: list[TaskScores]) -> None:
    usual = comet_run(tasks, "usual", "1 (model a, float32)", CometConfig())
    for dtype in (Dtype.auto, Dtype.float32):
        assert comet_run(tasks, "same", "1 (model a, float32)", CometConfig(dtype=dtype)).rules == usual.rules
    half = comet_run(tasks, "half", "1 (model a, bfloat16)", CometConfig(dtype=Dtype.bfloat16))
    assert told_apart([half])[0].rules == "llm-jp-eval-1.3.1, metrics.comet.dtype=bfloat16"
    for elsewhere in (CometConfig(checkpoint="/comet"), CometConfig(encoder="/xlm")):
        moved = comet_run(tasks, "moved", "1 (model a, float32)", elsewhere)
        other = comet_run(tasks, "other", "1 (model b, float32)", elsewhere)
        # Alone nobody knows what lies there; beside the published weights it shows.
        for run, model in ((moved, "a"), (other, "b")):
            named = f"llm-jp-eval-1.3.1, comet_wmt22 1 (model {model}, float32)"
            assert told_apart([run])[0].rules == run.lasting_rules == named
        assert [run.rules for run in told_apart([usual, moved])] == ["llm-jp-eval-1.3.1"] * 2
        # One model by other weights is a row of its own; by the same weights the newest run is shown.
        rows, left_out = join_runs([usual, moved, other, half], partial=False)
        assert [run.folder.name for run in rows] == ["usual", "other", "half"]
        assert [entry.path.name for entry in left_out] == ["moved"]
    # No figure is of COMET.
    alone = summarise(only(tasks, "mawps"), moved.results.protocol)
    assert told_apart([replace(moved, results=alone)])[0].rules == "llm-jp-eval-1.3.1"


def test_a_dataset_of_ones_own_counts_but_not_as_the_protocols(tasks: list[TaskScores]) -> None:
    (task,) = only(tasks, "mawps")
    other = task.measured["exact_match"]
    zero = replace(other, value=replace(other.value, value=0.0))
    own = replace(task, spec=replace(task.spec, name="my-sums"), measured={"exact_match": zero})
    facts = {"datasets": {"my-sums": {"counts": "exact_match"}}}
    results = summarise([*tasks, own], PROTOCOL, run=facts)
    assert results.categories["MR"].value == pytest.approx(other.value.value / 2)
    assert results.partial.categories == {"MR": ["my-sums is not one of the protocol's datasets"]}
    assert results.average["AVG"].value is None
    assert counted_members(results, "MR") == ["mawps", "my-sums"]
    alone = summarise([own], PROTOCOL, run=facts)
    assert alone.categories["MR"].value == 0.0 and counted_members(alone, "MR") == ["my-sums"]
    without = summarise([replace(own, measured={}, missing=())], PROTOCOL, run=facts)
    assert without.categories["MR"].value is None and counted_members(without, "MR") == []


def test_a_limit_below_the_protocols_is_partial_but_still_averaged(tasks: list[TaskScores]) -> None:
    results = summarise(tasks, record_of(Config(limit=20)))
    assert results.partial.reasons == ["limit=20: the protocol takes 100 samples of each dataset"]
    assert results.average["AVG"].value is not None and results.partial.categories == {}
    assert rules_of(results) == "llm-jp-eval-1.3.1"
    for more in (0, 101):
        results = summarise(tasks, record_of(Config(limit=more)))
        assert not results.partial.partial and rules_of(results) == f"llm-jp-eval-1.3.1, limit={more}"


def test_every_deviation_is_recorded() -> None:
    assert PROTOCOL.deviations == {}
    config = Config(
        protocol=ProtocolConfig(strip=True, answer_regex="a", bos=BosRule.none),
        metrics=MetricsConfig(bert_score=True),
        num_few_shots=0,
        limit=-1,
        split=Split.test,
    )
    assert record_of(config, "float32").deviations == {
        "protocol.strip": True,
        "protocol.answer_regex": "a",
        "protocol.bos": "none",
        "num_few_shots": 0,
        "limit": 0,
        "split": "test",
        "dtype": "float32",
    }


def test_the_file_has_the_documented_keys(tasks: list[TaskScores], tmp_path: Path) -> None:
    results = summarise(tasks, PROTOCOL, run={"id": "x"})
    content = json.loads(json.dumps(results.to_json()))
    for place in ("scores", "categories", "average"):
        for value in content[place].values():
            assert list(value) == ["value", "n", "stderr", "ci95", "metric_version"]
    assert next(iter(content)) == "schema_version"
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_results(path) == results


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"schema_version": 99}, "found: 99"),
        ([], "found: None"),
        ({"schema_version": 1, "scores": {}}, "does not fit"),
    ],
)
def test_other_files_are_no_results(content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Results.from_json(content, "results.json")


def test_the_export_has_llm_jp_evals_keys(tasks: list[TaskScores]) -> None:
    exported = llm_jp_eval_json(tasks, summarise(tasks, PROTOCOL))
    counting = {f"{t.spec.name}_{m}" for t in tasks for m in t.spec.metrics if "bert_score" not in m}
    assert set(exported["scores"]) == {"AVG", *CATEGORIES, *counting}
    assert all(len(str(value).partition(".")[2]) <= 4 for value in exported["scores"].values())
    jamp = next(t for t in tasks if t.spec.name == "jamp")
    sample: Sample = jamp.samples[0]
    assert exported["outputs"]["jamp"][0] == {
        "input": sample.input,
        "pred": jamp.scores[0].prediction,
        "gold": sample.gold,
    }
    partial = llm_jp_eval_json(only(tasks, "jamp"), summarise(only(tasks, "jamp"), PROTOCOL))
    assert set(partial["scores"]) == {"jamp_exact_match"}


def test_an_interval_that_only_its_benchmark_can_draw_stays(tmp_path: Path) -> None:
    kept = {"pfgen_score": Figure(0.3, 50, 0.02, (0.2, 0.5), "1"), "pfgen_fluency": Figure(0.0, 50)}
    scores = [{"id": f"Q{n}", "values": {"score": 0.3 + (-1) ** n / 9, "fluency": 0.0}} for n in range(50)]
    write_lines_atomic(tmp_path / "scores" / "pfgen.jsonl", scores)
    rates = DatasetRates(["score", "fluency"], 50, 0.0, None, None)
    results = Results(
        kept, {}, {}, {"pfgen": rates}, Partial(False), [], ProtocolRecord("pfgen-bench", {}, {})
    )
    assert with_intervals(results, tmp_path).scores == kept


def test_values_are_not_rounded(tasks: list[TaskScores]) -> None:
    results = summarise(tasks, PROTOCOL)
    assert (
        asdict(results.scores["chabsa_set_f1"])["value"]
        == next(t for t in tasks if t.spec.name == "chabsa").measured["set_f1"].value.value
    )
    assert set(results.datasets) == set(JASTER)
