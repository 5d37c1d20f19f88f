"""The Ray engine: the same completions with any number of workers, whatever happens to them.

One cluster of several "machines" on this one serves all tests of the module; the last tests start
Ray as a user's command does.
"""

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.config import Config, Dtype, EngineConfig, ModelConfig, RandomShape
from evalkit.core.errors import EvalkitError, FetchError, InputError, RunLockedError
from evalkit.core.types import Completion, Request, Sampling
from evalkit.engines import engine_family, resolve_dtype
from evalkit.engines.models import resolve
from evalkit.engines.ray.engine import RayEngine, RayWorker, WorkList
from evalkit.engines.ray.worker import Ready, on_this_machine
from tests.engines.models import save_model
from tests.tiny import engine_of

pytest.importorskip("ray", reason="pip install 'evalkit[ray]'")

ROOT = Path(__file__).resolve().parents[3]
RANDOM = ModelConfig(name="random", random=RandomShape(vocab=259, initializer_range=0.3))
WARM = Sampling(do_sample=True, temperature=1.2, top_p=0.9)
REQUESTS = [
    Request(f"r{index}", "shared text " * (index % 3) + "x" * index, 150, (), sampling, seed=index)
    for index, sampling in zip(range(60), itertools.cycle([Sampling(), WARM]), strict=False)
]


def config(name: str, model: ModelConfig = RANDOM, **engine: Any) -> Config:
    return Config(model=model, engine=EngineConfig(name=name, device="cpu", **engine))


def build(config: Config) -> Any:
    assert config.model is not None
    return engine_of(config, resolve(config.model, offline=True))


def by_id(completions: list[Completion]) -> dict[str, Completion]:
    assert len({one.id for one in completions}) == len(completions), "a completion came twice"
    return {one.id: one for one in completions}


class Machines:
    """A cluster whose machines have two CPUs: each of them gets one worker, one CPU stays free."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
        )
        self._joined: list[Any] = []
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")

    def join(self) -> None:
        self._joined.append(self._cluster.add_node(num_cpus=2))

    def leave(self) -> None:
        self._cluster.remove_node(self._joined.pop())

    def stop(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    # Without niceness: Ray's workers give way to everything else, and a busy machine has much else.
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    machines = Machines()
    yield machines
    machines.stop()
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="module")
def engine(machines: Machines) -> Iterator[RayEngine]:
    with build(config("ray")) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected() -> dict[str, Completion]:
    with build(config("local", threads=1)) as engine:
        return by_id(list(engine.generate(REQUESTS)))


def ready(engine: RayEngine) -> list[RayWorker]:
    return [worker for worker in engine._workers if worker.ready]


def wait_for(engine: RayEngine, workers: int) -> None:
    """Lets the engine look around until it has so many workers."""
    end = time.monotonic() + 300
    while len(ready(engine)) != workers:
        assert time.monotonic() < end, f"{len(ready(engine))} workers"
        engine._add_workers()
        list(engine._receive(WorkList(()), 0.2))


def test_one_and_two_workers_give_the_same(
    machines: Machines, engine: RayEngine, expected: dict[str, Completion]
) -> None:
    assert engine.describe()["workers"] == 1
    for workers in (1, 2):
        wait_for(engine, workers)
        assert by_id(list(engine.generate(REQUESTS))) == expected
        if workers < 2:
            machines.join()


def begin(engine: RayEngine) -> tuple[Any, list[Completion]]:
    """A stream of completions after its first one: most of the work is not handed out yet."""
    stream = engine.generate(REQUESTS)
    return stream, [next(stream)]


def test_a_machine_that_joins_while_others_work_gets_work(
    machines: Machines, engine: RayEngine, expected: dict[str, Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    busy: set[int] = set()
    answer = engine._answer
    monkeypatch.setattr(
        engine, "_answer", lambda worker, chunk: (busy.add(worker.number), answer(worker, chunk))
    )
    stream, done = begin(engine)
    machines.join()
    end = time.monotonic() + 200
    while not (new := [worker for worker in engine._workers if not worker.ready]):
        assert time.monotonic() < end
        time.sleep(0.2)
        engine._nodes_seen = 0.0
        engine._add_workers()
    ray.get(new[0].actor.__ray_ready__.remote(), timeout=200)
    done.extend(stream)
    assert by_id(done) == expected
    assert new[0].number in busy
    assert len(ready(engine)) == 3


def test_what_a_killed_worker_had_not_answered_goes_to_another(
    engine: RayEngine, expected: dict[str, Completion]
) -> None:
    stream, done = begin(engine)
    victim = next(worker for worker in ready(engine) if worker.chunk)
    assert victim.ready is not None
    killed = victim.ready.pid
    os.kill(killed, signal.SIGKILL)
    done.extend(stream)
    assert by_id(done) == expected
    wait_for(engine, len(engine._workers))
    assert victim.ready is not None and victim.ready.pid != killed, "Ray restarted it"


def test_a_machine_that_is_lost_only_shrinks_the_pool(
    machines: Machines, engine: RayEngine, expected: dict[str, Completion]
) -> None:
    wait_for(engine, 3)
    stream, done = begin(engine)
    machines.leave()
    done.extend(stream)
    assert by_id(done) == expected


def test_a_request_that_kills_its_workers_is_named_when_all_others_are_done(
    engine: RayEngine, expected: dict[str, Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = engine._answer

    def deadly(worker: RayWorker, chunk: list[Request] | None) -> None:
        answer(worker, chunk)
        if any(request.id == "r7" for request in chunk or []):
            assert worker.ready is not None
            os.kill(worker.ready.pid, signal.SIGKILL)

    monkeypatch.setattr(engine, "_answer", deadly)
    done: list[Completion] = []
    with pytest.raises(EvalkitError, match=r"(?s)every worker that tries .* dies.*r7"):
        done.extend(engine.generate(REQUESTS[:12]))
    assert by_id(done) == {key: expected[key] for key in (f"r{index}" for index in range(12)) if key != "r7"}


def test_an_error_in_a_worker_is_the_same_message_as_without_ray(machines: Machines, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model("llama", tmp_path / "llama")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][7] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    broken = ModelConfig(path=str(folder))
    small = ModelConfig(name="random", random=RandomShape(vocab=100))
    for model, kind in ((broken, EvalkitError), (small, InputError)):
        texts = []
        for options in (config("local", model), config("ray", model, num_workers=1)):
            with pytest.raises(kind) as caught, build(options) as engine:
                list(engine.generate(REQUESTS[:3]))
            texts.append((type(caught.value), str(caught.value), caught.value.fix))
        assert texts[0] == texts[1]


def test_a_worker_that_cannot_load_the_model_is_left_out_when_others_have_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = object.__new__(RayEngine)
    first, second = engine._workers = [RayWorker(1, None), RayWorker(2, None)]
    error = EvalkitError("this machine has other files")
    with pytest.raises(EvalkitError, match="other files"):
        engine._refused(second, error)
    first.ready = Ready("here", 1, "0.1.0", {})
    engine._refused(second, error)
    assert "worker 2 is left out: this machine has other files" in caplog.text
    with pytest.raises(EvalkitError, match="other files"):
        engine._refused(first, error)


def test_when_ray_itself_dies_the_run_ends_and_does_not_wait(
    engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, _ = begin(engine)
    monkeypatch.setattr("evalkit.engines.ray.cluster.nodes", list)
    engine._nodes_seen = 0.0
    with pytest.raises(EvalkitError, match="Ray has died"):
        list(stream)


def test_errors_travel_between_processes() -> None:
    for kind in (EvalkitError, InputError, FetchError, RunLockedError):
        error = kind("what", where=Path("/where"), fix="how")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.what, again.where, again.fix) == (
            (kind, str(error), "what", "/where", "how")
        )


def test_model_files_are_looked_for_on_the_worker_s_machine(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "llama")
    resolved = resolve(ModelConfig(path=str(folder)), offline=True)
    assert on_this_machine(resolved) == resolved
    save_model("llama", folder, seed=1)
    with pytest.raises(EvalkitError, match="has other files of the model"):
        on_this_machine(resolved)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(EvalkitError, match=r"(?s)is not on the machine.*llama.*share"):
        on_this_machine(resolved)


def test_a_tokenizer_is_looked_at_on_the_worker_s_machine_too(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "llama")
    model = ModelConfig(random=RandomShape(), tokenizer=str(folder))
    resolved = resolve(model, offline=True)
    assert on_this_machine(resolved) == resolved
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(EvalkitError, match="has other files of the model"):
        on_this_machine(resolved)


def test_ray_and_local_are_one_family_and_the_workers_device_decides_the_dtype(machines: Machines) -> None:
    assert engine_family("ray") == engine_family("local") == "local"
    anywhere = EngineConfig(name="ray")
    assert resolve_dtype(anywhere, Dtype.auto) == "float32"
    anywhere.device = "cuda"
    assert resolve_dtype(anywhere, Dtype.auto) == "bfloat16"
    assert resolve_dtype(anywhere, Dtype.float16) == "float16"
    anywhere.device = "cuda:1"
    with pytest.raises(InputError, match="Ray decides"):
        resolve_dtype(anywhere, Dtype.auto)


def test_without_ray_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalkit.engines.ray.cluster.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"(?s)Ray is not installed.*evalkit\[ray\]"):
        resolve_dtype(EngineConfig(name="ray"), Dtype.auto)


# --- as a user's command ---------------------------------------------------------------------

TASKS = "suite.tasks=[jamp,mawps,jemhopqa,jsts,jsquad]"


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "evalkit", "model=random", "suite=sample", TASKS, f"out={out}", *more]


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def records(out: Path) -> dict[str, dict[str, Any]]:
    """Every record by its file and id; the file's path holds the run id."""
    found = {}
    for path in out.glob("random/sample/*/samples/*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            key = f"{path.relative_to(out)} {row['id']}"
            assert key not in found, "a record twice"
            found[key] = row
    return found


def run_of(out: Path, name: str) -> Any:
    (path,) = out.glob(f"random/sample/*/{name}")
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_command_stopped_and_continued_has_the_run_id_and_records_of_local(tmp_path: Path) -> None:
    local, ray = tmp_path / "local", tmp_path / "ray"
    options = {"cwd": tmp_path, "env": environment(), "text": True}
    assert main([*command(local, "engine.threads=1", "offline=true")[3:]]) == 0
    words = command(ray, "engine=ray", "engine.num_workers=2")
    # Another number of workers is the same run.
    first = subprocess.Popen([*words, "engine.num_workers=1"], stdout=-1, stderr=-1, **options)
    end = time.monotonic() + 300
    while not records(ray) and first.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 130 and "stopped by SIGTERM" in said and "Traceback" not in said, said
    kept = len(records(ray))
    assert 0 < kept < 30
    done = subprocess.run(words, check=False, capture_output=True, **options)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert f"continuing: {kept} of 30" in done.stderr
    assert records(ray) == records(local) and len(records(ray)) == 30
    assert run_of(ray, "results.json")["scores"] == run_of(local, "results.json")["scores"]
    engine = run_of(ray, "environment.json")["engine"]
    assert (engine["engine"], engine["workers"], engine["nodes"], engine["dtype"]) == ("ray", 2, 1, "float32")
