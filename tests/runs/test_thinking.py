"""Runs of a scripted model that thinks before it answers, through the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.config import Config, EngineConfig, ModelConfig
from evalkit.core.durable import read_log
from evalkit.core.text import text_sha256
from tests.serving import serving
from tests.thinking import END, SCRIPT, START, save_thinking_model

TASKS = "suite.tasks=[jcommonsenseqa,jemhopqa]"
THOUGHT = "よく考える。\n\n答えは4かな。いや、"
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_thinking_model(tmp_path_factory.mktemp("models") / "thinking")


@pytest.fixture
def run(model: Path, tmp_path: Path, cache: Path) -> Run:
    def evaluate(*words: str, out: str = "out", code: int = 0, path: Path = model) -> Path:
        command = ["model=hf", f"model.path={path}", "model.name=thinker", "suite=sample", TASKS, "limit=2"]
        command += ["offline=true", "engine.threads=1", f"out={tmp_path / out}", *words]
        assert main(command) == code
        folders = [p.parent for p in (tmp_path / out).glob("thinker/sample/*/results.json")]
        return max(folders, key=lambda folder: folder.stat().st_mtime_ns) if folders else tmp_path

    return evaluate


def rows(folder: Path, task: str = "jcommonsenseqa", kind: str = "samples") -> dict[str, dict[str, Any]]:
    return read_log(folder / kind / f"{task}.jsonl")[0]


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return content


def test_the_thought_is_split_off_and_the_answer_graded(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("suite.chat=true", "reasoning.thought_length=50")
    assert "reasoning.parser=think, by the chat template" in capsys.readouterr().err
    first, *_ = rows(folder).values()
    # The blank line within the thought has ended nothing.
    assert first["raw_text"] == f"{START}{THOUGHT}{END}\n3"
    assert (first["thought"], first["answer"], first["status"]) == (THOUGHT, "3", "answered")
    assert (first["rule"], first["thought_tokens"], first["answer_tokens"]) == ("think", 4, 1)
    assert all(row["prediction"] == "3" for row in rows(folder, kind="scores").values())
    thoughts = results(folder)["datasets"]["jcommonsenseqa"]["thoughts"]
    assert (thoughts["unclosed"], thoughts["empty"], thoughts["median_thought_tokens"]) == (0, 0, 4)


def test_without_chat_nothing_is_split_and_the_marks_are_a_warning(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    assert not {"thought", "rule", "status"} & set(next(iter(rows(folder).values())))
    assert "thoughts" not in results(folder)["datasets"]["jcommonsenseqa"]
    assert "reasoning" not in results(folder)["run"]["identity"]
    capsys.readouterr()


def test_a_thought_that_does_not_end_is_wrong_and_counted(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("suite.chat=true", "reasoning.thought_length=2")
    first, *_ = rows(folder).values()
    assert (first["status"], first["answer"], first["finish_reason"]) == ("unclosed", "", "length")
    content = results(folder)
    assert content["datasets"]["jcommonsenseqa"]["thoughts"]["unclosed"] == 1
    assert "of the thoughts never ended" in "".join(content["run"]["warnings"])
    assert "of the thoughts never ended" in capsys.readouterr().err


def test_a_short_thought_buys_no_longer_answer(run: Run, tmp_path: Path) -> None:
    script = (START, "うん", END, *(f"答{number}" for number in range(8)))
    talker = save_thinking_model(tmp_path / "talker", script)
    folder = run("suite.chat=true", "reasoning.thought_length=100", path=talker)
    first, *_ = rows(folder).values()
    assert first["raw_text"].endswith("答7")
    # jcommonsenseqa's answers have one token.
    assert (first["answer"], first["status"], first["answer_tokens"]) == ("答0", "cut_off", 1)


def test_a_server_and_a_restart_give_the_same_records(run: Run, model: Path, tmp_path: Path) -> None:
    words = ("suite.chat=true", "reasoning.thought_length=50")
    local = run(*words)
    config = Config(
        model=ModelConfig(name="thinker", path=str(model)),
        engine=EngineConfig(name="local", device="cpu", threads=1),
    )
    with serving(config) as server:
        served = run(*words, "engine=api", f"engine.base_url={server.url}", out="served")
    half = tmp_path / "half" / local.relative_to(tmp_path / "out")
    shutil.copytree(local, half)
    (half / "results.json").unlink()
    lines = (half / "samples" / "jemhopqa.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (half / "samples" / "jemhopqa.jsonl").write_text(lines[0] + lines[1][:50], encoding="utf-8")
    again = run(*words, out="half")
    assert again == half
    for task in ("jcommonsenseqa", "jemhopqa"):
        assert rows(local, task) == rows(served, task) == rows(again, task)


def test_the_thought_of_a_server_that_splits_is_kept_beside_the_rule(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalkit.services import replies

    def split(message: object) -> str | None:
        assert isinstance(message, dict)
        thought, _, answer = str(message["content"]).removeprefix(START).partition(END)
        message["content"] = answer
        return thought

    config = Config(
        model=ModelConfig(name="thinker", path=str(model)),
        engine=EngineConfig(name="local", device="cpu", threads=1),
    )
    # As a server with a reasoning parser answers: the thought in a field of its own.
    text = replies._text

    def without_thought(choice: Any) -> Any:
        choice["message"]["reasoning_content"] = split(choice["message"])
        return text(choice)

    monkeypatch.setattr(replies, "_text", without_thought)
    with serving(config) as server:
        folder = run(
            "suite.chat=true", "reasoning.thought_length=50", "engine=api", f"engine.base_url={server.url}"
        )
        bare = run("suite.chat=true", "reasoning.parser=none", "engine=api", f"engine.base_url={server.url}")
    first, *_ = rows(folder).values()
    assert (first["served_thought"], first["raw_text"]) == (THOUGHT, "\n3")
    assert (first["thought"], first["answer"], first["status"]) == (THOUGHT, "3", "answered")
    # Without a rule it is kept too, and the words say what to do.
    first, *_ = rows(bare, "jemhopqa").values()
    assert first["served_thought"].startswith("よく考える。")
    assert (first["rule"], first["answer"].strip(), first["status"]) == ("none", "", "empty")
    assert results(bare)["datasets"]["jcommonsenseqa"]["thoughts"]["unclosed"] == 1
    assert "reasoning.parser=think" in "".join(results(bare)["run"]["warnings"])
    assert main(["score", f"run={bare}", "reasoning.parser=think"]) == 0
    assert results(bare)["datasets"]["jemhopqa"]["thoughts"]["empty"] == 1
    assert "reasoning.parser=think" not in "".join(results(bare)["run"]["warnings"])


def test_kept_raw_texts_are_split_anew_by_another_rule(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("suite.chat=true", "reasoning.thought_length=50")
    before = (folder / "samples" / "jemhopqa.jsonl").read_bytes()
    assert main(["score", f"run={folder}", "reasoning.parser=none"]) == 0
    assert "reasoning.parser" in capsys.readouterr().out
    graded = {row["prediction"] for row in rows(folder, "jemhopqa", "scores").values()}
    assert graded == {f"{START}よく考える。"}
    assert results(folder)["protocol"]["deviations"]["reasoning.parser"] == "none"
    assert (
        main(["score", f"run={folder}", "reasoning.parser=regex", "reasoning.pattern=は(?P<answer>.)"]) == 0
    )
    assert {row["prediction"] for row in rows(folder, "jemhopqa", "scores").values()} == {"4"}
    assert (folder / "samples" / "jemhopqa.jsonl").read_bytes() == before


def test_the_terminal_says_what_became_of_the_thoughts(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("suite.chat=true", "reasoning.thought_length=2")
    said = capsys.readouterr()
    assert said.err.count("of the thoughts never ended") == 1
    report = " ".join(said.out.split())
    assert "100% unclosed" in report and "median thought" in report
    assert "thoughts are split off by the rule: think" in report


def test_chat_is_offered_for_comparison_with_plain(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    plain = run()
    capsys.readouterr()
    chat = run("suite.chat=true", "reasoning.thought_length=50")
    said = capsys.readouterr().out
    assert f"compare {chat} {plain} --across-rules" in said.replace("\n", "")
    assert main(["compare", str(chat), str(plain), "--across-rules"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "across rules: reasoning.parser differs: think and none" in said
    assert "across rules: suite.chat differs: True and False" in said
    assert f"thinker ({chat.name}) - thinker ({plain.name})" in said


def test_a_scoring_by_another_rule_leaves_no_words_of_the_one_before(run: Run, tmp_path: Path) -> None:
    folder = run("suite.chat=true", "reasoning.thought_length=2")
    assert results(folder)["run"]["warnings"]
    words = ["score", f"run={folder}"]
    assert main([*words, "reasoning.parser=regex", "reasoning.pattern=(?P<answer>.*)"]) == 0
    assert results(folder)["run"]["warnings"] == []
    # The pattern of the scoring before is no option of this one.
    assert main([*words, "reasoning.parser=shaberi"]) == 0
    assert results(folder)["protocol"]["deviations"]["reasoning.parser"] == "shaberi"
    # Without a rule it is the run's own, with the tags that are given.
    assert main([*words, "reasoning.end=よく"]) == 0
    graded = {row["prediction"] for row in rows(folder, "jemhopqa", "scores").values()}
    assert graded == {"考える。"}


def test_a_further_pass_at_k_is_computed_from_what_is_kept(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("suite.chat=true", "reasoning.thought_length=50", "generation=swallow", "samples=3")
    run(*words)
    folder = run(*words, "metrics.pass_at=[1,2]")
    metrics = results(folder)["datasets"]["jcommonsenseqa"]["metrics"]
    assert {"exact_match_pass@1", "exact_match_pass@2"} <= set(metrics)
    assert "metrics.pass_at" not in results(folder)["protocol"]["deviations"]


def test_completions_made_elsewhere_are_split_by_a_rule(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("suite.chat=true", "reasoning.thought_length=50")
    given = tmp_path / "given"
    given.mkdir()
    for task in ("jcommonsenseqa", "jemhopqa"):
        lines = [{"id": key, "completion": row["raw_text"]} for key, row in rows(folder, task).items()]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (given / f"{task}.jsonl").write_text(text, encoding="utf-8")
    command = ["score", "suite=sample", TASKS, "limit=2", f"completions={given}", "offline=true"]
    assert main([*command, "reasoning.start=<r>", f"out={tmp_path / 'no'}"]) == 2
    for parser, prediction in ((["reasoning.parser=think"], "3"), ([], f"{START}よく考える。")):
        out = tmp_path / f"scored-{len(parser)}"
        capsys.readouterr()
        assert main([*command, *parser, f"out={out}"]) == 0
        assert {row["prediction"] for row in rows(out, kind="scores").values()} == {prediction}
        assert ("no rule splits them" in capsys.readouterr().err) is not bool(parser)


def test_a_prompt_that_opens_the_thought(run: Run) -> None:
    folder = run(
        "suite.chat=true", "model.chat_template_args.open_thought=true", "reasoning.thought_length=50"
    )
    first, *_ = rows(folder).values()
    # The script goes on behind the tag, which is in the prompt.
    assert first["raw_text"].startswith("よく考える。") and first["opened"] is True
    assert (first["thought"], first["status"]) == (THOUGHT, "answered")
    assert results(folder)["run"]["identity"]["chat"]["template_args"] == {"open_thought": True}
    # Another rule knows it too of a run without one, whose answer a blank line ended.
    plain = run("suite.chat=true", "model.chat_template_args.open_thought=true", "reasoning.parser=none")
    assert main(["score", f"run={plain}", "reasoning.parser=think"]) == 0
    assert {row["status"] for row in rows(plain, "jemhopqa", "scores").values()} == {"unclosed"}


def test_several_samples_have_seeds_of_their_own_and_more_continue_fewer(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("suite.chat=true", "reasoning.thought_length=50", "generation=swallow")
    few = run(*words, "samples=2")
    kept = rows(few)
    assert list(kept) == [
        f"jcommonsenseqa/bundled/{question}/{repeat}" for question in (0, 1) for repeat in (1, 2)
    ]
    capsys.readouterr()
    more = run(*words, "samples=3")
    assert few == more and "8 of 12" in capsys.readouterr().err
    assert {key: rows(more)[key] for key in kept} == kept
    content = results(more)
    assert {"exact_match_avg@3", "exact_match_pass@3"} <= set(
        content["datasets"]["jcommonsenseqa"]["metrics"]
    )
    assert content["scores"]["jcommonsenseqa_exact_match_avg@3"]["n"] == 2
    question, *_ = rows(more, kind="scores").values()
    assert [one["id"][-2:] for one in question["repeats"]] == ["/1", "/2", "/3"]
    assert (
        content["categories"]["MC"]["value"] == content["scores"]["jcommonsenseqa_exact_match_avg@3"]["value"]
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("reasoning.thought_length=5",), "add suite.chat=true"),
        (("reasoning.start=<r>",), "option reasoning.start"),
        (("suite.chat=true", "reasoning.parser=none", "reasoning.pattern=x"), "add reasoning.parser=regex"),
        (("model.chat_template_args.enable_thinking=false",), "add suite.chat=true"),
        (("metrics.pass_at=[1]",), "add samples=N"),
        (("samples=2",), "greedy search gives the same answer"),
        (("samples=2", "generation.from_model=true"), "own generation_config is greedy"),
        (("generation.temperature=0.5",), "add generation.do_sample=true"),
        (("suite.chat_turns=true",), "add suite.chat=true"),
        (("suite.system=X",), "add suite.chat=true"),
        (("suite.chat=true", "reasoning.parser=regex"), "reasoning.pattern"),
        (("suite.chat=true", "model.chat_template_args.tokenize=true"), "model.chat_template_args.tokenize"),
        (("suite.chat=true", "model.chat_template={{ messages[0].role }}"), "leaves out or changes"),
    ],
)
def test_contradictions_are_one_message(
    run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    run(*words, code=2)
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_chat_needs_a_template(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = save_thinking_model(tmp_path / "plain", SCRIPT, template="")
    run("suite.chat=true", code=2, path=plain)
    assert "has no chat template" in capsys.readouterr().err


def test_prompts_shows_what_a_chat_run_asks(
    run: Run, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("suite.chat=true", "suite.system=短く答える。", "reasoning.thought_length=50")
    words = ["suite=sample", TASKS, "limit=2", "suite.chat=true", "suite.system=短く答える。"]
    words += ["reasoning.thought_length=50", f"out={tmp_path / 'prompts'}"]
    assert main(["prompts", *words, "model=hf", f"model.path={model}"]) == 0
    lines = (tmp_path / "prompts" / "jcommonsenseqa.jsonl").read_text(encoding="utf-8").splitlines()
    asked = {line["id"]: line for line in map(json.loads, lines)}
    for key, row in rows(folder).items():
        assert text_sha256(asked[key]["prompt"]) == row["prompt_sha256"]
        assert [one["role"] for one in asked[key]["messages"]] == ["system", "user"]
        assert (asked[key]["max_new_tokens"], asked[key]["stop"]) == (51, [])
    capsys.readouterr()
    sampled = ["generation=swallow", "samples=2"]
    assert main(["prompts", *words, *sampled]) == 0
    lines = (tmp_path / "prompts" / "jcommonsenseqa.jsonl").read_text(encoding="utf-8").splitlines()
    first, second, *_ = map(json.loads, lines)
    assert len(lines) == 4 and [first["id"][-2:], second["id"][-2:]] == ["/1", "/2"]
    assert first["seed"] != second["seed"] and first["temperature"] == 0.6
    assert main(["prompts", *words, "suite.chat_turns=true"]) == 0
    line = json.loads((tmp_path / "prompts" / "jemhopqa.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert [one["role"] for one in line["messages"]] == ["system", *["user", "assistant"] * 4, "user"]
    assert "prompt" not in line


HARMONY = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    "{# this family writes <|channel|>analysis<|message|> #}"
)


def test_harmony_keeps_the_special_tokens_it_reads(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Each piece stands once in a script, so it is the analysis alone: a thought without an answer.
    spoken = ("<|channel|>", "analysis", "<|message|>", "考える。\n\n", "<|end|>")
    model = save_thinking_model(tmp_path / "harmony", spoken, template=HARMONY)
    folder = run("suite.chat=true", "reasoning.thought_length=50", path=model)
    assert "reasoning.parser=harmony" in capsys.readouterr().err
    first, *_ = rows(folder).values()
    assert first["raw_text"] == "<|channel|>analysis<|message|>考える。\n\n<|end|>"
    assert (first["thought"], first["answer"], first["status"]) == ("考える。", "", "unclosed")


def test_a_text_that_only_begins_like_harmony_without_its_tokens(run: Run, tmp_path: Path) -> None:
    model = save_thinking_model(tmp_path / "plain", ("analysis", "する"), template=HARMONY)
    folder = run("suite.chat=true", "reasoning.thought_length=50", path=model)
    first, *_ = rows(folder).values()
    # The local engine loses no special token, so this is an answer; the task allows it one token.
    assert (first["answer"], first["status"]) == ("analysis", "cut_off")
    # A server may lose them: every text is kept, and another rule reads it.
    config = Config(
        model=ModelConfig(name="thinker", path=str(model)),
        engine=EngineConfig(name="local", device="cpu", threads=1),
    )
    with serving(config) as server:
        words = ("suite.chat=true", "engine=api", f"engine.base_url={server.url}")
        run(*words, "reasoning.thought_length=50", out="served", path=model, code=2)
    (kept,) = (tmp_path / "served").glob("thinker/sample/*")
    assert len(rows(kept)) == 2
    assert main(["score", f"run={kept}", "reasoning.parser=none", "allow_missing=true"]) == 0


def test_a_pattern_that_takes_too_long_loses_no_answer(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from evalkit.tasks import answers

    monkeypatch.setattr(answers, "_SECONDS", 1e-9)
    folder = run(
        "suite.chat=true", "reasoning.thought_length=50", "reasoning.parser=regex",
        "reasoning.pattern=(?P<thought>(.*)*)答えは(?P<answer>.)", code=2,
    )  # fmt: skip
    assert "reasoning.pattern" in capsys.readouterr().err
    (kept,) = folder.glob("out/thinker/sample/*")
    assert len(rows(kept)) == 2 and not (kept / "results.json").exists()
    monkeypatch.undo()
