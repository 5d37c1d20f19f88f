"""Wikipedia Annotated Corpus, in KNP format: five datasets of one corpus.

Rules: docs/protocol/jaster.md, section 2.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from evalkit.core.types import Row
from evalkit.sources import knp_text
from evalkit.sources.archives import checked_members
from evalkit.sources.pins import SourceFile
from evalkit.sources.readers import SourceError, SourceFiles, decode
from evalkit.sources.splits import Pools


def wiki_reading(files: SourceFiles) -> Pools:
    """Text without its bracketed sentences -> its reading in hiragana."""
    return _pools(files, "reading")


def wiki_ner(files: SourceFiles) -> Pools:
    """Text with the brackets put back -> its named entities and their kinds."""
    return _pools(files, "named_entities")


def wiki_dependency(files: SourceFiles) -> Pools:
    """Text without its bracketed sentences -> which phrase depends on which."""
    return _pools(files, "dependencies")


def wiki_pas(files: SourceFiles) -> Pools:
    """Text with the brackets put back -> predicates and their arguments."""
    return _pools(files, "predicates")


def wiki_coreference(files: SourceFiles) -> Pools:
    """Text without its bracketed sentences -> the phrases that mean the same thing."""
    return _pools(files, "coreferences")


def _pools(files: SourceFiles, kind: str) -> Pools:
    return {
        split: [[rows[kind] for rows in documents if rows[kind].output.strip()]]
        for split, documents in _samples(files["all"][0]).items()
    }


# Five datasets share what takes long. All documents at once would take two gigabytes.
@lru_cache(maxsize=1)
def _samples(file: SourceFile) -> dict[str, list[dict[str, Row]]]:
    """split -> for each document, in the order of their ids, its samples by kind."""
    with _quiet():
        return {
            split: [_made(text, file, name) for name, text in texts.items()]
            for split, texts in _texts(file).items()
        }


clear_cache = _samples.cache_clear


def _texts(file: SourceFile) -> dict[str, dict[str, str]]:
    """split -> member name -> KNP text, in the order of the document ids."""
    contents = checked_members(file)
    lists = {name.rsplit("/", 1)[1]: name for name in contents if name.endswith(".id")}
    documents = {
        name.rsplit("/", 1)[1].removesuffix(".knp"): name for name in contents if name.endswith(".knp")
    }
    texts: dict[str, dict[str, str]] = {}
    for split in ("train", "dev", "test"):
        listed = decode(contents[lists[f"{split}.id"]], file, f"{split}.id").split()
        if len(set(listed)) != len(listed):
            raise SourceError("a document is listed twice", file, f"{split}.id")
        if missing := set(listed) - set(documents):
            raise SourceError(f"the document {min(missing)} is listed and missing", file, f"{split}.id")
        names = [documents[document] for document in sorted(listed)]
        texts[split] = {name: decode(contents[name], file, name) for name in names}
    return texts


def _made(text: str, file: SourceFile, name: str) -> dict[str, Row]:
    try:
        return knp_text.samples(text)
    except (ValueError, IndexError, AssertionError) as error:
        raise SourceError(f"not in KNP format: {error}", file, name) from error


@contextmanager
def _quiet() -> Iterator[None]:
    # rhoknp warns of hundreds of annotations it does not use; they do not concern the samples.
    logger = logging.getLogger("rhoknp")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
