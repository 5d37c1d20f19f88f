"""What decides a run's completions, and so names its folder; and the options that can move a score.

Not in the identity: `limit` (a larger one continues a smaller), batch size, workers and device (in
float32 they change no output; in bfloat16 they change some by rounding, which `certify` measures),
clean-up and metric options (scoring can be repeated).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from evalkit.core.config import (
    Config,
    GenerationConfig,
    Parser,
    PromptForm,
    ProtocolConfig,
    ReasoningConfig,
    SuiteConfig,
)
from evalkit.core.text import text_sha256
from evalkit.core.types import Sampling
from evalkit.engines.base import GENERATION_VERSION, SAMPLING_VERSION
from evalkit.records.results import (
    PROTOCOL_FEW_SHOTS,
    PROTOCOL_LIMIT,
    PROTOCOL_RESAMPLES,
    PROTOCOL_SPLIT,
    ProtocolRecord,
)
from evalkit.runs.suite import sample_limit
from evalkit.tasks.load import Task
from evalkit.tasks.prompts import Asking, PromptTemplate
from evalkit.tasks.spec import DataSpec

if TYPE_CHECKING:
    from evalkit.engines.local.chat_template import ChatTemplate
    from evalkit.engines.models import ResolvedModel


def run_identity(
    config: Config,
    tasks: tuple[Task, ...],
    model: "ResolvedModel",
    asking: Asking,
    *,
    family: str,
    dtype: str,
    left_out: Sequence[str] = (),
    chat_template: "ChatTemplate | None" = None,
) -> dict[str, Any]:
    """Everything a completion depends on, as plain JSON values.

    Args:
        config: the options.
        tasks: the datasets, with the hashes of the files they were read from.
        model: the model, with the hashes or the commit that identify it.
        asking: how the samples are asked.
        family: the engine family: engines of one family compute alike.
        dtype: the data type in use, `auto` resolved.
        left_out: tokens that the tokenizer would put behind every prompt.
        chat_template: of chats; None: prompts are text, or only a server has it.
    """
    generation: dict[str, Any] = {
        "do_sample": config.generation.do_sample,
        "from_model": config.generation.from_model,
    }
    if any(generation.values()):
        generation["sampling_version"] = SAMPLING_VERSION
    usual = asdict(Sampling())
    generation |= {key: value for key, value in asdict(asking.sampling).items() if value != usual[key]}
    own: dict[str, Any] = {}
    if shots := differing_few_shots({task.name: len(task.few_shots) for task in tasks}, config):
        own["task_few_shots"] = shots
    if columns := {task.name: _columns(task.spec.data) for task in tasks if task.spec.data is not None}:
        own["columns"] = columns
    template = asking.template
    if template != PromptTemplate():
        own["template"] = {"prompt": template.prompt, "few_shot": template.few_shot}
    if asking.chat is not None:
        own["chat"] = {**asdict(asking.chat), "template_args": model.config.chat_template_args}
        if chat_template is not None:
            own["chat"]["template_sha256"] = text_sha256(chat_template)
            if chat_template.has_clock and family != "api":
                own["template_date"] = chat_template.date
    if asking.thoughts is not None:
        own["reasoning"] = asking.thoughts.identity
    if asking.samples > 1:
        # More samples continue fewer; a single one has the seed of the run.
        own["seeds"] = "of each sample"
    return {
        "generation_version": GENERATION_VERSION,
        "protocol": config.protocol.name,
        "bos": config.protocol.bos.value,
        "model": model.identity,
        "data": {task.name: task.sha256 for task in tasks},
        "prompts": {task.name: _prompt_sha256(task, template) for task in tasks},
        "max_new_tokens": {task.name: task.spec.output_length for task in tasks},
        "split": config.split.value,
        "num_few_shots": config.num_few_shots,
        "seed": config.seed,
        "generation": generation,
        "dtype": dtype,
        "engine_family": family,
        **({"left_out": list(left_out)} if left_out else {}),
        **own,
    }


def differing_few_shots(shots: Mapping[str, int], config: Config) -> dict[str, int]:
    """The tasks whose number of examples is not that of the option `num_few_shots`."""
    return {name: count for name, count in shots.items() if count != config.num_few_shots}


def protocol_record(
    config: Config, dtype: str | None = None, task_few_shots: Mapping[str, int] | None = None
) -> ProtocolRecord:
    """The protocol of a configuration with every deviation from its preset, by option name.

    Args:
        config: the configuration of the run or the scoring.
        dtype: what the model ran in, once resolved; the preset's is bfloat16. None: not known.
        task_few_shots: the tasks that have another number of few-shots than `num_few_shots`.
    """
    protocol, standard = config.protocol, ProtocolConfig()
    pairs: dict[str, tuple[Any, Any]] = {
        "protocol.bos": (protocol.bos.value, standard.bos.value),
        "protocol.strip": (protocol.strip, standard.strip),
        "protocol.answer_regex": (protocol.answer_regex, None),
        "protocol.custom_prompt_template": (protocol.custom_prompt_template, None),
        "protocol.custom_fewshots_template": (protocol.custom_fewshots_template, None),
        "generation.do_sample": (config.generation.do_sample, False),
        "generation.from_model": (config.generation.from_model, False),
        "split": (config.split.value, PROTOCOL_SPLIT),
        "limit": (sample_limit(config.limit), PROTOCOL_LIMIT),
        "num_few_shots": (config.num_few_shots, PROTOCOL_FEW_SHOTS),
        "metrics.comet.checkpoint": (config.metrics.comet.checkpoint, Config().metrics.comet.checkpoint),
        "metrics.comet.dtype": (config.metrics.comet.dtype.value, "float32"),
        # On or off, BERTScore moves no other number.
        "metrics.bert_score": (config.metrics.bert_score, config.metrics.bert_score),
        "metrics.resamples": (config.metrics.resamples, PROTOCOL_RESAMPLES),
    }
    for task, shots in (task_few_shots or {}).items():
        pairs[f"suite.num_few_shots.{task}"] = (shots, config.num_few_shots)
    # Named only where they are used, so that the records of plain runs stay as they are.
    for name, given in _chat_options(config).items():
        pairs[name] = (given, None)
    if dtype is not None:
        pairs["dtype"] = (dtype, "bfloat16")
    if config.engine.name == "api" and config.engine.prompts is PromptForm.chat:
        pairs["engine.prompts"] = ("chat", "auto")
    return ProtocolRecord(
        name=protocol.name,
        options={key: given for key, (given, _) in pairs.items()},
        deviations={key: given for key, (given, preset) in pairs.items() if given != preset},
    )


def _chat_options(config: Config) -> dict[str, Any]:
    """The options about chats, thoughts and samples that differ from a plain run's."""
    suite, used = config.suite or SuiteConfig(), {}
    plain = SuiteConfig()
    for name in ("chat", "chat_turns", "system"):
        if (given := getattr(suite, name)) != getattr(plain, name):
            used[f"suite.{name}"] = given
    for name in ("temperature", "top_p", "top_k"):
        if (given := getattr(config.generation, name)) != getattr(GenerationConfig(), name):
            used[f"generation.{name}"] = given
    for name in ("start", "end", "pattern", "thought_length"):
        if (given := getattr(config.reasoning, name)) != getattr(ReasoningConfig(), name):
            used[f"reasoning.{name}"] = given
    if config.reasoning.parser is not Parser.auto:
        used["reasoning.parser"] = config.reasoning.parser.value
    for key, given in (config.model.chat_template_args if config.model else {}).items():
        used[f"model.chat_template_args.{key}"] = given
    if config.samples > 1:
        used["samples"] = config.samples
    return used


def _columns(data: DataSpec) -> dict[str, Any]:
    """How the rows of a user's own file become samples; the hash of the file does not tell."""
    return {"input": data.input, "output": data.output, "few_shots": data.few_shots}


def _prompt_sha256(task: Task, template: PromptTemplate) -> str:
    # The inputs are covered by the hash of the data (and the columns); this covers the words around them.
    return text_sha256(template.render(task.spec.instruction, task.few_shots, ""))
