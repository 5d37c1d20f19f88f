"""Japanese-English Bilingual Corpus of Wikipedia's Kyoto Articles (NICT).

Rules: docs/protocol/jaster.md, section 2.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from xml.etree.ElementTree import Element

from evalkit.core.types import Row
from evalkit.sources.archives import check_members, members
from evalkit.sources.readers import Files, SourceFile, decode, xml_of
from evalkit.sources.splits import Groups, Pools, cuts_80_10_10, shuffled

# Pairs of this many characters or more, both languages together, are left out.
PAIR_LIMIT = 500
# The articles whose bytes are pinned: all of dev and test, and those the few-shots are taken from.
PINNED_TRAIN_ARTICLES = 50


def wiki_corpus_e_to_j(files: Files) -> Pools:
    """English paragraph to Japanese, one group for each article in sorted order."""
    return {"all": _articles(files["all"][0])}


def wiki_corpus_j_to_e(files: Files) -> Pools:
    """Japanese paragraph to English, the same pairs in the same order."""
    return {
        "all": [
            None if article is None else [Row(input=row.output, output=row.input) for row in article]
            for article in _articles(files["all"][0])
        ]
    }


# Both directions come from one reading of the archive.
@lru_cache(maxsize=1)
def _articles(file: SourceFile) -> Groups:
    articles: dict[str, list[Row] | None] = {}
    digests: dict[str, str] = {}
    for name, data in members(file):
        articles[name] = _pairs(data, file, name)
        digests[name] = hashlib.sha256(data).hexdigest()
    names = sorted(articles)
    check_members(file, {name: digests[name] for name in _pinned(names)})
    return [articles[name] for name in names]


clear_cache = _articles.cache_clear


def _pinned(names: Sequence[str]) -> list[str]:
    order = shuffled(names)
    end_of_train, _ = cuts_80_10_10(len(order))
    return order[:PINNED_TRAIN_ARTICLES] + order[end_of_train:]


def _pairs(data: bytes, file: SourceFile, name: str) -> list[Row] | None:
    """The paragraphs of an article, English and Japanese; None: the file is an empty stub."""
    # Upstream's text holds bare ampersands (and entities, which stay as they are written).
    root = xml_of(decode(data, file, name).replace("&", "&amp;"), file, name)
    if len(root) == 0:
        return None
    pairs = []
    for paragraph in root.findall("par"):
        sentences = [both for sentence in paragraph.findall("sen") if (both := _both(sentence))]
        japanese = " ".join(ja for ja, _ in sentences)
        english = " ".join(en for _, en in sentences)
        if len(japanese) + len(english) < PAIR_LIMIT:
            pairs.append(Row(input=english, output=japanese))
    return pairs


def _both(sentence: Element) -> tuple[str, str] | None:
    japanese = sentence.findtext("j")
    english = sentence.findtext("e[@type='check']")
    # findtext gives "" for an element without text, which counts as absent too.
    return (japanese, english) if japanese and english else None
