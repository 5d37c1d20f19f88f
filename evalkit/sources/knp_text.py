"""One annotated document -> one sample, for each of the five datasets of the Wikipedia corpus.

Brackets of an article are annotated as separate sentences, which follow the sentence they were
cut from; the comments of both say where they belong (docs/protocol/jaster.md, section 2).
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from evalkit.core.types import Row

if TYPE_CHECKING:
    from rhoknp import BasePhrase, Document, Morpheme, Sentence
    from rhoknp.cohesion import RelTagList

BRACKET = "括弧始"
BRACKET_CUT_OUT = "括弧削除"
_BRACKET_COMMENT = re.compile(r"括弧始:(\S+) 括弧終:(\S+) 括弧位置:(\d+)")

LETTER_NAMES = {
    "A": "えー", "B": "びー", "C": "しー", "D": "でぃー", "E": "いー", "F": "えふ", "G": "じー",
    "H": "えいち", "I": "あい", "J": "じぇー", "K": "けー", "L": "える", "M": "えむ", "N": "えぬ",
    "O": "おー", "P": "ぴー", "Q": "きゅー", "R": "あーる", "S": "えす", "T": "てぃー", "U": "ゆー",
    "V": "ぶい", "W": "だぶりゅー", "X": "えっくす", "Y": "わい", "Z": "ぜっと",
}  # fmt: skip
ENTITY_KINDS = {
    "ORGANIZATION": "組織名",
    "PERSON": "人名",
    "LOCATION": "地名",
    "ARTIFACT": "固有物名",
    "DATE": "日付表現",
    "TIME": "時刻表現",
    "MONEY": "金額表現",
    "PERCENT": "割合表現",
}
# As annotated -> as written in the answer.
CASES = {
    "ガ": "ガ", "デ": "デ", "ト": "ト", "ニ": "ニ", "ヘ": "ヘ", "ヲ": "ヲ",
    "カラ": "カラ", "ガ２": "ガ", "マデ": "マデ", "ヨリ": "ヨリ",
}  # fmt: skip
PARTICLES = frozenset({"助詞", "特殊"})
PARTICLES_AND_COPULA = PARTICLES | {"判定詞"}


def samples(knp: str) -> dict[str, Row]:
    """The sample of each dataset from a document in KNP format, by the name of its function below.

    Raises:
        ValueError, IndexError, AssertionError: not in KNP format.
    """
    from rhoknp import Document, Sentence

    whole, shorter = Document(), Document()
    parts = [part.strip("\r\n") for part in re.split(r"^EOS\s*$", knp, flags=re.MULTILINE) if part.strip()]
    whole.sentences = [Sentence.from_knp(f"{part}\nEOS\n", post_init=False) for part in parts]
    tags = [(base_phrase, base_phrase.rel_tags) for base_phrase in whole.base_phrases]
    # To resolve the relations takes as long as to parse the text, so each is resolved where it counts:
    # those of cases in the whole document, those of identity without the mentions in brackets.
    _resolve(whole, tags, identity=False)
    rows = {one.__name__: one(whole) for one in (reading, named_entities, dependencies, predicates)}
    shorter.sentences = _without_brackets(whole)
    _resolve(shorter, tags, identity=True)
    return rows | {coreferences.__name__: coreferences(shorter)}


def _resolve(
    document: "Document", tags: "Sequence[tuple[BasePhrase, RelTagList]]", *, identity: bool
) -> None:
    """Resolves the relations of identity, or all others, and forgets those resolved before.

    `tags` are the base phrases with all their relations.
    """
    from rhoknp.cohesion import EntityManager, Pas, Predicate, RelTagList

    EntityManager.reset()
    for base_phrase, given in tags:
        base_phrase.rel_tags = RelTagList(tag for tag in given if tag.is_coreference() == identity)
        base_phrase.pas = Pas(Predicate(base_phrase))
        base_phrase.entities.clear()
        base_phrase.entities_nonidentical.clear()
    for sentence in document.sentences:
        siblings = sentence.base_phrases
        for base_phrase in siblings:
            # rhoknp would compare all pairs, with everything above them.
            base_phrase.children = [one for one in siblings if one.parent_index == base_phrase.index]
    document.__post_init__()


def reading(document: "Document") -> Row:
    """The hiragana of every morpheme outside of brackets."""
    sentences = _without_brackets(document)
    return Row(
        _text(sentences),
        "".join(_reading(morpheme) for sentence in sentences for morpheme in sentence.morphemes),
    )


def named_entities(document: "Document") -> Row:
    """`text（kind）` of every named entity, joined by spaces."""
    entities = [
        f"{entity.text}（{ENTITY_KINDS[entity.category.value]}）"
        for entity in document.named_entities
        if entity.category.value in ENTITY_KINDS
    ]
    return Row(_with_brackets(document), " ".join(entities))


def dependencies(document: "Document") -> Row:
    """`phrase -> the phrase it depends on`, one line each."""
    sentences = _without_brackets(document)
    lines = [
        f"{phrase.text} -> {phrase.parent.text}"
        for sentence in sentences
        for phrase in sentence.phrases
        if phrase.parent is not None
    ]
    return Row(_text(sentences), "\n".join(lines))


def predicates(document: "Document") -> Row:
    """`predicate case：argument ...`, one line for each predicate with an argument in the text."""
    lines = []
    for structure in document.pas_list:
        base_phrase = structure.predicate.base_phrase
        arguments = _arguments(base_phrase)
        predicate = _core(base_phrase.phrase.morphemes, PARTICLES_AND_COPULA, PARTICLES)
        if arguments and predicate:
            lines.append(" ".join([predicate, *arguments]))
    return Row(_with_brackets(document), "\n".join(lines))


def coreferences(document: "Document") -> Row:
    """The base phrases of each thing that is mentioned more than once, one line each."""
    mentions: dict[tuple[int, ...], list[BasePhrase]] = {}
    for base_phrase in document.base_phrases:
        if entities := tuple(sorted(entity.eid for entity in base_phrase.entities)):
            mentions.setdefault(entities, []).append(base_phrase)
    groups = [group for group in mentions.values() if len(group) > 1]
    return Row(document.text, "\n".join(" ".join(map(_base_phrase_text, group)) for group in groups))


def _without_brackets(document: "Document") -> "list[Sentence]":
    return [sentence for sentence in document.sentences if BRACKET not in sentence.comment]


def _text(sentences: "Iterable[Sentence]") -> str:
    return "".join(sentence.text for sentence in sentences)


def _with_brackets(document: "Document") -> str:
    """The text with one bracket per sentence put back where it was cut out; further ones follow."""
    parts, sentences = [], iter(document.sentences)
    for sentence in sentences:
        text = sentence.text
        if BRACKET_CUT_OUT in sentence.comment and (bracket := next(sentences, None)) is not None:
            if found := _BRACKET_COMMENT.search(bracket.comment):
                opening, closing, position = found[1], found[2], int(found[3])
                text = f"{text[:position]}{opening}{bracket.text}{closing}{text[position:]}"
            else:
                text += bracket.text
        parts.append(text)
    return "".join(parts)


def _reading(morpheme: "Morpheme") -> str:
    text: str = morpheme.reading.split("/")[0]
    if text in (" ", "　") and morpheme.text != text:
        return ""
    if all(letter in LETTER_NAMES for letter in text):
        return "".join(LETTER_NAMES[letter] for letter in text)
    return text


def _arguments(predicate: "BasePhrase") -> list[str]:
    arguments, cases = [], predicate.pas.cases
    for case, written in CASES.items():
        if case not in cases:
            continue
        for argument in predicate.pas.get_arguments(case, relax=False):
            # An argument outside of the text has no base phrase.
            base_phrase = getattr(argument, "base_phrase", None)
            if base_phrase is not None and base_phrase.phrase != predicate.phrase:
                arguments.append(f"{written}：{_base_phrase_text(base_phrase)}")
    return arguments


def _base_phrase_text(base_phrase: "BasePhrase") -> str:
    """The base phrase with its adjacent dependents in the phrase, without particles around it."""
    siblings = base_phrase.phrase.base_phrases
    first = last = siblings.index(base_phrase)
    while last + 1 < len(siblings) and _depends(siblings[last + 1], base_phrase):
        last += 1
    while first > 0 and _depends(siblings[first - 1], base_phrase):
        first -= 1
    morphemes = [morpheme for sibling in siblings[first : last + 1] for morpheme in sibling.morphemes]
    return _core(morphemes, PARTICLES_AND_COPULA, PARTICLES_AND_COPULA)


def _depends(base_phrase: "BasePhrase", on: "BasePhrase") -> bool:
    parent = base_phrase.parent
    while parent is not None and parent != on:
        parent = parent.parent
    return parent is not None


def _core(morphemes: "Sequence[Morpheme]", leading: frozenset[str], trailing: frozenset[str]) -> str:
    """The text without the parts of speech given at its two ends; all of it if nothing else is there."""
    first, last = 0, len(morphemes)
    while first < last and morphemes[first].pos in leading:
        first += 1
    while last > first and morphemes[last - 1].pos in trailing:
        last -= 1
    return "".join(morpheme.text for morpheme in (morphemes[first:last] or morphemes))
