"""What W&B (offline) and lm-evaluation-harness's readers find in an export."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.leaderboard.board import build_board
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
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["leaderboard", str(world.results), "--format", "wandb", f"out={tmp_path}"]) == 0
    found, weak, options = {}, {}, {}
    for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb"):
        name, summary = "", {}
        for record in finished_records(path):
            if record.WhichOneof("record_type") == "run":
                name = record.run.display_name
                options = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        found[name] = summary["AVG"]
        if name == "weak":
            weak = summary
            assert (options["num_few_shots"], options["suite"]) == (4, "jaster")
    assert found == pytest.approx(average)
    assert weak["AVG_low"] <= weak["AVG"] <= weak["AVG_high"]
    assert "datasets/jamp_exact_match" in weak


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
