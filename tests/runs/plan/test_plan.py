"""plan: shapes, tokens, memory, the bound of the time and money, beside what engine and protocol say."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.cli.plan import duration
from evalkit.core import assets
from evalkit.core.config import BosRule, Config, ModelConfig, RandomShape
from evalkit.core.options import load_config, parse
from evalkit.runs.plan.counting import PerCharacter, token_counter
from evalkit.runs.plan.estimate import Estimate, estimate
from evalkit.runs.plan.shapes import shape_of
from tests.tiny import engine_of

# models.md of the protocol notes: parameters, bytes of a token in bfloat16.
KNOWN = {
    "1.8b": (1_867_614_208, 196_608),
    "3.7b": (3_782_913_024, 344_064),
    "13b": (13_707_924_480, 819_200),
}


def config_of(*words: str) -> Config:
    return load_config(parse(words, ()))


def planned(*words: str) -> Estimate:
    return estimate(config_of(*words))


@pytest.fixture(autouse=True)
def nothing_here(cache: Path) -> None:
    """No data and no model of this machine's caches."""


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_llm_jp_3_has_the_parameters_of_its_card(name: str) -> None:
    for model in (name, f"{name}-instruct"):
        config = config_of(f"model={model}")
        assert config.model is not None
        shape, source = shape_of(config.model)
        assert (shape.parameters, shape.token_bytes(2)) == KNOWN[name]
        assert source == "conf/shapes.yaml"


def test_172b_has_the_non_embedding_parameters_of_its_card() -> None:
    shape, _ = shape_of(ModelConfig(path="llm-jp/llm-jp-3-172b-beta1"))
    assert shape.parameters - 2 * shape.vocab * shape.hidden == 169_947_181_056


def test_llm_jp_3_1_has_the_parameters_of_its_cards() -> None:
    for model, parameters in (
        ("3.1-1.8b", 1_867_216_896),
        ("3.1-8x13b-instruct4", 73_162_828_800 - 1_638_400),
    ):
        config = config_of(f"model={model}")
        assert config.model is not None
        assert shape_of(config.model)[0].parameters == parameters
    assert shape_of(ModelConfig(path="llm-jp/llm-jp-3.1-13b"))[0].active == 1


def test_a_random_model_has_the_parameters_torch_counts(tmp_path: Path) -> None:
    from evalkit.engines.local.random_model import byte_tokenizer, random_model

    wanted = RandomShape(layers=3, hidden=48, heads=6, kv_heads=2, intermediate=80, vocab=300)
    model = random_model(wanted, byte_tokenizer(), None)
    real = sum(weights.numel() for weights in model.parameters())
    assert shape_of(ModelConfig(random=wanted))[0].parameters == real
    model.config.save_pretrained(tmp_path)
    shape, source = shape_of(ModelConfig(path=str(tmp_path)))
    assert shape.parameters == real and source == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "a JSON object was expected"),
        ('{"hidden_size": "x"}', "does not say hidden_size"),
    ],
)
def test_a_configuration_without_a_shape_is_refused(
    tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    assert main(["plan", "model=hf", f"model.path={tmp_path}", "suite=sample"]) == 2
    assert message in capsys.readouterr().err


# --- tokens ---------------------------------------------------------------------------------------


def test_tokens_and_operations_are_those_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny random model answers three datasets, five rows at a time."""
    from torch.utils.flop_counter import FlopCounterMode

    from evalkit.engines.local import linears, pool
    from evalkit.engines.models import resolve
    from evalkit.tasks.load import load_bundled
    from evalkit.tasks.prompts import Asking
    from evalkit.tasks.spec import load_spec

    names = ("jamp", "jsts", "jemhopqa")
    config = config_of(
        *("model=random", "suite=sample", f"suite.tasks=[{','.join(names)}]"),
        *("engine.batch_size=5", "gpus=0", "plan.tflops=1", "plan.bandwidth=1"),
    )
    assert config.model is not None
    asked = [
        request
        for name in names
        for request in Asking(seed=config.seed).requests(load_bundled(load_spec(name)))
    ]
    # torch does not count oneDNN's products.
    monkeypatch.setattr(linears, "gains", lambda dtype: linears.Gains(many=False, few=False))
    forward, passes, fed = pool.forward, [], []

    def counted(model: Any, sections: Any, *rest: Any, **options: Any) -> Any:
        passes.append(1)
        fed.extend(len(section.ids or ()) for section in sections)
        fed.extend(len(feed.ids) for section in sections for feed in section.feeds)
        return forward(model, sections, *rest, **options)

    with engine_of(config, resolve(config.model, offline=True)) as engine:
        # Each kind of attention is compared with matrix products at its first use, which is no part of
        # the work; the second time all kinds are known.
        list(engine.generate(asked))
        with FlopCounterMode(display=False) as counter:
            monkeypatch.setattr(pool, "forward", counted)
            done = list(engine.generate(asked))
    # The random model never ends by itself: its answers are as long as they may be.
    new = sum(completion.new_tokens for completion in done)
    made = estimate(config)
    assert sum(row.prompt_tokens for row in made.datasets) == sum(one.prompt_tokens for one in done)
    assert sum(row.new_tokens_most for row in made.datasets) == new
    assert sum(row.computed_tokens for row in made.datasets) == sum(fed) - (new - len(done))
    # torch counts the products with matrices; attention is what the bound has beside them.
    matrices = counter.get_total_flops()
    assert matrices == made.shape.token_flops * sum(fed) + made.shape.logit_flops * new
    pairs = sum((one.prompt_tokens + one.new_tokens) ** 2 / 2 for one in done)
    assert 0 < made.bound_most.flops - matrices <= made.shape.pair_flops * pairs
    weights = (made.shape.token_flops + made.shape.logit_flops) / 2 * made.hardware.width
    assert 0.5 * len(passes) * weights < made.bound_most.bytes


CHAT = ("model=random", "suite=sample", "suite.tasks=[jcommonsenseqa,jsts]", "limit=2", "suite.chat=true")


def test_a_chat_is_counted_as_its_template_renders_it() -> None:
    from evalkit.engines.bos import CHAT_RULE, token_ids
    from evalkit.engines.local.chat_template import as_text
    from evalkit.engines.local.tokenizer import tokenizer_here
    from evalkit.tasks.load import load_bundled
    from evalkit.tasks.prompts import Asking, ChatForm
    from evalkit.tasks.spec import load_spec

    config = config_of(*CHAT)
    assert config.model is not None
    tokenizer = tokenizer_here(config.model)
    for row in estimate(config).datasets:
        asked = Asking(chat=ChatForm()).requests(load_bundled(load_spec(row.name), limit=2))
        texts = [as_text(request.prompt, tokenizer) for request in asked]
        assert row.prompt_tokens == sum(len(token_ids(text, tokenizer, CHAT_RULE)) for text in texts)


def test_a_thought_of_unknown_length_and_several_answers(capsys: pytest.CaptureFixture[str]) -> None:
    once = planned(*CHAT)
    words = (*CHAT, "reasoning.parser=think", "samples=3", "generation=swallow")
    limited = planned(*words, "reasoning.thought_length=50")
    for plain, row in zip(once.datasets, limited.datasets, strict=True):
        assert (row.samples, row.prompt_tokens) == (3 * plain.samples, 3 * plain.prompt_tokens)
        assert row.new_tokens_most == 3 * (plain.new_tokens_most + 50 * plain.samples)
        assert row.new_tokens_typical is None
    short = planned(*words, "reasoning.thought_length=50", "generation.output_length=7").datasets[0]
    assert short.new_tokens_most == 57 * short.samples
    whole = planned(*words)
    assert whole.shape.context is not None
    row = whole.datasets[0]
    assert row.new_tokens_most + row.prompt_tokens == row.samples * whole.shape.context
    assert any("the rest of the context" in note for note in whole.notes)
    assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    assert "unknown" in said and "the model thinks first (rule think)" in said
    assert any("tokenizer is not here" in note for note in planned("model=1.8b", *CHAT[1:]).notes)


def test_kept_counts_are_those_of_the_data(reports: dict[str, Any], data_dir: Path, mirror: Path) -> None:
    """Without the data nearly the same comes out as with it."""
    words = ["model=13b", "suite=task", "suite.tasks=[jamp,mmluen,wiki_pas,wikicorpus-e-to-j]"]
    kept = planned(*words)
    tokenizer = mirror / "llm-jp-tokenizer-v3.0"
    real = planned(*words, f"data_dir={data_dir}", f"model.tokenizer={tokenizer}")
    rough = planned(*words, f"data_dir={data_dir}")
    for one, other, without in zip(kept.datasets, real.datasets, rough.datasets, strict=True):
        assert (one.source, other.source) == ("kept counts", "data")
        assert one.prompt_tokens == pytest.approx(other.prompt_tokens, rel=0.01)
        assert one.computed_tokens == pytest.approx(other.computed_tokens, rel=0.02)
        assert one.new_tokens_most == other.new_tokens_most
        assert one.new_tokens_typical == pytest.approx(other.new_tokens_typical, rel=0.05, abs=5)
        assert without.prompt_tokens == pytest.approx(other.prompt_tokens, rel=0.15)
    assert str(tokenizer) in real.counted_by and "per ASCII character" in rough.counted_by


def test_kept_counts_cover_the_suite_and_follow_limit_and_few_shots() -> None:
    with (assets.CONF / "counts.csv").open(encoding="utf-8", newline="") as file:
        assert {row["dataset"] for row in csv.DictReader(file)} == set(config_of("suite=jaster").suite.tasks)  # type: ignore[union-attr]
    whole = planned("model=13b", "suite=jaster").as_json()["totals"]
    assert whole["samples"] == 2244 and 900_000 < whole["prompt_tokens"] < 1_100_000
    none = planned("model=13b", "suite=jaster", "num_few_shots=0").as_json()["totals"]
    few = planned("model=13b", "suite=jaster", "limit=10").as_json()["totals"]
    assert none["prompt_tokens"] < whole["prompt_tokens"] / 2
    assert few["samples"] == 230 and few["new_tokens_most"] < whole["new_tokens_most"] / 9
    every = planned("model=13b", "suite=mc", "limit=0")
    assert every.datasets[0].samples == 894
    short = planned("model=13b", "suite=mc", "generation.output_length=1").datasets[0]
    assert short.new_tokens_most == short.new_tokens_typical == short.samples


def test_characters_stand_in_for_a_tokenizer_that_is_not_here() -> None:
    counter = token_counter(ModelConfig(path="somebody/else"), BosRule.auto)
    assert isinstance(counter, PerCharacter) and not counter.exact
    assert counter.lengths(counter.ids(["abあ"])[0]) == pytest.approx(2 * 0.28 + 0.62)


def test_a_task_of_ones_own_is_counted_and_one_without_data_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(json.dumps({"q": f"q{index}", "a": "yes"}) + "\n" for index in range(9))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "own.yaml").write_text(
        "name: own\ninstruction: i\noutput_length: 5\nmetrics: [exact_match]\n"
        "data: {file: rows.jsonl, input: q, output: a}\n",
        encoding="utf-8",
    )
    made = planned("model=random", "suite=task", f"suite.tasks=[{tmp_path / 'own.yaml'},jamp]")
    assert [(row.name, row.samples, row.source) for row in made.datasets] == [
        ("own", 5, "data"),
        ("jamp", 100, "kept counts"),
    ]
    assert any("this model's differ" in note for note in made.notes)


# --- memory, time, money --------------------------------------------------------------------------


def test_memory_is_the_arithmetic_of_the_engine() -> None:
    memory = planned("model=13b", "suite=jaster").memory
    assert memory.fits and memory.cards == 1
    assert memory.weights == 2 * KNOWN["13b"][0]
    assert memory.cache == pytest.approx(0.7 * (80e9 - 1e9 - memory.weights))
    assert planned("model=13b", "suite=jaster", "dtype=float32").memory.weights == 2 * memory.weights


def test_cards_and_workers() -> None:
    large = planned("model=172b-beta1", "suite=jaster", "gpus=13", "checkpoints=10")
    assert large.memory.cards == 5
    assert (large.campaign.side_by_side, large.campaign.rounds, large.campaign.idle_gpus) == (2, 5, 3)
    few = planned("model=172b-beta1", "suite=jaster", "gpus=4")
    assert any("too few: one copy needs 5" in note for note in few.notes)
    one = planned("model=1.8b", "suite=jaster", "gpus=8")
    assert one.campaign.workers == 8
    many = planned("model=1.8b", "suite=jaster", "gpus=8", "checkpoints=1000")
    assert (many.campaign.workers, many.campaign.rounds) == (1, 125)
    assert many.campaign.read_bytes == 1000 * many.memory.weights


def test_the_time_is_a_bound(capsys: pytest.CaptureFixture[str]) -> None:
    """Operations and bytes over the peaks: of one card, of eight, of a quicker one."""
    alone = planned("model=1.8b", "suite=jaster")
    eight = planned("model=1.8b", "suite=jaster", "gpus=8")
    fast = planned("model=1.8b", "suite=jaster", "plan.tflops=989", "plan.bandwidth=3350")
    bound, most = alone.bound_typical, alone.bound_most
    assert bound.seconds == max(bound.flops / 312e12, bound.bytes / 2000e9)
    assert eight.bound_typical.flops == pytest.approx(bound.flops / 8)
    assert bound.bytes / 8 < eight.bound_typical.bytes < bound.bytes
    seconds = [one.seconds for one in (fast.bound_typical, bound, most)]
    assert all(seconds) and seconds == sorted(seconds, key=float)  # type: ignore[arg-type]
    assert main(["plan", "model=1.8b", "suite=jaster", "gpus=8", "checkpoints=1000"]) == 0
    said = capsys.readouterr().out
    assert "a bound: no run is quicker than" in said and "for 125 rounds" in said
    assert "at 312 TFLOPS and 2,000 GB/s" in said


def test_weights_are_read_once_for_each_token_of_the_longest_answer() -> None:
    shape = ["model=random", "gpus=1", "suite=sample", "suite.tasks=[jamp]", "limit=1"]
    made = planned(*shape)
    (row,) = made.datasets
    model = made.shape
    weights = (model.token_flops + model.logit_flops) / 2 * 2
    cached = sum(row.prompt_tokens + row.new_tokens_most / 2 for _ in range(row.new_tokens_most - 1))
    assert made.bound_most.bytes == row.new_tokens_most * weights + cached * model.token_bytes(2)


def test_mt_bench_costs_what_the_protocol_notes_say(capsys: pytest.CaptureFixture[str]) -> None:
    made = planned("model=1.8b-instruct", "suite=mt-bench-ja")
    assert made.judge is not None
    assert (made.judge.calls, made.judge.input_tokens_typical) == (160, 177_057)
    assert made.judge.dollars_typical == pytest.approx(7.5, abs=0.05)
    cheap = planned("model=1.8b-instruct", "suite=mt-bench-ja", "judge=gpt-4o-2024-08-06").judge
    assert cheap is not None and cheap.dollars_typical == pytest.approx(0.81, abs=0.01)
    # 1,024 tokens for prompt and answer together: less the prompts, 95 and 95 + 190 + 36.
    assert made.datasets[0].new_tokens_most == 80 * ((1024 - 95) + (1024 - 321))
    assert main(["plan", "model=1.8b-instruct", "suite=mt-bench-ja", "limit=8", "judge.repeats=2"]) == 2
    capsys.readouterr()
    words = ["plan", "model=1.8b-instruct", "suite=mt-bench-ja", "limit=8", "judge=gpt-4", "judge.repeats=2"]
    assert main(words) == 0
    assert "gpt-4: 32 calls, 35,411 tokens in" in capsys.readouterr().out


def test_the_estimate_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    assert main(["plan", "model=13b", "suite=jaster", "gpus=8", f"out={out}"]) == 0
    said = capsys.readouterr().out
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["totals"]["parameters"] == KNOWN["13b"][0]
    assert len(content["datasets"]) == 23 and content["campaign"]["workers"] == 8
    for words in ("a bound: no run is quicker", "fits on a card of 80 GB", "kept counts (*) are used"):
        assert words in said


def test_a_cpu_has_a_bound_where_its_peaks_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=random", "suite=sample", "gpus=0"]
    made = planned(*words)
    assert made.hardware.kind == "cpu" and made.hardware.width == 4 and made.bound_most.seconds is None
    assert main(["plan", *words]) == 0
    assert "plan.tflops= plan.bandwidth=" in capsys.readouterr().out
    assert main(["plan", *words, "plan.tflops=0.1", "plan.bandwidth=25"]) == 0
    assert "on this CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    "word",
    [
        "gpus=-1",
        "checkpoints=0",
        "gpu_memory=0",
        "plan.tflops=-1",
        "plan.bandwidth=0",
        "plan.bandwidth=nan",
        "plan.efficiency=0.5",
        "gpus=many",
        "plan.tflop=1",
    ],
)
def test_numbers_that_are_none_are_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "model=13b", "suite=jaster", word]) == 2
    assert word.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["suite=jaster"], "no model is given"),
        (["model=13b"], "no suite is given"),
        (["model=hf", "model.path=somebody/unknown", "suite=jaster"], "shape of the model"),
        (["model=gemma3-270m", "suite=jaster"], "prepare model=gemma3-270m"),
        (["model=13b", "suite=jaster", "data_dir=/nowhere"], "the data folder does not exist"),
    ],
)
def test_what_is_missing_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from evalkit.__main__ import main\n"
        "assert main(['plan', 'model=13b', 'suite=sample', 'gpus=8']) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    environment = {**os.environ, "EVALKIT_CACHE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)


def test_durations() -> None:
    shown = [duration(seconds) for seconds in (4.25, 59.97, 200, 18_720, 273_600)]
    assert shown == ["4.2 s", "60.0 s", "3 min 20 s", "5 h 12 min", "3 d 4 h"]
