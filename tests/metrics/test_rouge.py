import pytest
from fugashi import Tagger
from hypothesis import given, settings
from rouge_score import rouge_scorer, scoring

from evalkit.metrics import rouge
from tests.metrics.texts import pairs

TAGGER = Tagger()
KINDS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


class Words:
    def tokenize(self, text: str) -> list[str]:
        return [word.surface for word in TAGGER(text)]


SCORER = rouge_scorer.RougeScorer(KINDS, tokenizer=Words())


@settings(max_examples=100, deadline=None)
@given(pairs)
def test_rouge_is_rouge_scores_over_unidic_words(pair: tuple[str, str]) -> None:
    expected: dict[str, scoring.Score] = SCORER.score(pair[1], pair[0])
    assert {kind: rouge.f_measure(kind, *pair) for kind in KINDS} == {
        kind: expected[kind].fmeasure for kind in KINDS
    }


def test_rouge_by_hand() -> None:
    # 猫|が|好き against 犬|が|好き: two of three words, one of two pairs.
    assert rouge.f_measure("rouge1", "猫が好き", "犬が好き") == pytest.approx(2 / 3)
    assert rouge.f_measure("rouge2", "猫が好き", "犬が好き") == pytest.approx(1 / 2)
    assert rouge.f_measure("rougeL", "猫が好き", "犬が好き") == pytest.approx(2 / 3)
