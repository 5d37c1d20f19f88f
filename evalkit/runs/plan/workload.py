"""What a suite asks for in tokens: from its real prompts where they are here, else from kept counts.

The figures of MT-Bench are from sections 2 and 10 of its protocol notes: prompts counted with the
llm-jp-3 tokenizer, judge prompts with cl100k.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from evalkit.core import assets
from evalkit.core.config import DataOptions, SuiteConfig, SuiteData
from evalkit.core.errors import FetchError, InputError
from evalkit.core.types import REST_OF_CONTEXT, Message, Request
from evalkit.engines.local import prefixes
from evalkit.engines.local.chat_template import as_text
from evalkit.mtbench.presets import DEFAULT_PRESET, LengthRule, Preset, load_preset
from evalkit.runs.plan.counting import TokenCounter
from evalkit.runs.suite import data_folder, load_suite, sample_limit, suite_specs
from evalkit.tasks.load import MissingDataError, Task, load_bundled, load_task
from evalkit.tasks.prompts import Asking
from evalkit.tasks.spec import AnswerKind, TaskSpec, few_shot_counts

# A typical answer is as long as the gold one, and ends with a blank line.
_END_TOKENS = 2
_SHOTS_COUNTED = 4
MT_BENCH = "mt-bench"
QUESTIONS = 80
# Mean tokens of the first prompt, and of what the second turn adds to prompt and first answer.
FIRST_PROMPT, SECOND_PROMPT = 95.0, 36.0
# Mean tokens of an answer: 193 of ELYZA-7b-fast-instruct's, 182 of the gpt-4 references.
TYPICAL_ANSWER = 190.0


@dataclass(frozen=True, slots=True)
class PlannedAnswer:
    """One answer to make: its prompt's `own` tokens follow the group's prefix and `cached` ones.

    `most` is the limit of new tokens, `typical` how many are to be expected, a thought left aside.
    """

    own: float
    most: int
    typical: float
    cached: float = 0.0


@dataclass(frozen=True)
class PlannedGroup:
    """Items whose prompts begin with the same `prefix` tokens, which are computed once.

    The first `above` of them are those of another group.
    """

    prefix: float
    items: tuple[PlannedAnswer, ...]
    above: float = 0.0


@dataclass(frozen=True)
class DatasetCount:
    """The tokens of one dataset; `source` says whether its prompts were here.

    `samples` counts answers. `prompt_tokens` counts every prompt whole, `computed_tokens` what is left
    when shared prefixes are computed once. `new_tokens_typical` is None where the model thinks first.
    """

    name: str
    samples: int
    prompt_tokens: float
    computed_tokens: float
    prefix_tokens: float
    new_tokens_most: int
    new_tokens_typical: float | None
    source: Literal["data", "bundled", "kept counts"]


@dataclass(frozen=True)
class Workload:
    """All work of a suite, with the names and reasons of datasets that cannot be counted."""

    groups: tuple[PlannedGroup, ...]
    datasets: tuple[DatasetCount, ...]
    left_out: dict[str, str]


def suite_workload(
    suite: SuiteConfig,
    data: DataOptions,
    asking: Asking,
    counter: TokenCounter,
    *,
    tokenizer: Any | None = None,
    context: int | None = None,
) -> Workload:
    """Counts a suite of datasets; nothing is fetched or prepared.

    Args:
        suite: the suite.
        data: the samples to read, and where the files are.
        asking: how the samples are asked.
        counter: counts tokens.
        tokenizer: renders chats; None: only their words are counted.
        context: the model's, which ends thoughts without a limit; None: not known.

    Raises:
        InputError: no suite, an unknown task, a data folder that does not exist, malformed data, or
            no dataset that could be counted.
    """
    here: list[tuple[Task, list[Request]]] = []
    kept: list[TaskSpec] = []
    specs = suite_specs(suite)
    shots = few_shot_counts(specs, suite.num_few_shots, data.num_few_shots)
    for spec in specs:
        task = _task(spec, shots[spec.name], suite, data)
        if task is None:
            kept.append(spec)
        else:
            here.append((task, list(asking.requests(task))))
    groups, rows = _counted(here, counter, asking, tokenizer, context) if here else ([], [])
    table, left_out = _kept_counts(), {}
    for spec in kept:
        if (counts := table.get(spec.name)) is None:
            left_out[spec.name] = "its data is not here and no counts of it are kept"
            continue
        group, row = _from_counts(spec, counts, sample_limit(data.limit), shots[spec.name], asking, context)
        groups.append(group)
        rows.append(row)
    if not rows:
        raise InputError(
            "nothing of the suite can be counted: its data is not here",
            where=data_folder(suite, data),
            fix=f"evalkit prepare suite={suite.name}   (or data_dir=DIR)",
        )
    order = {spec.name: place for place, spec in enumerate(specs)}
    return Workload(tuple(groups), tuple(sorted(rows, key=lambda row: order[row.name])), left_out)


def _task(spec: TaskSpec, shots: int, suite: SuiteConfig, data: DataOptions) -> Task | None:
    """The dataset with its samples; None when it is not on this machine."""
    limit = sample_limit(data.limit)
    if suite.pfgen:
        try:
            return load_suite(suite, replace(data, offline=True), say=lambda line: None).tasks[0]
        except FetchError:
            return None
    if suite.data is SuiteData.bundled:
        return load_bundled(spec, limit=limit, num_few_shots=shots)
    folder = data_folder(suite, data)
    try:
        return load_task(spec, folder, split=data.split.value, limit=limit, num_few_shots=shots, offline=True)
    except MissingDataError:
        return None


def _counted(
    here: Sequence[tuple[Task, Sequence[Request]]],
    counter: TokenCounter,
    asking: Asking,
    tokenizer: Any | None,
    context: int | None,
) -> tuple[list[PlannedGroup], list[DatasetCount]]:
    # Answers to one question may have one prompt, which is rendered once.
    once = dict.fromkeys(one.prompt for _, asked in here for one in asked)
    tokens = dict(zip(once, counter.ids([_text(prompt, tokenizer) for prompt in once]), strict=True))
    prompts = [tokens[one.prompt] for _, asked in here for one in asked]
    lengths = list(map(counter.lengths, prompts))
    items = _items(here, lengths, counter, asking, context)
    owners = [place for place, (_, asked) in enumerate(here) for _ in asked]
    computed, shared = [0.0] * len(here), [0.0] * len(here)
    groups: list[PlannedGroup] = []

    def count(group: prefixes.PrefixGroup, above: float) -> None:
        first = next(some.members for some in prefixes.each([group]) if some.members)[0]
        prefix = counter.lengths(prompts[first][: group.length])
        computed[owners[first]] += prefix - above
        members = []
        for index in group.members:
            own = counter.lengths(prompts[index][group.length :])
            computed[owners[index]] += own
            shared[owners[index]] += prefix
            members.append(replace(items[index], own=own))
        groups.append(PlannedGroup(prefix, tuple(members), above))
        for inside in group.groups:
            count(inside, prefix)

    for group in prefixes.shared_prefixes(prompts):
        count(group, 0.0)
    rows = []
    for place, (task, asked) in enumerate(here):
        mine = [index for index, owner in enumerate(owners) if owner == place]
        row = DatasetCount(
            name=task.name,
            samples=len(asked),
            prompt_tokens=sum(lengths[index] for index in mine),
            computed_tokens=computed[place],
            prefix_tokens=shared[place] / max(1, len(mine)),
            new_tokens_most=sum(items[index].most for index in mine),
            new_tokens_typical=_expected(asking, [items[index] for index in mine]),
            source="bundled" if "bundled" in task.sha256 else "data",
        )
        rows.append(row)
    return groups, rows


def _items(
    here: Sequence[tuple[Task, Sequence[Request]]],
    lengths: Iterable[float],
    counter: TokenCounter,
    asking: Asking,
    context: int | None,
) -> list[PlannedAnswer]:
    """The answers to prompts of these `lengths`; which of their tokens are their own is not known yet."""
    items, left = [], iter(lengths)
    for task, asked in here:
        golds = {
            key: length
            for sample, length in zip(task.samples, _typical(counter, task), strict=True)
            for key in task.spec.ids(sample.id, asking.samples)
        }
        for request in asked:
            usual = _usual(asking.limit(task.spec), golds[request.id])
            items.append(PlannedAnswer(0.0, _most(asking, task.spec, next(left), context), usual))
    return items


def _text(prompt: str | tuple[Message, ...], tokenizer: Any | None) -> str:
    """A prompt as it is counted: without a tokenizer nobody knows what its template adds to the words."""
    if isinstance(prompt, str) or tokenizer is not None:
        return as_text(prompt, tokenizer)
    return "\n".join(message.content for message in prompt)


def _most(asking: Asking, spec: TaskSpec, prompt: float, context: int | None) -> int:
    """The most new tokens of an answer with its thought, which the context ends where nothing else does."""
    answer = asking.limit(spec)
    if asking.thoughts is None:
        return answer
    most = asking.thoughts.limit(answer)
    if most < REST_OF_CONTEXT:
        return most
    return answer if context is None else max(1, context - math.ceil(prompt))


def _expected(asking: Asking, items: Sequence[PlannedAnswer]) -> float | None:
    """The tokens to expect; None: nobody knows how long a model thinks."""
    return sum(item.typical for item in items) if asking.thoughts is None else None


def _usual(most: int, gold: float) -> float:
    return min(float(most), gold + _END_TOKENS)


def _typical(counter: TokenCounter, task: Task) -> list[float]:
    """The tokens of an answer to each question."""
    if task.spec.answer.kind is AnswerKind.instructions:
        return [TYPICAL_ANSWER] * len(task.samples)
    return _lengths(counter, [sample.gold for sample in task.samples])


def _lengths(counter: TokenCounter, texts: Sequence[str]) -> list[float]:
    """Tokens of texts without BOS, as inside a prompt."""
    empty = counter.lengths(counter.ids([""])[0])
    return [counter.lengths(ids) - empty for ids in counter.ids(texts)]


# --- kept counts -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counts:
    """conf/counts.csv: tokens of llm-jp-3's tokenizer, means over the protocol's dev samples."""

    dev_samples: int
    instruction: float
    shots: float
    input: float
    gold: float


def _kept_counts() -> dict[str, _Counts]:
    with (assets.CONF / "counts.csv").open(encoding="utf-8", newline="") as file:
        return {
            line["dataset"]: _Counts(
                dev_samples=int(line["dev_samples"]),
                instruction=float(line["instruction_tokens"]),
                shots=float(line["shots_tokens"]),
                input=float(line["input_tokens"]),
                gold=float(line["gold_tokens"]),
            )
            for line in csv.DictReader(file)
        }


def _from_counts(
    spec: TaskSpec, counts: _Counts, limit: int, shots: int, asking: Asking, context: int | None
) -> tuple[PlannedGroup, DatasetCount]:
    samples = (min(limit, counts.dev_samples) if limit else counts.dev_samples) * asking.samples
    prefix = counts.instruction + counts.shots * shots / _SHOTS_COUNTED
    typical = _usual(asking.limit(spec), counts.gold)
    most = _most(asking, spec, prefix + counts.input, context)
    items = (PlannedAnswer(counts.input, most, typical),) * samples
    row = DatasetCount(
        name=spec.name,
        samples=samples,
        prompt_tokens=samples * (prefix + counts.input),
        computed_tokens=prefix + samples * counts.input,
        prefix_tokens=prefix,
        new_tokens_most=samples * most,
        new_tokens_typical=_expected(asking, items),
        source="kept counts",
    )
    return PlannedGroup(prefix, items), row


# --- MT-Bench ----------------------------------------------------------------------------------


def turns_of(preset: Preset, limit: int | None) -> tuple[list[list[PlannedGroup]], DatasetCount]:
    """The work of each turn (the second waits for the first), and the counts of both together.

    Args:
        preset: how the answers are made.
        limit: questions to answer; None, 0 or below: all.
    """
    default = load_preset(DEFAULT_PRESET)
    rule = preset.length.rule or default.length.rule
    tokens = preset.length.tokens or default.length.tokens or 0
    questions = min(limit, QUESTIONS) if limit and limit > 0 else QUESTIONS
    answers = questions * preset.sampling.answers
    turns, prompt, computed, most, typical = [], 0.0, 0.0, 0, 0.0
    context, own = 0.0, FIRST_PROMPT
    for _ in preset.turns:
        used = context + own if rule is LengthRule.total else 0.0
        longest = max(1, int(tokens - used))
        usual = min(TYPICAL_ANSWER, longest)
        item = PlannedAnswer(own, longest, usual, cached=context)
        turns.append([PlannedGroup(0.0, (item,) * answers)])
        prompt += answers * (context + own)
        computed += answers * own
        most += answers * longest
        typical += answers * usual
        # What the first turn has computed is kept for the second.
        context, own = context + own + usual, SECOND_PROMPT
    samples = answers * len(preset.turns)
    row = DatasetCount(MT_BENCH, samples, prompt, computed, 0.0, most, typical, "kept counts")
    return turns, row
