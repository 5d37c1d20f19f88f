"""ROUGE for Japanese, 0..1: rouge-score's F-measures over fugashi (unidic-lite) words.

For users' own tasks; no dataset of llm-jp-eval v1.3.1 uses it.
"""

from functools import cache
from typing import Any

from evalkit.metrics.metric import MetricUnavailableError


def f_measure(kind: str, prediction: str, gold: str) -> float:
    """rouge-score's F-measure of a kind: `rouge1`, `rouge2`, `rougeL` or `rougeLsum`."""
    return float(_scorer(kind).score(gold, prediction)[kind].fmeasure)


class _Words:
    """rouge-score's tokenizer interface over MeCab's surface forms."""

    def __init__(self, tagger: Any) -> None:
        self._tagger = tagger

    def tokenize(self, text: str) -> list[str]:
        """The words of `text` in order."""
        return [word.surface for word in self._tagger(text)]


@cache
def _scorer(kind: str) -> Any:
    try:
        from fugashi import Tagger
        from rouge_score.rouge_scorer import RougeScorer
        from unidic_lite import DICDIR
    except ImportError as error:
        raise MetricUnavailableError(
            f"ROUGE needs a library that is not installed: {error.name}",
            fix="pip install 'evalkit[rouge]'",
        ) from error
    return RougeScorer([kind], tokenizer=_Words(Tagger(f'-d "{DICDIR}"')))
