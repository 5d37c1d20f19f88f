"""Which model a run through servers is about: their addresses, and what they report.

The reports of several servers must agree with each other and with the command.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from evalkit.core.config import Dtype, EngineConfig, ModelConfig, PromptForm, ServerKind
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.secrets import public_address, refuse_keys
from evalkit.core.text import did_you_mean, folder_name
from evalkit.engines.base import Identified
from evalkit.engines.models import resolve_without_weights
from evalkit.services.ask_all import streamed
from evalkit.services.client import ApiClient, Service, ServiceError
from evalkit.services.replies import Reply

log = logging.getLogger(__name__)

# Few: a run that cannot start should say so soon.
_LOOK_RETRIES = 2
# Owners of models in /v1/models.
_OWNERS = {
    "vllm": ServerKind.vllm,
    "sglang": ServerKind.sglang,
    "llamacpp": ServerKind.llama_cpp,
}
# Servers that refuse other names than those they list.
_STRICT = (ServerKind.vllm, ServerKind.sglang)


@dataclass(frozen=True)
class ServerFacts:
    """What a server reports; `model` is the name requests must contain."""

    kind: ServerKind
    model: str


def addresses(options: EngineConfig) -> list[str]:
    """The addresses of `engine.base_url`, in order.

    Raises:
        InputError: none is given, one is given twice, or one is not an address.
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


async def ask_facts(client: ApiClient, options: EngineConfig, name: str | None) -> ServerFacts | None:
    """What the server behind `client` reports; None when it does not answer.

    Args:
        client: talks to the server.
        options: `server` and `model` override the report.
        name: the model's name where the options give none.

    Raises:
        ServiceError: the server refuses the key.
        InputError: it does not have the model, or several and none is chosen.
    """
    wanted = options.model or name
    try:
        reply = await client.request("/models")
    except ServiceError as error:
        # Some services have no list of models: the name is taken as given.
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
    """The error when none of the servers answers."""
    return EvalkitError(
        "no server answers",
        where=", ".join(public_address(address) for address in found),
        fix="start one and run the same command again: it continues",
    )


def new_client(options: EngineConfig, address: str, *, retries: int | None = None) -> ApiClient:
    """A client for one of the servers, with the key of the environment.

    Raises:
        InputError: a key among the options, or the package openai is not installed.
    """
    refuse_keys("engine", options.api_key_env, options.parameters)
    # A local server may need no key.
    key = os.environ.get(options.api_key_env, "").strip() or "none"
    return ApiClient(
        Service(base_url=address, api_key=key, timeout=options.timeout),
        concurrency=options.concurrency,
        retries=options.retries if retries is None else retries,
        first_wait=min(1.0, options.max_wait),
        max_wait=options.max_wait,
    )


def identify_served(model: ModelConfig, options: EngineConfig, dtype: Dtype, *, offline: bool) -> Identified:
    """The model behind engine=api; a served model is identified by its name.

    Raises:
        InputError: the command and the servers, or two servers, disagree.
        EvalkitError: no server answers, or one refuses the key.
    """
    known = resolve_without_weights(model, offline=offline)
    facts = ask_servers(model, options)
    if model.served and model.name is None:
        known = replace(known, name=facts.model, label=folder_name(facts.model))
    # Local files tell two models of one name apart; their tokenizer makes the prompts.
    identity: dict[str, Any] = {"server_model": facts.model, "name": known.name, **known.identity}
    if facts.kind is not ServerKind.openai:
        # It decides which sampling parameters are sent, and so which defaults a server applies.
        identity["server"] = facts.kind.value
    if options.parameters:
        identity["parameters"] = dict(options.parameters)
    if options.prompts is PromptForm.chat:
        identity["prompts"] = PromptForm.chat.value
    precision = "server" if dtype is Dtype.auto else dtype.value
    return Identified(replace(known, identity=identity), "api", precision)


def ask_servers(model: ModelConfig, options: EngineConfig) -> ServerFacts:
    """The common report of the servers that answer.

    Raises:
        InputError: they disagree.
        EvalkitError: no server answers, or one refuses the key.
    """
    found = addresses(options)
    name = model.name if model.served else None

    async def look(put: Callable[[list[ServerFacts | None]], None]) -> None:
        put(await _look(options, found, name))

    # In a thread of its own: a notebook has a loop already.
    (answers,) = streamed(look)
    alive = [(address, facts) for address, facts in zip(found, answers, strict=True) if facts is not None]
    for address in (address for address, facts in zip(found, answers, strict=True) if facts is None):
        log.warning("the server does not answer: %s", public_address(address))
    if not alive:
        raise nobody_answers(found)
    first = alive[0][1]
    for _, facts in alive:
        if facts.model != first.model or facts.kind is not first.kind:
            raise InputError(
                f"the servers differ: {first.model} ({first.kind.value}) and "
                f"{facts.model} ({facts.kind.value})",
                where=", ".join(public_address(address) for address, _ in alive),
                fix="serve one model with one program at all of them",
            )
    return first


async def _look(options: EngineConfig, found: Sequence[str], name: str | None) -> list[ServerFacts | None]:
    async def look(address: str) -> ServerFacts | None:
        async with new_client(options, address, retries=min(_LOOK_RETRIES, options.retries)) as client:
            return await ask_facts(client, options, name)

    return list(await asyncio.gather(*(look(address) for address in found)))
