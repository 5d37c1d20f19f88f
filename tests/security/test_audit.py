"""The audit of `make lint`: findings fail it, and what could not be asked is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "audit.py"
FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}
# Stands in for pip-audit: writes the report it is told to, says something, and exits.
STAND_IN = """\
import os, sys
report = os.environ["REPORT"]
if report:
    with open(sys.argv[sys.argv.index("--output") + 1], "w") as file:
        file.write(report)
print("ConnectionError: nobody is there", file=sys.stderr)
sys.exit(int(os.environ["CODE"]))
"""


def audit(folder: Path, report: str, code: int) -> subprocess.CompletedProcess[str]:
    (folder / "pip_audit.py").write_text(STAND_IN, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder), "REPORT": report, "CODE": str(code)}
    command = [sys.executable, str(SCRIPT)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("packages", "code", "expected", "said"),
    [
        ([FINE], 0, 0, "0 known vulnerabilities in 1 packages"),
        ([FINE, BAD], 1, 1, "b 2: PYSEC-1 (fixed in 3)"),
        ([BAD, UNKNOWN], 1, 1, "nothing is known of 1 more: c"),
        ([UNKNOWN], 0, 0, "NOT DONE, the index has no advisories for any of 1 packages"),
    ],
)
def test_findings_fail_and_gaps_are_said(
    tmp_path: Path, packages: list[dict[str, object]], code: int, expected: int, said: str
) -> None:
    done = audit(tmp_path, json.dumps({"dependencies": packages}), code)
    assert done.returncode == expected and said in done.stdout


@pytest.mark.parametrize("report", ["", "not JSON", "[]"])
def test_a_service_that_cannot_be_asked_is_no_finding(tmp_path: Path, report: str) -> None:
    done = audit(tmp_path, report, 1)
    assert done.returncode == 0
    assert "NOT DONE, the advisory service cannot be asked here: ConnectionError" in done.stdout
