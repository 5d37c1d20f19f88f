"""export=llm-jp-eval: the scores under llm-jp-eval's own keys, with its four decimals.

    {"scores": {"AVG": 0.3767, "NLI": 0.308, ..., "jamp_exact_match": 0.35, ...},
     "outputs": {"jamp": [{"input": ..., "pred": ..., "gold": ...}, ...], ...}}

Categories and an average that are not complete, and evalkit's own additions (sentence_bleu_*), are
left out.
"""

from collections.abc import Sequence
from typing import Any

from evalkit.metrics.prediction import gold
from evalkit.records.results import Results
from evalkit.scoring.scores import TaskScores

FILE_NAME = "llm-jp-eval.json"


def llm_jp_eval_json(tasks: Sequence[TaskScores], results: Results) -> dict[str, Any]:
    """The JSON form of a scored suite as above."""
    reference_keys = {f"{task.spec.name}_{metric}" for task in tasks for metric in task.spec.metrics}
    complete = {
        **results.average,
        **{name: v for name, v in results.categories.items() if name not in results.partial.categories},
        **{key: value for key, value in results.scores.items() if key in reference_keys},
    }
    return {
        "scores": {
            name: float(f"{value.value:.4f}") for name, value in complete.items() if value.value is not None
        },
        "outputs": {
            task.spec.name: [
                {"input": sample.input, "pred": score.prediction, "gold": gold(sample.gold)}
                for sample, score in zip(task.samples, task.scores, strict=True)
            ]
            for task in tasks
        },
    }
