"""The files of pfgen-bench: the data by their published hash, sets of answers as published, bad ones."""

import json
import lzma
import shutil
from pathlib import Path

import pytest

from evalkit.core.errors import InputError
from evalkit.metrics.pfgen import Question
from evalkit.sources.pfgen import fetch_data, read_answers, read_data

QUESTIONS = [Question(f"Q0{n}", f"質問{n}？", "it", (), {"P": ["a"]}) for n in (1, 2)]
ROWS = [("質問1？", "あ"), ("質問2？", "い"), ("質問1？", "う"), ("質問2？", "え")]


def lines(rows: list[tuple[str, str]]) -> bytes:
    return "".join(
        json.dumps({"question": q, "answer": a, "timestamp": "t"}, ensure_ascii=False) + "\n" for q, a in rows
    ).encode()


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_answers(path, QUESTIONS)
    return str(error.value)


def test_a_set_is_read_packed_and_plain_with_the_models_name(tmp_path: Path) -> None:
    plain, packed = tmp_path / "trials.jsonl", tmp_path / "trials.jsonl.xz"
    plain.write_bytes(lines(ROWS))
    packed.write_bytes(lzma.compress(lines(ROWS[:2])) + lzma.compress(lines(ROWS[2:])))
    assert read_answers(plain, QUESTIONS).model is None
    (tmp_path / "config.json").write_text('{"model": "llm-jp/m", "mode": "qa"}')
    for path in (plain, packed):
        found = read_answers(path, QUESTIONS)
        assert (found.model, found.mode) == ("llm-jp/m", "qa")
        assert found.answers == {"Q01": ("あ", "う"), "Q02": ("い", "え")}


def test_bad_sets_are_one_message_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    message = refused(path, lines([*ROWS, ("質問3？", "お")]))
    assert "no question of pfgen: '質問3？'" in message and f"{path}, line 5" in message
    message = refused(path, lines(ROWS[::2]))
    assert "question Q02 (質問2？) has no answer" in message and str(path) in message
    message = refused(path, lines(ROWS[:3]))
    assert "Q02 (質問2？) has 1 answers, others have 2" in message and f"{path}, line 2" in message
    assert "line 1, field answer" in refused(path, b'{"question": "\xe8\xb3\xaa\xe5\x95\x8f1\xef\xbc\x9f"}\n')
    assert "there are no answers" in refused(path, b"\n")
    found = read_answers(_written(path, lines(ROWS[:3])), QUESTIONS, allow_missing=True)
    assert found.answers == {"Q01": ("あ", "う"), "Q02": ("い",)}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_cut_or_damaged_xz_file_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl.xz"
    whole = lzma.compress(lines(ROWS))
    for content in (whole[:-20], whole[: len(whole) // 2], b""):
        message = refused(path, content)
        assert "not a whole xz file: it is cut short" in message and f"{path}, line " in message
    assert "line 5" in refused(path, whole[:-20])
    assert "it is damaged" in refused(path, b"no xz" * 9)


@pytest.mark.sources
def test_the_published_data_and_no_other(mirror: Path, tmp_path: Path) -> None:
    questions, pool = fetch_data(mirror, offline=True)
    assert [(one.id, one.text) for one in questions] == [(pair.id, pair.input) for pair in pool]
    assert sum(len(one.references) for one in questions) == 127
    folder = tmp_path / "data"
    shutil.copytree(mirror / "pfgen" / "data", folder)
    path = folder / "Q02.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace("つる".encode(), "さる".encode(), 1))
    with pytest.raises(InputError, match="not the published data"):
        read_data(sorted(folder.glob("Q*.json")))


@pytest.mark.sources
def test_published_sets_are_read_as_they_are(mirror: Path) -> None:
    questions, _ = fetch_data(mirror, offline=True)
    path = mirror / "pfgen/published/llm-jp-3-1.8b-instruct/7b08b08/trials.jsonl.xz"
    found = read_answers(path, questions)
    assert (found.model, found.mode) == ("llm-jp/llm-jp-3-1.8b-instruct", "qa")
    assert len(found.answers) == 50 and {len(texts) for texts in found.answers.values()} == {100}
