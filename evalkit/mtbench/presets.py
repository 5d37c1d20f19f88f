"""conf/mtbench/*.yaml -> Preset: everything that decides an MT-Bench number, by name.

A preset names its files by URL and sha256 and says which section of the protocol notes it restates;
what the notes do not give is null.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from omegaconf import MISSING

from evalkit.core import assets
from evalkit.core.errors import InputError, foreign
from evalkit.core.files import read_bytes, read_options
from evalkit.core.text import canonical_json, did_you_mean, text_sha256
from evalkit.core.types import JudgmentStatus
from evalkit.mtbench.aggregate import RULES
from evalkit.mtbench.fastchat import CATEGORIES, LANGUAGES, Language, language_of
from evalkit.mtbench.ratings import Rating, parse_rating, parse_whole

DEFAULT_PRESET = "llm-jp-3-card"
STATUSES: tuple[JudgmentStatus, ...] = get_args(JudgmentStatus)


class Counts(Enum):
    """How a judgment's status enters the mean: its value, the reference's -1, or not at all."""

    value = "value"
    minus_one = "minus_one"
    drop = "drop"


class LengthRule(Enum):
    """What the preset's token limit bounds: prompt and answer together, or the answer alone."""

    total = "total"
    new = "new"


class RatingParser(Enum):
    """Which reading of the judgment counts.

    FastChat's (`reference`), an integer 1 to 10 at the end (`strict`), or the first such integer in double
    brackets (`llm_jp_judge`).
    """

    reference = "reference"
    strict = "strict"
    llm_jp_judge = "llm_jp_judge"


@dataclass
class PinnedFile:
    """An upstream file; its bytes are what `sha256` says, wherever they are read from."""

    url: str = MISSING
    sha256: str = MISSING
    license: str = MISSING


@dataclass
class PromptFile(PinnedFile):
    """The judge prompts: an upstream file, or a local `file`, whose hash is computed.

    In a preset the path is relative to the preset's own folder. `system_end` replaces the line breaks at
    the end of the system prompt of that name: the originals do not all keep those of the file.
    """

    url: str = ""
    sha256: str = ""
    license: str = ""
    file: str | None = None
    system_end: dict[str, str] = field(default_factory=dict)


@dataclass
class QuestionSet:
    """The questions of one language with their reference answers."""

    questions: PinnedFile = field(default_factory=PinnedFile)
    references: PinnedFile = field(default_factory=PinnedFile)


@dataclass
class Variant:
    """Other questions or references of one language, asked for as PRESET+NAME; null: the preset's own."""

    language: str = "ja"
    questions: PinnedFile | None = None
    references: PinnedFile | None = None


@dataclass
class LengthSpec:
    """At most `tokens`, counted by `rule`; null: the protocol notes do not give it."""

    rule: LengthRule | None = None
    tokens: int | None = None


@dataclass
class SamplingSpec:
    """How answers are sampled. `temperature` per category (null: not given), `other` for the rest.

    Answer number i of a question is sampled with seed `seed` + i. `top_k` (0: all) and `top_p`: null
    leaves them to the model's generation_config, else to what transformers 4.36 takes.
    """

    temperature: dict[str, float] | None = None
    other: float | None = None
    answers: int = 1
    seed: int | None = None
    top_k: int | None = None
    top_p: float | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers, ready for JSON; without the keys that few presets have."""
        return {
            key: value
            for key, value in asdict(self).items()
            if value is not None or key not in ("top_k", "top_p")
        }


@dataclass
class Preset:
    """One conf/mtbench/<name>.yaml. `source` is the section of the protocol notes it restates.

    A judgment without a whole rating from 1 to 10 is asked again, at most `reasks` times over;
    `reask_refused`: so is one that the service refused. `statuses` may leave `answerless` out, which then
    counts as `unparsed` does.
    """

    name: str = MISSING
    source: str = MISSING
    sets: dict[str, QuestionSet] = MISSING
    variants: dict[str, Variant] = field(default_factory=dict)
    prompts: PromptFile = field(default_factory=PromptFile)
    judge: str | None = None
    turns: list[int] = field(default_factory=lambda: [1, 2])
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    length: LengthSpec = field(default_factory=LengthSpec)
    system_message: str | None = None
    parser: RatingParser = RatingParser.reference
    reasks: int = 0
    reask_refused: bool = False
    aggregation: str = MISSING
    statuses: dict[str, Counts] = MISSING

    def language(self, question_ids: list[int], wanted: str | None = None) -> Language:
        """The language of these questions: `wanted`, or read from the ids.

        Raises:
            InputError: the preset has no questions in it.
        """
        usual = language_of(question_ids[0]) if question_ids else "ja"
        found = next((known for known in LANGUAGES if known == (wanted or usual)), None)
        if found is None:
            raise InputError(f"language={wanted} is neither ja nor en")
        if found not in self.sets:
            others = [name for name in preset_names() if found in load_preset(name).sets]
            raise InputError(
                f"the preset {self.name} has no questions in language={found}",
                fix=f"preset={' or preset='.join(others)}",
            )
        return found

    def not_given(self) -> list[str]:
        """The cells that are null because the protocol notes do not give them."""
        cells = {
            "judge": self.judge,
            "sampling.temperature": self.sampling.temperature,
            "sampling.seed": self.sampling.seed,
            "length.rule": self.length.rule,
            "length.tokens": self.length.tokens,
        }
        return [name for name, value in cells.items() if value is None]

    def files(self) -> list[PinnedFile]:
        """Every upstream file of the preset."""
        sets = [file for chosen in self.sets.values() for file in (chosen.questions, chosen.references)]
        return sets if self.prompts.file else [*sets, self.prompts]

    def variant_files(self) -> list[PinnedFile]:
        """Every upstream file that only a variant needs."""
        pairs = [(variant.questions, variant.references) for variant in self.variants.values()]
        return [file for pair in pairs for file in pair if file is not None]

    def rating(self, text: str | None) -> Rating:
        """The rating that the preset's original reads in a judgment."""
        return parse_whole(text) if self.parser is RatingParser.llm_jp_judge else parse_rating(text)

    def counts(self, status: JudgmentStatus) -> Counts:
        """How a status enters the mean."""
        return self.statuses.get(status, self.statuses["unparsed"])

    @property
    def sha256(self) -> str:
        """A hash of everything that decides a number; of a local judge prompt file its hash, not its path."""
        content = asdict(self) | {"sampling": self.sampling.identity}
        # Keys that few presets have are left out where they are not used: older hashes stay.
        del content["variants"]
        if not self.reask_refused:
            del content["reask_refused"]
        if content["prompts"].pop("file"):
            content["prompts"] = {"sha256": self.prompts.sha256}
        elif not self.prompts.system_end:
            del content["prompts"]["system_end"]
        return text_sha256(canonical_json(plain(content)))

    def record(self) -> dict[str, Any]:
        """The preset as results name it."""
        record = {
            "name": self.name,
            "source": self.source,
            "sha256": self.sha256,
            "not_given": self.not_given(),
            "files": {file.url: file.sha256 for file in self.files()},
        }
        if self.prompts.file:
            record["prompts"] = {"file": Path(self.prompts.file).name, "sha256": self.prompts.sha256}
        return record

    @property
    def own_prompts(self) -> str | None:
        """The sha256 of a local judge prompt file; None: the prompts are an upstream file."""
        return self.prompts.sha256 if self.prompts.file else None


def plain(value: Any) -> Any:
    """The value as JSON knows it: enums by name, numbers that are not finite as null."""
    if isinstance(value, dict):
        return {getattr(key, "value", key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return getattr(value, "value", value)


def preset_option(name: str) -> str:
    """What names a preset wherever the run is read: a shipped name, or the whole path of a file."""
    return str(Path(name).expanduser().resolve()) if name.endswith((".yaml", ".yml")) else name


def preset_names() -> list[str]:
    """The names of all shipped presets, sorted."""
    return sorted(path.stem for path in (assets.CONF / "mtbench").glob("*.yaml"))


def load_preset(name: str, prompts: str | None = None) -> Preset:
    """The validated preset of that name, or of a YAML file given by its path.

    Args:
        name: a shipped name, with +VARIANT for one of its variants, or a path.
        prompts: a local judge prompt file that replaces the preset's.

    Raises:
        InputError: unknown name (with the near ones), unknown key, a value that does not fit, or a
            local judge prompt file that cannot be read.
    """
    own = name.endswith((".yaml", ".yml"))
    shipped, *variants = name.split("+")
    if not own and shipped not in preset_names():
        raise InputError(
            f"unknown preset {name!r}{did_you_mean(shipped, preset_names())}",
            where="option preset",
            fix=f"one of {', '.join(preset_names())}, or the path of a YAML file",
        )
    path = Path(name).expanduser() if own else assets.CONF / "mtbench" / f"{shipped}.yaml"
    preset = _with_variants(_read_preset(path, read_bytes(path, "the preset")), variants if not own else [])
    file = prompts or preset.prompts.file
    if file is None:
        return preset
    path = Path(file).expanduser().resolve()
    digest = sha256(read_bytes(path, "the judge prompts")).hexdigest()
    return replace(preset, prompts=PromptFile(sha256=digest, file=str(path)))


def _with_variants(preset: Preset, names: list[str]) -> Preset:
    """The preset with other questions or references; its name says which."""
    if unknown := [name for name in names if name not in preset.variants]:
        known = [f"preset={preset.name}+{name}" for name in preset.variants]
        raise InputError(
            f"the preset {preset.name} has no variant {unknown[0]!r}",
            where="option preset",
            fix=" or ".join(known) or f"preset={preset.name}",
        )
    chosen = [name for name in preset.variants if name in names]
    sets = dict(preset.sets)
    for variant in (preset.variants[name] for name in chosen):
        before = sets[variant.language]
        sets[variant.language] = QuestionSet(
            questions=variant.questions or before.questions,
            references=variant.references or before.references,
        )
    return replace(preset, name="+".join((preset.name, *chosen)), sets=sets)


@cache
def _read_preset(path: Path, content: bytes) -> Preset:
    """The preset in a file with this content: a command reads it several times."""
    preset = read_options(path, Preset, "preset")
    with foreign("preset is not valid", where=path):
        _check(preset, path)
    if preset.prompts.file is not None:
        preset.prompts.file = str(path.parent / Path(preset.prompts.file).expanduser())
    return preset


def _check(preset: Preset, path: Path) -> None:
    def refuse(field_name: str, problem: str) -> None:
        raise InputError(f"preset is not valid: {problem}", where=f"{path}, field {field_name}")

    prompts = preset.prompts
    for name, value in (("url", prompts.url), ("sha256", prompts.sha256), ("license", prompts.license)):
        if value and prompts.file is not None:
            refuse(f"prompts.{name}", "the judge prompts are a file or an upstream file, not both")
        if not value and prompts.file is None:
            refuse(f"prompts.{name}", "nothing is given")
    if not preset.sets or not set(preset.sets) <= {"ja", "en"}:
        refuse("sets", "question sets are named ja or en")
    if wrong := [name for name, variant in preset.variants.items() if variant.language not in preset.sets]:
        refuse(f"variants.{wrong[0]}.language", f"one of {', '.join(preset.sets)}")
    if missing := [one for one in STATUSES if one != "answerless" and one not in preset.statuses]:
        refuse("statuses", f"there is no entry for {', '.join(missing)}")
    if unknown := [status for status in preset.statuses if status not in STATUSES]:
        refuse(f"statuses.{unknown[0]}", f"none of {', '.join(STATUSES)}")
    if any(preset.counts(one) is Counts.value for one in STATUSES if one not in ("ok", "out_of_range")):
        refuse("statuses", "only ok and out_of_range have a value")
    if preset.aggregation not in RULES:
        refuse("aggregation", f"{preset.aggregation!r} is none of {', '.join(RULES)}")
    if preset.turns not in ([1], [1, 2]):
        refuse("turns", "turns are [1] or [1, 2]")
    if preset.sampling.temperature is not None and set(preset.sampling.temperature) != set(CATEGORIES):
        refuse("sampling.temperature", f"one temperature for each of {', '.join(CATEGORIES)} is needed")
