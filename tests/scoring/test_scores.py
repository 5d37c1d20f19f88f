from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from scipy.stats import sem
from statsmodels.stats.proportion import proportion_confint

from evalkit import metrics as registry
from evalkit.core.config import MetricsConfig, ProtocolConfig, ReasoningConfig
from evalkit.core.errors import InputError
from evalkit.core.types import Sample
from evalkit.metrics.correlation import resampled_spearman
from evalkit.metrics.metric import MetricUnavailableError, ModelMetric, Triple
from evalkit.metrics.repeats import repeat_ids
from evalkit.records.run_folder import SampleRecord
from evalkit.runs.regrading import Regrading
from evalkit.scoring.scores import GivenAnswer, TaskAnswers, TaskScores, score_tasks, well_formed
from evalkit.tasks.spec import AnswerKind, AnswerSpec, load_spec
from evalkit.tasks.thoughts import Thoughts
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


def test_no_answer_behind_a_thought_is_wrong_also_where_nothing_is_right() -> None:
    spec, samples = load_spec("jemhopqa"), [Sample("jemhopqa/dev/0", "問い", "")]
    record = SampleRecord(id=samples[0].id, completion="<think>まだ", finish_reason="length")
    for rule, right, told in (
        ("think", 0.0, "count as wrong"),
        ("flexeval", 1.0, "the rule flexeval"),
    ):
        regrading = Regrading(Thoughts.named(ReasoningConfig(), rule))
        given = TaskAnswers(spec, samples, {record.id: regrading.answer(record, spec)})
        found = score_tasks([given], ProtocolConfig(), MetricsConfig(resamples=100), offline=True)
        assert {one.value.value for one in found[0].measured.values()} == {right}
        assert told in "".join(regrading.warnings(found))


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


# --- instructions -----------------------------------------------------------------------------------


def followed(answers: Sequence[GivenAnswer], repeats: int = 1, **protocol: Any) -> TaskScores:
    """The scores of answers to a prompt with two instructions (no 、, no digit) and one with one."""
    golds = [
        '{"instruction_id_list":["ja:punctuation:no_comma","ja:letters:kansuuji"],"kwargs":[{},{}]}',
        '{"instruction_id_list":["ja:letters:no_hiragana"],"kwargs":[{}]}',
    ]
    samples = [Sample(f"mifeval-ja/dev/{i}", "書け", gold) for i, gold in enumerate(golds)]
    keys = [key for sample in samples for key in repeat_ids(sample.id, repeats)]
    given = TaskAnswers(load_spec("mifeval-ja"), samples, dict(zip(keys, answers, strict=True)), repeats)
    config = ProtocolConfig(**protocol)
    return score_tasks([given], config, MetricsConfig(resamples=100), offline=True)[0]


def test_instructions_count_alike_and_the_whole_answer_is_checked() -> None:
    # The digit behind the blank line breaks the second instruction; hiragana is in the last line only.
    result = followed([GivenAnswer("漢字\n\n①1", "length"), GivenAnswer("漢字\nかな", "stop")])
    values = {name: measured.value.value for name, measured in result.measured.items()}
    assert values == {
        "instruction_strict": 1 / 3,
        "prompt_strict": 0.0,
        "instruction_loose": 3 / 3,
        "prompt_loose": 1.0,
    }
    first, second = result.scores
    # Neither cut nor NFKC, which would make 1 of ①.
    assert first.prediction == "漢字\n\n①1"
    assert (first.values["instruction_strict"], second.values["instruction_strict"]) == (0.5, 0.0)
    assert [verdict["strict"] for verdict in first.verdicts] == [True, False]
    assert first.verdicts[1]["removed"] == second.verdicts[0]["removed"] == "the last line"
    assert result.rates.truncated == 0.5 and result.rates.out_of_format is None
    rates = result.rates.instructions
    assert rates is not None and rates.unsatisfiable == {}
    assert rates.ceiling == dict.fromkeys(values, 1.0)
    assert rates.groups["letters"] == {"strict": 0, "loose": 2, "n": 2}


def test_an_answer_that_failed_follows_nothing() -> None:
    result = followed([GivenAnswer("", "error"), GivenAnswer("漢字", "stop")])
    assert [v["reason"] for v in result.scores[0].verdicts] == ["there is no answer"] * 2
    assert result.measured["instruction_strict"].value.value == 1 / 3
    assert result.measured["prompt_strict"].value.value == 0.5


def test_instructions_over_several_answers() -> None:
    texts = ["漢字", "1、", "漢字", "かな"]
    result = followed([GivenAnswer(text, "stop") for text in texts], repeats=2)
    values = {name: measured.value.value for name, measured in result.measured.items()}
    assert values["instruction_strict_avg@2"] == 3 / 6
    assert (values["prompt_strict_avg@2"], values["prompt_strict_pass@2"]) == (0.5, 1.0)
    assert "instruction_strict_pass@2" not in values
    rates = result.rates.instructions
    assert rates is not None and rates.kinds["ja:letters:kansuuji"] == {"strict": 1, "loose": 1, "n": 2}
