"""How a run was made: environment.json (machine, versions), config.yaml (options), timings.json.

timings.json has the seconds each dataset took, over all commands that worked on it. The time until a
completion arrives counts for the completion's dataset; where a batch mixes datasets the split between
them is rough. Only the report at the end of a run reads it.
"""

import json
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from enum import Enum
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from evalkit import __version__
from evalkit.core import assets
from evalkit.core.durable import read_checked_json, write_checked_text, write_json_atomic
from evalkit.core.errors import EvalkitError
from evalkit.core.secrets import hide, without_credentials
from evalkit.core.types import Completion

if TYPE_CHECKING:
    from evalkit.core.config import Config

log = logging.getLogger(__name__)

CONFIG, ENVIRONMENT, TIMINGS = "config.yaml", "environment.json", "timings.json"

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "flash-attn",
    "vllm",
    "numpy",
    "scipy",
    "rapidfuzz",
    "hydra-core",
    "rhoknp",
)


def describe_environment() -> dict[str, Any]:
    """Versions, commit and hardware of this process, as plain JSON values."""
    commit = _git(assets.ROOT, "rev-parse", "HEAD")
    return {
        "evalkit": __version__,
        "git_commit": commit,
        "git_dirty": bool(_git(assets.ROOT, "status", "--porcelain")) if commit else None,
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "host": socket.gethostname(),
    }


def kept_environment(folder: Path) -> dict[str, Any] | None:
    """The content of a run's environment.json; None when it is missing or damaged."""
    try:
        return read_checked_json(folder / ENVIRONMENT)
    except (OSError, ValueError):
        return None


def write_config(config: "Config", folder: Path) -> None:
    """Writes config.yaml with a checksum."""
    write_checked_text(folder / CONFIG, config_text(config))


def config_text(config: "Config") -> str:
    """Every option as YAML, without keys and without credentials in addresses."""
    content: dict[str, Any] = asdict(
        config,
        dict_factory=lambda fields: {
            key: value.name if isinstance(value, Enum) else value for key, value in fields
        },
    )
    for group in ("engine", "judge"):
        address = (content.get(group) or {}).get("base_url")
        if address:
            content[group]["base_url"] = without_credentials(address)
    return yaml.safe_dump(hide(content), allow_unicode=True, sort_keys=False)


def read_timings(folder: Path) -> dict[str, float]:
    """Seconds by dataset; empty where nothing was measured or the file is damaged."""
    try:
        content = json.loads((folder / TIMINGS).read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return {}


def timed(
    completions: Iterable[Completion], folder: Path, dataset_of: Callable[[str], str]
) -> Iterator[Completion]:
    """Passes completions through and adds their time to the run's timings.

    Args:
        completions: as an engine yields them.
        folder: the run directory; its timings are written when the completions end, however they do.
        dataset_of: the dataset of a sample by the sample's id.
    """
    seconds = read_timings(folder)
    before = time.monotonic()
    try:
        for completion in completions:
            now = time.monotonic()
            name = dataset_of(completion.id)
            seconds[name] = seconds.get(name, 0.0) + now - before
            before = now
            yield completion
    finally:
        try:
            write_json_atomic(folder / TIMINGS, {name: round(spent, 3) for name, spent in seconds.items()})
        except EvalkitError as error:
            # A run does not stop for its timings; a full disk is reported by the next write.
            log.info("the timings are not kept: %s", error.what)


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _git(root: Path, *words: str) -> str | None:
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
