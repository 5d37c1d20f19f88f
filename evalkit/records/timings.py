"""timings.json of a run: seconds each dataset took, over all commands that worked on it.

The time until a completion arrives counts for the completion's dataset; where a batch mixes datasets
the split between them is rough. Nothing but the report at the end of a run reads it.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from evalkit.core.durable import write_json_atomic
from evalkit.core.errors import EvalkitError
from evalkit.core.types import Completion

log = logging.getLogger(__name__)

FILE_NAME = "timings.json"


def read_timings(folder: Path) -> dict[str, float]:
    """Seconds by dataset; empty where nothing was measured or the file is damaged."""
    try:
        content = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return {}


def timed(
    completions: Iterable[Completion], folder: Path, dataset_of: Callable[[str], str]
) -> Iterator[Completion]:
    """Hands completions on and adds the time they took to the run's timings.

    Args:
        completions: as an engine yields them.
        folder: the run directory; its timings are written when the completions end, however they do.
        dataset_of: the dataset of a sample by the sample's id.
    """
    seconds = read_timings(folder)
    before = time.monotonic()
    try:
        for completion in completions:
            now = time.monotonic()
            name = dataset_of(completion.id)
            seconds[name] = seconds.get(name, 0.0) + now - before
            before = now
            yield completion
    finally:
        try:
            write_json_atomic(folder / FILE_NAME, {name: round(spent, 3) for name, spent in seconds.items()})
        except EvalkitError as error:
            # Times are not worth a run; what else stands in the way of writing will say so itself.
            log.info("the timings are not kept: %s", error.what)
