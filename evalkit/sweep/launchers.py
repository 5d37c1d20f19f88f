"""The launchers a multirun can use, and what each needs."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evalkit import assets
from evalkit.errors import InputError
from evalkit.nearest import did_you_mean

_MAPPING = "hydra.launcher.additional_parameters"
_NOT_OPTIONS = ("_target_", "submitit_folder", "backend")


@dataclass(frozen=True)
class LauncherKind:
    """A launcher: what it does, the extra it comes with, and the module that tells whether it is there.

    `member` is its name in Hydra's group.
    """

    what: str
    member: str
    extra: str | None = None
    module: str | None = None


_SUBMITIT = "hydra_plugins.hydra_submitit_launcher"
LAUNCHERS = {
    "basic": LauncherKind("one job after another", "basic"),
    "joblib": LauncherKind(
        "several at once on this machine", "joblib", "joblib", "hydra_plugins.hydra_joblib_launcher"
    ),
    "ray": LauncherKind("tasks of Ray, on this machine or a cluster", "ray", "ray", "ray"),
    "slurm": LauncherKind("a SLURM job array", "slurm", "slurm", _SUBMITIT),
    "submitit_local": LauncherKind("as slurm, on this machine, to try it", "slurm_local", "slurm", _SUBMITIT),
}


def check_launcher(words: Sequence[str]) -> tuple[str, list[str]]:
    """The launcher that the words of a command line name, and the words for Hydra.

    Raises:
        InputError: another option of Hydra, an unknown launcher, or one whose extra is not installed.
    """
    name, options = "basic", []
    for word in words:
        key, _, value = word.partition("=")
        if key == "hydra/launcher":
            name = value
        elif key.startswith("hydra.launcher."):
            # The keys of this mapping are SLURM's own.
            options.append(f"++{word}" if key.startswith(_MAPPING) else word)
        else:
            raise InputError(
                f"unknown option {key!r}",
                fix="of Hydra's own options there are hydra/launcher= and hydra.launcher.KEY=",
            )
    if name not in LAUNCHERS:
        raise InputError(
            f"unknown launcher {name!r}{did_you_mean(name, LAUNCHERS)}",
            fix="python -m evalkit list launchers",
        )
    kind = LAUNCHERS[name]
    if not is_installed(kind):
        raise InputError(
            f"the launcher {name} is not installed",
            where=f"hydra/launcher={name}",
            fix=f"pip install 'evalkit[{kind.extra}]'",
        )
    return name, [f"hydra/launcher={kind.member}", *options]


def is_installed(kind: LauncherKind) -> bool:
    """Whether the extra of a launcher is there."""
    try:
        return kind.module is None or importlib.util.find_spec(kind.module) is not None
    except ModuleNotFoundError:
        return False


def launcher_options(name: str) -> dict[str, Any]:
    """The options of an installed launcher (`hydra.launcher.KEY=`) and their defaults."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(config_dir=str(assets.CONF), version_base="1.3"):
        composed = compose("multirun", [f"hydra/launcher={LAUNCHERS[name].member}"], return_hydra_config=True)
    content = OmegaConf.to_container(composed.hydra.launcher, resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key not in _NOT_OPTIONS}


def check_options(words: Sequence[str], name: str) -> None:
    """Refuses unknown keys and values that do not fit before anything is started.

    Raises:
        InputError: with the near names.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    known = launcher_options(name)
    for word in words:
        key = word.partition("=")[0].lstrip("+").removeprefix("hydra.launcher.").split(".")[0]
        if not word.startswith("hydra/") and key not in known:
            raise InputError(
                f"unknown option hydra.launcher.{key}{did_you_mean(key, known)}",
                where=f"hydra/launcher={name}",
                fix="python -m evalkit list launchers --long",
            )
    try:
        with initialize_config_dir(config_dir=str(assets.CONF), version_base="1.3"):
            compose("multirun", list(words), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error.__cause__ or error).strip().splitlines()[0]
        raise InputError(f"the launcher's options are not valid: {text}", where=" ".join(words)) from None
