"""Token choice against transformers' own logits processors, and independence of the neighbours."""

from collections import Counter

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from evalkit.core.errors import EvalkitError
from evalkit.core.types import Request, Sampling
from evalkit.engines.local.random_model import byte_tokenizer
from evalkit.engines.local.running_rows import RunningRow, choose, kept_in_order
from evalkit.engines.local.tokens import CompletionDecoder, Encoded

DECODER = CompletionDecoder(byte_tokenizer())
LOGITS = torch.randn(4, 60, generator=torch.Generator().manual_seed(1)) * 3


def row(sampling: Sampling, *, seed: int = 0, ids: list[int] | None = None) -> RunningRow:
    request = Request("r", "", 10, sampling=sampling, seed=seed)
    return RunningRow(Encoded(request, ids or [5, 6], frozenset()), DECODER, sampling)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 0.95), (1.3, 7, 1.0), (0.5, 20, 0.6), (1.0, 0, 1e-6), (2.0, 60, 0.3)],
)
def test_filters_keep_what_transformers_keeps(temperature: float, top_k: int, top_p: float) -> None:
    processors = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        processors.append(TopPLogitsWarper(top_p))
    expected = processors(torch.zeros(4, 1, dtype=torch.long), LOGITS.clone()).softmax(-1)
    columns = [torch.full((4, 1), value) for value in (temperature, float(top_k or 60), top_p)]
    probabilities, tokens = kept_in_order(LOGITS, *columns)
    found = torch.zeros_like(LOGITS).scatter(1, tokens, probabilities)
    torch.testing.assert_close(found / found.sum(-1, keepdim=True), expected)


def test_repetition_penalty_as_in_transformers() -> None:
    seen = [[3, 9, 9], [1, 2, 3], [50, 51, 52], [0, 59, 7]]
    processor = RepetitionPenaltyLogitsProcessor(1.8)
    expected = processor(torch.tensor(seen), LOGITS.clone()).argmax(-1).tolist()
    rows = []
    for ids in seen:
        one = row(Sampling(repetition_penalty=1.8), ids=ids[:2])
        one.new = ids[2:]
        rows.append(one)
    assert choose(LOGITS, rows) == expected


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0, -1.0]])
    sampled = row(Sampling(do_sample=True, temperature=0.8, top_k=3))
    counts = Counter(choose(logits, [sampled])[0] for _ in range(4000))
    expected = torch.tensor([1.0, 2.0, 0.0]).div(0.8).softmax(0)
    assert counts[3] == 0
    for token in range(3):
        assert counts[token] / 4000 == pytest.approx(float(expected[token]), abs=0.03)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    sampling = Sampling(do_sample=True, temperature=1.2, top_p=0.9)

    def draws(neighbours: int) -> list[int]:
        one = row(sampling, seed=11)
        others = [row(sampling, seed=100 + index) for index in range(neighbours)]
        return [choose(LOGITS[: neighbours + 1], [one, *others])[0] for _ in range(20)]

    assert draws(0) == draws(1) == draws(3)


def test_a_sample_does_not_depend_on_the_order_of_near_ties() -> None:
    """Another batch moves logits by their last bits; the draw still means the same token."""
    close = torch.randn(1, 60, generator=torch.Generator().manual_seed(2)) * 1e-6
    moved = close + torch.randn(1, 60, generator=torch.Generator().manual_seed(3)) * 1e-6
    assert close.argsort().tolist() != moved.argsort().tolist()
    one, other = (row(Sampling(do_sample=True, top_k=60), seed=5) for _ in range(2))
    for _ in range(200):
        assert choose(close, [one]) == choose(moved, [other])


def test_greedy_rows_stay_greedy_beside_sampled_ones() -> None:
    rows = [row(Sampling(do_sample=True, temperature=5.0)), row(Sampling())]
    assert choose(LOGITS[:2], rows)[1] == int(LOGITS[1].argmax())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_name_the_request(bad: float) -> None:
    logits = LOGITS.clone()
    logits[2, 7] = bad
    with pytest.raises(EvalkitError, match=r"(?s)not a number.*request r, new token 1.*dtype=float32"):
        choose(logits, [row(Sampling()) for _ in range(4)])


def test_hidden_tokens_are_no_error() -> None:
    logits = LOGITS.clone()
    logits[:, :30] = float("-inf")
    assert min(choose(logits, [row(Sampling()) for _ in range(4)])) >= 30
