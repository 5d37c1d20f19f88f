"""The Ray engine: the same completions with any number of workers, whatever happens to them.

One cluster of several "machines" on this one serves all tests of the module; one command starts a Ray
of its own. The tests before the engine's have the CPUs for themselves.
"""

import itertools
import json
import logging
import os
import pickle
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from evalkit import __version__
from evalkit.__main__ import main
from evalkit.core.config import BosRule, Config, Dtype, EngineConfig, ModelConfig, RandomShape
from evalkit.core.errors import EvalkitError, FetchError, InputError, RunLockedError
from evalkit.core.types import Completion, Request, Sampling
from evalkit.engines import engine_family, resolve_dtype
from evalkit.engines.models import resolve
from evalkit.engines.ray import cluster
from evalkit.engines.ray.cluster import Node, WorkerPlan
from evalkit.engines.ray.engine import RayEngine, RayWorker, WorkList, _cause
from evalkit.engines.ray.worker import Ready, Worker, on_this_machine
from tests.children import fork
from tests.engines.models import save_model
from tests.tiny import engine_of

# Not imported yet: all processes of a test session read this file.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="pip install 'evalkit[ray]'")

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

        # No process that nothing here asks: each imports Ray.
        without = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **without})
        self._joined: list[Any] = []
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")

    def join(self) -> None:
        self._joined.append(self._cluster.add_node(num_cpus=2))

    def leave(self) -> None:
        self._cluster.remove_node(self._joined.pop(), allow_graceful=False)

    def stop(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    # Without niceness: Ray's workers give way to everything else, and a busy machine has much else.
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT)}
    # Nor processes that wait for tasks: each worker has one of its own.
    settings |= {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}
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


@pytest.fixture
def own_logger() -> Iterator[None]:
    """Takes back what a worker changes in its process."""
    logger = logging.getLogger("evalkit")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.level, logger.handlers = level, handlers


@pytest.fixture(scope="module")
def expected() -> dict[str, Completion]:
    with build(config("local", threads=1)) as engine:
        return by_id(list(engine.generate(REQUESTS)))


TASKS = "suite.tasks=[jamp,mawps,jemhopqa,jsts,jsquad]"


def command(out: Path, *more: str) -> list[str]:
    return ["model=random", "suite=sample", TASKS, f"out={out}", *more]


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


def test_a_command_stopped_and_continued_has_the_run_id_and_records_of_local(
    tmp_path: Path, machines: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    local, ray = tmp_path / "local", tmp_path / "ray"
    # Another number of workers, and a Ray of the command's own, is the same run.
    first = fork(command(ray, "engine=ray", "engine.num_workers=1"), tmp_path)
    end = time.monotonic() + 300
    while not records(ray) and first.running and time.monotonic() < end:
        time.sleep(0.01)
    first.send(signal.SIGTERM)
    ended = first.wait()
    assert ended.code == 130 and "stopped by SIGTERM" in ended.err and "Traceback" not in ended.err, ended
    kept = len(records(ray))
    assert 0 < kept < 30
    assert main(command(local, "engine.threads=1", "offline=true")) == 0
    assert main(command(ray, "engine=ray", "engine.num_workers=2", "offline=true")) == 0
    assert f"continuing: {kept} of 30" in capsys.readouterr().err
    assert records(ray) == records(local) and len(records(ray)) == 30
    assert run_of(ray, "results.json")["scores"] == run_of(local, "results.json")["scores"]
    engine = run_of(ray, "environment.json")["engine"]
    assert (engine["engine"], engine["workers"], engine["nodes"], engine["dtype"]) == ("ray", 2, 1, "float32")


def test_an_error_in_a_worker_is_the_same_message_as_without_ray(machines: Machines, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model("llama", tmp_path / "llama")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][7] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    texts = []
    for options in ({"name": "local"}, {"name": "ray", "num_workers": 1}):
        engine = config(model=ModelConfig(path=str(folder)), **options)
        with pytest.raises(EvalkitError) as caught, build(engine) as built:
            list(built.generate(REQUESTS[:3]))
        texts.append((type(caught.value), str(caught.value), caught.value.fix))
    assert texts[0] == texts[1]


def ready(engine: RayEngine) -> list[RayWorker]:
    return [worker for worker in engine._workers if worker.ready]


def wait_for(engine: RayEngine, workers: int) -> None:
    """Lets the engine look around until it has so many workers."""
    end = time.monotonic() + 300
    while len(ready(engine)) != workers:
        assert time.monotonic() < end, f"{len(ready(engine))} workers"
        engine._add_workers()
        list(engine._receive(WorkList(())))


def begin(engine: RayEngine) -> tuple[Any, list[Completion]]:
    """A stream of completions after its first one: most of the work is not handed out yet."""
    stream = engine.generate(REQUESTS)
    return stream, [next(stream)]


def test_a_machine_that_joins_gets_work_and_the_completions_are_those_of_local(
    machines: Machines, engine: RayEngine, expected: dict[str, Completion]
) -> None:
    assert (engine.describe()["workers"], engine.describe()["nodes"]) == (1, 1)
    stream, done = begin(engine)
    machines.join()
    end = time.monotonic() + 200
    while len(engine._workers) < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
        engine._nodes_seen = 0.0
        engine._add_workers()
    second = engine._workers[1]
    # The first one waits too: nobody takes its completions.
    assert wait([call for call, worker in engine._calls.items() if worker is second], timeout=200).done
    busy = set()
    for one in stream:
        done.append(one)
        busy |= {worker.number for worker in engine._workers if worker.left}
    assert by_id(done) == expected and busy == {1, 2}


def test_what_a_killed_worker_had_not_answered_goes_to_another(
    engine: RayEngine, expected: dict[str, Completion]
) -> None:
    stream, done = begin(engine)
    victim = next(worker for worker in ready(engine) if worker.left)
    assert victim.ready is not None
    killed = victim.ready.pid
    os.kill(killed, signal.SIGKILL)
    done.extend(stream)
    assert by_id(done) == expected
    wait_for(engine, 2)
    assert victim.ready is not None and victim.ready.pid != killed, "it has another process"


def test_a_closed_stream_leaves_nothing_behind(engine: RayEngine, expected: dict[str, Completion]) -> None:
    begin(engine)[0].close()
    few = REQUESTS[:4]
    assert by_id(list(engine.generate(few))) == {one.id: expected[one.id] for one in few}


def test_a_machine_that_is_lost_only_shrinks_the_pool(
    machines: Machines, engine: RayEngine, expected: dict[str, Completion]
) -> None:
    stream, done = begin(engine)
    machines.leave()
    done.extend(stream)
    assert by_id(done) == expected


def test_when_ray_itself_dies_the_run_ends_and_does_not_wait(
    engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, _ = begin(engine)
    monkeypatch.setattr("ray.nodes", list)
    engine._nodes_seen = 0.0
    with pytest.raises(EvalkitError, match="Ray has died"):
        list(stream)


def test_a_request_that_kills_its_workers_is_named_when_all_others_are_done(
    engine: RayEngine, expected: dict[str, Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    killed = Mock(wraps=ray.kill)
    monkeypatch.setattr("ray.kill", killed)
    call = engine._call

    def deadly(worker: RayWorker, reference: Any) -> None:
        # An exception that evalkit does not know: the process lives, nobody knows in which state.
        call(worker, worker.actor.answer.remote(7) if "r7" in worker.left else reference)

    monkeypatch.setattr(engine, "_call", deadly)
    # One death is enough, since each costs the start of a process; the requests come one by one.
    monkeypatch.setattr("evalkit.engines.ray.engine._DEATHS_OF_A_REQUEST", 1)
    monkeypatch.setattr("evalkit.engines.ray.engine._SMALLEST_CHUNK", 1)
    done: list[Completion] = []
    with pytest.raises(EvalkitError, match=r"(?s)every worker that tries .* dies.*not iterable.*r7"):
        done.extend(engine.generate(REQUESTS[7:9]))
    assert by_id(done) == {"r8": expected["r8"]}
    assert killed.call_count == 1


def worker_of(model: ModelConfig, version: str = __version__) -> Worker:
    settings = {
        "options": EngineConfig(device="cpu"),
        "dtype": Dtype.auto,
        "bos": BosRule.auto,
        "follow_generation_config": False,
    }
    found = resolve(model, offline=True)
    return Worker(version=version, workers_here=1, resolved=found, settings=settings)


def test_an_error_of_the_load_is_the_same_message_too(own_logger: None) -> None:
    small = ModelConfig(name="random", random=RandomShape(vocab=100))
    with pytest.raises(InputError) as caught:
        build(config("local", small))
    error = worker_of(small).load().error
    assert (type(error), str(error)) == (InputError, str(caught.value))
    other = worker_of(RANDOM, "0.0.1").load().error
    assert other is not None and "the first 0.0.1" in str(other)


def test_a_worker_that_cannot_load_the_model_is_left_out_when_others_have_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = without_ray(2)
    first, second = engine._workers
    error = EvalkitError("this machine has other files")
    with pytest.raises(EvalkitError, match="other files"):
        engine._refused(second, error)
    engine._first = first.ready = Ready("here", 1, {})
    engine._refused(second, error)
    assert "worker 2 is left out: this machine has other files" in caplog.text
    with pytest.raises(EvalkitError, match="other files"):
        engine._refused(first, error)


def without_ray(workers: int) -> RayEngine:
    engine = object.__new__(RayEngine)
    engine._workers = [RayWorker(number + 1) for number in range(workers)]
    engine._calls, engine._plan = {}, WorkerPlan(0, 1, None, None, 1)
    engine._nodes_seen = engine._ready_seen = float("-inf")
    return engine


def test_a_worker_is_given_up_after_deaths_in_a_row(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray.exceptions import ActorDiedError, RayTaskError

    engine, work, here = without_ray(2), WorkList(()), Ready("here", 1, {})
    first, second = engine._workers
    monkeypatch.setattr(engine, "_load", lambda worker: engine._calls.setdefault(Future(), worker))
    monkeypatch.setattr("ray.kill", lambda actor: None)
    engine._first = here
    # Each request that kills is given up after three deaths: they do not add up.
    many = WorkList([])
    for request in REQUESTS[:20]:
        for _ in range(3):
            first.ready, first.left = here, {request.id: request}
            engine._died(first, ActorDiedError(), many)
    assert len(many.given_up) == 20 and first.deaths == 1
    engine._calls = {}
    engine._load(second)
    for _ in range(9):
        first.ready = here
        engine._died(first, ActorDiedError(), work)
    assert "worker 1 is left out: a worker died 10 times in a row" in caplog.text, "the second still loads"
    for _ in range(3):
        engine._died(second, ActorDiedError(), work)
    engine._calls = {}
    with pytest.raises(EvalkitError, match="a worker cannot start: The actor died"):
        engine._died(second, ActorDiedError(), work)
    with pytest.raises(EvalkitError, match="a worker cannot start: no such file"):
        engine._died(RayWorker(3), RayTaskError("load", "", ValueError("no such file"), "", 1, "here"), work)


def test_the_reason_of_a_death() -> None:
    from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

    raised = RayTaskError("answer", "a\ntraceback", ValueError("not this\nmodel"), "", 1, "here")
    assert _cause(raised) == _cause(raised.as_instanceof_cause()) == "not this model"
    assert _cause(OutOfMemoryError("The task was killed: memory is low\nPID MEM\n1 2")).endswith("is low")
    assert _cause(ActorDiedError()) == "The actor died unexpectedly before finishing this task."


def test_when_nobody_is_ready_for_long_there_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = without_ray(1)
    for _ in range(2):
        list(engine._receive(WorkList(())))
    assert caplog.text.count("the cluster has no free GPUs for a worker (ray status") == 1
    # All machines with GPUs have left: their workers wait for others.
    monkeypatch.setattr("evalkit.engines.ray.cluster.nodes", lambda: [Node(8, 0, 1)])
    engine._add_workers()
    assert (engine._wanted, len(engine._workers)) == (1, 1)


def test_a_ray_that_starts_too_slowly_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = [TimeoutError("Timed out after 30 seconds while waiting for node to startup."), None]
    monkeypatch.setattr("ray.init", Mock(side_effect=outcomes))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(cluster, "_connected", lambda: False)
    cluster.connect(EngineConfig(name="ray", address="auto"))
    cluster.close()
    assert caplog.text.count("it is tried again") == 1


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
    with pytest.raises(EvalkitError, match="does not have the model"):
        on_this_machine(resolved)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(EvalkitError, match=r"(?s)does not have the model.*llama.*share"):
        on_this_machine(resolved)


def test_a_tokenizer_is_looked_at_on_the_worker_s_machine_too(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "llama")
    model = ModelConfig(random=RandomShape(), tokenizer=str(folder))
    resolved = resolve(model, offline=True)
    assert on_this_machine(resolved) == resolved
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(EvalkitError, match="does not have the model"):
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
