"""The pool: rows leave and are refilled, memory that runs out, slots that are made anew, chats."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from evalkit.core.errors import EvalkitError
from evalkit.core.types import Completion, Message, Request
from evalkit.engines.local import attention, pool
from evalkit.engines.local.engine import LocalEngine
from evalkit.engines.local.passes import RowSlots, States
from evalkit.engines.local.pool import Pool
from evalkit.engines.local.prefixes import shared_prefixes
from tests.engines.local.test_prefixes import computed, tree
from tests.engines.models import local_engine, save_model


@pytest.fixture(scope="module", params=["llama-gqa", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(request.param, tmp_path_factory.mktemp("model") / request.param)


def make_requests(count: int = 24) -> list[Request]:
    chance = random.Random(3)
    few_shots = ["例題と答え" * 4, "another instruction " * 3]
    # Two prefixes with a further part that half of their prompts share.
    more = ["", "", "と続き" * 5, "and more of it, " * 3]
    return [
        Request(
            f"r{index}",
            few_shots[index % 2]
            + more[index % 4]
            + "".join(chance.choices("abcあい", k=chance.randint(1, 20))),
            chance.choice((1, 3, 9, 16)),
        )
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[LocalEngine]:
    with local_engine(folder) as engine:
        yield engine


@pytest.fixture
def engine(loaded: LocalEngine) -> LocalEngine:
    """The loaded model with limits of the test's own; chats have an engine of their own."""
    return loaded.with_batch_size(None)


@pytest.fixture(scope="module")
def expected(loaded: LocalEngine) -> dict[str, str]:
    return texts(loaded.generate(make_requests()))


def texts(completions: Iterator[Completion]) -> dict[str, str]:
    return {completion.id: completion.raw_text for completion in completions}


class Passes:
    """Counts what goes through the model, and fails as a full memory does above given sizes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.tokens: list[int] = []
        self.most_rows = self.most_tokens = 10**9
        self.failures = 0
        real = attention.forward

        def forward(model: Any, sections: Any, slots: RowSlots, **options: Any) -> torch.Tensor:
            rows = sum(len(section.feeds) for section in sections)
            tokens = sum(len(section.ids or ()) for section in sections)
            tokens += sum(len(feed.ids) for section in sections for feed in section.feeds)
            if rows > self.most_rows or tokens > self.most_tokens:
                self.failures += 1
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            self.rows.append(rows)
            self.tokens.append(tokens)
            return real(model, sections, slots, **options)

        monkeypatch.setattr("evalkit.engines.local.pool.forward", forward)


def test_a_finished_row_is_replaced_at_once(loaded: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(monkeypatch)
    requests = [Request(f"r{i}", f"prompt {i}", 4 + 4 * (i % 2)) for i in range(12)]
    engine = loaded.with_batch_size(3)
    done = list(engine.generate(requests))
    new = sum(completion.new_tokens for completion in done)
    # Every place is taken in every pass until the last rows run out.
    assert sum(passes.rows) == new
    assert passes.rows[: new // 3 - 8] == [3] * (new // 3 - 8)


def test_completions_come_as_soon_as_they_are_done(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(monkeypatch)
    requests = [Request("long", "abc", 15), Request("short", "abd", 1)]
    first = next(engine.generate(requests))
    assert (first.id, len(passes.rows)) == ("short", 1)


def test_shared_tokens_go_through_the_model_once(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(monkeypatch)
    shared = "x" * 200
    requests = [Request(f"r{i}", f"{shared}{i:03}", 1) for i in range(30)]
    done = list(engine.generate(requests))
    assert sum(completion.prompt_tokens for completion in done) == 30 * 204
    # BOS, the shared text and the common first digit once; two digits for each prompt.
    assert sum(passes.tokens) == 202 + 30 * 2


def in_levels() -> list[Request]:
    """Prompts that leave a common beginning one after the other, and three parts that branch off it."""
    parts = [f"{n}: " + "例と答え。" * (3 + n) for n in range(5)]
    prompts = ["".join(parts[:count]) + f"質問{count}" for count in range(1, 6)]
    prompts += [parts[0] + f"{other}" * 60 + f"{i}" for other in "abc" for i in range(4)]
    return [Request(f"r{i}", prompt, 1 + 3 * i % 7) for i, prompt in enumerate(prompts)]


def test_prefixes_in_levels_are_computed_once(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = in_levels()
    passes = Passes(monkeypatch)
    ids = [row.ids for row in engine._rows(requests)[0]]
    alone = {row.request.id: row.new for row in engine.one_at_a_time(requests)}
    groups = shared_prefixes(ids)
    assert computed(ids, groups) <= 1.1 * tree(ids) < 0.5 * sum(map(len, ids))
    rows = {row.request.id: row.new for row in engine.together(reversed(requests))}
    assert rows == alone
    # What a row has made is fed back, its last token apart.
    fed_back = sum(len(new) - 1 for new in rows.values())
    assert sum(passes.tokens) == computed(ids, groups) + fed_back
    # What is left of a run that was interrupted, and a memory that holds one prefix at a time.
    engine._limits.prefix_bytes = 0
    left = [one for index, one in enumerate(requests) if index % 3]
    assert {row.request.id: row.new for row in engine.together(left)} == {
        one.id: alone[one.id] for one in left
    }


def test_prefixes_are_freed_depth_first(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(f"r{i}", f"{i % 5}" * 50 + f"{i % 10}" * 60 + f"{i:03}", 2) for i in range(40)]
    most, real = [], Pool._step

    def step(pool: Pool) -> Any:
        yield from real(pool)
        most.append(sum(prefix.states is not None for prefix in pool._prefixes))

    monkeypatch.setattr(Pool, "_step", step)
    for room, expected in ((1 << 40, 10), (0, 3)):
        most.clear()
        few = engine.with_batch_size(4)
        few._limits.prefix_bytes = room
        assert len(list(few.generate(requests))) == 40
        assert max(most) <= expected and most[-1] == 0


def test_rows_of_several_prefixes_run_side_by_side(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(monkeypatch)
    requests = [Request(f"r{i}", f"{'ab'[i % 2] * 90}{i:03}", 6) for i in range(20)]
    list(engine.generate(requests))
    assert passes.rows[0] == 20


@pytest.mark.parametrize(("rows", "tokens"), [(3, 10**9), (10**9, 150), (2, 150), (1, 10**9)])
def test_out_of_memory_changes_nothing(
    engine: LocalEngine,
    expected: dict[str, str],
    rows: int,
    tokens: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    passes = Passes(monkeypatch)
    passes.most_rows, passes.most_tokens = rows, tokens
    assert texts(engine.generate(make_requests())) == expected
    assert passes.failures > 0
    assert "out of memory" in caplog.text


def test_waiting_rows_keep_their_states(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(monkeypatch)
    requests = [Request(f"r{i}", f"prompt number {i}", 12) for i in range(8)]
    undisturbed = texts(engine.generate(requests))
    whole = sum(passes.tokens)
    passes.tokens.clear()
    real = Pool._step
    steps = 0

    def step(pool: Pool) -> Any:
        nonlocal steps
        steps += 1
        passes.most_rows = 10**9 if steps < 5 else 3
        return real(pool)

    monkeypatch.setattr(Pool, "_step", step)
    engine = engine.with_batch_size(None)
    assert texts(engine.generate(requests)) == undisturbed
    assert passes.failures > 0
    assert sum(passes.tokens) == whole


def test_not_even_one_row(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    Passes(monkeypatch).most_tokens = 5
    with pytest.raises(EvalkitError, match="single row"):
        list(engine.generate(make_requests()))


def test_the_cache_itself_may_not_fit(
    engine: LocalEngine, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = RowSlots.__init__, []

    def init(self: RowSlots, layers: Any, rows: int, capacity: int) -> None:
        tried.append(rows)
        if rows > 3 and capacity > 16:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        real(self, layers, rows, capacity)

    monkeypatch.setattr(RowSlots, "__init__", init)
    assert texts(engine.generate(make_requests())) == expected
    assert tried == [24, 12, 6, 3]


def test_short_rows_get_more_slots(loaded: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(f"long{i}", "word " * 12 + str(i), 40) for i in range(4)]
    requests += [Request(f"short{i}", f"{i} of them", 6) for i in range(30)]
    engine = loaded.with_batch_size(64)
    expected = texts(engine.generate(requests))
    passes = Passes(monkeypatch)
    engine = loaded.with_batch_size(64)
    engine._limits.cache_bytes = 6 * 112 * engine._limits.token_bytes
    assert texts(engine.generate(requests)) == expected
    assert max(passes.rows) > 12


@pytest.mark.parametrize("kept", [True, False], ids=["states kept", "states dropped"])
def test_answers_that_may_be_long_do_not_reserve_memory(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Thoughts may take the whole context and seldom do: rows get short slots first, longer ones later."""
    requests = [Request(f"r{i}", "question " * (i % 5) + str(i), 60 if i % 4 else 5) for i in range(20)]
    expected = texts(engine.generate(requests))
    monkeypatch.setattr(pool, "_RESERVE", 8)
    passes = Passes(monkeypatch)
    engine = engine.with_batch_size(None)
    # Room for three whole rows; a quarter of it holds the states of those that wait.
    engine._limits.cache_bytes = 3 * 112 * engine._limits.token_bytes
    if not kept:
        monkeypatch.setattr(States, "bytes", property(lambda states: 1 << 60))
    done = list(engine.generate(requests))
    assert texts(iter(done)) == expected
    assert max(passes.rows) > 6
    # The short ones, which are a quarter, were not kept waiting by the others.
    assert {one.id for one in requests if one.max_new_tokens == 5} <= {one.id for one in done[:10]}


def chat(engine: LocalEngine, turns: list[Message], length: int = 12) -> Completion:
    (done,) = engine.generate([Request("chat", tuple(turns), length)])
    return done


def test_the_second_turn_computes_only_what_is_new(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [Message("system", "規則を守ること。" * 4), Message("user", "質問です。" * 4)]
    with local_engine(folder) as engine:
        answer = chat(engine, first)
        second = [*first, Message("assistant", answer.raw_text), Message("user", "続き")]
        passes = Passes(monkeypatch)
        kept = chat(engine, second)
        with_history = sum(passes.tokens)
    with local_engine(folder) as engine:
        passes.tokens.clear()
        assert chat(engine, second) == kept
        without = sum(passes.tokens)
    assert without - with_history >= answer.prompt_tokens


def test_many_conversations_each_find_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = [[Message("system", "規則"), Message("user", f"質問 {i}" * (i + 1))] for i in range(9)]

    def ask(engine: LocalEngine, conversations: list[list[Message]]) -> list[Completion]:
        requests = [Request(f"c{i}", tuple(turns), 8) for i, turns in enumerate(conversations)]
        done = {completion.id: completion for completion in engine.generate(requests)}
        return [done[f"c{i}"] for i in range(len(conversations))]

    with local_engine(folder, batch_size=4) as engine:
        answers = ask(engine, starts)
        seconds = [
            [*turns, Message("assistant", answer.raw_text), Message("user", "では？")]
            for turns, answer in zip(starts, answers, strict=True)
        ]
        passes = Passes(monkeypatch)
        kept = ask(engine, seconds)
        with_history = sum(passes.tokens)
    passes.tokens.clear()
    with local_engine(folder, batch_size=4) as engine:
        assert ask(engine, seconds) == kept
    assert with_history < 0.7 * sum(passes.tokens)


def test_conversations_do_not_fill_the_memory(folder: Path) -> None:
    with local_engine(folder) as engine:
        engine._conversations._most_bytes = 0
        answer = chat(engine, [Message("system", "a"), Message("user", "b")])
        assert answer.new_tokens and not engine._conversations._kept
