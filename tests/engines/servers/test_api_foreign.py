"""What other servers get and give: the BOS rule, parameters, stop strings, finish reasons."""

import json
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.config import (
    BosRule,
    Config,
    EngineConfig,
    ModelConfig,
    PromptForm,
    RandomShape,
    ServerKind,
)
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.types import REST_OF_CONTEXT, Completion, Message, Request, Sampling
from evalkit.engines.local.random_model import byte_tokenizer
from evalkit.engines.servers.bodies import foreign_completion, parameters
from evalkit.engines.servers.server_facts import ask_servers
from evalkit.services.replies import Reply, read_reply
from tests.engines.models import template, tokenizer_with
from tests.mtbench.fault_server import FaultServer, always_ok
from tests.tiny import engine_of, identified

TOKENIZER = byte_tokenizer()
SAMPLED = Sampling(True, 0.7, 0.9, 50, 1.1)


def adds_bos(body: dict[str, Any]) -> int:
    """Servers such as vLLM: a text gets the tokenizer's BOS unless told otherwise, ids do not."""
    prompt = body["prompt"]
    if isinstance(prompt, list):
        return len(prompt)
    return len(TOKENIZER(prompt, add_special_tokens=body.get("add_special_tokens", True))["input_ids"])


def always_adds_bos(body: dict[str, Any]) -> int:
    """Servers such as llama.cpp: ids are taken as they are, a text always gets a BOS."""
    return adds_bos({"prompt": body["prompt"]})


def adds_bos_to_all(body: dict[str, Any]) -> int:
    prompt = body["prompt"]
    return len(prompt) + 1 if isinstance(prompt, list) else len(TOKENIZER(prompt)["input_ids"])


def ask(
    running: FaultServer, requests: list[Request], *, bos: str = "auto", **options: Any
) -> list[Completion]:
    model = options.pop("model", None) or ModelConfig(name="random", random=RandomShape())
    named = options.pop("model_name", None)
    engine = EngineConfig(name="api", base_url=running.url, retries=0, model=named, **options)
    config = Config(model=model, engine=engine)
    config.protocol.bos = BosRule(bos)
    with engine_of(config, identified(config).model) as built:
        return list(built.generate(requests))


def sent(server: FaultServer) -> list[Any]:
    """The prompts that were asked, without the probes."""
    return [body["prompt"] for body in server.bodies if body["max_tokens"] > 1]


@pytest.mark.parametrize(
    ("bos", "count", "wanted", "form"),
    [
        ("auto", adds_bos, "auto", "text"),
        ("auto", adds_bos, "tokens", "tokens"),
        ("none", adds_bos, "auto", "plain"),
        ("none", adds_bos, "text", "plain"),
        ("none", always_adds_bos, "auto", "tokens"),
        ("none", lambda body: len(list(body["prompt"].encode())), "auto", "text"),
        ("auto", lambda body: None, "auto", "text"),
        ("none", lambda body: None, "auto", "tokens"),
    ],
)
def test_the_model_sees_the_bos_of_the_rule(bos: str, count: Any, wanted: str, form: str) -> None:
    requests = [Request("a", "日本 text", 5), Request("b", "<s>abc", 5)]
    with FaultServer() as server:
        server.count = count
        ask(server, requests, bos=bos, prompts=PromptForm(wanted))
    special = bos == "auto"
    ids = [TOKENIZER("日本 text", add_special_tokens=special)["input_ids"], TOKENIZER("abc")["input_ids"]]
    if form == "tokens":
        assert sent(server) == ids
    elif form == "plain":
        assert sent(server) == ["日本 text", "<s>abc"]
        assert all(body["add_special_tokens"] is False for body in server.bodies if body["max_tokens"] > 1)
    else:
        # The server puts the BOS there that the text spells out.
        assert sent(server)[0] == "日本 text"
        assert sent(server)[1] == "abc"
        assert all("add_special_tokens" not in body for body in server.bodies)


@pytest.mark.parametrize(
    ("bos", "count", "wanted", "message"),
    [
        ("auto", lambda body: len(TOKENIZER(body["prompt"])["input_ids"]) - 1, "text", "missing or doubled"),
        ("auto", adds_bos_to_all, "tokens", "missing or doubled"),
        ("none", always_adds_bos, "text", "missing or doubled"),
        ("auto", lambda body: 17, "auto", "another tokenizer"),
    ],
)
def test_a_wrong_bos_is_an_error(bos: str, count: Any, wanted: str, message: str) -> None:
    with FaultServer() as server, pytest.raises(EvalkitError, match=message):
        server.count = count
        ask(server, [Request("a", "abc", 5)], bos=bos, prompts=PromptForm(wanted))
    assert not sent(server)


@pytest.mark.parametrize(
    ("whole", "text", "asked"),
    [("\n答え\n\n次", "\n答え\n\n", 2), ("\n", "\n", 2), ("答え\n\n次", "答え\n\n", 1)],
)
def test_a_server_that_looks_for_stop_strings_in_the_prompt(whole: str, text: str, asked: int) -> None:
    """As transformers serve: an answer that begins with a newline must not end there."""

    def choose(body: dict[str, Any]) -> dict[str, Any]:
        first, both = len(body["prompt"]), body["prompt"] + whole
        ends = [end for end in range(first + 1, len(both)) if both[:end].endswith("\n\n")]
        return {"text": both[first : ends[0] if ends and "stop" in body else None], "finish_reason": "stop"}

    with FaultServer() as server:
        server.choose, server.count = choose, adds_bos
        (done,) = ask(server, [Request("a", "質問:\n", 40, ("\n\n",))], prompts=PromptForm.text)
    assert (done.raw_text, len(sent(server))) == (text, asked)
    assert done.finish_reason == ("stop_string" if "\n\n" in text else "stop")


def test_a_server_that_ends_every_text(tmp_path: Path) -> None:
    """Its tokenizer puts EOS behind a text: the prompts go as token ids, without it."""
    ends = tokenizer_with(template("<s> $A </s>"))
    ends.save_pretrained(tmp_path)
    model = ModelConfig(served=True, tokenizer=str(tmp_path))

    def count(body: dict[str, Any]) -> int:
        prompt = body["prompt"]
        return len(prompt) if isinstance(prompt, list) else len(ends(prompt)["input_ids"])

    for counts in (count, lambda body: None):
        with FaultServer() as server:
            server.count = counts
            ask(server, [Request("a", "abc", 5)], model=model)
        assert sent(server) == [TOKENIZER("abc")["input_ids"]]
    with FaultServer() as server, pytest.raises(EvalkitError, match="</s> stand behind every prompt"):
        server.count = count
        ask(server, [Request("a", "abc", 5)], model=model, prompts=PromptForm.text)
    assert not sent(server)


def test_the_template_of_a_servers_model(caplog: pytest.LogCaptureFixture) -> None:
    """The server renders; what is here of its template is looked at first."""
    shape = RandomShape()
    for request in (Request("a", "abc", 5), Request("c", (Message("user", "abc"),), 5)):
        with FaultServer() as server, pytest.raises(InputError, match="leaves out or changes"):
            model = ModelConfig(name="random", random=shape, chat_template="{{ bos_token }}")
            ask(server, [request], model=model, prompts=PromptForm.chat)
        assert not server.bodies
    with FaultServer() as server:
        text = "{{ strftime_now('%Y') }}{{ messages[-1]['content'] }}"
        model = ModelConfig(name="random", random=shape, chat_template=text)
        ask(server, [request], model=model)
    assert "the server puts the date of today" in caplog.text and len(server.bodies) == 1


def test_without_a_tokenizer() -> None:
    model = ModelConfig(served=True)
    with FaultServer() as server:
        server.count = adds_bos
        (completion,) = ask(server, [Request("a", "abc", 5)], model=model)
        assert (sent(server), len(server.bodies)) == (["abc"], 1)
        assert (completion.prompt_tokens, completion.new_tokens) == (4, 0)
        ask(server, [Request("a", "abc", 5)], model=model, bos="none")
        assert server.bodies[-1]["add_special_tokens"] is False
        server.count = always_adds_bos
        with pytest.raises(InputError, match=r"model\.tokenizer="):
            ask(server, [Request("a", "abc", 5)], model=model, bos="none")
        with pytest.raises(InputError, match=r"model\.tokenizer="):
            ask(server, [Request("a", "abc", 5)], model=model, prompts=PromptForm.tokens)


def test_chats_and_prompts_as_chats() -> None:
    """Chats go to the chat endpoint; engine.prompts=chat sends texts there too."""
    chat = Request("c", (Message("system", "s"), Message("user", "u")), 5)
    with FaultServer() as server:
        (completion,) = ask(server, [chat])
        assert server.bodies[0]["messages"][0] == {"role": "system", "content": "s"}
        assert "Rating" in completion.raw_text and completion.prompt_tokens == 1000
        ask(server, [Request("a", "abc", 5)], prompts=PromptForm.chat)
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "abc"}]
    assert server.paths == ["/v1/chat/completions"] * 2


def test_prompts_as_chats_are_a_named_deviation(tmp_path: Path) -> None:
    ids = []
    for form in ("auto", "chat"):
        with FaultServer() as server:
            words = ["model=served", "suite=sample", "suite.tasks=[jamp]", "limit=1", "offline=true"]
            words += ["engine=api", f"engine.base_url={server.url}", f"engine.prompts={form}"]
            assert main([*words, f"out={tmp_path / form}"]) == 0
        (folder,) = (tmp_path / form / "served" / "sample").iterdir()
        ids.append(folder.name)
    assert ids[0] != ids[1]
    deviations = json.loads((folder / "results.json").read_text())["protocol"]["deviations"]
    assert deviations["engine.prompts"] == "chat"


@pytest.mark.parametrize(
    ("kind", "greedy", "sampled", "left_out"),
    [
        (
            ServerKind.vllm,
            {"include_stop_str_in_output": True, "min_p": 0.0, "repetition_penalty": 1.0},
            {"top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1},
            [],
        ),
        (
            ServerKind.sglang,
            {"no_stop_trim": True, "min_p": 0.0, "repetition_penalty": 1.0},
            {"top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1},
            [],
        ),
        (
            ServerKind.llama_cpp,
            {"min_p": 0.0, "repeat_penalty": 1.0},
            {"repeat_penalty": 1.1, "top_k": 50},
            [],
        ),
        (ServerKind.tgi, {}, {"top_p": 0.9, "repetition_penalty": 1.1}, ["top_k"]),
        (ServerKind.openai, {}, {"top_p": 0.9}, ["top_k", "repetition_penalty"]),
    ],
)
def test_what_each_kind_is_told(
    kind: ServerKind, greedy: dict[str, Any], sampled: dict[str, Any], left_out: list[str]
) -> None:
    body, nothing = parameters(kind, Request("a", "x", 5, ("\n\n",)), defaults=False)
    assert body == {"max_tokens": 5, "stop": ["\n\n"], "temperature": 0} | greedy and nothing == []
    body, left = parameters(kind, Request("a", "x", 5, (), SAMPLED, 7), defaults=False)
    assert body.items() >= ({"temperature": 0.7, "seed": 7} | sampled).items() and left == left_out
    off = Request("a", "x", 5, (), Sampling(True, 0.7), 7)
    neutral = parameters(kind, off, defaults=False)[0]
    assert neutral.get("top_k", 0) in (0, -1) and neutral.get("top_p", 1.0) == 1.0
    assert "temperature" not in parameters(kind, off, defaults=True)[0]


def test_the_servers_kind_is_asked_for() -> None:
    for owner, field in (("vllm", "include_stop_str_in_output"), ("sglang", "no_stop_trim")):
        with FaultServer() as server:
            server.count = adds_bos
            server.listed = {"id": "m", "owned_by": owner}
            ask(server, [Request("a", "abc", 5)])
        assert server.bodies[-1][field] is True
    with FaultServer() as server:
        server.count = adds_bos
        ask(
            server,
            [Request("a", "abc", 5)],
            server=ServerKind.llama_cpp,
            parameters={"cache_prompt": True, "min_p": None},
        )
    assert server.bodies[-1]["repeat_penalty"] == 1.0 and server.bodies[-1]["cache_prompt"] is True
    assert "min_p" not in server.bodies[-1]


def completion_of(
    choice: dict[str, Any], *, new_tokens: int | None = 3, prompt: str = "問い ."
) -> Completion:
    body: dict[str, Any] = {"model": "m", "choices": [choice]}
    if new_tokens is not None:
        body["usage"] = {"prompt_tokens": 9, "completion_tokens": new_tokens}
    reply = read_reply(200, {}, body)
    assert isinstance(reply, Reply)
    return foreign_completion(Request("a", prompt, 5, ("\n\n",)), reply, prompt, None)


@pytest.mark.parametrize(
    ("choice", "text", "finish"),
    [
        ({"text": "はい", "finish_reason": "stop"}, "はい", "stop"),
        ({"text": "はい\n\nまた", "finish_reason": "stop"}, "はい\n\nまた", "stop_string"),
        ({"text": "はい", "finish_reason": "stop", "stop_reason": "\n\n"}, "はい\n\n", "stop_string"),
        ({"text": "はい\n\n", "finish_reason": "stop", "matched_stop": "\n\n"}, "はい\n\n", "stop_string"),
        ({"text": "はい", "finish_reason": "stop", "matched_stop": 2}, "はい", "stop"),
        ({"text": "はい", "finish_reason": "eos_token"}, "はい", "stop"),
        ({"text": "はい", "finish_reason": "stop_sequence"}, "はい", "stop_string"),
        ({"text": "はい", "finish_reason": "length"}, "はい", "length"),
        ({"text": "はい", "finish_reason": None}, "はい", "stop"),
        # The clean-up runs over the prompt and the answer: its spaces count only at the joint.
        ({"text": " . don 't", "finish_reason": "stop"}, ". don 't", "stop"),
    ],
)
def test_text_and_finish_reason(choice: dict[str, Any], text: str, finish: str) -> None:
    completion = completion_of(choice)
    assert (completion.text, completion.finish_reason) == (text, finish)


@pytest.mark.parametrize(
    ("listed", "props", "context"),
    [
        ({"owned_by": "vllm", "max_model_len": 30}, None, 30),
        ({"owned_by": "llamacpp", "meta": {"n_ctx_train": 900}},
         {"default_generation_settings": {"n_ctx": 30}, "model_path": "/models/tiny.gguf"}, 30),
        ({"owned_by": "llamacpp", "meta": {"n_ctx": 30, "n_ctx_train": 900}}, None, 30),
        ({"owned_by": "openai", "max_input_tokens": 30}, None, 30),
        ({"owned_by": "openai", "max_model_len": "many"}, None, None),
    ],
)  # fmt: skip
def test_the_context_of_a_server(
    listed: dict[str, Any],
    props: dict[str, Any] | None,
    context: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is compared with prompts and answers before the first is sent, with numbers."""
    requests = [Request("fits", "x" * 19, 10), Request("cut", "x" * 20, 15), Request("long", "x" * 40, 5)]
    with FaultServer() as server:
        server.count = adds_bos
        server.listed, server.props = {"id": "m", **listed}, props
        ask(server, requests)
    told = [record.getMessage() for record in caplog.records if "context is" in record.getMessage()]
    if context is None:
        assert not told
        return
    assert len(told) == 1 and "context is 30 tokens: 2 of 3 prompts need more, 1 of them without" in told[0]
    assert "41 tokens and 5 for the answer" in told[0]


def test_an_answer_that_the_context_ends_is_cut() -> None:
    """Servers say no more than `length`: 9 tokens of prompt and 3 of the 5 that were asked for."""
    choice = {"text": "はい", "finish_reason": "length"}
    reply = read_reply(200, {}, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})
    assert isinstance(reply, Reply)
    for most, context, cut in ((5, 12, True), (5, 13, False), (3, 12, False), (REST_OF_CONTEXT, 12, False)):
        done = foreign_completion(Request("a", "x", most), reply, "x", None, context)
        assert (done.finish_reason, done.over_context) == (("error", True) if cut else ("length", False))
        assert not cut or "context of 12 tokens ends after 3 new tokens" in (done.error or "")


def test_the_name_of_a_model(caplog: pytest.LogCaptureFixture) -> None:
    """llama-server takes every name for its one model, litellm lists several and knows more."""
    request = [Request("a", "abc", 5)]
    with FaultServer() as server:
        server.count = adds_bos
        server.listed = {"id": "/models/tiny.gguf", "aliases": ["small"], "owned_by": "llamacpp"}
        server.props = {"model_path": "/models/tiny.gguf"}
        with pytest.raises(InputError, match="does not have the model 'other'") as caught:
            ask(server, request, model_name="other")
        assert "--alias other" in str(caught.value)
        for name in ("small", "tiny.gguf", "tiny", "/models/tiny.gguf"):
            ask(server, request, model_name=name)
        assert not caplog.records
        ask(server, request)
        assert "by a path" in caplog.text and "--alias" in caplog.text
        server.listed, server.also_listed = {"id": "one", "owned_by": "openai"}, [{"id": "two"}]
        with pytest.raises(InputError, match="has 2 models"):
            ask(server, request)
        ask(server, request, model_name="two")
        assert "does not list" not in caplog.text
        ask(server, request, model_name="three")
        assert "does not list the model 'three', but one, two" in caplog.text


def test_a_stop_string_left_out_changes_no_prediction() -> None:
    from evalkit.metrics.prediction import prediction

    kept = completion_of({"text": "答え \n\n### 入力", "finish_reason": "stop"})
    dropped = completion_of({"text": "答え ", "finish_reason": "stop"})
    assert prediction(kept.text) == prediction(dropped.text) == "答え "


def test_a_server_that_says_no_reason_and_is_at_its_end() -> None:
    assert completion_of({"text": "a", "finish_reason": None}, new_tokens=5).finish_reason == "length"
    assert completion_of({"text": "a", "finish_reason": None}, new_tokens=None).new_tokens == 0


def test_a_turn_that_is_too_long_marks_the_judged_run(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.mtbench.little_bench import make_bench

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    bench = make_bench(tmp_path, 1)
    files = [f"preset={bench.preset}", f"mirror={bench.mirror}"]
    long = {"message": "The decoder prompt (length 9) is longer than the maximum model length of 4."}

    def plan(text: str, attempt: int) -> str:
        return "long" if "stemの問い" in text and "二つ目" in text and "Judge" not in text else "ok"

    with FaultServer(plan) as server:
        server.raw = {"long": (400, {}, long)}
        words = ["model=served", "suite=mt-bench-ja", *files, "engine=api"]
        assert main([*words, f"engine.base_url={server.url}", f"out={tmp_path / 'out'}"]) == 0
        (folder,) = (tmp_path / "out" / "served" / "mt-bench-ja").iterdir()
        where = [f"judge.base_url={server.url}", "judge.model=m", "judge.identity=test"]
        assert main(["judge", f"run={folder}", "judge=openai", *where, *files]) == 0
        content = json.loads((folder / "results.json").read_text())
        assert server.listed is not None
        server.listed["max_model_len"], server.plan = 9000, always_ok
        calls = len(server.calls)
        assert main([*words, f"engine.base_url={server.url}", f"out={tmp_path / 'out'}"]) == 0
        assert len(server.calls) == calls + 1, "the turn is asked again"
    assert json.loads((folder / "results.json").read_text())["answers"]["served"]["over_context"] == 0
    assert content["answers"]["served"]["errors"] == content["answers"]["served"]["over_context"] == 1
    assert "1 turns count as empty" in " ".join(content["partial"]["reasons"])


def test_mt_bench_without_a_tokenizer(tmp_path: Path, cache: Path) -> None:
    """A commercial model: no file of it is here."""
    from evalkit.mtbench.presets import LengthRule, load_preset
    from evalkit.mtbench.turns import answer_rules
    from tests.mtbench.little_bench import make_bench

    bench = make_bench(tmp_path, 1)
    with FaultServer() as server:
        words = ["model=served", "suite=mt-bench-ja", f"preset={bench.preset}", f"mirror={bench.mirror}"]
        words += ["engine=api", f"engine.base_url={server.url}", f"out={tmp_path / 'out'}"]
        assert main(words) == 0
        second = [body for body in server.bodies if any(m["role"] == "assistant" for m in body["messages"])]
        assert len(server.bodies) == 16 and len(second) == 8
    (folder,) = (tmp_path / "out" / "served" / "mt-bench-ja").iterdir()
    assert json.loads((folder / "environment.json").read_text())["identity"]["engine_family"] == "api"
    # A length of prompt and answer together cannot be kept where the prompt cannot be counted.
    rules = answer_rules(load_preset("llm-jp-3-card"), None, {})
    assert rules.length is LengthRule.new and "length.rule" in rules.assumed


def test_two_checkpoints_under_one_served_name_are_two_models(tmp_path: Path) -> None:
    found = []
    with FaultServer() as server:
        for name in "ab":
            folder = tmp_path / name / "model"
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps({"of": name}))
            model = ModelConfig(path=str(folder))
            config = Config(model=model, engine=EngineConfig(name="api", base_url=server.url))
            found.append(identified(config).model.identity)
        assert found[0] != found[1] and found[0]["server_model"] == found[1]["server_model"]
        for name, said in (("other", True), ("/x/Served.gguf", False)):
            remarks = ask_servers(ModelConfig(name=name, path="x"), config.engine).remarks
            assert any("taken for those of other" in remark for remark in remarks) == said
        config.engine.server = ServerKind.vllm
        config.engine.model = str(server.listed["id"])
        assert identified(config).model.identity == {**found[1], "server": "vllm"}
