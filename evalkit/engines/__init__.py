"""Engines: requests in, completions out."""

from dataclasses import replace

from evalkit.core.config import BosRule, Dtype, EngineConfig, ModelConfig
from evalkit.core.errors import EvalkitError, InputError
from evalkit.engines.base import Engine, Identified
from evalkit.engines.models import ResolvedModel, check_unchanged, resolve
from evalkit.engines.models import check as check_files_of

ENGINES = ("local", "ray", "api", "vllm")


def check(model: ModelConfig, options: EngineConfig, *, offline: bool) -> None:
    """Finds out in seconds whether a model can be had, before data are fetched or prepared.

    Raises:
        InputError, FetchError, EvalkitError: as `identify`.
    """
    if options.name == "api":
        from evalkit.engines.servers.server_facts import ask_servers

        ask_servers(model, options)
    else:
        check_files_of(model, offline=offline)


def identify(model: ModelConfig, options: EngineConfig, dtype: Dtype, *, offline: bool) -> Identified:
    """The model, engine family and precision of a run; engine=api asks its servers for them.

    Raises:
        InputError: contradictory options, or a server with another model than the command's.
        FetchError: the model's files could not be fetched.
        EvalkitError: no server answers, or one refuses the key.
    """
    if options.name == "api":
        from evalkit.engines.servers.server_facts import identify_served

        return identify_served(model, options, dtype, offline=offline)
    resolved = resolve(model, offline=offline)
    if options.name == "vllm":
        from evalkit.engines.vllm import deciding_options

        if parameters := deciding_options(options):
            resolved = replace(resolved, identity={**resolved.identity, "parameters": parameters})
    return Identified(resolved, engine_family(options.name), resolve_dtype(options, dtype))


def build_engine(
    resolved: ResolvedModel,
    options: EngineConfig,
    dtype: Dtype,
    *,
    bos: BosRule = BosRule.auto,
    follow_generation_config: bool = False,
) -> Engine:
    """The engine that `options` name, with the model loaded.

    Args:
        resolved: the model.
        options: the engine and its options.
        dtype: the precision, `auto` included.
        bos: whether the tokenizer's BOS is put in front of prompts.
        follow_generation_config: sample as the model's own generation_config says.

    Raises:
        InputError: an engine evalkit does not have, or options this machine cannot satisfy.
        EvalkitError: the model's files changed while they were loaded.
    """
    name, follow = options.name, follow_generation_config
    engine: Engine
    if name == "ray":
        from evalkit.engines.ray.engine import RayEngine

        return RayEngine(resolved, options, dtype, bos=bos, follow_generation_config=follow)
    if name == "api":
        from evalkit.engines.servers.engine import ApiEngine

        return ApiEngine(resolved, options, bos=bos, follow_generation_config=follow)
    if name == "local":
        from evalkit.engines.local.engine import LocalEngine

        engine = LocalEngine(resolved, options, dtype, bos=bos, follow_generation_config=follow)
    elif name == "vllm":
        from evalkit.engines.vllm import VllmEngine

        engine = VllmEngine(resolved, options, dtype, bos=bos, follow_generation_config=follow)
    else:
        raise InputError(f"unknown engine {name!r}", where="option engine", fix=f"engine={'|'.join(ENGINES)}")
    try:
        check_unchanged(resolved)
    except EvalkitError:
        engine.close()
        raise
    return engine


def engine_family(name: str) -> str:
    """The family of an engine: engines of one family compute alike and may share a run."""
    return "local" if name == "ray" else name


def resolve_dtype(options: EngineConfig, dtype: Dtype) -> str:
    """The name of the data type an engine will use, `auto` resolved for where it computes."""
    if options.name == "ray":
        from evalkit.engines.ray.cluster import workers_dtype

        return workers_dtype(options, dtype).value
    if options.name == "vllm":
        from evalkit.engines.vllm import vllm_dtype

        return vllm_dtype(dtype)
    from evalkit.engines.local.loading import choose_device, choose_dtype

    return str(choose_dtype(dtype, choose_device(options.device))).removeprefix("torch.")
