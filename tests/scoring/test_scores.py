from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from scipy.stats import sem
from statsmodels.stats.proportion import proportion_confint

from evalkit import metrics as registry
from evalkit.core.config import Config, MetricsConfig, ProtocolConfig
from evalkit.core.errors import InputError
from evalkit.core.types import Completion, Sample
from evalkit.metrics.base import MetricUnavailableError, ModelMetric, Triple
from evalkit.metrics.correlation import resampled_spearman
from evalkit.scoring.scores import GivenAnswer, TaskAnswers, TaskScores, score_tasks, well_formed
from evalkit.tasks.spec import AnswerKind, AnswerSpec, load_spec
from tests.scored import answers, score


def scored(name: str, given: Sequence[tuple[str, str, str | None]], **protocol: Any) -> TaskScores:
    """The scores of (gold, completion, finish reason) triples."""
    samples = [Sample(f"{name}/dev/{i}", "入力", gold) for i, (gold, _, _) in enumerate(given)]
    completions = {
        s.id: GivenAnswer(text, reason) for s, (_, text, reason) in zip(samples, given, strict=True)
    }
    config = ProtocolConfig(**protocol)
    given_answers = TaskAnswers(load_spec(name), samples, completions)
    return score_tasks([given_answers], config, MetricsConfig(resamples=100), offline=True)[0]


def test_a_dataset_by_hand() -> None:
    result = scored(
        "jamp",
        [
            ("entailment", "entailment", "stop"),
            ("neutral", "ｎｅｕｔｒａｌ\n\n### 入力:", "stop_string"),
            ("neutral", "neutral\n", "stop"),
            ("contradiction", "", "stop"),
        ],
    )
    measured = result.measured["exact_match"].value
    assert [s.values["exact_match"] for s in result.scores] == [1.0, 1.0, 0.0, 0.0]
    assert [s.prediction for s in result.scores] == ["entailment", "neutral", "neutral\n", ""]
    assert (measured.value, measured.n) == (0.5, 4)
    assert measured.stderr == pytest.approx(sem([1, 1, 0, 0]))
    assert (result.rates.empty, result.rates.out_of_format, result.rates.truncated) == (0.25, 0.5, None)


def test_strip_is_an_option() -> None:
    given = [("neutral", " neutral\n", "stop")]
    assert scored("jamp", given).measured["exact_match"].value.value == 0.0
    assert scored("jamp", given, strip=True).measured["exact_match"].value.value == 1.0


def test_truncated_answers_are_those_that_neither_eos_nor_a_blank_line_ended() -> None:
    given = [
        ("答え", "長い答え", "length"),
        ("答え", "答え\n\nまだ続く", "length"),
        ("答え", "答え", "stop"),
        ("答え", "答え", "error"),
    ]
    assert scored("jemhopqa", given).rates.truncated == 0.25
    unknown = [("答え", "長い答え", None), ("答え", "答え", "stop")]
    assert scored("jemhopqa", unknown).rates.truncated is None
    # Three tokens or fewer: the limit ends nearly every answer and says nothing.
    assert scored("jsts", [("1.0", "3.0", "length")] * 2).rates.truncated is None


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        *((text, True) for text in ("12", " 12\n", "-1.5", "+2", ".5", "3.")),
        *((text, False) for text in ("1,000", "12個", "", "1e5", "nan", "1.2.3", "٣")),
    ],
)
def test_numbers_are_well_formed(text: str, fine: bool) -> None:
    assert well_formed(text, AnswerSpec(AnswerKind.number)) is fine


def test_labels_are_a_closed_set_and_texts_are_free() -> None:
    spec = AnswerSpec(AnswerKind.label, ["A", "Ｂ"])
    assert [well_formed(t, spec) for t in ("A", "B", "Ｂ", "a", "A\n")] == [True, True, False, False, False]
    assert scored("jemhopqa", [("東京", "", "stop")]).rates.out_of_format is None


def test_a_missing_model_takes_nothing_else_along(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = answers(["alt-e-to-j", "jamp"])
    monkeypatch.setitem(registry.METRICS, "comet_wmt22", _metric(None))
    first, second = score(tasks)
    assert set(first.measured) == {"bleu_ja", "sentence_bleu_ja"}
    (missing,) = first.missing
    assert (missing.dataset, missing.metric, missing.command) == ("alt-e-to-j", "comet_wmt22", "fetch it")
    assert second.missing == () and set(second.measured) == {"exact_match"}


class LengthRatio:
    """A metric model that is quick: len(mt) / len(ref); remembers how it was called."""

    version = "1 (model x)"

    def __init__(self) -> None:
        self.calls: list[list[Triple]] = []

    def score(self, triples: Sequence[Triple]) -> list[float]:
        self.calls.append(list(triples))
        return [len(t["mt"]) / len(t["ref"]) for t in triples]


def _metric(scorer: LengthRatio | None) -> ModelMetric:
    def open_it(config: MetricsConfig, offline: bool) -> LengthRatio:
        if scorer is None:
            raise MetricUnavailableError("it is not here", fix="fetch it")
        return scorer

    return ModelMetric("comet_wmt22", fetch=open_it, open=open_it)


def test_a_metric_model_sees_all_datasets_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = LengthRatio()
    monkeypatch.setitem(registry.METRICS, "comet_wmt22", _metric(scorer))
    tasks = answers(["alt-e-to-j", "jamp", "alt-j-to-e"], n=5)
    spoiled = tasks[2].samples[0]
    tasks[2] = replace(tasks[2], completions={**tasks[2].completions, spoiled.id: GivenAnswer("ｘ\n\nrest")})
    first, _, third = score(tasks)
    (call,) = scorer.calls
    assert len(call) == 10
    # Source as it is, prediction cut and normalised.
    assert call[5] == {"src": spoiled.input, "mt": "x", "ref": spoiled.gold}
    assert third.scores[0].values["comet_wmt22"] == 1 / len(spoiled.gold)
    assert third.metric_versions["comet_wmt22"] == "1 (model x)"
    assert first.measured["comet_wmt22"].value.n == 5


def test_correlations_have_no_sample_scores() -> None:
    given = [(str(i), f"{i + i % 3}", "stop") for i in range(10)]
    result = scored("jsts", given)
    assert all(s.values == {"pearson": None, "spearman": None} for s in result.scores)
    value = result.measured["spearman"].value
    assert value.ci95 is not None and value.ci95[0] <= value.value <= value.ci95[1] + 1e-12
    predicted, golds = [float(i + i % 3) for i in range(10)], [float(i) for i in range(10)]
    assert value.stderr == pytest.approx(resampled_spearman(predicted, golds, 100).std(ddof=1))


@pytest.mark.parametrize("n", [1, 4, 5, 30])
def test_no_interval_has_zero_width(n: int) -> None:
    """Always wrong, and always right: scores of 0 and 1 have Wilson's interval, the others none."""
    for completion, rate in (("ちがう", 0.0), ("7", 1.0)):
        given = [("7", completion, "stop")] * n
        exact = scored("mawps", given).measured["exact_match"]
        assert exact.value.ci95 == pytest.approx(proportion_confint(rate * n, n, method="wilson"))
        assert exact.value.stderr is not None and exact.value.stderr > 0
        for dataset, metric in (("chabsa", "set_f1"), ("jemhopqa", "char_f1"), ("jsts", "pearson")):
            other = scored(dataset, given).measured[metric].value
            assert (other.ci95, other.stderr) == (None, None), dataset


def test_engine_completions_serve_as_they_are() -> None:
    task = answers(["jamp"], n=2)[0]
    made = {
        key: Completion(key, answer.text, answer.text, "stop", 10, 3)
        for key, answer in task.completions.items()
    }
    config = Config()
    assert score_tasks([replace(task, completions=made)], config.protocol, config.metrics, offline=True) == (
        score([task], resamples=10_000)
    )


def test_what_cannot_be_scored_is_named() -> None:
    task = answers(["jsts"], n=3)[0]
    lacking = dict(list(task.completions.items())[:2])
    with pytest.raises(InputError, match="jsts/dev/2 has no completion"):
        score([replace(task, completions=lacking)])
    with pytest.raises(InputError, match="no sample"):
        score([TaskAnswers(task.spec, [], {})])
    odd = [replace(task.samples[0], gold="高い"), *task.samples[1:]]
    with pytest.raises(InputError, match="jsts/dev/0"):
        score([replace(task, samples=odd)])
