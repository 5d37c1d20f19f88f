"""vLLM in this process: evalkit's token ids in, its token ids out, text by the protocol's rule.

Prefix caching is on: what the prompts of a dataset share is computed once. vLLM pins its own torch,
so it has an environment and a constraints file of its own (docs/servers.md).
"""

import gc
import importlib
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from evalkit.core.config import BosRule, Dtype, EngineConfig
from evalkit.core.errors import EvalkitError, InputError, foreign
from evalkit.core.logs import output_to
from evalkit.core.types import Completion, FinishReason, Request
from evalkit.engines.base import Engine, distinct, from_generation_config
from evalkit.engines.local.loading import check_files
from evalkit.engines.local.running_rows import failed, problem_of
from evalkit.engines.local.tokenizer import load_tokenizer, refuse_ids, refuse_special_ids
from evalkit.engines.local.tokens import CompletionDecoder, Encoded, encode, end_ids
from evalkit.engines.models import ResolvedModel
from evalkit.engines.models.folder_files import generation_config
from evalkit.engines.models.whole import embeddings_of

log = logging.getLogger(__name__)

INSTALL = (
    "python3 -m venv .venv-vllm && .venv-vllm/bin/pip install -c constraints-vllm.txt -e '.[vllm]'"
    "   then .venv-vllm/bin/evalkit ..."
)

_SEE_LOG = "vLLM's own messages, in the run's run.log, say more"
# How vLLM logs the exceptions of its processes.
_CAUSE = re.compile(r"\bERROR\b.* (\S*(?:Error|Exception): .+)")

# Options of vllm.LLM about memory and machines; another number of GPUs continues a run.
_RESOURCES = (
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_executor_backend"),
    *("gpu_memory_utilization", "swap_space", "cpu_offload_gb", "max_num_seqs", "max_num_batched_tokens"),
    *("block_size", "max_parallel_loading_workers", "disable_custom_all_reduce", "disable_log_stats"),
    "download_dir",
)
# Options of vllm.LLM that evalkit sets, with its own options that decide them.
_OWN = {
    "model": "model.path",
    "tokenizer": "model.tokenizer",
    "dtype": "dtype",
    "trust_remote_code": "model.trust_remote_code",
    "generation_config": "generation.from_model",
}


class VllmEngine(Engine):
    """Runs a model in vLLM's own engine.

    Args:
        resolved: the model.
        options: of the engine; `parameters` go to vllm.LLM.
        dtype: the precision; `auto` is bfloat16.
        bos: the rule for text prompts.
        follow_generation_config: sample as the model's generation_config says, not the requests.

    Raises:
        InputError: vLLM is not installed, a model without files or with damaged ones.
        EvalkitError: vLLM cannot load the model.
    """

    family = "vllm"

    def __init__(
        self,
        resolved: ResolvedModel,
        options: EngineConfig,
        dtype: Dtype,
        *,
        bos: BosRule,
        follow_generation_config: bool,
    ) -> None:
        self._parameters = options.parameters
        self._bos = bos
        self._follow_generation_config = follow_generation_config
        if resolved.path is None:
            raise InputError(
                "vLLM loads models from files, and this one has none", where=f"model={resolved.name}"
            )
        check_files(resolved, by_vllm=True)
        self._embeddings = embeddings_of(resolved.path)
        self._generation = generation_config(resolved.path)
        self._tokenizer = load_tokenizer(resolved)
        self._ends = end_ids(self._tokenizer, self._generation.pop("eos_token_id", None))
        if self._embeddings is not None:
            refuse_special_ids(self._tokenizer, self._embeddings, resolved.path)
        self._decoder = CompletionDecoder(self._tokenizer)
        self._dtype = vllm_dtype(dtype)
        arguments = {
            "model": str(resolved.path),
            "tokenizer": str(resolved.tokenizer or resolved.path),
            "dtype": self._dtype,
            "enable_prefix_caching": True,
            "trust_remote_code": resolved.config.trust_remote_code,
            # The requests decide the sampling, not the model's generation_config.json.
            "generation_config": "vllm",
            "disable_log_stats": True,
            **({"max_num_seqs": options.batch_size} if options.batch_size else {}),
            **options.parameters,
        }
        # Its own messages, and those of its processes, would hide the progress.
        with output_to(log) as self._wait_for_log:
            self._vllm = _import_vllm()
            if importlib.import_module("vllm.platforms").current_platform.is_cpu():
                # Of a prompt cut in two it takes back the first draw, which no generator of a CPU can.
                arguments.setdefault("enable_chunked_prefill", False)
            with self._naming_causes("vLLM cannot load the model", resolved.path):
                self._llm: Any = self._vllm.LLM(**arguments)
        self._context = int(self._llm.llm_engine.model_config.max_model_len)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `Engine.generate`."""
        running: dict[str, Encoded] = {}
        engine = self._llm.llm_engine
        prompts = encode(distinct(requests), self._tokenizer, self._ends, self._bos, self._context)
        if self._embeddings is not None:
            refuse_ids(prompts, self._tokenizer, self._embeddings)
        try:
            for encoded in prompts:
                # vLLM takes no prompt that leaves no room.
                if problem := problem_of(encoded, self._context, self._context - 1):
                    yield problem
                else:
                    running[encoded.request.id] = encoded
                    prompt = {"prompt_token_ids": encoded.ids}
                    engine.add_request(encoded.request.id, prompt, self._sampling_parameters(encoded))
            while engine.has_unfinished_requests():
                with self._naming_causes("vLLM failed", "engine=vllm"):
                    outputs = engine.step()
                for output in outputs:
                    if output.finished:
                        yield self._completion(running.pop(output.request_id), output.outputs[0])
        except EvalkitError:
            # An engine that failed takes no further call.
            running.clear()
            raise
        finally:
            # The iterator may be closed early: abort what vLLM still runs.
            if running:
                engine.abort_request(list(running))

    @contextmanager
    def _naming_causes(self, what: str, where: object) -> Iterator[None]:
        """Runs vLLM; the exception of one of its processes says more than that the process has ended."""
        causes = _Causes()
        log.addHandler(causes)
        try:
            with foreign(what, where=where, raises=EvalkitError, fix=_SEE_LOG):
                try:
                    yield
                except Exception as error:
                    self._wait_for_log()
                    if causes.first is None:
                        raise
                    raise RuntimeError(causes.first) from error
        finally:
            log.removeHandler(causes)

    def _sampling_parameters(self, encoded: Encoded) -> Any:
        request = encoded.request
        sampling = request.sampling
        if self._follow_generation_config:
            sampling = from_generation_config(self._generation)
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
        text = self._decoder.decode(encoded.ids, kept, keep_special=request.keep_special)
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
            "parameters": self._parameters,
            "generation_config": self._generation,
        }

    def close(self) -> None:
        """See `Engine.close`."""
        self._llm = None
        gc.collect()
        self._wait_for_log()


class _Causes(logging.Handler):
    """Keeps the first exception that vLLM's processes log."""

    first: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        if self.first is None and (found := _CAUSE.search(record.getMessage())):
            self.first = found[1]


def vllm_dtype(dtype: Dtype) -> str:
    """The precision vLLM runs in: the protocol's bfloat16 unless another is asked for."""
    return "bfloat16" if dtype is Dtype.auto else dtype.value


def deciding_options(options: EngineConfig) -> dict[str, Any]:
    """The options of vllm.LLM that may change an answer: quantization, context length, rope and the like.

    Raises:
        InputError: one that an option of evalkit decides.
    """
    own = _OWN | ({"max_num_seqs": "engine.batch_size"} if options.batch_size else {})
    for name in options.parameters:
        if name in own:
            raise InputError(
                "an option of evalkit decides this",
                where=f"option engine.parameters.{name}",
                fix=f"{own[name]}=... instead",
            )
    return {name: value for name, value in options.parameters.items() if name not in _RESOURCES}


def _import_vllm() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise InputError(
            f"vLLM is not installed here ({error})", where="option engine=vllm", fix=INSTALL
        ) from None
