"""tasks/*.yaml, validated: a dataset's format, metrics, source and licence."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path

from omegaconf import MISSING

from evalkit.core import assets
from evalkit.core.errors import InputError, foreign
from evalkit.core.files import read_options
from evalkit.core.text import did_you_mean
from evalkit.metrics import METRICS, metric_names
from evalkit.metrics.metric import InstructionMetric
from evalkit.metrics.prediction import BLANK_LINE
from evalkit.metrics.repeats import repeat_ids

PROTOCOL_VERSION = "1.3.1"
CATEGORIES = ("EL", "FA", "HE", "MC", "MR", "MT", "NLI", "QA", "RC")
SPLITS = ("train", "dev", "test")

_NAME = re.compile(r"[\w-][\w.-]*")
# 255 bytes are the most that file systems take, and temporary files have the machine in their names.
_LONGEST_NAME = 160
_SHA256 = re.compile(r"[0-9a-f]{64}")


class AnswerKind(Enum):
    """What a well-formed answer is: free text, one of a closed set of labels, a number, or whatever
    follows the instructions in the prompt (`evalkit.metrics.ifeval`).
    """

    text = "text"
    label = "label"
    number = "number"
    instructions = "instructions"


class SplitRule(Enum):
    """How a dataset's upstream samples become train, dev and test (`evalkit.sources.splits`).

    `upstream`: as upstream has them. `all_dev`: all samples are dev, there is no other split.
    `pool_90_10`: a shuffled pool is train and dev, another file is test. `all_80_10_10`,
    `articles_80_10_10`: all samples, or all articles, shuffled and cut. `examples_and_halves`: examples
    are train, the shuffled rest is halved. `subject_halves`: each subject shuffled and halved, 16 of each
    half are train. `upstream_balanced`: upstream's splits, the subjects shuffled and taken in turn.
    """

    upstream = "upstream"
    all_dev = "all_dev"
    pool_90_10 = "pool_90_10"
    all_80_10_10 = "all_80_10_10"
    articles_80_10_10 = "articles_80_10_10"
    examples_and_halves = "examples_and_halves"
    subject_halves = "subject_halves"
    upstream_balanced = "upstream_balanced"


class CommercialUse(Enum):
    """Whether the licence lets a dataset be used commercially; `see_note`: `license_note` says how far."""

    allowed = "allowed"
    not_allowed = "not_allowed"
    see_note = "see_note"


@dataclass
class AnswerSpec:
    """The answer format of a dataset; `labels` is the closed set when `kind` is label."""

    kind: AnswerKind = AnswerKind.text
    labels: list[str] = field(default_factory=list)


@dataclass
class UpstreamSpec:
    """Which rows of tasks/sources.csv a dataset is made of, by which converter and split rule."""

    source: str = MISSING
    converter: str = MISSING
    split: SplitRule = MISSING

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the rule makes."""
        return ("dev",) if self.split is SplitRule.all_dev else SPLITS


@dataclass
class DataSpec:
    """A user's own data: one file (`file`, relative to the YAML) or a dataset of the hub (`hub`).

    `input` and `output` are a column each, or a template of columns in braces. The examples come
    from `few_shots_file` or the hub split `few_shots_split`; without one, the first `few_shots`
    rows are the examples and are not evaluated. `split`, `subset`, `revision` belong to `hub`.
    Records with instructions have these in place of `output`, and no examples.
    """

    file: str | None = None
    few_shots_file: str | None = None
    hub: str | None = None
    subset: str | None = None
    revision: str | None = None
    split: str = "test"
    few_shots_split: str | None = None
    input: str = MISSING
    output: str = ""
    few_shots: int = 4


@dataclass
class TaskSpec:
    """One tasks/<name>.yaml. `counts` is the metric that enters the category (null: none does; of a
    user's own task with a category, the first).

    `published` maps the protocol version to the sha256 of each prepared split that was published,
    `upstream` to where the data comes from; a task of the user's own has `data` instead.
    `num_few_shots` is the number of examples in each prompt (null: that of the command).
    """

    name: str = MISSING
    category: str | None = None
    instruction: str = MISSING
    output_length: int = MISSING
    metrics: list[str] = MISSING
    counts: str | None = None
    num_few_shots: int | None = None
    answer: AnswerSpec = field(default_factory=AnswerSpec)
    published: dict[str, dict[str, str]] = field(default_factory=dict)
    upstream: dict[str, UpstreamSpec] = field(default_factory=dict)
    data: DataSpec | None = None
    license: str | None = None
    commercial_use: CommercialUse | None = None
    license_note: str | None = None
    citation: str | None = None
    homepage: str | None = None

    @property
    def verbatim(self) -> bool:
        """Whether the input is the whole prompt, asked as a chat, and the whole answer is checked."""
        return self.answer.kind is AnswerKind.instructions

    @property
    def ends(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return () if self.verbatim else (BLANK_LINE,)

    def ids(self, sample_id: str, samples: int) -> list[str]:
        """The ids of the answers to a question that is asked `samples` times."""
        return repeat_ids(sample_id, samples)

    def differing(self, sha256: Mapping[str, str]) -> list[str]:
        """The splits among `sha256` (split -> hash of the prepared file) that are not as published."""
        published = self.published.get(PROTOCOL_VERSION, {})
        return [split for split, digest in sha256.items() if published.get(split, digest) != digest]


def task_names() -> list[str]:
    """The names of all shipped tasks, sorted."""
    return list(_names_in(assets.TASKS))


@cache
def _names_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def is_task_file(name: str) -> bool:
    """Whether a task is named by the path of a YAML file, not as one of the shipped tasks."""
    return name.endswith((".yaml", ".yml"))


def load_spec(name: str) -> TaskSpec:
    """The validated specification of a shipped task, or of a task YAML file given by its path.

    Raises:
        InputError: unknown name (with the near ones), malformed YAML, unknown key or wrong type.
    """
    if is_task_file(name):
        return _load_spec_file(Path(name).expanduser())
    if name not in task_names():
        raise InputError(
            f"unknown task {name!r}{did_you_mean(name, task_names())}",
            fix="evalkit list tasks",
        )
    return _load_shipped(assets.TASKS / f"{name}.yaml")


@cache
def _load_shipped(path: Path) -> TaskSpec:
    return _load_spec_file(path)


def _load_spec_file(path: Path) -> TaskSpec:
    spec = read_options(path, TaskSpec, "task file")
    with foreign("task file is not valid", where=path):
        _check_spec(spec, path)
        if spec.data is not None:
            _check_data(spec, spec.data, path)
    if spec.data is not None:
        if spec.category is not None and spec.counts is None:
            spec.counts = spec.metrics[0]
        if spec.verbatim:
            if spec.num_few_shots:
                raise _refusal(path, "num_few_shots", "answer.kind: instructions has no examples")
            spec.data.few_shots, spec.num_few_shots = 0, 0
        spec.data.file = _relative_to(path, spec.data.file)
        spec.data.few_shots_file = _relative_to(path, spec.data.few_shots_file)
    return spec


def few_shot_counts(specs: Sequence[TaskSpec], given: Mapping[str, int], default: int) -> dict[str, int]:
    """How many examples each prompt has, by task: as `given`, else as in its file, else `default`.

    Args:
        specs: the tasks of a suite.
        given: the option `suite.num_few_shots`.
        default: the option `num_few_shots`.

    Raises:
        InputError: `given` names a task that the suite does not have, or a number below 0.
    """
    names = [spec.name for spec in specs]
    for name, count in given.items():
        where = f"option suite.num_few_shots.{name}"
        if name not in names:
            raise InputError(
                f"the suite has no task {name!r}{did_you_mean(name, names)}",
                where=where,
                fix=f"one of {', '.join(names)}",
            )
        if count and next(spec for spec in specs if spec.name == name).verbatim:
            raise InputError("the prompts of this task have no examples", where=where, fix="leave it out")
        if count < 0:
            raise InputError(f"suite.num_few_shots.{name}={count} is below 0", where=where)
    own = {spec.name: default if spec.num_few_shots is None else spec.num_few_shots for spec in specs}
    return own | dict(given)


def _refusal(path: Path, field_name: str, problem: str) -> InputError:
    return InputError(f"task file is not valid: {problem}", where=f"{path}, field {field_name}")


def _relative_to(path: Path, name: str | None) -> str | None:
    """The path of a file that the task file at `path` names."""
    return None if name is None else str(path.parent / Path(name).expanduser())


def _check_spec(spec: TaskSpec, path: Path) -> None:
    def refuse(field_name: str, problem: str) -> None:
        raise _refusal(path, field_name, problem)

    if not _NAME.fullmatch(spec.name):
        refuse("name", f"{spec.name!r} must be letters, digits, '-', '_' and '.', not beginning with '.'")
    if len(spec.name.encode()) > _LONGEST_NAME:
        refuse("name", f"it has more than {_LONGEST_NAME} bytes in UTF-8, too many for the names of files")
    if spec.category is not None and spec.category not in CATEGORIES:
        refuse("category", f"{spec.category!r} is none of {', '.join(CATEGORIES)}")
    if spec.output_length < 1:
        refuse("output_length", f"{spec.output_length} is not a number of tokens above 0")
    if spec.num_few_shots is not None and spec.num_few_shots < 0:
        refuse("num_few_shots", f"{spec.num_few_shots} is below 0")
    if not spec.metrics:
        refuse("metrics", "no metric is named")
    for metric in spec.metrics:
        if metric not in metric_names():
            near = did_you_mean(metric, metric_names())
            refuse("metrics", f"there is no metric {metric!r}{near}")
    if spec.counts is not None and spec.counts not in spec.metrics:
        refuse("counts", f"{spec.counts!r} is none of this task's metrics: {', '.join(spec.metrics)}")
    if (spec.answer.kind is AnswerKind.label) != bool(spec.answer.labels):
        refuse("answer.labels", "labels and only labels need a closed set")
    if any(isinstance(METRICS[metric], InstructionMetric) != spec.verbatim for metric in spec.metrics):
        refuse("metrics", "answer.kind: instructions goes with instruction_strict and the like alone")
    if spec.verbatim and spec.instruction:
        refuse("instruction", 'the input is the whole prompt of answer.kind: instructions; give ""')
    for field_name, versions in (("published", spec.published), ("upstream", spec.upstream)):
        for version in versions:
            if version != PROTOCOL_VERSION:
                refuse(field_name, f"{version!r} is not {PROTOCOL_VERSION}, the only protocol version")
    for version, hashes in spec.published.items():
        for split, digest in hashes.items():
            if split not in SPLITS or not _SHA256.fullmatch(digest):
                refuse(f"published.{version}.{split}", "a sha256 for train, dev or test was expected")


def _check_data(spec: TaskSpec, data: DataSpec, path: Path) -> None:
    if spec.upstream:
        raise _refusal(path, "data", "a task has data of its own or an upstream, not both")
    if (data.file is None) == (data.hub is None):
        raise _refusal(path, "data", "one of file and hub is needed")
    # pfgen has no task file.
    if spec.name in (*task_names(), "pfgen"):
        raise _refusal(
            path, "name", f"{spec.name!r} is a shipped dataset: call data of your own something else"
        )
    if spec.verbatim == bool(data.output):
        problem = "instructions are read from instruction_id_list and kwargs" if data.output else "is missing"
        raise _refusal(path, "data.output", problem)
    if data.few_shots < 0:
        raise _refusal(path, "data.few_shots", f"{data.few_shots} is not a number of examples")
    if data.hub is None and (data.subset or data.revision or data.few_shots_split):
        raise _refusal(path, "data", "subset, revision and few_shots_split belong to hub")
    if data.hub is not None and data.few_shots_file:
        raise _refusal(path, "data.few_shots_file", "with hub the examples come from few_shots_split")
