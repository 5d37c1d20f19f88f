"""Engines: requests in, completions out."""

from evalkit.config import Config
from evalkit.engines.base import Engine
from evalkit.errors import InputError
from evalkit.models import ResolvedModel

ENGINES = ("local", "ray")


def build_engine(config: Config, resolved: ResolvedModel) -> Engine:
    """The engine `config.engine.name` asks for, with the model loaded.

    Raises:
        InputError: an engine evalkit does not have, or options this machine cannot satisfy.
    """
    name = config.engine.name
    if name == "local":
        from evalkit.engines.local import LocalEngine

        return LocalEngine(config, resolved)
    if name == "ray":
        from evalkit.engines.cluster import RayEngine

        return RayEngine(config, resolved)
    raise InputError(f"unknown engine {name!r}", where="option engine", fix=f"engine={'|'.join(ENGINES)}")


def engine_family(config: Config) -> str:
    """The family of the chosen engine: engines of one family give the same completions."""
    return {"local": "local", "ray": "local"}.get(config.engine.name, config.engine.name)


def resolve_dtype(config: Config) -> str:
    """The name of the data type the chosen engine will use, `auto` resolved for where it computes."""
    if config.engine.name == "ray":
        from evalkit.engines.ray_session import workers_dtype

        return workers_dtype(config).value
    from evalkit.engines.loading import choose_device, choose_dtype

    return str(choose_dtype(config.dtype, choose_device(config.engine.device))).removeprefix("torch.")
