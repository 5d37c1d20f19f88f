"""MMLU (Berkeley's data.tar) and JMMLU (nlp-waseda/JMMLU).

Rules: docs/protocol/jaster.md, section 2.
"""

from evalkit.core.types import Row
from evalkit.sources.archives import checked_members
from evalkit.sources.pins import SourceFile
from evalkit.sources.readers import SourceFiles, comma_separated, decode, text_of
from evalkit.sources.splits import Pools

# Question, four choices, letter.
CELLS = 6
MMLU_FOLDERS = {"train": "dev", "dev": "val", "test": "test"}


def jmmlu(files: SourceFiles) -> Pools:
    """One group for each subject, in the order of the table (which is neither sorted nor upstream's)."""
    return {"all": [_japanese_subject(file) for file in files["all"]]}


def mmlu(files: SourceFiles) -> Pools:
    """One group for each subject of upstream's dev (here train), val (here dev) and test, sorted by name."""
    (file,) = files["all"]
    contents = checked_members(file)
    pools: dict[str, list[list[Row]]] = {}
    for pool, folder in MMLU_FOLDERS.items():
        names = sorted(name for name in contents if name.split("/")[1] == folder)
        pools[pool] = [_english_subject(contents[name], file, name) for name in names]
    return pools


def _japanese_subject(file: SourceFile) -> list[Row]:
    # Read with universal newlines: line ends inside quoted cells become LF.
    text = text_of(file).replace("\r\n", "\n").replace("\r", "\n")
    return [
        Row(f"質問：{question}\n選択肢：A.{a},B.{b},C.{c},D.{d}", answer)
        for question, a, b, c, d, answer in comma_separated(text, file, "", CELLS)
    ]


def _english_subject(data: bytes, file: SourceFile, name: str) -> list[Row]:
    # The misspelt label is part of the published prompts.
    return [
        Row(f"Qusetion: {question}\nChoices: A.{a}, B.{b}, C.{c}, D.{d}", answer)
        for question, a, b, c, d, answer in comma_separated(
            decode(data, file, name), file, f"{name}, ", CELLS
        )
    ]
