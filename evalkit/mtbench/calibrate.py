"""The verb calibrate: answers that one judge has rated, rated by another, and the two compared."""

from dataclasses import asdict, dataclass
from pathlib import Path

from evalkit.core.durable import write_json_atomic
from evalkit.core.errors import InputError
from evalkit.core.types import Judgment
from evalkit.mtbench.agreement import RatingAgreement, compare_ratings
from evalkit.mtbench.folder import MtBenchFolder, logged_label
from evalkit.mtbench.judge.calls import JudgeReplies
from evalkit.mtbench.judging import JudgingPlan
from evalkit.mtbench.rules import RULES
from evalkit.mtbench.tables.aggregate import table
from evalkit.mtbench.tables.model_tables import preset_record, scored

# Section 11 of the MT-Bench protocol notes: two gpt-4 runs over 113 equal prompts.
GPT4_NOISE = {"exact": 0.70, "within_one": 0.94, "deviation": 0.86}
USUAL_REFERENCE = "gpt-4"


@dataclass(frozen=True)
class Calibration:
    """A judge compared with the reference: agreement by category, and both averages by model."""

    reference: str
    agreement: dict[str, RatingAgreement]
    averages: dict[str, dict[str, float | None]]
    path: Path


def calibrate(plan: JudgingPlan, reference: str, replies: JudgeReplies) -> Calibration:
    """Compares the new judge's replies with the judgments of `reference`.

    The run's own table is unchanged: the comparison goes to calibration/<judge>.json.
    """
    judgments = plan.judgments(replies)
    before = plan.folder.judgments(reference)
    plan.folder.write_judgments(plan.judge.label, judgments)
    name = plan.folder.judgments_path(plan.judge.label).with_suffix(".json").name
    calibration = Calibration(
        reference=reference,
        agreement=compare_ratings(before, judgments),
        averages=_averages(plan, before, judgments),
        path=plan.folder.path / "calibration" / name,
    )
    content = {
        "kind": "mt_bench_calibration",
        "preset": preset_record(plan.books.preset),
        "reference": reference,
        "judge": plan.judge.record(),
        "agreement": {scope: asdict(value) for scope, value in calibration.agreement.items()},
        "averages": calibration.averages,
        "gpt4_noise": GPT4_NOISE,
    }
    write_json_atomic(calibration.path, content)
    return calibration


def find_reference(folder: MtBenchFolder, label: str, chosen: str | None) -> str:
    """The judge that the judge called `label` is compared with: the chosen one, gpt-4, or the only other.

    Raises:
        InputError: the run has no judgments by it, or by several others.
    """
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
    preset = plan.books.preset
    rule = RULES[preset.aggregation]

    def average(of: list[Judgment], model: str) -> float | None:
        own = [judgment for judgment in of if judgment.model == model]
        return table(scored(own, preset), rule, plan.judge.config.reduce)["average"]

    models = dict.fromkeys(judgment.model for judgment in judgments)
    return {
        model: {"reference": average(before, model), "other": average(judgments, model)} for model in models
    }
