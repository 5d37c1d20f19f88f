import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest

from evalkit.__main__ import main
from evalkit.cli.command import VERBS, options_of, refuse_other_options
from evalkit.core import assets
from evalkit.core.config import (
    BosRule,
    Config,
    Dtype,
    ExportFormat,
    Split,
    SuiteData,
    given_model,
    given_suite,
)
from evalkit.core.errors import InputError
from evalkit.core.habits import HABITS, OF_VERB
from evalkit.core.options import all_options, check_key, load_config, parse, words_of


def config_of(*words: str) -> Config:
    return load_config(parse(words, VERBS))


def refusal(*words: str) -> str:
    with pytest.raises(InputError) as caught:
        config_of(*words)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_question_may_be_an_equation() -> None:
    line = parse(["ask", "model=random", "y=2x+1の傾きは?", "seed=1"], ["ask"])
    assert (line.folders, line.overrides) == (("y=2x+1の傾きは?",), ("model=random", "seed=1"))


@pytest.mark.parametrize("word", ["n=10のとき", "temperature=300Kの圧力は?", "答え=3", "pi=3.14"])
def test_what_is_like_no_option_is_a_question(word: str) -> None:
    assert parse(["ask", "model=random", word], ["ask"]).folders == (word,)


@pytest.mark.parametrize(
    "name", ["pi", "sin", "log", "area", "size", "rate", "date", "mean", "base", "name", "speed", "limit"]
)
def test_an_equation_is_held_against_the_options_of_ask_alone(name: str) -> None:
    word = f"{name}=60km/hのとき"
    line = parse(["ask", "model=random", word], VERBS, options_of)
    refuse_other_options(line)
    assert line.folders == (word,)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("tempreature=0.5", "did you mean 'ask.temperature'?"),
        ("modle=m", "did you mean 'model'"),
        ("ask.foo=1", "unknown option 'ask.foo'"),
        ("speed=3", "did you mean 'seed'"),
        ("limit=3", "`limit=` is no option"),
        ("task=3", "task= is suite="),
    ],
)
def test_what_is_taken_for_an_option_has_a_way_to_be_a_question(word: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        refuse_other_options(parse(["ask", "model=random", word], VERBS, options_of))
    assert "in a question write a space before =" in str(caught.value)
    spaced = word.replace("=", " =")
    assert parse(["ask", "model=random", spaced], VERBS, options_of).folders == (spaced,)


@pytest.mark.parametrize("word", ["ask.temprature=0", "tempratur=0", "a.b=1"])
def test_a_misspelt_option_is_no_question(word: str) -> None:
    line = parse(["ask", "model=random", word, "問い"], ["ask"])
    assert line.folders == ("問い",) and word in line.overrides
    with pytest.raises(InputError, match="unknown option"):
        load_config(line)


def test_run_is_the_default_verb() -> None:
    assert parse(["model=1.8b"], VERBS).verb == "run"
    assert parse(["prepare", "suite=mc"], VERBS).verb == "prepare"
    assert parse(["suite=mc", "prepare"], VERBS).verb == "prepare"


def test_groups_fill_the_structured_config() -> None:
    config = config_of("model=1.8b-instruct", "suite=nli", "limit=7", "dtype=float32")
    assert config.model is not None and config.suite is not None
    assert config.model.path == "llm-jp/llm-jp-3-1.8b-instruct"
    assert config.suite.tasks == ["jamp", "janli", "jnli", "jsem", "jsick"]
    assert (config.limit, config.dtype, config.suite.data) == (7, Dtype.float32, SuiteData.prepared)
    assert config.protocol.bos is BosRule.auto


def test_every_group_member_composes() -> None:
    groups = ("model", "suite", "engine", "judge")
    names = [[path.stem for path in Path(assets.CONF, group).glob("*.yaml")] for group in groups]
    assert all(len(members) > 1 for members in names)
    for chosen in itertools.zip_longest(*names):
        words = [f"{group}={name}" for group, name in zip(groups, chosen, strict=True) if name]
        config = config_of(*words)
        for word in words:
            assert getattr(config, word.partition("=")[0]) is not None, word


@pytest.mark.parametrize(
    "path",
    ["/a=b/c,d", "/with space/x", "/日本語/モデル", "/quo'te\"s", "1e5", "[x]", "{a:b}", "a: b", "/x/${y}"],
)
def test_text_options_are_taken_word_for_word(path: str) -> None:
    config = config_of("model=hf", f"model.path={path}", f"out={path}", f"data_dir={path}", f"mirror={path}")
    assert config.model is not None
    assert [config.model.path, config.out, config.data_dir, config.mirror] == [path] * 4


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("[jamp,janli]", ["jamp", "janli"]),
        ("[ jamp , janli ]", ["jamp", "janli"]),
        ("jamp", ["jamp"]),
        ("[]", []),
        ("[/日本 語/a=b/${x}.yaml,jamp]", ["/日本 語/a=b/${x}.yaml", "jamp"]),
        ("['a,b.yaml',\"c d.yaml\"]", ["a,b.yaml", "c d.yaml"]),
    ],
)
def test_items_of_lists_are_taken_word_for_word(value: str, items: list[str]) -> None:
    config = config_of("suite=task", f"suite.tasks={value}")
    assert config.suite is not None and config.suite.tasks == items


def test_a_system_message_may_be_empty() -> None:
    config = config_of("suite=jamp", "suite.system=", "ask.system=")
    assert config.suite is not None and (config.suite.system, config.ask.system) == ("", "")


def test_null_clears_a_text_option() -> None:
    config = config_of("model=1.8b", "model.revision=abc", "model.path=null")
    assert config.model is not None and config.model.path is None


def test_regular_expressions_need_no_quotes() -> None:
    config = config_of(r"protocol.answer_regex=答えは\s*([0-9,.]+)。")
    assert config.protocol.answer_regex == r"答えは\s*([0-9,.]+)。"


def test_values_of_choices_are_written_as_documented() -> None:
    assert config_of("export=llm-jp-eval").export is ExportFormat.llm_jp_eval


def test_lists_and_flags() -> None:
    config = config_of("suite=task", "suite.tasks=[jamp,janli]", "--long")
    assert config.suite is not None and config.suite.tasks == ["jamp", "janli"] and config.long


def test_numbers_of_few_shots_are_given_by_the_name_of_a_task() -> None:
    names = {"alt-e-to-j": 2, "日本.v-1": 0}
    words = [f"suite.num_few_shots.{name}={count}" for name, count in names.items()]
    config = config_of("suite=jaster", *words)
    assert config.suite is not None and config.suite.num_few_shots == names


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["modle=1.8b"], "'model'"),
        (["model=1.8b-instrct"], "'1.8b-instruct'"),
        (["suite=jastr"], "'jaster'"),
        (["limit=abc"], "limit=abc"),
        (["num_few_shots=4.5"], "num_few_shots"),
        (["dtype=floa32"], "'float32'"),
        (["model=hf", "model.pth=x"], "'model.path'"),
        (["model.path=x"], "model=hf"),
        (["model=llama"], "owner/name"),
        (["model=a/b,c/d"], "evalkit -m model=a/b,c/d"),
        (["model=a/b", "model.path=c"], "both are given"),
        (["suite=jamp", "suite.tasks=[jnli]"], "both are given"),
        (["suite=jcommonsenseqa,jampp"], "unknown suite 'jampp'; did you mean 'jamp'"),
        (["prepare", "suite=[jaster,my.yaml,foo]"], "unknown suite 'foo'"),
        (["model=1.8b,a/b,1.8b-instrct"], "unknown model '1.8b-instrct'; did you mean '1.8b-instruct'"),
        (["suite=nli,mifeval-ja,mt-bench-ja"], "evalkit -m suite=nli,mifeval-ja,mt-bench-ja"),
        (["prepare", "suite=[jamp,mifeval-ja]"], "evalkit -m prepare suite=jamp,mifeval-ja"),
        (["suite=JAMP"], "did you mean 'jamp'"),
        (["suite=a/d.csv"], "a task file in YAML that names a/d.csv"),
        (["engine=hf"], "did you mean 'local'"),
        (["engine=transformers"], "did you mean 'local'"),
        (["--tasks", "list"], "evalkit list tasks"),
        (["model="], "model= has no value"),
        (["suite="], "suite= has no value"),
        (["protocol.answer_regex="], "protocol.answer_regex= has no value"),
        (["suite=task", "suite.tasks="], "suite.tasks= has no value"),
        (["out="], "out= has no value"),
        (["run="], "run= has no value"),
        (["data_dir="], "data_dir= has no value"),
        (["suite=jcommonsensqa"], "'jcommonsenseqa'"),
        (["model=hf", "model.random.layers=3"], "this model has no model.random"),
        (["seed={a"], "seed={a"),
        (["split=tset"], "'test'"),
        (["num_few_shots=-1"], "below 0"),
        (["suite=mc", "suite.num_few_shots.jcommonsenseqa=x"], "suite.num_few_shots.jcommonsenseqa"),
        (["suite.num_few_shots.jamp=2"], "suite=task"),
        (["engine.batch_size=0"], "below 1"),
        (["model=random", "model.random.layers=0"], "model.random.layers=0"),
        (["engine=locla"], "'local'"),
        (["rnu"], "'run'"),
        (["list", "--lnog"], "'--long'"),
        (["run", "results"], "no option"),
    ],
)
def test_mistakes_are_named_with_the_near_names(words: list[str], expected: str) -> None:
    assert expected in refusal(*words)


def test_a_hub_name_or_a_folder_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("日本 語", "a,b", "plain"):
        (tmp_path / name).mkdir()
    for place in ("owner/name", "./somewhere", "~/m", str(tmp_path), "日本 語", "a,b", "plain", "."):
        config = config_of(f"model={place}", "model.revision=main")
        assert config.model is not None and (config.model.path, config.model.revision) == (place, "main")
        assert config == replace(
            config_of("model=hf", f"model.path={place}", "model.revision=main"), given=ANY
        )


@pytest.mark.parametrize(
    "value", ["jamp", "jamp,janli", "[jamp, janli]", "my.yaml", "jamp,/日本 語/my.yml", "['a,b.yaml']"]
)
def test_datasets_and_task_files_are_a_suite(value: str) -> None:
    config = config_of(f"suite={value}", "suite.num_few_shots.jamp=2")
    long = config_of("suite=task", f"suite.tasks={value}", "suite.num_few_shots.jamp=2")
    assert config == replace(long, given=ANY)
    several = config_of(f"suite=qa,{value}") if value[0] != "[" else config_of("suite=[qa,'a,b.yaml']")
    assert several.suite is not None and several.suite.tasks[:2] == ["jemhopqa", "niilc"]


@pytest.mark.parametrize(
    ("line", "said", "fix"),
    [
        (
            "--model llm-jp/x --tasks jamp,janli --num_fewshot 4 --batch_size 8 --limit=10 --output_path o",
            "--model is model=, --tasks is suite=, --num_fewshot is num_few_shots=, --batch_size is "
            "engine.batch_size=, --limit= is limit=, --output_path is out=",
            "model=llm-jp/x suite=jamp,janli num_few_shots=4 engine.batch_size=8 limit=10 out=o",
        ),
        (
            "--model hf --model_args pretrained=a/b,dtype=float16 --tasks nli --batch_size auto --verbose",
            "--model_args is model= dtype=, --tasks is suite=",
            "model=a/b dtype=float16 suite=nli",
        ),
        ("model=random batch_size=8 num-fewshot=3", "num-fewshot= is", "engine.batch_size=8 num_few_shots=3"),
        ("suite=nli output_dir=x model=random", "output_dir= is out=", "suite=nli out=x model=random"),
        ("judge run=x --model gpt-4", "--model is judge=", "judge run=x judge=gpt-4"),
        ("judge run=x model=gpt-4", "model= is judge=", "judge run=x judge=gpt-4"),
        ("pairwise a b temperature=0", "is judge.parameters.temperature=", "judge.parameters.temperature=0"),
        ("ask model=m temperature=0 q", "temperature= is ask.temperature=", "model=m ask.temperature=0 q"),
        ("ask model=m q --max_tokens 5", "--max_tokens is ask.max_new_tokens=", "q ask.max_new_tokens=5"),
        (
            "--model vllm --model_args pretrained=a/b,tensor_parallel_size=2 --verbosity DEBUG --tasks nli",
            "--model is engine=, --model_args is model= engine.parameters.tensor_parallel_size=, --verbosity",
            "evalkit engine=vllm model=a/b engine.parameters.tensor_parallel_size=2 suite=nli",
        ),
        (
            "-m --model 1.8b,13b --offline suite=nli",
            "--offline is",
            "-m model=1.8b,13b offline=true suite=nli",
        ),
        ("leaderboard r --reference llm-jp-3 --out o", "--out is out=", "r --reference=llm-jp-3 out=o"),
        ("compare --verbose results/A results/B", "--verbose is not", "evalkit compare results/A results/B"),
        ("leaderboard --log_samples results", "--log_samples is not needed", "evalkit leaderboard results"),
        ("judge run=x --model openai-completions", "--model is judge=", "run=x judge=openai-completions"),
        (
            "--apply_chat_template --model",
            "--apply_chat_template is suite.chat=",
            "suite.chat=true model=VALUE",
        ),
    ],
)
def test_words_of_other_harnesses_are_one_message(line: str, said: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(line.split(), VERBS)
    assert said in caught.value.what and (caught.value.fix or "").endswith(fix)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ask model=m q --top_k 5 --max_tokens 5", "top_k= (no option of ask), --max_tokens is ask."),
        ("ask model=m q do_sample=true chat=true", "suite.chat= (no option of ask)"),
        ("--gen_kwargs temperature=0,top_k=5 ask model=m q", "ask.temperature= generation.top_k= (no option"),
        ("leaderboard results --limit 5", "limit= (no option of leaderboard)"),
        ("judge run=R --do_sample true", "(no option of judge)"),
        ("--model_args pretrained=a/b,parallelize=True --tasks nli", "parallelize= (no option of run)"),
        ("score run=R --limit 5", "--limit is limit="),
        ("score completions=C suite=nli --limit 5 --seed 1", "--seed is seed= (no option of score)"),
    ],
)
def test_the_command_that_is_offered_is_taken(line: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(line.split(), VERBS, options_of)
    assert said in caught.value.what
    offered = (caught.value.fix or "").removeprefix("evalkit ").split()
    refuse_other_options(parse(offered, VERBS, options_of))


def test_habits_name_options_and_hide_none() -> None:
    assert not HABITS.keys() & all_options().keys()
    for right in (*HABITS.values(), *(right for one in OF_VERB.values() for right in one.values())):
        assert right is None or check_key(right)


def test_a_comment_that_zsh_hands_on_is_left_out() -> None:
    assert parse(["suite=nli", "#", "a", "quick", "--look"], VERBS).overrides == ("suite=nli",)


def test_python_values_are_words() -> None:
    options = {
        "model": Path("/日本 語/m"),
        "suite": ["jamp", Path("a,b.yaml")],
        "engine": {"batch_size": 8, "base_url": None},
        "generation.temperature": 1e-3,
        "generation": {"do_sample": True},
        "dtype": Dtype.float32,
        "metrics.pass_at": [1, 5],
        "model.chat_template_args": {"effort": "it's, low", "thinking": False, "n": "5"},
    }
    config = config_of(*words_of(options))
    assert config.model is not None and config.suite is not None
    assert (config.model.path, config.suite.tasks) == ("/日本 語/m", ["jamp", "a,b.yaml"])
    assert (config.engine.batch_size, config.engine.base_url, config.dtype) == (8, None, Dtype.float32)
    assert (config.generation.temperature, config.generation.do_sample) == (1e-3, True)
    assert config.metrics.pass_at == [1, 5]
    assert config.model.chat_template_args == {"effort": "it's, low", "thinking": False, "n": "5"}


def test_another_hydra_stays_as_it_is(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    (tmp_path / "own.yaml").write_text("a: 1\n", encoding="utf-8")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert config_of("limit=7").limit == 7
        assert compose("own") == {"a": 1}


def test_bad_input_is_exit_code_2_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=1.8b-instrct"]) == 2
    printed = capsys.readouterr()
    assert "did you mean" in printed.err and "Traceback" not in printed.err and not printed.out


LIGHT = [
    ["--help"],
    ["run", "--help"],
    ["list", "tasks"],
    ["list", "models"],
    ["sutie=mc"],
    ["-m", "model=1.8b,13b-x"],
    ["model=random", "suite=mc", "data_dir=/nowhere"],
    ["model=random", "suite=sample", "num_few_shots=5"],
    ["model=hf", "model.path=/nowhere", "suite=sample"],
    ["certify", "model=random", "suite=smple"],
    ["certify", "suite=sample"],
]


def test_light_commands_import_nothing_heavy() -> None:
    program = (
        "import json, sys; from evalkit.__main__ import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    main(words)\n"
        "    found = {'torch','transformers','scipy','pandas','datasets','rhoknp'} & set(sys.modules)\n"
        "    assert not found, (words, found)"
    )
    command = [sys.executable, "-c", program, json.dumps(LIGHT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_home_of_nobody_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=hf", "model.path=~nobody-has-this-name/m", "suite=sample"]) == 2
    assert "nobody on this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("engine.num_workers=0", "engine.num_workers=0 is below 1"),
        ("engine.timeout=0", "engine.timeout=0.0 is below 0.001"),
        ("plan.tflops=0", "plan.tflops=0.0 is not above 0"),
        ("plan.bandwidth=nan", "no finite number"),
        ("gpu_memory=inf", "no finite number"),
        ("watch_poll=0", "below 0.05"),
        ("metrics.comet.batch_size=0", "below 1"),
    ],
)
def test_a_number_out_of_its_range_is_refused(word: str, problem: str) -> None:
    assert problem in (text := refusal(word)) and f"option {word.partition('=')[0]}" in text


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evalkit", "model=random", "suite=mc", "data_dir=nowhere"]
    env = {"PYTHONPATH": str(Path.cwd()), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2 and "data_dir=nowhere" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_data_options_expand_paths_and_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = Config(data_dir="~/data", split=Split.test, limit=7).data
    assert (data.data_dir, data.mirror) == (Path("/home/me/data"), None)
    assert (data.offline, data.split, data.limit, data.num_few_shots) == (True, Split.test, 7, 4)
    assert not Config(offline=False).data.offline
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert not Config().data.offline


def test_a_command_that_needs_a_model_or_a_suite_says_so() -> None:
    with pytest.raises(InputError, match="no model is given"):
        given_model(None)
    with pytest.raises(InputError, match="no suite is given"):
        given_suite(None)
