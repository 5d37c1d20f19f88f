"""chABSA: opinions and their polarity in securities reports.

Rules: docs/protocol/jaster.md, section 2.
"""

from evalkit.core.types import Row
from evalkit.sources.archives import checked_members
from evalkit.sources.pins import SourceFile
from evalkit.sources.readers import Record, SourceFiles, decode, parse_json, with_unique_ids
from evalkit.sources.splits import Pools


def chabsa(files: SourceFiles) -> Pools:
    """One sample for each sentence with an opinion: a line `target polarity` for each of its opinions."""
    (file,) = files["all"]
    contents = checked_members(file)
    return {"all": [_report(contents[name], file, name) for name in sorted(contents)]}


def _report(data: bytes, file: SourceFile, name: str) -> list[Row]:
    report = Record(parse_json(decode(data, file, name), file, name), file, name)
    rows = []
    for sentence in with_unique_ids(report.items("sentences"), "sentence_id", int):
        text = sentence.text("sentence")
        lines = [
            f"{opinion.text('target')} {opinion.text('polarity')}" for opinion in sentence.items("opinions")
        ]
        if lines:
            rows.append(Row(f"文章：{text}", "\n".join(lines)))
    return rows
