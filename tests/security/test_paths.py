"""Names and paths in files of others cannot lead out of their folder."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from evalkit.core.config import ModelConfig, PypiWeights, RandomShape
from evalkit.core.errors import InputError
from evalkit.core.text import folder_name
from evalkit.engines.models import resolve
from evalkit.leaderboard.collect import collect
from evalkit.mtbench.folder import MtBenchFolder
from evalkit.mtbench.judge.judges import resolve_judge
from evalkit.mtbench.presets import load_preset
from evalkit.records import unpacked
from evalkit.records.run_folder import RunDirectory, run_id
from evalkit.runs.foreign import read_completions
from evalkit.sources.mirror import Mirror
from evalkit.tasks.spec import load_spec

BAD_NAMES = ["../x", "..", ".", "/etc/passwd", "a/b", ".hidden", "a\\b", "a\x00b", "a\nb", ""]
URL = "https://files.example.org/a.json"


def manifest(folder: Path, local_path: str, data: bytes) -> None:
    line = f"{local_path},{URL},{sha256(data).hexdigest()}\n"
    (folder / "MANIFEST.csv").write_text(f"local_path,upstream_url,sha256\n{line}", encoding="utf-8")


def test_a_link_out_of_the_mirror_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "secret.json"
    outside.write_bytes(b"{}")
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "file.json").symlink_to(outside)
    manifest(mirror, "file.json", b"{}")
    with pytest.raises(InputError, match="leads out of the mirror by a link"):
        Mirror.open(mirror)
    (mirror / "folder").symlink_to(tmp_path)
    manifest(mirror, "folder/secret.json", b"{}")
    with pytest.raises(InputError, match="leads out of the mirror by a link"):
        Mirror.open(mirror)


def test_links_inside_a_mirror_and_to_it_are_fine(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    (mirror / "objects").mkdir(parents=True)
    (mirror / "objects" / "1").write_bytes(b"{}")
    (mirror / "file.json").symlink_to("objects/1")
    manifest(mirror, "file.json", b"{}")
    (tmp_path / "link").symlink_to(mirror)
    for place in (mirror, tmp_path / "link"):
        found = Mirror.open(place).find(URL)
        assert found is not None and found[0].read_bytes() == b"{}"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_task_file_cannot_name_another_folder(tmp_path: Path, name: str) -> None:
    task = {"instruction": "i", "output_length": 1, "metrics": ["exact_match"]}
    path = tmp_path / "task.yaml"
    data = {"file": "d.jsonl", "input": "q", "output": "a"}
    path.write_text(yaml.safe_dump({"name": name, **task, "data": data}), encoding="utf-8")
    with pytest.raises(InputError, match="name"):
        load_spec(str(path))


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_run_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    directory = RunDirectory(tmp_path / "run")
    for path in (directory.samples_path, directory.scores_path):
        with pytest.raises(InputError, match="could lead out"):
            path(name)
    assert directory.samples_path("my.task-1").parent == tmp_path / "run" / "samples"


def test_a_foreign_result_with_such_a_name_is_left_out(tmp_path: Path) -> None:
    rates = {"metrics": [], "n": 1, "empty": 0, "truncated": None, "out_of_format": None}
    content = {
        "schema_version": 1,
        "scores": {},
        "categories": {},
        "average": {},
        "datasets": {"../../../secret": rates},
        "partial": {"partial": False},
        "missing_metrics": [],
        "protocol": {"name": "p", "options": {}, "deviations": {}},
        "run": {},
    }
    run = tmp_path / "results" / "m" / "jaster" / "0"
    run.mkdir(parents=True)
    (run / "results.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "secret.jsonl").write_text("{}\n", encoding="utf-8")
    found = collect([tmp_path / "results"])
    assert not found.runs and "could lead out" in found.left_out[0].reason


@pytest.mark.parametrize("name", [*BAD_NAMES, "モデル/名前", "~root"])
def test_names_of_models_suites_and_judges_become_plain_folders(tmp_path: Path, name: str) -> None:
    safe = folder_name(name)
    assert safe not in ("", ".", "..") and not safe.startswith(".")
    assert (tmp_path / safe).resolve().parent == tmp_path.resolve()
    label = resolve(ModelConfig(name=name or "x", random=RandomShape()), offline=True).label
    assert (tmp_path / label).resolve().parent == tmp_path.resolve()
    judged = MtBenchFolder(tmp_path).judgments_path(name).resolve()
    assert judged.parent == (tmp_path / "judgments").resolve()


def test_a_run_id_is_twelve_digits_whatever_decides_it() -> None:
    assert run_id({"a": "../../x"}).isalnum() and len(run_id({})) == 12


def test_completions_are_read_by_names_of_the_suite_only(tmp_path: Path) -> None:
    folder = tmp_path / "completions"
    folder.mkdir()
    (folder / "..hidden.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(InputError, match="unknown dataset"):
        read_completions(folder, ())


def test_a_preset_names_a_judge_not_a_path(tmp_path: Path) -> None:
    preset = load_preset("llm-jp-3-card")
    (tmp_path / "evil.yaml").write_text("name: evil\nbase_url: http://evil.example.org\n", encoding="utf-8")
    from dataclasses import replace

    for judge in ("../../../../tmp/evil", str(tmp_path / "evil"), "gpt-4/../gpt-4"):
        with pytest.raises(InputError, match="names a judge that is not there"):
            resolve_judge(None, replace(preset, judge=judge))
    assert resolve_judge(None, preset).label == "gpt-4"


@pytest.mark.parametrize("inside", ["hub", "cache"])
def test_a_bundle_whose_folder_is_a_link_out_is_refused(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / unpacked.MARK).write_text("{}", encoding="utf-8")
    (folder / inside).symlink_to(tmp_path)
    with pytest.raises(InputError, match="leads out of it by a link"):
        unpacked.use(folder)


def test_a_gguf_name_stays_in_its_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit.core.errors import FetchError
    from evalkit.engines.models import wheels

    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    weights = PypiWeights(wheels={}, gguf="../../../escaped.gguf", sha256="0" * 64)
    assert wheels.kept_folder(weights) is None
    with pytest.raises(FetchError, match="not the expected ones"):
        wheels.converted_folder(weights, offline=True, prepare="")
    assert not list(tmp_path.rglob("escaped.gguf"))
