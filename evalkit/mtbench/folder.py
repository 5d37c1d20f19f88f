"""The folder of an MT-Bench run: answers, judgments by judge, and what they were made by.

<run>/mt_bench.json              preset, language, where the answers come from
<run>/samples/mt_bench.jsonl     one line per answered turn, append-only
<run>/judgments/<judge>.jsonl    one line per judgment, rewritten by each judging
<run>/calibration/<judge>.jsonl  those of calibrate, which leaves the run's own as they are
<run>/results.json               written last
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from evalkit.core.config import Reduce
from evalkit.core.durable import (
    read_checked_json,
    read_log,
    remove_file,
    write_checked_json,
    write_lines_atomic,
)
from evalkit.core.errors import InputError
from evalkit.core.files import check_types
from evalkit.core.text import folder_name
from evalkit.core.types import Judgment
from evalkit.mtbench.fastchat import Language, ModelAnswer
from evalkit.records.run_folder import SampleRecord, one_run, runs_below

SAMPLES = "mt_bench"
Source = Literal["generated", "given", "replayed"]
# Where judgments are kept, by what made them.
JudgmentsKind = Literal["judgments", "calibration"]
KINDS: tuple[JudgmentsKind, ...] = ("judgments", "calibration")
LOGGED = " (log)"


@dataclass(frozen=True)
class Header:
    """mt_bench.json. `language` null: both; `preset_sha256` the hash of the preset's content."""

    preset: str
    preset_sha256: str
    language: Language | None
    source: Source
    models: tuple[str, ...]
    kind: str = "mt_bench"


def logged_label(judge: str) -> str:
    """The label of judgments read from a log: a new judging by that judge must not replace them."""
    return f"{judge}{LOGGED}"


def turn_id(model: str, question_id: int, turn: int, answer: int) -> str:
    """The id of a turn within a run."""
    return f"{question_id}/{turn}/{answer}/{model}"


@dataclass(frozen=True)
class MtBenchFolder:
    """Reads and writes the files of one run."""

    path: Path

    @property
    def samples_path(self) -> Path:
        """The log of answered turns."""
        return self.path / "samples" / f"{SAMPLES}.jsonl"

    @property
    def results_path(self) -> Path:
        """results.json."""
        return self.path / "results.json"

    def judgments_path(self, judge: str, kind: JudgmentsKind | None = None) -> Path:
        """The judgments of one judge; `kind` None: those of a judging, else those of a calibration."""
        kinds = KINDS if kind is None else (kind,)
        paths = [self.path / one / f"{folder_name(judge)}.jsonl" for one in kinds]
        return next((path for path in paths if path.is_file()), paths[0])

    def judges(self) -> list[str]:
        """The judges whose judgments are here."""
        return sorted({path.stem for kind in KINDS for path in (self.path / kind).glob("*.jsonl")})

    def find_judge(self, name: str) -> str | None:
        """The judge of that name, else the log of that name that was replayed; None: neither."""
        judges = self.judges()
        wanted = (folder_name(name), folder_name(logged_label(name)))
        return next((stem for stem in wanted if stem in judges), None)

    def header(self) -> Header:
        """What the answers were made by.

        Raises:
            InputError: no MT-Bench run, or a damaged header.
        """
        path = self.path / "mt_bench.json"
        try:
            content = read_checked_json(path)
            header = Header(**{**content, "models": tuple(content["models"])})
            check_types(header)
            return header
        except FileNotFoundError:
            raise InputError(
                "not an MT-Bench run: it has no mt_bench.json",
                where=self.path,
                fix="evalkit model=NAME suite=mt-bench-ja   makes one, and so does replay",
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"the run's header cannot be read: {error}",
                where=path,
                fix="the command that made the answers writes it again, and keeps them",
            ) from None

    def has_header(self) -> bool:
        """Whether there is a whole header."""
        try:
            self.header()
        except InputError:
            return False
        return True

    def refuse_another(self, kind: str, source: Source | None = None) -> None:
        """Refuses a folder that another command filled, before anything in it is replaced.

        Args:
            kind: of the results.json that this command writes; empty: the scores of a suite.
            source: where the answers of this command's own runs come from; None: it has no answers.

        Raises:
            InputError: the folder belongs to another run, or runs are below it.
        """
        below = next(runs_below(self.path, {self.path.resolve()}, lambda path, error: None), None)
        if below is not None:
            raise InputError(
                f"runs are below this folder, and would not be found any more: {below}",
                where=f"out={self.path}",
                fix="choose another",
            )
        header, config, samples = (
            (self.path / name).exists() for name in ("mt_bench.json", "config.yaml", "samples")
        )
        try:
            other = self.header().source != source
        except InputError:
            # Only answers that a model gave have config.yaml; a header that was damaged is written again.
            results = self._results_kind() not in (None, kind)
            other = config or results or (source is None if header else samples)
        if other:
            raise InputError(
                "the folder belongs to another run", where=f"out={self.path}", fix="choose another"
            )

    def _results_kind(self) -> str | None:
        """The kind of results.json; None where there is none, or a damaged one, which is written again."""
        try:
            return str(read_checked_json(self.results_path).get("kind", ""))
        except (OSError, ValueError):
            return None

    def write_header(self, header: Header) -> None:
        """Writes mt_bench.json."""
        write_checked_json(self.path / "mt_bench.json", asdict(header))

    def turns(self) -> list[SampleRecord]:
        """The answered turns, in the order they were written; damaged lines are skipped."""
        rows, _ = read_log(self.samples_path)
        return [SampleRecord.from_line(row, self.samples_path) for row in rows.values()]

    def write_turns(self, turns: Iterable[SampleRecord]) -> None:
        """Writes the whole log of turns at once (answers that were given).

        results.json goes where they are not those of before, and all judgments where an answer is replaced.
        """
        written = {turn.id: turn for turn in turns}
        before = {key: row.get("completion") for key, row in read_log(self.samples_path)[0].items()}
        after = {key: turn.completion for key, turn in written.items()}
        if before != after:
            remove_file(self.results_path)
        if not before.items() <= after.items():
            for path in (path for kind in KINDS for path in (self.path / kind).glob("*")):
                remove_file(path)
        write_lines_atomic(self.samples_path, (turn.line() for turn in written.values()))

    def judgments(self, judge: str, kind: JudgmentsKind | None = None) -> list[Judgment]:
        """The judgments of one judge (`judgments_path`); empty when there are none."""
        path = self.judgments_path(judge, kind)
        rows, _ = read_log(path)
        known = {field.name for field in fields(Judgment)}
        try:
            return [
                Judgment(**{key: value for key, value in row.items() if key in known})
                for row in rows.values()
            ]
        except TypeError as error:
            raise InputError(f"not a record of this version: {error}", where=path) from None

    def write_judgments(
        self, judge: str, judgments: Iterable[Judgment], kind: JudgmentsKind = "judgments"
    ) -> None:
        """Replaces the judgments of one judge."""
        write_lines_atomic(self.judgments_path(judge, kind), map(asdict, judgments))

    def made_by(self, judge: str) -> tuple[dict[str, Any], Reduce]:
        """What decides the ratings of a judge, and how its repeats become one, as far as it is recorded.

        results.json describes the last judging alone: of another judge's ratings nothing is known.
        """
        try:
            path = self.judgments_path(judge)
            if path.parent.name == "calibration":
                content = read_checked_json(path.with_suffix(".json"))
                table = content["judge"]
            else:
                content = read_checked_json(self.results_path)
                table = next(iter(content["tables"].values()), None)
                if table is None or folder_name(table["judge"]) != judge:
                    return {}, Reduce.mean
            preset, record = content["preset"], content.get("judge")
            made = {"the preset": f"{preset['name']} ({preset['sha256']})"}
            # Not the service: one model may be served at two addresses. Of a replayed log there is no record.
            if record is not None:
                names = ("model", "weights", "parameters", "parser")
                made |= {f"judge.{name}": record.get(name) for name in names}
            return made, Reduce(table["reduce"])
        except (OSError, ValueError, KeyError):
            return {}, Reduce.mean


def open_folder(path: str | None, option: str = "run") -> MtBenchFolder:
    """The run that an option names.

    Raises:
        InputError: no option, or no such folder.
    """
    if path is None:
        raise InputError("no run is given", fix=f"{option}=results/<model>/mt-bench-ja/<run>")
    folder = one_run(path, mt_bench=True)
    if not folder.is_dir():
        raise InputError("the run does not exist", where=f"{option}={path}")
    return MtBenchFolder(folder)


def answers_of(turns: Iterable[SampleRecord]) -> list[ModelAnswer]:
    """The turns put together to answers; a turn whose earlier one is missing is left out."""
    grouped: dict[tuple[str, int, int], dict[int, str]] = {}
    for turn in turns:
        key = (turn.model, turn.question_id, turn.answer)
        grouped.setdefault(key, {})[turn.turn] = turn.completion
    answers = []
    for (model, question_id, choice), texts in grouped.items():
        in_order = tuple(texts[number] for number in range(1, len(texts) + 1) if number in texts)
        if 1 in texts:
            answers.append(ModelAnswer(question_id, model, in_order, choice))
    return answers


def turns_of(answers: Sequence[ModelAnswer], categories: dict[int, str]) -> list[SampleRecord]:
    """Given answers as turn records; the last row of a (model, question, choice) counts."""
    records: dict[str, SampleRecord] = {}
    for answer in answers:
        for turn, text in enumerate(answer.turns, start=1):
            key = turn_id(answer.model, answer.question_id, turn, answer.choice)
            records[key] = SampleRecord(
                id=key,
                model=answer.model,
                question_id=answer.question_id,
                category=categories[answer.question_id],
                turn=turn,
                answer=answer.choice,
                completion=text,
            )
    return list(records.values())
