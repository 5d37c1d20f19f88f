"""Real prepared data: golds, spoiled answers and noise score as by the independent script."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from scipy.stats import sem
from statsmodels.stats.proportion import proportion_confint

from evalkit.__main__ import main
from evalkit.core.durable import read_log
from evalkit.records.results import Results, read_results
from evalkit.scoring.categories import category_members
from evalkit.sources.prepare import PreparedReport
from tests import independent
from tests.metrics.texts import ALPHABET

pytestmark = pytest.mark.sources
AVAILABLE = 19
Spoiler = Callable[[random.Random, str], str]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Sentences one at a time are too small to share: threads would only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gold(rng: random.Random, text: str) -> str:
    return text


def spoiled(rng: random.Random, text: str) -> str:
    """The gold answer with what models do to it: near misses, more lines, more text, other widths."""
    lines = text.split("\n")
    ways: list[str] = [
        text,
        f"{text}\n",
        f" {text}",
        f"{text}\n\n### 入力:\n{text}",
        f"{text}。\n\n",
        f"\n{text}",
        text[: len(text) // 2],
        text + text[::-1],
        "\n".join(lines[::-1] + lines[:1]),
        "\n".join(line for line in lines if rng.random() < 0.6),
        "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
        "".join(rng.sample(text, len(text))),
        " ".join(text.split(" ")[::-1]),
        f"答えは{text}です",
        "",
    ]
    return rng.choice(ways)


def noise(rng: random.Random, text: str) -> str:
    return "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(0, max(2, min(2 * len(text), 80)))))


@pytest.mark.parametrize("spoil", [gold, spoiled, noise])
def test_scores_equal_the_reference_libraries(
    reports: dict[str, PreparedReport],
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Spoiler,
) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    dev = data_dir / "1.3.1" / "evaluation" / "dev"
    # Instructions have checkers in place of metrics, and a test of their own.
    files = {path.stem: path for path in dev.glob("*.json") if path.stem != "mifeval-ja"}
    assert len(files) == AVAILABLE
    completions = {name: _completions(name, path, spoil) for name, path in files.items()}
    results = _evalkit(data_dir, tmp_path, completions)
    for name, path in files.items():
        _compare(results, tmp_path, name, path, completions[name])
    for category, members in category_members().items():
        values = [_counting(results, name) for name in members if name in files]
        if values:
            assert results.categories[category].value == pytest.approx(sum(values) / len(values), abs=1e-12)


def _completions(name: str, path: Path, spoil: Spoiler) -> list[str]:
    rng = random.Random(name)
    return [spoil(rng, row["output"]) for row in independent.samples(path)]


def _evalkit(data_dir: Path, tmp_path: Path, completions: dict[str, list[str]]) -> Results:
    given = tmp_path / "given"
    given.mkdir()
    for name, texts in completions.items():
        lines = [
            json.dumps({"id": f"{name}/dev/{i}", "completion": text}, ensure_ascii=False)
            for i, text in enumerate(texts)
        ]
        (given / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = [f"data_dir={data_dir}", f"completions={given}", f"out={tmp_path / 'out'}", "allow_missing=true"]
    comet = [
        f"metrics.comet.checkpoint={independent.COMET}",
        f"metrics.comet.encoder={independent.COMET}/encoder",
    ]
    assert main(["score", "suite=jaster", *words, *comet, "metrics.comet.device=cpu"]) == 0
    return read_results(tmp_path / "out" / "results.json")


def _compare(results: Results, tmp_path: Path, name: str, path: Path, completions: list[str]) -> None:
    rows = independent.samples(path)
    kept, damaged = read_log(tmp_path / "out" / "scores" / f"{name}.jsonl")
    assert damaged == 0
    for metric in independent.metrics(path):
        value = results.scores[f"{name}_{metric}"]
        assert value.n == len(rows) == min(100, len(kept))
        # COMET's sums depend on the batch in the sixth decimal; all others are the same numbers.
        tolerance = 1e-5 if metric == "comet_wmt22" else 1e-9
        if metric in ("pearson", "spearman"):
            assert value.value == pytest.approx(independent.correlation(metric, rows, completions), abs=1e-12)
            continue
        expected = independent.sample_scores(metric, rows, completions)
        assert [row["values"][metric] for row in kept.values()] == pytest.approx(expected, abs=tolerance), (
            name
        )
        assert value.value == pytest.approx(sum(expected) / len(expected), abs=tolerance)
        if min(expected) < max(expected):
            assert value.stderr == pytest.approx(sem(expected), abs=tolerance)
        elif metric == "exact_match":
            low, high = proportion_confint(sum(expected), len(expected), method="wilson")
            assert value.ci95 == pytest.approx((low, high), abs=1e-9)
        else:
            # Equal scores do not say how far another draw would move their mean.
            assert value.ci95 is None and value.stderr is None
            continue
        assert value.ci95 is not None
        assert value.ci95[0] - 1e-9 <= value.value <= value.ci95[1] + 1e-9


def _counting(results: Results, name: str) -> float:
    metrics = ("comet_wmt22", "exact_match", "char_f1", "set_f1")
    value = next(results.scores[key].value for m in metrics if (key := f"{name}_{m}") in results.scores)
    assert value is not None
    return value
