"""BLEU, 0..100: the reference's own figure (`bleu_*`) and the true sentence BLEU (`sentence_bleu_*`).

llm-jp-eval v1.3.1 passes sacreBLEU two strings where it expects lists of sentences, so that every
character is a segment. The result has a closed form that needs no tokenizer
(docs/protocol/jaster.md, section 1).
"""

import math
from functools import cache
from typing import Any

from evalkit.metrics.metric import MetricUnavailableError


def character_bleu(prediction: str, gold: str) -> float:
    """The reference's bleu_ja and bleu_en (they are the same), 0..100."""
    prediction, gold = prediction.strip(), gold.strip()
    if not prediction or not gold:
        return 0.0
    pairs = list(zip(prediction, gold, strict=False))
    predicted = sum(not p.isspace() for p, _ in pairs)
    expected = sum(not g.isspace() for _, g in pairs)
    hits = sum(p == g and not p.isspace() for p, g in pairs)
    if predicted == 0:
        return 0.0
    brevity = 1.0 if predicted >= expected else math.exp(1 - expected / predicted)
    return 100 * hits / predicted * brevity


def sentence_bleu_ja(prediction: str, gold: str) -> float:
    """sacreBLEU's sentence BLEU with the tokenizer ja-mecab (IPADIC) and effective order, 0..100."""
    return float(_sacrebleu("ja").sentence_score(prediction, [gold]).score)


def sentence_bleu_en(prediction: str, gold: str) -> float:
    """sacreBLEU's sentence BLEU with its default tokenizer 13a and effective order, 0..100."""
    return float(_sacrebleu("en").sentence_score(prediction, [gold]).score)


@cache
def _sacrebleu(language: str) -> Any:
    try:
        from sacrebleu.metrics import BLEU

        return BLEU(trg_lang=language, effective_order=True)
    except (ImportError, RuntimeError) as error:
        raise MetricUnavailableError(
            f"sacreBLEU cannot be used for {language}: {error}",
            fix="pip install sacrebleu mecab-python3 ipadic",
        ) from error
