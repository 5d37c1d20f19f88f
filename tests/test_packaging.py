"""A wheel carries its data; an editable install uses the checkout's, never a copy."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.mtbench.fault_server import FaultServer

ROOT = Path(__file__).resolve().parents[1]
ASSETS = "from evalkit.core import assets; print(assets.ROOT)"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    # PYTHONPATH would lend the checkout to an environment that must do without it.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment without evalkit that borrows the dependencies installed here."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # A path inside a .pth file is not itself searched for .pth files: the editable install of the
    # development environment stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder


def pip(*words: str | Path, cwd: Path) -> None:
    options = ("--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", *options, *words, cwd=cwd)


def pip_install(environment: Path, *what: str | Path) -> None:
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--no-compile")
    pip("--python", environment / "bin" / "python", "install", *options, *what, cwd=environment)


def test_a_wheel_runs_from_any_folder(environment: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT, cwd=tmp_path)
    (wheel,) = wheels.glob("evalkit-*.whl")
    pip_install(environment, wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    python, script = environment / "bin" / "python", environment / "bin" / "evalkit"
    assert Path(run(python, "-c", ASSETS, cwd=elsewhere).strip()).is_relative_to(environment)
    suites = run(script, "list", "suites", cwd=elsewhere)
    assert "jaster" in suites and "23 tasks" in suites
    assert "max_num_timeout=20" in run(script, "list", "launchers", "--long", cwd=elsewhere)
    with FaultServer() as server:
        words = ["model=served", "engine=api", f"engine.base_url={server.url}", "suite=sample", "limit=1"]
        output = run(script, *words, cwd=elsewhere, EVALKIT_CACHE=str(tmp_path / "cache"))
    assert "NLI" in output and list(elsewhere.glob("results/served/sample/*/results.json"))


def test_an_editable_install_uses_the_checkout(environment: Path, tmp_path: Path) -> None:
    pip_install(environment, "--editable", ROOT)
    assert run(environment / "bin" / "python", "-c", ASSETS, cwd=tmp_path).strip() == str(ROOT)
    assert "jaster" in run(environment / "bin" / "evalkit", "list", "suites", cwd=tmp_path)
    copies = [path for path in environment.rglob("conf") if path.is_dir()]
    assert copies == []
