"""A pfgen of six questions, in place of the published data, and sets of answers to them."""

import json
import lzma
from pathlib import Path

import pytest

from evalkit.core.types import Sample
from evalkit.metrics.pfgen import PfgenQuestion
from evalkit.sources import pfgen

QUESTIONS = tuple(
    PfgenQuestion(
        f"Q{n:02}",
        f"質問{n}？",
        "it" if n < 4 else "arts",
        ({"t": "は"},),
        {"P": [f"{n}は水です", f"{n}は火"]},
    )
    for n in range(1, 7)
)
POOL = tuple(Sample(one.id, one.text, f"{one.id[-1]}は水です") for one in QUESTIONS)


def use_tiny_pfgen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every verb take these questions."""
    monkeypatch.setattr(pfgen, "fetch_data", lambda *args, **kwargs: (QUESTIONS, POOL))


def answer(question: PfgenQuestion, trial: int) -> str:
    return ("水です", f"{question.id[-1]}は水", "は火")[(trial + int(question.id[1:])) % 3]


def published(folder: Path, trials: int = 3, **config: str) -> Path:
    """A set of answers as published; `config` goes into its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"question": q.text, "answer": answer(q, t)} for q in QUESTIONS for t in range(trials)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "trials.jsonl.xz").write_bytes(lzma.compress(text.encode()))
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "trials.jsonl.xz"
