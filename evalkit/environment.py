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
from evalkit.refusals import without_credentials

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


def config_text(config: Config) -> str:
    """config.yaml: every option of a run, addresses without credentials."""
    content = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(content, dict)
    for group in ("engine", "judge"):
        address = (content.get(group) or {}).get("base_url")
        if address:
            content[group]["base_url"] = without_credentials(address)
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False)


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
