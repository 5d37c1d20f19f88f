"""The verb calibrate: answers that one judge has rated, rated by another, and the two compared."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evalkit.core.config import Config
from evalkit.core.durable import write_json_atomic
from evalkit.core.errors import InputError
from evalkit.core.types import Judgment
from evalkit.mtbench.agreement import RatingAgreement, compare_ratings
from evalkit.mtbench.folder import MtBenchFolder, logged_label
from evalkit.mtbench.judge.job import Job, prepare_job
from evalkit.mtbench.judge.judging import make_judgments
from evalkit.mtbench.rules import RULES
from evalkit.mtbench.tables.aggregate import table
from evalkit.mtbench.tables.model_tables import preset_record, scored

# Section 11 of the MT-Bench protocol notes: two gpt-4 runs over 113 equal prompts.
GPT4_NOISE = {"exact": 0.70, "within_one": 0.94, "deviation": 0.86}
USUAL_REFERENCE = "gpt-4"


@dataclass(frozen=True)
class Calibration:
    """A judge beside the reference: agreement by category, and both averages by model."""

    job: Job
    reference: str
    agreement: dict[str, RatingAgreement]
    averages: dict[str, dict[str, float | None]]
    failed: int


def prepare_calibration(config: Config) -> tuple[Job, str]:
    """The job of the new judge over a run that another one has rated, and that one's name.

    With `judgments=` and `answers=` the logs are replayed into a run first.

    Raises:
        InputError: no run, or no stored judgments to compare with.
    """
    if config.judgments is not None:
        from evalkit.mtbench.replay_run import replay

        if config.answers is None:
            raise InputError("the answers that were judged are needed", fix="answers=FILE.jsonl")
        path, _ = replay(config)
        config = replace(config, run=str(path), answers=None, out=None, judgments=None)
    job = prepare_job(config)
    label = job.desk.judge.label
    return job, _reference(config, job.folder, label)


def calibrate(job: Job, reference: str, config: Config, *, say: Callable[[str], None]) -> Calibration | None:
    """Has the job's judge rate the answers and compares; None while a batch is under way.

    The run's own table stays as it is: the comparison goes to calibration/<judge>.json.
    """
    made = make_judgments(job, config, say=say)
    if made is None:
        return None
    judgments, _ = made
    before = job.folder.judgments(reference)
    job.folder.write_judgments(job.desk.judge.label, judgments)
    calibration = Calibration(
        job=job,
        reference=reference,
        agreement=compare_ratings(before, judgments),
        averages=_averages(job, before, judgments),
        failed=sum(judgment.status == "api_error" for judgment in judgments),
    )
    write_json_atomic(calibration_path(job), _json(calibration))
    return calibration


def calibration_path(job: Job) -> Path:
    """Where the comparison is kept."""
    return (
        job.folder.path
        / "calibration"
        / job.folder.judgments_path(job.desk.judge.label).with_suffix(".json").name
    )


def _reference(config: Config, folder: MtBenchFolder, label: str) -> str:
    others = [judge for judge in folder.judges() if judge != folder.judgments_path(label).stem]
    wanted = folder.find_judge(config.reference or USUAL_REFERENCE)
    if wanted == folder.judgments_path(label).stem:
        wanted = folder.find_judge(logged_label(label))
    if wanted in others:
        return wanted
    if config.reference is not None:
        raise InputError(
            f"the run has no judgments by {config.reference!r}",
            where=folder.path,
            fix=f"--reference {' or '.join(others) or 'one that judge or replay has made'}",
        )
    if len(others) != 1:
        what = "has no stored judgments" if not others else f"was judged by {', '.join(others)}"
        raise InputError(
            f"the run {what}: which shall {label} be compared with?",
            where=folder.path,
            fix="--reference NAME   (judge or replay makes them)",
        )
    return others[0]


def _averages(
    job: Job, before: list[Judgment], judgments: list[Judgment]
) -> dict[str, dict[str, float | None]]:
    rule = RULES[job.preset.aggregation]

    def average(of: list[Judgment], model: str) -> float | None:
        own = [judgment for judgment in of if judgment.model == model]
        return table(scored(own, job.preset), rule, job.desk.judge.config.reduce)["average"]

    models = dict.fromkeys(judgment.model for judgment in judgments)
    return {
        model: {"reference": average(before, model), "other": average(judgments, model)} for model in models
    }


def _json(calibration: Calibration) -> dict[str, Any]:
    judge = calibration.job.desk.judge
    return {
        "kind": "mt_bench_calibration",
        "preset": preset_record(calibration.job.preset),
        "reference": calibration.reference,
        "judge": {"label": judge.label, **judge.identity, "parameters": judge.parameters},
        "agreement": {scope: asdict(value) for scope, value in calibration.agreement.items()},
        "averages": calibration.averages,
        "gpt4_noise": GPT4_NOISE,
    }
