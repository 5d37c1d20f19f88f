"""A stand-in for the package vllm: the calls evalkit makes, answered by the local engine.

It checks the arguments as vLLM would and ends answers as vLLM does: the EOS and the tokens of a
stop string are among the new token ids.
"""

import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from evalkit.core.config import BosRule, Config
from evalkit.core.types import Request, Sampling
from evalkit.engines.local.random_model import byte_tokenizer
from evalkit.engines.local.running_rows import RunningRow
from tests.engines.models import local_engine

__version__ = "0.0-fake"
MADE: list["LLM"] = []
platforms = SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: True))
LOG = logging.getLogger("vllm")


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int
    stop: list[str]
    include_stop_str_in_output: bool
    stop_token_ids: list[int]

    def __post_init__(self) -> None:
        assert self.max_tokens >= 1 and self.temperature >= 0 and 0 < self.top_p <= 1
        assert self.top_k == -1 or self.top_k >= 1
        assert self.include_stop_str_in_output and self.repetition_penalty > 0


@dataclass
class CompletionOutput:
    token_ids: Sequence[int]
    finish_reason: str
    stop_reason: int | str | None


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[CompletionOutput]
    finished: bool


@dataclass
class ModelConfig:
    max_model_len: int


@dataclass
class Engine:
    local: Any
    model_config: ModelConfig
    chunked_prefill: bool
    waiting: dict[str, tuple[list[int], SamplingParams]] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)

    def add_request(self, request_id: str, prompt: dict[str, list[int]], params: SamplingParams) -> None:
        ids = prompt["prompt_token_ids"]
        assert 0 < len(ids) < self.model_config.max_model_len
        self.waiting[request_id] = (ids, params)

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for request_id in request_ids:
            self.waiting.pop(request_id, None)

    def step(self) -> list[RequestOutput]:
        """One request, whole; and first a word about it that is not the last."""
        LOG.warning("a word while it runs")
        request_id = next(iter(self.waiting))
        ids, params = self.waiting.pop(request_id)
        sampling = Sampling(
            params.temperature > 0,
            params.temperature or 1.0,
            params.top_p,
            max(params.top_k, 0),
            params.repetition_penalty,
        )
        if sampling.do_sample and self.chunked_prefill:
            raise RuntimeError("CPU Generator does not use offset")
        room = min(params.max_tokens, self.model_config.max_model_len - len(ids))
        # A BOS among the ids becomes text again, and the engine adds none of its own.
        prompt = byte_tokenizer().decode(ids)
        request = Request(request_id, prompt, room, tuple(params.stop), sampling, params.seed)
        (row,) = self.local.together([request])
        assert row.finish != "stop" or row.new[-1] in params.stop_token_ids
        return [RequestOutput(request_id, [], False), RequestOutput(request_id, [_output(row)], True)]


def _output(row: RunningRow) -> CompletionOutput:
    reason: int | str | None = None
    if row.finish == "stop_string":
        reason = row.request.stop[0]
    elif row.finish == "stop":
        reason = row.new[-1]
    return CompletionOutput(tuple(row.new), "length" if row.finish == "length" else "stop", reason)


class LLM:
    def __init__(
        self,
        model: str,
        *,
        tokenizer: str,
        dtype: str,
        enable_prefix_caching: bool,
        trust_remote_code: bool,
        generation_config: str,
        disable_log_stats: bool,
        max_num_seqs: int = 256,
        max_model_len: int = 512,
        enable_chunked_prefill: bool = True,
    ) -> None:
        LOG.handlers, LOG.propagate = [logging.StreamHandler(sys.stdout)], False
        print("a word of vLLM", flush=True)
        subprocess.run(["echo", "a word of its process"], check=True)
        assert enable_prefix_caching and generation_config == "vllm" and not trust_remote_code
        if not list(Path(model).glob("*.safetensors")):
            raise ValueError("no weights\nmore words")
        if max_model_len < 16:
            print("(Worker pid=7) WARNING 11-26 06:54:07 [utils.py:9] ImportError: no kernels", flush=True)
            for cause in ("ValueError: Available memory (1 GiB) is less", "RuntimeError: a process failed"):
                print(f"(Worker pid=7) ERROR 11-26 06:54:08 [core.py:953] {cause}", flush=True)
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        self.options = {"dtype": dtype, "max_num_seqs": max_num_seqs, "tokenizer": tokenizer}
        config = Config()
        config.protocol.bos = BosRule.none
        self.llm_engine = Engine(
            local_engine(Path(model), config=config), ModelConfig(max_model_len), enable_chunked_prefill
        )
        MADE.append(self)
