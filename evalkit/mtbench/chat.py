"""Models that evalkit runs itself, in conversation: their configuration and what their template takes."""

from typing import Any

from evalkit import assets
from evalkit.config import ModelConfig
from evalkit.engines.chat_template import rendered
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
        InputError: there is no chat template, or it may not be used (`render_chat`).
    """
    from jinja2 import TemplateError

    user = Message("user", "?")
    without = rendered([user], tokenizer)
    try:
        return rendered([Message("system", _MARK), user], tokenizer) != without
    except InputError as error:
        # So templates refuse a role; any other failure is one.
        if type(error.__cause__) is TemplateError:
            return False
        raise


def with_system(messages: tuple[Message, ...], takes: bool) -> tuple[Message, ...]:
    """The messages for a template that takes no system message: its text goes before the user's."""
    if takes or not messages or messages[0].role != "system":
        return messages
    system, user, *rest = messages
    joined = f"{system.content.rstrip()}\n\n{user.content}"
    return (Message("user", joined), *rest)
