"""engine=api with a real model behind the server of the tests."""

from dataclasses import replace

import pytest

from evalkit.core.assets import cache_dir
from evalkit.core.config import Config, Dtype, EngineConfig, ModelConfig
from evalkit.core.types import Message, Request, Sampling
from tests.serving import random_config, serving
from tests.tiny import engine_of, identified

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1-b179c9523d0e"


def test_smollm2() -> None:
    """A real model: served and local completions are equal, texts and chats."""
    folder = cache_dir() / "models" / SMOLLM2
    if not folder.is_dir():
        pytest.skip("SmolLM2 is not in the cache: evalkit prepare model=smollm2-135m")
    model = ModelConfig(name="SmolLM2", path=str(folder))
    chat = (Message("user", "日本の首都はどこですか。"),)
    requests = [
        Request("text", "以下は質問です。\n\n### 入力:\n1 + 1 =\n\n### 応答:\n", 6, ("\n\n",)),
        Request("english", "The capital of Japan is", 6, ("\n\n",)),
        Request("chat", chat, 6),
        Request("sampled", chat, 6, (), Sampling(True, 0.7, 1.0, 50), 1),
    ]
    with serving(random_config(model=model)) as server:
        options = EngineConfig(name="api", base_url=server.url)
        config = Config(model=model, engine=options, dtype=Dtype.float32)
        with engine_of(config, identified(config).model) as engine:
            served = {completion.id: completion for completion in engine.generate(requests)}
        local = {completion.id: completion for completion in server.engine.generate(requests)}
    assert served == {key: replace(one, generator_state=None) for key, one in local.items()}
    assert served["english"].raw_text.strip()
