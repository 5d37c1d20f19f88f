"""The one client for OpenAI-compatible services: retries, adaptive concurrency, statuses.

    async with ApiClient(Service(base_url="http://localhost:8000/v1", api_key="...")) as client:
        reply = await client.request("/chat/completions", chat_body("model", messages, {"temperature": 0}))

Transient failures (rate limits, broken connections, server errors, malformed answers) are retried
with capped exponential backoff, or after the service's Retry-After. A refusal of one request (content
filter, context overflow) becomes the status of its reply. A refusal of every request (bad key, unknown
model, no credit) is a `ServiceError`.
"""

import asyncio
import logging
import random
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.secrets import credentials, hide_known, public_address, redact
from evalkit.services.refusals import Refusal, refusal_of
from evalkit.services.replies import Reply, json_of, read_object, read_reply

if TYPE_CHECKING:
    import openai

log = logging.getLogger(__name__)

OnLost = Callable[[bool], Awaitable[None]]
# A service that asks for a longer pause (seconds) counts as unavailable.
LONGEST_PAUSE = 900.0
# Rate limits are not the fault of a request: this many are allowed for each retry.
RATE_LIMITS_PER_RETRY = 10
# Seconds after which a service that gives nothing but failures is reported; then every hour.
_REPORTS = (2.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Service:
    """Where requests go. With `deployment` it is Azure OpenAI and `base_url` the resource's address.

    `base_url` None: OpenAI. `timeout`: seconds one call may take.
    """

    base_url: str | None
    api_key: str = field(repr=False)
    deployment: str | None = None
    api_version: str | None = None
    timeout: float = 180.0

    def __post_init__(self) -> None:
        """Refuses a key that cannot be sent in an HTTP header."""
        if not self.api_key.isascii() or not self.api_key.isprintable():
            raise InputError(
                "the API key holds characters that no request can carry",
                where="environment",
                fix="export it again, without line breaks, quotes or full-width characters",
            )

    @property
    def secrets(self) -> tuple[str, ...]:
        """The key, and the name and password in the address."""
        return (self.api_key, *credentials(self.base_url or ""))


class ServiceError(EvalkitError):
    """The service refuses every request of this kind; `reason` is the kind of refusal."""

    def __init__(
        self,
        reason: Literal["key", "model", "quota", "request", "pause"],
        what: str,
        *,
        where: object = None,
        fix: str | None = None,
    ) -> None:
        self.reason = reason
        # Whether the service takes such requests again later.
        self.passes = reason in ("quota", "pause")
        super().__init__(what, where=where, fix=fix)


@dataclass(frozen=True, slots=True)
class _Failure:
    """A failed attempt that may be repeated.

    `after`: the pause in seconds the service asks for. `reachable`: whether it could be connected to.
    `lost`: the service may have done the work, and charged for it, without its answer arriving.
    """

    message: str
    after: float | None = None
    rate_limited: bool = False
    reachable: bool = True
    lost: bool = False


class AdaptiveLimit:
    """Limits concurrent calls: a rate limit halves the number, successes raise it again.

    After a rate limit no call starts until the pause the service asked for is over.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.current = float(most)
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._paused_until = 0.0
        self._lowered = 0.0

    async def __aenter__(self) -> float:
        """Waits for a slot; returns the time at which the call starts."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        self._wake()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.running -= 1
                self._wake()
            raise
        return loop.time()

    async def __aexit__(self, *raised: object) -> None:
        self.running -= 1
        self._wake()

    def succeeded(self) -> None:
        """Records an answered call: one more slot after as many successes as there are slots."""
        self.current = min(float(self.most), self.current + 1 / self.current)

    def slow_down(self, started: float, pause: float) -> None:
        """Records a rate limit of the call that started at `started`."""
        now = asyncio.get_running_loop().time()
        # Calls of one burst are refused together: they count once.
        if started >= self._lowered:
            self.current = max(1.0, self.current / 2)
            self._lowered = now
        self._paused_until = max(self._paused_until, now + pause)

    def _wake(self) -> None:
        """Starts the calls that have a slot, or comes back when the pause is over.

        The clock is read once: a pause that ended between two looks would leave nobody to wake the others.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._paused_until:
            if self._waiting:
                loop.call_at(self._paused_until, self._wake)
            return
        while self._waiting and self.running < int(self.current):
            turn = self._waiting.popleft()
            if not turn.done():
                self.running += 1
                turn.set_result(None)


class _Absence:
    """How long a service has given nothing but failures; says so from time to time.

    `over`: how many such times have ended; after each the service may be another one.
    """

    def __init__(self, address: str) -> None:
        self.over = 0
        self._address = address
        self._since: datetime | None = None
        self._reports = 0

    def __str__(self) -> str:
        """Since when, for messages; empty while it answers."""
        if self._since is None:
            return ""
        form = "%H:%M:%S" if self._since.date() == datetime.now().date() else "%Y-%m-%d %H:%M:%S"
        return f"since {self._since:{form}}"

    def failed(self, error: str, *, reachable: bool) -> None:
        """Records a failed attempt."""
        now = datetime.now()
        self._since = self._since or now
        seconds = (now - self._since).total_seconds()
        reached = sum(seconds >= step for step in _REPORTS) + int(seconds // 3600) - (seconds >= 3600)
        if reached > self._reports:
            self._reports = reached
            how = "fails" if reachable else "does not answer"
            log.warning("%s %s %s (%s): it is tried again", self._address, how, str(self), error)

    def answered(self) -> None:
        """Records an answer, a refusal included."""
        if self._reports:
            log.warning("%s answers again; it was away %s", self._address, str(self))
        self.over += self._since is not None
        self._since, self._reports = None, 0


class ApiClient:
    """Sends requests to one service; use as an asynchronous context manager.

    Args:
        service: where requests go.
        concurrency: the most calls at once.
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
        self.absence = _Absence(public_address(service.base_url or "https://api.openai.com/v1"))
        self.api = _new_api(service)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.api.close()

    async def request(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        on_lost: OnLost | None = None,
        *,
        needs_text: bool = False,
    ) -> Reply:
        """Posts `body`, or asks for what is at `path` (GET) without one; repeats transient failures.

        Args:
            path: `/chat/completions`, `/completions`, `/models`.
            body: see `chat_body` and `completion_body`.
            on_lost: called after each attempt whose answer was lost, with True when another attempt
                follows; what it raises ends the request.
            needs_text: an empty answer that was not cut off, and has no thought, is a transient failure.

        Returns:
            The first choice of a completion. Without `body`, the answer's object is in `Reply.body`.

        Raises:
            ServiceError: the service refuses every such request.
        """
        import openai

        # The typed methods would check and convert every request: half of the client's time.
        send: Callable[..., Any] = self.api.get if body is None else partial(self.api.post, body=body)
        read: Callable[..., Reply | Refusal] = (
            read_object if body is None else partial(read_reply, needs_text=needs_text)
        )
        failures, rate_limits = 0, 0
        while True:
            async with self.limit as started:
                self.calls += 1
                try:
                    async with asyncio.timeout(self.service.timeout):
                        answer = await send(path, cast_to=openai.HttpxBinaryResponseContent)
                    found = read(answer.response.status_code, answer.response.headers, answer.content)
                    outcome = self._refused(found, answered=True) if isinstance(found, Refusal) else found
                except (TimeoutError, openai.APIError, ValueError) as raised:
                    outcome = self._failure(raised)
                if isinstance(outcome, Reply):
                    self.limit.succeeded()
                    self.absence.answered()
                    return replace(self._redacted(outcome), attempts=failures + rate_limits + 1)
                wait = self._wait(rate_limits if outcome.rate_limited else failures, outcome.after)
                if outcome.rate_limited:
                    self.limit.slow_down(started, wait)
                    self.absence.answered()
                else:
                    self.absence.failed(self._clean(outcome.message), reachable=outcome.reachable)
            failures += not outcome.rate_limited
            rate_limits += outcome.rate_limited
            last = failures > self.retries or rate_limits > RATE_LIMITS_PER_RETRY * (self.retries + 1)
            if outcome.lost and on_lost is not None:
                await on_lost(not last)
            if last:
                error, attempts = self._clean(outcome.message), failures + rate_limits
                return Reply("api_error", attempts=attempts, error=error, reachable=outcome.reachable)
            await asyncio.sleep(wait)

    def _failure(self, error: Exception) -> Reply | _Failure:
        """What an attempt that raised this means."""
        import openai

        if isinstance(error, TimeoutError | openai.APITimeoutError):
            return _Failure(f"no answer within {self.service.timeout:g} s", lost=True)
        if isinstance(error, openai.APIConnectionError):
            # By name: the package openai brings an HTTP client of its own.
            sent = type(error.__cause__).__name__ != "ConnectError"
            reason = f"connection failed: {error.__cause__ or error}"
            return _Failure(reason, reachable=False, lost=sent)
        if isinstance(error, openai.APIStatusError):
            return self._refused(_refusal_in(error))
        return _Failure(f"the answer makes no sense: {error}", lost=True)

    def _refused(self, refusal: Refusal, *, answered: bool = False) -> Reply | _Failure:
        """`answered`: in an answer, which may have been paid for."""
        text, place = self._clean(refusal.text), refusal.place
        where = public_address(self.service.base_url or "https://api.openai.com/v1")
        match refusal.kind:
            case "filtered" | "overflow" as status:
                return Reply(status, error=text)
            case "quota":
                raise ServiceError("quota", f"the account has no credit left: {text}", where=where)
            case "key":
                raise ServiceError("key", f"the service refuses the API key ({place}): {text}", where=where)
            case "model":
                # A wrong path is answered like an unknown model.
                bare = self.service.deployment is None and re.search(r"/v\d", where) is None
                fix = f"if the model is there: is the address complete, {where}/v1?" if bare else None
                what = f"the service does not have the model: {text}"
                raise ServiceError("model", what, where=where, fix=fix)
            case "request":
                what = f"the service refuses the request ({place}): {text}"
                raise ServiceError("request", what, where=where)
        if refusal.after is not None and refusal.after > LONGEST_PAUSE:
            raise ServiceError(
                "pause",
                f"the service asks to wait {refusal.after:.0f} s: {text}",
                where=where,
                fix="run the same command again then: what was answered is kept",
            )
        limited = refusal.kind == "rate_limit"
        return _Failure(
            f"{place}: {text}", after=refusal.after, rate_limited=limited, lost=answered and not limited
        )

    def explain(self, error: "openai.APIError") -> EvalkitError:
        """The message for an error of the openai package outside of `request`."""
        import openai

        if not isinstance(error, openai.APIStatusError):
            return EvalkitError(self._clean(f"the service cannot be reached: {error.__cause__ or error}"))
        try:
            outcome = self._refused(_refusal_in(error))
        except ServiceError as refusal:
            return refusal
        message = outcome.message if isinstance(outcome, _Failure) else outcome.error or ""
        return EvalkitError(self._clean(message))

    def _wait(self, failures: int, after: float | None) -> float:
        # With a Retry-After of 0 our own backoff is used: else calls would repeat at full speed.
        if after:
            return after
        # A float ends at 2^1023; no wait is that long.
        longest = min(self._max_wait, self._first_wait * 2.0 ** min(failures, 30))
        return longest * random.uniform(0.5, 1.0)

    def _clean(self, text: str) -> str:
        return redact(text, *self.service.secrets)

    def _redacted(self, reply: Reply) -> Reply:
        """A reply without the caller's key: a server may repeat its request."""
        kept = ("text", "thought", "model", "error", "finish_reason", "body")
        values = {name: getattr(reply, name) for name in kept}
        return replace(reply, **hide_known(values, *self.service.secrets))


def _refusal_in(error: "openai.APIStatusError") -> Refusal:
    # The error keeps the inner object of the body only.
    body = None if error.body is None else json_of(error.response.content)
    return refusal_of(error.status_code, error.response.headers, body)


def _new_api(service: Service) -> "openai.AsyncOpenAI":
    try:
        import openai
    except ImportError:
        raise InputError(
            "the package openai is not installed", fix="pip install 'evalkit[api]'   (make install has it)"
        ) from None
    common: dict[str, Any] = {"api_key": service.api_key, "max_retries": 0, "timeout": service.timeout}
    try:
        if service.deployment is None:
            return openai.AsyncOpenAI(base_url=service.base_url, **common)
        return openai.AsyncAzureOpenAI(
            azure_endpoint=service.base_url or "",
            azure_deployment=service.deployment,
            api_version=service.api_version,
            **common,
        )
    # By name: the package openai brings an HTTP client of its own.
    except Exception as error:
        if type(error).__name__ != "InvalidURL":
            raise
        raise InputError(f"not an address: {error}", where=public_address(service.base_url or "")) from None
