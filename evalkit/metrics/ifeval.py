"""M-IFEval, Japanese part: whether an answer follows instructions, checked by rules (extra `ifeval`).

Each prompt has one or more instructions: a kind such as `ja:keywords:existence` and its arguments.
Strict: the answer passes the check of the kind. Loose: it or one of its seven variants does. The rules
are those of lightblue-tech/M-IFEval; docs/metrics.md lists the kinds.
"""

import json
import operator
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from evalkit.core.errors import InputError
from evalkit.core.files import read_yaml
from evalkit.core.reasons import Reason
from evalkit.core.text import canonical_json, did_you_mean
from evalkit.metrics import intervals
from evalkit.metrics.intervals import Spread
from evalkit.metrics.metric import MetricUnavailableError, Mode

Arguments = Mapping[str, Any]
Checked = tuple[bool, Reason]

_AT_LEAST, _BELOW, _EXACTLY = "以上", "未満", "="
_RELATIONS: dict[str, tuple[str, Callable[[int, int], bool]]] = {
    _AT_LEAST: ("at least {n}", operator.ge),
    _BELOW: ("fewer than {n}", operator.lt),
    _EXACTLY: ("exactly {n}", operator.eq),
}
# Every other marker stands for itself.
_POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
_KANJI = "[\u4e00-\u9faf]"
# A word that is one token in none of these is taken for one that Janome always cuts.
_FRAMES = ("{}", "「{}」", "{}は", "この{}の", "{}です。")
_LONGEST_QUOTE = 30


class Instruction(NamedTuple):
    """One instruction of a prompt: each argument of its kind is there and of its type."""

    kind: str
    arguments: Arguments


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


class InstructionKind(NamedTuple):
    """How one kind of instruction is checked: an entry of ifeval.yaml."""

    rule: str
    takes: Mapping[str, str] = MappingProxyType({})
    pattern: str = ""
    relation: str = ""

    def check(self, text: str, arguments: Arguments) -> Checked:
        """Whether a text passes, and what was found."""
        if not text.strip():
            return False, Reason("the answer is blank")
        found = _RULES[self.rule](text, {**arguments, "pattern": self.pattern})
        if isinstance(found, tuple):
            return found
        by_type = {type_: arguments[name] for name, type_ in self.takes.items()}
        return _quantity(found, self.relation or by_type["relation"], by_type["number"])


_TABLE = read_yaml(Path(__file__).with_name("ifeval.yaml"))
KINDS: dict[str, InstructionKind] = {
    f"ja:{name}": InstructionKind(**entry) for name, entry in _TABLE["kinds"].items()
}


# What an argument must be.
_TYPES: dict[str, tuple[Callable[[Any], object], str]] = {
    "number": (lambda value: type(value) is int and value >= 0, "a whole number, 0 or more"),
    "position": (lambda value: type(value) is int and value >= 1, "a whole number, 1 or more"),
    "text": (lambda value: isinstance(value, str) and value.strip(), "a text that is not blank"),
    "texts": (
        lambda value: isinstance(value, list) and value and all(map(_TYPES["text"][0], value)),
        "a list of one or more texts, none blank",
    ),
    "relation": (lambda value: value in (_AT_LEAST, _BELOW), f"one of {_AT_LEAST} {_BELOW}"),
    "letter": (lambda value: re.fullmatch("[ぁ-ん]", str(value)), "one hiragana from ぁ to ん"),
    "language": (lambda value: value in _TABLE["languages"].split(), f"one of {_TABLE['languages']}"),
}


def read_instructions(record: Any, where: str) -> tuple[Instruction, ...]:
    """The instructions of one prompt, in order.

    `record` has the list `instruction_id_list` and, for each kind in it, an object of arguments in the
    list `kwargs`; null arguments count as absent. A parsed gold answer of `gold_of` is one.

    Raises:
        InputError: no such record, an unknown kind, or an argument that is unknown, missing or of a
            wrong type; the message begins its place with `where`.
    """
    if not isinstance(record, Mapping):
        raise InputError("a JSON object with instructions was expected as the gold answer", where=where)
    kinds, arguments = record.get("instruction_id_list"), record.get("kwargs")
    if not isinstance(kinds, list) or not kinds or not all(isinstance(kind, str) for kind in kinds):
        raise InputError("a list of one or more kinds was expected", where=f"{where}, instruction_id_list")
    if not isinstance(arguments, list) or len(arguments) != len(kinds):
        raise InputError(f"a list of {len(kinds)} objects was expected", where=f"{where}, kwargs")
    return tuple(_instruction(kind, given, where) for kind, given in zip(kinds, arguments, strict=True))


def gold_of(record: Mapping[str, Any], where: str) -> str:
    """The gold answer of a sample, JSON: key and instructions of a record that `read_instructions` takes."""
    arguments = [instruction.arguments for instruction in read_instructions(record, where)]
    kept = {name: record[name] for name in ("key", "instruction_id_list") if name in record}
    return canonical_json({**kept, "kwargs": arguments})


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
    known = KINDS[kind].takes
    for name in (*arguments, *known):
        if name not in known:
            what = f"{kind} has no argument {name!r}{did_you_mean(str(name), known)}"
            fix = f"its arguments: {', '.join(known) or 'none'}; remove this one or make it null"
            raise InputError(what, where=f"{where}, kwargs", fix=fix)
        fits, wanted = _TYPES[known[name]]
        if not fits(arguments.get(name)):
            found = repr(arguments[name]) if name in arguments else "missing"
            what = f"{kind}: the argument {name!r} is {found}"
            raise InputError(what, where=f"{where}, kwargs", fix=f"give {wanted}")
    return Instruction(kind, arguments)


@cache
def _tokenizer() -> Any:
    from janome.tokenizer import Tokenizer

    return Tokenizer()


@lru_cache(maxsize=64)
def _tokens(text: str) -> tuple[tuple[str, str], ...]:
    """Janome's tokens: surface and part of speech."""
    return tuple((token.surface, token.part_of_speech) for token in _tokenizer().tokenize(text))


def _surfaces(text: str) -> list[str]:
    return [surface for surface, _ in _tokens(text)]


def _without_quotations(text: str) -> str:
    return re.sub("『.*?』", "", re.sub("「.*?」", "", text))


def _quantity(found: int, relation: str, n: int) -> Checked:
    text, holds = _RELATIONS[relation]
    wanted = Reason(text, n=n)
    return holds(found, n), Reason("found {found}, wanted {wanted}", found=found, wanted=wanted)


def _quoted(text: str) -> str:
    line = text.replace("\n", "\\n")
    return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}…"


def _some_of(found: Sequence[str], *wanted: str) -> Checked:
    if found:
        return True, Reason("found {text}", text=_quoted(found[0]))
    return False, Reason("not found: {texts}", texts=wanted)


def _none_of(found: Sequence[str]) -> Checked:
    if not found:
        return True, Reason("found none")
    return False, Reason("found {texts}, wanted none", texts=_quoted(" ".join(dict.fromkeys(found))))


def _begins(text: str, wanted: str) -> Checked:
    reason = Reason("begins with {found}, wanted {wanted}", found=_quoted(text), wanted=_quoted(wanted))
    return text.startswith(wanted), reason


def _ends(text: str, wanted: str) -> Checked:
    found = _quoted(text[-len(wanted) :])
    reason = Reason("ends with {found}, wanted {wanted}", found=found, wanted=_quoted(wanted))
    return text.endswith(wanted), reason


def _existence(text: str, given: Arguments) -> Checked:
    absent = [word for word in given["keywords"] if word not in _surfaces(text)]
    if absent:
        return False, Reason("not among the tokens of the answer: {texts}", texts=absent)
    return True, Reason("found every keyword")


def _language(text: str, given: Arguments) -> Checked:
    from langdetect import DetectorFactory, LangDetectException, detect

    # langdetect draws at random; the seed makes its answers repeatable.
    DetectorFactory.seed = 0
    wanted = given["language"]
    try:
        found = detect(text)
    except LangDetectException:
        return True, Reason("the language cannot be detected")
    return found == wanted, Reason("found {found}, wanted {wanted}", found=found, wanted=wanted)


def _sentences(text: str, given: Arguments) -> int:
    from ja_sentence_segmenter.concatenate.simple_concatenator import concatenate_matching
    from ja_sentence_segmenter.normalize.neologd_normalizer import normalize
    from ja_sentence_segmenter.split.simple_splitter import split_newline, split_punctuation

    joined = concatenate_matching(
        split_newline(normalize(text)),
        former_matching_rule="^(?P<result>.+)(の)$",
        remove_former_matched=False,
    )
    return sum(1 for _ in split_punctuation(joined, punctuations="。!?"))


def _pieces(pieces: Sequence[str], n: int) -> Checked:
    """Whether n pieces are not blank, and the only blank ones stand first and last."""
    if not all(piece.strip() for piece in pieces[1:-1]):
        return False, Reason("nothing stands between two separators")
    return _quantity(sum(bool(piece.strip()) for piece in pieces), _EXACTLY, n)


def _two_responses(text: str, given: Arguments) -> Checked:
    pieces = text.split("******")
    two = _pieces(pieces, 2)
    if two[0] and len({piece.strip() for piece in pieces if piece.strip()}) == 1:
        return False, Reason("the two responses are the same")
    return two


def _first_word(text: str, given: Arguments) -> Checked:
    pieces, nth = text.split("\n\n"), given["nth_paragraph"]
    count = sum(bool(piece.strip()) for piece in pieces)
    # The count leaves blank pieces out, the numbering does not: so the reference has it.
    piece = pieces[nth - 1].strip() if nth <= count else ""
    if not piece:
        return False, Reason("there is no paragraph number {n}", n=nth)
    begins = _begins(piece.lstrip("「").lstrip("『"), given["first_word"].lower())
    return _quantity(count, _EXACTLY, given["num_paragraphs"]) if begins[0] else begins


def _postscript(text: str, given: Arguments) -> Checked:
    marker = given["postscript_marker"]
    return _some_of(re.findall(_POSTSCRIPTS.get(marker, re.escape(marker)), text, re.IGNORECASE), marker)


def _title(text: str, given: Arguments) -> Checked:
    titles = [title.lstrip("『").rstrip("』") for title in re.findall("『[^\n]+』", text)]
    return _some_of([title for title in titles if title.strip()], "『…』")


def _json(text: str, given: Arguments) -> Checked:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError) as error:
        return False, Reason("not JSON: {error}", error=error)
    return True, Reason("it is JSON")


def _quotation(text: str, given: Arguments) -> Checked:
    text = text.strip()
    passed = len(text) > 1 and text[0] == "「" and text[-1] == "」"
    return passed, Reason("the first character is {first}, the last {last}", first=text[0], last=text[-1])


def _unified_end(text: str, given: Arguments) -> Checked:
    sentences = [sentence for sentence in re.split("[。！？]", _without_quotations(text)) if sentence]
    ends = [_ends(sentence, given["ending"]) for sentence in sentences]
    return next((end for end in ends if not end[0]), (True, Reason("all {n} sentences end so", n=len(ends))))


def _furigana(text: str, given: Arguments) -> Checked:
    runs, read = (len(re.findall(p, text)) for p in (f"{_KANJI}+", f"{_KANJI}+（[ぁ-ん]+）"))
    return runs == read, Reason("{n} of {all} runs of kanji have furigana", n=read, all=runs)


# The rules of ifeval.yaml: what a rule counts in a text, or whether the text passes and why.
_RULES: dict[str, Callable[[str, Arguments], int | Checked]] = {
    "absent": lambda text, given: _none_of(re.findall(given["pattern"], text)),
    "characters": lambda text, given: len(text),
    "end": lambda text, given: _ends(text.strip().strip("」』"), given["end_phrase"].strip().strip("」』")),
    "existence": _existence,
    "first_word": _first_word,
    "forbidden": lambda text, given: _none_of([w for w in given["forbidden_words"] if w in _surfaces(text)]),
    "furigana": _furigana,
    "json": _json,
    "keyword": lambda text, given: _surfaces(text).count(given["keyword"].strip()),
    "language": _language,
    # 96 code points further is the same letter in katakana.
    "letters": lambda text, given: sum(map(text.count, (given["letter"], chr(ord(given["letter"]) + 96)))),
    "matches": lambda text, given: sum(
        bool(found.strip()) for found in re.findall(given["pattern"], text, re.MULTILINE)
    ),
    "nominals": lambda text, given: sum(
        mark in "。！？" and part.startswith("名詞")
        for (_, part), (mark, _) in pairwise(_tokens(_without_quotations(text)))
    ),
    "one_of": lambda text, given: _some_of(re.findall(given["pattern"], text), *given["pattern"].split("|")),
    "only": lambda text, given: _none_of(
        [sign for sign in re.sub(given["pattern"], "", text) if unicodedata.category(sign)[0] == "L"]
    ),
    "paragraphs": lambda text, given: _pieces(re.split(r"\s?\*\*\*\s?", text), given["num_paragraphs"]),
    "postscript": _postscript,
    "quotation": _quotation,
    "repeat": lambda text, given: _begins(text.strip(), given["prompt_to_repeat"].strip()),
    "sections": lambda text, given: len(re.findall(rf"第\d+{re.escape(given['section_spliter'])}", text)),
    "sentences": _sentences,
    "title": _title,
    "two_responses": _two_responses,
    "unified_end": _unified_end,
}


def verdicts(instructions: Sequence[Instruction], answer: str | None) -> list[Verdict]:
    """One verdict for each instruction of a prompt; a missing (None) or blank answer fails them all.

    Raises:
        MetricUnavailableError: a package of the extra `ifeval` that a check needs is not installed.
    """
    try:
        return [_verdict(instruction, answer) for instruction in instructions]
    except ImportError as error:
        raise MetricUnavailableError(
            f"checking instructions needs a package that is not installed: {error.name}",
            fix="pip install 'evalkit[ifeval]'",
        ) from error


def _verdict(instruction: Instruction, answer: str | None) -> Verdict:
    check = partial(KINDS[instruction.kind].check, arguments=instruction.arguments)
    strict, reason = (False, Reason("there is no answer")) if answer is None else check(answer)
    others: Mapping[str, str] = {} if strict or answer is None else variants(answer)
    removed = next((what for what, text in others.items() if check(text)[0]), None)
    passed, impossible = strict or removed is not None, unsatisfiable(instruction)
    return Verdict(instruction.kind, strict, passed, reason, removed or "", impossible)


def variants(answer: str) -> dict[str, str]:
    """The seven variants of a loose verdict beside the answer, which some may equal, by what is removed."""
    lines = answer.split("\n")
    shortened = {
        "the first line": "\n".join(lines[1:]).strip(),
        "the last line": "\n".join(lines[:-1]).strip(),
        "the first and the last line": "\n".join(lines[1:-1]).strip(),
    }
    bare = {f"{what} and *": text.replace("*", "") for what, text in shortened.items()}
    return {"*": answer.replace("*", ""), **shortened, **bare}


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
    """The share of passed instructions, of one or more in each of one or more prompts, and how sure it is.

    The instructions of one prompt are not independent: prompts are resampled, each with all of its own.
    """
    hits = np.array([sum(getattr(verdict, mode) for verdict in prompt) for prompt in prompts])
    sizes = np.array([len(prompt) for prompt in prompts])
    value = float(hits.sum() / sizes.sum())
    distribution = intervals.resampled_ratios(hits, sizes, resamples)
    spread = intervals.of_statistic(value, distribution, len(hits))
    if spread.interval is None:
        return value, Spread(carried=intervals.widest((hits / sizes).tolist(), (0.0, 1.0)))
    return value, spread


def passed_by(verdicts: Iterable[Verdict], name: Callable[[Verdict], str]) -> dict[str, dict[str, int]]:
    """How many instructions were passed, `strict` and `loose` of `n`, by `name`."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for verdict in verdicts:
        found[name(verdict)].update(strict=int(verdict.strict), loose=int(verdict.loose), n=1)
    return {key: dict(found[key]) for key in sorted(found)}
