"""Question answering: JEMHopQA and NIILC.

Rules: docs/protocol/jaster.md, section 2.
"""

from xml.etree.ElementTree import Element

from evalkit.core.types import Row
from evalkit.sources.pins import SourceFile
from evalkit.sources.readers import (
    SourceError,
    SourceFiles,
    json_list,
    per_file,
    unique,
    with_unique_ids,
    xml_of,
)
from evalkit.sources.splits import Pools

NIILC_NO_ANSWER = "-"


def jemhopqa(files: SourceFiles) -> Pools:
    """aiishii/JEMHopQA, version 1.0 of its corpus."""
    return per_file(files, _multi_hop)


def niilc(files: SourceFiles) -> Pools:
    """mynlp/niilc-qa: several answers are joined with commas; questions without one are dropped."""
    return per_file(files, _encyclopedia)


def _multi_hop(file: SourceFile) -> list[Row]:
    return [
        Row(f"質問：{record.text('question')}", record.text("answer"))
        for record in with_unique_ids(json_list(file), "qid", str)
    ]


def _encyclopedia(file: SourceFile) -> list[Row]:
    questions = xml_of(file.path.read_bytes(), file).findall("question")
    unique(((f"question {index}", question.get("id")) for index, question in enumerate(questions, 1)), file)
    rows = []
    for question in questions:
        text = question.findtext("text")
        answers = question.findall("answers/answer")
        if text is None or not answers:
            raise SourceError("a question without <text> or <answer>", file, str(question.get("id")))
        answer = _answer(answers)
        if answer != NIILC_NO_ANSWER:
            rows.append(Row(f"質問：{text.strip()}", answer))
    return rows


def _answer(answers: list[Element]) -> str:
    texts = [(answer.text or "").strip() for answer in answers]
    return texts[0] if len(texts) == 1 else ",".join(text for text in texts if text)
