"""What a model wrote -> its thought and its answer, by a named rule (docs/thinking.md).

`think`, `harmony` and `regex` are evalkit's own rules. Those named after other harnesses give the answers
that these grade, for comparison.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

from evalkit.core.errors import InputError
from evalkit.core.text import did_you_mean
from evalkit.tasks.harmony import END_MARKER, MARKER, read_harmony

RuleName = Literal[
    "none", "think", "harmony", "regex", "lm-eval", "lighteval", "flexeval", "swallow", "shaberi"
]
AnswerStatus = Literal["answered", "no_thought", "late_thought", "unclosed", "empty", "cut_off", "tool_call"]

RULES: tuple[RuleName, ...] = get_args(RuleName)
_OWN_RULES = ("none", "think", "harmony", "regex")
START, END = "<think>", "</think>"
# Rules that read the tags, and rules that read a pattern; the others refuse those options.
_TAGGED = ("think", "regex", "lm-eval", "lighteval", "flexeval", "swallow")
_PATTERNED = ("regex", "flexeval")
# CPU seconds one search may take: patterns can need time exponential in the length of the text.
_SECONDS = 5.0

_SHABERI_START = re.compile(r"<(?:think|thinking|reason)>", re.IGNORECASE)
_SHABERI_END = re.compile(r"</(?:think|thinking|reason)>", re.IGNORECASE)


class SplitAnswer(NamedTuple):
    """The thought (None: there is none), the answer ("" where there is none), and what became of them.

    Status: `answered`; `no_thought` an answer alone; `late_thought` a start tag behind other text, all of
    which is the answer; `unclosed` the thought never ended; `empty` it ended and nothing follows; `cut_off`
    the answer ended by length; `tool_call` the model called a function.
    """

    thought: str | None
    answer: str
    status: AnswerStatus


class _Options(NamedTuple):
    start: str
    end: str
    pattern: str | None
    open_thought: bool
    stop: Sequence[str]


class _Parts(NamedTuple):
    thought: str | None
    answer: str
    status: AnswerStatus
    # Whether the answer reaches the end of the text, so that a length limit cut it.
    last: bool = True


def split_answer(
    text: str | None,
    rule: str,
    *,
    start: str = START,
    end: str = END,
    pattern: str | None = None,
    open_thought: bool = False,
    stop: str | Sequence[str] = (),
    finish_reason: str | None = None,
) -> SplitAnswer:
    """Splits what a model wrote into thought and answer.

    Args:
        text: the completion, with its special tokens where the rule is `harmony`; None: nothing was written.
        rule: one of `RULES`.
        start: the tag that opens a thought.
        end: the tag that closes it.
        pattern: of `regex`, optionally of `flexeval`: a regular expression whose dot matches newlines. Its
            groups `thought` and `answer` (or `reasoning_content` and `content`) are taken; without names, one
            group is the answer, two are thought and answer.
        open_thought: the prompt ended inside a thought (`opens_thought`).
        stop: the suite's stop strings. `lm-eval` cuts its answer at them; under any rule an answer that holds
            one is not `cut_off`.
        finish_reason: the completion's; `length` makes an answer `cut_off`.

    Returns:
        Thought, answer and status. Evalkit's own rules strip both texts; the others do what the harness does.

    Raises:
        InputError: as `check_rule`; the special tokens that `harmony` reads are gone; the pattern takes too
            long on this text.
    """
    name = check_rule(rule, start=start, end=end, pattern=pattern)
    stops = tuple(one for one in ([stop] if isinstance(stop, str) else stop) if one)
    parts = _SPLITS[name](text or "", _Options(start, end, pattern, open_thought, stops))
    thought, answer, status, last = parts
    if status not in ("unclosed", "tool_call"):
        if finish_reason == "length" and last and not any(one in answer for one in stops):
            status = "cut_off"
        elif not answer.strip():
            status = "empty"
    return SplitAnswer(thought, answer, status)


def is_own_rule(rule: str) -> bool:
    """Whether a rule is evalkit's own and not named after another harness."""
    return rule in _OWN_RULES


def is_wrong(rule: str, status: str) -> bool:
    """Whether there is no answer, so that it is wrong whatever the gold answer is.

    The rules of other harnesses grade what they leave of a text.
    """
    return is_own_rule(rule) and status in ("unclosed", "empty", "tool_call")


def later_tags(answer: str, rule: str, *, start: str = START, end: str = END) -> int:
    """How many tags (`harmony`: markers) an answer still holds."""
    if rule == "none":
        return 0
    if rule == "harmony":
        return len(MARKER.findall(answer))
    if rule == "shaberi":
        return len(_SHABERI_START.findall(answer)) + len(_SHABERI_END.findall(answer))
    return answer.count(start) + answer.count(end)


def check_rule(rule: str, *, start: str = START, end: str = END, pattern: str | None = None) -> RuleName:
    """The rule, once its options are known to fit.

    Raises:
        InputError: an unknown rule, an empty tag, an option the rule does not read, a missing pattern, or one
            that is no regular expression or has no group for the answer.
    """
    name = next((known for known in RULES if known == rule), None)
    if name is None:
        fix = f"one of {', '.join(RULES)}{did_you_mean(str(rule), RULES)}"
        if rule == "auto":
            fix = "auto is chosen from the model's chat template (choose_rule); name a rule for a text alone"
        raise InputError(f"no rule {rule!r} splits a text", where="reasoning.parser", fix=fix)
    for option, tag, usual in (("reasoning.start", start, START), ("reasoning.end", end, END)):
        if not tag:
            raise InputError("a tag is empty", where=option, fix=f"the model's own tag, such as {usual}")
        if tag != usual and name not in _TAGGED:
            raise InputError(f"the rule {name} has no tags to choose", where=option, fix="leave it out")
    if pattern is not None and name not in _PATTERNED:
        raise InputError(
            f"the rule {name} has no pattern", where="reasoning.pattern", fix="reasoning.parser=regex"
        )
    if name == "regex" and not pattern:
        raise InputError(
            "the rule regex needs a pattern",
            where="reasoning.pattern",
            fix=r"such as reasoning.pattern='(?P<thought>.*?)最終回答:(?P<answer>.*)'",
        )
    if pattern is not None:
        _compiled(pattern)
    return name


def options_of(rule: str) -> tuple[str, ...]:
    """The options that a rule reads: its tags, its pattern."""
    return (*(("start", "end") if rule in _TAGGED else ()), *(("pattern",) if rule in _PATTERNED else ()))


def choose_rule(template: str | None, *, start: str = START, end: str = END) -> RuleName:
    """The rule that `auto` stands for, by the text of a model's chat template (None: it has none)."""
    if template is None:
        return "none"
    if "<|channel|>" in template and "<|message|>" in template:
        return "harmony"
    return "think" if start in template or end in template else "none"


def opens_thought(prompt: str, rule: str, *, start: str = START) -> bool:
    """Whether a rendered prompt ends inside a thought, so that the completion begins in it.

    Only its end counts: a tag that a question mentions opens nothing.
    """
    if rule == "none":
        return False
    if rule == "harmony":
        last = prompt.rpartition("<|start|>")[2]
        header, opened, body = last.partition("<|message|>")
        channel = header.partition("<|channel|>")[2].split()
        return bool(opened) and channel[:1] == ["analysis"] and not END_MARKER.search(body)
    return prompt.rstrip().endswith(start)


# --- evalkit's own rules -------------------------------------------------------------------------


def _none(text: str, options: _Options) -> _Parts:
    return _Parts(None, text, "no_thought")


def _think(text: str, options: _Options) -> _Parts:
    """A leading thought only, opened by the text or by the prompt."""
    start, end = options.start, options.end
    begin, close = text.find(start), text.find(end)
    if text.lstrip().startswith(start):
        inside = text[begin + len(start) :]
    elif options.open_thought or (close >= 0 and (begin < 0 or close < begin)):
        inside = text
    else:
        return _Parts(None, text.strip(), "late_thought" if begin >= 0 else "no_thought")
    thought, closed, answer = inside.partition(end)
    return _Parts(thought.strip(), answer.strip(), "answered" if closed else "unclosed")


def _regex(text: str, options: _Options) -> _Parts:
    found = _search(options.pattern or "", text)
    if found is None:
        seen = _think(text, options)
        return seen if seen.status == "unclosed" else _Parts(None, text.strip(), "no_thought")
    thought, answer = (None if part is None else part.strip() for part in found)
    return _Parts(thought, answer or "", "answered")


def _search(pattern: str, text: str) -> tuple[str | None, str | None] | None:
    """The thought and the answer of the first match; None without a match."""
    compiled, thought, answer = _compiled(pattern)
    try:
        found = compiled.search(text, timeout=_SECONDS)
    except TimeoutError:
        raise InputError(
            f"the pattern takes more than {_SECONDS:.0f} s on a text of {len(text):,} characters",
            where=f"reasoning.pattern={pattern}",
            fix="no repetition within a repetition, as in (a+)+; possessive ones (a++) do not go back",
        ) from None
    return None if found is None else (found[thought] if thought else None, found[answer])


@cache
def _compiled(pattern: str) -> tuple[Any, str | int, str | int]:
    """The compiled pattern and its groups for thought (0: none) and answer."""
    # Of its own package: the standard library's search has no time limit.
    import regex

    where, fix = f"reasoning.pattern={pattern}", "groups named thought and answer, as in (?P<answer>.*)"
    try:
        compiled = regex.compile(pattern, regex.DOTALL | regex.VERSION0)
    except (regex.error, OverflowError, RecursionError) as error:
        raise InputError(
            f"not a regular expression: {error}", where=where, fix="Python's re syntax; " + fix
        ) from None
    names = compiled.groupindex
    thought = next((name for name in ("thought", "reasoning_content") if name in names), 0)
    answer = next((name for name in ("answer", "content") if name in names), None)
    if answer is not None:
        return compiled, thought, answer
    if names or compiled.groups not in (1, 2):
        raise InputError("the pattern does not say which group is the answer", where=where, fix=fix)
    return compiled, compiled.groups - 1, compiled.groups


def _harmony(text: str, options: _Options) -> _Parts:
    if options.open_thought:
        text = "<|channel|>analysis<|message|>" + text
    elif not MARKER.search(text) and text.lstrip().startswith(("analysis", "assistant")):
        raise InputError(
            "the special tokens that the rule harmony reads are gone from an answer",
            where=f"the answer that begins {text.lstrip()[:40]!r}",
            fix="generate it again with special tokens kept, or choose another reasoning.parser",
        )
    read = read_harmony(text)
    thought = None if read.thought is None else read.thought.strip()
    if read.calls_tool:
        return _Parts(thought, "", "tool_call")
    if not read.has_content:
        return _Parts(thought, "", "unclosed")
    status: AnswerStatus = "no_thought" if thought is None else "answered"
    return _Parts(thought, (read.answer or "").strip(), status, read.last)


# --- the rules of other harnesses ----------------------------------------------------------------


def _unsplit(text: str, answer: str, options: _Options) -> _Parts:
    """What a rule makes of a text in which it finds no thought; the status is what `think` sees there."""
    seen = _think(text, options).status
    return _Parts(None, answer, seen if seen in ("unclosed", "late_thought") else "no_thought")


def _lm_eval(text: str, options: _Options) -> _Parts:
    before, found, after = text.rpartition(options.end)
    answer = after.lstrip()
    for one in options.stop:
        answer = answer.partition(one)[0]
    if not found:
        return _unsplit(text, answer, options)._replace(last=len(answer) == len(after.lstrip()))
    thought = before.lstrip().removeprefix(options.start)
    return _Parts(thought, answer, "answered", last=len(answer) == len(after.lstrip()))


def _lighteval(text: str, options: _Options) -> _Parts:
    start, end = options.start, options.end
    answer, thoughts, at = text, [], 0
    while (begin := answer.find(start, at)) >= 0 and (close := answer.find(end, begin)) >= 0:
        thoughts.append(answer[begin + len(start) : close])
        answer = answer[:begin] + answer[close + len(end) :]
        # What is left may join to a start tag anew.
        at = max(0, begin - len(start) + 1)
    return _Parts("\n".join(thoughts), answer, "answered") if thoughts else _unsplit(text, text, options)


def _flexeval(text: str, options: _Options) -> _Parts:
    found = _first_span(text, options) if options.pattern is None else _search(options.pattern, text)
    if found is None:
        return _unsplit(text, "", options)
    return _Parts(found[0], found[1] or "", "answered")


def _swallow(text: str, options: _Options) -> _Parts:
    found = _first_span(text, options)
    if found is None:
        return _unsplit(text, text, options)
    thought, answer = found
    return _Parts(thought, answer or thought, "answered" if answer.strip() else "empty")


def _first_span(text: str, options: _Options) -> tuple[str, str] | None:
    """What the first pair of tags encloses, and all that follows it."""
    _, started, inside = text.partition(options.start)
    thought, closed, answer = inside.partition(options.end)
    return (thought, answer) if started and closed else None


def _shaberi(text: str, options: _Options) -> _Parts:
    kept, thoughts, at = [], [], 0
    while (start := _SHABERI_START.search(text, at)) and (end := _SHABERI_END.search(text, start.end())):
        kept.append(text[at : start.start()])
        thoughts.append(text[start.end() : end.start()])
        at = end.end()
    answer = "".join(kept) + text[at:]
    return _Parts("\n".join(thoughts), answer, "answered") if thoughts else _unsplit(text, text, options)


_SPLITS: dict[RuleName, Callable[[str, _Options], _Parts]] = {
    "none": _none,
    "think": _think,
    "harmony": _harmony,
    "regex": _regex,
    "lm-eval": _lm_eval,
    "lighteval": _lighteval,
    "flexeval": _flexeval,
    "swallow": _swallow,
    "shaberi": _shaberi,
}
