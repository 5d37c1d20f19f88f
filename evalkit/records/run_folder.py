"""The run directory: append-only sample logs, atomic files, one writer, resume.

    results/<model>/<suite>/<run id>/
        config.yaml environment.json samples/<task>.jsonl scores/<task>.jsonl results.json run.log

A damaged line of a sample log, which a crash or a bad disk left, is dropped when the run is opened
again, so that its sample is simply asked once more.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from evalkit.core.durable import Appender, read_log, remove_abandoned, write_lines_atomic
from evalkit.core.errors import EvalkitError, InputError, RunLockedError, write_error
from evalkit.core.files import plain_name
from evalkit.core.text import canonical_json, text_sha256
from evalkit.core.types import Completion, FinishReason, Sample

RESULTS = "results.json"
# Files that only a run directory has, finished or not.
_RUN_FILES = (RESULTS, "samples", "config.yaml", "mt_bench.json")
# The keys of a line in their order on disk; the first ones are in every line of every version.
_SAMPLE_KEYS = (
    "id",
    "input",
    "prompt_sha256",
    "gold",
    "completion",
    "raw_text",
    "finish_reason",
    "prompt_tokens",
    "new_tokens",
)
_SAMPLE_LINE = (*_SAMPLE_KEYS, "over_context", "error")
_TURN_KEYS = ("id", "model", "question_id", "category", "turn", "answer", "completion")
_TURN_LINE = (
    *_TURN_KEYS,
    "raw_text",
    "finish_reason",
    "truncated",
    "prompt_sha256",
    "prompt_tokens",
    "new_tokens",
    "max_new_tokens",
    "generator_state",
    "over_context",
    "error",
)
# Characters of `SampleRecord.prompt_end`.
PROMPT_END = 100


@dataclass(frozen=True, slots=True)
class SplitRecord:
    """What a rule made of a completion; its keys stand in the record's own line.

    Attributes:
        rule: its name (`reasoning.parser`).
        opened: the prompt ended inside a thought.
        thought: None where there is none.
        answer: what is graded, at most as long as the task allows. A line of MT-Bench has no such key:
            its `completion` is the answer.
        status: answered, no_thought, late_thought, unclosed, empty, cut_off or tool_call.
        thought_tokens, answer_tokens: None where no tokenizer was there to count.
        later_tags: the tags that the answer still holds.
        served_thought: what a server that splits answers itself returned as the thought.
    """

    rule: str
    opened: bool
    thought: str | None
    answer: str
    status: str
    thought_tokens: int | None
    answer_tokens: int | None
    later_tags: int = 0
    served_thought: str | None = None


_SPLIT_KEYS = tuple(field.name for field in fields(SplitRecord))


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecord:
    """One line of samples/<task>.jsonl: a sample of a suite, or an answered turn of MT-Bench.

    What only generation knows is None for answers that were given.

    Attributes:
        input, gold: of a sample of a suite.
        model, question_id, category, turn, answer: of an MT-Bench turn; `turn` counts from 1 and is 0
            for a sample of a suite.
        truncated: the token limit of a turn was reached, or the length rule left no room.
        generator_state: where the question's random generator stood after this turn (base64), for the
            turn after it.
        split: thought and answer, where the model thinks.
        attempts: how often the sample was asked; a line has it only above 1.
        prompt_end: of a chat that was rendered here, by which another rule sees whether a thought was open;
            no other line has it.
    """

    id: str
    completion: str
    input: str = ""
    gold: str = ""
    model: str = ""
    question_id: int = 0
    category: str = ""
    turn: int = 0
    answer: int = 0
    prompt_sha256: str | None = None
    raw_text: str | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    max_new_tokens: int | None = None
    generator_state: str | None = None
    truncated: bool = False
    over_context: bool = False
    error: str | None = None
    split: SplitRecord | None = None
    attempts: int = 1
    prompt_end: str | None = None

    @property
    def graded(self) -> str:
        """The text that the suite grades: the answer, or the whole completion."""
        return self.completion if self.split is None or self.turn else self.split.answer

    @classmethod
    def of(
        cls,
        sample: Sample,
        prompt: str,
        completion: Completion,
        split: SplitRecord | None = None,
        attempts: int = 1,
    ) -> "SampleRecord":
        """The record of `sample`, asked with `prompt` and answered by `completion`."""
        return cls(
            id=completion.id,
            input=sample.input,
            prompt_sha256=text_sha256(prompt),
            gold=sample.gold,
            completion=completion.text,
            raw_text=completion.raw_text,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            new_tokens=completion.new_tokens,
            over_context=completion.over_context,
            error=completion.error,
            split=split,
            attempts=attempts,
        )

    @classmethod
    def from_line(cls, row: dict[str, Any], path: Path) -> "SampleRecord":
        """The record of one line of the log at `path`; keys of other versions are ignored.

        Raises:
            InputError: the line lacks a key.
        """
        required, known = (_TURN_KEYS, _TURN_LINE) if "turn" in row else (_SAMPLE_KEYS, _SAMPLE_LINE)
        if missing := [key for key in required if key not in row]:
            raise InputError(
                f"not a sample record of this version: it has no {', '.join(missing)}", where=path
            )
        split = None
        if "rule" in row:
            whole = {**row, "answer": row["completion"]} if "turn" in row else row
            if missing := [key for key in _SPLIT_KEYS if key not in whole]:
                raise InputError(f"a record with a thought lacks {', '.join(missing)}", where=path)
            split = SplitRecord(**{key: whole[key] for key in _SPLIT_KEYS})
        return cls(**{key: row[key] for key in (*known, "attempts", "prompt_end") if key in row}, split=split)

    def line(self) -> dict[str, Any]:
        """The line's keys and values, in their order on disk."""
        line = {key: getattr(self, key) for key in (_TURN_LINE if self.turn else _SAMPLE_LINE)}
        if self.split is not None:
            line |= {key: getattr(self.split, key) for key in _SPLIT_KEYS if key not in line}
        if self.prompt_end is not None:
            line["prompt_end"] = self.prompt_end
        return line | ({"attempts": self.attempts} if self.attempts > 1 else {})


def run_folders(place: Path, seen: set[Path], unreadable: Callable[[Path, OSError], None]) -> Iterator[Path]:
    """The run directories at or below a folder, in order; the inside of one is not searched.

    A folder that is reached twice, by links or in another call with the same `seen`, counts once.
    """
    if (real := place.resolve()) in seen:
        return
    seen.add(real)
    if any((place / name).exists() for name in _RUN_FILES):
        yield place
    else:
        yield from runs_below(place, seen, unreadable)


def runs_below(place: Path, seen: set[Path], unreadable: Callable[[Path, OSError], None]) -> Iterator[Path]:
    """`run_folders` in the folders of `place`, which may be a run itself."""
    try:
        inner = sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        unreadable(place, error)
        return
    for folder in inner:
        yield from run_folders(folder, seen, unreadable)


def one_run(given: str, *, mt_bench: bool | None = None) -> Path:
    """The run directory that `run=` names: a folder with just one run at or below it.

    Where there is none it is the path as given, and what reads it says what is missing.

    Args:
        given: the option's value.
        mt_bench: search for runs of MT-Bench alone, or for others alone.

    Raises:
        InputError: there are several.
    """
    place = Path(given).expanduser()
    found = list(run_folders(place, set(), lambda path, error: None)) if place.is_dir() else []
    if mt_bench is not None and found != [place]:
        found = [path for path in found if (path / "mt_bench.json").exists() is mt_bench]
    if len(found) > 1:
        newest = sorted(found, key=lambda path: -path.stat().st_mtime)
        listed = "".join(f"\n  run={path}" for path in newest)
        raise InputError(
            f"several runs are there, newest first:{listed}", where=f"run={given}", fix="name one of them"
        )
    return found[0] if found else place


def wait_for(path: Path, seconds: float) -> None:
    """Waits until no process works on the run directory at `path`; looks every so many seconds."""
    from filelock import FileLock

    with FileLock(path / ".lock").acquire(poll_interval=seconds):
        pass


def run_id(identity: dict[str, Any]) -> str:
    """The hash of a run's identity, twelve hexadecimal digits."""
    return text_sha256(canonical_json(identity))[:12]


class RunDirectory:
    """One run on disk, with at most one process writing to it.

    Use as a context manager to write; reading needs no lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any = None
        self._appenders: dict[str, Appender] = {}

    @property
    def results_path(self) -> Path:
        """results.json: written last, its presence means that the run is done."""
        return self.path / RESULTS

    def samples_path(self, task: str) -> Path:
        """The append-only log of a task's completions."""
        return self.path / "samples" / f"{plain_name(task)}.jsonl"

    def scores_path(self, task: str) -> Path:
        """The per-sample scores of a task, rewritten by each scoring."""
        return self.path / "scores" / f"{plain_name(task)}.jsonl"

    def __enter__(self) -> "RunDirectory":
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")
            self._lock.acquire(timeout=0)
            for folder in (self.path, self.path / "samples", self.path / "scores"):
                remove_abandoned(folder)
        except Timeout:
            raise RunLockedError(
                "another process is working on this run",
                where=self.path,
                fix="wait for it, or stop it; the same command then finds its work",
            ) from None
        except OSError as error:
            raise write_error(self.path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = []
        try:
            for appender in self._appenders.values():
                try:
                    appender.close()
                except EvalkitError as problem:
                    failed.append(problem)
        finally:
            self._appenders.clear()
            self._lock.release()
        # The error that stopped the run is reported, not those of closing the files after it.
        if failed and error is None:
            raise failed[0]

    def records(self, task: str) -> dict[str, SampleRecord]:
        """The kept records of a task by sample id; damaged lines are skipped."""
        path = self.samples_path(task)
        rows, _ = read_log(path)
        return {key: SampleRecord.from_line(row, path) for key, row in rows.items()}

    def recover(self, task: str, drop: Container[str] = ()) -> int:
        """Drops what a crash left in a task's log (torn or damaged lines), and the records named in `drop`.

        Returns how many lines were damaged.
        """
        path = self.samples_path(task)
        rows, damaged = read_log(path)
        kept = [row for key, row in rows.items() if key not in drop]
        if damaged or len(kept) < len(rows):
            write_lines_atomic(path, kept)
        return damaged

    def append(self, task: str, record: SampleRecord) -> None:
        """Appends one completion to the task's log."""
        if task not in self._appenders:
            self._appenders[task] = Appender(self.samples_path(task))
        self._appenders[task].append(record.line())
