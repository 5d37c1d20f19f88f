"""A bundle is one file; a run from it opens no socket and is the same run as elsewhere."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from evalkit.__main__ import main
from evalkit.core.config import given_suite
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.options import CommandLine, load_config
from evalkit.engines.models.folder_files import file_hashes
from evalkit.records.unpacked import check_unchanged, packed_sums
from evalkit.runs.bundle import Contents, collect, write
from evalkit.runs.suite import load_suite
from evalkit.tasks.load import prepared_path
from tests.children import Fault, fork
from tests.faults.injected import HubCache, NoSockets
from tests.tiny import save_tiny_model

ROOT = Path(__file__).resolve().parents[2]
COMET = ROOT / "tests" / "goldens" / "comet_tiny"
NAME = "evalkit-tests/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


# `python -m evalkit` that can open no socket.
WITHOUT_SOCKETS = """
import sys
from tests.faults.injected import NoSockets
NoSockets().install()
from evalkit.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def evalkit(*words: str, cwd: Path, code: int = 0, sockets: bool = True, **env: str) -> str:
    faults: list[Fault] = [] if sockets else [NoSockets()]
    if "HF_HUB_CACHE" in env:
        faults.append(HubCache(env["HF_HUB_CACHE"]))
    ended = fork(words, cwd, faults, env).wait()
    assert ended.code == code, ended.out + ended.err
    return ended.out + ended.err


def without_sockets(*words: str, cwd: Path, **env: str) -> None:
    """As people start it: the hub library reads the place of its cache when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SOCKETS, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache that holds a tiny Llama under a repository name."""
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / f"models--{NAME.replace('/', '--')}"
    save_tiny_model(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    return cache


def unpacked(tar: Path, into: Path) -> Path:
    with tarfile.open(tar) as archive:
        assert all(member.isfile() for member in archive)
        archive.extractall(into, filter="data")
    (folder,) = into.iterdir()
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True)
    return folder


def test_a_run_from_the_bundle_opens_no_socket(hub: Path, tmp_path: Path) -> None:
    words = ("model=hf", f"model.path={NAME}", "suite=sample", "suite.tasks=[jamp,mawps,alt-e-to-j]")
    comet = (f"metrics.comet.checkpoint={COMET}", f"metrics.comet.encoder={COMET / 'encoder'}")
    here = {"HF_HUB_CACHE": str(hub), "EVALKIT_CACHE": str(tmp_path / "cache")}
    said = evalkit("bundle", *words, *comet, "offline=true", "out=all.tar", cwd=tmp_path, **here)
    folder = unpacked(tmp_path / "all.tar", tmp_path / "there")
    packed = [line.strip().replace("=all/", f"={folder}/") for line in said.splitlines() if "=all/" in line]
    assert len(packed) == 2, said
    facts = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    identity = facts["model"]["identity"]
    assert (identity["hub"], identity["commit"]) == (NAME, COMMIT)
    packed_files = folder / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT
    assert identity["files"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in packed_files.iterdir()
    }
    elsewhere = {"HF_HUB_CACHE": str(tmp_path / "nothing"), "EVALKIT_CACHE": str(tmp_path / "nothing")}
    run = (*words, "limit=1", "offline=true")
    without_sockets(*run, *packed, f"data_dir={folder}", "out=there", cwd=tmp_path, **elsewhere)
    evalkit(*run, *comet, "out=here", cwd=tmp_path, **here)
    (there,), (here_run,) = tmp_path.glob("there/tiny/*/*"), tmp_path.glob("here/tiny/*/*")
    assert there.name == here_run.name
    for task in ("jamp", "mawps", "alt-e-to-j"):
        name = f"samples/{task}.jsonl"
        assert (there / name).read_bytes() == (here_run / name).read_bytes()
    scores = [
        json.loads((run / "results.json").read_text(encoding="utf-8"))["scores"] for run in (there, here_run)
    ]
    assert scores[0] == scores[1] and "alt-e-to-j_comet_wmt22" in scores[0]


def test_without_the_bundle_the_missing_model_is_named(tmp_path: Path) -> None:
    words = ("model=hf", f"model.path={NAME}", "suite=sample", "offline=true")
    message = evalkit(*words, cwd=tmp_path, code=1, sockets=False, HF_HUB_CACHE=str(tmp_path))
    assert NAME in message and "evalkit prepare" in message and "Traceback" not in message


@pytest.mark.sources
def test_prepared_data_travels(mirror: Path, tmp_path: Path) -> None:
    words = ("suite=task", "suite.tasks=[mawps]")
    evalkit("bundle", *words, f"mirror={mirror}", "data_dir=data", "out=data.tar", cwd=tmp_path)
    folder = unpacked(tmp_path / "data.tar", tmp_path / "there")
    run = ("model=random", *words, f"data_dir={folder}", "limit=2", "offline=true")
    assert "mawps" in evalkit(*run, cwd=tmp_path, sockets=False)
    names = {path.name.partition("-")[2] for path in folder.glob("cache/sources/*")}
    assert {"question_full.jsonl", "judge_ja_prompts.jsonl", "gpt-4.jsonl"} <= names, "MT-Bench's files"
    with (folder / "1.3.1" / "evaluation" / "train" / "mawps.json").open("a", encoding="utf-8") as file:
        file.write(" ")
    refused = evalkit(*run, cwd=tmp_path, code=2, sockets=False)
    assert "a file of the bundle was changed" in refused and "train/mawps.json" in refused


def test_a_bundle_without_its_hashes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="unpack the bundle again"):
        packed_sums(tmp_path)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  own/rows\0\n", encoding="utf-8")
    with pytest.raises(InputError, match="the list of hashes is damaged"):
        packed_sums(tmp_path)


def test_a_changed_file_is_noticed_by_whatever_link_it_is_reached(tmp_path: Path) -> None:
    bundle, elsewhere = tmp_path / "bundle", tmp_path / "elsewhere.jsonl"
    (bundle / "own").mkdir(parents=True)
    (bundle / "bundle.json").write_text("{}", encoding="utf-8")
    (bundle / "SHA256SUMS").write_text(f"{'0' * 64}  own/rows.jsonl\n", encoding="utf-8")
    elsewhere.touch()
    links = [tmp_path / name for name in ("first", "second")]
    for link in links:
        link.symlink_to(bundle)
    (tmp_path / "rows").symlink_to(bundle / "own" / "rows.jsonl")
    rows = Path("own", "rows.jsonl")
    # The second time the file itself is a link that leads out of the bundle.
    for inside in (lambda path: path.touch(), lambda path: path.symlink_to(elsewhere)):
        inside(bundle / rows)
        for folder in (bundle, *links):
            packed = packed_sums(folder)
            for path in (*(place / rows for place in (bundle, *links)), tmp_path / "rows"):
                check_unchanged(path, "0" * 64, folder, packed)
                with pytest.raises(InputError, match="a file of the bundle was changed"):
                    check_unchanged(path, "1" * 64, folder, packed)
            check_unchanged(tmp_path / "others", "1" * 64, folder, packed)
        (bundle / rows).unlink()


def test_what_cannot_be_had_stops_the_bundle_or_is_left_out(tmp_path: Path) -> None:
    words = ("bundle", "suite=rc", "offline=true", "data_dir=data", "out=all.tar")
    assert "jsquad" in evalkit(*words, cwd=tmp_path, code=1)
    assert not (tmp_path / "all.tar").exists()
    assert "left out" in evalkit(*words, "allow_missing=true", cwd=tmp_path)


def test_bundle_json_names_what_is_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    dev = prepared_path(tmp_path / "data", "dev", "jsquad")
    dev.parent.mkdir(parents=True)
    dev.write_text('{"samples": []}', encoding="utf-8")
    (tmp_path / "own.yaml").write_text(
        "name: own\ninstruction: i\noutput_length: 5\nmetrics: [exact_match]\n"
        "data: {file: gone.jsonl, input: q, output: a}\n",
        encoding="utf-8",
    )
    out = tmp_path / "of two.tar"
    words = [f"suite=jsquad,niilc,{tmp_path / 'own.yaml'}", "offline=true", f"data_dir={tmp_path / 'data'}"]
    assert main(["bundle", *words, "allow_missing=true", f"out={out}"]) == 0
    said = capsys.readouterr()
    assert "incomplete: jsquad has no train, dev" in said.err and "left out: niilc" in said.err
    assert "left out: own has no dev" in said.err
    assert "tar xf 'of two.tar'" in said.out and "'data_dir=of two'" in said.out
    with tarfile.open(out) as archive:
        facts = archive.extractfile("of two/bundle.json")
        assert facts is not None and json.load(facts)["datasets"] == ["jsquad"]
        assert "of two/1.3.1/evaluation/dev/jsquad.json" in archive.getnames()


def test_a_model_folder_travels_without_its_training_and_its_runs(tmp_path: Path) -> None:
    model, code = tmp_path / "model", "modeling/own.py"
    packed = {"config.json", "model.safetensors", "LICENSE", "pytorch_model.bin", "data.jsonl", code}
    packed |= {"original/params.json", "onnx/model.onnx"}
    left = {"optimizer.pt", ".git/config", "checkpoint-10/config.json", "results/m/s/1/samples/a.jsonl"}
    run = {"results/m/s/1/config.yaml", "results/m/s/1/environment.json"}
    for name in packed | left | run:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("{}", encoding="utf-8")
    contents = Contents()
    contents.add_folder("models/m", model)
    assert contents.files.keys() == {f"models/m/{name}" for name in packed}
    assert file_hashes(model, code=True).keys() <= packed
    (model / "LICENSE").unlink()
    with pytest.raises(EvalkitError, match="cannot read") as raised:
        write(contents, tmp_path / "all.tar", progress=lambda size: None)
    assert raised.value.where == str(model / "LICENSE") and not (tmp_path / "all.tar").exists()


def test_a_file_name_is_needed(tmp_path: Path) -> None:
    assert "out=FILE.tar" in evalkit("bundle", "suite=sample", cwd=tmp_path, code=2)


def test_tasks_of_ones_own_travel_with_their_data(tmp_path: Path) -> None:
    text = (
        "name: {name}\ninstruction: i\noutput_length: 5\nmetrics: [exact_match]\n"
        "data: {{file: {file}, input: q, output: a, few_shots: 0}}\n"
    )
    row = json.dumps({"q": "1", "a": "2"})
    for file in ("own/data/rows.jsonl", "rows.jsonl"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(row, encoding="utf-8")
    names = []
    absolute = str(tmp_path / "own/data/rows.jsonl")
    for name, file in (("near", "data/rows.jsonl"), ("far", "../rows.jsonl"), ("absolute", absolute)):
        names.append(str(tmp_path / "own" / f"{name}.yaml"))
        Path(names[-1]).write_text(text.format(name=name, file=file), encoding="utf-8")
    said: list[str] = []
    words = (f"suite={','.join(names)}", "offline=true", f"data_dir={tmp_path}")
    contents = collect(load_config(CommandLine("bundle", words)), say=said.append)
    packed = {name for name in contents.files if name.startswith("tasks/")}
    assert packed == {"tasks/near/near.yaml", "tasks/near/data/rows.jsonl"}
    assert contents.options == ["suite=BUNDLE/tasks/near/near.yaml"]
    assert contents.facts["datasets"] == ["near"] and any("left out: far" in line for line in said)
    assert any("left out: absolute" in line for line in said)
    words = (f"suite={names[1]}", *words[1:])
    assert not collect(load_config(CommandLine("bundle", words)), say=said.append).options
    text = f"{hashlib.sha256(row.encode()).hexdigest()}  own/data/rows.jsonl\n"
    (tmp_path / "SHA256SUMS").write_text(text, encoding="utf-8")
    (tmp_path / "bundle.json").write_text("{}", encoding="utf-8")
    config = load_config(CommandLine("run", (f"suite={names[0]}", "num_few_shots=0", *words[1:])))
    assert len(load_suite(given_suite(config.suite), config.data, say=said.append).tasks) == 1
    (tmp_path / "own/data/rows.jsonl").write_text(row.replace("1", "3"), encoding="utf-8")
    with pytest.raises(InputError, match="a file of the bundle was changed"):
        load_suite(given_suite(config.suite), config.data, say=said.append)
