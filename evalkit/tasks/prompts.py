"""The jaster prompt: instruction, few-shots and input as the exact text a model sees.

Source: docs/protocol/jaster.md, section 1 ("Prompt"). BOS and chat templates belong to
the tokenizer and so to the engine.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from evalkit.core.config import ProtocolConfig
from evalkit.core.errors import InputError
from evalkit.core.types import Request, Sample, Sampling
from evalkit.tasks.load import Task

LEAD = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
PROMPT = LEAD + "\n\n### 指示:\n{instruction}{few_shots_text}\n\n### 入力:\n{input}\n\n### 応答:\n"
FEW_SHOT = "\n\n### 入力:\n{input}\n\n### 応答:\n{output}"
# Only the text before the first blank line is the prediction, so nothing after it need be generated.
STOP = "\n\n"


@dataclass(frozen=True)
class PromptTemplate:
    """The two templates of a prompt; `{input}` and the like are filled in, other braces are text."""

    prompt: str = PROMPT
    few_shot: str = FEW_SHOT

    @classmethod
    def of(cls, protocol: ProtocolConfig) -> "PromptTemplate":
        """The protocol's templates, or the user's own.

        Raises:
            InputError: an own template has no place for the input (or an example's output).
        """
        prompt = protocol.custom_prompt_template or PROMPT
        few_shot = protocol.custom_fewshots_template or FEW_SHOT
        for option, text, needed in (
            ("protocol.custom_prompt_template", prompt, ("{input}",)),
            ("protocol.custom_fewshots_template", few_shot, ("{input}", "{output}")),
        ):
            missing = [field for field in needed if field not in text]
            if missing:
                raise InputError(f"the template lacks {' and '.join(missing)}", where=option)
        return cls(prompt=prompt, few_shot=few_shot)

    def render(self, instruction: str, few_shots: tuple[Sample, ...], text: str) -> str:
        """The prompt for one input."""
        examples = "".join(
            _fill(self.few_shot, {"input": shot.input, "output": shot.gold}) for shot in few_shots
        )
        return _fill(self.prompt, {"instruction": instruction, "few_shots_text": examples, "input": text})


def _fill(template: str, values: Mapping[str, str]) -> str:
    # One pass over the template: braces that come in with the data are never expanded.
    return re.sub(r"\{(\w+)\}", lambda field: values.get(field[1], field[0]), template)


def requests(task: Task, template: PromptTemplate, *, sampling: Sampling, seed: int) -> Iterator[Request]:
    """One request per sample of `task`, in order."""
    for sample in task.samples:
        yield Request(
            id=sample.id,
            prompt=template.render(task.spec.instruction, task.few_shots, sample.input),
            max_new_tokens=task.spec.output_length,
            stop=(STOP,),
            sampling=sampling,
            seed=seed,
        )
