"""evalkit prepare [suite=jaster] [model=NAME] [mirror=DIR] [data_dir=DIR]

Fetches, checks and converts the datasets of a suite and reports how each prepared file was verified;
fetches (and converts once) the files of a model. Run it where there is a network; HF_HUB_OFFLINE=1
does not hold it back, offline=true does.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from evalkit.cli.command import DATA, MODEL, PRESET, SUITE, path_of
from evalkit.cli.printing import print_line, report_console
from evalkit.core.assets import default_data_dir
from evalkit.core.config import Config, ModelConfig, SuiteData
from evalkit.core.errors import InputError
from evalkit.core.progress import phase
from evalkit.core.words import shown, t
from evalkit.runs.suite import prepare_command, suite_specs
from evalkit.services.hub import set_offline
from evalkit.sources.prepared import Status
from evalkit.tasks.spec import SPLITS, CommercialUse, TaskSpec

if TYPE_CHECKING:
    from evalkit.sources.prepare import PreparedReport

OPTIONS = (*SUITE, *PRESET, *MODEL, *DATA, "metrics.bert_score", "metrics.comet.", "lang")

_COMMERCIAL = {
    CommercialUse.allowed: "yes",
    CommercialUse.not_allowed: "no",
    CommercialUse.see_note: "see note",
}


def run(config: Config) -> int:
    """Prepares the model and the suite's datasets; 1 when something is missing, the rest is kept."""
    if config.model is None and config.suite is None:
        raise InputError("nothing to prepare is named", fix="suite=jaster and/or model=1.8b-instruct")
    if not config.offline:
        allow_network()
    if config.model is not None:
        _prepare_model(config.model, offline=bool(config.offline))
    return _prepare_suite(config) if config.suite is not None else 0


def allow_network() -> None:
    """HF_HUB_OFFLINE is about runs: preparing for them is what one does with a network."""
    os.environ["HF_HUB_OFFLINE"] = "0"
    set_offline(False)


def _prepare_model(model: ModelConfig, *, offline: bool) -> None:
    from evalkit.engines.models import resolve

    with phase(t("model {name}: fetching what is missing", name=model.name or model.path or "")):
        resolved = resolve(model, offline=offline)
    where = resolved.path or t("built from its shape when it runs")
    print(t("model {name}: {path}", name=resolved.name, path=where))


def _prepare_suite(config: Config) -> int:
    from evalkit.sources.prepare import prepare

    assert config.suite is not None
    if config.suite.mt_bench is not None:
        from evalkit.mtbench.books import BookOptions, fetch_all

        files = fetch_all(BookOptions.of(config), config.language or config.suite.mt_bench)
        print(t("MT-Bench: {n} files of its presets are here, as they are pinned", n=len(files)))
        return 0
    if config.suite.pfgen:
        return _prepare_pfgen(config)
    specs = suite_specs(config.suite)
    if config.suite.data is SuiteData.bundled:
        print(t("the suite {name} is bundled: there is nothing to prepare", name=config.suite.name))
        return 0
    data_dir = path_of(config.data_dir) or default_data_dir()
    mirror = path_of(config.mirror)
    if data_dir.exists() and not data_dir.is_dir():
        raise InputError("the data folder is a file", where=f"data_dir={config.data_dir}")
    reports = prepare(specs, data_dir, mirror=mirror, offline=bool(config.offline))
    print_reports(reports, report_console())
    print(t("prepared data: {folder}", folder=data_dir))
    # allow_missing= is about what cannot be had; a file that came out wrong is never fine.
    forgiven = {Status.not_available} if config.allow_missing else set()
    found = {split.status for report in reports for split in report.splits.values()}
    prepared = all(status.usable for status in found - forgiven)
    if config.offline and not prepared:
        print(f"on a machine with a network: {prepare_command(config)}")
    models_here = _fetch_metric_models(specs, config) or config.allow_missing
    return 0 if prepared and models_here else 1


def _prepare_pfgen(config: Config) -> int:
    from evalkit.metrics.pfgen import tables_of
    from evalkit.sources.pfgen import fetch_data

    questions, _ = fetch_data(path_of(config.mirror), offline=bool(config.offline))
    for question in questions:
        tables_of(question)
    print(t("pfgen: {n} questions are here, and the tables of their references", n=len(questions)))
    return 0


def _fetch_metric_models(specs: Sequence[TaskSpec], config: Config) -> bool:
    """Gets the models of the suite's metrics; False when one was asked for and could not be had.

    With a mirror in place of the network, or offline, the hub's cache is looked at and no more.
    """
    from evalkit.metrics import fetch_models

    no_network = bool(config.offline) or config.mirror is not None
    names = [name for spec in specs for name in spec.metrics]
    outcome = fetch_models(names, config.metrics, offline=no_network)
    for name, error in outcome.items():
        state = t("its model is here") if error is None else error.what
        print(t("metric {name}: {state}", name=name, state=state))
    return no_network or not any(outcome.values())


def print_reports(reports: "Sequence[PreparedReport]", console: Console) -> None:
    """The closing table, and below it one line for each reason and remark."""
    if not reports:
        return
    heads = ("dataset", *SPLITS, "sha256", "licence", "commercial use")
    table = Table(*(head if head in (*SPLITS, "sha256") else t(head) for head in heads))
    for split_column in table.columns[1 : 1 + len(SPLITS)]:
        split_column.justify = "right"
    remarks: dict[str, list[str]] = {}
    for report in reports:
        spec = report.spec
        commercial = t(_COMMERCIAL[spec.commercial_use]) if spec.commercial_use else "?"
        counts = [_count(report, split) for split in SPLITS]
        table.add_row(report.dataset, *counts, _hashes(report), spec.license or "?", commercial)
        for remark in _remarks(report):
            remarks.setdefault(remark, []).append(report.dataset)
    console.print(table)
    for remark, datasets in remarks.items():
        print_line(console, f"{', '.join(datasets)}: {shown(remark)}")


def _count(report: "PreparedReport", split: str) -> str:
    prepared = report.splits.get(split)
    if prepared is None or not prepared.status.usable:
        return "-"
    return t("kept") if prepared.samples is None else str(prepared.samples)


def _hashes(report: "PreparedReport") -> str:
    """`dev verified; train, test derived`: the splits by how their hash was verified, best first."""
    by_status = {
        status: [name for name, split in report.splits.items() if split.status is status] for status in Status
    }
    if len(kinds := [status for status, names in by_status.items() if names]) == 1:
        return t(kinds[0].value)
    return "; ".join(f"{', '.join(names)} {t(status.value)}" for status, names in by_status.items() if names)


def _remarks(report: "PreparedReport") -> list[str]:
    by_reason: dict[tuple[str, str], list[str]] = {}
    for split, prepared in report.splits.items():
        if prepared.reason:
            by_reason.setdefault((prepared.status.value, prepared.reason), []).append(split)
    remarks = [
        f"{', '.join(splits)} {t(status)}: {shown(why)}" for (status, why), splits in by_reason.items()
    ]
    if report.spec.license_note:
        remarks.append(report.spec.license_note)
    return [*remarks, *report.notes]
