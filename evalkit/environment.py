"""environment.json: where and with what a run was made."""

import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from typing import Any

import yaml
from omegaconf import OmegaConf

from evalkit import __version__, assets
from evalkit.config import Config
from evalkit.redaction import hide

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "flash-attn",
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


def config_text(config: Config) -> str:
    """config.yaml: every option of a run, without keys and without credentials in addresses."""
    content = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return yaml.safe_dump(_hidden(content), allow_unicode=True, sort_keys=False)


def _hidden(value: Any) -> Any:
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {key: _hidden(inner) for key, inner in value.items()}
    return [_hidden(inner) for inner in value] if isinstance(value, list) else value


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
