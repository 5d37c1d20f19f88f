"""How many workers, with how many CPUs, GPUs and threads; and what a Ray of this machine leaves behind."""

import os
import sys
from pathlib import Path

import pytest

from evalkit.core.config import EngineConfig
from evalkit.core.errors import InputError
from evalkit.engines.ray import cluster
from evalkit.engines.ray.cluster import Node, plan

GB = 1 << 30


def node(cpus: int, gpus: int = 0, memory: int = 512) -> Node:
    return Node(cpus, gpus, memory * GB)


def options(**changes: object) -> EngineConfig:
    return EngineConfig(name="ray", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cpus", "workers", "threads"), [(1, 1, 1), (2, 1, 1), (4, 1, 3), (9, 1, 8), (33, 4, 8), (65, 8, 8)]
)
def test_by_default_one_cpu_stays_free(cpus: int, workers: int, threads: int) -> None:
    made = plan(options(), "cpu", [node(cpus)], GB)
    assert (made.wanted([node(cpus)]), made.threads, made.cpus) == (workers, threads, threads)
    assert workers * threads <= max(1, cpus - 1)


def test_no_more_workers_than_models_fit_into_memory() -> None:
    made = plan(options(), "cpu", [node(65, memory=100)], 40 * GB)
    assert made.wanted([node(65, memory=100)]) == 2
    assert made.wanted([node(65, memory=10)]) == 1, "one is tried anyhow"


def test_a_given_number_shares_the_cpus() -> None:
    made = plan(options(num_workers=3), "cpu", [node(16)], GB)
    assert (made.wanted([node(16)]), made.threads) == (3, 5)
    more = plan(options(num_workers=3), "cpu", [node(2)], GB)
    assert (more.wanted([node(2)]), more.threads) == (3, 1)
    assert 3 * more.cpus <= 2, "Ray finds room for all three"
    assert plan(options(num_workers=2, threads=7), "cpu", [node(64)], GB).threads == 7


def test_every_gpu_gets_a_worker_and_new_machines_more() -> None:
    made = plan(options(), "cuda", [node(64, 8), node(64)], GB)
    assert (made.gpus, made.wanted([node(64, 8), node(64)])) == (1, 8)
    assert made.wanted([node(64, 8), node(64, 4)]) == 12
    assert made.wanted([node(64, 4)]) == 4


def test_large_models_take_several_gpus() -> None:
    made = plan(options(gpus_per_worker=4, device_map="auto"), "cuda", [node(64, 8), node(64, 6)], GB)
    assert (made.gpus, made.wanted([node(64, 8), node(64, 6)])) == (4, 3)


def test_a_cluster_may_grow_to_the_number_of_workers() -> None:
    made = plan(options(num_workers=5, address="auto"), "cuda", [node(64, 1)], GB)
    assert made.wanted([node(64, 1)]) == 5


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({"gpus_per_worker": 2, "device_map": "auto"}, "cuda", "has 2 GPUs"),
        ({}, "cuda", "has 1 GPUs"),
        ({"num_workers": 2}, "cuda", "has 2 GPUs"),
        ({}, "cpu", "has a CPU"),
        ({"num_workers": 2}, "cpu", "has a CPU"),
    ],
)
def test_options_that_cannot_be_met(changes: dict[str, object], device: str, message: str) -> None:
    nodes = [node(0)] if device == "cpu" else [node(8, 1)] if changes else [node(8)]
    with pytest.raises(InputError, match=message):
        plan(options(**changes), device, nodes, GB)


def test_several_gpus_need_a_device_map_before_anything_is_started() -> None:
    with pytest.raises(InputError, match="spread over them"):
        cluster.workers_device(options(gpus_per_worker=2))


def test_a_ray_of_this_machine_leaves_no_settings_and_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    before = dict(os.environ)
    for parent, used in (("/var/tmp", "/var/tmp"), ("/var/tmp" + "/a" * 50, "/tmp")):
        monkeypatch.setattr("tempfile.tempdir", parent)
        folder = Path(cluster._own()["_temp_dir"])
        assert (str(folder.parent), os.environ["RAY_AUTH_MODE"]) == (used, "token")
        cluster.close()
        assert not folder.exists() and dict(os.environ) == before


def test_a_ray_that_cannot_be_imported_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="Ray cannot be used"):
        cluster.connect(options(address="auto"))
