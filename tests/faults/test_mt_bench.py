"""MT-Bench: both turns of sampled answers, and judgments that are paid for, through the same faults."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from disks import small_disk
from fault_server import FaultServer
from injected import DieAtByte, DieAtOperation
from little_bench import Bench, make_bench
from runs import kills
from test_damage import cut, emptied, flipped

from evalkit.core.durable import from_line, read_log
from evalkit.mtbench.fastchat import CATEGORIES
from evalkit.records.run_folder import RunDirectory
from tests.children import Fault, fork

TURNS = 16


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A question of each category; half of the answers are sampled."""
    temperature = {category: 0.9 * (index % 2) for index, category in enumerate(CATEGORIES)}
    sampling = {"temperature": temperature, "other": 0.0, "seed": 0}
    return make_bench(tmp_path_factory.mktemp("bench"), 1, sampling=sampling)


def answer_words(bench: Bench, folder: Path) -> list[str]:
    where = [f"preset={bench.preset}", f"mirror={bench.mirror}", f"out={folder / 'results'}"]
    return ["model=random", "suite=mt-bench-ja", "engine.threads=1", *where]


def run_of(folder: Path) -> Path:
    (run,) = folder.glob("results/random/mt-bench-ja/*")
    return run


def outcome(folder: Path) -> tuple[dict[str, dict[str, Any]], Any]:
    """The turns by id, each there once, and the results."""
    run = run_of(folder)
    path = run / "samples" / "mt_bench.jsonl"
    rows, damaged = read_log(path)
    assert (damaged, path.read_bytes().count(b"\n")) == (0, len(rows))
    return rows, json.loads((run / "results.json").read_bytes())


def finish(bench: Bench, folder: Path, *faults: Fault) -> None:
    ended = fork(answer_words(bench, folder), folder, faults).wait()
    assert ended.code in ((0, -9) if faults else (0,)), ended.err
    kills["MT-Bench answers"] += ended.code == -9


@pytest.fixture(scope="module")
def answered(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answered")
    finish(bench, folder)
    rows, _ = outcome(folder)
    assert len(rows) == TURNS
    assert sum(row["generator_state"] is not None for row in rows.values()) == 4
    return folder


@pytest.mark.parametrize(
    "stories", [pytest.param(1, id="one"), pytest.param(5, id="many", marks=pytest.mark.campaign)]
)
def test_answers_killed(
    stories: int, bench: Bench, answered: Path, tmp_path: Path, chance: random.Random
) -> None:
    size = (run_of(answered) / "samples" / "mt_bench.jsonl").stat().st_size
    for number in range(stories):
        folder = tmp_path / str(number)
        folder.mkdir()
        for _ in range(2):
            finish(bench, folder, DieAtByte(chance.randrange(1, size // 2), chance.choice((9, 400, 1 << 20))))
        finish(bench, folder, DieAtOperation(str(folder / "results"), chance.randrange(1, 30)))
        finish(bench, folder)
        assert outcome(folder) == outcome(answered)


@pytest.mark.parametrize(
    "name",
    [
        "mt_bench.json",
        *(
            pytest.param(name, marks=pytest.mark.campaign)
            for name in ("results.json", "environment.json", "config.yaml")
        ),
    ],
)
def test_a_damaged_file(
    name: str, bench: Bench, answered: Path, tmp_path: Path, chance: random.Random
) -> None:
    shutil.copytree(answered / "results", tmp_path / "results")
    path = run_of(tmp_path) / name
    path.write_bytes(chance.choice((cut, emptied, flipped))(path.read_bytes(), chance))
    log = run_of(tmp_path) / "samples" / "mt_bench.jsonl"
    before = log.stat().st_mtime_ns
    finish(bench, tmp_path)
    assert outcome(tmp_path) == outcome(answered)
    # No model was asked for this.
    assert log.stat().st_mtime_ns == before
    with FaultServer() as server:
        ended = judge(bench, tmp_path, server)
    assert ended.code == 0, ended.err
    assert len(server.calls) == TURNS


@pytest.mark.campaign
@pytest.mark.parametrize("line", [2, TURNS - 2])
def test_a_flipped_byte_in_a_turn(
    line: int, bench: Bench, answered: Path, tmp_path: Path, chance: random.Random
) -> None:
    """A first turn is made again with its generator; its second one is kept."""
    shutil.copytree(answered / "results", tmp_path / "results")
    log = run_of(tmp_path) / "samples" / "mt_bench.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[line] = flipped(lines[line][:-1], chance) + b"\n"
    log.write_bytes(b"".join(lines))
    finish(bench, tmp_path)
    assert outcome(tmp_path) == outcome(answered)


def judge_words(bench: Bench, folder: Path, server: FaultServer) -> list[str]:
    return [
        "judge",
        f"run={run_of(folder)}",
        f"preset={bench.preset}",
        f"mirror={bench.mirror}",
        "judge=gpt-4",
        f"judge.base_url={server.url}",
        f"judge.store={folder / 'store'}",
        "judge.identity=test",
        "judge.concurrency=2",
        "metrics.resamples=50",
    ]


def judge(bench: Bench, folder: Path, server: FaultServer, *faults: Fault) -> Any:
    env = {"OPENAI_API_KEY": "sk-of-a-test"}
    ended = fork(judge_words(bench, folder, server), folder, faults, env).wait()
    kills["judge"] += ended.code == -9
    return ended


def kept(folder: Path) -> set[str]:
    """The judgments that are whole in the store."""
    ids: list[str] = []
    for path in (folder / "store").glob("*.jsonl"):
        ids += [row["id"] for line in path.read_bytes().splitlines(True) if (row := from_line(line))]
    assert len(ids) == len(set(ids)), "a judgment was stored twice"
    return set(ids)


@pytest.fixture
def to_judge(answered: Path, tmp_path: Path) -> Path:
    shutil.copytree(answered / "results", tmp_path / "results")
    return tmp_path


def table(folder: Path) -> Any:
    content = json.loads((run_of(folder) / "results.json").read_text())
    return content["mt_bench"], content["tables"]


def test_judge_killed(bench: Bench, to_judge: Path, chance: random.Random) -> None:
    """Inside an append, between two, and while the run is written: what is kept is not asked again."""
    with FaultServer(latency=0.01) as server:
        size = 300
        for fault in (
            DieAtByte(chance.randrange(1, 4 * size), 40),
            DieAtByte(chance.randrange(size, 4 * size), 1 << 20),
            DieAtOperation("/judgments/", 2),
            DieAtOperation(".results.json.", 2),
        ):
            before, calls = kept(to_judge), len(server.calls)
            ended = judge(bench, to_judge, server, fault)
            assert ended.code == -9, ended
            now = kept(to_judge)
            assert before <= now
            # Answered calls are stored or were under way; none is a repetition of what was kept.
            assert len(now) - len(before) <= len(server.calls) - calls <= TURNS - len(before)
        calls, have = len(server.calls), len(kept(to_judge))
        assert judge(bench, to_judge, server).code == 0
        assert len(server.calls) - calls == TURNS - have
        assert len(kept(to_judge)) == TURNS
        expected = table(to_judge)
        # Once more: no call, the same table.
        assert judge(bench, to_judge, server).code == 0
        assert len(server.calls) - calls == TURNS - have
    assert table(to_judge) == expected
    assert not list(to_judge.glob("results/**/.*.tmp"))


@pytest.mark.campaign
def test_a_damaged_judgment_is_the_only_one_asked_again(
    bench: Bench, to_judge: Path, chance: random.Random
) -> None:
    with FaultServer() as server:
        assert judge(bench, to_judge, server).code == 0
        expected = table(to_judge)
        (store,) = (to_judge / "store").glob("*.jsonl")
        lines = store.read_bytes().splitlines(keepends=True)
        lines[3] = lines[3][:20] + bytes([lines[3][20] ^ 1]) + lines[3][21:]
        store.write_bytes(b"".join(lines))
        # The run folder has that judgment too, and a run brings its judgments along.
        assert judge(bench, to_judge, server).code == 0
        assert len(server.calls) == TURNS
        for path in (run_of(to_judge) / "judgments").glob("*.jsonl"):
            path.unlink()
        assert judge(bench, to_judge, server).code == 0
        assert len(server.calls) == TURNS + 1
    assert table(to_judge) == expected


def test_judge_on_a_full_disk(bench: Bench, to_judge: Path) -> None:
    """No judgment that was kept is asked again; at most those under way when the disk was full are."""
    with FaultServer() as server, small_disk(to_judge / "store", 2) as disk:
        (disk.path / "filler").write_bytes(b"x" * 4096)
        for blocks in (2, 3, 200):
            disk.mount_again(f"nr_blocks={blocks}")
            before, calls = kept(to_judge), len(server.calls)
            ended = judge(bench, to_judge, server)
            now, made = kept(to_judge), len(server.calls) - calls
            assert before <= now and made <= len(now) - len(before) + 2
            if blocks < 200 and len(now) < TURNS:
                assert ended.code == 1 and "no space left on the disk" in ended.err, ended
                assert "Traceback" not in ended.err, ended.err
        assert ended.code == 0, ended.err
        assert len(kept(to_judge)) == TURNS
        assert max(Counter(server.calls).values()) <= 3


@pytest.mark.campaign
def test_a_run_that_is_locked_elsewhere_can_be_judged_meanwhile(bench: Bench, to_judge: Path) -> None:
    """The judge takes no lock of the run: its store has locks of its own."""
    with FaultServer() as server, RunDirectory(run_of(to_judge)):
        assert judge(bench, to_judge, server).code == 0
        assert len(server.calls) == TURNS
