"""SIGTERM while answers are made and while they are judged: 130, kept, continued."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer
from little_bench import Bench, make_bench

from evalkit.__main__ import main
from evalkit.core.durable import read_log
from evalkit.mtbench.folder import MtBenchFolder


@pytest.fixture
def small(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return make_bench(tmp_path, 1)


def answer(bench: Bench, out: Path) -> int:
    where = [f"preset={bench.preset}", f"mirror={bench.mirror}", f"out={out}", "engine.batch_size=2"]
    return main(["model=random", "suite=mt-bench-ja", *where])


def folder_of(out: Path) -> MtBenchFolder:
    (path,) = (out / "random" / "mt-bench-ja").iterdir()
    return MtBenchFolder(path)


def test_answers(small: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit.engines.local import pool

    assert answer(small, tmp_path / "whole") == 0
    expected = {turn.id: turn for turn in folder_of(tmp_path / "whole").turns()}
    passes, forward = 0, pool.forward

    def forward_and_signal(*arguments: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 30:
            os.kill(os.getpid(), signal.SIGUSR1)
        return forward(*arguments, **options)

    monkeypatch.setattr(pool, "forward", forward_and_signal)
    assert answer(small, tmp_path / "cut") == 130
    folder = folder_of(tmp_path / "cut")
    assert not folder.results_path.exists()
    assert answer(small, tmp_path / "cut") == 0
    assert {turn.id: turn for turn in folder.turns()} == expected
    rows, damaged = read_log(folder.samples_path)
    assert (damaged, len(rows)) == (0, len(expected))


def test_judging(small: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.answers(tmp_path / "answers.jsonl", "m")
    out = tmp_path / "run"
    asked = 0

    def signal_at_the_fifth(text: str, attempt: int) -> str:
        nonlocal asked
        asked += 1
        if asked == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return "ok"

    with FaultServer(signal_at_the_fifth) as server:
        command = [
            "judge",
            f"answers={tmp_path / 'answers.jsonl'}",
            f"out={out}",
            f"preset={small.preset}",
            f"mirror={small.mirror}",
            "judge=gpt-4",
            f"judge.base_url={server.url}",
            "judge.concurrency=2",
            "metrics.resamples=50",
        ]
        assert main(command) == 130
        printed = capsys.readouterr()
        assert "stopped by SIGTERM" in printed.err and "Traceback" not in printed.err
        assert not (out / "results.json").exists()
        calls = len(server.calls)
        assert calls < 16
        assert main(command) == 0
        # What was answered before the signal is not paid again; the two calls under way may be.
        assert len(server.calls) <= 16 + 2
