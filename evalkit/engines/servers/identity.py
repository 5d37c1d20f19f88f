"""Which model a run through servers is about: what they say of it, held against what the command says."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evalkit.core.config import Config, Dtype, EngineConfig, PromptForm, ServerKind, is_offline
from evalkit.core.errors import InputError
from evalkit.engines.base import Identified
from evalkit.engines.models import label_of
from evalkit.engines.models.served import resolve_without_weights
from evalkit.engines.servers.facts import ServerFacts, addresses, api_key, ask_facts, nobody_answers
from evalkit.services.client import ApiClient, Service
from evalkit.services.refusals import public_address

if TYPE_CHECKING:
    from evalkit.engines.models import ResolvedModel

log = logging.getLogger(__name__)

# The first look at a server is soon over: a run that cannot start should say so.
_LOOK_RETRIES = 2


def new_client(options: EngineConfig, address: str, *, retries: int | None = None) -> ApiClient:
    """A client for one of the servers, with the key of the environment.

    Raises:
        InputError: the package openai is not installed.
    """
    return ApiClient(
        Service(base_url=address, api_key=api_key(options), timeout=options.timeout),
        concurrency=options.concurrency,
        retries=options.retries if retries is None else retries,
        first_wait=min(1.0, options.max_wait),
        max_wait=options.max_wait,
    )


def identify_served(config: Config) -> Identified:
    """The model behind engine=api: of a server the model's name counts.

    Raises:
        InputError: the command and the servers, or two servers, do not agree.
        EvalkitError: no server answers, or one refuses the key.
    """
    assert config.model is not None
    known = resolve_without_weights(config.model, offline=is_offline(config))
    facts = ask_servers(config)
    if config.model.served and config.model.name is None:
        known = replace(known, name=facts.model, label=label_of(facts.model))
    identity = _foreign_identity(config, known, facts)
    dtype = "server" if config.dtype is Dtype.auto else config.dtype.value
    return Identified(replace(known, identity=identity), "api", dtype)


def _foreign_identity(config: Config, known: "ResolvedModel", facts: ServerFacts) -> dict[str, Any]:
    # The files that are here tell two models of one name apart; their tokenizer makes the prompts.
    identity: dict[str, Any] = {"server_model": facts.model, "name": known.name, **known.identity}
    if facts.kind is not ServerKind.openai:
        # It decides which sampling parameters are sent, and so which of its own a server fills in.
        identity["server"] = facts.kind.value
    if config.engine.parameters:
        identity["parameters"] = dict(config.engine.parameters)
    if config.engine.prompts is PromptForm.chat:
        identity["prompts"] = PromptForm.chat.value
    return identity


def ask_servers(config: Config) -> ServerFacts:
    """What the servers that answer say, agreed among them.

    Raises:
        InputError: they do not agree.
        EvalkitError: no server answers, or one refuses the key.
    """
    assert config.model is not None
    found = addresses(config.engine)
    name = config.model.name if config.model.served else None
    answers = asyncio.run(_look(config.engine, found, name))
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
