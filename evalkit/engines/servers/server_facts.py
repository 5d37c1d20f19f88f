"""Which model a run through servers is about: their addresses, and what they report.

The reports of several servers must agree with each other and with the command.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
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

# Few: a run that cannot start should say so soon.
_LOOK_RETRIES = 2
# Owners of models in /v1/models.
_OWNERS = {
    "vllm": ServerKind.vllm,
    "sglang": ServerKind.sglang,
    "llamacpp": ServerKind.llama_cpp,
}
# Servers that list all names they know. (llama-server takes any other name for its model.)
_STRICT = (ServerKind.vllm, ServerKind.sglang, ServerKind.llama_cpp)
# Where entries of /v1/models name the context, in tokens.
_CONTEXT_FIELDS = (
    *("max_model_len", "context_length", "context_window", "max_context_length", "max_input_tokens"),
    "n_ctx",
)
# Further pages of servers, beside /v1, with the fields on the way to the context of one request.
_CONTEXT_PAGES = {
    ServerKind.llama_cpp: ("/props", ("default_generation_settings", "n_ctx")),
    ServerKind.tgi: ("/info", ("max_total_tokens",)),
}


@dataclass(frozen=True)
class ServerFacts:
    """What a server reports.

    `model` is the name requests must contain; `context` the tokens that a prompt and its answer may
    have together (None: it does not say); `remarks` what a user should know, in sentences. Where its list
    of models could not be read, `listed` is False, and the kind is no more than a guess.
    """

    kind: ServerKind
    model: str
    context: int | None = None
    remarks: tuple[str, ...] = ()
    listed: bool = True


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


async def ask_facts(client: ApiClient, options: EngineConfig, name: str | None) -> ServerFacts | Reply:
    """What the server behind `client` reports; the failed reply when it does not answer.

    Args:
        client: talks to the server.
        options: `server` and `model` override the report.
        name: the model's name where the options give none.

    Raises:
        ServiceError: the server refuses the key.
        InputError: it does not have the model, or several and none is chosen, or its address lacks /v1.
    """
    wanted = options.model or name
    try:
        reply = await client.request("/models")
    except ServiceError as error:
        if error.reason == "model":
            await _check_address(client)
        # Some services have no list of models: the name is taken as given.
        if error.reason not in ("model", "request") or wanted is None:
            raise
        return ServerFacts(_kind({}, options), wanted, listed=False)
    if reply.status == "api_error":
        # The kind is part of the run id, and of what is sent: it is not guessed for a server that fails.
        if not reply.reachable or wanted is None or options.server is ServerKind.auto:
            return reply
        remark = f"the server's list of models fails ({reply.error}): {wanted} is taken as given"
        return ServerFacts(_kind({}, options), wanted, remarks=(remark,), listed=False)
    listed = reply.body.get("data")
    listed = listed if isinstance(listed, list) else []
    entries = [entry for entry in listed if isinstance(entry, dict) and "id" in entry]
    known = {name: entry for entry in entries for name in _names(entry)}
    kind = _kind(known.get(wanted or "") or next(iter(entries), {}), options)
    page, path = _CONTEXT_PAGES.get(kind, (None, ()))
    told = await _page(client, page) if page is not None else {}
    if len(entries) == 1 and isinstance(file := told.get("model_path"), str):
        known |= dict.fromkeys((file, PurePath(file).name, PurePath(file).stem), entries[0])
    chosen, remarks = _chosen(
        known, len(entries), kind, wanted, public_address(client.service.base_url or "")
    )
    if (context := _number(told, path)) is None:
        entry = known.get(chosen, {})
        places = [entry, entry.get("meta")]
        found = (_number(place, (name,)) for place in places for name in _CONTEXT_FIELDS)
        context = next((number for number in found if number is not None), None)
    return ServerFacts(kind, chosen, context, remarks, listed=bool(entries))


async def _check_address(client: ApiClient) -> None:
    """Refuses an address without a list of models where one is below its /v1."""
    address = (client.service.base_url or "").rstrip("/")
    if urlsplit(address).path.endswith("/v1"):
        return
    with suppress(ServiceError):
        if (await client.request(f"{address}/v1/models")).status == "ok":
            shown = public_address(address)
            raise InputError(
                "the server's address ends in /v1",
                where=f"engine.base_url={shown}",
                fix=f"engine.base_url={shown}/v1",
            )


async def _page(client: ApiClient, page: str) -> Mapping[str, Any]:
    """The JSON object at a page beside /v1; nothing where the server does not have it."""
    try:
        reply = await client.request((client.service.base_url or "").removesuffix("/v1") + page)
    except ServiceError:
        return {}
    return reply.body


def _number(content: Any, path: Sequence[str]) -> int | None:
    for name in path:
        content = content.get(name) if isinstance(content, dict) else None
    return content if type(content) is int and content > 0 else None


def _names(entry: Mapping[str, Any]) -> list[str]:
    """The names by which a server knows one of its models."""
    aliases = entry.get("aliases")
    return [str(entry["id"]), *(map(str, aliases) if isinstance(aliases, list) else ())]


def _chosen(
    known: Mapping[str, Any], models: int, kind: ServerKind, wanted: str | None, address: str
) -> tuple[str, tuple[str, ...]]:
    """The name to ask for, compared with those that the server lists, and remarks about it."""
    first = next(iter(known), "NAME")
    if wanted is None:
        if models != 1:
            raise InputError(
                f"the server has {models} models, and none is chosen",
                where=address,
                fix=f"engine.model={first}",
            )
        if first.startswith("/") or (first.endswith(".gguf") and "/" in first) or "\\" in first:
            remark = f"the server names its model by a path, which becomes part of the run id: {first}"
            return first, (f"{remark} (llama-server has --alias NAME, vLLM --served-model-name NAME)",)
        return first, ()
    if not known or wanted in known:
        return wanted, ()
    if kind in _STRICT:
        alias = f", or start llama-server with --alias {wanted}" if kind is ServerKind.llama_cpp else ""
        raise InputError(
            f"the server does not have the model {wanted!r}{did_you_mean(wanted, known)}",
            where=address,
            fix=f"engine.model={first}{alias}",
        )
    return wanted, (f"{address} does not list the model {wanted!r}, but {', '.join(list(known)[:5])}",)


def _kind(entry: Mapping[str, Any], options: EngineConfig) -> ServerKind:
    if options.server is not ServerKind.auto:
        return options.server
    owner = entry.get("owned_by")
    if owner and owner == entry.get("id"):
        return ServerKind.tgi
    return _OWNERS.get(str(owner), ServerKind.openai)


def no_server(problems: Sequence[str], *, reachable: bool = False, changed: bool = False) -> EvalkitError:
    """The error when no server can be used.

    Args:
        problems: each server with what is wrong with it.
        reachable: one of them answers, but its list of models fails.
        changed: one of them answers, but is not what it was.
    """
    what, fix = "no server answers", "start one and run the same command again"
    if changed:
        what, fix = "no server can be used", "start one as it was and run the same command again"
    elif reachable:
        kinds = "|".join(kind.value for kind in ServerKind if kind is not ServerKind.auto)
        fix = f"say what its list of models would (engine.server={kinds} engine.model=NAME), or "
        what, fix = "the server fails", f"{fix}run the same command again when it works"
    return EvalkitError(what, where=", ".join(problems), fix=f"{fix}: it continues")


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
    return Identified(replace(known, identity=identity), "api", precision, facts.context)


def ask_servers(model: ModelConfig, options: EngineConfig) -> ServerFacts:
    """The common report of the servers that answer; those that do not are among its remarks.

    Raises:
        InputError: they disagree.
        EvalkitError: no server answers, or one refuses the key.
    """
    found = addresses(options)
    name = model.name if model.served else None

    async def ask(put: Callable[[list[ServerFacts | Reply]], None]) -> None:
        put(await asyncio.gather(*(look(options, address, name) for address in found)))

    # In a thread of its own: a notebook has a loop already.
    (answers,) = streamed(ask)
    alive: list[tuple[str, ServerFacts]] = []
    problems: list[str] = []
    reachable = False
    for address, told in zip(found, answers, strict=True):
        shown = public_address(address)
        if isinstance(told, ServerFacts):
            alive.append((shown, told))
        else:
            problems.append(f"{shown} ({told.error})")
            reachable = reachable or told.reachable
    if not alive:
        raise no_server(problems, reachable=reachable)
    first = next((facts for _, facts in alive if facts.listed), alive[0][1])
    for _, facts in alive:
        if facts.model != first.model or (facts.listed and facts.kind is not first.kind):
            raise InputError(
                f"the servers differ: {first.model} ({first.kind.value}) and "
                f"{facts.model} ({facts.kind.value})",
                where=", ".join(address for address, _ in alive),
                fix="serve one model with one program at all of them",
            )
    # Each request may go to any of them.
    context = min((facts.context for _, facts in alive if facts.context is not None), default=None)
    remarks = [f"the server does not answer: {problem}" for problem in problems]
    remarks += [remark for _, facts in alive for remark in facts.remarks]
    own = {_last_part(text) for text in (model.name, model.path) if text}
    if own and not model.served and options.model is None and _last_part(first.model) not in own:
        of = model.name or model.path
        remarks.append(
            f"the server calls its model {first.model!r}: its answers are taken for those of {of} "
            f"(engine.model={first.model} says that they are)"
        )
    return replace(first, context=context, remarks=tuple(dict.fromkeys(remarks)))


def _last_part(name: str) -> str:
    """What names of one model have in common: no folder, owner, capital letters or suffix .gguf."""
    return Path(name).absolute().name.lower().removesuffix(".gguf")


async def look(
    options: EngineConfig, address: str, name: str | None, *, retries: int = _LOOK_RETRIES
) -> ServerFacts | Reply:
    """What the server at an address reports; see `ask_facts`."""
    async with new_client(options, address, retries=min(retries, options.retries)) as client:
        return await ask_facts(client, options, name)
