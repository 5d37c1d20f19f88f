"""What decides a run's completions, and so names its folder.

Left out on purpose: `limit` (a larger one continues a smaller), batch size, workers and device
(in float32 they change no output; in bfloat16 they change some by rounding, which `certify` measures),
clean-up and metric options (scoring can be done again).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evalkit.core.config import Config
from evalkit.core.text import text_sha256
from evalkit.engines.base import GENERATION_VERSION, SAMPLING_VERSION
from evalkit.tasks.load import Task
from evalkit.tasks.prompts import PromptTemplate
from evalkit.tasks.spec import DataSpec

if TYPE_CHECKING:
    from evalkit.engines.models import ResolvedModel


def run_identity(
    config: Config,
    tasks: tuple[Task, ...],
    model: "ResolvedModel",
    template: PromptTemplate,
    *,
    family: str,
    dtype: str,
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything a completion depends on, as plain JSON values.

    Args:
        config: the options.
        tasks: the datasets, with the hashes of the files they were read from.
        model: the model, with the hashes or the commit that identify it.
        template: the prompt templates.
        family: the engine family: engines of one family compute alike.
        dtype: the data type in use, `auto` resolved.
        left_out: tokens that the tokenizer would put behind every prompt.
    """
    generation: dict[str, Any] = {
        "do_sample": config.generation.do_sample,
        "from_model": config.generation.from_model,
    }
    if any(generation.values()):
        generation["sampling_version"] = SAMPLING_VERSION
    own: dict[str, Any] = {}
    if shots := differing_few_shots({task.name: len(task.few_shots) for task in tasks}, config):
        own["task_few_shots"] = shots
    if columns := {task.name: _columns(task.spec.data) for task in tasks if task.spec.data is not None}:
        own["columns"] = columns
    if template != PromptTemplate():
        own["template"] = {"prompt": template.prompt, "few_shot": template.few_shot}
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


def _columns(data: DataSpec) -> dict[str, Any]:
    """How the rows of a user's own file become samples; the hash of the file does not tell."""
    return {"input": data.input, "output": data.output, "few_shots": data.few_shots}


def _prompt_sha256(task: Task, template: PromptTemplate) -> str:
    # The inputs are covered by the hash of the data (and the columns); this covers the words around them.
    return text_sha256(template.render(task.spec.instruction, task.few_shots, ""))
