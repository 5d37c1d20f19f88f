"""Text of a model, a dataset or a judge stays text: on the page, in tables, in the terminal."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.leaderboard.comparison_report import flipped_frame
from evalkit.leaderboard.page import embedded_json
from evalkit.mtbench.ratings import PAIR_FORMAT, parse_pair, parse_rating
from tests.leaderboard.made import Made, make_run, write_data
from tests.leaderboard.test_page import make_conversations

ASSETS = Path(__file__).parents[2] / "evalkit" / "leaderboard" / "assets"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def test_scripts_of_the_page_put_text_on_it_as_text_only() -> None:
    risky = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc")
    for script in ASSETS.glob("*.js"):
        if script.name != "chart.umd.min.js":
            assert not risky.search(script.read_text(encoding="utf-8")), script
    template = (ASSETS / "page.html.j2").read_text(encoding="utf-8")
    # What is not escaped by the template: our own policy, style and scripts, and JSON that is safe.
    assert sorted(re.findall(r"\{\{ (\w+)\|safe \}\}", template)) == ["content", "policy", "script", "style"]


def test_every_name_and_text_of_others_is_escaped_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model, dataset input and gold, completion, judge, judgment, licence: all hostile."""
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    data = write_data(tmp_path / "data", 6, ["jamp"])
    for path in data.rglob("jamp.json"):
        rows = json.loads(path.read_text(encoding="utf-8"))["samples"]
        changed = [{"input": HOSTILE + row["input"], "output": row["output"]} for row in rows]
        path.write_text(json.dumps({"samples": changed}), encoding="utf-8")
    results = tmp_path / "results"
    suite = ("suite=task", "suite.tasks=[jamp]")
    for seed, skill in enumerate((0.2, 0.8)):
        make_run(Made(HOSTILE + str(seed), skill, seed, HOSTILE), data, results, *suite)
    mirror = make_conversations(tmp_path / "bench", results / "weak" / "mt" / "run")
    for path in (results / "weak").rglob("judgments/*.jsonl"):
        path.rename(path.with_name("<img src=x>.jsonl"))
    words = [f"mirror={mirror}", f"out={tmp_path}", "metrics.resamples=20", "--partial"]
    assert main(["leaderboard", str(results), *words]) == 0
    page = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    blocks = re.findall(r'(?s)<script type="application/json" id="[^"<>]+">(.*?)</script>', page)
    held = [json.loads(block) for block in blocks]
    texts = [text for block in held for text in strings(block)]
    assert sum("onerror" in text for text in texts) > 10
    outside = re.sub(r"(?s)<script.*?</script>", "", page)
    assert "onerror" not in outside and "alert(1)" not in outside
    # As many elements as the page has of its own: none came with the data.
    assert page.count("<script") == len(blocks) + 2 and "<img" not in outside
    markdown = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "<script" not in markdown and "<img" not in markdown


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in strings(part)]
    return [text for part in value for text in strings(part)] if isinstance(value, list) else []


def test_nothing_ends_the_element_that_holds_the_data() -> None:
    for text in (HOSTILE, "</SCRIPT >", "<!--<script>", "]]>", "\u2028\u2029", "\ud800"):
        made = embedded_json({text: [text]})
        assert not set("<>&") & set(made) and json.loads(made) == {text: [text]}


def test_an_answer_is_no_formula_in_a_spreadsheet() -> None:
    from types import SimpleNamespace as Record

    from evalkit.leaderboard.compare import Flip

    answers = ["=cmd|'/C calc'!A0", "@SUM(1)", "+1", "-2.5", "-x", "plain"]
    flips = [Flip("d", str(place), 0.0, 1.0, text, text) for place, text in enumerate(answers)]
    pair: Any = Record(a=Record(model="a"), b=Record(model="b"), flips=flips)
    shown = list(flipped_frame([pair])["prediction_a"])
    assert shown == ["'=cmd|'/C calc'!A0", "'@SUM(1)", "+1", "-2.5", "'-x", "plain"]


@pytest.mark.parametrize("text", ["[[" + "9" * 10_000 + "]]", "[[" + "1." * 9_999, "[" * 100_000])
def test_a_judge_cannot_stop_the_reading_of_ratings(text: str) -> None:
    assert parse_rating(text).status in ("malformed", "unparsed", "out_of_range")
    assert parse_pair(text, PAIR_FORMAT) == "error"
