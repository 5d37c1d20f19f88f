"""The options of engine=api; parts of `evalkit.core.config`."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class PromptForm(Enum):
    """How a text prompt reaches a server.

    As its exact text, as token ids, or (a named deviation) as the user's message of a chat; `auto`
    takes the first of text and tokens that gives the model the prompt with the right BOS.
    """

    auto = "auto"
    text = "text"
    tokens = "tokens"
    chat = "chat"


class ServerKind(Enum):
    """The program behind an OpenAI-compatible address; `auto` asks it. `openai` is any other."""

    auto = "auto"
    vllm = "vllm"
    sglang = "sglang"
    tgi = "tgi"
    llama_cpp = "llama.cpp"
    openai = "openai"


@dataclass
class ServerOptions:
    """The servers of engine=api.

    `base_url` is one address or a list [http://a:8000/v1,http://b:8000/v1]; `model` the name the
    servers know (null: the only one they have); `api_key_env` the variable that holds the key;
    `concurrency` the calls at once at most, for each server; `retries` after a transient error;
    `timeout` and `max_wait` in seconds. `parameters` go into every request (engine=vllm: into
    vllm.LLM) as they are; null leaves one out.
    """

    base_url: str | None = None
    model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    server: ServerKind = ServerKind.auto
    prompts: PromptForm = PromptForm.auto
    concurrency: int = 64
    timeout: float = 600.0
    retries: int = 6
    max_wait: float = 60.0
    parameters: dict[str, Any] = field(default_factory=dict)
