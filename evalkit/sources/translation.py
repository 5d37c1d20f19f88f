"""English and Japanese pairs: the ALT parallel corpus and Wikipedia's Kyoto articles, both from NICT.

Rules: docs/protocol/jaster.md, section 2. ALT is not verified: see docs/data.md.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from xml.etree.ElementTree import Element

from evalkit.core.types import Row
from evalkit.sources.archives import check_members, checked_members, members
from evalkit.sources.pins import SourceFile
from evalkit.sources.readers import SourceError, SourceFiles, decode, text_of, xml_of
from evalkit.sources.splits import Groups, Pools, cuts_80_10_10, shuffled

# article -> sentence id -> text, both in the order of the file.
Corpus = dict[str, dict[str, str]]

# Pairs of this many characters or more, both languages together, are left out.
PAIR_LIMIT = 500
# The Kyoto articles whose bytes are pinned: all of dev and test, and those the few-shots are taken from.
PINNED_TRAIN_ARTICLES = 50


def wiki_corpus_e_to_j(files: SourceFiles) -> Pools:
    """English paragraph to Japanese, one group for each article in sorted order."""
    return {"all": _articles(files["all"][0])}


def wiki_corpus_j_to_e(files: SourceFiles) -> Pools:
    """Japanese paragraph to English, the same pairs in the same order."""
    return _reversed(wiki_corpus_e_to_j(files))


def alt_e_to_j(files: SourceFiles) -> Pools:
    """English sentence to Japanese, articles in the order of upstream's lists."""
    if not files.get("pairs"):
        return {}
    (file,) = files["pairs"]
    contents = checked_members(file)
    english, japanese = (_corpus(contents, file, f"data_{language}.txt") for language in ("en", "ja"))
    return {
        split: [_listed_pairs(files[split][0], english, japanese)]
        for split in ("train", "dev", "test")
        if split in files
    }


def alt_j_to_e(files: SourceFiles) -> Pools:
    """Japanese sentence to English, the same pairs in the same order."""
    return _reversed(alt_e_to_j(files))


def _reversed(pools: Pools) -> Pools:
    """Every pair with its input and output exchanged."""
    return {
        pool: [
            None if group is None else [Row(input=row.output, output=row.input) for row in group]
            for group in groups
        ]
        for pool, groups in pools.items()
    }


# --- Wikipedia's Kyoto articles -------------------------------------------------------------------


# Both directions share one reading of the archive.
@lru_cache(maxsize=1)
def _articles(file: SourceFile) -> Groups:
    articles: dict[str, list[Row] | None] = {}
    digests: dict[str, str] = {}
    for name, data in members(file):
        articles[name] = _paragraphs(data, file, name)
        digests[name] = hashlib.sha256(data).hexdigest()
    names = sorted(articles)
    check_members(file, {name: digests[name] for name in _pinned(names)})
    return [articles[name] for name in names]


clear_cache = _articles.cache_clear


def _pinned(names: Sequence[str]) -> list[str]:
    order = shuffled(names)
    end_of_train, _ = cuts_80_10_10(len(order))
    return order[:PINNED_TRAIN_ARTICLES] + order[end_of_train:]


def _paragraphs(data: bytes, file: SourceFile, name: str) -> list[Row] | None:
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


# --- ALT ------------------------------------------------------------------------------------------


def _corpus(contents: Mapping[str, bytes], file: SourceFile, ending: str) -> Corpus:
    (name,) = (name for name in contents if name.endswith(ending))
    corpus: Corpus = {}
    for number, line in enumerate(decode(contents[name], file, name).split("\n"), start=1):
        tag, tab, sentence = line.partition("\t")
        if tab:
            article, sentence_id = _tag_parts(tag, "SNT", 3, file, f"{name}, line {number}")
            sentences = corpus.setdefault(article, {})
            if sentence_id in sentences:
                raise SourceError(f"the id {tag!r} is used twice", file, f"{name}, line {number}")
            sentences[sentence_id] = sentence.strip()
    return corpus


def _listed_pairs(listed: SourceFile, english: Corpus, japanese: Corpus) -> list[Row]:
    rows = []
    for number, line in enumerate(text_of(listed).split("\n"), start=1):
        if line.strip():
            tag = line.partition("\t")[0]
            article, _ = _tag_parts(tag, "URL", 2, listed, f"line {number}")
            translated = japanese.get(article, {})
            for sentence_id, sentence in english.get(article, {}).items():
                if sentence_id in translated and len(sentence) + len(translated[sentence_id]) < PAIR_LIMIT:
                    rows.append(Row(input=sentence, output=translated[sentence_id]))
    return rows


def _tag_parts(tag: str, kind: str, count: int, file: SourceFile, place: str) -> tuple[str, str]:
    parts = tag.strip().split(".")
    if len(parts) != count or parts[0] != kind:
        raise SourceError(f"{tag!r} is not a tag like {kind}{'.80188' * (count - 1)}", file, place)
    return parts[1], parts[-1]
