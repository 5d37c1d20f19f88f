"""The thoughts of a run's model: the rule in use, the budget, and each completion split by it.

Source: docs/protocol/reasoning.md, sections 4, 5 and 7. The rules themselves are in
`evalkit.tasks.answers`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evalkit.core.config import BosRule, ReasoningConfig, ThoughtParser
from evalkit.core.errors import InputError
from evalkit.core.text import unicode_text
from evalkit.core.types import REST_OF_CONTEXT, Completion
from evalkit.engines.bos import token_ids
from evalkit.engines.local.chat_template import template_of
from evalkit.records.run_folder import SampleRecord, SplitRecord
from evalkit.tasks.answers import (
    END,
    START,
    SplitAnswer,
    check_rule,
    choose_rule,
    later_tags,
    opens_thought,
    split_answer,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Thoughts:
    """A rule and the tokens it may take; none exists for runs whose completions are answers as they are."""

    rule: str
    start: str
    end: str
    pattern: str | None
    thought_length: int | None

    @classmethod
    def of(cls, reasoning: ReasoningConfig, tokenizer: Any | None, *, chat: bool) -> "Thoughts | None":
        """The rule that the options ask for; None: completions are not split.

        Args:
            reasoning: the options.
            tokenizer: `auto` goes by its chat template; None: only a server has it.
            chat: whether the model is asked through its template.

        Raises:
            InputError: a rule that lacks its pattern or has a wrong one, or no rule and options of one.
        """
        rule = reasoning.parser.value
        # A plain prompt is continued, not answered.
        template = template_of(tokenizer) if chat and tokenizer is not None else None
        usual = choose_rule(template, start=reasoning.start, end=reasoning.end)
        if reasoning.parser is ThoughtParser.auto:
            rule = usual
        elif template is not None and usual == "none" and rule not in ("none", "regex"):
            log.warning("reasoning.parser=%s, but the chat template has no mark of a thought", rule)
        if rule != "none":
            return cls.named(reasoning, rule)
        # Of a chat without its template only the server knows; another model's may have marks.
        if reasoning.parser is ThoughtParser.none or not chat:
            refuse_unread(_given(reasoning, *_OF_TEXTS, "thought_length"), chat=chat)
        elif template is not None:
            refuse_unread(_given(reasoning, *_OF_TEXTS))
        return None

    @classmethod
    def named(cls, reasoning: ReasoningConfig, rule: str) -> "Thoughts":
        """The rule of this name with the options' tags and pattern.

        Raises:
            InputError: a rule that lacks its pattern or has a wrong one.
        """
        check_rule(rule, start=reasoning.start, end=reasoning.end, pattern=reasoning.pattern)
        return cls(rule, reasoning.start, reasoning.end, reasoning.pattern, reasoning.thought_length)

    @classmethod
    def of_identity(cls, kept: Mapping[str, Any]) -> "Thoughts":
        """The rule that a run's identity names."""
        fields = {"pattern": None, "thought_length": None, **kept}
        return cls(**{name: fields[name] for name in ("rule", "start", "end", "pattern", "thought_length")})

    @property
    def identity(self) -> dict[str, Any]:
        """What identifies the rule and its budget, ready for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def limit(self, output_length: int) -> int:
        """The most new tokens of a completion whose answer may have `output_length`."""
        return REST_OF_CONTEXT if self.thought_length is None else self.thought_length + output_length

    def opened(self, prompt: str | None) -> bool:
        """Whether a rendered prompt ends inside a thought; False where only the server renders it."""
        return prompt is not None and opens_thought(prompt, self.rule, start=self.start)

    def split(self, raw: str, *, opened: bool, finish_reason: str | None, ends: Sequence[str]) -> SplitAnswer:
        """The thought and the answer in what a model wrote."""
        return split_answer(
            raw,
            self.rule,
            start=self.start,
            end=self.end,
            pattern=self.pattern,
            open_thought=opened,
            stop=ends,
            finish_reason=finish_reason,
        )

    def reply(
        self,
        completion: Completion,
        *,
        opened: bool,
        output_length: int,
        tokenizer: Any | None,
        ends: Sequence[str],
        keeps_special: bool = False,
    ) -> SplitRecord:
        """A completion split by the rule, the answer cut at its own limit.

        A short thought buys no longer answer: the engine's limit is that of both together.

        Args:
            completion: what the model wrote; one that did not fail.
            opened: whether the prompt ended inside a thought.
            output_length: most tokens of the answer.
            tokenizer: the model's, which counts them; None: it is not here, nothing is cut.
            ends: where the suite cuts an answer anyway; what lies behind is not missed.
            keeps_special: `raw_text` has all special tokens that the model wrote.

        Raises:
            InputError: the special tokens that the rule reads are lost, or a pattern takes too long. What
                is not lost: those of a text that a server has split.
        """
        raw, finish_reason = completion.raw_text, completion.finish_reason
        served = completion.served_thought is not None
        try:
            found = self.split(raw, opened=opened and not served, finish_reason=finish_reason, ends=ends)
        except InputError:
            if self.rule != "harmony" or not (keeps_special or served):
                raise
            # It only begins as if they were lost.
            found = split_answer(raw.strip(), "none", stop=ends, finish_reason=finish_reason)
        if completion.tool_call:
            found = found._replace(answer="", status="tool_call")
        if served:
            found = _served(found, str(completion.served_thought), finish_reason)
        kept, cut = shortened(found.answer, output_length, tokenizer, ends)
        return SplitRecord(
            rule=self.rule,
            opened=opened,
            thought=found.thought,
            answer=kept,
            status="cut_off" if cut and found.status in ("answered", "no_thought") else found.status,
            thought_tokens=_count(found.thought or "", tokenizer),
            answer_tokens=_count(kept, tokenizer),
            later_tags=later_tags(kept, self.rule, start=self.start, end=self.end),
            served_thought=completion.served_thought,
        )

    def again(
        self, record: SampleRecord, output_length: int, tokenizer: Any | None, ends: Sequence[str]
    ) -> SplitRecord | None:
        """A kept completion split by this rule, whatever rule it was made with; None: it failed."""
        if record.finish_reason == "error":
            return None
        before, ended = record.split, record.finish_reason or "stop"
        raw = record.completion if record.raw_text is None else record.raw_text
        served = before.served_thought if before else None
        called = before is not None and before.status == "tool_call" and not raw.strip()
        opened = before is not None and before.opened
        return self.reply(
            Completion(record.id, raw, raw, ended, 0, 0, served_thought=served, tool_call=called),
            opened=opened if record.prompt_end is None else self.opened(record.prompt_end),
            output_length=output_length,
            tokenizer=tokenizer,
            ends=ends,
        )


# Options of rules that read a text.
_OF_TEXTS = ("pattern", "start", "end")


def _given(reasoning: ReasoningConfig, *names: str) -> list[str]:
    usual = ReasoningConfig()
    return [f"reasoning.{name}" for name in names if getattr(reasoning, name) != getattr(usual, name)]


def refuse_unread(given: Sequence[str], *, chat: bool = True) -> None:
    """Refuses the options of a rule among those that are `given`, where no rule is in use.

    Raises:
        InputError: there is one.
    """
    for option in given:
        if not option.startswith("reasoning.") or option == "reasoning.parser":
            continue
        fix = "reasoning.parser=regex" if option == "reasoning.pattern" else "reasoning.parser=think"
        raise InputError(
            "no rule splits thoughts off here, so that this option does nothing",
            where=f"option {option}",
            fix=f"add {fix}" if chat else f"add suite.chat=true or {fix}",
        )


# Of a run without a rule.
_AS_SERVED = Thoughts("none", START, END, None, None)


def rule_for(completion: Completion, thoughts: Thoughts | None) -> Thoughts | None:
    """The rule that reads a completion: the run's, or without one `none` for what a server has split."""
    split_by_server = completion.served_thought is not None or completion.tool_call
    return _AS_SERVED if thoughts is None and split_by_server else thoughts


def _served(found: SplitAnswer, thought: str, finish_reason: str | None) -> SplitAnswer:
    """The split where the server returned the thought by itself."""
    if found.status == "tool_call":
        return found._replace(thought=thought)
    # An answer that holds one of the suite's ends, or that other text follows, is not cut off by length.
    cut = finish_reason == "length" and found.status in ("cut_off", "unclosed")
    if found.answer.strip():
        return found._replace(thought=thought, status="cut_off" if cut else "answered")
    return found._replace(thought=thought, status="unclosed" if cut else "empty")


def shortened(
    answer: str, output_length: int, tokenizer: Any | None, ends: Sequence[str]
) -> tuple[str, bool]:
    """An answer without its tokens beyond a limit, and whether some are missed: none behind one of `ends`."""
    # A token is a byte at least.
    if tokenizer is None or len(answer.encode("utf-8", "replace")) <= output_length:
        return answer, False
    ids = token_ids(answer, tokenizer, BosRule.none)
    if len(ids) <= output_length:
        return answer, False
    kept = unicode_text(
        tokenizer.decode(ids[:output_length], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )
    return kept, not any(end in kept for end in ends)


def _count(text: str, tokenizer: Any | None) -> int | None:
    return None if tokenizer is None else len(token_ids(text, tokenizer, BosRule.none))
