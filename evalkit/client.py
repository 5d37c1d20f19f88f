"""The one client for OpenAI-compatible services: retries, adaptive concurrency, statuses.

    async with ApiClient(Service(base_url="http://localhost:8000/v1", api_key="...")) as client:
        reply = await client.chat("model", messages, {"temperature": 0})

What passes (rate limits, broken connections, server errors, answers without sense) is tried again
with capped backoff, as the service's Retry-After says where it gives one. What concerns one request
(a content filter, a context overflow) becomes the status of its reply. What concerns every request
(a bad key, an unknown model, an empty account) is a `ServiceError`.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from evalkit.errors import EvalkitError, InputError
from evalkit.limits import AdaptiveLimit
from evalkit.redaction import credentials, hide_known
from evalkit.refusals import (
    error_code,
    error_text,
    is_filtered,
    is_overflow,
    public_address,
    redact,
    retry_after,
)
from evalkit.replies import Reply, chat_body, completion_body, reply_of_body
from evalkit.text import everywhere, unicode_text
from evalkit.types import Message

if TYPE_CHECKING:
    import openai

OnLost = Callable[[bool], Awaitable[None]]
# A service that asks for a longer pause than this is out for the day.
LONGEST_PAUSE = 900.0
# Rate limits are no fault of a request: this many for each retry allowed.
RATE_LIMITS_PER_RETRY = 10


@dataclass(frozen=True, slots=True)
class Service:
    """Where requests go. With `deployment` it is Azure OpenAI and `base_url` the resource's address.

    `base_url` None: OpenAI itself. `timeout` is the longest one call may take, in seconds.
    """

    base_url: str | None
    api_key: str = field(repr=False)
    deployment: str | None = None
    api_version: str | None = None
    timeout: float = 180.0

    def __post_init__(self) -> None:
        """Refuses a key that no request can carry, before one is made."""
        if not self.api_key.isascii() or not self.api_key.isprintable():
            raise InputError(
                "the API key holds characters that no request can carry",
                where="environment",
                fix="export it again, without line breaks, quotes or full-width characters",
            )

    @property
    def secrets(self) -> tuple[str, ...]:
        """The key, and name and password in the address as they are sent."""
        return (self.api_key, *credentials(self.base_url or ""))


class ServiceError(EvalkitError):
    """The service refuses every request of this kind; `reason` says why in one word."""

    def __init__(
        self,
        reason: Literal["key", "model", "quota", "request", "pause"],
        what: str,
        *,
        where: object = None,
        fix: str | None = None,
    ) -> None:
        self.reason = reason
        super().__init__(what, where=where, fix=fix)


class _TransientError(Exception):
    """An attempt that failed for now.

    `after` is the pause in seconds the service asks for; without `reachable` nobody is there. `lost`:
    the service may have done the work, and charged for it, without its answer arriving.
    """

    def __init__(
        self,
        message: str,
        *,
        after: float | None = None,
        rate_limited: bool = False,
        reachable: bool = True,
        lost: bool = False,
    ) -> None:
        super().__init__(message)
        self.after = after
        self.rate_limited = rate_limited
        self.reachable = reachable
        self.lost = lost


class ApiClient:
    """Sends requests to one service; use as an asynchronous context manager.

    Args:
        service: where requests go.
        concurrency: calls at once at most.
        retries: further attempts after a transient error; may be changed at any time.
        first_wait: seconds before the second attempt; doubled for each one after it.
        max_wait: the longest such wait.

    Raises:
        InputError: the optional package openai is not installed.
    """

    def __init__(
        self,
        service: Service,
        *,
        concurrency: int = 16,
        retries: int = 10,
        first_wait: float = 1.0,
        max_wait: float = 60.0,
    ) -> None:
        self.service = service
        self.calls = 0
        self.limit = AdaptiveLimit(concurrency)
        self.retries = retries
        self._first_wait = first_wait
        self._max_wait = max_wait
        self.api = _new_api(service)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.api.close()

    async def chat(
        self,
        model: str,
        messages: Sequence[Message],
        parameters: Mapping[str, Any],
        on_lost: OnLost | None = None,
    ) -> Reply:
        """One chat completion, first choice; `parameters` go into the request as they are.

        `on_lost` is called after each attempt whose answer was lost, and told whether another one
        follows; what it raises ends the request.

        Raises:
            ServiceError: the service refuses every such request.
        """
        return await self._post("/chat/completions", chat_body(model, messages, parameters), on_lost)

    async def completions(
        self, model: str, prompt: str | Sequence[int], parameters: Mapping[str, Any]
    ) -> Reply:
        """One text completion, first choice, of the exact text or of token ids.

        Raises:
            ServiceError: the service refuses every such request.
        """
        return await self._post("/completions", completion_body(model, prompt, parameters))

    async def fetch(self, path: str) -> Reply:
        """What the service says at `path` (GET), as the reply's `body`.

        Raises:
            ServiceError: the service refuses to say it.
        """

        async def send() -> Reply:
            answer = await self.api.get(path, cast_to=object)
            if not isinstance(answer, dict):
                raise _TransientError("the service answered without a JSON object")
            return Reply("ok", body=everywhere(answer, unicode_text))

        return await self.request(send)

    async def _post(self, path: str, body: dict[str, Any], on_lost: OnLost | None = None) -> Reply:
        async def send() -> Reply:
            # The typed method would check and convert every request: half of its time on this side.
            answer = await self.api.post(path, cast_to=object, body=body)
            reply = reply_of_body(everywhere(answer, unicode_text))
            if reply is None:
                raise _TransientError("the service answered without a choice", lost=True)
            return reply

        return await self.request(send, on_lost)

    async def request(self, send: Callable[[], Awaitable[Reply]], on_lost: OnLost | None = None) -> Reply:
        """Calls `send` until it answers, is refused, or has failed for the last time.

        Raises:
            ServiceError: the service refuses every such request.
        """
        failures, rate_limits = 0, 0
        while True:
            async with self.limit as started:
                self.calls += 1
                outcome = await self._attempt(send)
                if isinstance(outcome, Reply):
                    self.limit.succeeded()
                    return replace(self._discreet(outcome), attempts=failures + rate_limits + 1)
                wait = self._wait(rate_limits if outcome.rate_limited else failures, outcome.after)
                if outcome.rate_limited:
                    self.limit.slow_down(started, wait)
            failures += not outcome.rate_limited
            rate_limits += outcome.rate_limited
            last = failures > self.retries or rate_limits > RATE_LIMITS_PER_RETRY * (self.retries + 1)
            if outcome.lost and on_lost is not None:
                await on_lost(not last)
            if last:
                error = self._clean(str(outcome))
                return Reply(
                    "api_error", attempts=failures + rate_limits, error=error, reachable=outcome.reachable
                )
            await asyncio.sleep(wait)

    async def _attempt(self, send: Callable[[], Awaitable[Reply]]) -> Reply | _TransientError:
        import httpx
        import openai

        try:
            async with asyncio.timeout(self.service.timeout):
                return await send()
        except _TransientError as error:
            return error
        except (TimeoutError, openai.APITimeoutError):
            return _TransientError(f"no answer within {self.service.timeout:g} s", lost=True)
        except openai.APIConnectionError as error:
            sent = not isinstance(error.__cause__, httpx.ConnectError)
            reason = f"connection failed: {error.__cause__ or error}"
            return _TransientError(reason, reachable=False, lost=sent)
        except openai.APIStatusError as error:
            return self._refusal(error)
        except (openai.APIError, ValueError) as error:
            return _TransientError(f"the answer makes no sense: {error}", lost=True)

    def _refusal(self, error: "openai.APIStatusError") -> Reply | _TransientError:
        status, code, text = error.status_code, error_code(error.body), self._clean(error_text(error))
        if is_filtered(code):
            return Reply("filtered", error=text)
        if is_overflow(status, code, text):
            return Reply("overflow", error=text)
        where = public_address(self.service.base_url or "https://api.openai.com/v1")
        if code in ("insufficient_quota", "billing_hard_limit_reached"):
            raise ServiceError("quota", f"the account has no credit left: {text}", where=where)
        if status == 429 or status >= 500 or status in (408, 409):
            after = retry_after(error.response.headers)
            if after is not None and after > LONGEST_PAUSE:
                raise ServiceError(
                    "pause",
                    f"the service asks to wait {after:.0f} s: {text}",
                    where=where,
                    fix="run the same command again then: what was answered is kept",
                )
            return _TransientError(f"HTTP {status}: {text}", after=after, rate_limited=status == 429)
        if status in (401, 403):
            raise ServiceError("key", f"the service refuses the API key (HTTP {status}): {text}", where=where)
        if status == 404 or code in ("model_not_found", "DeploymentNotFound"):
            raise ServiceError("model", f"the service does not have the model: {text}", where=where)
        raise ServiceError("request", f"the service refuses the request (HTTP {status}): {text}", where=where)

    def explain(self, error: "openai.APIError") -> EvalkitError:
        """An error met outside of `chat`, in words for people."""
        import openai

        if not isinstance(error, openai.APIStatusError):
            return EvalkitError(self._clean(f"the service cannot be reached: {error.__cause__ or error}"))
        try:
            outcome = self._refusal(error)
        except ServiceError as refusal:
            return refusal
        return EvalkitError(self._clean(str(outcome if isinstance(outcome, Exception) else outcome.error)))

    def _wait(self, failures: int, after: float | None) -> float:
        # A pause of 0 says nothing: without one of our own it would be a storm.
        if after:
            return after
        longest = min(self._max_wait, self._first_wait * 2.0**failures)
        return longest * random.uniform(0.5, 1.0)

    def _clean(self, text: str) -> str:
        return redact(text, *self.service.secrets)

    def _discreet(self, reply: Reply) -> Reply:
        """A reply without the caller's key: a server may repeat what it was sent."""
        kept = ("text", "model", "error", "finish_reason", "body")
        values = {name: getattr(reply, name) for name in kept}
        return replace(reply, **everywhere(values, lambda text: hide_known(text, *self.service.secrets)))


def _new_api(service: Service) -> "openai.AsyncOpenAI":
    try:
        import openai
    except ImportError:
        raise InputError(
            "the package openai is not installed", fix="pip install 'evalkit[api]'   (make install has it)"
        ) from None
    if service.deployment is None:
        return openai.AsyncOpenAI(
            api_key=service.api_key, base_url=service.base_url, max_retries=0, timeout=service.timeout
        )
    return openai.AsyncAzureOpenAI(
        api_key=service.api_key,
        azure_endpoint=service.base_url or "",
        azure_deployment=service.deployment,
        api_version=service.api_version,
        max_retries=0,
        timeout=service.timeout,
    )
