"""What decides a run's completions, and so names its folder.

Left out on purpose: `limit` (a larger one continues a smaller), batch size, workers and device
(in float32 they change no output; in bfloat16 they change some by rounding, which `certify` measures),
clean-up and metric options (scoring can be done again).
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evalkit.config import Config
from evalkit.prompts import PromptTemplate
from evalkit.records import text_sha256
from evalkit.task_spec import DataSpec
from evalkit.tasks import Task

if TYPE_CHECKING:
    from evalkit.models import ResolvedModel

# Raised when the same configuration would give other completions than before.
GENERATION_VERSION = 1
# The same for what is sampled; greedy completions do not depend on it.
SAMPLING_VERSION = 2


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


def folder_name(name: str) -> str:
    """A model or suite name as a folder name: no separators, nothing hidden."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("._") or "model"


def _columns(data: DataSpec) -> dict[str, Any]:
    """How the rows of a user's own file become samples; the hash of the file does not tell."""
    return {"input": data.input, "output": data.output, "few_shots": data.few_shots}


def _prompt_sha256(task: Task, template: PromptTemplate) -> str:
    # The inputs are covered by the hash of the data (and the columns); this covers the words around them.
    return text_sha256(template.render(task.spec.instruction, task.few_shots, ""))
