"""`evalkit.evaluate` and `evalkit.load`, as a program or a notebook calls them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

import evalkit
from evalkit.core.config import Lang
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.words import chosen
from evalkit.records.results import Results, read_results
from tests.leaderboard.conftest import World, world  # noqa: F401

COLUMNS = ["model", "run", "step", "dataset", "metric", "value", "low", "high", "n", "partial"]


def test_importing_it_is_light() -> None:
    program = (
        "import sys, evalkit; print(sorted({'torch', 'pandas', 'hydra', 'omegaconf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert dir(evalkit) == ["__version__", "evaluate", "load", "split_answer"]
    assert Path(evalkit.__file__).with_name("py.typed").exists()


def test_evaluate_in_a_notebook(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)

    async def cell() -> Results:
        options = {"engine": {"batch_size": 2}, "suite.num_few_shots.jamp": 1, "offline": True}
        return evalkit.evaluate("random", ["jamp"], limit=1, data_dir=tmp_path, lang=Lang.ja, **options)

    with pytest.raises(InputError, match="jamp"):
        asyncio.run(cell())
    results = evalkit.evaluate(model="random", suite="sample", limit=1, out=tmp_path, offline=True)
    folder = Path(results.run["folder"])
    assert results.scores == read_results(folder / "results.json").scores
    assert "folder" not in json.loads((folder / "results.json").read_text(encoding="utf-8"))["run"]
    assert chosen() is Lang.en and signal.getsignal(signal.SIGTERM) is handler
    frame = evalkit.load(tmp_path)
    assert list(frame.columns) == COLUMNS and set(frame.run) == {folder.name} and frame.step.isna().all()
    row = frame[(frame.dataset == "jamp") & (frame.metric == "exact_match")].iloc[0]
    figure = results.scores["jamp_exact_match"]
    assert (row.value, (row.low, row.high), row.n) == (figure.value, figure.ci95, 1)


def test_a_bundle_is_used_by_its_call_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by the hub library, which may have been imported before."""
    (tmp_path / "bundle.json").write_text("{}", encoding="utf-8")
    seen: list[tuple[str, str, str]] = []

    def place() -> tuple[str, str, str]:
        return constants.HF_HUB_CACHE, os.environ["HF_HUB_CACHE"], os.environ.get("EVALKIT_CACHE", "")

    def evaluate(*given: object, **options: object) -> None:
        seen.append(place())
        raise InputError("stopped here")

    monkeypatch.setattr("evalkit.runs.run.evaluate", evaluate)
    monkeypatch.setenv("HF_HUB_CACHE", "before")
    monkeypatch.delenv("EVALKIT_CACHE", raising=False)
    before = place()
    with pytest.raises(InputError, match="stopped here"):
        evalkit.evaluate("random", "sample", data_dir=tmp_path)
    hub, cache = str(tmp_path / "hub"), str(tmp_path / "cache")
    assert seen == [(hub, hub, cache)] and place() == before
    assert "EVALKIT_CACHE" not in os.environ


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "randm", "suite": "sample"}, "did you mean 'random'"),
        ({"model": "random", "suite": "sample", "num_fewshot": 3}, "num_few_shots"),
        ({"model": "random", "suite": "sample", "limit": "many"}, "limit=many"),
        ({"model": "random", "suite": "mt-bench-ja"}, "judge"),
        ({"model": "random", "suite": "sample", "watch": "x"}, "command line"),
        ({"model": "/nowhere/m", "suite": "sample"}, "/nowhere/m"),
        ({"model": "~nobody-has-this-name/m", "suite": "sample"}, "nobody on this machine"),
        ({"model": None, "suite": "sample"}, "model"),
    ],
)
def test_mistakes_are_the_errors_of_the_command_line(options: dict[str, object], said: str) -> None:
    with pytest.raises(EvalkitError) as caught:
        evalkit.evaluate(**options, offline=True)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_load_reads_figures_and_samples(world: World) -> None:  # noqa: F811
    frame = evalkit.load(world.results)
    assert set(frame.model) == {"weak", "strong-モデル"}
    results = read_results(world.weak / "results.json")
    weak = frame[frame.model == "weak"].set_index(["dataset", "metric"]).value
    assert weak["AVG", "score"] == results.average["AVG"].value
    assert weak["NLI", "score"] == results.categories["NLI"].value
    assert len(weak) == len(results.scores) + len(results.categories) + 1 and not frame.partial.any()
    samples = evalkit.load(world.weak, samples=True)
    assert list(samples.columns)[:10] == COLUMNS
    jamp = samples[samples.dataset == "jamp"]
    assert len(jamp) == 24 and jamp.value.mean() == weak["jamp", "exact_match"]
    assert {"input", "gold", "prediction", "completion"} <= set(samples) and jamp.gold.notna().all()
    assert samples[samples.metric == "pearson"].value.isna().all()


def test_load_says_what_it_leaves_out(world: World, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "broken" / "samples").mkdir(parents=True)
    with pytest.raises(InputError, match="not finished"):
        evalkit.load(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        evalkit.load(tmp_path / "nowhere")
    (tmp_path / "good").symlink_to(world.weak)
    with pytest.warns(UserWarning, match="broken: not finished"):
        assert set(evalkit.load(str(tmp_path)).model) == {"weak"}
