"""JGLUE (yahoojapan/JGLUE, v1.1 data): JCommonsenseQA, JNLI, JSTS, JSQuAD.

Rules: docs/protocol/jaster.md, section 2.
"""

from collections.abc import Callable

from evalkit.core.types import Row
from evalkit.sources.pins import SourceFile
from evalkit.sources.readers import Record, SourceFiles, json_lines, json_of, per_file, with_unique_ids
from evalkit.sources.splits import Pools


def jcommonsenseqa(files: SourceFiles) -> Pools:
    """Five numbered choices; the answer is the number."""

    def row(record: Record) -> Row:
        choices = ",".join(f"{number}.{record.text(f'choice{number}')}" for number in range(5))
        return Row(f"質問：{record.text('question')}\n選択肢：{choices}", str(record.get("label", int)))

    return _per_line(files, "q_id", row)


def jnli(files: SourceFiles) -> Pools:
    """Premise, hypothesis, one of three labels."""

    def row(record: Record) -> Row:
        premise, hypothesis = record.text("sentence1"), record.text("sentence2")
        return Row(f"前提：{premise}\n仮説：{hypothesis}", record.text("label"))

    return _per_line(files, "sentence_pair_id", row)


def jsts(files: SourceFiles) -> Pools:
    """Two sentences; the similarity, 0 to 5, as Python prints the float."""

    def row(record: Record) -> Row:
        first, second = record.text("sentence1"), record.text("sentence2")
        return Row(f"文1：{first}\n文2：{second}", str(record.get("label", float)))

    return _per_line(files, "sentence_pair_id", row)


def jsquad(files: SourceFiles) -> Pools:
    """Context (title and text, joined by [SEP] upstream) and question; the first answer's text."""
    return per_file(files, _squad)


def _squad(file: SourceFile) -> list[Row]:
    asked = [
        (paragraph.text("context"), question)
        for article in Record(json_of(file), file).items("data")
        for paragraph in article.items("paragraphs")
        for question in paragraph.items("qas")
    ]
    with_unique_ids((question for _, question in asked), "id", str)
    return [
        Row(f"文章：{context}\n質問：{question.text('question')}", _first_answer(question))
        for context, question in asked
    ]


def _first_answer(question: Record) -> str:
    none = Record(None, question.file, f"{question.place}.answers[0]")
    return next(question.items("answers"), none).text("text")


def _per_line(files: SourceFiles, identifier: str, row: Callable[[Record], Row]) -> Pools:
    """One sample for each line of JSON; the field `identifier` is unique in a file."""
    return per_file(
        files,
        lambda file: [row(record) for record in with_unique_ids(json_lines(file), identifier, (str, int))],
    )
