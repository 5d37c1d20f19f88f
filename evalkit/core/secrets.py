"""Keeps secrets out of output and files, and control characters out of the terminal.

Keys are read from the environment and sent only to their service. An error text of a service, a library
or the command line may still repeat one; this module removes it.
"""

import base64
import os
import re
from collections.abc import Iterable, Iterator
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from evalkit.core.errors import InputError
from evalkit.core.text import everywhere, unicode_text

Json = TypeVar("Json")

HIDDEN = "[key]"
# Shorter values are not keys, and hiding them would remove ordinary words.
_SHORTEST = 8
_NAMES = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PAT)$", re.I)
_SHAPES = re.compile(
    r"\b(?:sk-[\w*.-]{6,}|hf_[A-Za-z0-9]{12,}|gh[pousr]_[A-Za-z0-9]{20,}|(?:Bearer|Basic)\s+[\w.~+/*-]{8,}=*)"
)
# Name and password before the host of an address, and keys in its query.
_USER = re.compile(r"(?<=://)[^\s/'\",\]}]*@(?=[^\s/])")
_QUERY = re.compile(r"(?<=[?&])((?:api[-_]?key|key|token|access_token|sig|signature)=)[^&\s'\",\]}]+", re.I)
_KEY_PARAMETERS = frozenset({"apikey", "key", "authorization", "token", "accesstoken", "secret", "password"})
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def hide(value: Json, *secrets: str) -> Json:
    """A text (or a JSON value with texts) without keys: `secrets`, those of the environment, what looks
    like one, and credentials inside addresses."""

    def clean(text: str) -> str:
        text = _USER.sub("", _SHAPES.sub(HIDDEN, text))
        return _QUERY.sub(rf"\1{HIDDEN}", text)

    hidden: Json = everywhere(hide_known(value, *secrets, *_environment()), clean)
    return hidden


def hide_known(value: Json, *secrets: str) -> Json:
    """As `hide`, but without `secrets` only: the rest of an answer is the model's own text."""
    known = {secret for secret in secrets if len(secret) >= _SHORTEST}

    def clean(text: str) -> str:
        for secret in sorted(known, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return text

    hidden: Json = everywhere(value, clean)
    return hidden


def refuse_keys(group: str, api_key_env: str | None, parameters: Iterable[str]) -> None:
    """Refuses a key among the options of a group (judge, engine), without repeating it.

    Raises:
        InputError: `api_key_env` is no variable's name, or a parameter would carry a key.
    """
    if api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", api_key_env):
        raise InputError(
            f"{group}.api_key_env takes the name of an environment variable, not a key",
            where=f"option {group}.api_key_env",
            fix=f"export NAME=... and {group}.api_key_env=NAME",
        )
    for key in parameters:
        if re.sub(r"[-_]", "", str(key)).lower() in _KEY_PARAMETERS:
            raise InputError(
                "a key among the parameters would be kept in every record",
                where=f"option {group}.parameters.{key}",
                fix=f"export {api_key_env or 'OPENAI_API_KEY'}=...",
            )


def credentials(address: str) -> tuple[str, ...]:
    """The password in an address, and name and password as a request carries them."""
    parts = urlsplit(address)
    if not parts.password:
        return ()
    name, password = unquote(parts.username or ""), unquote(parts.password)
    return (parts.password, password, base64.b64encode(f"{name}:{password}".encode()).decode())


def public_address(url: str) -> str:
    """An address without name, password, query and the slash at its end."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def without_credentials(text: str) -> str:
    """A text with addresses in it, without the names, passwords and queries they carry."""
    bare = re.sub(r"(?<=://)[^/,\]\s]*@", "", text)
    return re.sub(r"\?[^,\]\s]*", "", bare)


def redact(text: str, *secrets: str) -> str:
    """A service's error text on one line, without the key it may repeat."""
    # Cut last: half a key at the end would not be recognised.
    return printable(hide(" ".join(unicode_text(text).split()), *secrets))[:500]


def printable(text: str) -> str:
    """A text without the control characters that steer a terminal; line breaks and tabs stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if _NAMES.search(name):
            yield value.strip()
