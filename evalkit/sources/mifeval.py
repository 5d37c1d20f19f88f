"""M-IFEval, Japanese part (lightblue-tech/M-IFEval).

Rules: docs/protocol/mifeval_ja.md, section 1.
"""

from evalkit.core.errors import InputError
from evalkit.core.types import Row
from evalkit.metrics.ifeval import gold_of
from evalkit.sources.pins import SourceFile
from evalkit.sources.readers import SourceError, SourceFiles, json_lines, per_file, with_unique_ids
from evalkit.sources.splits import Pools


def mifeval(files: SourceFiles) -> Pools:
    """The prompts; what is checked of each answer are its key and its instructions."""
    return per_file(files, _prompts)


def _prompts(file: SourceFile) -> list[Row]:
    rows = []
    for record in with_unique_ids(json_lines(file), "key", int):
        try:
            rows.append(Row(record.text("prompt"), gold_of(record.value, record.place)))
        except InputError as error:
            raise SourceError(error.what, file, str(error.where)) from None
    return rows
