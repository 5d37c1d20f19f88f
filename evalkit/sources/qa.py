"""Question answering: JEMHopQA and NIILC.

Rules: docs/protocol/jaster.md, section 2.
"""

from xml.etree.ElementTree import Element

from evalkit.core.types import Row
from evalkit.sources.readers import Files, SourceError, SourceFile, get, json_list, unique, xml_of
from evalkit.sources.splits import Pools

NIILC_NO_ANSWER = "-"


def jemhopqa(files: Files) -> Pools:
    """aiishii/JEMHopQA, version 1.0 of its corpus."""
    return {role: [_multi_hop(file) for file in parts] for role, parts in files.items()}


def niilc(files: Files) -> Pools:
    """mynlp/niilc-qa: several answers are joined with commas; questions without one are dropped."""
    return {role: [_encyclopedia(file) for file in parts] for role, parts in files.items()}


def _multi_hop(file: SourceFile) -> list[Row]:
    records = list(json_list(file))
    unique(((place, get(record, "qid", str, file, place)) for place, record in records), file)
    return [
        Row(f"質問：{get(record, 'question', str, file, place)}", get(record, "answer", str, file, place))
        for place, record in records
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
