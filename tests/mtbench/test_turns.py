"""Answers: the rules of the protocol notes, and a run with a random model killed and continued."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer
from little_bench import Bench, make_bench
from transformers import AutoTokenizer

from evalkit.__main__ import main
from evalkit.core.config import Config, EngineConfig, ModelConfig, RandomShape, ReasoningConfig
from evalkit.core.errors import InputError
from evalkit.core.text import text_sha256
from evalkit.core.types import Completion, Message
from evalkit.engines.local.chat_template import render_chat
from evalkit.mtbench.books import Books, pinned_files
from evalkit.mtbench.fastchat import CATEGORIES, Question
from evalkit.mtbench.folder import MtBenchFolder, turn_id
from evalkit.mtbench.judge.asking import _sampling
from evalkit.mtbench.presets import LengthRule, load_preset
from evalkit.mtbench.turns import (
    AnswerRules,
    answer_rules,
    answered,
    choose_questions,
    clean_answer,
    requests_of_turn,
    takes_system_message,
    with_system,
)
from evalkit.records.run_folder import SampleRecord
from evalkit.tasks.thoughts import Thoughts
from tests.engines.models import save_model
from tests.serving import serving
from tests.thinking import END, START, save_thinking_model
from tests.tiny import engine_of

LLM_JP_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '\n\n### 指示:\n' + message['content'] }}{% elif message['role'] == 'system' %}"
    "{{ '以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。' }}"
    "{% elif message['role'] == 'assistant' %}{{ '\n\n### 応答:\n' + message['content'] + eos_token }}"
    "{% endif %}{% if loop.last and add_generation_prompt %}{{ '\n\n### 応答:\n' }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from evalkit.engines.local.random_model import byte_tokenizer

    return byte_tokenizer()


def with_template(tokenizer: Any, template: str | None) -> Any:
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_rules_of_the_card(tokenizer: Any) -> None:
    rules = answer_rules(load_preset("llm-jp-3-card"), tokenizer, {})
    writing, math = rules.sampling("writing"), rules.sampling("math")
    assert (writing.do_sample, writing.temperature, writing.top_k, writing.top_p) == (True, 0.7, 50, 1.0)
    assert writing.repetition_penalty == 1.0
    assert not math.do_sample
    assert rules.sampling("stem").temperature == 0.1
    assert rules.sampling("something else").temperature == 0.7
    assert rules.assumed == () and rules.from_model == ()
    assert (rules.new_tokens(95), rules.new_tokens(1023), rules.new_tokens(2000)) == (929, 1, 1)
    assert rules.system_message == "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"


def test_the_models_own_settings_count() -> None:
    """top_k, top_p and repetition_penalty of its generation_config; never its temperature."""
    from evalkit.engines.local.random_model import byte_tokenizer

    own = {"temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.05, "do_sample": True}
    rules = answer_rules(load_preset("llm-jp-3-card"), byte_tokenizer(), own)
    writing = rules.sampling("writing")
    assert (writing.temperature, writing.top_p, writing.top_k) == (0.7, 0.9, 50)
    assert writing.repetition_penalty == rules.sampling("math").repetition_penalty == 1.05
    assert rules.from_model == ("top_p", "repetition_penalty")


def test_what_a_preset_leaves_open_is_taken_from_the_card_and_said(tokenizer: Any) -> None:
    rules = answer_rules(load_preset("swallow"), tokenizer, {})
    assert rules.assumed == ("sampling.temperature", "sampling.seed")
    assert rules.answers == 5 and rules.length is LengthRule.new
    assert rules.new_tokens(5000) == 1024
    assert "sampling.other" in answer_rules(load_preset("stability"), tokenizer, {}).assumed


def test_system_messages(tokenizer: Any) -> None:
    """Sent only where the template does something with one."""
    users = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    ignoring, refusing = with_template(tokenizer, users), with_template(tokenizer, refusal + users)
    fixed = with_template(tokenizer, LLM_JP_TEMPLATE)
    assert not takes_system_message(ignoring)
    assert not takes_system_message(refusing)
    assert takes_system_message(fixed)
    assert answer_rules(load_preset("llm-jp-3-card"), refusing, {}).system_message is None
    failing = with_template(tokenizer, "{% if messages[1] is defined %}{{ 1 / 0 }}{% endif %}" + users)
    with pytest.raises(InputError, match="division by zero"):
        takes_system_message(failing)
    chat = (Message("system", "s\n\n"), Message("user", "u"))
    assert with_system(chat, True) == chat
    assert with_system(chat, False) == (Message("user", "s\n\nu"),)


def test_no_chat_template_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"model\.chat_template"):
        answer_rules(load_preset("llm-jp-3-card"), with_template(tokenizer, None), {})


@pytest.mark.sources
def test_prompt_lengths_of_the_card(mirror: Path, cache: Path) -> None:
    """Section 2: 95 tokens on average in turn 1, 364 at most (question 18); turn 2 adds 36, at most 231."""
    from transformers import AutoTokenizer

    llm_jp = AutoTokenizer.from_pretrained(mirror / "llm-jp-tokenizer-v3.0")
    llm_jp.chat_template = LLM_JP_TEMPLATE
    preset = load_preset("llm-jp-3-card")
    book = Books(preset, pinned_files(str(mirror))).in_language("ja")
    rules = answer_rules(preset, llm_jp, {})
    questions = list(book.questions.values())
    first = requests_of_turn(1, "m", questions, rules, llm_jp, {})
    lengths = {ask.record.question_id: 1024 - ask.request.max_new_tokens for ask in first}
    assert round(sum(lengths.values()) / 80) == 95
    assert max(lengths.values()) == lengths[18] == 364
    kept = {ask.record.id: replace(ask.record, completion="答え") for ask in first}
    second = requests_of_turn(2, "m", questions, rules, llm_jp, kept)
    answer = len(llm_jp("答え", add_special_tokens=False)["input_ids"])
    added = [1024 - ask.request.max_new_tokens - lengths[ask.record.question_id] - answer for ask in second]
    assert abs(sum(added) / 80 - 36) < 2
    assert abs(max(added) - 231) <= 2


def test_choice_of_questions() -> None:
    questions = [
        Question(10 * index + place, category, ("a", "b"))
        for index, category in enumerate(CATEGORIES)
        for place in range(10)
    ]
    eight = choose_questions(questions, 8)
    assert [question.category for question in eight] == list(CATEGORIES)
    assert {q.id for q in eight} < {q.id for q in choose_questions(questions, 11)}
    assert choose_questions(questions, 0) == choose_questions(questions, 100) == questions


def test_answers_are_cleaned() -> None:
    assert clean_answer("\n 答え</s><s> です \n", ["<s>", "</s>"]) == "答え です"


def test_total_rule_without_room(tokenizer: Any) -> None:
    rules = AnswerRules({}, 0.0, 50, 1.0, 1.0, 1, 0, LengthRule.total, 40, None, (), ())
    long, short = Question(1, "math", ("x" * 100, "b")), Question(2, "math", ("x", "b"))
    first, second = requests_of_turn(1, "m", [long, short], rules, tokenizer, {})
    assert (first.request.max_new_tokens, first.no_room) == (1, True)
    assert (second.request.max_new_tokens > 1, second.no_room) == (True, False)


def test_second_turns_need_the_first(tokenizer: Any) -> None:
    rules = AnswerRules({}, 0.7, 50, 1.0, 1.0, 2, 0, LengthRule.new, 8, "s", (), ())
    question = Question(1, "math", ("q1", "q2"))
    key = turn_id("m", 1, 1, 1)
    kept = {
        key: SampleRecord(
            id=key,
            model="m",
            question_id=1,
            category="math",
            turn=1,
            answer=1,
            completion="a1",
            generator_state="AAAA",
        )
    }
    (ask,) = requests_of_turn(2, "m", [question], rules, tokenizer, kept)
    assert [(message.role, message.content) for message in ask.request.prompt] == [
        ("system", "s"),
        ("user", "q1"),
        ("assistant", "a1"),
        ("user", "q2"),
    ]
    assert (ask.request.seed, ask.request.generator_state) == (1, "AAAA")
    assert ask.record.answer == 1


@pytest.fixture
def sampled(tmp_path: Path, cache: Path) -> Bench:
    """A bench of 16 questions whose writing, roleplay and stem answers are sampled."""
    temperature = dict.fromkeys(CATEGORIES, 0.0) | {"writing": 0.9, "roleplay": 0.7, "stem": 0.5}
    return make_bench(tmp_path, 2, sampling={"temperature": temperature, "other": 0.0, "seed": 0})


def run(bench: Bench, out: Path, *more: str) -> int:
    return main(
        [
            "model=random",
            "suite=mt-bench-ja",
            f"preset={bench.preset}",
            f"mirror={bench.mirror}",
            f"out={out}",
            "engine.threads=1",
            *more,
        ]
    )


def folder_of(out: Path) -> MtBenchFolder:
    (path,) = (out / "random" / "mt-bench-ja").iterdir()
    return MtBenchFolder(path)


def test_a_run_killed_anywhere_ends_the_same(
    sampled: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(sampled, tmp_path / "whole") == 0
    whole = folder_of(tmp_path / "whole")
    expected = {record.id: record for record in whole.turns()}
    assert len(expected) == 32
    first_turns = [record for record in expected.values() if record.turn == 1]
    stateful = {record.category for record in first_turns if record.generator_state}
    assert stateful == {"writing", "roleplay", "stem"}
    results = json.loads(whole.results_path.read_text())
    assert results["answers"]["random"]["turns"] == 32
    assert results["answers"]["random"]["truncated"] == sum(r.truncated for r in expected.values())
    assert "not judged yet" in capsys.readouterr().out
    lines = whole.samples_path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 32
    for cut in (0, 5, 16, 25):
        # What kill -9 leaves: whole lines and half of the next one, no results.json.
        out = tmp_path / f"cut{cut}"
        assert run(sampled, out, "limit=1") == 0
        folder = folder_of(out)
        folder.samples_path.write_bytes(b"".join(lines[:cut]) + lines[cut][:40])
        folder.results_path.unlink()
        assert run(sampled, out) == 0
        assert {record.id: record for record in folder.turns()} == expected
    capsys.readouterr()
    assert run(sampled, tmp_path / "whole") == 0
    assert "nothing was generated" in capsys.readouterr().out


TURNS = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"


def test_a_template_with_a_clock(sampled: Bench, tmp_path: Path) -> None:
    """Its date is an option, recorded, and names the run; without a clock it names nothing."""
    clock = "model.chat_template={{ strftime_now('%d %B %Y') }}" + TURNS
    dated = "model.template_date=2025-12-01"
    assert run(sampled, tmp_path / "a", "limit=1", clock) == 0
    assert run(sampled, tmp_path / "b", "limit=1", clock, dated) == 0
    assert run(sampled, tmp_path / "c", "limit=1") == 0
    assert run(sampled, tmp_path / "d", "limit=1", dated) == 0
    folders = [folder_of(tmp_path / name).path for name in "abcd"]
    environments = [json.loads((folder / "environment.json").read_text()) for folder in folders]
    dates = [environment["identity"].get("template_date") for environment in environments]
    assert dates == ["2024-07-26", "2025-12-01", None, None]
    assert len({folder.name for folder in folders}) == 3 and folders[2].name == folders[3].name
    prompts = [MtBenchFolder(folder).turns()[0].prompt_sha256 for folder in folders]
    assert len(set(prompts)) == 3 and prompts[2] == prompts[3]


def test_a_template_that_fails_in_the_second_turn(
    sampled: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen before anything is answered."""
    fails = "{% if messages | length > 2 %}{{ messages[0]['nothing'].x }}{% endif %}"
    for template, why in (("{{ messages[-1]['content'] }}", "leaves out"), (TURNS + fails, "nothing")):
        assert run(sampled, tmp_path / "out", f"model.chat_template={template}") == 2
        error = capsys.readouterr().err
        assert why in error and "chat template" in error and "Traceback" not in error
    assert not list((tmp_path / "out").rglob("*.jsonl"))


def test_a_template_that_takes_no_system_message_is_said(tmp_path: Path, cache: Path) -> None:
    bench = make_bench(tmp_path, 1, system_message="規則")
    users = TURNS.replace("in messages", "in messages if m['role'] != 'system'")
    assert run(bench, tmp_path / "out", "limit=1", f"model.chat_template={users}") == 0
    log = (folder_of(tmp_path / "out").path / "run.log").read_text(encoding="utf-8")
    assert "takes no system message" in log


def test_neighbours_and_limits_change_nothing(sampled: Bench, tmp_path: Path) -> None:
    assert run(sampled, tmp_path / "a") == 0
    assert run(sampled, tmp_path / "b", "engine.batch_size=1", "limit=3") == 0
    few = folder_of(tmp_path / "b").turns()
    assert len(few) == 6
    assert run(sampled, tmp_path / "b", "engine.batch_size=3") == 0
    both = [{record.id: record for record in folder_of(tmp_path / name).turns()} for name in "ab"]
    assert both[0] == both[1]


def test_the_generator_runs_on_through_turn_two(sampled: Bench, tmp_path: Path) -> None:
    """Turn 2 goes on where turn 1 stopped: a generator seeded again gives other answers."""
    from evalkit.engines.models import resolve

    assert run(sampled, tmp_path / "a") == 0
    records = {record.id: record for record in folder_of(tmp_path / "a").turns()}
    preset = load_preset(str(sampled.preset))
    book = Books(preset, pinned_files(str(sampled.mirror))).in_language("ja")
    config = Config(model=ModelConfig(name="random", random=RandomShape()), engine=EngineConfig(name="local"))
    assert config.model is not None
    resolved = resolve(config.model, offline=True)
    firsts = {key: record for key, record in records.items() if record.turn == 1}
    with engine_of(config, resolved) as engine:
        from evalkit.engines.local.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(resolved)
        rules = answer_rules(preset, tokenizer, {})
        asks = requests_of_turn(2, "random", list(book.questions.values()), rules, tokenizer, firsts)
        asked = [ask.request for ask in asks if ask.record.category == "writing"]
        going_on = {c.id: c.raw_text for c in engine.generate(asked)}
        afresh = {
            c.id: c.raw_text for c in engine.generate([replace(r, generator_state=None) for r in asked])
        }
    assert going_on == {key: records[key].raw_text for key in going_on}
    assert all(going_on[key] != afresh[key] for key in going_on)


def test_five_answers(tmp_path: Path, cache: Path) -> None:
    """Answer i is sampled with seed i; each is judged by itself."""
    sampling = {"temperature": dict.fromkeys(CATEGORIES, 0.9), "other": 0.9, "answers": 3, "seed": 0}
    bench = make_bench(tmp_path, 1, sampling=sampling, aggregation="swallow")
    assert run(bench, tmp_path / "out") == 0
    folder = folder_of(tmp_path / "out")
    turns = folder.turns()
    assert len(turns) == 8 * 2 * 3
    by_answer = [
        {t.question_id: t.raw_text for t in turns if t.turn == 1 and t.answer == a} for a in range(3)
    ]
    assert by_answer[0] != by_answer[1] != by_answer[2]
    with FaultServer() as server:
        words = ["judge", f"run={folder.path}", f"mirror={bench.mirror}", "judge=openai", "judge.model=j"]
        assert main([*words, f"judge.base_url={server.url}", "metrics.resamples=50"]) == 0
    results = json.loads(folder.results_path.read_text())
    assert results["tables"]["random"]["rows"] == 48
    assert results["tables"]["random"]["deviation_over_answers"] is not None
    assert results["preset"]["name"] == "little"
    assert not results["partial"]["partial"]


def test_a_local_judge(sampled: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model as the judge: its text is no rating, and it is not asked twice."""
    answers = sampled.answers(tmp_path / "answers.jsonl", "m")
    words = ["judge", f"preset={sampled.preset}", f"mirror={sampled.mirror}", "judge=local"]
    words += ["judge.model=random", "judge.parameters.max_tokens=8", "metrics.resamples=50"]
    out = tmp_path / "run"
    assert main([*words, f"answers={answers}", f"out={out}"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["tables"]["m"]["statuses"] == {"unparsed": 32}
    assert results["judge"]["service"] == "local"
    assert results["mt_bench"]["m"]["llm_leaderboard"]["average"] == -1
    assert main([*words, f"run={out}"]) == 0
    assert json.loads((out / "results.json").read_text())["cost"]["calls"] == 0
    assert main([*words, f"run={out}", "judge.parameters.stop=x"]) == 2
    assert "does not know stop" in capsys.readouterr().err
    assert main([*words, f"run={out}", "--dry-run"]) == 0
    assert "cost: none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("max_tokens", "four", "a whole number of at least 1"),
        ("max_tokens", 0, "a whole number of at least 1"),
        ("max_completion_tokens", 1.5, "a whole number of at least 1"),
        ("temperature", "hot", "a number of at least 0"),
        ("temperature", float("nan"), "a number of at least 0"),
        ("top_p", None, "a number of at least 0"),
        ("seed", True, "a whole number of at least 0"),
    ],
)
def test_parameters_of_a_local_judge_that_are_no_numbers(name: str, value: Any, kind: str) -> None:
    with pytest.raises(InputError, match=f"is not {kind}") as caught:
        _sampling({name: value})
    assert caught.value.where == f"option judge.parameters.{name}"


def test_other_weights_in_the_same_folder_are_another_judge(
    sampled: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that is trained on rates anew; the old one's judgments stay its own."""
    model = save_model("llama", tmp_path / "model", seed=0)
    answers = sampled.answers(tmp_path / "answers.jsonl", "m")
    words = ["judge", f"preset={sampled.preset}", f"mirror={sampled.mirror}", "judge=local"]
    words += [f"judge.model={model}", "judge.parameters.max_tokens=4", "metrics.resamples=50"]
    out = tmp_path / "run"
    assert main([*words, f"answers={answers}", f"out={out}"]) == 0
    for seed, calls in ((1, 32), (0, 0)):
        save_model("llama", model, seed=seed)
        capsys.readouterr()
        assert main([*words, f"run={out}", "--dry-run"]) == 0
        assert f"{calls} calls to make" in capsys.readouterr().out


THOUGHT = "よく考える。\n\n答えは4かな。いや、"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_thinking_model(tmp_path_factory.mktemp("models") / "thinking")


def think(bench: Bench, out: Path, model: Path, *more: str) -> MtBenchFolder:
    words = ["model=hf", f"model.path={model}", "model.name=thinker", "suite=mt-bench-ja", f"out={out}"]
    words += [f"preset={bench.preset}", f"mirror={bench.mirror}", "engine.threads=1", "offline=true"]
    assert main([*words, *more]) == 0
    (path,) = (out / "thinker" / "mt-bench-ja").iterdir()
    return MtBenchFolder(path)


def test_answers_go_on_without_their_thoughts(
    thinker: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Local, from a server, and continued after a stop: equal records."""
    bench = make_bench(tmp_path, 1)
    folder = think(bench, tmp_path / "local", thinker, "reasoning.thought_length=50")
    told = capsys.readouterr()
    assert "reasoning.parser=think, by the chat template" in told.err
    assert "thoughts: 0% never ended" in told.out and "median length 4 tokens" in told.out
    turns = {turn.id: turn for turn in folder.turns()}
    assert len(turns) == 16
    for turn in turns.values():
        assert turn.split is not None
        assert (turn.completion, turn.raw_text) == ("3", f"{START}{THOUGHT}{END}\n3")
        assert (turn.split.thought, turn.split.status, turn.split.rule) == (THOUGHT, "answered", "think")
    book = Books(load_preset(str(bench.preset)), pinned_files(str(bench.mirror))).in_language("ja")
    question, tokenizer = book.questions[1], AutoTokenizer.from_pretrained(thinker)
    chat = [Message("user", question.turns[0]), Message("assistant", "3"), Message("user", question.turns[1])]
    second = turns[turn_id("thinker", 1, 2, 0)]
    assert second.prompt_sha256 == text_sha256(render_chat(chat, tokenizer))
    content = json.loads(folder.results_path.read_text(encoding="utf-8"))
    assert content["answers"]["thinker"]["thoughts"] == {
        "n": 16,
        "unclosed": 0,
        "empty": 0,
        "cut_off": 0,
        "no_thought": 0,
        "late_thought": 0,
        "tool_call": 0,
        "median_thought_tokens": 4,
    }
    lines = folder.samples_path.read_bytes().splitlines(keepends=True)
    folder.samples_path.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    folder.results_path.unlink()
    again = think(bench, tmp_path / "local", thinker, "reasoning.thought_length=50")
    assert {turn.id: turn for turn in again.turns()} == turns
    config = Config(
        model=ModelConfig(name="thinker", path=str(thinker)),
        engine=EngineConfig(name="local", device="cpu", threads=1),
    )
    with serving(config) as server:
        words = ("reasoning.thought_length=50", "engine=api", f"engine.base_url={server.url}")
        served = think(bench, tmp_path / "served", thinker, *words)
    made = ("completion", "raw_text", "split", "prompt_sha256", "truncated")
    both = [
        {turn.id: [getattr(turn, name) for name in made] for turn in records}
        for records in (served.turns(), turns.values())
    ]
    assert both[0] == both[1]


def test_an_unclosed_thought_is_an_empty_answer_that_is_judged(
    thinker: Path,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    bench = make_bench(tmp_path, 1, length={"rule": "new", "tokens": 1})
    folder = think(bench, tmp_path / "out", thinker, "reasoning.thought_length=2")
    assert "thoughts: 100% never ended" in capsys.readouterr().out
    turns = folder.turns()
    assert {(turn.completion, turn.split.status) for turn in turns if turn.split} == {("", "unclosed")}
    words = ["judge", f"run={folder.path}", f"mirror={bench.mirror}", "judge=gpt-4", "metrics.resamples=20"]
    with FaultServer() as server:
        assert main([*words, f"judge.base_url={server.url}", "judge.identity=test"]) == 0
        assert len(server.calls) == 16 and not any("よく考える" in text for text in server.calls)
        assert any(text.endswith("[Answer]\n") for text in server.calls)
    content = json.loads(folder.results_path.read_text(encoding="utf-8"))
    answers = content["answers"]["thinker"]
    assert (answers["empty"], answers["thoughts"]["unclosed"]) == (16, 1)
    assert content["tables"]["thinker"]["statuses"] == {"ok": 16} and not content["partial"]["partial"]
    told = capsys.readouterr().out
    assert "warning: where the thought never ended" in told


def test_a_thought_that_a_server_split_off_is_no_part_of_the_answer() -> None:
    rules = AnswerRules({}, 0.0, 50, 1.0, 1.0, 1, 0, LengthRule.new, 8, None, (), ())
    thoughts = Thoughts.named(ReasoningConfig(thought_length=50), "think")
    (ask,) = requests_of_turn(1, "m", [Question(1, "math", ("a", "b"))], rules, None, {}, thoughts)
    assert (ask.request.max_new_tokens, ask.request.keep_special) == (58, True)
    done = Completion("x", "答え", "答え", "stop", 1, 1, served_thought="考え")
    record = answered(ask, done, [], thoughts)
    assert record.split is not None
    assert (record.completion, record.split.thought, record.split.served_thought) == ("答え", "考え", "考え")
    assert SampleRecord.from_line(record.line(), Path("x.jsonl")) == record


@pytest.mark.parametrize(
    ("rule", "raw", "status"),
    [
        ("think", "答え", "cut_off"),
        ("think", "答え\n\n次の問い", "answered"),
        ("lm-eval", "答え\n\n次の問い", "answered"),
        ("swallow", "<think>答え", "cut_off"),
        ("think", "", "unclosed"),
        ("harmony", "analysis 3", "cut_off"),
        ("none", "", "unclosed"),
        ("think", "<think>答え", "unclosed"),
        ("harmony", "<|channel|>commentary to=functions.f<|message|>{}<|call|>", "tool_call"),
    ],
)
def test_what_became_of_an_answer_whose_thought_a_server_split_off(rule: str, raw: str, status: str) -> None:
    """As of a whole completion: behind the end of an answer nothing is missed."""
    thoughts = Thoughts.named(ReasoningConfig(), rule)
    record = thoughts.reply(
        Completion("q", raw, raw, "length", 0, 0, served_thought="考え"),
        opened=False,
        output_length=8,
        tokenizer=None,
        ends=("\n\n",),
    )
    assert (record.thought, record.status) == ("考え", status)


def test_a_pattern_that_takes_too_long_costs_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = AnswerRules({}, 0.0, 50, 1.0, 1.0, 1, 0, LengthRule.new, 8, None, (), ())
    thoughts = Thoughts.named(ReasoningConfig(pattern="(?P<answer>(a|aa)+)c"), "regex")
    (ask,) = requests_of_turn(1, "m", [Question(1, "math", ("a", "b"))], rules, None, {}, thoughts)
    monkeypatch.setattr("evalkit.tasks.answers._SECONDS", 0.2)
    text = "a" * 60 + "b"
    record = answered(ask, Completion("x", text, text, "stop", 1, 1), [], thoughts)
    assert (record.completion, record.raw_text, record.split) == ("", text, None)
    assert record.error and "takes more than" in record.error


def test_what_a_preset_sends_is_not_the_models_to_choose(tokenizer: Any) -> None:
    own = {"top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05}
    rules = answer_rules(load_preset("llm-jp-judge-2"), tokenizer, own)
    writing = rules.sampling("writing")
    assert (writing.temperature, writing.top_k, writing.top_p) == (0.7, 0, 1.0)
    assert rules.from_model == ("repetition_penalty",)
    assert rules.new_tokens(5000) == 1024
