"""Asian Language Treebank, parallel corpus (NICT), not verified: see docs/data.md.

Rules: docs/protocol/jaster.md, section 2.
"""

from collections.abc import Mapping

from evalkit.core.types import Row
from evalkit.sources.archives import checked_members
from evalkit.sources.readers import Files, SourceError, SourceFile, decode, text_of
from evalkit.sources.splits import Pools

# article -> sentence id -> text, both in the order of the file.
Corpus = dict[str, dict[str, str]]

# Pairs of this many characters or more, both languages together, are left out.
PAIR_LIMIT = 500


def alt_e_to_j(files: Files) -> Pools:
    """English sentence to Japanese, articles in the order of upstream's lists."""
    if not files.get("pairs"):
        return {}
    (file,) = files["pairs"]
    contents = checked_members(file)
    english, japanese = (_corpus(contents, file, f"data_{language}.txt") for language in ("en", "ja"))
    return {
        split: [_pairs(files[split][0], english, japanese)]
        for split in ("train", "dev", "test")
        if split in files
    }


def alt_j_to_e(files: Files) -> Pools:
    """Japanese sentence to English, the same pairs in the same order."""
    return {
        split: [[Row(input=row.output, output=row.input) for row in group or ()] for group in groups]
        for split, groups in alt_e_to_j(files).items()
    }


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


def _pairs(listed: SourceFile, english: Corpus, japanese: Corpus) -> list[Row]:
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
