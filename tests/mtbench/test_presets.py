"""The shipped presets against sections 0 to 6 of the MT-Bench protocol notes."""

import tarfile
from pathlib import Path

import pytest
import yaml
from little_bench import make_bench

from evalkit.__main__ import main
from evalkit.core.errors import InputError
from evalkit.mtbench.books import Books, pinned_files
from evalkit.mtbench.fastchat import CATEGORIES
from evalkit.mtbench.judge.judges import resolve_judge
from evalkit.mtbench.presets import STATUSES, Counts, load_preset, preset_names

PRESETS = ("fastchat", "g-leaderboard-2024", "llm-jp-3-card", "llm-jp-judge-2", "stability", "swallow")


def test_the_six_presets() -> None:
    assert tuple(preset_names()) == PRESETS


def test_the_card() -> None:
    card = load_preset("llm-jp-3-card")
    assert card.not_given() == []
    assert (card.judge, card.turns, card.reasks, card.aggregation) == ("gpt-4", [1, 2], 0, "llm_leaderboard")
    assert card.sampling.temperature == {
        "writing": 0.7,
        "roleplay": 0.7,
        "stem": 0.1,
        "humanities": 0.1,
        "extraction": 0.0,
        "math": 0.0,
        "coding": 0.0,
        "reasoning": 0.0,
    }
    assert (card.sampling.answers, card.sampling.seed) == (1, 0)
    assert card.length.rule is not None
    assert (card.length.rule.value, card.length.tokens) == ("total", 1024)


def test_the_presets_that_runs_have_recorded_keep_their_hashes() -> None:
    """A new key of a preset is part of its hash only where it is used."""
    hashes = {name: load_preset(name).sha256[:8] for name in PRESETS}
    assert hashes.pop("llm-jp-judge-2")
    assert hashes == {
        "fastchat": "edaf1710",
        "g-leaderboard-2024": "7fbf076f",
        "llm-jp-3-card": "ac751121",
        "stability": "bd5293a4",
        "swallow": "8d6e76ef",
    }
    assert set(load_preset("llm-jp-3-card").sampling.identity) == {"temperature", "other", "answers", "seed"}


def test_llm_jp_judge_2() -> None:
    """Section 14."""
    preset, card = load_preset("llm-jp-judge-2"), load_preset("llm-jp-3-card")
    assert (preset.judge, preset.reasks, preset.reask_refused) == ("gpt-4o-2024-08-06", 3, True)
    assert (preset.parser.value, preset.aggregation) == ("llm_jp_judge", "llm_jp_judge")
    assert preset.sampling.temperature == card.sampling.temperature
    assert (preset.sampling.answers, preset.sampling.seed) == (1, None)
    assert (preset.sampling.top_k, preset.sampling.top_p) == (0, 1.0)
    assert preset.length.rule is not None
    assert (preset.length.rule.value, preset.length.tokens) == ("new", 1024)
    assert preset.system_message == card.system_message
    # No rating: left out of every mean.
    assert {status for status in STATUSES if preset.counts(status) is Counts.drop} == {
        *("out_of_range", "unparsed", "malformed", "answerless", "filtered", "overflow", "api_error")
    }
    judge = resolve_judge(None, preset)
    assert judge.model == "gpt-4o-2024-08-06" and judge.thoughts is None
    assert (judge.parameters["temperature"], judge.parameters["max_tokens"]) == (0, 2048)


def test_variants_of_a_preset() -> None:
    usual, both = load_preset("llm-jp-judge-2"), load_preset("llm-jp-judge-2+gpt-4+v4")
    assert both.name == "llm-jp-judge-2+v4+gpt-4"
    assert both.sets["ja"].questions == load_preset("swallow").sets["ja"].questions
    assert both.sets["ja"].references == load_preset("g-leaderboard-2024").sets["ja"].references
    one = load_preset("llm-jp-judge-2+v4")
    assert one.sets["ja"].references == usual.sets["ja"].references
    assert len({preset.sha256 for preset in (usual, one, both)}) == 3
    assert {file.sha256 for file in (*both.sets["ja"].__dict__.values(),)} == {
        file.sha256 for file in usual.variant_files()
    }
    with pytest.raises(InputError, match=r"no variant 'v5'[\s\S]*llm-jp-judge-2\+v4"):
        load_preset("llm-jp-judge-2+v5")
    with pytest.raises(InputError, match="no variant"):
        load_preset("fastchat+v4")


@pytest.mark.sources
def test_the_judge_prompts_of_llm_jp_judge_2(mirror: Path, cache: Path) -> None:
    """The templates are those of the card; two system prompts end in fewer line breaks."""
    files = pinned_files(str(mirror))
    card, ours = (
        Books(load_preset(name), files).in_language("ja") for name in ("llm-jp-3-card", "llm-jp-judge-2")
    )
    for name in ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn"):
        assert ours.prompts[name].template == card.prompts[name].template
        assert ours.prompts[name].system.rstrip("\n") == card.prompts[name].system.rstrip("\n")
    assert ours.prompts["single-v1"] == card.prompts["single-v1"]
    ends = {name: prompt.system[len(prompt.system.rstrip("\n")) :] for name, prompt in ours.prompts.items()}
    assert (ends["single-math-v1-multi-turn"], ends["single-v1-multi-turn"]) == ("\n", "")
    assert card.prompts["single-v1-multi-turn"].system.endswith("\n\n")
    assert ours.questions[64] != Books(load_preset("llm-jp-judge-2+v4"), files).question(64)


def test_what_the_notes_do_not_give_is_null_and_said() -> None:
    assert load_preset("swallow").not_given() == ["sampling.temperature", "sampling.seed"]
    assert load_preset("g-leaderboard-2024").not_given() == ["sampling.temperature", "sampling.seed"]
    assert load_preset("stability").not_given() == ["judge", "sampling.seed"]


@pytest.mark.sources
@pytest.mark.parametrize("name", PRESETS)
def test_files_are_pinned_and_whole(name: str, mirror: Path, cache: Path) -> None:
    preset = load_preset(name)
    books = Books(preset, pinned_files(str(mirror)))
    for language in preset.sets:
        book = books.in_language("en" if language == "en" else "ja")
        assert len(book.questions) == 80
        assert set(book.questions) == (set(range(81, 161)) if language == "en" else set(range(1, 81)))
        assert {question.category for question in book.questions.values()} == set(CATEGORIES)
        answers = ("一", "二")
        for question in book.questions.values():
            assert len(question.turns) == 2
            for turn in preset.turns:
                prompt, messages = book.single(question.id, turn, answers)
                assert ("math" in prompt) == question.needs_reference
                assert answers[turn - 1] in messages[1].content


@pytest.mark.sources
def test_questions_of_the_versions(mirror: Path, cache: Path) -> None:
    """Section 1: v1.2 differs from v1.0 in 39 questions, and v1.3 from v1.2 in one."""
    files = pinned_files(str(mirror))

    def turns(name: str) -> dict[int, tuple[str, ...]]:
        book = Books(load_preset(name), files).in_language("ja")
        return {question.id: question.turns for question in book.questions.values()}

    first, second, third = turns("llm-jp-3-card"), turns("g-leaderboard-2024"), turns("swallow")
    changed = {number for number in first if first[number] != second[number]}
    assert changed == {
        *(3, 11, 24, 27, 28, 30, 32, 33, 34, 35, 39, 43, 44, 45, 46, 47, 48, 49, 50, 51, 53),
        *(55, 56, 57, 58, 59, 60, 62, 63, 65, 66, 67, 68, 70, 71, 73, 74, 75, 76),
    }
    assert {number for number in second if second[number] != third[number]} == {64}
    assert first == turns("fastchat") == turns("stability")


def test_unknown_preset() -> None:
    with pytest.raises(InputError, match="did you mean 'llm-jp-3-card'"):
        load_preset("llm-jp-card")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"aggregation": "median"}, "field aggregation"),
        ({"statuses": {"ok": "value"}}, "field statuses"),
        ({"statuses": {**dict.fromkeys(STATUSES, "drop"), "lost": "drop"}}, "field statuses.lost"),
        ({"turns": [2]}, "field turns"),
        ({"temprature": 1}, "field temprature"),
        ({"sampling": {"temperature": {"math": 0.1}}}, "field sampling.temperature"),
        ({"length": {"rule": "half"}}, "field length.rule"),
    ],
)
def test_a_preset_of_ones_own_is_checked(change: dict[str, object], field: str, tmp_path: Path) -> None:
    bench = make_bench(tmp_path, 1, **change)
    with pytest.raises(InputError) as caught:
        load_preset(str(bench.preset))
    assert field in str(caught.value)


def test_a_preset_that_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(yaml.safe_dump({"name": "empty"}))
    with pytest.raises(InputError, match="not valid"):
        load_preset(str(path))


def test_english_needs_a_preset_that_has_it() -> None:
    assert load_preset("fastchat").language([81]) == "en"
    assert load_preset("fastchat").language([80]) == "ja"
    with pytest.raises(InputError, match="preset=fastchat"):
        load_preset("llm-jp-3-card").language([81])
    with pytest.raises(InputError, match="neither ja nor en"):
        load_preset("fastchat").language([1], "de")


def test_the_files_of_ones_own_preset_are_fetched_by_the_command_that_is_offered(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = make_bench(tmp_path, 1)
    answers = bench.answers(tmp_path / "answers.jsonl", "m")
    judge = ["judge", f"answers={answers}", f"preset={bench.preset}", f"out={tmp_path / 'out'}"]
    judge += ["judge=gpt-4", "offline=true", "--dry-run"]
    prepare = ["prepare", "suite=mt-bench-ja", f"preset={bench.preset}"]
    for words in (judge, [*prepare, "offline=true"]):
        assert main(words) == 1
        assert f"on a machine with a network: evalkit {' '.join(prepare)}\n" in capsys.readouterr().err
    assert main([*prepare, "language=en"]) == 2
    assert "no questions in language=en" in capsys.readouterr().err
    assert main([*prepare, f"mirror={bench.mirror}"]) == 0
    assert "3 files of its presets are here" in capsys.readouterr().out
    assert main([*judge, f"mirror={bench.mirror}"]) == 0


@pytest.mark.sources
def test_prepare_and_a_bundle_serve_an_offline_machine(
    mirror: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What `bundle` packs is all that a replay without network or mirror needs."""
    tar = tmp_path / "mt.tar"
    assert main(["bundle", "suite=mt-bench-ja", f"mirror={mirror}", f"out={tar}"]) == 0
    assert main(["prepare", "suite=mt-bench-ja", f"mirror={mirror}"]) == 0
    assert "files of its presets are here" in capsys.readouterr().out
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "empty"))
    log = mirror / "mt_bench" / "examples" / "judgments_elyza-7b-fast-instruct.jsonl"
    words = ["replay", f"judgments={log}", "preset=fastchat", f"out={tmp_path / 'out'}", "offline=true"]
    assert main(words) == 1
    assert "offline" in capsys.readouterr().err
    assert main([*words, f"data_dir={tmp_path / 'mt'}"]) == 0
