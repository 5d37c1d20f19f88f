"""OpenAI-compatible servers: their addresses and what they say of themselves."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from evalkit.core.config import EngineConfig, ServerKind
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.secrets import refuse_keys
from evalkit.core.text import did_you_mean
from evalkit.services.client import ApiClient, ServiceError
from evalkit.services.refusals import public_address
from evalkit.services.replies import Reply

# What /v1/models names as the owner of a model.
_OWNERS = {
    "vllm": ServerKind.vllm,
    "sglang": ServerKind.sglang,
    "llamacpp": ServerKind.llama_cpp,
}
# Servers that know exactly which names they answer to.
_STRICT = (ServerKind.vllm, ServerKind.sglang)


@dataclass(frozen=True)
class ServerFacts:
    """What a server says of itself; `model` is the name requests must carry."""

    kind: ServerKind
    model: str


def addresses(options: EngineConfig) -> list[str]:
    """The addresses of `engine.base_url`, in order.

    Raises:
        InputError: none is given, one is given twice, or one is no address.
    """
    text = (options.base_url or "").strip()
    words = text[1:-1].split(",") if text.startswith("[") and text.endswith("]") else [text]
    found = [word.strip().strip("'\"").rstrip("/") for word in words if word.strip()]
    if not found:
        raise InputError(
            "engine=api needs the address of a server",
            where="option engine.base_url",
            fix="engine.base_url=http://localhost:8000/v1   (or a list [http://a:8000/v1,http://b:8000/v1])",
        )
    for address in found:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(
                "not an address: it must begin with http:// or https://",
                where=f"engine.base_url={public_address(address)}",
            )
    if len(set(found)) != len(found):
        raise InputError("an address is given twice", where="option engine.base_url")
    return found


def api_key(options: EngineConfig) -> str:
    """The key of the environment; servers of one's own may do without.

    Raises:
        InputError: the key itself is among the options.
    """
    refuse_keys("engine", options.api_key_env, options.parameters)
    return os.environ.get(options.api_key_env, "").strip() or "none"


async def ask_facts(client: ApiClient, options: EngineConfig, name: str | None) -> ServerFacts | None:
    """What the server behind `client` says of itself; None when nobody answers.

    Args:
        client: talks to the server.
        options: `server` and `model` take the place of what the server says.
        name: the model's name where the options give none.

    Raises:
        ServiceError: the server refuses the key.
        InputError: it has not the model, or several and none is chosen.
    """
    wanted = options.model or name
    try:
        reply = await client.fetch("/models")
    except ServiceError as error:
        # Some services have no list of models; what they have is asked for by name.
        if error.reason not in ("model", "request") or wanted is None:
            raise
        return ServerFacts(_kind({}, options), wanted)
    if reply.status == "api_error":
        if not reply.reachable or wanted is None:
            return None
        return ServerFacts(_kind({}, options), wanted)
    return _facts(reply, options, wanted, public_address(client.service.base_url or ""))


def _facts(reply: Reply, options: EngineConfig, wanted: str | None, address: str) -> ServerFacts:
    listed = reply.body.get("data")
    entries = {
        str(entry["id"]): entry
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(entry, dict) and "id" in entry
    }
    if wanted is None:
        if len(entries) != 1:
            raise InputError(
                f"the server has {len(entries)} models, and none is chosen",
                where=address,
                fix=f"engine.model={next(iter(entries), 'NAME')}",
            )
        wanted = next(iter(entries))
    entry = entries.get(wanted) or next(iter(entries.values()), {})
    kind = _kind(entry, options)
    if wanted not in entries and kind in _STRICT:
        raise InputError(
            f"the server does not have the model {wanted!r}{did_you_mean(wanted, entries)}",
            where=address,
            fix=f"engine.model={next(iter(entries), 'NAME')}",
        )
    return ServerFacts(kind, wanted)


def _kind(entry: Mapping[str, Any], options: EngineConfig) -> ServerKind:
    if options.server is not ServerKind.auto:
        return options.server
    owner = entry.get("owned_by")
    if owner and owner == entry.get("id"):
        return ServerKind.tgi
    return _OWNERS.get(str(owner), ServerKind.openai)


def nobody_answers(found: list[str]) -> EvalkitError:
    """The error of a run none of whose servers answers."""
    return EvalkitError(
        "no server answers",
        where=", ".join(public_address(address) for address in found),
        fix="start one and run the same command again: it continues",
    )
