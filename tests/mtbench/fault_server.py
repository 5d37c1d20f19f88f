"""An OpenAI-compatible server on real sockets that answers by rule and fails as it is told."""

import asyncio
import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

# What a call is answered with: (messages as one text, how often they came before) -> fault or "ok".
Plan = Callable[[str, int], str]

CHOICE = {"text": " 答え", "finish_reason": "stop"}
PAUSE = 0.05
HANG = 1.5


def always_ok(text: str, attempt: int) -> str:
    return "ok"


def rating_of(text: str) -> int:
    """The rule: 1 to 10 by a checksum of the messages."""
    return 1 + zlib.crc32(text.encode()) % 10


def text_of_body(body: dict[str, Any]) -> str:
    """What a call asks, as one text."""
    if "prompt" in body:
        return str(body["prompt"])
    return "\n".join(message["content"] for message in body["messages"])


def close(request: web.Request) -> None:
    """Cut the connection, unless the client already has."""
    if request.transport is not None:
        request.transport.close()


class FaultServer:
    """Runs in a thread of its own while it is open.

    Attributes:
        calls: every request's messages as one text, in order.
        answered: how often each was answered for good (an answer or a final refusal).
        bodies: the request bodies, in order.
        headers: the headers of the last request.
        most_at_once: the most requests under way at the same time.
    """

    def __init__(self, plan: Plan = always_ok, *, latency: float = 0.0, limit: int | None = None) -> None:
        self.plan = plan
        self.latency = latency
        self.limit = limit
        self.text_of = lambda rating: f"説明です。\n\nRating: [[{rating}]]"
        self.served_model: str | None = None
        # Text completions: the listed model, what a choice says, and the tokens of a prompt.
        self.listed: dict[str, Any] | None = {"id": "served", "object": "model", "owned_by": "me"}
        self.also_listed: list[dict[str, Any]] = []
        # What llama-server tells about itself.
        self.props: dict[str, Any] | None = None
        self.choose: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: {
            "text": " 答え",
            "finish_reason": "stop",
        }
        self.count: Callable[[dict[str, Any]], int | None] = lambda body: len(body["prompt"])
        self.key: str | None = None
        self.pause = PAUSE
        # Faults of a test's own: status, headers and body (bytes as they are, else JSON).
        self.raw: dict[str, tuple[int, dict[str, str], Any]] = {}
        self.calls: list[str] = []
        # Requests for the list of models.
        self.looks = 0
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: dict[str, str] = {}
        self.answered: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.at_once = 0
        self.most_at_once = 0
        self.times: list[float] = []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/props", self._props)
        app.router.add_post("/openai/deployments/{deployment}/chat/completions", self._chat)
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{file}/content", self._content)
        app.router.add_post("/v1/batches", self._create_batch)
        app.router.add_get("/v1/batches", self._list_batches)
        app.router.add_get("/v1/batches/{batch}", self._batch)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.port = runner.addresses[0][1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = text_of_body(body)
        self.bodies.append(body)
        self.paths.append(request.path_qs)
        self.headers = dict(request.headers)
        self.calls.append(text)
        self.times.append(time.monotonic())
        fault = self.plan(text, self.attempts[text])
        if self.key is not None and self.headers.get("Authorization") != f"Bearer {self.key}":
            fault = "bad_key"
        self.attempts[text] += 1
        if self.limit is not None and self.at_once >= self.limit:
            fault = "429"
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.latency)
            return await self._respond(fault, text, body, request)
        finally:
            self.at_once -= 1

    async def _respond(
        self, fault: str, text: str, body: dict[str, Any], request: web.Request
    ) -> web.StreamResponse:
        if fault in self.raw:
            status, headers, content = self.raw[fault]
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            return web.Response(status=status, headers=headers, body=data)
        if fault == "429":
            return self._error(429, "rate_limit_exceeded", "slow down", {"Retry-After": str(self.pause)})
        if fault == "500":
            return self._error(500, None, "it broke")
        if fault == "timeout":
            await asyncio.sleep(HANG)
        if fault in ("timeout", "cut"):
            close(request)
            return web.Response()
        if fault == "cut_in_the_middle":
            response = web.StreamResponse(
                headers={"Content-Type": "application/json", "Content-Length": "500"}
            )
            await response.prepare(request)
            await response.write(b'{"id": "half an ans')
            close(request)
            return response
        if fault == "empty":
            return web.json_response(self.completion(text, body) | {"choices": []})
        if fault == "malformed":
            return web.Response(text='{"id": "x", "choices": [', content_type="application/json")
        if fault == "html":
            return web.Response(text="<html>busy</html>", content_type="text/html")
        final = {
            "filter": (400, "content_filter", "The response was filtered"),
            "overflow": (400, "context_length_exceeded", "maximum context length is 8192 tokens"),
            "no_model": (404, "model_not_found", "The model `gpt-4-0613` does not exist"),
            "bad_key": (401, "invalid_api_key", f"Incorrect API key: {request.headers.get('Authorization')}"),
            "quota": (429, "insufficient_quota", "You exceeded your current quota"),
            "bad_request": (400, "unsupported_parameter", "'max_tokens' is not supported"),
        }
        self.answered[text] += 1
        if fault in final:
            return self._error(*final[fault])
        completion = self.completion(text, body)
        if fault == "filter_finish":
            completion["choices"][0]["finish_reason"] = "content_filter"
            if "message" in completion["choices"][0]:
                completion["choices"][0]["message"]["content"] = None
        if fault == "wrong_model":
            completion["model"] = "some-other-model"
        return web.json_response(completion)

    async def _models(self, request: web.Request) -> web.Response:
        self.looks += 1
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return self._error(401, "invalid_api_key", f"Bad key: {request.headers.get('Authorization')}")
        if "models" in self.raw:
            status, headers, content = self.raw["models"]
            return web.json_response(content, status=status, headers=headers)
        if self.listed is None:
            return self._error(404, None, "no such path")
        return web.json_response({"object": "list", "data": [self.listed, *self.also_listed]})

    async def _props(self, request: web.Request) -> web.Response:
        return self._error(404, None, "no such path") if self.props is None else web.json_response(self.props)

    def completion(self, text: str, body: dict[str, Any]) -> dict[str, Any]:
        if "prompt" in body:
            counted = self.count(body)
            answer = {"model": body["model"], "choices": [{"index": 0, **self.choose(body)}]}
            return answer if counted is None else answer | {"usage": {"prompt_tokens": counted}}
        message = {"role": "assistant", "content": self.text_of(rating_of(text))}
        return {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": self.served_model or body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
        }

    def _error(
        self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None
    ) -> web.Response:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        return web.json_response({"error": error}, status=status, headers=headers)

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        field = form["file"]
        assert isinstance(field, web.FileField)
        name = f"file-{len(self.files)}"
        self.files[name] = field.file.read()
        file = {"id": name, "object": "file", "bytes": 1, "created_at": 1, "filename": "f"}
        return web.json_response(file | {"purpose": "batch", "status": "processed"})

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["file"]])

    async def _create_batch(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "completion_window": "24h",
            "status": "in_progress",
            "created_at": 1,
            "metadata": body["metadata"],
        }
        return web.json_response(self.batches[name])

    async def _list_batches(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": list(self.batches.values()), "has_more": False})

    async def _batch(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["batch"]]
        if batch["status"] == "in_progress":
            batch |= self._work(self.files[batch["input_file_id"]])
        return web.json_response(batch)

    def _work(self, data: bytes) -> dict[str, Any]:
        done, failed = [], []
        for line in data.splitlines():
            row = json.loads(line)
            text = text_of_body(row["body"])
            fault = self.plan(text, self.attempts[text])
            self.attempts[text] += 1
            answer = {"id": "r", "custom_id": row["custom_id"], "error": None}
            if fault == "ok":
                self.answered[text] += 1
                body = self.completion(text, row["body"])
                done.append(answer | {"response": {"status_code": 200, "request_id": "q", "body": body}})
            elif fault in self.raw:
                status, _, content = self.raw[fault]
                told = {"status_code": status, "request_id": "q", "body": content}
                done.append(answer | {"response": told})
            elif fault == "filter":
                self.answered[text] += 1
                error = {"error": {"code": "content_filter", "message": "filtered"}}
                failed.append(answer | {"response": {"status_code": 400, "request_id": "q", "body": error}})
            else:
                gone = {"code": "batch_expired", "message": "not done within 24 h"}
                failed.append(answer | {"response": None, "error": gone})
        files = {}
        for key, rows in (("output_file_id", done), ("error_file_id", failed)):
            if rows:
                files[key] = f"file-{len(self.files)}"
                self.files[files[key]] = "\n".join(json.dumps(row) for row in rows).encode()
        return {"status": "expired" if failed else "completed", **files}
