"""A finished run as a leaderboard reads it, and what makes two runs comparable."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast

from evalkit.core.durable import read_log
from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason
from evalkit.core.text import canonical_json, step_of, text_sha256
from evalkit.metrics import METRICS
from evalkit.metrics.metric import CorrelationMetric
from evalkit.metrics.repeats import single_name
from evalkit.mtbench.folder import MtBenchFolder
from evalkit.records.environment import kept_environment
from evalkit.records.results import MISSING_METRIC, Results, is_number
from evalkit.records.run_folder import RunDirectory, SampleRecord
from evalkit.scoring.categories import missing_dataset
from evalkit.tasks.pfgen import DATASET as PFGEN
from evalkit.tasks.spec import load_spec, task_names

COMET = "comet_wmt22"
_COMET_PLACES = ("metrics.comet.checkpoint", "metrics.comet.encoder")
_COMET_DTYPE = "metrics.comet.dtype"
# Options that change no sample's score (how many samples, how many resamples, a further metric), and those
# of COMET: the version of the metric names its weights and their type, wherever they are.
ASIDE_OPTIONS = (
    *("limit", "metrics.resamples", "metrics.bert_score", "metrics.pass_at"),
    *(*_COMET_PLACES, _COMET_DTYPE),
)
# The versions that metrics began with.
_FIRST_VERSIONS = ("1", "pfgen-1")
# They are compared as the rule they make (`Results.split_by`).
_SPLIT_OPTIONS = ("reasoning.parser", "reasoning.start", "reasoning.end", "reasoning.pattern")
# What options are where a result does not record them.
_UNRECORDED: dict[str, Any] = {"suite.chat": False, "suite.chat_turns": False, "samples": 1}


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its folder, its results, and when results.json was written (seconds).

    `label` stands for the model's name where two runs of one model are told apart. `parts` are the runs it
    joins (`evalkit.leaderboard.join`); none for a run of its own. `apart` are metric versions and hashes of
    data that tell it from others of its protocol (`told_apart`). The scores and records of its samples are
    read on demand, each file once.
    """

    folder: Path
    results: Results
    finished: float
    label: str | None = None
    parts: tuple["FinishedRun", ...] = ()
    apart: Mapping[str, str] = field(default_factory=dict)
    _scores: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict, repr=False, compare=False)
    _records: dict[str, dict[str, SampleRecord]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def model(self) -> str:
        """The model's name, else that of the folder."""
        return self.label or str(self.results.run.get("model") or self.folder.name)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decided the completions; empty where another tool made them."""
        return cast(Mapping[str, Any], self.results.run.get("identity") or {})

    @property
    def rules(self) -> str:
        """The protocol with its deviations: runs are comparable when these are equal.

        Of joined runs those of the first, which has categories where any has.
        """
        same = [run for run in reversed(self.leaves) if run.protocol == self.protocol]
        known = sorted({key: value for run in same for key, value in run.apart.items()}.items())
        data = {name: digest for name, digest in known if "/" in name}
        versions = [f"{name} {version}" for name, version in known if name not in data]
        rules = ", ".join([self.protocol, *versions])
        if not self.has_other_data(self.protocol):
            return rules
        if data:
            return Reason("{rules}, other data than published ({hash})", rules=rules, hash=short_hash(data))
        return Reason("{rules}, other data than published", rules=rules)

    @property
    def lasting_rules(self) -> str:
        """The rules with all that is not as usual, whatever other runs there are."""
        return self.marked([_unusual(leaf) for leaf in self.leaves]).rules

    @property
    def protocol(self) -> str:
        """The protocol's name with every deviation that can change a score, whatever the data."""
        return protocol_of(self.leaves[0].results)

    def has_other_data(self, protocol: str) -> bool:
        """Whether figures under a protocol are of data that are not the published ones."""
        return any(run.results.run.get("other_data") for run in self.leaves if run.protocol == protocol)

    @property
    def comet(self) -> str | None:
        """The version of COMET, which names its weights; None: no figure is of it."""
        for name, rates in self.results.datasets.items():
            for metric in rates.metrics:
                if single_name(metric) == COMET:
                    return self.results.scores[f"{name}_{metric}"].metric_version
        return None

    @property
    def own_comet(self) -> dict[str, str]:
        """Its version, where the files of COMET are from another place than the protocol's."""
        elsewhere = any(place in self.results.protocol.deviations for place in _COMET_PLACES)
        return {COMET: version} if elsewhere and (version := self.comet) is not None else {}

    def marked(self, apart: Sequence[Mapping[str, str]]) -> "FinishedRun":
        """The run with what tells its leaves apart, in their order."""
        leaves = tuple(replace(leaf, apart=one) for leaf, one in zip(self.leaves, apart, strict=True))
        return replace(self, parts=leaves) if self.parts else leaves[0]

    @property
    def leaves(self) -> tuple["FinishedRun", ...]:
        """The runs it joins, or itself."""
        return self.parts or (self,)

    def leaf(self, dataset: str) -> "FinishedRun":
        """The run that a dataset's figures are from."""
        return next((part for part in self.parts if dataset in part.results.datasets), self)

    def metric(self, dataset: str) -> str | None:
        """The metric of a dataset that is compared (`counting_metric`)."""
        return counting_metric(dataset, self.leaf(dataset).results)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the run is partial, categories included; empty when it is not."""
        partial = self.results.partial
        if not partial.partial:
            return ()
        inner = [
            Reason("{name}: {reason}", name=category, reason=reason)
            for category, reasons in partial.categories.items()
            for reason in reasons
            if reason not in partial.reasons
        ]
        return tuple([*partial.reasons, *inner] or ["a category is incomplete"])

    @property
    def whole_reasons(self) -> list[str]:
        """The reasons that concern every figure, not one dataset."""
        results = self.results
        of_one = {missing_dataset(name, why) for name, why in results.partial.datasets.items()}
        of_one |= {entry.sentence for entry in results.missing_metrics}
        return [
            reason
            for reason in results.partial.reasons
            if reason not in of_one and getattr(reason, "template", "") != MISSING_METRIC
        ]

    @property
    def completeness(self) -> int:
        """A rank among runs of one model: the number of complete categories; 0 if every figure is partial."""
        if self.whole_reasons:
            return 0
        return 1 + len(self.results.categories.keys() - self.results.partial.categories.keys())

    def scores(self, dataset: str) -> Mapping[str, Mapping[str, Any]]:
        """The lines of scores/<dataset>.jsonl by sample id.

        Raises:
            InputError: lines are damaged.
        """
        if (leaf := self.leaf(dataset)) is not self:
            return leaf.scores(dataset)
        if dataset not in self._scores:
            path = RunDirectory(self.folder).scores_path(dataset)
            self._scores[dataset], damaged = read_log(path)
            if damaged:
                raise InputError(
                    f"{damaged} lines of the scores are damaged",
                    where=path,
                    fix=f"evalkit score run={self.folder}",
                )
        return self._scores[dataset]

    def numbers(self, dataset: str, metric: str, ids: Sequence[str]) -> list[float]:
        """One number per question: its score, or for a correlation the number in its prediction."""
        rows, kind = self.scores(dataset), METRICS.get(metric)
        if isinstance(kind, CorrelationMetric):
            return [kind.parse(str(rows[key]["prediction"])) for key in ids]
        values = [rows[key]["values"] for key in ids]
        return [float(value[metric]) for value in values if isinstance(value, dict)]

    def instructions(self, dataset: str, ids: Sequence[str]) -> list[int]:
        """How many instructions each sample has whose verdicts are kept."""
        rows = [self.scores(dataset)[key] for key in ids]
        return [len((row.get("repeats") or [row])[0].get("verdicts", ())) for row in rows]

    def records(self, dataset: str) -> Mapping[str, SampleRecord]:
        """The records by sample id; none where another tool generated the completions."""
        if (leaf := self.leaf(dataset)) is not self:
            return leaf.records(dataset)
        if dataset not in self._records:
            self._records[dataset] = RunDirectory(self.folder).records(dataset)
        return self._records[dataset]


@dataclass(frozen=True)
class JudgedRun:
    """One model's part of a judged MT-Bench run; `content` is the whole results.json.

    `mark` follows the preset's name where different presets have that name, `asked` the judge's where it was
    asked otherwise, or the answers were made by another preset. `weights` is a hash of the weights, where
    models of one name have different ones.
    """

    folder: Path
    model: str
    content: Mapping[str, Any]
    finished: float
    mark: str = ""
    asked: str = ""
    weights: str = ""

    def check(self) -> None:
        """Checks every field that a leaderboard reads.

        Raises:
            KeyError, TypeError, ValueError: the content does not fit its schema.
        """
        for name, scope in self.table["scopes"].items():
            low, high = scope["ci95"] or (0, 0)
            numbers = (scope["n"], low, high, 0 if scope["value"] is None else scope["value"])
            if not all(map(is_number, numbers)):
                raise TypeError(f"the numbers of {name}")
        own_prompts = self.content["preset"].get("prompts") or {"file": ""}
        for text in (self.rules, self.preset_sha256, own_prompts["file"], *self.reasons):
            if not isinstance(text, str):
                raise TypeError("a text was expected")
        canonical_json([self.facts, self.model_facts])

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What decided the answers; empty where they were given."""
        environment = kept_environment(self.folder) or {}
        return cast(Mapping[str, Any], environment.get("identity") or {})

    @cached_property
    def language(self) -> str:
        """The language of the questions: `ja`, also where nothing says, `en`, or `ja+en`."""
        try:
            return MtBenchFolder(self.folder).header().language or "ja+en"
        except InputError:
            return "ja"

    @property
    def deviations(self) -> dict[str, str]:
        """How the answers were made, where it is not as usual: language, precision, chat template."""
        dtype, template = self.identity.get("dtype"), self.identity.get("model", {}).get("chat_template", "")
        found = {"language": self.language, "dtype": dtype, "model.chat_template": template[:8]}
        usual = {"language": ("ja",), "dtype": (None, "server", "bfloat16"), "model.chat_template": ("",)}
        return {key: str(value) for key, value in found.items() if value not in usual[key]}

    @property
    def model_facts(self) -> dict[str, Any]:
        """The model that answered, where it is known."""
        return model_of(self.identity)

    @property
    def preset_sha256(self) -> str:
        """The hash of the whole preset; empty where the results lack it."""
        return cast(str, self.content["preset"].get("sha256", ""))

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the figures beside the rules: preset, how the judge was asked, the answers' preset."""
        aside = ("answered_by", "service")  # A server may have another address in each job.
        judge = {key: value for key, value in self.content.get("judge", {}).items() if key not in aside}
        answers = self.content.get("answers", {}).get(self.model, {}).get("preset")
        known = {"preset": self.preset_sha256, "judge": judge, "answers": answers}
        return {key: value for key, value in known.items() if value or key == "preset"}

    @property
    def table(self) -> Mapping[str, Any]:
        """The model's table (evalkit.mtbench.model_tables.ModelTable as JSON)."""
        return cast(Mapping[str, Any], self.content["tables"][self.model])

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the table is partial; empty when it is not."""
        return tuple(self.content["partial"]["reasons"])

    @property
    def completeness(self) -> int:
        """A rank among runs of one model: a complete table above a partial one."""
        return 0 if self.reasons else 1

    @property
    def rules(self) -> str:
        """Preset, judge, repeated judgments, and how the answers were made: equal ones are comparable."""
        repeats = int(self.table.get("repeats", 1))
        return ", ".join(
            [
                f"{self.content['preset']['name']}{self.mark}",
                f"{self.table['judge']}{self.asked}",
                *([f"{self.table['reduce']} of {repeats} judgments"] if repeats > 1 else ()),
                *(f"{key}={value}" for key, value in self.deviations.items()),
                *([f"model {self.weights}"] if self.weights else ()),
            ]
        )

    @property
    def lasting_rules(self) -> str:
        """The rules with every fact, whatever other runs there are; checkpoints share theirs."""
        return self.marked(self.facts, {} if step_of(self.model) else self.model_facts).rules

    def marked(self, apart: Mapping[str, Any], model: Mapping[str, Any]) -> "JudgedRun":
        """The run with hashes of the facts that tell it from others of its rules, and of its name."""
        asked = {key: value for key, value in apart.items() if key != "preset"}
        mark = f" {apart['preset'][:8]}" if apart.get("preset") else ""
        weights = short_hash(model) if model else ""
        return replace(self, mark=mark, asked=f" {short_hash(asked)}" if asked else "", weights=weights)


def told_apart(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs; their rules name what differs under the same protocol, and COMET's weights from elsewhere.

    What differs are metric versions and data that are not published. Weights from elsewhere are the
    protocol's where their version is that of a run with the protocol's own.
    """
    leaves = [(leaf, run.has_other_data(leaf.protocol)) for run in runs for leaf in run.leaves]
    facts = [_distinctive(leaf, data=data) for leaf, data in leaves]
    found = contested([f"{leaf.protocol} {data}" for leaf, data in leaves], facts)
    usual = {leaf.comet for leaf, _ in leaves if not leaf.own_comet}
    apart = iter(
        differing | (leaf.own_comet if leaf.comet not in usual else {})
        for (leaf, _), differing in zip(leaves, found, strict=True)
    )
    return [run.marked([next(apart) for _ in run.leaves]) for run in runs]


def _distinctive(run: FinishedRun, *, data: bool) -> dict[str, str]:
    """The versions of the metrics that count, and with `data` the hashes of the files, by DATASET/SPLIT."""
    results, found = run.results, {}
    for name in filter(shipped().__contains__, results.datasets):
        if (metric := run.metric(name)) is not None:
            found[single_name(metric)] = results.scores[f"{name}_{metric}"].metric_version
        for split, digest in (_decided(results, "data", name) or {}).items() if data else ():
            found[f"{name}/{split}"] = str(digest)
    return found


def _unusual(run: FinishedRun) -> dict[str, str]:
    """Later versions of metrics, COMET's weights from elsewhere, and the hashes of data not published."""
    versions = _distinctive(run, data=False).items()
    later = {name: version for name, version in versions if version.split(" ")[0] not in _FIRST_VERSIONS}
    data = {
        f"{name}/{split}": str(digest)
        for name in run.results.run.get("other_data") or ()
        for split, digest in (_decided(run.results, "data", name) or {}).items()
    }
    return later | run.own_comet | data


def protocol_of(results: Results) -> str:
    """The protocol's name with every deviation that can change a score."""
    recorded = results.protocol.deviations
    deviations = {key: value for key, value in recorded.items() if key not in ASIDE_OPTIONS}
    if "limit" in recorded and not results.protocol.is_limited:
        # Fewer samples are partial; more are other samples than the protocol's.
        deviations["limit"] = recorded["limit"]
    # Of COMET `auto` is float32.
    if (dtype := recorded.get(_COMET_DTYPE, "auto")) != "auto":
        deviations[_COMET_DTYPE] = dtype
    if results.split_by != "none":
        # `auto` is no deviation, and the rule it chose decides what is graded.
        deviations.setdefault("reasoning.parser", results.split_by.partition(" ")[0])
    return ", ".join(
        [results.protocol.name, *(f"{key}={value}" for key, value in sorted(deviations.items()))]
    )


@cache
def shipped() -> frozenset[str]:
    """The datasets that are none of a user's own."""
    return frozenset((*task_names(), PFGEN))


# --- comparable runs ------------------------------------------------------------------------------


def option_differences(a: Results, b: Results) -> list[str]:
    """The options that differ: how the models were asked, and how their answers were read."""
    found = [] if a.split_by == b.split_by else [_differs("reasoning.parser", a.split_by, b.split_by)]
    first, second = ({**_UNRECORDED, **results.protocol.options} for results in (a, b))
    unknown = made_elsewhere(a) or made_elsewhere(b)
    aside = (*ASIDE_OPTIONS, *_SPLIT_OPTIONS, *(("dtype",) if unknown else ()))
    for key in dict.fromkeys([*first, *second]):
        if key not in aside and first.get(key) != second.get(key):
            found.append(_differs(key, first.get(key), second.get(key)))
    sampling = ("generation.do_sample", "generation.from_model")
    samples = any(options.get(key) for options in (first, second) for key in sampling)
    seeds = [results.run.get("identity", {}).get("seed") for results in (a, b)]
    if samples and seeds[0] != seeds[1] and not unknown:
        found.append(_differs("seed", *seeds))
    return found


def data_differences(a: Results, b: Results) -> list[str]:
    """What differs in the protocol's name and, by dataset, in data, prompts, token limits and metrics."""
    named = [] if a.protocol.name == b.protocol.name else [(a.protocol.name, b.protocol.name)]
    return [
        *(_differs("protocol", *names) for names in named),
        *(why for name in common(a, b) for why in _dataset(a, b, name)),
    ]


def coverage_differences(a: Results, b: Results) -> list[str]:
    """The datasets and samples that only one run has."""
    one_sided = sorted(a.datasets.keys() ^ b.datasets.keys())
    counts = {name: (a.datasets[name].n, b.datasets[name].n) for name in common(a, b)}
    return [
        *(Reason("{name} is in only one of them", name=name) for name in one_sided),
        *(_differs(f"samples of {name}", *both) for name, both in counts.items() if both[0] != both[1]),
    ]


def made_elsewhere(results: Results) -> bool:
    """Whether the answers were only scored here: their prompts, limits, precision and seed are not known."""
    return "identity" not in results.run


def common(a: Results, b: Results) -> list[str]:
    """The datasets both runs have."""
    return [name for name in a.datasets if name in b.datasets]


def counting_metric(name: str, results: Results) -> str | None:
    """The metric of a dataset that is compared: the one that counts, else the first of its task file.

    None: it could not be computed. Of a question that was asked several times it is the mean
    (`<metric>_avg@<n>`).
    """
    computed = results.datasets[name].metrics
    if name in task_names():
        counts = load_spec(name).counts
    else:
        counts = results.run.get("datasets", {}).get(name, {}).get("counts")
        if any(entry.dataset == name for entry in results.missing_metrics):
            # A run of an earlier version does not say which of them the missing one was.
            counts = counts or ""
        elif results.named(counts) not in computed:
            # It is switched off.
            counts = None
    if counts is not None:
        return metric if (metric := results.named(counts)) in computed else None
    return computed[0] if computed else None


def contested(rules: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each entry the facts of which another one under the same rules has a different value."""
    values: dict[tuple[str, str], set[str]] = {}
    entries = list(zip(rules, facts, strict=True))
    for rule, known in entries:
        for key, value in known.items():
            values.setdefault((rule, key), set()).add(canonical_json(value))
    return [
        {key: value for key, value in known.items() if len(values[rule, key]) > 1} for rule, known in entries
    ]


def model_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The model of an identity, without its chat template; what a server has is told from weights here."""
    model = {key: value for key, value in identity.get("model", {}).items() if key != "chat_template"}
    return {"server" if "server_model" in model else "weights": model} if model else {}


def short_hash(facts: Mapping[str, Any]) -> str:
    """Eight digits that tell facts apart."""
    return text_sha256(canonical_json(facts))[:8]


def own_task_facts(name: str, results: Results) -> dict[str, Any]:
    """What a user's own task was measured by, its rules aside: metric, data, and the words of the prompts.

    The task file may have changed since; prompts are known only where the answers were made here.
    """
    metric, rules = counting_metric(name, results), protocol_of(results)
    data = _decided(results, "data", name) or {}
    facts = {f"data {split}": digest for split, digest in data.items()}
    if metric is not None:
        facts["metric"] = f"{single_name(metric)} {results.scores[f'{name}_{metric}'].metric_version}"
    identity = results.run.get("identity", {})
    for what, key in (
        ("columns", "columns"),
        ("prompts", f"prompts, {rules}"),
        ("max_new_tokens", f"length, {rules}"),
    ):
        if (value := identity.get(what, {}).get(name)) is not None:
            facts[key] = value
    return facts


def _dataset(a: Results, b: Results, name: str) -> Iterator[str]:
    data: list[Any] = [_decided(results, "data", name) for results in (a, b)]
    sides = {"data": data}
    if not (made_elsewhere(a) or made_elsewhere(b)):
        for what, kind in (("prompts", "prompts"), ("max_new_tokens", "token limit")):
            sides[kind] = [_decided(results, what, name) for results in (a, b)]
    elif shared := set(data[0] or ()) & set(data[1] or ()):
        # The examples of prompts made elsewhere are as little known as the prompts.
        sides["data"] = [{split: one[split] for split in sorted(shared)} for one in data]
    for kind, (first, second) in sides.items():
        if first != second:
            yield _differs(f"{kind} of {name}", first, second)
    metrics = [counting_metric(name, results) for results in (a, b)]
    # How often a question was asked is one of the options.
    single = [metric and single_name(metric) for metric in metrics]
    if single[0] != single[1]:
        yield _differs(f"metric of {name}", *metrics)
    elif metrics[0] is not None and metrics[1] is not None:
        keys = [f"{name}_{metric}" for metric in metrics]
        versions = [results.scores[key].metric_version for results, key in zip((a, b), keys, strict=True)]
        if versions[0] != versions[1]:
            yield _differs(f"version of {keys[0]}", *versions)


def _decided(results: Results, what: str, name: str) -> Any:
    """An entry of a run's identity for a dataset; completions of another tool have only the data's hashes."""
    if made_elsewhere(results) and what == "data":
        return results.run.get("datasets", {}).get(name, {}).get("sha256")
    return results.run.get("identity", {}).get(what, {}).get(name)


def _differs(what: str, first: Any, second: Any) -> str:
    return Reason(
        "{what} differs: {first} and {second}", what=what, first=_short(first), second=_short(second)
    )


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    text = "-" if value is None else str(value)
    is_hash = len(text) == 64 and all(sign in "0123456789abcdef" for sign in text)
    return f"{text[:12]}..." if is_hash else text
