"""The engine for OpenAI-compatible servers: vLLM, SGLang, TGI, llama.cpp, commercial ones."""

import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from evalkit.core.config import BosRule, EngineConfig, PromptForm, ServerKind
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.secrets import public_address
from evalkit.core.types import REST_OF_CONTEXT, Completion, Message, Request
from evalkit.engines.base import Engine, distinct
from evalkit.engines.local.chat_template import clock_date, render_chat
from evalkit.engines.local.tokenizer import tokenizer_of
from evalkit.engines.local.tokens import encode, end_ids
from evalkit.engines.models import ResolvedModel
from evalkit.engines.servers.balance import LoadBalancer
from evalkit.engines.servers.bodies import (
    cut_at_stop,
    foreign_completion,
    parameters,
    stopped_by_its_prompt,
    template_arguments,
)
from evalkit.engines.servers.prompt_form import Form, choose_form
from evalkit.engines.servers.server_facts import addresses, ask_servers, look, new_client, no_server
from evalkit.services.ask_all import ask_all, streamed
from evalkit.services.client import ApiClient
from evalkit.services.replies import Reply, chat_body, completion_body

log = logging.getLogger(__name__)

Put = Callable[[Completion], None]


class ApiEngine(Engine):
    """Asks servers for completions.

    Args:
        resolved: the model.
        options: of the engine.
        bos: the rule for text prompts.
        follow_generation_config: leave the sampling to the servers.

    Raises:
        InputError: no address, or servers with different models.
        EvalkitError: no server answers, or one refuses the key.
    """

    family = "api"

    def __init__(
        self, resolved: ResolvedModel, options: EngineConfig, *, bos: BosRule, follow_generation_config: bool
    ) -> None:
        self._options = options
        self._bos = bos
        self._follow_generation_config = follow_generation_config
        self._resolved = resolved
        self._addresses = addresses(options)
        self._facts = ask_servers(resolved.config, options)
        for remark in self._facts.remarks:
            log.warning("%s", remark)
        self._tokenizer: Any = tokenizer_of(resolved)
        self._form: Form | None = None
        self._left_out: set[str] = set()
        self._told_overflow = False

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `Engine.generate`.

        Raises:
            EvalkitError: every server is dead, one refuses every request, or some requests failed
                at all of them; what was answered, also by calls then under way, comes first.
            InputError: the chat template may not be used (`render_chat`).
        """
        listed = distinct(requests)
        if listed:
            self._check_template(listed)
            self._check_room(listed)

            def answer(put: Put) -> Coroutine[Any, Any, None]:
                return self._answer(listed, put)

            yield from streamed(answer)

    def _check_template(self, requests: Iterable[Request]) -> None:
        """Checks the chat template, if it is available here; the server renders the chats."""
        first = next((turns for request in requests if (turns := self._messages(request))), None)
        if first and self._tokenizer is not None and self._tokenizer.chat_template:
            render_chat(first, self._tokenizer)
            if clock_date(self._tokenizer):
                log.warning("the chat template has a clock: the server puts the date of today into prompts")

    def _check_room(self, requests: Sequence[Request]) -> None:
        """Compares the server's context with what prompts and answers need, where both are known."""
        context, tokenizer = self._facts.context, self._tokenizer
        if context is None or tokenizer is None:
            return
        asked = [replace(request, prompt=self._messages(request) or request.prompt) for request in requests]
        if not tokenizer.chat_template:
            asked = [request for request in asked if isinstance(request.prompt, str)]
        try:
            encoded = encode(asked, tokenizer, end_ids(tokenizer, None), self._bos, context)
        except InputError:
            # The server renders the chats; what its template here refuses is not counted.
            return
        limits = [1 if one.max_new_tokens == REST_OF_CONTEXT else one.max_new_tokens for one in asked]
        needs = [(len(one.ids), limit) for one, limit in zip(encoded, limits, strict=True)]
        if short := [need for need in needs if sum(need) > context]:
            self._told_overflow = True
            prompt, new = max(short, key=sum)
            log.warning(
                "the server's context is %d tokens: %d of %d prompts need more, %d of them without any "
                "answer (the longest: %d tokens and %d for the answer). What does not fit counts as wrong; "
                "when the server is started with a larger context, the same command asks it again",
                *(context, len(short), len(needs), sum(size >= context for size, _ in short), prompt, new),
            )

    async def _answer(self, requests: Sequence[Request], put: Put) -> None:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(new_client(self._options, address))
                for address in self._addresses
            ]
            servers = LoadBalancer(clients, retries=self._options.retries, check=self._check)
            texts = any(isinstance(request.prompt, str) for request in requests)
            if texts and self._form is None and self._options.prompts is not PromptForm.chat:
                self._form = await self._choose_form(servers)
            await self._ask_all(servers, requests, put)

    async def _ask_all(self, servers: LoadBalancer, requests: Sequence[Request], put: Put) -> None:
        failed: list[str] = []

        async def ask(request: Request) -> Reply:
            reply = await self._ask(servers, request)
            if self._facts.kind is ServerKind.openai and stopped_by_its_prompt(request, reply):
                reply = cut_at_stop(await self._ask(servers, replace(request, stop=())), request.stop)
            if reply.status != "api_error":
                text = request.prompt if isinstance(request.prompt, str) else ""
                done = foreign_completion(request, reply, text, self._tokenizer, self._facts.context)
                self._tell_overflow(done)
                put(done)
            return reply

        def on_failure(request: Request, reply: Reply, down: bool) -> None:
            failed.append(f"{request.id}: {reply.error}")
            if down or not servers.alive:
                raise self._failure(servers, reply)

        concurrency = sum(server.client.limit.most for server in servers.servers)
        await ask_all(requests, ask, concurrency=concurrency, on_failure=on_failure)
        if failed:
            raise EvalkitError(
                f"{len(failed)} requests failed at the server, the others are kept",
                where=f"among them {failed[0]}",
                fix="run the same command again: it asks only these",
            )

    def _tell_overflow(self, done: Completion) -> None:
        """Says once that prompts are too long, where that could not be known before the first one."""
        if not done.over_context or self._told_overflow:
            return
        self._told_overflow = True
        context = self._facts.context
        known = "the server does not say how long its context is"
        known = known if context is None else f"the server's context is {context} tokens"
        log.warning(
            "%s is too long and counts as wrong, others may be: %s (%s)%s",
            *(done.id, done.error, known),
            "" if context is None else "; with a larger one the same command asks it again",
        )

    async def _check(self, client: ApiClient) -> Reply | str | None:
        """Whether a server serves the same model in the same way as before; see `LoadBalancer`."""
        before = self._facts
        # In one attempt by a client of its own: a list of models that fails is no absence.
        facts = await look(self._options, client.service.base_url or "", before.model, retries=0)
        if isinstance(facts, Reply):
            return facts
        untold = Reply("api_error", error="it does not tell what it serves")
        if not facts.listed:
            return untold
        if before.listed and facts.kind is not before.kind:
            return f"it was {before.kind.value} and is {facts.kind.value}"
        if before.context is None:
            return None
        if facts.context is None:
            return untold
        if facts.context < before.context:
            return f"its context was {before.context} tokens and is now {facts.context}"
        return None

    async def _choose_form(self, servers: LoadBalancer) -> Form:
        async def ask(prompt: str | Sequence[int], extra: Mapping[str, Any]) -> Reply:
            body, _ = parameters(self._facts.kind, Request("probe", "", 1), defaults=False)
            body = {**self._with_options(body), **extra}
            reply = await servers.ask("/completions", completion_body(self._facts.model, prompt, body))
            if reply.status == "api_error":
                raise self._failure(servers, reply)
            return reply

        return await choose_form(ask, self._tokenizer, self._bos, self._options.prompts)

    async def _ask(self, servers: LoadBalancer, request: Request) -> Reply:
        messages = self._messages(request)
        body, left_out = parameters(self._facts.kind, request, defaults=self._follow_generation_config)
        self._warn_left_out(left_out)
        body = self._with_options(body, chat=messages is not None)
        if messages is not None:
            body = template_arguments(self._facts.kind, self._resolved.config.chat_template_args) | body
            return await servers.ask("/chat/completions", chat_body(self._facts.model, messages, body))
        assert isinstance(request.prompt, str) and self._form is not None
        body |= self._form.extra
        prompt = self._form.prompt(request.prompt, self._tokenizer, self._bos)
        return await servers.ask("/completions", completion_body(self._facts.model, prompt, body))

    def _failure(self, servers: LoadBalancer, reply: Reply) -> EvalkitError:
        """The error of a request that no server could answer."""
        if not servers.alive:
            changed = any(server.changed for server in servers.servers)
            return no_server([server.problem for server in servers.servers], changed=changed)
        return EvalkitError(
            f"the server fails: {reply.error}",
            where=", ".join(map(public_address, self._addresses)),
            fix="run the same command again when it works: what was answered is kept",
        )

    def _messages(self, request: Request) -> tuple[Message, ...] | None:
        if not isinstance(request.prompt, str):
            return request.prompt
        if self._options.prompts is PromptForm.chat:
            return (Message("user", request.prompt),)
        return None

    def _with_options(self, body: dict[str, Any], *, chat: bool = False) -> dict[str, Any]:
        # OpenAI's newer chat models know the length by this name only.
        if chat and (urlsplit(self._addresses[0]).hostname or "").endswith("openai.com"):
            body |= {"max_completion_tokens": body.pop("max_tokens")} if "max_tokens" in body else {}
        given = body | self._options.parameters
        return {key: value for key, value in given.items() if value is not None}

    def _warn_left_out(self, names: Iterable[str]) -> None:
        for name in set(names) - self._left_out - set(self._options.parameters):
            self._left_out.add(name)
            log.warning("the server takes no %s: it is left out (engine.parameters.%s= sends it)", name, name)

    def describe(self) -> dict[str, Any]:
        """See `Engine.describe`."""
        return {
            "engine": "api",
            "server": self._facts.kind.value,
            "served_model": self._facts.model,
            "context": self._facts.context,
            "addresses": [public_address(address) for address in self._addresses],
            "prompts": self._options.prompts.value,
            "parameters": self._options.parameters,
            "generation_config": self._generation_config(),
        }

    def _generation_config(self) -> dict[str, Any]:
        if self._resolved.path is None:
            return {}
        from evalkit.engines.models.folder_files import generation_config

        return generation_config(self._resolved.path)

    def close(self) -> None:
        """See `Engine.close`."""
