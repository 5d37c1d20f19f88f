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
from evalkit.mtbench.judge.dispatch import ask_judge
from evalkit.mtbench.judge.judging import JudgingPlan, plan_judging
from evalkit.mtbench.replay import replay
from evalkit.mtbench.rules import RULES
from evalkit.mtbench.tables.aggregate import table
from evalkit.mtbench.tables.model_tables import preset_record, scored

# Section 11 of the MT-Bench protocol notes: two gpt-4 runs over 113 equal prompts.
GPT4_NOISE = {"exact": 0.70, "within_one": 0.94, "deviation": 0.86}
USUAL_REFERENCE = "gpt-4"


@dataclass(frozen=True)
class Calibration:
    """A judge compared with the reference: agreement by category, and both averages by model."""

    plan: JudgingPlan
    reference: str
    agreement: dict[str, RatingAgreement]
    averages: dict[str, dict[str, float | None]]
    failed: int


def plan_calibration(config: Config) -> tuple[JudgingPlan, str]:
    """The calls of the new judge for a run that another one has rated, and that one's name.

    With `judgments=` and `answers=` the logs are replayed into a run first.

    Raises:
        InputError: no run, or no stored judgments to compare with.
    """
    if config.judgments is not None:
        if config.answers is None:
            raise InputError("the answers that were judged are needed", fix="answers=FILE.jsonl")
        path, _ = replay(config)
        config = replace(config, run=str(path), answers=None, out=None, judgments=None)
    plan = plan_judging(config)
    return plan, _reference(config.reference, plan.folder, plan.judge.label)


def calibrate(
    plan: JudgingPlan, reference: str, config: Config, *, say: Callable[[str], None]
) -> Calibration | None:
    """Has the new judge rate the answers and compares; None while a batch is under way.

    The run's own table is unchanged: the comparison goes to calibration/<judge>.json.
    """
    replies = ask_judge(plan.judge, config, plan.calls, plan.folder.path, say, plan.kept)
    if replies is None:
        return None
    judgments = plan.judgments(replies)
    before = plan.folder.judgments(reference)
    plan.folder.write_judgments(plan.judge.label, judgments)
    calibration = Calibration(
        plan=plan,
        reference=reference,
        agreement=compare_ratings(before, judgments),
        averages=_averages(plan, before, judgments),
        failed=sum(judgment.status == "api_error" for judgment in judgments),
    )
    write_json_atomic(calibration_path(plan), _json(calibration))
    return calibration


def calibration_path(plan: JudgingPlan) -> Path:
    """The file of the comparison."""
    name = plan.folder.judgments_path(plan.judge.label).with_suffix(".json").name
    return plan.folder.path / "calibration" / name


def _reference(chosen: str | None, folder: MtBenchFolder, label: str) -> str:
    others = [judge for judge in folder.judges() if judge != folder.judgments_path(label).stem]
    wanted = folder.find_judge(chosen or USUAL_REFERENCE)
    if wanted == folder.judgments_path(label).stem:
        wanted = folder.find_judge(logged_label(label))
    if wanted in others:
        return wanted
    if chosen is not None:
        raise InputError(
            f"the run has no judgments by {chosen!r}",
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
    plan: JudgingPlan, before: list[Judgment], judgments: list[Judgment]
) -> dict[str, dict[str, float | None]]:
    rule = RULES[plan.preset.aggregation]

    def average(of: list[Judgment], model: str) -> float | None:
        own = [judgment for judgment in of if judgment.model == model]
        return table(scored(own, plan.preset), rule, plan.judge.config.reduce)["average"]

    models = dict.fromkeys(judgment.model for judgment in judgments)
    return {
        model: {"reference": average(before, model), "other": average(judgments, model)} for model in models
    }


def _json(calibration: Calibration) -> dict[str, Any]:
    return {
        "kind": "mt_bench_calibration",
        "preset": preset_record(calibration.plan.preset),
        "reference": calibration.reference,
        "judge": calibration.plan.judge.record(),
        "agreement": {scope: asdict(value) for scope, value in calibration.agreement.items()},
        "averages": calibration.averages,
        "gpt4_noise": GPT4_NOISE,
    }
