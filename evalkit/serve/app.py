"""The endpoint: OpenAI's three paths over a worker."""

import asyncio
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from evalkit.errors import EvalkitError
from evalkit.serve.answers import answer, events
from evalkit.serve.asked import Asked, RefusedError, Served, chat_call, parse, text_call
from evalkit.serve.worker import Job, StoppedError, Worker
from evalkit.types import Completion

# How often it is looked whether the caller is still there.
_LOOK_SECONDS = 1.0


class Endpoint:
    """Answers the calls.

    Args:
        served: the model.
        worker: runs the requests.
        told: what evalkit's own client learns of model and engine.
        key: what callers must send; None: nothing.
        max_body: bytes of a body at most.
    """

    def __init__(
        self, served: Served, worker: Worker, told: Mapping[str, Any], *, key: str | None, max_body: int
    ) -> None:
        self._served = served
        self._worker = worker
        self._told = told
        self._key = key
        self._max_body = max_body
        self._started = int(time.time())

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ],
            exception_handlers={RefusedError: _refusal, HTTPException: _http_refusal, Exception: _crash},
        )

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        entry = {"id": self._served.name, "object": "model", "created": self._started, "owned_by": "evalkit"}
        return JSONResponse({"object": "list", "data": [entry | {"evalkit": dict(self._told)}]})

    async def _completions(self, request: Request) -> Response:
        return await self._generate(request, text_call)

    async def _chat(self, request: Request) -> Response:
        return await self._generate(request, chat_call)

    async def _generate(
        self, request: Request, read: Callable[[Mapping[str, Any], Served], Asked]
    ) -> Response:
        self._check_key(request)
        asked = read(parse(await self._body(request)), self._served)
        jobs = self._worker.submit(asked.requests)
        if jobs is None:
            raise RefusedError("too many requests wait already", status=429, code="rate_limit_exceeded")
        completions = await _finished(jobs, request)
        if asked.stream:
            made = list(events(asked, completions, self._served))
            return StreamingResponse(iter(made), media_type="text/event-stream")
        return JSONResponse(answer(asked, completions, self._served))

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        # Starlette reads the bytes of a header as latin-1.
        if not hmac.compare_digest(given.encode("latin-1"), self._key.encode()):
            raise RefusedError("the API key is missing or wrong", status=401, code="invalid_api_key")

    async def _body(self, request: Request) -> bytes:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > self._max_body:
                raise RefusedError(f"the body has more than {self._max_body} bytes", status=413)
        return bytes(data)


async def _finished(jobs: Sequence[Job], request: Request) -> list[Completion]:
    """The completions of a call's jobs; a caller who has gone leaves nothing waiting."""
    futures = [asyncio.wrap_future(job.done) for job in jobs]
    waiting = set(futures)
    try:
        while waiting:
            _, waiting = await asyncio.wait(waiting, timeout=_LOOK_SECONDS)
            if waiting and await request.is_disconnected():
                raise RefusedError("the caller has gone", status=499)
        return [future.result() for future in futures]
    except StoppedError:
        raise RefusedError("the server is shutting down", status=503) from None
    except EvalkitError as error:
        raise RefusedError(error.what, status=500) from None
    finally:
        for future in futures:
            # What has not begun never will; what has failed is heard of once.
            if not future.cancel() and not future.cancelled():
                future.exception()


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.body, status_code=error.status, headers=headers)


async def _http_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refused = RefusedError(error.detail, status=error.status_code)
    return JSONResponse(refused.body, status_code=error.status_code, headers=error.headers)


async def _crash(request: Request, error: Exception) -> Response:
    return JSONResponse(RefusedError("the server failed", status=500).body, status_code=500)
