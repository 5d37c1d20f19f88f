"""suite + data folder -> tasks with their samples: the start of every verb that needs samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.core.assets import default_data_dir
from evalkit.core.config import Config, Split, SuiteConfig, SuiteData, is_offline
from evalkit.core.errors import InputError
from evalkit.core.text import command
from evalkit.core.types import Sampling
from evalkit.core.words import t
from evalkit.records.results import PROTOCOL_LIMIT
from evalkit.records.unpacked import check_unchanged, packed_sums
from evalkit.tasks.load import MissingDataError, Task, load_bundled, load_task, prepared_path
from evalkit.tasks.prompts import Asking, ChatForm, PromptTemplate
from evalkit.tasks.spec import TaskSpec, few_shot_counts, load_spec
from evalkit.tasks.thoughts import Thoughts


@dataclass(frozen=True)
class LoadedSuite:
    """The available tasks of a suite, and the reason for each that is missing."""

    name: str
    tasks: tuple[Task, ...]
    missing: dict[str, str]
    warnings: tuple[str, ...]


def sample_limit(limit: int | None) -> int:
    """Samples per dataset for the option `limit`: the protocol's 100 by default; 0 means all."""
    return PROTOCOL_LIMIT if limit is None else max(limit, 0)


def suite_specs(config: Config) -> list[TaskSpec]:
    """The specifications of the suite's tasks, in its order.

    Raises:
        InputError: no suite, a suite without tasks, a task twice or unknown, or `num_few_shots` of a task
            that is not there.
    """
    if config.suite is None:
        raise InputError("no suite is given", fix="suite=jaster   (python -m evalkit list suites)")
    if not config.suite.tasks:
        raise InputError(
            f"the suite {config.suite.name} has no tasks",
            where="option suite.tasks",
            fix="suite=task suite.tasks=[jamp,janli]   (python -m evalkit list tasks)",
        )
    specs = [load_spec(name) for name in config.suite.tasks]
    names = [spec.name for spec in specs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"named twice: {', '.join(twice)}", where="option suite.tasks")
    suite_few_shots(config, specs)
    return specs


def suite_few_shots(config: Config, specs: Sequence[TaskSpec]) -> dict[str, int]:
    """The number of examples in the prompts of each task.

    Raises:
        InputError: `suite.num_few_shots` names a task that is not there, or a number below 0.
    """
    assert config.suite is not None
    return few_shot_counts(specs, config.suite.num_few_shots, config.num_few_shots)


def load_suite(config: Config, *, say: Callable[[str], None], few_shots: bool = True) -> LoadedSuite:
    """Loads the suite's datasets, preparing what is missing in the default folder when online.

    Args:
        config: the options.
        say: receives remarks for the terminal.
        few_shots: load the examples too; without them no train file is read.

    Raises:
        InputError: a dataset is missing (unless `allow_missing`), malformed, or too short.
    """
    specs = suite_specs(config)
    assert config.suite is not None
    shots = suite_few_shots(config, specs) if few_shots else {spec.name: 0 for spec in specs}
    if config.suite.data is SuiteData.bundled:
        return LoadedSuite(config.suite.name, _bundled(config, specs, shots), {}, ())
    data_dir = _data_dir(config, specs, say)
    packed = packed_sums(data_dir) if data_dir else {}
    tasks, missing = [], {}
    for spec in specs:
        try:
            tasks.append(_prepared(config, spec, shots[spec.name], data_dir or Path(), packed))
        except MissingDataError as error:
            if not config.allow_missing:
                raise
            missing[spec.name] = f"{error.path} is not there"
    if not tasks:
        raise InputError(
            "none of the suite's datasets is there",
            where=data_dir,
            fix=_prepare_command(config.suite, data_dir or Path()),
        )
    warnings = tuple(warning for task in tasks for warning in task.warnings)
    return LoadedSuite(config.suite.name, tuple(tasks), missing, warnings)


def _bundled(config: Config, specs: list[TaskSpec], shots: Mapping[str, int]) -> tuple[Task, ...]:
    if config.split is not Split.dev:
        raise InputError("the bundled items have one split: dev", where="option split")
    limit = sample_limit(config.limit)
    return tuple(load_bundled(spec, limit=limit, num_few_shots=shots[spec.name]) for spec in specs)


def _prepared(config: Config, spec: TaskSpec, shots: int, data_dir: Path, packed: dict[str, str]) -> Task:
    task = load_task(
        spec,
        data_dir,
        split=config.split.value,
        limit=sample_limit(config.limit),
        num_few_shots=shots,
        offline=is_offline(config),
    )
    for split, digest in task.sha256.items():
        check_unchanged(prepared_path(data_dir, split, spec.name), digest, data_dir, packed)
    return task


def _data_dir(config: Config, specs: list[TaskSpec], say: Callable[[str], None]) -> Path | None:
    """The folder of the prepared files; None where every task brings its own data."""
    assert config.suite is not None
    if config.data_dir is not None:
        chosen = Path(config.data_dir).expanduser()
        if not chosen.is_dir():
            raise InputError(
                "the data folder does not exist",
                where=f"data_dir={config.data_dir}",
                fix=_prepare_command(config.suite, chosen),
            )
        return chosen
    if all(spec.data is not None for spec in specs):
        return None
    data_dir = default_data_dir()
    if not is_offline(config):
        from evalkit.sources.prepare import prepare

        say(t("data: preparing what is missing in {folder}", folder=data_dir))
        mirror = Path(config.mirror).expanduser() if config.mirror else None
        prepare(specs, data_dir, mirror=mirror)
    return data_dir


def _prepare_command(suite: SuiteConfig, data_dir: Path) -> str:
    words = [f"suite={suite.name}", f"data_dir={data_dir}"]
    if suite.name == "task":
        words.insert(1, f"suite.tasks=[{','.join(suite.tasks)}]")
    return command("prepare", *words)


def asking_of(config: Config, tokenizer: Any | None) -> Asking:
    """How the samples of the suite are asked.

    Args:
        config: the options.
        tokenizer: the model's; None: only a server has it, or none is needed.

    Raises:
        InputError: options that contradict each other, a template that may not be used, or chats for a
            model without one.
    """
    assert config.suite is not None
    generation = config.generation
    sampling = Sampling(generation.do_sample, generation.temperature, generation.top_p, generation.top_k)
    if not generation.do_sample and sampling != Sampling():
        raise InputError(
            "temperature, top_p and top_k are for sampled generation",
            where="option generation",
            fix="add generation.do_sample=true",
        )
    if config.samples > 1 and not (generation.do_sample or generation.from_model):
        raise InputError(
            f"greedy search gives the same answer {config.samples} times",
            where=f"option samples={config.samples}",
            fix="generation=swallow, generation.from_model=true or generation.do_sample=true",
        )
    chat = ChatForm.of(config.suite)
    return Asking(
        template=PromptTemplate.of(config.protocol),
        sampling=sampling,
        seed=config.seed,
        chat=chat,
        thoughts=Thoughts.of(config.reasoning, tokenizer, chat=chat is not None),
        samples=config.samples,
    )


def missing_lines(suite: LoadedSuite) -> list[str]:
    """A line for each dataset that is not there, in the language in use."""
    return [t("missing: {name} ({why})", name=name, why=why) for name, why in suite.missing.items()]
