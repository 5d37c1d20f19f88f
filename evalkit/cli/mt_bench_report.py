"""MT-Bench tables in the terminal, in the layout of the model card."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit.cli.printing import SHORT, new_table, number, print_line
from evalkit.core.words import shown, t
from evalkit.mtbench.aggregate import MINUS_ONE
from evalkit.records.results import ThoughtRates

STATUS_WORDS = {
    "out_of_range": "outside 1 to 10",
    "unparsed": "without a rating",
    "malformed": "with a rating the reference crashes on",
    "answerless": "with a thought and no answer",
    "filtered": "filtered by the service",
    "overflow": "too long for the judge",
    "api_error": "failed at the service (asked again by the next judge)",
}


def print_results(content: Mapping[str, Any], console: Console) -> None:
    """Prints a results.json of an MT-Bench run: tables, counts, and what is not as it should be."""
    preset = content["preset"]
    title = t("MT-Bench, preset {name}", name=f"[bold]{escape(preset['name'])}[/]")
    console.print(title, highlight=False)
    if preset["not_given"]:
        names = ", ".join(preset["not_given"])
        print_line(console, f"  {t('not given by the protocol notes: {names}', names=names)}")
    tables = content["tables"]
    if tables:
        console.print(_card_table(tables))
        if len(tables) == 1:
            console.print(*map(_interval_table, tables.values()))
        console.print(_rule_table(content["mt_bench"]))
    for model, table in tables.items():
        for line in _count_lines(table):
            print_line(console, f"  {model}: {line}")
    if "pairwise" in content:
        print_pairwise(content["pairwise"], console)
        for line in _fidelity_lines(content["pairwise"]["replay"]):
            print_line(console, f"  pairwise: {line}")
    for model, fidelity in content.get("replay", {}).items():
        for line in _fidelity_lines(fidelity):
            print_line(console, f"  {model}: {line}")
    for model, answers in content.get("answers", {}).items():
        for line in _answer_lines(answers, preset["name"]):
            print_line(console, f"  {model}: {line}")
    if content["partial"]["partial"]:
        console.print(f"[yellow]{t('* partial result')}[/]", highlight=False)
        for reason in content["partial"]["reasons"]:
            print_line(console, f"  - {shown(reason)}")


def print_pairwise(content: Mapping[str, Any], console: Console) -> None:
    """Prints win rates and what the judge favours."""
    shown = new_table("model", "matches", "wins", "losses", "ties", "win rate", "loss rate", "adjusted")
    for model, rate in content["all"]["win_rates"].items():
        counts = (str(rate[key]) for key in ("n", "wins", "losses", "ties"))
        shares = (f"{rate[key]:.3f}" for key in ("win_rate", "loss_rate", "win_rate_adjusted"))
        shown.add_row(escape(model), *counts, *shares)
    console.print(shown)
    for line in _bias_lines(content["all"]["bias"]):
        print_line(console, f"  {line}")


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


def _fidelity_lines(fidelity: Mapping[str, Any]) -> Iterable[str]:
    """How much of a log is reproduced."""
    equal, compared = fidelity["scores_equal"], fidelity["scores_compared"]
    yield t("{n} of {all} scores equal the logged ones", n=equal, all=compared)
    if fidelity["prompts_compared"] is None:
        yield t("prompts were not rendered again: no answers= was given")
    else:
        equal, compared = fidelity["prompts_equal"], fidelity["prompts_compared"]
        yield t("{n} of {all} prompts equal the logged ones", n=equal, all=compared)
    for reason, count in fidelity["not_rendered"].items():
        yield t("{n} prompts not compared: {reason}", n=count, reason=reason)


def _card_table(tables: Mapping[str, Any]) -> Table:
    columns = list(dict.fromkeys(scope for table in tables.values() for scope in table["scopes"]))
    shown = new_table()
    shown.add_column(t("model"), overflow="fold", min_width=12)
    for column in columns:
        shown.add_column(SHORT.get(column, column), justify="right", no_wrap=True)
    for model, table in tables.items():
        cells = [table["scopes"].get(column) for column in columns]
        shown.add_row(escape(model), *(number(cell and cell["value"], 2) for cell in cells))
    return shown


def _interval_table(table: Mapping[str, Any]) -> Table:
    shown = new_table("", "score", "95 % interval", "n")
    shown.columns[2].justify = "left"
    for scope, cell in table["scopes"].items():
        shown.add_row(t(scope.replace("_", " ")), number(cell["value"], 2), _interval(cell), str(cell["n"]))
    return shown


def _rule_table(models: Mapping[str, Any]) -> Table:
    shown = new_table(header_style="dim", style="dim")
    shown.add_column(t("model"), overflow="fold", max_width=32)
    shown.add_column(t("by the rule of"), no_wrap=True)
    for column in ("average", "turn 1", "turn 2"):
        shown.add_column(t(column), justify="right")
    for model, rules in models.items():
        for place, (rule, figures) in enumerate(rules.items()):
            found = (figures.get(scope) for scope in ("average", "turn_1", "turn_2"))
            # -1 is the mark of a rating that could not be read: where all are, there is no number.
            values = (number(None if value == MINUS_ONE else value, 2) for value in found)
            shown.add_row(escape(model) if place == 0 else "", rule, *values)
    return shown


def _count_lines(table: Mapping[str, Any]) -> Iterable[str]:
    yield t("{n} judgments by {judge}", n=table["rows"], judge=table["judge"])
    if all(cell["value"] is None for cell in table["scopes"].values()):
        yield t("no rating could be read: there is no score")
    failed = [f"{n} {t(STATUS_WORDS[name])}" for name, n in table["statuses"].items() if name != "ok"]
    if failed:
        yield ", ".join(failed)
    if table["duplicates"]:
        yield t("{n} of them repeat a question and turn; every row counts", n=table["duplicates"])
    if table["repeats"] > 1:
        text = "{n} judgments of every turn, their {reduce} counts"
        yield t(text, n=table["repeats"], reduce=t(table["reduce"]))
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
    if "thoughts" in answers:
        yield from _thought_lines(ThoughtRates(**answers["thoughts"]))
    if (made := answers.get("preset", preset)) != preset:
        yield t("the answers were made for the preset {name}", name=made)


def _thought_lines(rates: ThoughtRates) -> Iterable[str]:
    text = "thoughts: {unclosed} never ended, {empty} have no answer, {cut_off} an answer that is cut off"
    shares = {name: f"{getattr(rates, name):.0%}" for name in ("unclosed", "empty", "cut_off")}
    tokens = rates.median_thought_tokens
    length = "" if tokens is None else t("; median length {n} tokens", n=f"{tokens:g}")
    yield t(text, **shares) + length
    if rates.many_unclosed:
        yield t("warning: where the thought never ended an empty answer is judged (reasoning.thought_length)")


def _interval(cell: Mapping[str, Any] | None) -> str:
    if not cell or not cell["ci95"]:
        return "–"
    return "{:.2f}..{:.2f}".format(*cell["ci95"])
