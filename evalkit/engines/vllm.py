"""vLLM in this process: evalkit's token ids in, its token ids out, text by the protocol's rule.

Prefix caching is on: what the prompts of a dataset share is computed once. vLLM pins its own torch,
so it has an environment and a constraints file of its own (docs/servers.md).
"""

import gc
import importlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evalkit.config import Config, Dtype
from evalkit.engines.base import Engine, distinct, from_generation_config
from evalkit.engines.decoding import CompletionDecoder
from evalkit.engines.encoding import Encoded, encode
from evalkit.engines.loading import check_files, load_tokenizer, refuse_ids, refuse_special_ids
from evalkit.engines.rows import failed
from evalkit.errors import EvalkitError, InputError, foreign
from evalkit.models import ResolvedModel
from evalkit.models.files import generation_config
from evalkit.models.whole import embeddings_of
from evalkit.types import Completion, FinishReason, Request, Sampling

log = logging.getLogger(__name__)

INSTALL = (
    "python3 -m venv .venv-vllm && .venv-vllm/bin/pip install -c constraints-vllm.txt -e '.[vllm]'"
    "   then .venv-vllm/bin/python -m evalkit ..."
)

# Options of vllm.LLM about memory and machines; another number of GPUs continues a run.
_RESOURCES = (
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_executor_backend"),
    *("gpu_memory_utilization", "swap_space", "cpu_offload_gb", "max_num_seqs", "max_num_batched_tokens"),
    *("block_size", "max_parallel_loading_workers", "disable_custom_all_reduce", "disable_log_stats"),
    "download_dir",
)


@dataclass(frozen=True)
class _Vocabulary:
    """See `evalkit.engines.encoding.Vocabulary`."""

    tokenizer: Any
    eos: frozenset[int]
    chat_eos: frozenset[int]


class VllmEngine(Engine):
    """Runs a model in vLLM's own engine.

    Raises:
        InputError: vLLM is not installed, a model without files or with damaged ones.
        EvalkitError: vLLM cannot load the model.
    """

    family = "vllm"

    def __init__(self, config: Config, resolved: ResolvedModel) -> None:
        self._config = config
        self._vllm = _import_vllm()
        if resolved.path is None:
            raise InputError(
                "vLLM loads models from files, and this one has none", where=f"model={resolved.name}"
            )
        check_files(resolved)
        self._embeddings = embeddings_of(resolved.path)
        self._generation = generation_config(resolved.path)
        self._vocabulary = _vocabulary(load_tokenizer(resolved), self._generation.pop("eos_token_id", None))
        if self._embeddings is not None:
            refuse_special_ids(self._vocabulary.tokenizer, self._embeddings, resolved.path)
        self._decoder = CompletionDecoder(self._vocabulary.tokenizer)
        self._dtype = vllm_dtype(config.dtype)
        options = {
            "model": str(resolved.path),
            "tokenizer": str(resolved.tokenizer or resolved.path),
            "dtype": self._dtype,
            "enable_prefix_caching": True,
            "trust_remote_code": resolved.config.trust_remote_code,
            # The requests decide the sampling, not the model's generation_config.json.
            "generation_config": "vllm",
            "disable_log_stats": True,
            **({"max_num_seqs": config.engine.batch_size} if config.engine.batch_size else {}),
            **config.engine.parameters,
        }
        with foreign("vLLM cannot load the model", where=resolved.path, raises=EvalkitError):
            self._llm: Any = self._vllm.LLM(**options)
        self._context = int(self._llm.llm_engine.model_config.max_model_len)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `Engine.generate`."""
        running: dict[str, Encoded] = {}
        engine = self._llm.llm_engine
        prompts = encode(distinct(requests), self._vocabulary, self._config.protocol.bos)
        if self._embeddings is not None:
            refuse_ids(prompts, self._vocabulary.tokenizer, self._embeddings)
        try:
            for encoded in prompts:
                if problem := self._problem(encoded):
                    yield problem
                else:
                    running[encoded.request.id] = encoded
                    prompt = {"prompt_token_ids": encoded.ids}
                    engine.add_request(encoded.request.id, prompt, self._parameters(encoded))
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        yield self._completion(running.pop(output.request_id), output.outputs[0])
        finally:
            # Who closes the iterator early leaves nothing behind in vLLM.
            if running:
                engine.abort_request(list(running))

    def _problem(self, encoded: Encoded) -> Completion | None:
        if not encoded.ids:
            return failed(encoded, "the prompt is empty: it has no token")
        if encoded.request.max_new_tokens < 1:
            return failed(encoded, f"max_new_tokens is {encoded.request.max_new_tokens}")
        if len(encoded.ids) >= self._context:
            reason = f"the prompt has {len(encoded.ids)} tokens, vLLM's max_model_len is {self._context}"
            return failed(encoded, reason, over_context=True)
        return None

    def _parameters(self, encoded: Encoded) -> Any:
        request = encoded.request
        sampling = self._sampling(request)
        return self._vllm.SamplingParams(
            max_tokens=request.max_new_tokens,
            temperature=sampling.temperature if sampling.do_sample else 0.0,
            top_p=sampling.top_p if sampling.do_sample else 1.0,
            top_k=(sampling.top_k or -1) if sampling.do_sample else -1,
            repetition_penalty=sampling.repetition_penalty,
            seed=request.seed,
            stop=list(request.stop),
            include_stop_str_in_output=True,
            stop_token_ids=sorted(encoded.eos),
        )

    def _sampling(self, request: Request) -> Sampling:
        if self._config.generation.from_model:
            return from_generation_config(self._generation)
        return request.sampling

    def _completion(self, encoded: Encoded, output: Any) -> Completion:
        new = [int(token) for token in output.token_ids]
        request = encoded.request
        full = len(encoded.ids) + len(new) >= self._context and len(new) < request.max_new_tokens
        if output.finish_reason == "length" and full:
            reason = f"vLLM's max_model_len of {self._context} ends after {len(new)} new tokens"
            return failed(encoded, reason, over_context=True)
        finish: FinishReason
        if output.finish_reason == "length":
            finish = "length"
        elif output.finish_reason != "stop":
            return failed(encoded, f"vLLM gave up: {output.finish_reason}")
        else:
            finish = "stop_string" if isinstance(output.stop_reason, str) else "stop"
        kept = new[:-1] if finish == "stop" and new and new[-1] in encoded.eos else new
        text = self._decoder.decode(encoded.ids, kept)
        return Completion(
            id=request.id,
            text=text.text,
            raw_text=text.raw_text,
            finish_reason=finish,
            prompt_tokens=len(encoded.ids),
            new_tokens=len(new),
        )

    def describe(self) -> dict[str, Any]:
        """See `Engine.describe`."""
        return {
            "engine": "vllm",
            "vllm": self._vllm.__version__,
            "dtype": self._dtype,
            "prefix_caching": True,
            "max_model_len": self._context,
            "parameters": self._config.engine.parameters,
            "generation_config": self._generation,
        }

    def close(self) -> None:
        """See `Engine.close`."""
        self._llm = None
        gc.collect()


def vllm_dtype(dtype: Dtype) -> str:
    """The precision vLLM runs in: the protocol's bfloat16 unless another is asked for."""
    return "bfloat16" if dtype is Dtype.auto else dtype.value


def deciding_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The options of vllm.LLM that may change an answer: quantization, context length, rope and the like."""
    return {name: value for name, value in parameters.items() if name not in _RESOURCES}


def _import_vllm() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise InputError(
            f"vLLM is not installed here ({error})", where="option engine=vllm", fix=INSTALL
        ) from None


def _vocabulary(tokenizer: Any, own_eos: int | list[int] | None) -> _Vocabulary:
    from evalkit.engines.loading import as_ids

    tokenizer_eos, model_eos = as_ids(tokenizer.eos_token_id), as_ids(own_eos)
    return _Vocabulary(tokenizer, tokenizer_eos or model_eos, tokenizer_eos | model_eos)
