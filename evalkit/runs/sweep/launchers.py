"""The launchers of a multirun: `hydra/launcher=NAME hydra.launcher.KEY=VALUE`.

slurm submits the jobs as one job array through submitit; submitit_local does the same on this
machine, for trying it.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evalkit.core.errors import InputError
from evalkit.core.text import did_you_mean


@dataclass
class LocalOptions:
    """`hydra.launcher.KEY=` of submitit_local: what sbatch calls them, and submitit's `timeout_min`.

    A job whose time is up goes back into the queue `max_num_timeout` times at most.
    """

    name: str = "evalkit"
    timeout_min: int = 600
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int | None = None
    gpus_per_node: int | None = 0
    mem_gb: int | None = None
    stderr_to_stdout: bool = True
    max_num_timeout: int = 20


@dataclass
class SlurmOptions(LocalOptions):
    """`hydra.launcher.KEY=` of slurm; `additional_parameters` takes every other option of sbatch.

    `signal_delay_s` before the time is up a job gets a signal, saves and goes back into the queue.
    `setup` are shell commands that run before a job; `array_parallelism` jobs run at once at most.
    """

    cpus_per_task: int | None = 4
    gpus_per_node: int | None = 1
    partition: str | None = None
    qos: str | None = None
    comment: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    cpus_per_gpu: int | None = None
    gpus_per_task: int | None = None
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None
    account: str | None = None
    signal_delay_s: int = 120
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    array_parallelism: int = 16
    setup: list[str] | None = None


# The launchers: a description, and the class of their options.
LAUNCHERS: dict[str, tuple[str, type[LocalOptions] | None]] = {
    "basic": ("one job after another", None),
    "slurm": ("a SLURM job array", SlurmOptions),
    "submitit_local": ("as slurm, on this machine, to try it", LocalOptions),
}


def check_launcher(words: Sequence[str]) -> tuple[str, LocalOptions | None]:
    """The launcher that a command line names, and its options (None: it has none).

    Raises:
        InputError: another option of Hydra, an unknown launcher, key or value, or a launcher whose
            extra is not installed.
    """
    name, given = "basic", []
    for word in words:
        key, _, value = word.partition("=")
        if key == "hydra/launcher":
            name = value
        elif key.startswith("hydra.launcher."):
            given.append(word)
        else:
            raise InputError(
                f"unknown option {key!r}",
                fix="of Hydra's own options there are hydra/launcher= and hydra.launcher.KEY=",
            )
    if name not in LAUNCHERS:
        raise InputError(
            f"unknown launcher {name!r}{did_you_mean(name, LAUNCHERS)}",
            fix="evalkit list launchers",
        )
    if not is_installed(name):
        raise InputError(
            f"the launcher {name} is not installed",
            where=f"hydra/launcher={name}",
            fix="pip install 'evalkit[slurm]'",
        )
    _check_keys(name, given)
    kind = LAUNCHERS[name][1]
    return name, None if kind is None else _filled(kind, given)


def is_installed(name: str) -> bool:
    """Whether the packages a launcher needs are installed."""
    return LAUNCHERS[name][1] is None or importlib.util.find_spec("submitit") is not None


def launcher_options(name: str) -> dict[str, Any]:
    """The options of a launcher and their defaults."""
    kind = LAUNCHERS[name][1]
    return {} if kind is None else asdict(kind())


def _check_keys(name: str, words: Sequence[str]) -> None:
    known = launcher_options(name)
    for word in words:
        key = word.removeprefix("hydra.launcher.").partition("=")[0].partition(".")[0]
        if key not in known:
            raise InputError(
                f"unknown option hydra.launcher.{key}{did_you_mean(key, known)}",
                where=f"hydra/launcher={name}",
                fix="evalkit list launchers --long",
            )


def _filled(kind: type[LocalOptions], words: Sequence[str]) -> LocalOptions:
    """The options with the values of the command line, in Hydra's syntax."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    options = OmegaConf.structured(kind)
    for word in words:
        key = word.removeprefix("hydra.launcher.").partition("=")[0]
        try:
            override = OverridesParser.create().parse_override(word)
            if override.is_sweep_override():
                raise InputError(
                    "a launcher's option has one value",
                    where=word,
                    fix=f"quote one with commas: hydra.launcher.{key}='A,B'",
                )
            OmegaConf.update(options, key, override.value())
            OmegaConf.resolve(options)
        except (HydraException, OmegaConfBaseException) as error:
            text = str(error).strip().splitlines()[0]
            raise InputError(f"the launcher's options are not valid: {text}", where=word) from None
    found = OmegaConf.to_object(options)
    assert isinstance(found, LocalOptions)
    return found
