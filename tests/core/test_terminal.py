"""Terminals, pipes and disks that take nothing: the command goes on and ends as the work did."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evalkit.__main__ import main
from evalkit.core.errors import EvalkitError
from tests.conftest import ROOT

EVALKIT = f"{sys.executable} -m evalkit"


def shell(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(cwd), **environment}
    return subprocess.run(["bash", "-c", command], cwd=cwd, env=env, capture_output=True, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "euc_jp", "utf-8"])
def test_what_a_terminal_cannot_show_is_replaced(encoding: str, tmp_path: Path) -> None:
    done = shell(f"{EVALKIT} list tasks --long lang=ja", tmp_path, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "jamp" in done.stdout.decode(encoding)


def test_a_message_with_japanese_in_an_ascii_locale(tmp_path: Path) -> None:
    done = shell(f"{EVALKIT} run suite=日本語", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert rb"unknown suite '\u65e5\u672c\u8a9e'" in done.stderr


@pytest.mark.parametrize(
    "redirection",
    ["| head -1", ">&-", ">&- 2>&- <&-", "> /dev/full 2> /dev/full", "2>&1 | head -1", "2> /dev/full"],
)
def test_nobody_who_reads(redirection: str, tmp_path: Path) -> None:
    done = shell(f"{EVALKIT} list tasks --long {redirection}; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_behind_standard_output_is_said(tmp_path: Path) -> None:
    done = shell(f"{EVALKIT} list tasks > /dev/full", tmp_path)
    assert done.returncode == 0
    assert b"standard output could not be written: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


def test_files_never_get_the_descriptor_of_a_closed_output(tmp_path: Path) -> None:
    script = (
        "from evalkit.core import terminal; terminal.prepare(); "
        "file = open('data', 'w'); print('stray', flush=True); import os; os.write(1, b'stray'); file.close()"
    )
    done = shell(f'{sys.executable} -c "{script}" >&- 2>&- <&-', tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "data").read_bytes() == b""


def test_a_word_that_is_not_utf_8(tmp_path: Path) -> None:
    done = shell(f"{EVALKIT} model=hf model.path=$'a\\xff' suite=sample", tmp_path)
    assert done.returncode == 2 and b"not UTF-8" in done.stderr and b"rename" in done.stderr


def test_a_locale_that_cannot_read_the_command_line(tmp_path: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell(f"{EVALKIT} model=hf model.path=日本語 suite=sample", tmp_path, **locale)
    assert done.returncode == 2 and b"export PYTHONUTF8=1" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    done = shell(f"{EVALKIT} prepare suite=nli offline=true", tmp_path, HOME="/proc/none")
    assert done.returncode == 1 and b"cannot write" in done.stderr and b"data_dir=" in done.stderr


def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def nobody(self: Path) -> Path:
        if str(self).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return self

    for name in ("HOME", "EVALKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    assert main(["prepare", "suite=nli", "offline=true"]) == 2
    assert "export EVALKIT_CACHE=FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyError("x"), 1, "unexpected error: KeyError: 'x'"),
        (ModuleNotFoundError("No module", name="torch"), 1, "a package is not installed: torch"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), 2, "export TMPDIR=FOLDER"),
        (PermissionError(13, "Permission denied", "/root/.cache"), 1, "/root/.cache"),
        (EvalkitError("known"), 1, "known"),
    ],
)
def test_any_exception_is_one_message(
    error: Exception,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(config: object) -> int:
        raise error

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("evalkit.cli.list.run", fail)
    assert main(["list"]) == code
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown
    logs = list(tmp_path.glob("evalkit-error-*.log"))
    assert len(logs) == int("unexpected" in said)
    for log in logs:
        assert str(log) in shown and "Traceback" in log.read_text(encoding="utf-8")
