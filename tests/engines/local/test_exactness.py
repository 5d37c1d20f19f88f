"""The local engine against one prompt at a time through transformers' own `generate`."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from evalkit.core.types import Completion, Request
from evalkit.engines.local import attention, kernels, linears
from evalkit.engines.local.engine import LocalEngine
from tests.engines.models import load_plain, local_engine, save_model

BATCH_SIZES = (1, 3, 16, 64)
EXACT = ("llama", "llama-gqa", "gemma3", "mistral", "qwen3", "gemma2", "gpt2", "bloom")
MERGED = ("llama", "llama-gqa", "gemma3", "mistral", "qwen3")
TIE = 1e-4


def make_requests() -> list[Request]:
    """Three datasets with a prefix each, and prompts that share nothing; up to 14 new tokens.

    42 of them: four batch sizes make over a thousand requests for eight architectures.
    """
    chance = random.Random(7)

    def text(length: int) -> str:
        return "".join(chance.choice("abcdefghij 日本\n") for _ in range(length))

    prompts = [text(length) for length in (3, 20, 45)]
    for dataset in range(3):
        few_shots = text(20 + 15 * dataset)
        # Two thirds of the last dataset's prompts share more: one part in place, and one that branches off.
        more = ["", text(28), text(26)] if dataset == 2 else [""]
        prompts += [few_shots + more[i % len(more)] + text(chance.randint(1, 40)) for i in range(13)]
    return [Request(f"r{i}", prompt, chance.choice((1, 2, 5, 14))) for i, prompt in enumerate(prompts)]


REQUESTS = make_requests()


class Reference:
    """New ids of each request by `generate`, and the margin of each choice."""

    def __init__(self, model: PreTrainedModel, requests: list[Request]) -> None:
        from evalkit.engines.local.random_model import byte_tokenizer

        tokenizer = byte_tokenizer()
        self.texts: dict[str, str] = {}
        self.margins: dict[str, list[float]] = {}
        for request in requests:
            ids = torch.tensor([tokenizer(request.prompt)["input_ids"]])
            done = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request.max_new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            new = done.sequences[0, ids.shape[1] :]
            self.texts[request.id] = tokenizer.decode(new, skip_special_tokens=True)
            best = torch.stack(done.logits)[:, 0].topk(2).values
            self.margins[request.id] = (best[:, 0] - best[:, 1]).tolist()

    def is_tie(self, request_id: str) -> bool:
        return min(self.margins[request_id]) <= TIE


def differing(completions: list[Completion], reference: Reference) -> list[str]:
    """Ids of the completions that differ where no choice was a tie."""
    return [
        completion.id
        for completion in completions
        if completion.raw_text != reference.texts[completion.id] and not reference.is_tie(completion.id)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_model(name, root / name) for name in EXACT}


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, Reference]:
    return {name: Reference(load_plain(folder), REQUESTS) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def engines(folders: dict[str, Path]) -> Iterator[dict[str, LocalEngine]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(local_engine(folder)) for name, folder in folders.items()}


@pytest.mark.parametrize("architecture", EXACT)
@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_every_batch_size_and_order_gives_the_same(
    architecture: str, batch_size: int, engines: dict[str, LocalEngine], references: dict[str, Reference]
) -> None:
    requests = list(REQUESTS)
    # Each batch size has an order of its own.
    random.Random(batch_size).shuffle(requests)
    completions = list(engines[architecture].with_batch_size(batch_size).generate(requests))
    assert sorted(c.id for c in completions) == sorted(r.id for r in requests)
    assert differing(completions, references[architecture]) == []


@pytest.mark.parametrize("architecture", MERGED)
@pytest.mark.parametrize("prefix", ["expanded", "off"])
def test_the_fallbacks_give_the_same(
    architecture: str, prefix: str, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    from evalkit.core.config import PrefixMode

    with local_engine(folders[architecture], batch_size=5, prefix=PrefixMode[prefix]) as engine:
        assert differing(list(engine.generate(REQUESTS)), references[architecture]) == []


@pytest.mark.parametrize("architecture", MERGED)
def test_products_of_another_library_give_the_same(
    architecture: str,
    folders: dict[str, Path],
    references: dict[str, Reference],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (linears, kernels):
        monkeypatch.setattr(module, "gains", lambda dtype: linears.Gains(many=True, few=True))
    for module in (attention, kernels):
        monkeypatch.setattr(module, "MANY", 1)
    kernels.choose.cache_clear()
    with local_engine(folders[architecture]) as engine:
        described = engine.describe()
        assert described["way"] == "packed" and described["linear_layers"]["packed for oneDNN"]
        assert differing(list(engine.generate(REQUESTS)), references[architecture]) == []
        # The reference of `certify` runs on the model's own layers.
        assert (
            differing(
                [row.completion(None) for row in engine.one_at_a_time(REQUESTS)], references[architecture]
            )
            == []
        )
        assert engine.describe() == described
    kernels.choose.cache_clear()


def test_references_are_not_trivial(references: dict[str, Reference]) -> None:
    for name, reference in references.items():
        assert len(set(reference.texts.values())) > len(REQUESTS) // 3, name
        assert sum(reference.is_tie(request.id) for request in REQUESTS) <= 2, name
