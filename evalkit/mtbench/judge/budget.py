"""What judging costs: tokens, prices, and a budget that is never exceeded.

Measured figures: section 10 of the MT-Bench protocol notes.
"""

import asyncio
import hashlib
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from evalkit.core import assets
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.files import read_yaml
from evalkit.core.types import Message

# Tokens of cl100k per character of a Japanese judge prompt, and of a judge's explanation.
TOKENS_PER_CHARACTER = 0.49
EXPLANATION_TOKENS = 231
# What a chat adds to the tokens of its texts: for each message, and for the start of the answer.
TOKENS_PER_MESSAGE = 4
TOKENS_PER_CHAT = 3
_ENCODING_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens; `batch` is the factor of the Batch API."""

    input: float
    output: float
    batch: float = 0.5

    def of(self, input_tokens: float, output_tokens: float) -> float:
        """The price of these tokens in dollars."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6

    def in_batch(self) -> "Price":
        """The price of the same model by the Batch API."""
        return Price(self.input * self.batch, self.output * self.batch, batch=1.0)


def load_prices(path: Path | None = None) -> dict[str, Price]:
    """The price table: conf/prices.yaml, or a file of the same form.

    Raises:
        InputError: no such file, not YAML, or an entry that is no price.
    """
    path = path or assets.CONF / "prices.yaml"
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError("a mapping of models to prices was expected", where=path)
    prices = {}
    for model, entry in content.items():
        try:
            price = Price(**entry)
            if not all(_is_amount(value) for value in (price.input, price.output, price.batch)):
                raise TypeError
        except TypeError:
            raise InputError(
                "a price needs input and output, dollars per million tokens", where=f"{path}, field {model}"
            ) from None
        prices[str(model)] = price
    return prices


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


@dataclass(frozen=True)
class JudgeTokenCounter:
    """Counts the tokens of a prompt; `how` names the method."""

    how: str
    count: Callable[[str], float]

    def prompt(self, messages: Sequence[Message]) -> float:
        """The tokens of a whole chat prompt."""
        texts = sum(self.count(message.content) + TOKENS_PER_MESSAGE for message in messages)
        return texts + TOKENS_PER_CHAT


def token_counter(model: str) -> JudgeTokenCounter:
    """tiktoken when its table for `model` is on this machine, else the measured tokens per character."""
    encode = _tiktoken_counter(model)
    if encode is not None:
        return JudgeTokenCounter("tiktoken", encode)
    how = f"{TOKENS_PER_CHARACTER} tokens per character"
    return JudgeTokenCounter(how, lambda text: TOKENS_PER_CHARACTER * len(text))


def _tiktoken_counter(model: str) -> Callable[[str], float] | None:
    try:
        import tiktoken
        from tiktoken.model import encoding_name_for_model

        name = encoding_name_for_model(model)
    except (ImportError, KeyError):
        return None
    # Asked for a table it lacks, tiktoken would fetch it from the network.
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    cache = Path(folder) if folder else Path(tempfile.gettempdir()) / "data-gym-cache"
    if not (cache / hashlib.sha1(_ENCODING_URL.format(name).encode()).hexdigest()).is_file():
        return None
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError):
        return None
    return lambda text: float(len(encoding.encode(text, disallowed_special=())))


def most_tokens(messages: Sequence[Message]) -> int:
    """More tokens than a prompt can have: byte-level tokenizers make at most one of each byte."""
    texts = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in messages)
    return texts + 2 * TOKENS_PER_MESSAGE * len(messages)


class CostLimitError(EvalkitError):
    """The next call could exceed `judge.max_cost`."""


class Budget:
    """Dollars spent and reserved, at most `limit`. A call is made only when even its worst case fits.

    `price` None: not known, and nothing limits the cost.
    """

    def __init__(self, price: Price | None, limit: float | None) -> None:
        self.price = price
        self.limit = limit
        self.spent = 0.0
        self._reserved = 0.0
        self._open = 0
        self._settled = asyncio.Event()

    async def reserve(self, messages: Sequence[Message], most_output: int) -> float | None:
        """Reserves the worst case of a call, waiting for others to end where it does not fit yet.

        Raises:
            CostLimitError: it does not fit with nothing else under way.
        """
        if self.price is None or self.limit is None:
            return None
        worst = self.price.of(most_tokens(messages), most_output)
        while self.spent + self._reserved + worst > self.limit:
            if not self._open:
                raise CostLimitError(
                    f"the next call could pass judge.max_cost={self.limit:g}: "
                    f"${self.spent:.2f} are spent, it may cost up to ${worst:.2f}",
                    fix="raise judge.max_cost; what was judged is kept",
                )
            self._settled.clear()
            await self._settled.wait()
        self._reserved += worst
        self._open += 1
        return worst

    def settle(self, reserved: float | None, input_tokens: float, output_tokens: float) -> None:
        """Replaces a reservation by what the call cost."""
        if reserved is not None:
            self._open -= 1
            self._reserved = self._reserved - reserved if self._open else 0.0
        if self.price is not None:
            self.spent += self.price.of(input_tokens, output_tokens)
        self._settled.set()


@dataclass
class Charge:
    """The cost of one call: its worst case is reserved first, in the end replaced by the tokens `used`."""

    budget: Budget
    messages: Sequence[Message]
    most_output: int
    used: tuple[float, float] = (0, 0)
    _reserved: float | None = None

    async def __aenter__(self) -> Self:
        self._reserved = await self.budget.reserve(self.messages, self.most_output)
        return self

    async def __aexit__(self, *raised: object) -> None:
        self.budget.settle(self._reserved, *self.used)

    async def lost(self, again: bool) -> None:
        """Counts an attempt whose answer was lost with its worst case; `again`: another one follows."""
        self.budget.settle(self._reserved, most_tokens(self.messages), self.most_output)
        self._reserved = None
        if again:
            self._reserved = await self.budget.reserve(self.messages, self.most_output)


def price_of(model: str, prices: Mapping[str, Price]) -> Price | None:
    """The price of a model by its name, with or without the date at its end."""
    return prices.get(model) or prices.get(re.sub(r"-\d{4}(-\d\d-\d\d)?$", "", model))
