"""The jaster prompt: instruction, few-shots and input as the exact text a model sees, or as a chat.

Source: docs/protocol/jaster.md, section 1 ("Prompt"), and for chats docs/protocol/reasoning.md,
section 2. BOS and chat templates belong to the tokenizer and so to the engine.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from evalkit.core.config import GenerationConfig, ProtocolConfig, ReasoningConfig, SuiteConfig
from evalkit.core.errors import InputError
from evalkit.core.text import text_sha256
from evalkit.core.types import Message, Request, Sample, Sampling
from evalkit.metrics.repeats import sample_seed
from evalkit.tasks.load import Task
from evalkit.tasks.spec import TaskSpec
from evalkit.tasks.thoughts import Thoughts

LEAD = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
PROMPT = LEAD + "\n\n### 指示:\n{instruction}{few_shots_text}\n\n### 入力:\n{input}\n\n### 応答:\n"
FEW_SHOT = "\n\n### 入力:\n{input}\n\n### 応答:\n{output}"


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

    def following(self, text: str) -> str:
        """The user's words of a later turn: an example's, up to its output."""
        before, _, _ = self.few_shot.partition("{output}")
        return _fill(before, {"input": text}).lstrip("\n")

    def render(self, instruction: str, few_shots: tuple[Sample, ...], text: str) -> str:
        """The prompt for one input."""
        examples = "".join(
            _fill(self.few_shot, {"input": shot.input, "output": shot.gold}) for shot in few_shots
        )
        return _fill(self.prompt, {"instruction": instruction, "few_shots_text": examples, "input": text})


VERBATIM = PromptTemplate(prompt="{input}")


def _fill(template: str, values: Mapping[str, str]) -> str:
    # One pass over the template: braces that come in with the data are never expanded.
    return re.sub(r"\{(\w+)\}", lambda field: values.get(field[1], field[0]), template)


@dataclass(frozen=True)
class ChatForm:
    """How a prompt becomes a conversation: one user message, or (`turns`) a turn for each few-shot."""

    system: str | None = None
    turns: bool = False

    @classmethod
    def of(cls, suite: SuiteConfig) -> "ChatForm | None":
        """The form that the options ask for; None: prompts are plain text.

        Raises:
            InputError: an option of chats without `suite.chat=true`.
        """
        if suite.chat:
            return cls(suite.system, suite.chat_turns)
        for name, given in (("chat_turns", suite.chat_turns), ("system", suite.system)):
            if given:
                raise InputError(
                    "plain prompts have no turns and no system message",
                    where=f"option suite.{name}",
                    fix="add suite.chat=true",
                )
        return None

    def messages(
        self, template: PromptTemplate, instruction: str, few_shots: tuple[Sample, ...], text: str
    ) -> tuple[Message, ...]:
        """The conversation for one input; the model answers its last message."""
        system = () if self.system is None else (Message("system", self.system),)
        if not self.turns or not few_shots:
            return (*system, Message("user", template.render(instruction, few_shots, text)))
        # The words of the one prompt, cut where an answer begins and ends.
        turns = [Message("user", template.render(instruction, (), few_shots[0].input))]
        for shot, following in zip(few_shots, [*(one.input for one in few_shots[1:]), text], strict=True):
            turns += [Message("assistant", shot.gold), Message("user", template.following(following))]
        return (*system, *turns)


@dataclass(frozen=True)
class Asking:
    """How the samples of a suite are asked and their completions read.

    Attributes:
        template: the words of the prompts.
        sampling: how tokens are chosen.
        seed: of the run; with several samples each has one of its own.
        chat: how prompts become conversations; None: they stay text.
        thoughts: how the model thinks first; None: it does not.
        samples: answers to each question.
        output_length: most tokens of an answer; None: as the task says.
    """

    template: PromptTemplate = PromptTemplate()
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 42
    chat: ChatForm | None = None
    thoughts: Thoughts | None = None
    samples: int = 1
    output_length: int | None = None

    @classmethod
    def of(
        cls,
        suite: SuiteConfig,
        protocol: ProtocolConfig,
        generation: GenerationConfig,
        reasoning: ReasoningConfig,
        *,
        seed: int,
        samples: int = 1,
        tokenizer: Any | None = None,
    ) -> "Asking":
        """What the options of these names ask for.

        Args:
            suite, protocol, generation, reasoning, seed, samples: the options.
            tokenizer: the model's; None: only a server has it, or none is needed.

        Raises:
            InputError: options that contradict each other, a template that may not be used, or chats for
                a model without one.
        """
        own = generation
        sampling = Sampling(own.do_sample, own.temperature, own.top_p, own.top_k)
        if not own.do_sample and sampling != Sampling():
            raise InputError(
                "temperature, top_p and top_k are for sampled generation",
                where="option generation",
                fix="add generation.do_sample=true",
            )
        if samples > 1 and not (own.do_sample or own.from_model):
            raise InputError(
                f"greedy search gives the same answer {samples} times",
                where=f"option samples={samples}",
                fix="generation=swallow, generation.from_model=true or generation.do_sample=true",
            )
        chat = ChatForm.of(suite)
        return cls(
            template=PromptTemplate.of(protocol),
            sampling=sampling,
            seed=seed,
            chat=chat,
            thoughts=Thoughts.of(reasoning, tokenizer, chat=chat is not None),
            samples=samples,
            output_length=own.output_length,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What else decides the completions, ready for JSON."""
        # More samples continue fewer; a single one has the seed of the run.
        return {"seeds": "of each sample"} if self.samples > 1 else {}

    def shots(self, task: Task) -> int:
        """Examples in each prompt of a dataset."""
        return len(task.few_shots)

    def words_sha256(self, task: Task) -> str:
        """The hash of the words around the inputs of a dataset.

        Raises:
            InputError: as `template_of`.
        """
        template = self.template_of(task.spec)
        return text_sha256(template.render(task.spec.instruction, task.few_shots, ""))

    def again(self, request: Request, answer: str, attempt: int) -> Request | None:
        """The request to make in place of one whose `answer` does not count; None: it counts."""
        return None

    def limit(self, spec: TaskSpec) -> int:
        """The most tokens of an answer."""
        return spec.output_length if self.output_length is None else self.output_length

    def template_of(self, spec: TaskSpec) -> PromptTemplate:
        """The words of a dataset's prompts.

        Raises:
            InputError: the dataset is for chats, and the prompts are none.
        """
        if not spec.verbatim:
            return self.template
        if self.chat is None:
            raise InputError(
                f"{spec.name} asks through the model's chat template",
                where="option suite.chat",
                fix="suite.chat=true",
            )
        return VERBATIM if self.template == PromptTemplate() else self.template

    def requests(self, task: Task) -> Iterator[Request]:
        """The requests of a dataset, in the order of its samples.

        Raises:
            InputError: as `template_of`.
        """
        template = self.template_of(task.spec)
        words = (task.spec.instruction, task.few_shots)
        for sample in task.samples:
            prompt: str | tuple[Message, ...] = (
                template.render(*words, sample.input)
                if self.chat is None
                else self.chat.messages(template, *words, sample.input)
            )
            for repeat, key in enumerate(task.spec.ids(sample.id, self.samples), start=1):
                seed = self.seed if self.samples == 1 else sample_seed(self.seed, sample.id, repeat)
                yield self.request(task.spec, key, prompt, task.spec.ends, seed)

    def request(
        self, spec: TaskSpec, key: str, prompt: str | tuple[Message, ...], ends: tuple[str, ...], seed: int
    ) -> Request:
        """One request of a dataset; `ends` are the texts that end an answer."""
        limit, thoughts = self.limit(spec), self.thoughts
        return Request(
            id=key,
            prompt=prompt,
            max_new_tokens=limit if thoughts is None else thoughts.limit(limit),
            # What ends an answer need not be generated further; within a thought it ends nothing.
            stop=ends if thoughts is None else (),
            sampling=self.sampling,
            seed=seed,
            keep_special=thoughts is not None,
        )
