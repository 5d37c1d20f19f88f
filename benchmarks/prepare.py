"""python benchmarks/prepare.py [MIRROR]: how long everything in the mirror takes to prepare.

Target: under 90 s on 2 cores, from an empty folder (issue "Every dataset prepared byte for byte").
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from evalkit.sources.fetch import Fetcher
from evalkit.sources.mirror import Mirror
from evalkit.sources.prepare import prepare
from evalkit.sources.prepared import Status
from evalkit.tasks.spec import load_spec, task_names

TARGET_SECONDS = 90.0
DEFAULT_MIRROR = Path(__file__).resolve().parents[2] / "shared" / "sources"


def main(mirror: Path) -> int:
    """Prints the time of a first and of a second command; 1 when the first misses the target."""
    if not mirror.is_dir():
        print(f"prepare: skipped, there is no mirror at {mirror}")
        return 0
    specs = [load_spec(name) for name in task_names()]
    with tempfile.TemporaryDirectory() as folder:
        fetcher = Fetcher(Mirror.open(mirror), cache=Path(folder) / "cache")
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            reports = prepare(specs, Path(folder) / "data", fetcher=fetcher)
            seconds.append(time.perf_counter() - start)
    verified = sum(report.splits["dev"].status is Status.verified for report in reports)
    cores = len(os.sched_getaffinity(0))
    print(
        f"prepare: {verified} of {len(reports)} datasets verified in {seconds[0]:.1f} s on {cores} cores "
        f"(target {TARGET_SECONDS:.0f} s), again in {seconds[1]:.1f} s"
    )
    return 0 if seconds[0] <= TARGET_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_MIRROR))
