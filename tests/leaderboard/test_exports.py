"""What W&B (offline) and lm-evaluation-harness's readers find in an export."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.leaderboard.board import build_board
from evalkit.leaderboard.collect import collect
from evalkit.leaderboard.exports import _by_series, _wandb_mode, lm_eval_json, log_to_wandb
from evalkit.leaderboard.rows import BoardRow, jaster_row
from evalkit.leaderboard.runs import told_apart
from tests.leaderboard.conftest import World


@pytest.fixture
def average(world: World) -> dict[str, float]:
    rows = build_board([world.results]).rows
    return {row.model: row.cells["AVG"].value or 0.0 for row in rows}


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    block, header, whole, last = 32768, 7, 1, 4
    assert content[:4] == b":W&B"
    at, record = 7, b""
    while at + header <= len(content):
        if block - at % block < header:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + header : at + header + length]
        at += header + length
        if kind in (whole, last):
            yield record
            record = b""


def finished_records(path: Path) -> list[Any]:
    """The records of a run; W&B's own process may write the last of them a little after `finish`."""
    from wandb.proto import wandb_internal_pb2

    for _ in range(100):
        records = [wandb_internal_pb2.Record.FromString(data) for data in log_records(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} was never finished")


def test_wandb_offline(
    world: World, tmp_path: Path, average: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    weak, strong = (make_row(world, name) for name in ("weak", "strong-モデル"))
    steps = [replace(weak, model="weak-step-20"), replace(weak, model="weak-step-3", run=None), strong]
    # A checkpoint is found by the run's own name, else by the row's.
    steps[0] = replace(steps[0], run=replace(weak.run, label="weak-step-20"))
    newer = replace(weak, model="weak-step-30", run=replace(weak.run, label="weak-step-30"))
    for rows in (steps, [newer, *steps]):
        # W&B names its folders by the second.
        time.sleep(1.0)
        lines = log_to_wandb(rows, tmp_path)
    sync = [Path(line.split("wandb sync ")[1].rstrip(")")) for line in lines]
    assert all(len(list(place.parent.glob(place.name))) == 2 for place in sync)
    found: dict[str, list[Any]] = {}
    tables = []
    for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")):
        name, summary, history = "", {}, []
        for record in finished_records(path):
            if record.WhichOneof("record_type") == "run":
                name = f"{record.run.display_name} {record.run.run_id}"
                options = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert (options["num_few_shots"], options["suite"]) == (4, "jaster")
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            if record.history.item:
                items = record.history.item
                line = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in items}
                history.append((line.get("step"), line.get("AVG")))
        found.setdefault(name, []).append(history)
        assert summary["AVG"] == pytest.approx(
            average["weak" if name.startswith("weak") else "strong-モデル"]
        )
        assert summary["AVG_low"] <= summary["AVG"] <= summary["AVG_high"]
        assert "datasets/jamp_exact_match" in summary
        tables += path.parent.glob("files/media/table/samples*.json")
    assert len(tables) == 2
    for table in tables:
        content = json.loads(table.read_text(encoding="utf-8"))
        assert content["columns"][:4] == ["dataset", "id", "metric", "value"]
        assert len(content["data"]) > 23 * 24
    # Both exports are of the same two runs, and the second adds what is new.
    assert sorted(name.split()[0] for name in found) == ["strong-モデル", "weak"]
    for name, exports in found.items():
        value = pytest.approx(average[name.split()[0]])
        weak_points = [[(3, value), (20, value)], [(30, value)]]
        points = weak_points if name.startswith("weak") else [[(None, value)], []]
        assert [[point for point in history if point[1]] for history in exports] == points


def test_a_wandb_run_is_the_same_whatever_else_is_on_the_board(world: World) -> None:
    (weak,) = collect([world.weak]).runs
    results = weak.results
    later = {
        key: replace(value, metric_version="2" if key.endswith("_exact_match") else value.metric_version)
        for key, value in results.scores.items()
    }
    data = {**results.run["identity"]["data"], "jamp": {"dev": "0" * 64}}
    changed = {"identity": {**results.run["identity"], "data": data}}
    others = [
        replace(results, scores=later),
        replace(results, run=results.run | changed),
    ]
    boards = [[weak], *([weak, replace(weak, results=other)] for other in others)]
    keys = [[*_by_series([jaster_row(run) for run in told_apart(runs)])] for runs in boards]
    assert keys[0][0] == keys[1][0] == keys[2][0] and all(len(found) == 2 for found in keys[1:])
    published = replace(weak, results=replace(results, run=results.run | {"other_data": {}}))
    scores = {name: replace(value, metric_version="1") for name, value in results.scores.items()}
    usual = replace(published, results=replace(published.results, scores=scores))
    assert [*_by_series([jaster_row(usual)])] == [("weak", "llm-jp-eval-1.3.1, dtype=float32")]


def make_row(world: World, model: str) -> BoardRow:
    (row,) = [row for row in build_board([world.results]).rows if row.model == model]
    return row


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        ("machine api.wandb.ai login user password key", None),
        ("machine wandb.example login user password key", None),
        ("machine github.com login user password key", "offline"),
        ("no netrc at all", "offline"),
        (None, "offline"),
    ],
)
def test_a_plain_wandb_login_counts(
    content: str | None, mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if content is not None:
        (tmp_path / ".netrc").write_text(content, encoding="utf-8")
        (tmp_path / ".netrc").chmod(0o600)
    settings = SimpleNamespace(api_key=None, base_url="https://wandb.example")
    assert _wandb_mode(settings) == mode
    settings.api_key = "key"
    assert _wandb_mode(settings) is None
    settings.api_key = None
    monkeypatch.setenv("WANDB_MODE", "online")
    assert _wandb_mode(settings) is None


def test_lm_eval_json(world: World, tmp_path: Path, average: dict[str, float]) -> None:
    assert main(["leaderboard", str(world.results), "--format", "lm-eval", f"out={tmp_path}"]) == 0
    content = json.loads((tmp_path / "lm-eval-weak.json").read_text(encoding="utf-8"))
    source = json.loads((world.weak / "results.json").read_text(encoding="utf-8"))
    value = source["scores"]["jamp_exact_match"]
    assert content["results"]["jamp"] == {
        "alias": "jamp",
        "exact_match,none": value["value"],
        "exact_match_stderr,none": value["stderr"],
    }
    assert content["groups"]["AVG"]["score,none"] == average["weak"]
    assert content["group_subtasks"]["NLI"] == ["jamp", "janli", "jnli", "jsem", "jsick"]
    assert content["n-samples"]["jamp"] == {"original": 24, "effective": 24}
    assert content["n-shot"]["jamp"] == 4 and content["versions"].keys() == content["results"].keys()


def test_an_own_task_called_as_a_group_stays_in_the_lm_eval_json(world: World) -> None:
    (run,) = collect([world.weak]).runs
    jamp = run.results.scores["jamp_exact_match"]
    results = replace(
        run.results,
        datasets={**run.results.datasets, "NLI": run.results.datasets["jamp"]},
        scores={**run.results.scores, "NLI_exact_match": replace(jamp, value=0.125)},
    )
    content = lm_eval_json(replace(run, results=results))
    assert content["results"]["task_NLI"]["exact_match,none"] == 0.125
    assert content["configs"]["task_NLI"]["task"] == "task_NLI" and content["n-samples"].keys() > {"task_NLI"}
    assert content["results"]["NLI"] == content["groups"]["NLI"] == lm_eval_json(run)["groups"]["NLI"]


def test_lm_evals_own_table_reads_it(world: World, tmp_path: Path) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="lm-evaluation-harness is not installed")
    assert main(["leaderboard", str(world.results), "--format", "lm-eval", f"out={tmp_path}"]) == 0
    content = json.loads((tmp_path / "lm-eval-weak.json").read_text(encoding="utf-8"))
    table = utils.make_table(content)
    assert "  - jamp " in table and "exact_match" in table
    assert "|AVG" in utils.make_table(content, "groups")


def test_published_rows_are_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"scores": {"AVG": 0.4}}')
    assert main(["leaderboard", str(path), "--format", "lm-eval", f"out={tmp_path}"]) == 2
    assert "no row was measured here" in capsys.readouterr().err
