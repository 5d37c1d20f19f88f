"""The answers that a scoring grades: those of the records, or split anew from the kept raw texts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from evalkit.core.config import ModelConfig, ReasoningConfig, ThoughtParser
from evalkit.core.reasons import Reason
from evalkit.core.types import FinishReason
from evalkit.engines.local.tokenizer import tokenizer_here
from evalkit.records.run_folder import SampleRecord
from evalkit.scoring.scores import GivenAnswer, TaskAnswers, TaskScores
from evalkit.tasks.answers import choose_rule, is_own_rule, is_wrong
from evalkit.tasks.spec import TaskSpec
from evalkit.tasks.thoughts import Thoughts

_MANY_UNCLOSED = "{shares} of the thoughts never ended and count as wrong (reasoning.thought_length)"
_UNCLOSED_THERE = "{shares} of the thoughts never ended; the rule {rule} grades what it leaves of them"
_SERVED = (
    "the server returns thoughts ({n}) and no rule is in use, so they take the answer's tokens: {options}"
)
_TOO_LONG = "{n} answers may be longer than their limit: the model's tokenizer is not here to cut them"
_MARKED = "{n} completions have the marks of a thought, and no rule splits them: {options}"


class Regrading:
    """Makes answers of records.

    Args:
        thoughts: the rule to split by; None: that of the records.
        model: whose tokenizer counts the tokens of an answer that is split anew.
        made: the rule of the run, for records that it could not split.
        limits: the most tokens of an answer by task, where the run decided them.
    """

    def __init__(
        self,
        thoughts: Thoughts | None = None,
        model: ModelConfig | None = None,
        made: Thoughts | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        self._thoughts = thoughts
        self._made = made
        self._limits = limits or {}
        self._tokenizer = tokenizer_here(model) if thoughts is not None and model is not None else None
        self._uncut = self._unsplit = self._served = 0
        # The rule of another harness that the answers are graded by.
        self._foreign = ""

    @classmethod
    def of(
        cls, reasoning: ReasoningConfig, model: ModelConfig | None, identity: Mapping[str, Any]
    ) -> "Regrading":
        """What the options ask for, given what decided the run (`identity`)."""
        kept = identity.get("reasoning")
        made = Thoughts.of_identity(kept) if kept else None
        rule = reasoning.parser.value
        if reasoning.parser is ThoughtParser.auto:
            rule = "none" if made is None else made.rule
        if made is None and rule == "none":
            return cls()
        wanted = Thoughts.named(reasoning, rule)
        same = made is not None and replace(wanted, thought_length=made.thought_length) == made
        return cls(made=made) if same else cls(wanted, model, limits=identity.get("max_new_tokens"))

    def answer(self, record: SampleRecord, spec: TaskSpec) -> GivenAnswer:
        """What is graded of a record."""
        output_length = self._limits.get(spec.name, spec.output_length)
        thoughts, split = self._thoughts, record.split
        if thoughts is not None:
            split = thoughts.again(record, output_length, self._tokenizer, spec.ends)
            too_long = split is not None and len(split.answer.encode("utf-8", "replace")) > output_length
            self._uncut += too_long and self._tokenizer is None
        elif split is None and self._made is not None:
            split = self._made.again(record, output_length, None, spec.ends)
        elif split is not None and self._made is None:
            self._served += bool(split.served_thought)
        if split is None:
            self._unsplit += choose_rule(record.completion) != "none"
            raw = record.raw_text if spec.verbatim else None
            return GivenAnswer(record.completion if raw is None else raw, record.finish_reason)
        if not is_own_rule(split.rule):
            self._foreign = split.rule
        return GivenAnswer(
            split.answer,
            record.finish_reason,
            split.status,
            split.thought_tokens,
            split.thought if thoughts is not None else None,
            wrong=is_wrong(split.rule, split.status),
        )

    def given(self, task: TaskAnswers) -> dict[str, GivenAnswer]:
        """What is graded of completions that were made elsewhere."""
        graded = {}
        for key, answer in task.completions.items():
            ended = cast(FinishReason | None, answer.finish_reason)
            record = SampleRecord(id=key, completion=answer.text, finish_reason=ended)
            graded[key] = self.answer(record, task.spec)
        return graded

    def warnings(self, tasks: Sequence[TaskScores]) -> Iterator[str]:
        """What to know about the answers that were given out, and about their scores."""
        if self._served:
            yield Reason(_SERVED, n=self._served, options="reasoning.parser=think")
        if self._uncut:
            yield Reason(_TOO_LONG, n=self._uncut)
        if self._unsplit:
            yield Reason(_MARKED, n=self._unsplit, options="reasoning.parser= (jaster: also suite.chat=true)")
        rates = {task.spec.name: task.rates.thoughts for task in tasks}
        unclosed = [
            f"{name} {found.unclosed:.0%}" for name, found in rates.items() if found and found.many_unclosed
        ]
        if unclosed and self._foreign:
            yield Reason(_UNCLOSED_THERE, shares=", ".join(unclosed), rule=self._foreign)
        elif unclosed:
            yield Reason(_MANY_UNCLOSED, shares=", ".join(unclosed))


def of_regrading(warning: str) -> bool:
    """Whether a kept warning is about the split of an earlier scoring."""
    ours = (_MANY_UNCLOSED, _UNCLOSED_THERE, _SERVED, _TOO_LONG, _MARKED)
    return isinstance(warning, Reason) and warning.template in ours
