"""Engines: requests in, completions out."""

from dataclasses import replace

from evalkit.core.config import Config, is_offline
from evalkit.core.errors import EvalkitError, InputError
from evalkit.engines.base import Engine, Identified
from evalkit.engines.models import ResolvedModel, check_unchanged, resolve

ENGINES = ("local", "ray", "api", "vllm")


def identify(config: Config) -> Identified:
    """The model, engine family and precision of a run; engine=api asks its servers for them.

    Raises:
        InputError: contradictory options, or a server with another model than the command's.
        FetchError: the model's files could not be fetched.
        EvalkitError: no server answers, or one refuses the key.
    """
    assert config.model is not None
    if config.engine.name == "api":
        from evalkit.engines.servers.identity import identify_served

        return identify_served(config.model, config.engine, config.dtype, offline=is_offline(config))
    model = resolve(config.model, offline=is_offline(config))
    if config.engine.name == "vllm":
        from evalkit.engines.vllm import deciding_options

        if options := deciding_options(config.engine.parameters):
            model = replace(model, identity={**model.identity, "parameters": options})
    return Identified(model, engine_family(config), resolve_dtype(config))


def build_engine(config: Config, resolved: ResolvedModel) -> Engine:
    """The engine `config.engine.name` asks for, with the model loaded.

    Raises:
        InputError: an engine evalkit does not have, or options this machine cannot satisfy.
        EvalkitError: the model's files changed while they were loaded.
    """
    name, options, dtype = config.engine.name, config.engine, config.dtype
    bos, follow = config.protocol.bos, config.generation.from_model
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


def engine_family(config: Config) -> str:
    """The family of the chosen engine: engines of one family compute alike and may share a run."""
    return "local" if config.engine.name == "ray" else config.engine.name


def resolve_dtype(config: Config) -> str:
    """The name of the data type the chosen engine will use, `auto` resolved for where it computes."""
    if config.engine.name == "ray":
        from evalkit.engines.ray.cluster import workers_dtype

        return workers_dtype(config.engine, config.dtype).value
    if config.engine.name == "vllm":
        from evalkit.engines.vllm import vllm_dtype

        return vllm_dtype(config.dtype)
    from evalkit.engines.local.loading import choose_device, choose_dtype

    return str(choose_dtype(config.dtype, choose_device(config.engine.device))).removeprefix("torch.")
