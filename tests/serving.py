"""A server with a real model behind it: the local engine, in the words and with the habits of vLLM."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from evalkit.core.config import BosRule, Config, EngineConfig, ModelConfig, RandomShape
from evalkit.core.types import REST_OF_CONTEXT, Message, Request, Sampling
from evalkit.engines.base import Engine
from evalkit.engines.local.tokenizer import load_tokenizer
from tests.mtbench.fault_server import FaultServer
from tests.tiny import engine_of, identified


def random_config(model: ModelConfig | None = None) -> Config:
    """The random model, or another, on the local engine."""
    model = model or ModelConfig(name="random", random=RandomShape())
    return Config(model=model, engine=EngineConfig(name="local", device="cpu", threads=1))


class ModelServer(FaultServer):
    """Answers with an engine's completions.

    Args:
        engine: with protocol.bos=none, for prompts reach it with the BOS spelled out.
        tokenizer: the engine's.
        name: what /v1/models calls the model.
    """

    def __init__(self, engine: Engine, tokenizer: Any, name: str) -> None:
        super().__init__()
        self.engine = engine
        self.tokenizer = tokenizer
        self.listed = {"id": name, "object": "model", "owned_by": "vllm"}

    async def _respond(
        self, fault: str, text: str, body: dict[str, Any], request: web.Request
    ) -> web.StreamResponse:
        if fault != "ok":
            return await super()._respond(fault, text, body, request)
        asked = self._request(body)
        (done,) = self.engine.generate([asked])
        if done.over_context:
            return self._error(400, "context_length_exceeded", "maximum context length")
        stops = [stop for stop in asked.stop if stop in done.raw_text]
        stop = min(stops, key=done.raw_text.index) if done.finish_reason == "stop_string" else None
        answer = done.raw_text
        if stop is not None:
            end = answer.index(stop)
            answer = answer[: end + len(stop) if body.get("include_stop_str_in_output") else end]
        said = (
            {"message": {"role": "assistant", "content": answer}} if "messages" in body else {"text": answer}
        )
        finish = "length" if done.finish_reason == "length" else "stop"
        usage = {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.new_tokens}
        choice = {"index": 0, "finish_reason": finish, "stop_reason": stop, **said}
        return web.json_response({"model": body["model"], "choices": [choice], "usage": usage})

    def _request(self, body: dict[str, Any]) -> Request:
        temperature = body["temperature"]
        sampling = Sampling(
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            top_p=body.get("top_p", 1.0),
            top_k=max(0, body.get("top_k", -1)),
            repetition_penalty=body.get("repetition_penalty", 1.0),
        )
        stop, seed = tuple(body.get("stop", ())), body.get("seed", 0)
        most = body.get("max_tokens", REST_OF_CONTEXT)
        special = not body.get("skip_special_tokens", True)
        return Request("a", self._prompt(body), most, stop, sampling, seed, keep_special=special)

    def _prompt(self, body: dict[str, Any]) -> str | tuple[Message, ...]:
        if "messages" in body:
            return tuple(Message(one["role"], one["content"]) for one in body["messages"])
        ids = body["prompt"]
        if isinstance(ids, str):
            ids = self.tokenizer(ids, add_special_tokens=body.get("add_special_tokens", True))["input_ids"]
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@contextmanager
def serving(config: Config | None = None) -> Iterator[ModelServer]:
    """A server over the model of `config`, by default the random one."""
    config = config or random_config()
    config.protocol.bos = BosRule.none
    model = identified(config).model
    with (
        engine_of(config, model) as engine,
        ModelServer(engine, load_tokenizer(model), model.name) as server,
    ):
        yield server


def serve(address: Path) -> None:
    """Serves the random model until the process is killed, and writes its address into a file first."""
    with serving() as running:
        address.write_text(running.url)
        signal.pause()
