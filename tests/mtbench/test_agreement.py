"""Agreement of judges: ratings and votes, and the verbs calibrate and agreement."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer, rating_of
from little_bench import Bench, make_bench, write_jsonl
from scipy.stats import spearmanr

from evalkit.__main__ import main
from evalkit.core.config import Reduce
from evalkit.core.errors import InputError
from evalkit.core.types import Judgment
from evalkit.mtbench.agreement import agreement, compare_ratings, kind_of_judge, read_votes, vote_agreement
from evalkit.mtbench.books import BookOptions
from evalkit.mtbench.folder import MtBenchFolder
from evalkit.mtbench.replay import replay


def judged(question: int, rating: float | None, category: str = "math", **more: Any) -> Judgment:
    return Judgment(
        id=f"{question}",
        model="m",
        question_id=question,
        category=category,
        turn=1,
        judge="j",
        prompt="p",
        text="t",
        status="ok" if rating is not None else "unparsed",
        rating=rating,
        rule="none",
        strict=None,
        **more,
    )


def test_ratings_by_hand() -> None:
    first = [judged(1, 5), judged(2, 7), judged(3, 1), judged(4, None), judged(5, 9, "stem")]
    second = [judged(1, 5), judged(2, 8), judged(3, 4), judged(4, 3), judged(5, 7, "stem"), judged(6, 1)]
    found = compare_ratings(first, second)
    assert list(found) == ["all", "math", "stem"]
    everything = found["all"]
    # Question 4 has one rating, question 6 one judge.
    assert (everything.n, everything.only_one) == (4, 2)
    assert (everything.exact, everything.within_one) == (1 / 4, 2 / 4)
    assert everything.offset == pytest.approx((0 + 1 + 3 - 2) / 4)
    assert everything.rank_correlation == pytest.approx(spearmanr([5, 7, 1, 9], [5, 8, 4, 7]).statistic)
    assert found["math"].offset == pytest.approx(4 / 3)
    assert found["stem"].rank_correlation is None


def test_repeats_become_one_rating() -> None:
    """By the mean or the median of each judge, without those that could not be read."""
    first = [judged(1, rating, repeat=n) for n, rating in enumerate((9, 1, 2, None))]
    second = [judged(1, rating, repeat=n) for n, rating in enumerate((3, 3, 5))] + [judged(2, None)]
    found = compare_ratings(first, second, (Reduce.median, Reduce.mean))["all"]
    assert (found.n, found.only_one, found.mean_reference) == (1, 0, 2)
    assert found.offset == pytest.approx(5 / 3)
    thirds = (
        [judged(1, 7, repeat=n) for n in range(2)] + [judged(1, 8)],
        [judged(1, 6)] * 2 + [judged(1, 7)],
    )
    assert compare_ratings(*thirds)["all"].within_one == 1


def test_kinds_of_judges() -> None:
    """Section 9: names by which FastChat groups judges."""
    assert kind_of_judge(["gpt-4", "pair-v2"]) == "gpt4-pair"
    assert kind_of_judge(["gpt-4", "pair-math-v1-multi-turn"]) == "gpt4-pair"
    assert kind_of_judge("expert_17") == "human"
    assert kind_of_judge("author_2") == "author"
    assert kind_of_judge(["claude", "pair-v2"]) == "claude-pair"
    assert kind_of_judge(None) is None


def vote(question: int, a: str, b: str, winner: str, judge: Any, turn: int = 1) -> dict[str, Any]:
    return {
        "question_id": question,
        "turn": turn,
        "model_a": a,
        "model_b": b,
        "winner": winner,
        "judge": judge,
    }


def test_votes_by_hand(tmp_path: Path) -> None:
    """Swapped names flip the vote, any tie is a tie, and without ties such pairs are left out."""
    gpt4 = ["gpt-4", "pair-v2"]
    path = write_jsonl(
        tmp_path / "votes.jsonl",
        [
            vote(1, "x", "y", "model_a", gpt4),
            vote(1, "y", "x", "model_b", "expert_1"),  # the same vote
            vote(1, "x", "y", "model_b", "expert_2"),
            vote(2, "x", "y", "tie", gpt4),
            vote(2, "x", "y", "tie (bothbad)", "expert_1"),
            vote(2, "x", "y", "model_a", "expert_3"),
            vote(3, "x", "y", "model_b", gpt4, turn=2),
            vote(3, "x", "y", "model_b", "author_1", turn=2),
        ],
    )
    found = {(value.judges, value.turn): value for value in vote_agreement(read_votes(path))}
    human = found[("gpt4-pair", "human"), 1]
    assert (human.n, human.agree) == (4, 2 / 4)
    assert (human.n_without_ties, human.agree_without_ties) == (2, 1 / 2)
    among = found[("human", "human"), 1]
    assert (among.n, among.agree) == (2, 0)
    assert (among.n_without_ties, among.agree_without_ties) == (1, 0)
    assert found[("author", "gpt4-pair"), 2].agree == 1
    assert len(found) == 3


def test_pairwise_logs_are_votes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = {
        "model_1": "y",
        "model_2": "x",
        "judge": ["gpt-4", "pair-v2"],
        "turn": 1,
        "g1_judgment": "",
        "g2_judgment": "",
    }
    pairs = write_jsonl(
        tmp_path / "pair.jsonl",
        [
            log | {"question_id": 1, "g1_winner": "model_1", "g2_winner": "model_1"},
            log | {"question_id": 2, "g1_winner": "model_1", "g2_winner": "model_2"},
            log | {"question_id": 3, "g1_winner": "error", "g2_winner": "model_2"},
        ],
    )
    human = write_jsonl(
        tmp_path / "human.jsonl",
        [
            vote(number, "x", "y", winner, "expert_1")
            for number, winner in ((1, "model_b"), (2, "tie"), (3, "tie"))
        ],
    )
    out = tmp_path / "agreement.json"
    assert main(["agreement", str(pairs), str(human), f"out={out}"]) == 0
    assert "gpt4-pair and human" in capsys.readouterr().out
    (value,) = json.loads(out.read_text())["votes"]
    assert (value["n"], value["agree"], value["n_without_ties"], value["agree_without_ties"]) == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (vote(1, "x", "y", "model_c", "expert_1"), "field winner"),
        (vote(1, "x", "y", "tie", None), "field judge"),
        ({"question_id": 1}, "field judge"),
    ],
)
def test_bad_votes(
    row: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "votes.jsonl", [row])
    assert main(["agreement", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agreement"]) == 2
    path = write_jsonl(tmp_path / "votes.jsonl", [vote(1, "x", "y", "tie", "expert_1")])
    assert main(["agreement", str(path)]) == 2
    assert "no two judges" in capsys.readouterr().err


@pytest.fixture
def judged_run(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run judged by gpt-4 (rule: the checksum of the prompt)."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    out = tmp_path / "run"
    answers = bench.answers(tmp_path / "answers.jsonl", "m")
    with FaultServer() as server:
        words = [f"answers={answers}", f"preset={bench.preset}", f"mirror={bench.mirror}", f"out={out}"]
        assert (
            main(["judge", *words, "judge=gpt-4", f"judge.base_url={server.url}", "metrics.resamples=20"])
            == 0
        )
    return out


def test_calibrate(judged_run: Path, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """A judge that gives one point more, and no rating for a question in ten."""
    before = (judged_run / "results.json").read_bytes()
    words = ["calibrate", f"run={judged_run}", f"preset={bench.preset}", f"mirror={bench.mirror}"]
    words += ["judge=openai", "judge.model=new-judge"]
    with FaultServer() as server:
        server.text_of = lambda rating: "none" if rating == 10 else f"[[{rating + 1}]]"
        url = f"judge.base_url={server.url}"
        assert main([*words, url, "--dry-run"]) == 0 and server.calls == []
        assert main([*words, url]) == 0
        ratings = [rating_of(text) for text in server.calls]
        assert main([*words, url]) == 0
        assert len(server.calls) == 160
    shown = capsys.readouterr().out
    assert "new-judge beside the judgments by gpt-4" in shown
    content = json.loads((judged_run / "calibration" / "new-judge.json").read_text())
    agreement = content["agreement"]["all"]
    assert agreement["n"] == sum(rating < 10 for rating in ratings)
    assert agreement["only_one"] == ratings.count(10)
    assert (agreement["exact"], agreement["within_one"], agreement["offset"]) == (0, 1, 1)
    assert agreement["rank_correlation"] == pytest.approx(1)
    assert content["averages"]["m"]["reference"] == pytest.approx(sum(ratings) / 160)
    assert (judged_run / "results.json").read_bytes() == before


def test_calibrate_leaves_what_is_behind_the_table(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge of the table with other parameters; each is reduced as in a table of its own."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    bench, folder = make_bench(tmp_path, 1), MtBenchFolder(tmp_path / "run")
    ratings = iter([1, 9, 10] * 16 + [2, 2, 8] * 16 + [5] * 16)
    words = [f"preset={bench.preset}", f"mirror={bench.mirror}", "metrics.resamples=20"]
    given = [f"answers={bench.answers(tmp_path / 'answers.jsonl', 'm')}", f"out={folder.path}"]
    run, repeated = [f"run={folder.path}"], ["judge.repeats=3", "judge.concurrency=1"]
    with FaultServer() as server:
        server.text_of = lambda _: f"[[{next(ratings)}]]"
        words.append(f"judge.base_url={server.url}")
        assert main(["judge", *given, *words, "judge=gpt-4", *repeated, "judge.reduce=median"]) == 0
        words += ["judge=openai", "judge.model=j"]
        calibrate = ["calibrate", *run, *words, *repeated, "judge.parameters.temperature=1"]
        assert main(calibrate) == 0
        found = json.loads((folder.path / "calibration" / "j.json").read_text())
        assert found["averages"]["m"] == {"reference": 9, "other": 4}
        assert found["agreement"]["all"]["offset"] == -5
        assert folder.judges() == ["gpt-4", "j"] and folder.made_by("j")[1] is Reduce.mean
        assert main(["judge", *run, *words]) == 0
        behind = folder.judgments_path("j").read_bytes()
        # What a calibration has asked is kept in the run too.
        assert main([*calibrate, f"judge.store={tmp_path / 'empty'}"]) == 0
        assert len(server.calls) == 16 * 7
    assert folder.judgments_path("j").read_bytes() == behind
    assert {one.rating for one in folder.judgments("j")} == {5}


def test_calibrate_needs_a_reference(
    judged_run: Path, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", f"run={judged_run}", f"mirror={bench.mirror}", "judge=gpt-4"]
    assert main(words) == 2
    assert "has no stored judgments" in capsys.readouterr().err
    assert main([*words[:-1], "judge=openai", "judge.model=x", "--reference", "nobody"]) == 2
    assert "no judgments by 'nobody'" in capsys.readouterr().err


def test_agreement_of_a_run(judged_run: Path, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["calibrate", f"run={judged_run}", f"mirror={bench.mirror}", "judge=openai", "judge.model=b"]
    with FaultServer() as server:
        assert main([*words, f"judge.base_url={server.url}"]) == 0
    capsys.readouterr()
    # Any folder with one run in it names it.
    assert main(["agreement", str(judged_run.parent)]) == 0
    shown = capsys.readouterr().out
    assert "gpt-4 beside b" in shown and "100%" in shown
    folder, other = MtBenchFolder(judged_run), MtBenchFolder(judged_run.with_name("other"))
    other.write_header(folder.header())
    other.write_turns([replace(turn, completion="another") for turn in folder.turns()])
    assert main(["agreement", str(folder.path), str(other.path)]) == 2
    assert f"m answers question 1 in {folder.path} not as in" in capsys.readouterr().err


def test_the_judges_of_one_log(bench: Bench, tmp_path: Path) -> None:
    """Their ratings are compared; a table that mixed them is refused."""
    rows = [
        {"question_id": 1, "model": "m", "judge": [judge, "single-v1"], "turn": turn, "score": score}
        for judge, scores in (("gpt-4", (8, 6)), ("gpt-4o", (7, 6)))
        for turn, score in enumerate(scores, 1)
    ]
    log, options = (
        write_jsonl(tmp_path / "log.jsonl", rows),
        BookOptions(str(bench.preset), mirror=str(bench.mirror)),
    )
    found = agreement([log], options).ratings
    assert list(found) == [("gpt-4 (log)", "gpt-4o (log)")]
    assert (
        found["gpt-4 (log)", "gpt-4o (log)"]["all"].n,
        found["gpt-4 (log)", "gpt-4o (log)"]["all"].exact,
    ) == (2, 0.5)
    with pytest.raises(InputError, match="several judges, gpt-4, gpt-4o"):
        replay(log, None, options, out=tmp_path / "run", resamples=10)


@pytest.mark.sources
def test_calibrate_on_the_published_example(
    mirror: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From FastChat logs to a calibration: SciPy and plain Python say the same."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    examples, out = mirror / "mt_bench" / "examples", tmp_path / "run"
    judgments = examples / "judgments_elyza-7b-fast-instruct.jsonl"
    words = [f"judgments={judgments}", f"answers={examples / 'answers_elyza-7b-fast-instruct.jsonl'}"]
    words += ["preset=fastchat", f"mirror={mirror}", f"out={out}", "judge=gpt-4o-2024-08-06"]
    with FaultServer() as server:
        assert main(["calibrate", *words, f"judge.base_url={server.url}", "metrics.resamples=20"]) == 0
        new = {text.split("\n", 1)[1]: rating_of(text) for text in server.calls}
    rows = [json.loads(line) for line in judgments.read_text().splitlines()]
    pairs = []
    for row in rows:
        (rating,) = [value for text, value in new.items() if text.endswith(row["user_prompt"])]
        pairs.append((row["score"], rating))
    found = json.loads((out / "calibration" / "gpt-4o-2024-08-06.json").read_text())["agreement"]["all"]
    assert found["n"] == 160
    assert found["exact"] == pytest.approx(sum(a == b for a, b in pairs) / 160)
    assert found["within_one"] == pytest.approx(sum(abs(a - b) <= 1 for a, b in pairs) / 160)
    assert found["rank_correlation"] == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)
    assert found["mean_reference"] == pytest.approx(4.175)
    # gpt-4 itself once more: the log is the reference, and stays.
    again = ["calibrate", f"run={out}", f"mirror={mirror}", "judge=gpt-4", "metrics.resamples=20"]
    with FaultServer() as server:
        assert main([*again, f"judge.base_url={server.url}"]) == 0
        assert len(server.calls) == 160
        judged_again = ["judge", *again[1:], f"judge.base_url={server.url}"]
        assert main(judged_again) == 0
        assert len(server.calls) == 160
    content = json.loads((out / "calibration" / "gpt-4.json").read_text())
    assert content["reference"] == "gpt-4_log"
    assert content["agreement"]["all"]["mean_reference"] == pytest.approx(4.175)
