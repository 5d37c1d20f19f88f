"""Tokens, prices and the budget."""

import asyncio
import base64
import hashlib
import importlib
from pathlib import Path

import pytest

from evalkit.core.errors import InputError
from evalkit.core.types import Message
from evalkit.mtbench.judge.budget import (
    Budget,
    CostLimitError,
    Price,
    load_prices,
    most_tokens,
    price_of,
    token_counter,
)

GPT4 = Price(30.0, 60.0)


def test_a_run_costs_what_the_notes_say() -> None:
    """Section 10: 177,057 input tokens and 160 explanations of 231 tokens."""
    prices = load_prices()
    output = 160 * 231
    assert round(prices["gpt-4-0613"].of(177_057, output), 1) == 7.5
    assert round(prices["gpt-4o-2024-08-06"].of(177_057, output), 2) == 0.81


def test_prices_by_name_and_date() -> None:
    prices = load_prices()
    assert price_of("gpt-4o-2024-11-20", prices) == prices["gpt-4o"]
    # The first of them costs more than its name without the date.
    assert price_of("gpt-4o-2024-05-13", prices) == Price(5.0, 15.0)
    assert price_of("gpt-4-0613", prices) == prices["gpt-4-0613"]
    assert price_of("gpt-4-turbo", prices) is None


@pytest.mark.parametrize(
    "text",
    ["- 1\n", "m: 3\n", "m: {input: 1}\n", "m: {input: -1, output: 1}\n", "m: {input: x, output: 1}\n"],
)
def test_price_tables_are_checked(text: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(InputError):
        load_prices(path)


def test_without_tiktokens_tables_characters_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    counter = token_counter("gpt-4-0613")
    assert counter.how == "0.49 tokens per character"
    assert counter.count("あ" * 100) == pytest.approx(49)
    assert token_counter("some-local-model").how == counter.how


def test_tiktokens_table_is_used_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of single bytes stands in for cl100k: then every byte is a token."""
    tiktoken = pytest.importorskip("tiktoken")
    table = b"".join(base64.b64encode(bytes([byte])) + f" {byte}\n".encode() for byte in range(256))
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    (tmp_path / hashlib.sha1(url.encode()).hexdigest()).write_bytes(table)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    load, registry = importlib.import_module("tiktoken.load"), tiktoken.registry
    monkeypatch.setattr(load, "check_hash", lambda data, expected: True)
    monkeypatch.setattr(registry, "ENCODINGS", {})
    counter = token_counter("gpt-4-0613")
    assert counter.how == "tiktoken"
    assert counter.count("あa<|endoftext|>") == 3 + 1 + 13
    assert counter.prompt([Message("user", "abc")]) == 3 + 4 + 3


def test_the_worst_case_is_one() -> None:
    assert most_tokens([Message("user", "あ" * 10)]) >= 30


def test_a_call_is_let_through_only_when_its_worst_case_fits() -> None:
    async def use() -> None:
        messages = [Message("user", "a" * 1000)]
        worst = GPT4.of(most_tokens(messages), 1000)
        budget = Budget(GPT4, 2.5 * worst)
        first = await budget.reserve(messages, 1000)
        second = await budget.reserve(messages, 1000)
        third = asyncio.create_task(budget.reserve(messages, 1000))
        await asyncio.sleep(0.01)
        assert not third.done(), "two worst cases are under way, a third does not fit"
        budget.settle(first, 100, 10)
        assert await asyncio.wait_for(third, 1) == pytest.approx(worst)
        budget.settle(second, 1000, 1000)
        budget.settle(await third, 1000, 1000)
        assert budget.spent <= 2.5 * worst
        with pytest.raises(CostLimitError, match=r"judge\.max_cost"):
            await budget.reserve(messages, 1000)

    asyncio.run(use())


def test_no_limit_reserves_nothing() -> None:
    async def use() -> None:
        budget = Budget(GPT4, None)
        reserved = await budget.reserve([Message("user", "a")], 10)
        assert reserved is None
        budget.settle(reserved, 1e6, 0)
        assert budget.spent == 30

    asyncio.run(use())
