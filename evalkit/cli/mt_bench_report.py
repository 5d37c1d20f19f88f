"""MT-Bench tables in the terminal, in the layout of the model card."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit.core.words import shown, t
from evalkit.mtbench.judge.budget import EXPLANATION_TOKENS

if TYPE_CHECKING:
    from evalkit.mtbench.judge.dispatch import JudgingEstimate

# Headings that leave room for a model's name on 80 columns.
SHORT = {
    "average": "avg",
    "coding": "code",
    "extraction": "extr",
    "humanities": "hum",
    "reasoning": "reas",
    "roleplay": "role",
    "writing": "writ",
    "turn_1": "t1",
    "turn_2": "t2",
}
STATUS_WORDS = {
    "out_of_range": "outside 1 to 10",
    "unparsed": "without a rating",
    "malformed": "with a rating the reference crashes on",
    "filtered": "filtered by the service",
    "overflow": "too long for the judge",
    "api_error": "failed at the service (asked again by the next judge)",
}


def print_results(content: Mapping[str, Any], console: Console) -> None:
    """Prints a results.json of an MT-Bench run: tables, counts, and what is not as it should be."""
    preset = content["preset"]
    said_preset = t("MT-Bench, preset {name}", name=f"[bold]{escape(preset['name'])}[/]")
    console.print(said_preset, highlight=False)
    if preset["not_given"]:
        _line(
            console,
            "  " + t("not given by the protocol notes: {names}", names=", ".join(preset["not_given"])),
        )
    tables = content["tables"]
    if tables:
        console.print(_card_table(tables))
        if len(tables) == 1:
            console.print(*map(_interval_table, tables.values()))
        console.print(_rule_table(content["mt_bench"]))
    for model, table in tables.items():
        for line in _count_lines(table):
            _line(console, f"  {model}: {line}")
    if "pairwise" in content:
        print_pairwise(content["pairwise"], console)
    for model, fidelity in content.get("replay", {}).items():
        for line in fidelity_lines(fidelity):
            _line(console, f"  {model}: {line}")
    for model, answers in content.get("answers", {}).items():
        for line in _answer_lines(answers, preset["name"]):
            _line(console, f"  {model}: {line}")
    if content["partial"]["partial"]:
        console.print(f"[yellow]{t('* partial result')}[/]", highlight=False)
        for reason in content["partial"]["reasons"]:
            _line(console, f"  - {shown(reason)}")


def print_pairwise(content: Mapping[str, Any], console: Console) -> None:
    """Prints win rates and what the judge favours."""
    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    columns = ("model", "matches", "wins", "losses", "ties", "win rate", "loss rate", "adjusted")
    for column in columns:
        shown.add_column(t(column), justify="left" if column == "model" else "right")
    for model, rate in content["all"]["win_rates"].items():
        counts = (str(rate[key]) for key in ("n", "wins", "losses", "ties"))
        shares = (f"{rate[key]:.3f}" for key in ("win_rate", "loss_rate", "win_rate_adjusted"))
        shown.add_row(escape(model), *counts, *shares)
    console.print(shown)
    for line in _bias_lines(content["all"]["bias"]):
        _line(console, f"  {line}")
    if "replay" in content:
        for line in fidelity_lines(content["replay"]):
            _line(console, f"  pairwise: {line}")


def _bias_lines(bias: Mapping[str, Any]) -> Iterable[str]:
    if bias["errors"]:
        yield t("{n} matches without a verdict are left out", n=bias["errors"])
    if bias["matches"]:
        yield t(
            "position: {same} of the matches have one verdict in both orders; "
            "{first} go to the first answer twice, {second} to the second",
            same=f"{bias['consistent']:.0%}",
            first=f"{bias['favours_first']:.0%}",
            second=f"{bias['favours_second']:.0%}",
        )
    if bias["longer_wins"] is not None:
        rho = bias["length_correlation"]
        text = "length: the longer answer wins {share} of the decided matches"
        correlation = "" if rho is None else t(" (Spearman's rho {rho})", rho=f"{rho:.2f}")
        yield t(text, share=f"{bias['longer_wins']:.0%}") + correlation


def fidelity_lines(fidelity: Mapping[str, Any]) -> list[str]:
    """What came out of a log again, in words."""
    equal, compared = fidelity["scores_equal"], fidelity["scores_compared"]
    lines = [t("{n} of {all} scores equal the logged ones", n=equal, all=compared)]
    if fidelity["prompts_compared"] is None:
        lines.append(t("prompts were not rendered again: no answers= was given"))
    else:
        equal, compared = fidelity["prompts_equal"], fidelity["prompts_compared"]
        lines.append(t("{n} of {all} prompts equal the logged ones", n=equal, all=compared))
    lines += [
        t("{n} prompts not compared: {reason}", n=number, reason=reason)
        for reason, number in fidelity["not_rendered"].items()
    ]
    return lines


def _card_table(tables: Mapping[str, Any]) -> Table:
    columns = list(dict.fromkeys(scope for table in tables.values() for scope in table["scopes"]))
    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    shown.add_column(t("model"), overflow="fold", min_width=12)
    for column in columns:
        shown.add_column(SHORT.get(column, column), justify="right", no_wrap=True)
    for model, table in tables.items():
        cells = [table["scopes"].get(column) for column in columns]
        shown.add_row(escape(model), *(_number(cell and cell["value"]) for cell in cells))
    return shown


def _interval_table(table: Mapping[str, Any]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    shown.add_column("")
    shown.add_column(t("score"), justify="right")
    shown.add_column(t("95 % interval"))
    shown.add_column(t("n"), justify="right")
    for scope, cell in table["scopes"].items():
        shown.add_row(t(scope.replace("_", " ")), _number(cell["value"]), _interval(cell), str(cell["n"]))
    return shown


def _rule_table(models: Mapping[str, Any]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1, 0, 0), style="dim")
    shown.add_column(t("model"), overflow="fold", max_width=32)
    shown.add_column(t("by the rule of"), no_wrap=True)
    for column in ("average", "turn 1", "turn 2"):
        shown.add_column(t(column), justify="right")
    for model, rules in models.items():
        for place, (rule, figures) in enumerate(rules.items()):
            values = (_number(figures.get(scope)) for scope in ("average", "turn_1", "turn_2"))
            shown.add_row(escape(model) if place == 0 else "", rule, *values)
    return shown


def _count_lines(table: Mapping[str, Any]) -> Iterable[str]:
    yield t("{n} judgments by {judge}", n=table["rows"], judge=table["judge"])
    failed = [f"{n} {t(STATUS_WORDS[name])}" for name, n in table["statuses"].items() if name != "ok"]
    if failed:
        yield ", ".join(failed)
    if table["duplicates"]:
        yield t("{n} of them repeat a question and turn; every row counts", n=table["duplicates"])
    if table["repeats"] > 1:
        text = "{n} judgments of every turn, their {reduce} counts"
        yield t(text, n=table["repeats"], reduce=table["reduce"])
    if table["strict_differs"]:
        text = "{n} have no whole number from 1 to 10 at the end, or another one there"
        yield t(text, n=table["strict_differs"])
    if table["deviation_over_answers"] is not None:
        spread = f"{table['deviation_over_answers']:.3f}"
        yield t("standard deviation over the answers: {value}", value=spread)


def _answer_lines(answers: Mapping[str, Any], preset: str) -> Iterable[str]:
    words = {"truncated": "cut off", "empty": "empty", "errors": "failed", "over_context": "over the context"}
    counts = [f"{answers[name]} {t(word)}" for name, word in words.items() if answers[name]]
    if counts:
        yield t("{n} answered turns, of them {counts}", n=answers["turns"], counts=", ".join(counts))
    else:
        yield t("{n} answered turns", n=answers["turns"])
    if (made := answers.get("preset", preset)) != preset:
        yield t("the answers were made for the preset {name}", name=made)


def _line(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(cell: Mapping[str, Any] | None) -> str:
    if not cell or not cell["ci95"]:
        return "–"
    return "{:.2f}..{:.2f}".format(*cell["ci95"])


def print_estimate(judge: str, estimate: "JudgingEstimate", console: Console) -> None:
    """Prints what a judging would call and cost."""
    kept = estimate.wanted - estimate.calls
    calls = t(
        "judge {judge}: {n} judgments, {kept} are kept, {calls} calls to make",
        judge=judge,
        n=estimate.wanted,
        kept=kept,
        calls=estimate.calls,
    )
    tokens = t(
        "about {input} input tokens (by {how}) and {output} output tokens ({each} each)",
        input=f"{estimate.input_tokens:,}",
        how=estimate.counted_by,
        output=f"{estimate.output_tokens:,}",
        each=EXPLANATION_TOKENS,
    )
    cost = t("cost: not known, the price table has no such model (judge.prices=FILE)")
    if estimate.dollars is not None:
        cost = t("cost: about ${dollars}", dollars=f"{estimate.dollars:.2f}")
    _line(console, calls)
    _line(console, f"  {tokens}")
    _line(console, f"  {cost}")


def print_outcome(content: Mapping[str, Any], folder: str, console: Console) -> None:
    """Prints what the judging did cost, who answered, and where the results are."""
    cost, judge = content["cost"], content["judge"]
    dollars = "" if cost["dollars"] is None else f", ${cost['dollars']:.2f}"
    used = t(
        "{calls} calls, {input} input and {output} output tokens",
        calls=cost["calls"],
        input=f"{cost['input_tokens']:,}",
        output=f"{cost['output_tokens']:,}",
    )
    _line(console, used + dollars)
    if judge["service"] == "local":
        note = t("note: a small local judge is for trying out; `calibrate` says what a judge is worth")
        _line(console, note)
    asked = judge["model"]
    for served, number in judge["answered_by"].items():
        if served != "?" and not (served.startswith(asked) or asked.startswith(served)):
            text = "warning: {n} judgments were made by {served}, not by {asked}"
            _line(console, t(text, n=number, served=served, asked=asked))
    _line(console, f"{t('results: ')}{folder}")
