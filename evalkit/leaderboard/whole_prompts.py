"""The words around a sample's input, so that the page can show whole prompts.

A run keeps the hash of each prompt, not its text. Where the prepared data is at hand the prompt is
rendered again and shown only when every hash fits.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from evalkit.core.config import Config
from evalkit.core.errors import EvalkitError
from evalkit.core.text import text_sha256
from evalkit.leaderboard.rows import Run
from evalkit.records.run_folder import SampleRecord
from evalkit.runs.rescore import kept_config
from evalkit.runs.suite import load_suite
from evalkit.tasks.load import Task
from evalkit.tasks.prompts import PromptTemplate

# Stands for the input while the prompt is rendered; no dataset contains it.
_MARK = "\ufdd0input\ufdd1"


class Around(NamedTuple):
    """A prompt without its input."""

    head: str
    tail: str


class Prompts:
    """The prompts of one run; nothing where its data cannot be read."""

    def __init__(self, run: Run, given: Config) -> None:
        self._tasks: dict[str, Task] = {}
        self._template = PromptTemplate()
        try:
            config = kept_config(run.folder / "config.yaml")
            self._template = PromptTemplate.of(config.protocol)
            if given.data_dir is not None:
                config = replace(config, data_dir=given.data_dir)
            config = replace(config, offline=True, allow_missing=True, limit=1)
            suite = load_suite(config, say=lambda line: None)
        except EvalkitError:
            return
        self._tasks = {task.name: task for task in suite.tasks}

    def around(self, dataset: str, records: Mapping[str, SampleRecord]) -> Around | None:
        """What stands before and after the input of every one of these records, if it is known."""
        task = self._tasks.get(dataset)
        if task is None:
            return None
        parts = self._template.render(task.spec.instruction, task.few_shots, _MARK).split(_MARK)
        if len(parts) != 2:
            return None
        head, tail = parts
        fits = all(text_sha256(head + r.input + tail) == r.prompt_sha256 for r in records.values())
        return Around(head, tail) if fits else None
