"""SIGTERM and SIGUSR1 in every phase of a run: exit code 130, nothing half-written, and it goes on."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.durable import read_log
from evalkit.core.errors import EvalkitError, InterruptedRunError
from evalkit.core.signals import signals_stop_the_run, stop_if_signalled, stop_with_the_parent

COMMAND = ["model=random", "suite=sample", "suite.tasks=[jamp,mawps]", "engine.threads=1", "offline=true"]


def records(out: Path) -> dict[str, Any]:
    found = {}
    for path in out.glob("random/sample/*/samples/*.jsonl"):
        rows, damaged = read_log(path)
        assert (damaged, path.read_bytes().count(b"\n")) == (0, len(rows))
        found[path.stem] = rows
    return found


def scores(out: Path) -> Any:
    (path,) = out.glob("random/sample/*/results.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    return {key: content[key] for key in ("scores", "categories", "average", "datasets", "partial")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert main([*COMMAND, f"out={out}"]) == 0
    return out


def signalled(function: Callable[..., Any], number: int, call: int = 1) -> Callable[..., Any]:
    """`function`, which at its `call`-th call is interrupted by a signal to this process."""
    calls = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    return wrapped


# Where the signal comes: a function that the phase calls, and at which of its calls.
PHASES = {
    "reading the data": ("evalkit.runs.run", "load_suite", 1),
    "finding the model": ("evalkit.engines", "identify", 1),
    "loading the model": ("evalkit.engines.local.tokenizer", "load_tokenizer", 1),
    "trying the attention": ("evalkit.engines.local.probe", "_record", 1),
    "a pass of the model": ("evalkit.engines.local.pool", "forward", 7),
    "scoring": ("evalkit.runs.run", "score_tasks", 1),
    "writing scores": ("evalkit.scoring.write", "write_lines_atomic", 2),
    "writing results.json": ("evalkit.scoring.write", "write_checked_json", 1),
}


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase(
    phase: str, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module_name, name, call = PHASES[phase]
    module = __import__(module_name, fromlist=[name])
    number = signal.SIGUSR1 if len(phase) % 2 else signal.SIGTERM
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, signalled(getattr(module, name), number, call))
        assert main([*COMMAND, f"out={tmp_path}"]) == 130
    printed = capsys.readouterr()
    assert f"stopped by {signal.Signals(number).name}" in printed.err and "Traceback" not in printed.err
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("results.json"))
    assert main([*COMMAND, f"out={tmp_path}"]) == 0
    assert records(tmp_path) == records(undisturbed)
    assert scores(tmp_path) == scores(undisturbed)
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {path.name for path in undisturbed.rglob("*") if path.is_file()}


def test_a_signal_whose_exception_python_forgets_still_stops_the_run(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalkit.engines.local import pool

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    passes = 0
    forward = pool.forward

    def with_a_finalizer(*arguments: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 5:
            Finalized()
            gc.collect()
        return forward(*arguments, **options)

    monkeypatch.setattr(pool, "forward", with_a_finalizer)
    # What Python prints about the exception it forgets would fail the test.
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: None)
    assert main([*COMMAND, f"out={tmp_path}"]) == 130
    assert passes >= 5 and not list(tmp_path.rglob("results.json"))
    assert main([*COMMAND, f"out={tmp_path}"]) == 0
    assert records(tmp_path) == records(undisturbed)


def test_a_signal_is_no_failure_to_code_that_tries_something() -> None:
    assert not issubclass(InterruptedRunError, Exception) and not issubclass(
        InterruptedRunError, EvalkitError
    )
    with pytest.raises(InterruptedRunError, match="SIGUSR1"), signals_stop_the_run():
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        except Exception:
            pytest.fail("swallowed")


def test_handlers_are_put_back_also_when_nested() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_stop_the_run():
        with signals_stop_the_run():
            pass
        with pytest.raises(InterruptedRunError):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(InterruptedRunError):
            stop_if_signalled()
    assert signal.getsignal(signal.SIGTERM) is before
    stop_if_signalled()


def test_before_the_exception_something_can_be_done_also_at_ctrl_c() -> None:
    done: list[str] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(InterruptedRunError), signals_stop_the_run(first=lambda: done.append("stopped")):
            os.kill(os.getpid(), number)
    assert done == ["stopped", "stopped"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread_nothing_changes() -> None:
    entered: list[bool] = []

    def body() -> None:
        with signals_stop_the_run():
            entered.append(True)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert entered == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process that its parent is dead")
def test_a_process_ends_with_the_one_that_started_it() -> None:
    child = (
        "import os, time; from evalkit.core.signals import stop_with_the_parent; "
        "stop_with_the_parent(os.getppid()); print('up', flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        process.kill()
        # The pipe is closed when the child, which holds it too, is gone.
        assert process.stdout.read() == ""


def test_a_parent_may_be_dead_before_its_process_can_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(prctl=lambda option, number: 0)
    monkeypatch.setattr("evalkit.core.signals.ctypes.CDLL", lambda name: library)
    stop_with_the_parent(os.getppid())
    with pytest.raises(InterruptedRunError), signals_stop_the_run():
        stop_with_the_parent(os.getppid() + 1)
        stop_if_signalled()
