"""MAWPS in Japanese (nlp-waseda/chain-of-thought-ja-dataset).

Rules: docs/protocol/jaster.md, section 2.
"""

from evalkit.core.types import Row
from evalkit.sources.pins import SourceFile
from evalkit.sources.readers import SourceError, SourceFiles, json_list, with_unique_ids
from evalkit.sources.splits import Pools

ANSWER_MARK = "\n解答："


def mawps(files: SourceFiles) -> Pools:
    """Worked examples are the train split; the questions are divided between dev and test."""
    read = {"train": _examples, "pool": _questions}
    return {role: [read[role](file) for file in found] for role, found in files.items()}


def _examples(file: SourceFile) -> list[Row]:
    rows = []
    for record in json_list(file):
        question, mark, solution = record.text("shot_example").partition(ANSWER_MARK)
        _, before, rest = solution.partition("答えは")
        answer, after, _ = rest.partition("です。")
        if not (mark and before and after):
            raise SourceError("an example without its 解答：… 答えは…です。", file, record.place)
        rows.append(Row(question, answer))
    return rows


def _questions(file: SourceFile) -> list[Row]:
    return [
        Row(record.text("question").partition(ANSWER_MARK)[0], record.text("answer"))
        for record in with_unique_ids(json_list(file), "idx", int)
    ]
