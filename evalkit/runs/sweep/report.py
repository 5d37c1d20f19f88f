"""The end of a multirun: one line per job, and the exit code of them all."""

from collections.abc import Sequence

from evalkit.runs.jobs.record import Job

INTERRUPTED = 130
# Of a job that never came to say how it ended.
_FAILED = 1


def exit_code(jobs: Sequence[Job], *, interrupted: bool) -> int:
    """0 when every job is fine, 130 when the multirun was interrupted, else the largest of the jobs'."""
    if interrupted:
        return INTERRUPTED
    return max(_FAILED if job.code is None else job.code for job in jobs)


def lines(jobs: Sequence[Job]) -> list[str]:
    """What to print: how many are fine, then each job with its run folder or what went wrong."""
    fine = sum(job.code == 0 for job in jobs)
    width = max(len(job.label) for job in jobs)
    what = "job" if len(jobs) == 1 else "jobs"
    shown = [f"{len(jobs)} {what}: {fine} ok" + (f", {len(jobs) - fine} not" if fine < len(jobs) else "")]
    for number, job in enumerate(jobs, 1):
        parts = [f"{number:>4}  {job.label:<{width}}  {_state(job):<11}  {job.folder or '-'}"]
        if job.code != 0:
            parts.append(job.why or "it never started")
            if job.log:
                parts.append(f"log: {job.log}")
        shown.append("  ".join(parts))
    return shown


def _state(job: Job) -> str:
    if job.code is None:
        return "unfinished"
    return {0: "ok", INTERRUPTED: "interrupted"}.get(job.code, "failed")
