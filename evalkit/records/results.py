"""results.json: one schema, each key documented once, as a type.

    {
      "schema_version": 1,
      "scores":     {"jamp_exact_match": Figure, ...},
      "categories": {"NLI": Figure, ...},
      "average":    {"AVG": Figure, "AVG_without_MT": Figure},
      "datasets":   {"jamp": DatasetRates, ...},
      "partial":    Partial,
      "missing_metrics": [MissingMetric, ...],
      "protocol":   ProtocolRecord,
      "run":        {...},
      "sentences":  {<sentence>: {template, fields}}, of every reason above (evalkit.core.reasons),
      "check":      checksum of all the rest
    }

docs/results.md shows a whole file.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from evalkit.core.config import ReasoningConfig
from evalkit.core.durable import read_checked_json
from evalkit.core.errors import InputError
from evalkit.core.files import check_types, fits
from evalkit.core.reasons import Reason, sentences_in, with_sentences

SCHEMA_VERSION = 1
AVERAGE = "AVG"
# The mean of the eight other categories, where MT alone is incomplete: it needs COMET.
WITHOUT_MT = "AVG_without_MT"
# The reason why a result without a metric is partial, for all datasets that lack it for one reason.
MISSING_METRIC = "{metrics} of {names} is missing: {reason}"
# max_num_samples of the published runs.
PROTOCOL_LIMIT = 100
PROTOCOL_FEW_SHOTS = 4
PROTOCOL_RESAMPLES = 10_000
PROTOCOL_SPLIT = "dev"
# The keys of a figure in the file, in their order.
_FIGURE_KEYS = ("value", "n", "stderr", "ci95", "metric_version")
# Types of the optional entries of `Results.run` that other code reads.
_RUN: dict[str, Any] = {
    "identity": dict[str, Any],
    "datasets": dict[str, dict[str, Any]],
    "other_data": dict[str, str],
    "warnings": list[str],
}
_IDENTITY: dict[str, Any] = {
    "model": dict[str, Any],
    "data": dict[str, Any],
    "prompts": dict[str, Any],
    "task_few_shots": dict[str, int],
    "reasoning": dict[str, Any],
}
_RULE_KEYS = ("start", "end", "pattern")
MAKE_AGAIN = "the command that made the run makes it again, from the kept completions"


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and how sure it is: an entry of `scores`, `categories` and `average`; a cell of any table.

    Attributes:
        value: unrounded, on the metric's own scale (BLEU 0..100); null where nothing could be
            computed, and for an average over an incomplete set of categories.
        n: samples (of MT-Bench: scores) behind it; 0 where that is not known, as of published figures.
        stderr: standard deviation (ddof 1) over the root of n; for correlations the standard deviation
            of the bootstrap; for categories, the average, and 0/1 scores that are all equal, what the
            interval's width makes it. Null where ci95 is null.
        ci95: [low, high], never of zero width; null where the samples do not tell (docs/metrics.md).
        metric_version: changes whenever the same answers can give another value; for a category or the
            average, the metrics behind it with their versions.
        partial: whether it covers less than the protocol asks and is not comparable; in tables only,
            results.json has it in its own section.
    """

    value: float | None
    n: int = 0
    stderr: float | None = None
    ci95: tuple[float, float] | None = None
    metric_version: str = ""
    partial: bool = False

    def to_json(self) -> dict[str, Any]:
        """The entry of results.json."""
        return {key: getattr(self, key) for key in _FIGURE_KEYS}


# More unclosed thoughts than this share are worth a warning.
_UNCLOSED = 0.01


@dataclass(frozen=True)
class ThoughtRates:
    """What became of the answers behind thoughts, as shares 0..1 of n answers (docs/thinking.md).

    Attributes:
        n: answers that were split; those that failed are not among them.
        unclosed: the thought never ended, so there is no answer; counts as wrong.
        empty: the thought ended and nothing follows; counts as wrong.
        cut_off: the answer was ended by its length.
        no_thought, late_thought, tool_call: no thought, one behind other text, a call of a function.
        median_thought_tokens: null where no tokenizer was there to count.
    """

    n: int
    unclosed: float
    empty: float
    cut_off: float
    no_thought: float
    late_thought: float
    tool_call: float
    median_thought_tokens: float | None

    @classmethod
    def of(cls, answers: Sequence[tuple[str, int | None]]) -> "ThoughtRates | None":
        """The shares of answers by their status and the tokens of their thought; None: there are none."""
        if not answers:
            return None
        counts = Counter(status for status, _ in answers)
        lengths = [tokens for _, tokens in answers if tokens is not None]
        return cls(
            n=len(answers),
            unclosed=counts["unclosed"] / len(answers),
            empty=counts["empty"] / len(answers),
            cut_off=counts["cut_off"] / len(answers),
            no_thought=counts["no_thought"] / len(answers),
            late_thought=counts["late_thought"] / len(answers),
            tool_call=counts["tool_call"] / len(answers),
            median_thought_tokens=median(lengths) if lengths else None,
        )

    @property
    def many_unclosed(self) -> bool:
        """Whether so many thoughts never ended that it is worth a warning."""
        return self.unclosed > _UNCLOSED


@dataclass(frozen=True)
class InstructionRates:
    """What the instruction scores of a dataset are made of.

    Attributes:
        ceiling: by metric the share that some answer can pass.
        unsatisfiable: by sample id the kinds of the instructions that no answer can pass.
        groups: `strict` and `loose` of `n` instructions passed, by the second part of their kind.
        kinds: the same by kind.
    """

    ceiling: dict[str, float]
    unsatisfiable: dict[str, list[str]]
    groups: dict[str, dict[str, int]]
    kinds: dict[str, dict[str, int]]


@dataclass(frozen=True)
class DatasetRates:
    """What the answers of a dataset look like, as shares 0..1 of its n samples.

    Attributes:
        metrics: what was computed: `<dataset>_<metric>` are its keys in `scores`.
        n: samples scored.
        empty: nothing but white space before the first blank line.
        truncated: the length limit was reached without EOS or a blank line; null where the limit is
            3 tokens or fewer, or where it is not known how the completions ended.
        out_of_format: outside the closed label set, or not a number; null for free text.
        thoughts: where the model thinks; the file of another run has no such key.
        instructions: where instructions are checked; the entry of another dataset has no such key.
    """

    metrics: list[str]
    n: int
    empty: float
    truncated: float | None
    out_of_format: float | None
    thoughts: ThoughtRates | None = None
    instructions: InstructionRates | None = None

    @classmethod
    def of(cls, content: dict[str, Any]) -> "DatasetRates":
        """The entry of results.json."""
        parts = {"thoughts": ThoughtRates, "instructions": InstructionRates}
        return cls(**content | {key: kind(**content[key]) for key, kind in parts.items() if content.get(key)})


@dataclass(frozen=True)
class MissingMetric:
    """A metric that could not be computed for a dataset: why, and the command that changes it."""

    dataset: str
    metric: str
    reason: str
    command: str | None

    @property
    def sentence(self) -> Reason:
        """The reason for a partial result in the files of earlier versions, one for each dataset."""
        text = "{name}: {metric} is missing: {reason}"
        return Reason(text, name=self.dataset, metric=self.metric, reason=self.reason)


def missing_reasons(entries: Iterable[MissingMetric]) -> list[Reason]:
    """Why a result without these metrics is partial: one sentence for each metric and reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        names.setdefault((entry.metric, entry.reason), []).append(entry.dataset)
    return [
        Reason(MISSING_METRIC, metrics=metric, names=", ".join(listed), reason=reason)
        for (metric, reason), listed in names.items()
    ]


@dataclass(frozen=True)
class Partial:
    """Whether and why this is less than the whole suite under its protocol.

    Attributes:
        partial: true when there is any reason below.
        reasons: for the result as a whole, one sentence each.
        categories: for each category that is not complete, its reasons. Such a category's value
            covers the datasets and samples that are there and is not comparable.
        datasets: datasets of the suite that are not here at all, with the reason.
    """

    partial: bool
    reasons: list[str] = field(default_factory=list)
    categories: dict[str, list[str]] = field(default_factory=dict)
    datasets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProtocolRecord:
    """The rules the numbers were made by.

    Attributes:
        name: the preset.
        options: every option that can move a number, as given.
        deviations: those that differ from the preset; results are comparable when these are equal.
    """

    name: str
    options: dict[str, Any]
    deviations: dict[str, Any]

    @property
    def usual_limit(self) -> int:
        """The samples of each dataset that the protocol takes."""
        usual = self.options.get("suite.limit")
        return usual if isinstance(usual, int) else PROTOCOL_LIMIT

    @property
    def is_limited(self) -> bool:
        """Whether fewer samples of each dataset were asked for; a `limit` of 0 is all."""
        limit = self.options.get("limit")
        return isinstance(limit, int) and 0 < limit < self.usual_limit


@dataclass(frozen=True)
class Results:
    """A whole results.json.

    Attributes:
        scores: by `<dataset>_<metric>`.
        categories: by category name; only those the suite has datasets of.
        average: `AVG`, the unweighted mean of the nine categories, where the suite covers all nine;
            its value is null unless all nine are complete. `AVG_without_MT`, only where MT alone is
            incomplete: the mean of the eight other categories, which is no AVG.
        run: what the scoring does not decide: model, run id, dataset hashes, engine, BOS, counts.
    """

    scores: dict[str, Figure]
    categories: dict[str, Figure]
    average: dict[str, Figure]
    datasets: dict[str, DatasetRates]
    partial: Partial
    missing_metrics: list[MissingMetric]
    protocol: ProtocolRecord
    run: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def named(self, metric: str | None) -> str | None:
        """The name here of a metric of a task file: its mean over several answers has one of its own."""
        samples = self.protocol.options.get("samples", 1)
        return metric if metric is None or samples == 1 else f"{metric}_avg@{samples}"

    @property
    def split_by(self) -> str:
        """The rule that split thoughts from answers, with tags and pattern of its own; `none` without one."""
        options, made = self.protocol.options, self.run.get("identity", {}).get("reasoning") or {}
        rule = options.get("reasoning.parser", made.get("rule", "none"))
        return _rule_text({"rule": rule} | {key: options.get(f"reasoning.{key}") for key in _RULE_KEYS})

    @property
    def split_anew(self) -> bool:
        """Whether this scoring split the kept completions by another rule than the run did."""
        return self.split_by != self._made_by

    @property
    def _made_by(self) -> str:
        return _rule_text(self.run.get("identity", {}).get("reasoning") or {})

    def to_json(self) -> dict[str, Any]:
        """The JSON form, schema version first."""
        content = asdict(self)
        for rates in content["datasets"].values():
            for part in ("thoughts", "instructions"):
                if rates[part] is None:
                    del rates[part]
        for section in ("scores", "categories", "average"):
            content[section] = {name: figure.to_json() for name, figure in getattr(self, section).items()}
        content = {"schema_version": content.pop("schema_version"), **content}
        return content | ({"sentences": found} if (found := sentences_in(content)) else {})

    @classmethod
    def from_json(cls, content: Any, where: object = None) -> "Results":
        """The results in a JSON form.

        Raises:
            InputError: not a results file, or of another schema version; `where` names the file.
        """
        version = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(content, dict) and str(content.get("kind", "")).startswith("mt_bench"):
            raise InputError(
                "this is an MT-Bench run, and the command is for runs of llm-jp-eval's datasets",
                where=where,
                fix="for MT-Bench: judge, calibrate, pairwise, agreement, reproduce, leaderboard",
            )
        if version != SCHEMA_VERSION:
            raise InputError(
                Reason(
                    "not a results file of schema version {version} (found: {found})",
                    version=SCHEMA_VERSION,
                    found=version,
                ),
                where=where,
                fix=MAKE_AGAIN,
            )
        content = with_sentences(content, content.get("sentences"))
        try:
            results = cls(
                scores=_figures(content["scores"]),
                categories=_figures(content["categories"]),
                average=_figures(content["average"]),
                datasets={name: DatasetRates.of(rates) for name, rates in content["datasets"].items()},
                partial=Partial(**content["partial"]),
                missing_metrics=[MissingMetric(**entry) for entry in content["missing_metrics"]],
                protocol=ProtocolRecord(**content["protocol"]),
                run=dict(content["run"]),
            )
            check_types(results)
            _check_run(results.run)
            _check_metrics(results)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = Reason("the results file does not fit its schema: {error}", error=error)
            raise InputError(what, where=where) from None
        return results


def _rule_text(reasoning: Mapping[str, Any]) -> str:
    """A rule of the identity's section `reasoning`: `think`, `think <a> </a>`, `regex PATTERN`."""
    rule, usual = str(reasoning.get("rule", "none")), ReasoningConfig()
    own = (reasoning.get(key) for key in _RULE_KEYS if rule != "none")
    return " ".join([rule, *(str(value) for value in own if value not in (None, usual.start, usual.end))])


def _figures(content: dict[str, dict[str, Any]]) -> dict[str, Figure]:
    return {name: _figure(name, entry) for name, entry in content.items()}


def _figure(name: str, entry: dict[str, Any]) -> Figure:
    if entry.keys() != set(_FIGURE_KEYS):
        raise TypeError(f"the fields of {name}")
    figure = Figure(**{**entry, "ci95": tuple(entry["ci95"]) if entry["ci95"] else None})
    numbers = [figure.n, *(figure.ci95 or ()), *(n for n in (figure.value, figure.stderr) if n is not None)]
    if not all(is_number(n) for n in numbers) or len(figure.ci95 or (0, 0)) != 2:
        raise TypeError(f"the numbers of {name}")
    # Earlier versions gave scores that are all equal an interval of zero width.
    flat = figure.ci95 is not None and figure.ci95[0] >= figure.ci95[1]
    return replace(figure, ci95=None, stderr=None) if flat else figure


def is_number(value: object) -> bool:
    """Whether this is a number that a float can hold; NaN and infinities are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _check_run(run: dict[str, Any]) -> None:
    identity = run.get("identity", {})
    known = {name: value for name, value in run.items() if name in _RUN}
    known |= {name: value for name, value in identity.items() if name in _IDENTITY}
    for name, value in known.items():
        if not fits(value, (_RUN | _IDENTITY)[name]):
            raise TypeError(f"the field {name} of run")


def _check_metrics(results: Results) -> None:
    for name, rates in results.datasets.items():
        for metric in rates.metrics:
            if f"{name}_{metric}" not in results.scores:
                raise KeyError(f"{name}_{metric}")


def read_results(path: Path) -> Results:
    """The results kept in a file.

    Raises:
        InputError: no such file, not JSON, or not a results file.
    """
    try:
        content = read_checked_json(path)
    except OSError as error:
        raise InputError(f"cannot read the results: {error.strerror}", where=path) from None
    except ValueError as error:
        raise InputError(f"damaged: {error}", where=path, fix=MAKE_AGAIN) from None
    return Results.from_json(content, path)
