"""environment.json and config.yaml: where, with what and with which options a run was made."""

import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from evalkit import __version__, assets
from evalkit.durable import read_checked_json, write_checked_text
from evalkit.redaction import hide
from evalkit.refusals import without_credentials
from evalkit.text import everywhere

if TYPE_CHECKING:
    from evalkit.config import Config

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"

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
    return {
        "evalkit": __version__,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")) if _git("rev-parse", "HEAD") else None,
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "host": socket.gethostname(),
    }


def kept_environment(folder: Path) -> dict[str, Any] | None:
    """What a run's environment.json holds; None when it is not there or damaged."""
    try:
        return read_checked_json(folder / ENVIRONMENT)
    except (OSError, ValueError):
        return None


def write_config(config: "Config", folder: Path) -> None:
    """Writes config.yaml with a checksum."""
    write_checked_text(folder / CONFIG, config_text(config))


def config_text(config: "Config") -> str:
    """Every option as YAML, without keys and without credentials in addresses."""
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(content, dict)
    for group in ("engine", "judge"):
        address = (content.get(group) or {}).get("base_url")
        if address:
            content[group]["base_url"] = without_credentials(address)
    return yaml.safe_dump(everywhere(content, hide), allow_unicode=True, sort_keys=False)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    if not (assets.ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(assets.ROOT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
