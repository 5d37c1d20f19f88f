"""JGLUE (yahoojapan/JGLUE, v1.1 data): JCommonsenseQA, JNLI, JSTS, JSQuAD.

Rules: docs/protocol/jaster.md, section 2.
"""

from collections.abc import Callable, Iterator
from typing import Any

from evalkit.core.types import Row
from evalkit.sources.readers import Files, SourceFile, get, json_lines, json_of, unique
from evalkit.sources.splits import Pools


def jcommonsenseqa(files: Files) -> Pools:
    """Five numbered choices; the answer is the number."""

    def row(record: Any, file: SourceFile, place: str) -> Row:
        choices = [get(record, f"choice{number}", str, file, place) for number in range(5)]
        listed = ",".join(f"{number}.{choice}" for number, choice in enumerate(choices))
        question = get(record, "question", str, file, place)
        return Row(f"質問：{question}\n選択肢：{listed}", str(get(record, "label", int, file, place)))

    return _per_line(files, "q_id", row)


def jnli(files: Files) -> Pools:
    """Premise, hypothesis, one of three labels."""

    def row(record: Any, file: SourceFile, place: str) -> Row:
        premise, hypothesis = (get(record, key, str, file, place) for key in ("sentence1", "sentence2"))
        return Row(f"前提：{premise}\n仮説：{hypothesis}", get(record, "label", str, file, place))

    return _per_line(files, "sentence_pair_id", row)


def jsts(files: Files) -> Pools:
    """Two sentences; the similarity, 0 to 5, as Python prints the float."""

    def row(record: Any, file: SourceFile, place: str) -> Row:
        first, second = (get(record, key, str, file, place) for key in ("sentence1", "sentence2"))
        return Row(f"文1：{first}\n文2：{second}", str(get(record, "label", float, file, place)))

    return _per_line(files, "sentence_pair_id", row)


def jsquad(files: Files) -> Pools:
    """Context (title and text, joined by [SEP] upstream) and question; the first answer's text."""
    return {role: [_squad(file) for file in parts] for role, parts in files.items()}


def _squad(file: SourceFile) -> list[Row]:
    rows, ids = [], []
    for place, context, question in _questions(file):
        answers = get(question, "answers", list, file, place)
        text = get(answers[0] if answers else None, "text", str, file, f"{place}.answers[0]")
        asked = get(question, "question", str, file, place)
        ids.append((place, get(question, "id", str, file, place)))
        rows.append(Row(f"文章：{context}\n質問：{asked}", text))
    unique(ids, file)
    return rows


def _questions(file: SourceFile) -> Iterator[tuple[str, str, Any]]:
    articles = get(json_of(file), "data", list, file, "the top level")
    for number, article in enumerate(articles):
        place = f"data[{number}]"
        for at, paragraph in enumerate(get(article, "paragraphs", list, file, place)):
            inner = f"{place}.paragraphs[{at}]"
            context = get(paragraph, "context", str, file, inner)
            for index, question in enumerate(get(paragraph, "qas", list, file, inner)):
                yield f"{inner}.qas[{index}]", context, question


def _per_line(files: Files, identifier: str, row: Callable[[Any, SourceFile, str], Row]) -> Pools:
    return {role: [_lines(file, identifier, row) for file in parts] for role, parts in files.items()}


def _lines(file: SourceFile, identifier: str, row: Callable[[Any, SourceFile, str], Row]) -> list[Row]:
    records = list(json_lines(file))
    unique(((place, get(record, identifier, (str, int), file, place)) for place, record in records), file)
    return [row(record, file, place) for place, record in records]
