"""M-IFEval, Japanese part: whether an answer follows instructions, checked by rules (extra `ifeval`).

Each prompt has one or more instructions: a kind such as `ja:keywords:existence` and its arguments.
Strict: the answer passes the check of the kind. Loose: it or one of its seven variants does. The rules
are those of lightblue-tech/M-IFEval; docs/metrics.md lists the kinds.
"""

import json
import operator
import re
import typing
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evalkit.core.errors import InputError
from evalkit.core.files import parse_json, read_yaml
from evalkit.core.reasons import Reason
from evalkit.core.text import canonical_json, did_you_mean
from evalkit.metrics import intervals
from evalkit.metrics.base import MetricUnavailableError, Mode
from evalkit.metrics.intervals import Spread

Arguments = Mapping[str, Any]
Outcome = tuple[bool, Reason]

_AT_LEAST, _BELOW, _EXACTLY = "以上", "未満", "="
_RELATIONS: dict[str, tuple[str, Callable[[int, int], bool]]] = {
    _AT_LEAST: ("at least {n}", operator.ge),
    _BELOW: ("fewer than {n}", operator.lt),
    _EXACTLY: ("exactly {n}", operator.eq),
}
_CONSTRAINED = ("はい、そうです。", "いいえ、違います。", "どちらとも言えません。")
_POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
_FENCES = ("```json", "```Json", "```JSON", "```")
_KANJI = "[\u4e00-\u9faf]"
# A word that is one token in none of these is taken for one that Janome always cuts.
_FRAMES = ("{}", "「{}」", "{}は", "この{}の", "{}です。")
_LONGEST_QUOTE = 30


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a prompt: each argument of its kind is there and of its type."""

    kind: str
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one answer follows one instruction.

    `reason` is what the check found in the answer as it is. `removed` is what had to be removed from it
    for the loose verdict (empty: nothing, or no variant passes). `unsatisfiable` is why no answer can
    pass (None: one can).
    """

    kind: str
    strict: bool
    loose: bool
    reason: Reason
    removed: str = ""
    unsatisfiable: Reason | None = None


class Kind(NamedTuple):
    """How one kind of instruction is checked: an entry of ifeval.yaml."""

    rule: str
    arguments: Mapping[str, str] = {}
    pattern: str = ""
    number: str = ""
    relation: str = ""

    def check(self, text: str, arguments: Arguments) -> Outcome:
        """Whether a text that is not blank passes, and what was found."""
        found = _RULES[self.rule](text, {**arguments, "pattern": self.pattern})
        if not self.number:
            return typing.cast(Outcome, found)
        return _quantity(found, arguments.get(self.relation, self.relation), arguments[self.number])


_TABLE = read_yaml(Path(__file__).with_name("ifeval.yaml"))
KINDS: dict[str, Kind] = {f"ja:{name}": Kind(**entry) for name, entry in _TABLE["kinds"].items()}


def _wanted(value: Any, kind: str) -> str | None:
    """What is wanted in place of an argument; None: it is of its kind."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    text = value if isinstance(value, str) else ""
    texts = value if isinstance(value, list | tuple) else ()
    fits, wanted = {
        "number": (whole and value >= 0, "a whole number, 0 or more"),
        "position": (whole and value >= 1, "a whole number, 1 or more"),
        "text": (text.strip(), "a text that is not blank"),
        "texts": (
            texts and all(isinstance(one, str) and one.strip() for one in texts),
            "a list of one or more texts, none blank",
        ),
        "relation": (text in (_AT_LEAST, _BELOW), f"one of {_AT_LEAST} {_BELOW}"),
        "letter": (re.fullmatch("[ぁ-ん]", text), "one hiragana from ぁ to ん"),
        "language": (text in _TABLE["languages"].split(), f"one of {_TABLE['languages']}"),
    }[kind]
    return None if fits else wanted


def read_instructions(kinds: Any, arguments: Any, where: str) -> tuple[Instruction, ...]:
    """The instructions of one prompt, in order.

    Args:
        kinds: the list `instruction_id_list`.
        arguments: the list `kwargs`, one object per kind. Null values count as absent.
        where: the prompt for messages: the file and the key.

    Raises:
        InputError: the lists do not fit each other, an unknown kind, or an argument that is unknown,
            missing or of a wrong type.
    """
    if not isinstance(kinds, list) or not kinds or not all(isinstance(kind, str) for kind in kinds):
        raise InputError("a list of one or more kinds was expected", where=f"{where}, instruction_id_list")
    if not isinstance(arguments, list) or len(arguments) != len(kinds):
        raise InputError(f"a list of {len(kinds)} objects was expected", where=f"{where}, kwargs")
    return tuple(_instruction(kind, given, where) for kind, given in zip(kinds, arguments, strict=True))


def gold_of(record: Mapping[str, Any], where: str) -> str:
    """The gold answer of a sample: the key and the instructions of a record, checked, as JSON.

    Raises:
        InputError: as `read_instructions`.
    """
    kinds, arguments = record.get("instruction_id_list"), record.get("kwargs")
    found = read_instructions(kinds, arguments, where)
    key = {"key": record["key"]} if "key" in record else {}
    kept = {"instruction_id_list": kinds, "kwargs": [dict(one.arguments) for one in found]}
    return canonical_json(key | kept)


def read_gold(text: str, where: str) -> tuple[Instruction, ...]:
    """The instructions of a gold answer as `gold_of` makes it.

    Raises:
        InputError: another text, or as `read_instructions`; `where` names the sample.
    """
    content = parse_json(text, where)
    if not isinstance(content, dict):
        raise InputError("a JSON object with instructions was expected as the gold answer", where=where)
    return read_instructions(content.get("instruction_id_list"), content.get("kwargs"), where)


def _instruction(kind: str, given: Any, where: str) -> Instruction:
    if kind not in KINDS:
        raise InputError(
            f"unknown kind of instruction {kind!r}{did_you_mean(kind, KINDS)}",
            where=f"{where}, instruction_id_list",
            fix="use one of the kinds in docs/metrics.md",
        )
    if not isinstance(given, Mapping | None):
        raise InputError(f"{kind}: an object with arguments was expected", where=f"{where}, kwargs")
    arguments = {name: value for name, value in (given or {}).items() if value is not None}
    known = KINDS[kind].arguments
    for name in (*arguments, *known):
        if name not in known:
            what = f"{kind} has no argument {name!r}{did_you_mean(str(name), known)}"
            fix = f"its arguments: {', '.join(known) or 'none'}; remove this one or make it null"
        elif wanted := _wanted(arguments.get(name), known[name]):
            found = repr(arguments[name]) if name in arguments else "missing"
            what, fix = f"{kind}: the argument {name!r} is {found}", f"give {wanted}"
        else:
            continue
        raise InputError(what, where=f"{where}, kwargs", fix=fix)
    return Instruction(kind, arguments)


class _Libraries(NamedTuple):
    tokenize: Callable[[str], Any]
    sentences: Callable[[str], Any]
    language: Callable[[str], str | None]


@cache
def _libraries() -> _Libraries:
    try:
        from ja_sentence_segmenter.common.pipeline import make_pipeline
        from ja_sentence_segmenter.concatenate.simple_concatenator import concatenate_matching
        from ja_sentence_segmenter.normalize.neologd_normalizer import normalize
        from ja_sentence_segmenter.split.simple_splitter import split_newline, split_punctuation
        from janome.tokenizer import Tokenizer
        from langdetect import DetectorFactory, LangDetectException, detect
    except ImportError as error:
        raise MetricUnavailableError(
            f"checking instructions needs a package that is not installed: {error.name}",
            fix="pip install 'evalkit[ifeval]'",
        ) from error
    # langdetect draws at random; the seed makes its answers repeatable.
    DetectorFactory.seed = 0

    def language(text: str) -> str | None:
        try:
            return str(detect(text))
        except LangDetectException:
            return None

    joined = partial(
        concatenate_matching, former_matching_rule="^(?P<result>.+)(の)$", remove_former_matched=False
    )
    split = partial(split_punctuation, punctuations="。!?")
    return _Libraries(Tokenizer().tokenize, make_pipeline(normalize, split_newline, joined, split), language)


@lru_cache(maxsize=64)
def _tokens(text: str) -> tuple[tuple[str, str], ...]:
    """Janome's tokens: surface and part of speech."""
    return tuple((token.surface, token.part_of_speech) for token in _libraries().tokenize(text))


def _surfaces(text: str) -> list[str]:
    return [surface for surface, _ in _tokens(text)]


def _sentences(text: str, arguments: Arguments) -> int:
    return len(list(_libraries().sentences(text)))


def _keyword(text: str, arguments: Arguments) -> int:
    return _surfaces(text).count(arguments["keyword"].strip())


def _letters(text: str, arguments: Arguments) -> int:
    # 96 code points further is the same letter in katakana.
    return text.count(arguments["letter"]) + text.count(chr(ord(arguments["letter"]) + 96))


def _sections(text: str, arguments: Arguments) -> int:
    return len(re.split(rf"\s?第[\d０-９]+{re.escape(arguments['section_spliter'])}\s?", text)) - 1


def _nominals(text: str, arguments: Arguments) -> int:
    pairs = pairwise(_tokens(_without_quotations(text)))
    return sum(mark in "。！？" and part.startswith("名詞") for (_, part), (mark, _) in pairs)


def _characters(text: str, arguments: Arguments) -> int:
    return len(text)


def _matches(text: str, arguments: Arguments) -> int:
    return sum(bool(found.strip()) for found in re.findall(arguments["pattern"], text, re.MULTILINE))


def _without_quotations(text: str) -> str:
    return re.sub("『.*?』", "", re.sub("「.*?」", "", text))


def _quantity(found: int, relation: str, n: int) -> Outcome:
    text, holds = _RELATIONS[relation]
    wanted = Reason(text, n=n)
    return holds(found, n), Reason("found {found}, wanted {wanted}", found=found, wanted=wanted)


def _quoted(text: str) -> str:
    line = text.replace("\n", "\\n")
    return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}…"


def _some_of(found: Sequence[str], wanted: Sequence[str]) -> Outcome:
    if found:
        return True, Reason("found {text}", text=_quoted(found[0]))
    return False, Reason("not found: {texts}", texts=wanted)


def _none_of(found: Sequence[str]) -> Outcome:
    if not found:
        return True, Reason("found none")
    return False, Reason("found {texts}, wanted none", texts=_quoted(" ".join(dict.fromkeys(found))))


def _begins(text: str, wanted: str) -> Outcome:
    reason = Reason("begins with {found}, wanted {wanted}", found=_quoted(text), wanted=_quoted(wanted))
    return text.startswith(wanted), reason


def _ends(text: str, wanted: str) -> Outcome:
    end = _quoted(text[-len(wanted) :])
    return text.endswith(wanted), Reason(
        "ends with {found}, wanted {wanted}", found=end, wanted=_quoted(wanted)
    )


def _absent(text: str, arguments: Arguments) -> Outcome:
    return _none_of(re.findall(arguments["pattern"], text))


def _only(text: str, arguments: Arguments) -> Outcome:
    others = re.sub(arguments["pattern"], "", text)
    return _none_of([character for character in others if unicodedata.category(character)[0] == "L"])


def _existence(text: str, arguments: Arguments) -> Outcome:
    absent = [word for word in arguments["keywords"] if word not in _surfaces(text)]
    if absent:
        return False, Reason("not among the tokens of the answer: {texts}", texts=absent)
    return True, Reason("found every keyword")


def _forbidden(text: str, arguments: Arguments) -> Outcome:
    return _none_of([word for word in arguments["forbidden_words"] if word in _surfaces(text)])


def _language(text: str, arguments: Arguments) -> Outcome:
    found, wanted = _libraries().language(text), arguments["language"]
    if found is None:
        return True, Reason("the language cannot be detected")
    return found == wanted, Reason("found {found}, wanted {wanted}", found=found, wanted=wanted)


def _pieces(pieces: Sequence[str], n: int) -> Outcome:
    """Whether n pieces are not blank, and the only blank ones stand first and last."""
    if not all(piece.strip() for piece in pieces[1:-1]):
        return False, Reason("nothing stands between two separators")
    return _quantity(sum(bool(piece.strip()) for piece in pieces), _EXACTLY, n)


def _paragraphs(text: str, arguments: Arguments) -> Outcome:
    return _pieces(re.split(r"\s?\*\*\*\s?", text), arguments["num_paragraphs"])


def _two_responses(text: str, arguments: Arguments) -> Outcome:
    pieces = text.split("******")
    two = _pieces(pieces, 2)
    if two[0] and len({piece.strip() for piece in pieces if piece.strip()}) == 1:
        return False, Reason("the two responses are the same")
    return two


def _first_word(text: str, arguments: Arguments) -> Outcome:
    pieces, nth = text.split("\n\n"), arguments["nth_paragraph"]
    count = sum(bool(piece.strip()) for piece in pieces)
    # The count leaves blank pieces out, the numbering does not: so the reference has it.
    piece = pieces[nth - 1].strip() if nth <= count else ""
    if not piece:
        return False, Reason("there is no paragraph number {n}", n=nth)
    begins = _begins(piece.lstrip("「").lstrip("『"), arguments["first_word"].lower())
    return _quantity(count, _EXACTLY, arguments["num_paragraphs"]) if begins[0] else begins


def _postscript(text: str, arguments: Arguments) -> Outcome:
    marker = arguments["postscript_marker"]
    found = re.search(_POSTSCRIPTS.get(marker, re.escape(marker)), text, re.IGNORECASE)
    return _some_of([found[0]] if found else [], [marker])


def _constrained(text: str, arguments: Arguments) -> Outcome:
    return _some_of([choice for choice in _CONSTRAINED if choice in text], _CONSTRAINED)


def _title(text: str, arguments: Arguments) -> Outcome:
    titles = [title.lstrip("『").rstrip("』") for title in re.findall("『[^\n]+』", text)]
    return _some_of([title for title in titles if title.strip()], ["『…』"])


def _json(text: str, arguments: Arguments) -> Outcome:
    text = text.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError) as error:
        return False, Reason("not JSON: {error}", error=error)
    return True, Reason("it is JSON")


def _repeat(text: str, arguments: Arguments) -> Outcome:
    return _begins(text.strip(), arguments["prompt_to_repeat"].strip())


def _end(text: str, arguments: Arguments) -> Outcome:
    return _ends(text.strip().strip("」』"), arguments["end_phrase"].strip().strip("」』"))


def _quotation(text: str, arguments: Arguments) -> Outcome:
    text = text.strip()
    passed = len(text) > 1 and text[0] == "「" and text[-1] == "」"
    return passed, Reason("the first character is {first}, the last {last}", first=text[0], last=text[-1])


def _unified_end(text: str, arguments: Arguments) -> Outcome:
    sentences = [sentence for sentence in re.split("[。！？]", _without_quotations(text)) if sentence]
    ends = [_ends(sentence, arguments["ending"]) for sentence in sentences]
    return next((end for end in ends if not end[0]), (True, Reason("all {n} sentences end so", n=len(ends))))


def _furigana(text: str, arguments: Arguments) -> Outcome:
    runs, read = (len(re.findall(p, text)) for p in (f"{_KANJI}+", f"{_KANJI}+（[ぁ-ん]+）"))
    return runs == read, Reason("{n} of {all} runs of kanji have furigana", n=read, all=runs)


# By the names of ifeval.yaml: first those that count, then those that pass or do not.
_RULES: dict[str, Callable[[str, Arguments], Any]] = {
    rule.__name__.strip("_"): rule
    for rule in (
        _keyword, _letters, _sentences, _characters, _sections, _nominals, _matches,
        _existence, _forbidden, _language, _paragraphs, _two_responses, _first_word, _postscript,
        _constrained, _title, _json, _repeat, _end, _quotation, _unified_end, _furigana, _absent, _only,
    )
}  # fmt: skip


def verdicts(instructions: Sequence[Instruction], answer: str | None) -> list[Verdict]:
    """One verdict for each instruction of a prompt; a missing (None) or blank answer fails them all.

    Raises:
        MetricUnavailableError: a package of the extra `ifeval` that a check needs is not installed.
    """
    return [_verdict(instruction, answer) for instruction in instructions]


def _verdict(instruction: Instruction, answer: str | None) -> Verdict:
    kind, impossible = instruction.kind, unsatisfiable(instruction)
    if answer is None:
        return Verdict(kind, False, False, Reason("there is no answer"), unsatisfiable=impossible)
    strict, reason = _check(instruction, answer)
    if strict:
        return Verdict(kind, True, True, reason, unsatisfiable=impossible)
    removed = next((what for what, text in variants(answer) if _check(instruction, text)[0]), None)
    return Verdict(kind, False, removed is not None, reason, removed or "", impossible)


def _check(instruction: Instruction, text: str) -> Outcome:
    if not text.strip():
        return False, Reason("the answer is blank")
    return KINDS[instruction.kind].check(text, instruction.arguments)


def variants(answer: str) -> Iterator[tuple[str, str]]:
    """The variants of a loose verdict other than the answer itself: what is removed, and the text.

    Texts that came before are left out.
    """
    lines, seen = answer.split("\n"), {answer}
    shortened = {
        "the first line": "\n".join(lines[1:]).strip(),
        "the last line": "\n".join(lines[:-1]).strip(),
        "the first and the last line": "\n".join(lines[1:-1]).strip(),
    }
    texts = {"*": answer.replace("*", ""), **shortened}
    texts |= {f"{what} and *": text.replace("*", "") for what, text in shortened.items()}
    for what, text in texts.items():
        if text not in seen:
            seen.add(text)
            yield what, text


@cache
def _can_be_token(word: str) -> bool:
    return any(word in _surfaces(frame.format(word)) for frame in _FRAMES)


def unsatisfiable(instruction: Instruction) -> Reason | None:
    """Why no answer can pass: a word that must be one token and that Janome always cuts, or numbers
    that contradict each other. None: nothing of the kind is known.
    """
    arguments = instruction.arguments
    relation = arguments.get("relation", arguments.get("let_relation"))
    numbers = [value for value in arguments.values() if isinstance(value, int)]
    if relation == _BELOW and 0 in numbers:
        return Reason("nothing is fewer than 0")
    if arguments.get("nth_paragraph", 0) > arguments.get("num_paragraphs", 0):
        return Reason("there are fewer paragraphs than the number of the one to check")
    words = list(arguments.get("keywords", ()))
    if "keyword" in arguments and relation == _AT_LEAST and arguments["frequency"] > 0:
        words.append(arguments["keyword"].strip())
    cut = [word for word in words if not _can_be_token(word)]
    return Reason("the tokenizer cuts it into several tokens: {texts}", texts=cut) if cut else None


def passed_share(prompts: Sequence[Sequence[Verdict]], mode: Mode, resamples: int) -> tuple[float, Spread]:
    """The share of passed instructions, and how sure it is.

    The instructions of one prompt are not independent: prompts are resampled, each with all of its own.

    Args:
        prompts: one or more verdicts of each of one or more prompts.
        mode: which of the verdicts.
        resamples: of the bootstrap.
    """
    hits = np.array([sum(getattr(verdict, mode) for verdict in prompt) for prompt in prompts])
    sizes = np.array([len(prompt) for prompt in prompts])
    value = float(hits.sum() / sizes.sum())
    distribution = intervals.resampled_ratios(hits, sizes, resamples)
    spread = intervals.of_statistic(value, distribution, len(hits))
    if spread.interval is None:
        return value, Spread(carried=intervals.widest((hits / sizes).tolist(), (0.0, 1.0)))
    return value, spread


def passed_by(
    verdicts: Iterable[Verdict], name: Callable[[Verdict], str] = lambda verdict: verdict.kind
) -> dict[str, dict[str, int]]:
    """How many instructions were passed, `strict` and `loose` of `n`, by `name`: by kind if not given."""
    found: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        found.setdefault(name(verdict), Counter()).update(
            strict=int(verdict.strict), loose=int(verdict.loose), n=1
        )
    return {key: dict(found[key]) for key in sorted(found)}
