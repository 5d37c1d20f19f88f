"""Models that evalkit runs itself, in conversation: their configuration and what their template takes."""

from typing import Any

from evalkit import assets
from evalkit.config import ModelConfig
from evalkit.engines.encoding import render_chat
from evalkit.errors import InputError
from evalkit.reading import read_options
from evalkit.types import Message

_MARK = "a system message nobody writes"


def model_config(name: str) -> ModelConfig:
    """The member of conf/model of that name, else the model at that hub name or folder."""
    path = assets.CONF / "model" / f"{name}.yaml"
    if "/" in name or not path.is_file():
        return ModelConfig(path=name)
    return read_options(path, ModelConfig, "model configuration")


def takes_system_message(tokenizer: Any) -> bool:
    """Whether the chat template does anything with a system message (its text may be ignored).

    Raises:
        InputError: there is no chat template.
    """
    user = Message("user", "?")
    without = render_chat([user], tokenizer)
    try:
        return render_chat([Message("system", _MARK), user], tokenizer) != without
    except InputError:
        return False


def with_system(messages: tuple[Message, ...], takes: bool) -> tuple[Message, ...]:
    """The messages for a template that takes no system message: its text goes before the user's."""
    if takes or not messages or messages[0].role != "system":
        return messages
    system, user, *rest = messages
    joined = f"{system.content.rstrip()}\n\n{user.content}"
    return (Message("user", joined), *rest)
