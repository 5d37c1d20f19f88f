"""What identifies a model: the hash of every byte that loading can read, and nothing else."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.config import Config, EngineConfig, ModelConfig, ProtocolConfig, RandomShape
from evalkit.core.errors import EvalkitError, InputError
from evalkit.engines.base import Identified
from evalkit.engines.models import check_unchanged, digests, resolve, resolve_without_weights
from evalkit.runs.identity import run_identity
from evalkit.tasks.load import Task, load_task
from evalkit.tasks.prompts import Asking, PromptTemplate
from evalkit.tasks.spec import load_spec

LARGE = (1 << 20) + 4096
OLD = 1_600_000_000


@pytest.fixture(autouse=True)
def own_cache(cache: Path) -> Path:
    digests._memory.clear()
    return cache


def fill(folder: Path) -> Path:
    """A folder with every kind of file that loading reads; weights in two shards."""
    shards = {f"layer.{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    files = {
        "config.json": b'{"model_type": "llama"}',
        "generation_config.json": b"{}",
        "model.safetensors.index.json": json.dumps({"weight_map": shards}).encode(),
        **{name: bytes([number]) * LARGE for number, name in enumerate(shards.values())},
        **{name: name.encode() for name in COUNTED},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        os.utime(folder / name, (OLD, OLD))
    return folder


COUNTED = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("spiece.model", "qwen.tiktoken", "tekken.json", "bpe.codes", "source.spm", "prophetnet.tokenizer"),
    *("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
    *("additional_chat_templates/tool_use.jinja", "processor_config.json", "some_file_of_tomorrow.json"),
)
CODE = ("modeling_own.py", "layers/attention.py", "custom_generate/generate.py", "layers/table.bin", "w.pt")
IRRELEVANT = (
    *("README.md", "LICENSE", "LICENSE.txt", ".gitattributes", ".git/objects/ab", ".cache/huggingface/x"),
    *("optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state_0.pth", "trainer_state.json", "train.log"),
    *("training_args.bin", "global_step100/mp_rank_00_model_states.pt", "checkpoint-5/model.safetensors"),
    *("checkpoint-5/config.json", "checkpoint-5/modeling_own.py", "runs/events.out.tfevents.1", "plot.png"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "m.gguf"),
    *("onnx/model.onnx", "original/consolidated.00.pth", "consolidated.safetensors", "eval_results.json"),
    *("__pycache__/x.cpython-311.pyc", "out/m/sample/1/config.yaml", "out/m/sample/1/environment.json"),
    *("out/m/sample/1/results.json", "model-00001-of-00003.safetensors.tmp"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "model")


def identity(folder: Path, **options: Any) -> dict[str, Any]:
    return resolve(ModelConfig(path=str(folder), **options), offline=True).identity


def edit(path: Path, *, at: int | None = None, seconds: int = OLD + 10) -> None:
    """Changes one byte, in the middle unless `at` says where; the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))


# --- what counts ---------------------------------------------------------------------------------


def test_identity_is_the_whole_files_hashes(folder: Path) -> None:
    files = identity(folder)["files"]
    for name in ("model-00001-of-00002.safetensors", "tokenizer.model", "config.json"):
        assert files[name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("at", [8, LARGE // 2 + 1, LARGE - 1])
def test_one_byte_of_a_large_weight(folder: Path, at: int) -> None:
    before = identity(folder)
    edit(folder / "model-00002-of-00002.safetensors", at=at)
    assert identity(folder) != before


@pytest.mark.parametrize("name", [*COUNTED, "config.json", "generation_config.json"])
def test_every_file_that_loading_can_read_counts(folder: Path, name: str) -> None:
    before = identity(folder)
    edit(folder / name, at=-3 if name == "config.json" else 0)
    changed = identity(folder)
    assert changed["files"][name] != before["files"][name]
    (folder / name).rename(folder.parent / "aside")
    if name != "config.json":  # without it there is no model
        assert name not in identity(folder)["files"]


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_counts_where_a_server_may_apply_it(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"{}")
    model = ModelConfig(path=str(folder))
    before = resolve_without_weights(model, offline=True).identity
    edit(folder / name)
    assert resolve_without_weights(model, offline=True).identity != before


@pytest.mark.parametrize("name", CODE)
def test_code_counts_where_it_is_trusted(folder: Path, name: str) -> None:
    before = identity(folder), identity(folder, trust_remote_code=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x = 1")
    first = identity(folder, trust_remote_code=True)
    assert (identity(folder), name in first["files"]) == (before[0], True)
    edit(folder / name)
    assert before[1] != first != identity(folder, trust_remote_code=True)


@pytest.mark.parametrize("trusted", [False, True])
def test_what_loading_never_reads_does_not_count(folder: Path, trusted: bool) -> None:
    before = identity(folder, trust_remote_code=trusted)
    for name in IRRELEVANT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 10)
    (folder / "stray.safetensors").write_bytes(b"left by another save")
    after = identity(folder, trust_remote_code=trusted)
    if trusted:
        del after["files"]["stray.safetensors"]
    assert after == before


def test_a_shard_in_another_folder_counts_by_its_name(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "shards/one.safetensors"}}))
    (folder / "shards").mkdir()
    (folder / "shards" / "one.safetensors").write_bytes(b"1")
    before = identity(folder)
    assert "shards/one.safetensors" in before["files"]
    assert "model-00001-of-00002.safetensors" not in before["files"]
    edit(folder / "shards" / "one.safetensors", at=0)
    assert identity(folder) != before


def test_a_renamed_shard_is_another_model(folder: Path) -> None:
    before = identity(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("00002-of-00002", "00003-of-00003"))
    (folder / "model-00002-of-00002.safetensors").rename(folder / "model-00003-of-00003.safetensors")
    assert identity(folder) != before


def test_swapped_shards_are_another_model(folder: Path) -> None:
    before = identity(folder)
    one, two = (folder / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    one.rename(folder / "x")
    two.rename(one)
    (folder / "x").rename(two)
    assert identity(folder) != before


def test_a_moved_copied_or_linked_folder_keeps_its_identity(folder: Path, tmp_path: Path) -> None:
    before = identity(folder)
    copied = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile))
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    assert identity(copied) == identity(linked) == before
    assert identity(folder.rename(tmp_path / "moved")) == before


def test_code_of_another_repository_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder.parent / "owner"
    elsewhere.mkdir()
    (elsewhere / "modeling.py").write_text("x = 1")
    monkeypatch.chdir(folder.parent)
    auto_map = {"AutoModelForCausalLM": "owner--modeling.Own", "AutoTokenizer": [None, "owner--tok.Own"]}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    assert "code" not in identity(folder)
    before = identity(folder, trust_remote_code=True)
    assert before["code"] == {"owner": {"modeling.py": hashlib.sha256(b"x = 1").hexdigest()}}
    edit(elsewhere / "modeling.py")
    assert identity(folder, trust_remote_code=True) != before


def test_names_of_any_bytes_and_links_in_a_circle(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/vocab-\xff.txt")).write_bytes(b"x")
    (folder / "again").symlink_to(folder)
    (folder / "gone.json").symlink_to(folder / "nowhere")
    before = identity(folder, trust_remote_code=True)
    assert json.loads(json.dumps(before, ensure_ascii=False).encode()) == before
    assert sum(name.startswith("vocab-") for name in before["files"]) == 1
    assert not [name for name in before["files"] if name.startswith(("again", "gone"))]


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *words: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(digests, "open", refuse, raising=False)
    with pytest.raises(InputError, match=r"(?s)cannot be read: Permission denied.*model/"):
        identity(folder)


# --- where a model comes from ----------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache as the library lays it out: names that are links to blobs."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / ("c" * 40)
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c" * 40)
    for path in sorted(fill(tmp_path / "source").iterdir()):
        if path.is_file():
            content = path.read_bytes()
            large = path.suffix == ".safetensors"
            name = (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
            (repository / "blobs" / name).write_bytes(content)
            os.utime(repository / "blobs" / name, (OLD, OLD))
            (snapshot / path.name).symlink_to(Path("../../blobs") / name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(repository.parent))
    return snapshot


def of_hub() -> dict[str, Any]:
    return resolve(ModelConfig(path="owner/name"), offline=True).identity


def test_a_snapshot_of_links(hub: Path) -> None:
    found = of_hub()
    assert (found["hub"], found["commit"]) == ("owner/name", "c" * 40)
    weight = "model-00001-of-00002.safetensors"
    assert found["files"][weight] == (hub / weight).resolve().name
    assert found["files"] == identity(hub)["files"]


def test_a_blob_that_was_changed_is_noticed(hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = of_hub()
    edit((hub / "model-00001-of-00002.safetensors").resolve())
    assert of_hub() != before
    assert "is not the file that was downloaded" in caplog.text


def test_a_link_to_another_blob_is_noticed(hub: Path) -> None:
    before = of_hub()
    one, two = (hub / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    one.unlink()
    one.symlink_to(two.readlink())
    assert of_hub() != before
    one.unlink()
    one.write_bytes(b"no link at all")
    assert of_hub() != before


def test_a_folder_that_only_looks_like_the_hubs_is_hashed(folder: Path, tmp_path: Path) -> None:
    weight = folder / "model-00001-of-00002.safetensors"
    (tmp_path / "blobs").mkdir()
    blob = weight.rename(tmp_path / "blobs" / ("a" * 64))
    weight.symlink_to(blob)
    content = hashlib.sha256(blob.read_bytes()).hexdigest()
    assert identity(folder)["files"][weight.name] == content != "a" * 64


def test_a_tokenizer_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    other = fill(tmp_path / "tokenizer")
    random = {"random": RandomShape(), "tokenizer": str(other)}
    for source in ({"path": str(folder), "tokenizer": str(other)}, random):
        before = resolve(ModelConfig(**source), offline=True).identity
        assert not [name for name in before["tokenizer"] if "safetensors" in name]
        edit(other / "model-00001-of-00002.safetensors")
        assert resolve(ModelConfig(**source), offline=True).identity == before
        for name in ("tokenizer.model", "additional_chat_templates/tool_use.jinja", "qwen.tiktoken"):
            edit(other / name)
            changed = resolve(ModelConfig(**source), offline=True).identity
            assert changed != before
            before = changed


def test_a_chat_template_file_by_its_content(folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages }}")
    before = identity(folder, chat_template=str(template))
    template.write_text("{{ message }}s")
    assert identity(folder, chat_template=str(template)) != before


def test_a_model_behind_a_server_is_known_by_its_folder(folder: Path) -> None:
    model = ModelConfig(path=str(folder))
    before = resolve_without_weights(model, offline=True).identity
    assert before == identity(folder)
    edit(folder / "model-00001-of-00002.safetensors")
    assert resolve_without_weights(model, offline=True).identity != before


def test_two_judges_of_one_shape(tmp_path: Path) -> None:
    from evalkit.core.config import JudgeConfig, JudgeKind
    from evalkit.mtbench.judge.judges import as_local, resolve_judge
    from evalkit.mtbench.presets import load_preset
    from tests.engines.models import save_model

    preset = load_preset("fastchat")
    config = Config(engine=EngineConfig(name="local", device="cpu"))
    folders = [save_model("llama", tmp_path / name / "judge") for name in ("a", "b", "c")]
    edit(folders[1] / "model.safetensors")
    (folders[2] / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}", encoding="utf-8")
    judges = [
        resolve_judge(JudgeConfig(name="local", kind=JudgeKind.local, model=str(folder)), preset)
        for folder in (*folders, shutil.copytree(folders[0], tmp_path / "moved"))
    ]
    first, weights, template, moved = (as_local(judge, config).weights for judge in judges)
    assert len({first, weights, template}) == 3 and moved == first


def test_files_that_change_after_they_identified_a_run_are_refused(folder: Path) -> None:
    resolved = resolve(ModelConfig(path=str(folder)), offline=True)
    check_unchanged(resolved)
    edit(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(EvalkitError, match="not those the run was started on"):
        check_unchanged(resolved)


# --- digests are kept ----------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read, in the order of reading."""
    names: list[str] = []
    before = digests._hashed

    def spy(path: str, *words: Any) -> str:
        names.append(Path(path).name)
        return before(path, *words)

    monkeypatch.setattr(digests, "_hashed", spy)
    return names


def large(names: list[str]) -> list[str]:
    found = sorted(name for name in names if name.startswith("model-0"))
    names.clear()
    return found


def as_another_process() -> None:
    digests._memory.clear()


BOTH = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_large_files_are_hashed_once(folder: Path, hashed: list[str], tmp_path: Path) -> None:
    before = identity(folder)
    assert large(hashed) == BOTH
    assert identity(folder) == before and large(hashed) == []
    as_another_process()
    assert identity(folder) == before and large(hashed) == []
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert identity(link) == before and large(hashed) == []


def test_another_time_of_change_is_another_file(folder: Path, hashed: list[str]) -> None:
    before = identity(folder)
    large(hashed)
    edit(folder / BOTH[0])
    as_another_process()
    assert identity(folder) != before
    assert large(hashed) == BOTH[:1]
    # The old file at the old place again, as `mv` puts it there.
    edit(folder / BOTH[0], seconds=OLD)
    assert identity(folder) == before
    assert large(hashed) == BOTH[:1]


def test_a_file_that_was_written_just_now_is_not_kept(folder: Path, hashed: list[str]) -> None:
    (folder / BOTH[0]).write_bytes(b"a" * LARGE)
    first = identity(folder)
    stamp = (folder / BOTH[0]).stat()
    (folder / BOTH[0]).write_bytes(b"b" * LARGE)
    os.utime(folder / BOTH[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert identity(folder) != first


def spoil(how: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(cache: Path) -> None:
        for path in (cache / "digests").iterdir():
            path.write_bytes(how(path.read_bytes()))

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        spoil(lambda content: content[: len(content) // 2]),
        spoil(lambda content: b""),
        spoil(lambda content: b"\xff\x00"),
        spoil(lambda content: b"[]"),
        spoil(lambda content: content.replace(b'"version": 1', b'"version": 0')),
        spoil(lambda content: content.replace(b'"sha256": "', b'"sha256": "0')[:-1]),
        lambda cache: shutil.rmtree(cache),
    ],
)
def test_a_damaged_cache_costs_one_hashing(
    folder: Path, hashed: list[str], own_cache: Path, damage: Callable[[Path], None]
) -> None:
    before = identity(folder)
    large(hashed)
    damage(own_cache)
    as_another_process()
    assert identity(folder) == before and large(hashed) == BOTH
    as_another_process()
    assert identity(folder) == before and large(hashed) == []


def test_a_cache_that_cannot_be_written_fails_nothing(
    folder: Path, hashed: list[str], own_cache: Path
) -> None:
    own_cache.write_text("a file where the folder should be")
    before = identity(folder)
    large(hashed)
    # This process still knows.
    assert identity(folder) == before and large(hashed) == []
    as_another_process()
    assert identity(folder) == before and large(hashed) == BOTH


def test_several_at_once(folder: Path, own_cache: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: identity(folder), range(6)))
    assert all(one == found[0] for one in found)
    assert not list((own_cache / "digests").glob(".*.tmp"))


def test_a_file_that_grows_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = folder / BOTH[0]
    real = os.fstat
    calls: list[int] = []

    def fstat(descriptor: int) -> os.stat_result:
        calls.append(descriptor)
        if len(calls) == 2:
            with weight.open("ab") as file:
                file.write(b"more")
        return real(descriptor)

    monkeypatch.setattr(digests.os, "fstat", fstat)
    monkeypatch.setattr(digests, "_AT_ONCE", 1)
    with pytest.raises(EvalkitError, match="changed while it was read"):
        digests.file_digests([weight])


def test_much_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    identity(folder, name="quiet")
    assert capsys.readouterr().err == ""
    as_another_process()
    shutil.rmtree(os.environ["EVALKIT_CACHE"])
    monkeypatch.setattr(digests, "_SHOWN_FROM", LARGE)
    identity(folder)
    assert "hashing model files: 0.0 GB" in capsys.readouterr().err


# --- the run -------------------------------------------------------------------------------------


def run_of(task: Task, protocol: ProtocolConfig | None = None) -> dict[str, Any]:
    config = Config(protocol=protocol or ProtocolConfig())
    model = resolve(ModelConfig(name="random", random=RandomShape()), offline=True)
    identified = Identified(model, "local", "float32")
    asking = Asking(PromptTemplate.of(config.protocol), seed=config.seed)
    return run_identity(identified, (task,), config.protocol, config.generation, config.data, asking)


def own_task(folder: Path, columns: str) -> Task:
    folder.mkdir(exist_ok=True)
    (folder / "mine.jsonl").write_text('{"q": "1", "r": "2", "a": "3"}\n' * 3)
    (folder / "mine.yaml").write_text(
        "name: mine\ninstruction: x\noutput_length: 2\nmetrics: [exact_match]\n"
        f"data:\n  file: mine.jsonl\n  output: a\n{columns}"
    )
    return load_task(load_spec(str(folder / "mine.yaml")), folder, num_few_shots=0)


def test_the_columns_of_an_own_task_are_part_of_the_run(tmp_path: Path) -> None:
    texts = ("  input: q\n  few_shots: 0\n", "  input: r\n  few_shots: 0\n", "  input: q\n  few_shots: 1\n")
    first, *others = (run_of(own_task(tmp_path, text)) for text in texts)
    assert all(other != first for other in others)
    assert run_of(own_task(tmp_path / "elsewhere", texts[0])) == first


def test_where_a_template_puts_the_input_is_part_of_the_run(tmp_path: Path) -> None:
    task = own_task(tmp_path, "  input: q\n  few_shots: 0\n")
    before, after = (
        run_of(task, ProtocolConfig(custom_prompt_template=text)) for text in ("{input}ab", "a{input}b")
    )
    assert before != after and "template" not in run_of(task)


def test_two_checkpoints_of_one_shape_are_two_runs_on_the_command_line(tmp_path: Path) -> None:
    """A weight that differs in one block between the blocks that were once sampled."""
    from tests.engines.models import save_model

    for name in ("a", "b"):
        save_model("llama", tmp_path / name / "model", seed=0)
    edit(tmp_path / "b" / "model" / "model.safetensors")
    out = tmp_path / "out"
    for name in ("a", "b", "a"):
        words = ["model=hf", f"model.path={tmp_path / name / 'model'}", "suite=sample", "suite.tasks=[jamp]"]
        assert main([*words, "limit=1", f"out={out}"]) == 0
    assert len(list((out / "model" / "sample").iterdir())) == 2
