"""A local web server that fails on request, and folders of made-up upstream files."""

import csv
import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from evalkit.sources import pins
from evalkit.sources.pins import Pin, SourceFile
from evalkit.tasks import spec

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """One request, answered as the server's list for its path says."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        site = self.server.site
        site.requests.append((self.path, self.headers.get("Range")))
        answers = site.answers.get(self.path, [status(404)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    def reply(self, code: int, body: bytes, headers: dict[str, str], announced: int | None = None) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    site: "Site"
    daemon_threads = True


@dataclass
class Site:
    """`answers`: path -> the answers to successive requests; the last one also to all that follow."""

    url: str
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def serve(self, path: str, *answers: Answer) -> str:
        self.answers[path] = list(answers)
        return self.url + path


def status(code: int, headers: dict[str, str] | None = None) -> Answer:
    return lambda handler: handler.reply(code, b"no", headers or {})


def whole(body: bytes, headers: dict[str, str] | None = None) -> Answer:
    """The file."""
    return lambda handler: handler.reply(200, body, headers or {})


def dropped(body: bytes, after: int) -> Answer:
    """The head of the file, then the connection breaks."""

    def answer(handler: Handler) -> None:
        handler.reply(200, body[:after], {}, announced=len(body))
        handler.wfile.flush()
        handler.close_connection = True
        handler.connection.shutdown(2)

    return answer


def pin_of(url: str, body: bytes | None = None, **known: object) -> Pin:
    """A pin of a made-up file; with `body`, by its sha256."""
    if body is not None:
        known = {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)} | known
    return Pin(source="made-up", role="all", url=url, **known)  # type: ignore[arg-type]


@dataclass
class Upstream:
    """A folder of made-up upstream files."""

    folder: Path

    def file(self, name: str, content: str | bytes, members: str = "") -> SourceFile:
        """One file as a converter sees it."""
        data = content.encode() if isinstance(content, str) else content
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        pin = pin_of(f"https://upstream.example/{name}", members=tuple(members.split()))
        return SourceFile(path, pin, hashlib.sha256(data).hexdigest())


@dataclass
class Catalogue:
    """A tasks/ folder for one test: YAML files and sources.csv."""

    folder: Path
    rows: list[dict[str, object]] = field(default_factory=list)

    def source(self, source: str, role: str, url: str, **known: object) -> None:
        self.rows.append({"source": source, "role": role, "url": url, **known})
        columns = [field.name for field in dataclasses.fields(Pin)]
        with (self.folder / "sources.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        pins._read_table.cache_clear()

    def task(self, name: str, text: str) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(f"name: {name}\n{text}", encoding="utf-8")
        spec._names_in.cache_clear()
        return str(path)
