"""python .ci/audit.py [REQUIREMENTS]: known vulnerabilities of the pinned dependencies, by pip-audit.

Exit code 1 when there are any. Where the advisory service cannot be reached, or knows none of the
packages (an index without advisories), nothing can be said: that is printed, and the exit code is 0.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parents[1] / "constraints.txt"
# For one answer of the service, and for all of them.
ANSWER_SECONDS, ALL_SECONDS = 10, 240


def audit(pins: Path) -> tuple[list[dict[str, Any]] | None, str]:
    """pip-audit's packages, or None; and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(pins), *options]
        try:
            done = subprocess.run(
                [*command, "--timeout", str(ANSWER_SECONDS), "--output", str(report)],
                capture_output=True,
                text=True,
                timeout=ALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None, f"no answer within {ALL_SECONDS} s"
        try:
            packages = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
        except (OSError, ValueError, KeyError, TypeError):
            return None, (done.stderr.strip().splitlines() or ["it wrote no report"])[-1]
        # A failure that leaves a report must be a finding.
        return packages, done.stderr


def main() -> int:
    """Prints what is known; 1: there are known vulnerabilities."""
    pins = Path(sys.argv[1]) if len(sys.argv) > 1 else PINS
    packages, said = audit(pins)
    if packages is None:
        print(f"audit: NOT DONE, the advisory service cannot be asked here: {said}")
        return 0
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    found = [
        f"{package['name']} {package['version']}: {problem['id']}"
        f" (fixed in {', '.join(problem.get('fix_versions') or ['no version yet'])})"
        for package in packages
        for problem in package.get("vulns", ())
    ]
    asked = len(packages) - len(skipped)
    if not asked:
        print(f"audit: NOT DONE, the index has no advisories for any of {len(packages)} packages")
    else:
        print(f"audit: {len(found)} known vulnerabilities in {asked} packages")
        if skipped:
            print(f"audit: nothing is known of {len(skipped)} more: {', '.join(skipped)}")
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
