"""How statuses enter the means, and what results.json holds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalkit.core.config import Reduce
from evalkit.core.types import Judgment
from evalkit.mtbench.folder import MtBenchFolder
from evalkit.mtbench.model_tables import (
    as_logged,
    missing_turns,
    model_table,
    results_json,
    scored,
    with_own_intervals,
)
from evalkit.mtbench.presets import Counts, RatingParser, load_preset


def judgment(question: int, status: str, rating: float | None, strict: float | None, **more: Any) -> Judgment:
    return Judgment(
        id=str(question),
        model="m",
        question_id=question,
        category="math",
        turn=1,
        judge="j",
        prompt="p",
        text=None if status in ("filtered", "overflow", "api_error") else "text",
        status=status,  # type: ignore[arg-type]
        rating=rating,
        rule="double_bracket" if rating is not None else "none",
        strict=strict,
        repeat=0,
        **more,
    )


JUDGMENTS = [
    judgment(1, "ok", 8, 8),
    judgment(2, "ok", 1, 9),
    judgment(3, "out_of_range", 11, None),
    judgment(4, "unparsed", None, None),
    judgment(5, "malformed", None, None),
    judgment(6, "filtered", None, None),
]


def scores(**changes: Any) -> dict[int, float]:
    preset = replace(load_preset("llm-jp-3-card"), **changes)
    return {row.question_id: row.score for row in scored(JUDGMENTS, preset)}


def test_the_card_keeps_minus_one() -> None:
    assert scores() == {1: 8, 2: 1, 3: 11, 4: -1, 5: -1, 6: -1}
    logged = {row.question_id: row.score for row in as_logged(JUDGMENTS)}
    assert logged == scores()


def test_a_preset_may_drop_a_status() -> None:
    statuses = dict(load_preset("llm-jp-3-card").statuses)
    statuses |= {"out_of_range": Counts.drop, "filtered": Counts.drop}
    assert scores(statuses=statuses) == {1: 8, 2: 1, 4: -1, 5: -1}


def test_a_preset_may_read_strictly() -> None:
    """The number at the end counts; a refusal stays a refusal."""
    assert scores(parser=RatingParser.strict) == {1: 8, 2: 9, 3: -1, 4: -1, 5: -1, 6: -1}


def test_an_answerless_judgment_counts_as_an_unparsed_one_unless_the_preset_says_otherwise() -> None:
    none = judgment(7, "answerless", None, None)
    card = load_preset("llm-jp-3-card")
    assert [row.score for row in scored([none], card)] == [-1]
    assert [row.score for row in scored([none], replace(card, parser=RatingParser.strict))] == [-1]
    dropping = replace(card, statuses=card.statuses | {"answerless": Counts.drop})
    assert scored([none], dropping) == scored([none], load_preset("llm-jp-judge-2")) == []


def test_a_table_counts_what_happened() -> None:
    preset = load_preset("fastchat")
    table = model_table(JUDGMENTS, scored(JUDGMENTS, preset), preset, resamples=20, reduce=Reduce.mean)
    assert table.statuses == {"ok": 2, "out_of_range": 1, "unparsed": 1, "malformed": 1, "filtered": 1}
    assert table.parsed_by == {"double_bracket": 3, "none": 3}
    assert table.strict_differs == 2
    assert table.scopes["average"].value == pytest.approx(20 / 3)
    assert (table.rows, table.scopes["average"].n) == (6, 3)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_results_are_strict_json_and_name_their_preset() -> None:
    preset = load_preset("llm-jp-3-card")
    infinite = [judgment(1, "out_of_range", float("inf"), None)]
    rows = scored(infinite, preset)
    content = results_json(preset, {"m": model_table(infinite, rows, preset, resamples=5)}, {"m": rows})
    json.dumps(content, allow_nan=False)
    assert content["preset"]["name"] == "llm-jp-3-card"
    assert content["preset"]["sha256"] == preset.sha256
    assert preset.sha256 != replace(preset, reasks=1).sha256
    assert set(content["mt_bench"]["m"]) >= {
        "show_result",
        "llm_leaderboard",
        "g_leaderboard",
        "llm_jp_judge",
    }


def test_what_is_missing_is_said() -> None:
    preset = load_preset("llm-jp-3-card")
    assert missing_turns("m", as_logged(JUDGMENTS), preset, 80) == [
        "m: 6 of 160 turns of the question set have a score"
    ]
    assert missing_turns("m", as_logged(JUDGMENTS), replace(preset, turns=[1]), 6) == []
    # A preset of five answers, of which one is there.
    assert missing_turns("m", as_logged(JUDGMENTS), replace(preset, turns=[1]), 6, 5) == [
        "m: 6 of 30 turns of the question set have a score"
    ]
    # Answers or turns that the preset does not ask for are none of those that it lacks.
    more = [replace(one, answer=answer) for one in JUDGMENTS for answer in range(5)]
    more += [replace(one, turn=2) for one in JUDGMENTS]
    assert missing_turns("m", as_logged(more), replace(preset, turns=[1]), 30) == [
        "m: 6 of 30 turns of the question set have a score"
    ]


def test_old_tables_with_intervals_of_zero_width_get_them_from_the_judgments(tmp_path: Path) -> None:
    """math is all ones; writing is not: math has no interval, and the average is not surer for it."""
    preset = load_preset("llm-jp-3-card")
    judgments = [
        replace(judgment(n, "ok", 1 if n <= 10 else n - 10, 1), category="math" if n <= 10 else "writing")
        for n in range(1, 21)
    ]
    table = model_table(judgments, scored(judgments, preset), preset, resamples=10_000)
    new = json.loads(json.dumps(results_json(preset, {"m": table}, {"m": as_logged(judgments)})))
    scopes = new["tables"]["m"]["scopes"]
    assert scopes["math"]["ci95"] is None and scopes["turn_2"]["ci95"] is None
    low, high = scopes["writing"]["ci95"]
    average_low, average_high = scopes["average"]["ci95"]
    assert high - low > average_high - average_low > (high - low) / 2
    assert with_own_intervals(new, tmp_path) == new

    old = json.loads(json.dumps(new))
    old["tables"]["m"]["scopes"]["math"]["ci95"] = [1.0, 1.0]
    old["tables"]["m"]["scopes"]["average"]["ci95"] = [(1 + low) / 2, (1 + high) / 2]
    without = with_own_intervals(old, tmp_path)["tables"]["m"]["scopes"]
    assert without["math"]["ci95"] is None and without["average"]["ci95"] is None
    assert without["writing"] == scopes["writing"]
    MtBenchFolder(tmp_path).write_judgments("j", judgments)
    again = json.loads(json.dumps(with_own_intervals(old, tmp_path)))
    assert again == new


@pytest.mark.parametrize("name", ["llm-jp-3-card", "fastchat", "swallow"])
def test_where_no_rating_could_be_read_there_is_no_number(name: str) -> None:
    preset = load_preset(name)
    unread = [judgment(question, "unparsed", None, None) for question in range(1, 8)]
    table = model_table(unread, scored(unread, preset), preset, resamples=100)
    assert {figure.value for figure in table.scopes.values()} == {None}
    assert {figure.ci95 for figure in table.scopes.values()} == {None}
    # One rating that could be read: the others count as the preset says.
    mixed = [*unread, judgment(8, "ok", 8, 8)]
    assert (
        model_table(mixed, scored(mixed, preset), preset, resamples=100).scopes["average"].value is not None
    )
