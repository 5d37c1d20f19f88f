"""Calls lm-evaluation-harness in its own environment, which is made on first use."""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from evalkit.core.assets import cache_dir

VERSION = "0.4.13"


def environment() -> Path | None:
    """The interpreter of an environment with lm-evaluation-harness; None when it cannot be installed."""
    from importlib.metadata import version

    folder = cache_dir() / "benchmarks" / f"lm-eval-{VERSION}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"installing lm-evaluation-harness {VERSION} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        for packages in (
            [f"torch=={version('torch').split('+')[0]}"],
            [f"lm-eval[hf]=={VERSION}", f"transformers=={version('transformers')}"],
        ):
            done = subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=False)
            if done.returncode:
                return None
        (folder / "ready").touch()
    return python


def seconds(python: Path, model: Path, prompts: list[str], new: int) -> float:
    """The time lm-evaluation-harness's HF backend takes for `prompts`, batches of 16."""
    with tempfile.TemporaryDirectory() as folder:
        job, out = Path(folder) / "job.json", Path(folder) / "out.json"
        content = {"model": str(model), "prompts": prompts, "new": new, "out": str(out)}
        job.write_text(json.dumps(content), encoding="utf-8")
        worker = Path(__file__).with_name("harness_worker.py")
        subprocess.run([python, worker, job], check=True, capture_output=True)
        return float(json.loads(out.read_text(encoding="utf-8"))["seconds"])
