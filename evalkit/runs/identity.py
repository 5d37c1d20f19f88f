"""What decides a run's completions, and so names its folder; and the options that can move a score.

Not in the identity: `limit` (a larger one continues a smaller), batch size, workers and device (in
float32 they change no output; in bfloat16 they change some by rounding, which `certify` measures),
clean-up and metric options (scoring can be repeated).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from typing import Any

from evalkit.core.config import (
    CometConfig,
    Config,
    DataOptions,
    GenerationConfig,
    ProtocolConfig,
    SuiteConfig,
    ThoughtParser,
)
from evalkit.core.text import text_sha256
from evalkit.core.types import Sampling
from evalkit.engines.base import GENERATION_VERSION, SAMPLING_VERSION, Identified
from evalkit.engines.local.chat_template import ChatTemplate
from evalkit.records.results import (
    PROTOCOL_FEW_SHOTS,
    PROTOCOL_RESAMPLES,
    PROTOCOL_SPLIT,
    ProtocolRecord,
)
from evalkit.runs.suite import sample_limit, suite_specs
from evalkit.tasks import pfgen
from evalkit.tasks.load import Task
from evalkit.tasks.prompts import Asking, PromptTemplate
from evalkit.tasks.spec import DataSpec


def run_identity(
    identified: Identified,
    tasks: Sequence[Task],
    protocol: ProtocolConfig,
    generation: GenerationConfig,
    data: DataOptions,
    asking: Asking,
    *,
    left_out: Sequence[str] = (),
    chat_template: ChatTemplate | None = None,
) -> dict[str, Any]:
    """Everything a completion depends on, as plain JSON values.

    Args:
        identified: the model with its hashes, the engine family, and the precision.
        tasks: the datasets, with the hashes of the files they were read from.
        protocol, generation, data: the options of these names.
        asking: how the samples are asked.
        left_out: tokens that the tokenizer would put behind every prompt.
        chat_template: of chats; None: prompts are text, or only a server has it.
    """
    return {
        "generation_version": GENERATION_VERSION,
        "protocol": protocol.name,
        "bos": protocol.bos.value,
        "model": identified.model.identity,
        "data": {task.name: task.sha256 for task in tasks},
        "prompts": {task.name: asking.words_sha256(task) for task in tasks},
        "max_new_tokens": {task.name: asking.limit(task.spec) for task in tasks},
        "split": data.split.value,
        "num_few_shots": data.num_few_shots,
        "seed": asking.seed,
        "generation": _sampling(generation, asking.sampling),
        "dtype": identified.dtype,
        "engine_family": identified.family,
        **({"left_out": list(left_out)} if left_out else {}),
        **_unusual(identified, tasks, data, asking, chat_template),
    }


def _sampling(generation: GenerationConfig, sampling: Sampling) -> dict[str, Any]:
    """How tokens are chosen: what is not greedy."""
    chosen: dict[str, Any] = {"do_sample": generation.do_sample, "from_model": generation.from_model}
    if any(chosen.values()):
        chosen["sampling_version"] = SAMPLING_VERSION
    usual = asdict(Sampling())
    return chosen | {key: value for key, value in asdict(sampling).items() if value != usual[key]}


def _unusual(
    identified: Identified,
    tasks: Sequence[Task],
    data: DataOptions,
    asking: Asking,
    chat_template: ChatTemplate | None,
) -> dict[str, Any]:
    """What a run of the protocol's own prompts has not, so that its id stays."""
    own: dict[str, Any] = {}
    counts = {task.name: asking.shots(task) for task in tasks}
    if shots := differing_few_shots(counts, data.num_few_shots):
        own["task_few_shots"] = shots
    if columns := {task.name: _columns(task.spec.data) for task in tasks if task.spec.data is not None}:
        own["columns"] = columns
    if asking.template != PromptTemplate():
        own["template"] = {"prompt": asking.template.prompt, "few_shot": asking.template.few_shot}
    if asking.chat is not None:
        own["chat"] = {**asdict(asking.chat), "template_args": identified.model.config.chat_template_args}
        if chat_template is not None:
            own["chat"]["template_sha256"] = text_sha256(chat_template)
            if chat_template.has_clock and identified.family != "api":
                own["template_date"] = chat_template.date
    if asking.thoughts is not None:
        own["reasoning"] = asking.thoughts.identity
    return own | asking.identity


def differing_few_shots(shots: Mapping[str, int], usual: int) -> dict[str, int]:
    """The tasks whose number of examples is not the `usual` one, that of the option `num_few_shots`."""
    return {name: count for name, count in shots.items() if count != usual}


def protocol_record(config: Config, identity: Mapping[str, Any]) -> ProtocolRecord:
    """The protocol of a run or a scoring with every deviation from its preset, by option name.

    Args:
        config: the options.
        identity: what decided the completions, as far as it is known. Of it count `dtype` (the preset's is
            bfloat16) and `task_few_shots`, the tasks that have another number than `num_few_shots`.
    """
    protocol, generation, metrics, data = config.protocol, config.generation, config.metrics, config.data
    standard, suite, usual = ProtocolConfig(), config.suite or SuiteConfig(), sample_limit(None)
    own: dict[str, Any] = {}
    if suite.protocol is not None:
        # Another protocol asks as its suite and its task files say.
        usual = sample_limit(suite.limit)
        shots = {spec.name: spec.num_few_shots for spec in suite_specs(suite)}
        own = {"suite.limit": usual, "suite.chat": True}
        own |= {f"suite.num_few_shots.{task}": count for task, count in shots.items()}
    if suite.pfgen:
        own |= pfgen.PRESET
    pairs: dict[str, tuple[Any, Any]] = {
        "protocol.bos": (protocol.bos.value, standard.bos.value),
        "protocol.strip": (protocol.strip, standard.strip),
        "protocol.answer_regex": (protocol.answer_regex, None),
        "protocol.custom_prompt_template": (protocol.custom_prompt_template, None),
        "protocol.custom_fewshots_template": (protocol.custom_fewshots_template, None),
        "generation.do_sample": (generation.do_sample, own.get("generation.do_sample", False)),
        "generation.from_model": (generation.from_model, False),
        "split": (data.split.value, PROTOCOL_SPLIT),
        "limit": (sample_limit(data.limit), usual),
        "num_few_shots": (data.num_few_shots, own.get("num_few_shots", PROTOCOL_FEW_SHOTS)),
        "metrics.comet.checkpoint": (metrics.comet.checkpoint, CometConfig().checkpoint),
        "metrics.comet.dtype": (metrics.comet.precision.value, "float32"),
        # On or off, BERTScore moves no other number.
        "metrics.bert_score": (metrics.bert_score, metrics.bert_score),
        "metrics.resamples": (metrics.resamples, PROTOCOL_RESAMPLES),
    }
    for task, count in identity.get("task_few_shots", {}).items():
        name = f"suite.num_few_shots.{task}"
        pairs[name] = (count, own.get(name, data.num_few_shots))
    if metrics.pass_at:
        # A further figure of the same answers.
        pairs["metrics.pass_at"] = (list(metrics.pass_at), list(metrics.pass_at))
    if (dtype := identity.get("dtype")) is not None:
        pairs["dtype"] = (dtype, "bfloat16")
    used = used_options(config)
    if not identity.get("reasoning") and config.reasoning.parser in (ThoughtParser.auto, ThoughtParser.none):
        # Without a rule nothing reads the options of one.
        used = {name: given for name, given in used.items() if not name.startswith("reasoning.")}
    pairs |= {name: (given, own.get(name)) for name, given in used.items()}
    return ProtocolRecord(
        name=protocol.name,
        options={key: given for key, (given, _) in pairs.items()},
        deviations={key: given for key, (given, preset) in pairs.items() if given != preset},
    )


def used_options(config: Config) -> dict[str, Any]:
    """The options about chats, thoughts, samples and COMET that differ from a plain run's, by name.

    They are recorded only where they are used, so that the records of plain runs stay as they are.
    """
    used: dict[str, Any] = {"engine.prompts": "chat"} if config.engine.chat_prompts else {}
    suite = config.suite or SuiteConfig()
    parts: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
        ("suite", suite, ("chat", "chat_turns", "system", "limit")),
        ("pfgen", config.pfgen, ("mode",)),
        ("metrics.comet", config.metrics.comet, ("encoder",)),
        ("generation", config.generation, ("temperature", "top_p", "top_k", "output_length")),
        ("reasoning", config.reasoning, ("parser", "start", "end", "pattern", "thought_length")),
    )
    for section, options, names in parts:
        usual = type(options)()
        for name in names:
            if (given := getattr(options, name)) != getattr(usual, name):
                used[f"{section}.{name}"] = given.value if isinstance(given, Enum) else given
    for key, given in (config.model.chat_template_args if config.model else {}).items():
        used[f"model.chat_template_args.{key}"] = given
    if suite.pfgen:
        return used
    return used | ({"samples": config.samples} if config.samples > 1 else {})


def _columns(data: DataSpec) -> dict[str, Any]:
    """How the rows of a user's own file become samples; the hash of the file does not tell."""
    return {"input": data.input, "output": data.output, "few_shots": data.few_shots}
