"""Keeps secrets out of output and files, and control characters out of the terminal.

Keys are read from the environment and sent only to their service. An error text of a service, a library
or the command line may still repeat one; this module removes it.
"""

import base64
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from evalkit.core.errors import InputError
from evalkit.core.text import everywhere, unicode_text

Json = TypeVar("Json")

HIDDEN = "[key]"
# Shorter values are not keys, and hiding them would remove ordinary words.
_SHORTEST = 8
_NAMES = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PAT)$", re.I)
# Parameters of requests that only sound like those.
_NO_KEYS = re.compile(r"prompt_cache_key|(?:bos|eos|pad|unk|sep|cls|mask|stop|start|end)_token", re.I)
_SHAPES = re.compile(
    r"\b(?:sk-[\w*.-]{6,}|hf_[A-Za-z0-9]{12,}|gh[pousr]_[A-Za-z0-9]{20,}|(?:Bearer|Basic)\s+[\w.~+/*-]{8,}=*)"
)
# Name and password before the host of an address, and keys in its query.
_USER = re.compile(r"(?<=://)[^\s/'\",\]}]*@(?=[^\s/])")
_QUERY = re.compile(r"(?<=[?&])((?:api[-_]?key|key|token|access_token|sig|signature)=)[^&\s'\",\]}]+", re.I)
# What a service repeats of a request's header; sentences about it stay.
_BEARER = re.compile(r"\bbearer\s+(?!(?:tokens?|auth\w*|scheme|headers?)\b)\S+", re.I)
_KEY_PARAMETERS = frozenset({"apikey", "authorization", "proxyauthorization", "accesstoken", "cookie"})
# The ends of addresses that are added for each request.
_CALLS = re.compile(r"(?:/chat)?/completions$|(?<=/v\d)/models$")
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
    known = {form for secret in secrets if len(secret) >= _SHORTEST for form in _forms(secret)}

    def clean(text: str) -> str:
        for secret in sorted(known, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return text

    hidden: Json = everywhere(value, clean)
    return hidden


def _forms(secret: str) -> Iterator[str]:
    """A secret as it is, in an address, and as the name or the password of a header in base64."""
    yield from (secret, quote(secret, safe="", errors="replace"))
    for text in (secret, f"{secret}:", f":{secret}"):
        yield base64.b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def refuse_keys(group: str, api_key_env: str | None, parameters: Mapping[str, Any]) -> None:
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
    if (name := _key_in(parameters)) is not None:
        raise InputError(
            "a key among the parameters would be kept in every record",
            where=f"option {group}.parameters.{name}",
            fix=f"export {'HF_TOKEN' if 'hf_' in name else api_key_env or 'OPENAI_API_KEY'}=...",
        )


def _key_in(value: object) -> str | None:
    """Where a JSON value has a key, by its name or its form: names joined by dots; None: nowhere."""
    if isinstance(value, str):
        return "" if _SHAPES.fullmatch(value.strip()) else None
    if not isinstance(value, Mapping):
        inner = map(_key_in, value) if isinstance(value, list | tuple) else ()
        return next((name for name in inner if name is not None), None)
    for key, held in value.items():
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|-", "_", str(key))
        known = _NAMES.search(name) and not _NO_KEYS.fullmatch(name)
        # A name of a JSON schema stands for an object, a number for a token, `true` for a key kept elsewhere.
        harmless = isinstance(held, Mapping | bool | None) or (
            isinstance(held, int | float) and name.lower().endswith("token")
        )
        if not harmless and (known or name.replace("_", "").lower() in _KEY_PARAMETERS):
            return str(key)
        if (inside := _key_in(held)) is not None:
            return ".".join(filter(None, (str(key), inside)))
    return None


def check_address(address: str, option: str) -> None:
    """Refuses what is not the address of a service.

    Args:
        address: may have a name and a password, which no error shows.
        option: where it was given.

    Raises:
        InputError: it is malformed, has a query, or is that of one of the service's calls.
    """
    try:
        parts = urlsplit(address)
        # An impossible port is noticed when it is read.
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or re.search(r"[\s\\\x00-\x1f\x7f]", address):
        # What stands before an @ may be a password.
        raise InputError(
            "not an address: it must begin with http:// or https://, a host and perhaps a port",
            where=option if "@" in address else f"{option}={without_credentials(address)}",
            fix=f"{option}=http://HOST:PORT/v1",
        )
    shown = f"{option}={public_address(address)}"
    if parts.query or parts.fragment:
        raise InputError(
            "the address of a service has no query; a key is read from the environment",
            where=shown,
            fix=shown,
        )
    if call := _CALLS.search(parts.path.rstrip("/")):
        raise InputError(
            f"the address ends in {call[0]}, which is added for each request",
            where=shown,
            fix=shown.removesuffix(call[0]),
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
    clean = _BEARER.sub(HIDDEN, hide(" ".join(unicode_text(text).split()), *secrets))
    for secret in secrets:
        # A short key is no ordinary word where it has a digit.
        if 4 <= len(secret) < _SHORTEST and re.search(r"\d", secret):
            clean = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, clean)
    # Cut last: half a key at the end would not be recognised.
    return printable(clean)[:500]


def printable(text: str) -> str:
    """A text without the control characters that steer a terminal; line breaks and tabs stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if _NAMES.search(name):
            yield value.strip()
