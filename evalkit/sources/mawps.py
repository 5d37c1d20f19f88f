"""MAWPS in Japanese (nlp-waseda/chain-of-thought-ja-dataset).

Rules: docs/protocol/jaster.md, section 2.
"""

from evalkit.core.types import Row
from evalkit.sources.readers import Files, SourceError, SourceFile, get, json_list, unique
from evalkit.sources.splits import Pools

ANSWER_MARK = "\n解答："


def mawps(files: Files) -> Pools:
    """Worked examples are the train split; the questions are shared out between dev and test."""
    pools: dict[str, list[list[Row]]] = {}
    if "train" in files:
        pools["train"] = [_examples(file) for file in files["train"]]
    if "pool" in files:
        pools["pool"] = [_questions(file) for file in files["pool"]]
    return pools


def _examples(file: SourceFile) -> list[Row]:
    rows = []
    for place, record in json_list(file):
        question, mark, solution = get(record, "shot_example", str, file, place).partition(ANSWER_MARK)
        _, before, rest = solution.partition("答えは")
        answer, after, _ = rest.partition("です。")
        if not (mark and before and after):
            raise SourceError("an example without its 解答：… 答えは…です。", file, place)
        rows.append(Row(question, answer))
    return rows


def _questions(file: SourceFile) -> list[Row]:
    records = list(json_list(file))
    unique(((place, get(record, "idx", int, file, place)) for place, record in records), file)
    rows = []
    for place, record in records:
        question, _, _ = get(record, "question", str, file, place).partition(ANSWER_MARK)
        rows.append(Row(question, get(record, "answer", str, file, place)))
    return rows
