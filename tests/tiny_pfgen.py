"""A pfgen of six questions, in place of the published data."""

import pytest

from evalkit.core.types import Sample
from evalkit.metrics.pfgen import Question
from evalkit.sources import pfgen

QUESTIONS = tuple(
    Question(
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
