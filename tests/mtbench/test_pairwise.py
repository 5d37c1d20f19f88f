"""The verb pairwise against a local server."""

import json
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer
from little_bench import Bench, make_bench, write_jsonl

from evalkit.__main__ import main
from evalkit.core.durable import write_checked_json
from evalkit.core.errors import InputError
from evalkit.core.types import Judgment
from evalkit.mtbench.fastchat import ModelAnswer, read_answers, read_judgments
from evalkit.mtbench.folder import MtBenchFolder, logged_label, turns_of
from evalkit.mtbench.pairwise import answers_to_compare, rated_matches


@pytest.fixture
def two(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, Path]:
    """A bench of 8 questions and the answers of three models; `long` writes most."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    bench = make_bench(tmp_path, 1)
    folder = tmp_path / "answers"
    for model, text in (
        ("long", "とても長い答え {id}-{turn}"),
        ("short", "答 {id}-{turn}"),
        ("other", "別 {id}-{turn}"),
    ):
        bench.answers(folder / f"{model}.jsonl", model, text)
    return bench, folder


def pairwise(bench: Bench, answers: Path, server: FaultServer, out: Path, *more: str) -> dict[str, Any]:
    code = main(
        [
            "pairwise",
            f"answers={answers}",
            f"preset={bench.preset}",
            f"mirror={bench.mirror}",
            f"out={out}",
            "judge=gpt-4",
            f"judge.base_url={server.url}",
            "judge.identity=test",
            *more,
        ]
    )
    assert code == 0
    if "--dry-run" in more:
        return {}
    content = json.loads((out / "results.json").read_text())
    assert isinstance(content, dict)
    return content


def prefer_long(server: FaultServer) -> None:
    """A judge that finds the longest answer best, and the first where none is longer."""

    def completion(text: str, body: dict[str, Any]) -> dict[str, Any]:
        a, b = text.split("\nA: ")[1].split("\nB: ")
        server.text_of = lambda rating: "[[A]]" if len(a) >= len(b) else "[[B]]"
        return original(text, body)

    original = server.completion
    server.completion = completion  # type: ignore[method-assign]


def test_all_pairs(two: tuple[Bench, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench, answers = two
    with FaultServer() as server:
        prefer_long(server)
        assert pairwise(bench, answers, server, tmp_path / "out", "--dry-run") == {}
        assert server.calls == []
        assert "96 calls to make" in capsys.readouterr().out
        content = pairwise(bench, answers, server, tmp_path / "out")
        # 3 pairs of models, 16 turns, 2 games.
        assert len(server.calls) == 96
        # The folder keeps the replies, in whatever cache it is opened.
        again = pairwise(bench, answers, server, tmp_path / "out", f"judge.store={tmp_path / 'empty'}")
        assert len(server.calls) == 96
    rates = content["pairwise"]["all"]["win_rates"]
    assert (rates["long"]["wins"], rates["long"]["n"]) == (32, 32)
    # `other` and `short` are equally long: the first answer wins in both orders, which is a tie.
    assert (rates["short"]["ties"], rates["short"]["losses"]) == (16, 16)
    bias_found = content["pairwise"]["all"]["bias"]
    assert bias_found["favours_first"] == pytest.approx(16 / 48)
    assert bias_found["longer_wins"] == 1.0
    assert again["pairwise"] == content["pairwise"] and again["calls"] == 0
    # The log is one that replay and agreement read.
    log = read_judgments(tmp_path / "out" / "gpt-4_pair.jsonl")
    assert len(log.pairs) == 48
    words = [f"answers={answers}", f"preset={bench.preset}", f"mirror={bench.mirror}"]
    path = tmp_path / "out" / "gpt-4_pair.jsonl"
    assert main(["replay", f"judgments={path}", f"out={tmp_path / 'replayed'}", *words]) == 0
    replayed = json.loads((tmp_path / "replayed" / "results.json").read_text())["pairwise"]
    assert replayed["all"] == content["pairwise"]["all"]
    assert (replayed["replay"]["prompts_equal"], replayed["replay"]["scores_equal"]) == (96, 96)


def test_against_a_baseline(two: tuple[Bench, Path], tmp_path: Path) -> None:
    bench, answers = two
    with FaultServer() as server:
        prefer_long(server)
        content = pairwise(bench, answers, server, tmp_path / "out", "pairwise.baseline=long")
        assert len(server.calls) == 64
    rates = content["pairwise"]["all"]["win_rates"]
    assert rates["long"]["win_rate"] == 1 and rates["short"]["loss_rate"] == 1


def test_failed_games_are_asked_again(two: tuple[Bench, Path], tmp_path: Path) -> None:
    bench, answers = two
    words = [
        "pairwise",
        f"answers={answers}",
        f"preset={bench.preset}",
        f"mirror={bench.mirror}",
        f"out={tmp_path / 'out'}",
        "judge=gpt-4",
        "judge.retries=0",
        "pairwise.baseline=long",
    ]
    with FaultServer(lambda text, attempt: "500" if "math" in text and not attempt else "ok") as server:
        prefer_long(server)
        url = f"judge.base_url={server.url}"
        assert main([*words, url]) == 1
        first = json.loads((tmp_path / "out" / "results.json").read_text())
        assert first["failed"] == 8 and first["pairwise"]["all"]["bias"]["errors"] == 4
        assert main([*words, url]) == 0
        assert len(server.calls) == 64 + 8


def test_what_is_left_of_a_cut_game_is_no_verdict(two: tuple[Bench, Path], tmp_path: Path) -> None:
    """Cut by a filter it counts as an error, cut by a failure it is asked again."""
    bench, answers = two
    choice = {"message": {"content": "[[A]]"}}
    with FaultServer(
        lambda text, attempt: "filter" if "math" in text else "lost" * (not attempt) or "ok"
    ) as server:
        prefer_long(server)
        server.raw = {
            "filter": (200, {}, {"choices": [choice | {"finish_reason": "content_filter"}]}),
            "lost": (200, {}, {"choices": [choice | {"finish_reason": "error"}]}),
        }
        content = pairwise(
            bench, answers, server, tmp_path / "out", "pairwise.baseline=long", "judge.max_wait=0.01"
        )
    assert content["pairwise"]["all"]["bias"]["errors"] == 4
    assert content["pairwise"]["all"]["win_rates"]["long"]["wins"] == 28
    log = read_judgments(tmp_path / "out" / "gpt-4_pair.jsonl")
    assert [pair.winners for pair in log.pairs].count(("error", "error")) == 4


def test_by_kept_ratings(two: tuple[Bench, Path], tmp_path: Path) -> None:
    bench, answers = two
    runs = []
    with FaultServer() as server:
        for model, rating in (("long", 8), ("short", 8), ("other", 5)):
            server.text_of = lambda _, rating=rating: f"[[{rating}]]"  # type: ignore[misc]
            out = tmp_path / model
            words = [f"answers={answers / f'{model}.jsonl'}", f"out={out}", f"preset={bench.preset}"]
            words += [f"mirror={bench.mirror}", "judge=gpt-4", f"judge.base_url={server.url}"]
            assert main(["judge", *words, "metrics.resamples=20"]) == 0
            runs.append(str(out))
        calls = len(server.calls)
        out = tmp_path / "ratings"
        by_ratings = ["pairwise", *runs, "pairwise.source=ratings", f"out={out}"]
        assert main([*by_ratings, "--dry-run"]) == 0 and not out.exists()
        for word in ("mode=batch", f"answers={answers / 'long.jsonl'}"):
            assert main([*by_ratings[:1], *by_ratings[2:], word]) == 2 and not out.exists()
        assert main([*by_ratings, "judge=gpt-4"]) == 0
        # Named by its model, as judging it was.
        for run in map(MtBenchFolder, map(Path, runs)):
            run.judgments_path("gpt-4").rename(run.judgments_path("j", "judgments"))
        assert main([*by_ratings, "judge=openai", "judge.model=j"]) == 0
        assert len(server.calls) == calls
    rates = json.loads((out / "results.json").read_text())["pairwise"]["all"]["win_rates"]
    assert (rates["long"]["wins"], rates["long"]["ties"]) == (16, 16)
    assert rates["other"]["losses"] == 32


def test_two_runs_of_one_model_are_not_mixed(tmp_path: Path) -> None:
    """Nor are two answer files of one model; the sets of two languages may lie apart."""
    folders = [MtBenchFolder(tmp_path / name) for name in ("one", "two", "english", "other")]
    for folder, model, question in zip(folders, "xxxy", (1, 1, 81, 1), strict=True):
        folder.write_turns(turns_of([ModelAnswer(question, model, ("a", "b"))], {question: "math"}))
    one, two, english, other = folders
    with pytest.raises(InputError, match=f"question 1 is answered in {one.path} and in {two.path}"):
        answers_to_compare([one, two, other], None)
    assert set(answers_to_compare([one, english, other], None)[0]["x"]) == {1, 81}
    row = {"question_id": 1, "model_id": "x", "choices": [{"index": 0, "turns": ["c", "d"]}]}
    file = write_jsonl(tmp_path / "answers" / "x.jsonl", [row, row])
    assert len(read_answers(file)) == 2
    with pytest.raises(InputError, match=f"answered in {one.path} and in {file}"):
        answers_to_compare([one, other], file)
    copied = write_jsonl(file.with_name("y.jsonl"), [row])
    with pytest.raises(InputError, match=f"answered in {file} and in {copied}"):
        read_answers(file.parent)


def rated(run: Path, ratings: Sequence[float | None], reduce: str = "mean", **judge: Any) -> MtBenchFolder:
    """A run of one question with two answers, each judged three times by `judge`, under `preset`."""
    folder = MtBenchFolder(run)
    judgments = [
        Judgment(str(n), run.name, 1, "math", 1, "j", "p", "t", "ok", rating, "none", None, n // 3, n % 3)
        for n, rating in enumerate(ratings)
    ]
    folder.write_judgments("j", judgments)
    content = {
        "preset": {"name": "little", "sha256": judge.pop("preset", "a")},
        "tables": {run.name: {"judge": judge.pop("label", "j"), "reduce": reduce}},
        "judge": {"model": "m", "service": run.name, "parameters": {}} | judge,
    }
    write_checked_json(folder.results_path, content)
    return folder


def test_repeats_and_answers_become_one_rating(tmp_path: Path) -> None:
    """Repeats are reduced as in the run's table; where a rating is missing, the others count."""
    mean = rated(tmp_path / "mean", (9, 2, 1, 6, 6, 6))
    median = rated(tmp_path / "median", (9, 2, 1, 6, 6, None), "median")
    none = rated(tmp_path / "none", (None,) * 6)
    pairs = [("mean", "median"), ("median", "none")]
    matches = list(rated_matches([mean, median, none], pairs, None))
    # 5 and 4; the first judgment of the first answer is 9 in both.
    assert [(match.question_id, match.turn, match.outcome) for match in matches] == [
        (1, 1, "model_1"),
        (1, 1, "error"),
    ]


def test_the_order_of_the_runs_does_not_choose_the_judge(tmp_path: Path) -> None:
    """Without `judge=` it is the only one that has judged every run; a replayed log of it stands for it."""
    one, two, log, other = (rated(tmp_path / name, (5,)) for name in ("one", "two", "log", "other"))
    two.write_judgments("k", two.judgments("j"))
    for run, label in ((log, logged_label("j")), (other, "k")):
        run.judgments_path("j").rename(run.judgments_path(label))
    for runs in permutations((one, two, log)):
        (match,) = rated_matches(runs, [("one", "log")], None)
        assert match.outcome == "tie"
    for several in ((one, other), (other, one), (two,)):
        with pytest.raises(InputError, match=r"whose ratings\? The runs were judged by .*(j|k)"):
            list(rated_matches(several, [], None))
    with pytest.raises(InputError, match="whose ratings") as caught:
        list(rated_matches([one, other], [], "k"))
    assert caught.value.where == "judge=k"


def test_ratings_of_other_prompts_parameters_or_runs_are_not_compared(tmp_path: Path) -> None:
    one = rated(tmp_path / "one", (5, 5, 5))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"preset": "b"}, "the preset"),
        ({"parameters": {"temperature": 1}}, "judge.parameters"),
        ({"model": "n"}, "judge.model"),
        ({"parser": {"rule": "think"}}, "judge.parser"),
    ]
    for made, named in cases:
        other = rated(tmp_path / "two", (5, 5, 5), **made)
        with pytest.raises(
            InputError, match=f"do not compare: {named} is .* in {one.path}, and .*{other.path}"
        ):
            list(rated_matches([one, other], [("one", "two")], "j"))
    # results.json describes another judging: nothing is known of this one.
    other = rated(tmp_path / "two", (5, 5, 5), label="k", model="n")
    assert [match.outcome for match in rated_matches([one, other], [("one", "two")], "j")] == ["tie"]
    with pytest.raises(
        InputError, match=f"two runs of one: .* in {one.path} and in {tmp_path / 'b' / 'one'}"
    ):
        list(rated_matches([one, rated(tmp_path / "b" / "one", (9, 9, 9))], [], None))


def test_what_cannot_be_judged_is_said(
    two: tuple[Bench, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers beside the first, repeats, and nothing in common: never an empty table."""
    bench, _ = two
    for model, question in (("x", 1), ("y", 1), ("z", 2)):
        choices = [{"index": n, "turns": [f"{model}{n}"] * 2} for n in range(3)]
        row = {"question_id": question, "model_id": model, "choices": choices}
        write_jsonl(tmp_path / "more" / f"{model}.jsonl", [row])
    with FaultServer() as server:
        prefer_long(server)
        content = pairwise(bench, tmp_path / "more", server, tmp_path / "out")
        assert len(server.calls) == 4
        assert [line for line in content["missing"] if "beside the first" in line] == [
            f"{model}: 2 answers beside the first to a question" for model in "xyz"
        ]
        (tmp_path / "more" / "y.jsonl").unlink()
        before = (tmp_path / "out" / "results.json").read_bytes()
        words = [f"answers={tmp_path / 'more'}", f"preset={bench.preset}", f"mirror={bench.mirror}"]
        words += [f"out={tmp_path / 'out'}", "judge=gpt-4"]
        assert main(["pairwise", *words]) == 2
        assert "there is no match to judge: x: 2 answers" in capsys.readouterr().err
        assert main(["pairwise", *words, "judge.repeats=3"]) == 2
        assert "option judge.repeats" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    one, other = rated(tmp_path / "one", (5,)), rated(tmp_path / "other", (5,))
    with pytest.raises(InputError, match="there is no match"):
        rated_matches([one, other], [("one", "third")], "j")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "two models are needed"),
        (("pairwise.baseline=nobody",), "no answers of the baseline 'nobody'"),
        (("pairwise.source=ratings",), "two models are needed"),
    ],
)
def test_bad_input(
    words: tuple[str, ...],
    message: str,
    two: tuple[Bench, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench, answers = two
    chosen = answers if any("baseline" in word for word in words) else answers / "long.jsonl"
    common = [
        f"answers={chosen}",
        f"preset={bench.preset}",
        f"mirror={bench.mirror}",
        f"out={tmp_path / 'o'}",
    ]
    assert main(["pairwise", *common, "judge=gpt-4", *words]) == 2
    assert message in capsys.readouterr().err
