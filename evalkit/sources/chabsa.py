"""chABSA: opinions and their polarity in securities reports.

Rules: docs/protocol/jaster.md, section 2.
"""

from evalkit.core.types import Row
from evalkit.sources.archives import checked_members
from evalkit.sources.readers import Files, SourceFile, decode, get, parse_json, unique
from evalkit.sources.splits import Pools


def chabsa(files: Files) -> Pools:
    """One sample for each sentence with an opinion: a line `target polarity` for each of its opinions."""
    (file,) = files["all"]
    contents = checked_members(file)
    return {"all": [_report(contents[name], file, name) for name in sorted(contents)]}


def _report(data: bytes, file: SourceFile, name: str) -> list[Row]:
    sentences = get(parse_json(decode(data, file, name), file, name), "sentences", list, file, name)
    places = [f"{name}, sentences[{index}]" for index in range(len(sentences))]
    unique(
        (
            (place, get(sentence, "sentence_id", int, file, place))
            for place, sentence in zip(places, sentences, strict=True)
        ),
        file,
    )
    rows = []
    for place, sentence in zip(places, sentences, strict=True):
        text = get(sentence, "sentence", str, file, place)
        lines = [
            f"{get(opinion, 'target', str, file, place)} {get(opinion, 'polarity', str, file, place)}"
            for opinion in get(sentence, "opinions", list, file, place)
        ]
        if lines:
            rows.append(Row(f"文章：{text}", "\n".join(lines)))
    return rows
