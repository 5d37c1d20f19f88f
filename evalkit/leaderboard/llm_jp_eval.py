"""llm-jp-eval's own result JSON -> a row of the kind `llm-jp-eval`.

Its versions put the scores at the top, below `evaluation` or below `evaluation_results`; their keys
are AVG, the categories and `<dataset>_<metric>`. The file has neither data hashes nor intervals,
so its row is not compared with others.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalkit.core.errors import InputError
from evalkit.core.files import read_json
from evalkit.core.reasons import Reason
from evalkit.leaderboard.rows import HUB, JASTER_COLUMNS, BoardRow, Origin
from evalkit.records.results import Figure, is_number

RULES = "llm-jp-eval's own result, as its file says"
_HUB_NAME = r"\w[\w.-]*/\w[\w.-]*"
_PLACES = ((), ("evaluation",), ("evaluation_results",), ("results",))
_NAMES = (
    ("config", "run_name"),
    ("run_name",),
    ("config", "wandb", "run_name"),
    ("config", "model", "pretrained_model_name_or_path"),
    ("config", "model", "name_or_path"),
    ("model",),
)


def read_llm_jp_eval(path: Path) -> BoardRow:
    """The row of one result file.

    Raises:
        InputError: not JSON, or no scores in it.
    """
    content = read_json(path, mend=True)
    scores = _scores(content)
    if not scores:
        raise InputError("no scores in it: llm-jp-eval's result has AVG, NLI, ... below scores", where=path)
    name = _name(content) or path.stem
    return BoardRow(
        model=name,
        kind=Origin.llm_jp_eval,
        url=HUB + name if re.fullmatch(_HUB_NAME, name, re.ASCII) else None,
        cells={column: Figure(scores[column]) for column in JASTER_COLUMNS if column in scores},
        datasets={key: Figure(value) for key, value in scores.items() if key not in JASTER_COLUMNS},
        rules=RULES,
        remarks=(Reason("read from {name}", name=path.name),),
    )


def _scores(content: Any) -> dict[str, float]:
    for place in _PLACES:
        found = _at(content, (*place, "scores"))
        entries = found.items() if isinstance(found, dict) else ()
        if scores := {str(key): float(value) for key, value in entries if is_number(value)}:
            return scores
    return {}


def _name(content: Any) -> str | None:
    names = (_at(content, place) for place in _NAMES)
    return next((name for name in names if isinstance(name, str) and name), None)


def _at(content: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content
