"""Judge prompts of the user's own: used, recorded by their hash, and part of every judgment's key."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from fault_server import FaultServer
from little_bench import PROMPTS, Bench, make_bench, write_jsonl

from evalkit.__main__ import main
from evalkit.core.text import canonical_json, text_sha256
from evalkit.core.types import Message
from evalkit.mtbench.folder import MtBenchFolder
from evalkit.mtbench.judge.store import judgment_key
from evalkit.mtbench.presets import load_preset

OWN = {name: ("My judge.", f"MINE {template}") for name, (_, template) in PROMPTS.items()}
OTHER = {"pair-v2": ("Other.", "{answer_a} {answer_b}")}


@pytest.fixture
def small(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench of 8 questions, a key, and answers of two models."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    bench = make_bench(tmp_path, 1)
    bench.answers(tmp_path / "m.jsonl", "m")
    bench.answers(tmp_path / "both" / "m.jsonl", "m")
    bench.answers(tmp_path / "both" / "n.jsonl", "n", "{id}:{turn}")
    return bench


def write_prompts(path: Path, prompts: dict[str, tuple[str, str]]) -> Path:
    return write_jsonl(
        path,
        (
            {"name": name, "system_prompt": system, "prompt_template": template}
            for name, (system, template) in prompts.items()
        ),
    )


def words(bench: Bench, server: FaultServer, out: Path) -> list[str]:
    where = [f"mirror={bench.mirror}", f"out={out}", f"judge.base_url={server.url}", "judge.identity=test"]
    return [f"preset={bench.preset}", *where, "judge=gpt-4", "metrics.resamples=50"]


def judge(bench: Bench, server: FaultServer, out: Path, *more: str) -> int:
    answers = bench.preset.parent / "m.jsonl"
    return main(["judge", f"answers={answers}", *words(bench, server, out), *more])


def results(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    return content


def test_the_option_replaces_the_prompts_of_the_preset(small: Bench, tmp_path: Path) -> None:
    own = write_prompts(tmp_path / "日本語 prompts.jsonl", OWN)
    with FaultServer() as server:
        assert judge(small, server, tmp_path / "preset") == 0
        assert judge(small, server, tmp_path / "own", f"judge.prompts={own}") == 0
        assert len(server.calls) == 32
        assert [text.startswith("My judge.\nMINE ") for text in server.calls] == [False] * 16 + [True] * 16
        # Never paid twice, whichever file was used before.
        assert judge(small, server, tmp_path / "own", f"judge.prompts={own}") == 0
        assert judge(small, server, tmp_path / "preset") == 0
        assert len(server.calls) == 32
    plain, ours = results(tmp_path / "preset")["preset"], results(tmp_path / "own")["preset"]
    assert ours["prompts"] == {"file": own.name, "sha256": sha256(own.read_bytes()).hexdigest()}
    assert "prompts" not in plain and plain["sha256"] != ours["sha256"]
    # The answers are those of the preset, whatever judges them.
    assert results(tmp_path / "own")["answers"]["m"]["preset"] == "little"


def test_the_hash_of_the_file_is_part_of_the_key(small: Bench, tmp_path: Path) -> None:
    """Equal messages by two files are two judgments."""
    own = write_prompts(tmp_path / "own.jsonl", PROMPTS)
    with FaultServer() as server:
        assert judge(small, server, tmp_path / "preset") == 0
        assert judge(small, server, tmp_path / "own", f"judge.prompts={own}") == 0
        assert sorted(server.calls[:16]) == sorted(server.calls[16:])
        write_prompts(own, PROMPTS | OTHER)
        assert judge(small, server, tmp_path / "own", f"judge.prompts={own}") == 0
        assert len(server.calls) == 48
    first, second = (
        {row.key for row in MtBenchFolder(tmp_path / name).judgments("gpt-4")} for name in ("preset", "own")
    )
    assert len(first) == len(second) == 16 and not first & second


def test_keys_and_hashes_without_a_file_of_ones_own_are_those_of_before() -> None:
    identity = {"service": "openai", "model": "m"}
    messages = [Message("system", "s"), Message("user", "u")]
    content = {
        "judge": identity,
        "parameters": {"temperature": 0},
        "messages": [["system", "s"], ["user", "u"]],
        "repeat": 0,
    }
    key = judgment_key(identity, {"temperature": 0}, messages, 0)
    assert key == text_sha256(canonical_json(content))
    assert key != judgment_key(identity, {"temperature": 0}, messages, 0, prompts="0" * 64)
    digest = "bd5293a401aeec8d1bf3a75e956c0b2ad5a75a5492d3d3115cd7ee66207cb2f2"
    assert load_preset("stability").sha256 == digest


def test_a_preset_names_a_file_beside_it(small: Bench, tmp_path: Path) -> None:
    own = write_prompts(small.preset.parent / "own.jsonl", OWN)
    content = yaml.safe_load(small.preset.read_text()) | {"prompts": {"file": "own.jsonl"}}
    small.preset.write_text(yaml.safe_dump(content, allow_unicode=True))
    with FaultServer() as server:
        assert judge(small, server, tmp_path / "run") == 0
        assert len(server.calls) == 16 and all(text.startswith("My judge.\nMINE ") for text in server.calls)
    assert results(tmp_path / "run")["preset"]["prompts"]["file"] == "own.jsonl"
    before = load_preset(str(small.preset)).sha256
    write_prompts(own, OWN | OTHER)
    assert load_preset(str(small.preset)).sha256 != before


def test_a_preset_names_a_file_or_an_address(small: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(small.preset.read_text())
    content["prompts"]["file"] = "own.jsonl"
    small.preset.write_text(yaml.safe_dump(content, allow_unicode=True))
    with FaultServer() as server:
        assert judge(small, server, small.preset.parent / "run") == 2
    error = capsys.readouterr().err
    assert "field prompts." in error and "Traceback" not in error


def test_pairs(small: Bench, tmp_path: Path) -> None:
    own = write_prompts(tmp_path / "own.jsonl", {k: v for k, v in OWN.items() if k.startswith("pair")})
    with FaultServer() as server:
        command = ["pairwise", f"answers={tmp_path / 'both'}", *words(small, server, tmp_path / "pairs")]
        assert main([*command, f"judge.prompts={own}"]) == 0
        assert len(server.calls) == 32 and all(text.startswith("My judge.\nMINE ") for text in server.calls)
    assert results(tmp_path / "pairs")["preset"]["prompts"]["file"] == "own.jsonl"


ROW = {"name": "single-v1", "system_prompt": "s", "prompt_template": "{question} {answer}"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ["cannot read the judge prompts"]),
        ("{", ["line 1"]),
        (json.dumps(ROW | {"prompt_template": "{answer} {answer_1}"}), ["line 1", "{answer_1}", "single-v1"]),
        (json.dumps(ROW | {"prompt_template": "{question}"}), ["line 1", "{answer}"]),
        (json.dumps({"name": "single-v1", "prompt_template": "{answer}"}), ["line 1", "system_prompt"]),
        (json.dumps(ROW), ["lack single-math-v1, single-v1-multi-turn"]),
        ("", ["lack single-v1"]),
    ],
)
def test_a_bad_file_is_one_message(
    content: str | None, expected: list[str], small: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.jsonl"
    if content is not None:
        own.write_text(content)
    with FaultServer() as server:
        assert judge(small, server, tmp_path / "run", f"judge.prompts={own}") == 2
        assert not server.calls
    error = capsys.readouterr().err
    assert str(own) in error and "Traceback" not in error
    for part in expected:
        assert part in error
