"""The engine for OpenAI-compatible servers: vLLM, SGLang, TGI, llama.cpp, commercial ones."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

from evalkit.core.config import Config, PromptForm
from evalkit.core.errors import EvalkitError
from evalkit.core.types import Completion, Message, Request
from evalkit.engines.base import Engine, distinct
from evalkit.engines.local.chat_template import clock_date, render_chat
from evalkit.engines.models import ResolvedModel
from evalkit.engines.servers.balance import Fleet
from evalkit.engines.servers.bodies import foreign_completion, parameters
from evalkit.engines.servers.bridge import streamed
from evalkit.engines.servers.facts import addresses, ask_facts, nobody_answers
from evalkit.engines.servers.identity import ask_servers, new_client
from evalkit.engines.servers.prompt_form import Form, choose_form
from evalkit.services.client import ApiClient, ServiceError
from evalkit.services.refusals import public_address
from evalkit.services.replies import Reply

log = logging.getLogger(__name__)

# So many requests in a row that a living server failed to the last attempt: it is of no use.
FAILURES_IN_A_ROW = 8

Put = Callable[[Completion], None]


class ApiEngine(Engine):
    """Asks servers for completions.

    Raises:
        InputError: no address, or servers with different models.
        EvalkitError: no server answers, or one refuses the key.
    """

    family = "api"

    def __init__(self, config: Config, resolved: ResolvedModel) -> None:
        self._config = config
        self._options = config.engine
        self._resolved = resolved
        self._addresses = addresses(config.engine)
        self._facts = ask_servers(config)
        self._tokenizer: Any = None
        if resolved.has_tokenizer:
            from evalkit.engines.local.loading import load_tokenizer

            self._tokenizer = load_tokenizer(resolved)
        self._form: Form | None = None
        self._left_out: set[str] = set()

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

            def answer(put: Put) -> Coroutine[Any, Any, None]:
                return self._answer(listed, put)

            yield from streamed(answer)

    def _check_template(self, requests: Iterable[Request]) -> None:
        """The server renders chats; where its template is here too, it is seen what that does."""
        first = next((turns for request in requests if (turns := self._messages(request))), None)
        if first and self._tokenizer is not None and self._tokenizer.chat_template:
            render_chat(first, self._tokenizer)
            if clock_date(self._tokenizer):
                log.warning("the chat template has a clock: the server puts the date of today into prompts")

    async def _answer(self, requests: Sequence[Request], put: Put) -> None:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(new_client(self._options, address))
                for address in self._addresses
            ]
            fleet = Fleet(clients, retries=self._options.retries, check=self._check)
            texts = any(isinstance(request.prompt, str) for request in requests)
            if texts and self._form is None and self._options.prompts is not PromptForm.chat:
                self._form = await self._choose_form(fleet)
            await _Work(fleet, self, requests, put).run()

    async def _check(self, client: ApiClient) -> bool:
        """Whether a server that was dead is back, with the same model as before."""
        facts = await ask_facts(client, self._options, self._facts.model)
        return facts is not None and facts.kind is self._facts.kind

    async def _choose_form(self, fleet: Fleet) -> Form:
        async def ask(prompt: str | Sequence[int], extra: Mapping[str, Any]) -> Reply:
            body, _ = parameters(self._facts.kind, Request("probe", "", 1), defaults=False)
            body = {**self._with_options(body), **extra}
            reply = await fleet.ask(lambda client: client.completions(self._facts.model, prompt, body))
            if reply.status == "api_error":
                raise self.failure(fleet, reply)
            return reply

        bos = self._config.protocol.bos
        return await choose_form(ask, self._tokenizer, bos, self._options.prompts)

    async def ask(self, fleet: Fleet, request: Request) -> Completion | Reply:
        """The completion of one request; the reply when every server failed it."""
        messages = self._messages(request)
        body, left_out = parameters(self._facts.kind, request, defaults=self._config.generation.from_model)
        self._say_left_out(left_out)
        body = self._with_options(body, chat=messages is not None)
        if messages is not None:
            turns = messages
            reply = await fleet.ask(lambda client: client.chat(self._facts.model, turns, body))
        else:
            assert isinstance(request.prompt, str) and self._form is not None
            body |= self._form.extra
            prompt = self._form.prompt(request.prompt, self._tokenizer, self._config.protocol.bos)
            reply = await fleet.ask(lambda client: client.completions(self._facts.model, prompt, body))
        if reply.status == "api_error":
            return reply
        text = request.prompt if isinstance(request.prompt, str) else ""
        return foreign_completion(request, reply, text, self._tokenizer)

    def failure(self, fleet: Fleet, reply: Reply) -> EvalkitError:
        """The error of a request that no server could answer."""
        if not fleet.alive:
            return nobody_answers(self._addresses)
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
            body["max_completion_tokens"] = body.pop("max_tokens")
        given = body | self._options.parameters
        return {key: value for key, value in given.items() if value is not None}

    def _say_left_out(self, names: Iterable[str]) -> None:
        for name in set(names) - self._left_out - set(self._options.parameters):
            self._left_out.add(name)
            log.warning("the server takes no %s: it is left out (engine.parameters.%s= sends it)", name, name)

    def describe(self) -> dict[str, Any]:
        """See `Engine.describe`."""
        return {
            "engine": "api",
            "server": self._facts.kind.value,
            "served_model": self._facts.model,
            "addresses": [public_address(address) for address in self._addresses],
            "prompts": self._options.prompts.value,
            "parameters": self._options.parameters,
            "generation_config": self._generation_config(),
        }

    def _generation_config(self) -> dict[str, Any]:
        if self._resolved.path is None:
            return {}
        from evalkit.engines.models.files import generation_config

        return generation_config(self._resolved.path)

    def close(self) -> None:
        """See `Engine.close`."""


class _Work:
    """The requests of one `generate` call on their way to the servers."""

    def __init__(self, fleet: Fleet, engine: ApiEngine, requests: Sequence[Request], put: Put) -> None:
        self._fleet = fleet
        self._engine = engine
        self._waiting = deque(requests)
        self._put = put
        self._stop: EvalkitError | None = None
        self._failed: list[str] = []
        self._in_a_row = 0
        self._answered = False

    async def run(self) -> None:
        """Asks them all, the first one alone: what every request would meet shows there."""
        await self._take_one()
        most = sum(server.client.limit.most for server in self._fleet.servers)
        await asyncio.gather(*(self._take_all() for _ in range(min(most, len(self._waiting)))))
        if self._stop is not None:
            raise self._stop
        if self._failed:
            raise EvalkitError(
                f"{len(self._failed)} requests failed at the server, the others are kept",
                where=f"among them {self._failed[0]}",
                fix="run the same command again: it asks only these",
            )

    async def _take_all(self) -> None:
        while self._waiting and self._stop is None:
            await self._take_one()

    async def _take_one(self) -> None:
        request = self._waiting.popleft()
        try:
            answer = await self._ask(request)
        except EvalkitError as error:
            self._stop = self._stop or error
            return
        if isinstance(answer, Completion):
            self._in_a_row, self._answered = 0, True
            self._put(answer)
            return
        self._in_a_row += 1
        self._failed.append(f"{request.id}: {answer.error}")
        if not self._fleet.alive or self._in_a_row >= FAILURES_IN_A_ROW:
            self._stop = self._stop or self._engine.failure(self._fleet, answer)

    async def _ask(self, request: Request) -> Completion | Reply:
        try:
            return await self._engine.ask(self._fleet, request)
        except ServiceError as error:
            # Where others were answered, it is this one request that the server does not take.
            if error.reason != "request" or not self._answered:
                raise
            return Reply("api_error", error=error.what)
