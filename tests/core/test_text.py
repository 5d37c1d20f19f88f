"""Half characters: mended where a model or a server wrote them, and in what older versions kept; commands."""

import asyncio
import json
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest

from evalkit.core.durable import (
    CHECK,
    checksum,
    from_line,
    read_checked_json,
    to_line,
    write_checked_json,
    write_text_atomic,
)
from evalkit.core.errors import InputError
from evalkit.core.text import command, everywhere, half_character, unicode_text
from evalkit.core.types import Message
from evalkit.engines.local.tokens import CompletionDecoder
from evalkit.services.client import ApiClient, Service
from evalkit.services.replies import chat_body

HALF = "\ud83d"
PAIR = "\ud83d\ude00"


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("", ""),
        ("はい", "はい"),
        (f"はい{HALF}", "はい\ufffd"),
        (f"{HALF}a", "\ufffda"),
        ("\ude00a", "\ufffda"),
        (PAIR, "😀"),
        (f"{HALF}{PAIR}\ude00", "\ufffd😀\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("😀\0", "😀\0"),
    ],
)
def test_only_half_characters_change(text: str, mended: str) -> None:
    assert unicode_text(text) == mended
    assert half_character(mended) is None
    mended.encode()


def test_every_text_of_a_value_is_mended() -> None:
    value = {f"k{HALF}": [HALF, {"a": (HALF, 1, None)}]}
    assert everywhere(value, unicode_text) == {"k\ufffd": ["\ufffd", {"a": ["\ufffd", 1, None]}]}


def test_what_an_older_version_kept_is_read_and_mended(tmp_path: Path) -> None:
    row = {"id": "a", "text": f"はい{HALF}"}
    assert from_line(to_line(row)) == {"id": "a", "text": "はい\ufffd"}
    escaped = (json.dumps({**row, CHECK: checksum(row)}) + "\n").encode()
    assert from_line(escaped) == {"id": "a", "text": "はい\ufffd"}
    assert from_line(to_line(row).replace(b"id", b"ie")) is None
    path = tmp_path / "old.json"
    text = json.dumps({**row, CHECK: checksum(row)}, ensure_ascii=False)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert read_checked_json(path) == {"id": "a", "text": "はい\ufffd"}


def test_what_is_written_is_utf_8(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "a.md", f"はい{HALF}")
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "はい\ufffd"
    write_checked_json(tmp_path / "a.json", {"a": [HALF], HALF: 1})
    (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert read_checked_json(tmp_path / "a.json") == {"a": ["\ufffd"], "\ufffd": 1}


class HalfTokenizer:
    """A tokenizer written in Python that cuts an emoji in its middle."""

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join(chr(number) for number in ids)


def test_a_tokenizer_that_gives_half_characters() -> None:
    text = CompletionDecoder(HalfTokenizer()).decode([0x3042], [0x3044, 0xD83D])
    assert text == ("い\ufffd", "い\ufffd")


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"choices": [{"message": {"content": f"はい{HALF}"}, "finish_reason": "stop"}]}).encode(),
        # The same as bytes that are no UTF-8, and an emoji spelled as two halves.
        '{"choices": [{"message": {"content": "はい\ud83d"}}]}'.encode("utf-8", "surrogatepass"),
    ],
)
def test_a_server_that_cuts_characters(content: bytes) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=content, headers={"Content-Type": "application/json"})

    async def ask() -> Any:
        async with ApiClient(Service("http://localhost:9/v1", "none"), retries=0) as client:
            client.api = client.api.with_options(
                http_client=httpx.AsyncClient(transport=httpx.MockTransport(answer))
            )
            return await client.request("/chat/completions", chat_body("m", [Message("user", "?")], {}))

    reply = asyncio.run(ask())
    assert (reply.status, reply.text) == ("ok", "はい\ufffd")
    json.dumps(reply.body, ensure_ascii=False).encode()


@pytest.mark.parametrize("key", ["ｓｋ-１２３", "sk-123\n", "sk-\x00"])
def test_a_key_that_no_request_can_carry(key: str) -> None:
    with pytest.raises(InputError, match="API key") as caught:
        Service(None, key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("word", ["run=results/モデル", "suite=jamp,janli", "model=1.8b", "--partial"])
def test_plain_words_of_a_command_stay_as_they_are(word: str) -> None:
    assert command("score", word) == f"evalkit score {word}"


@pytest.mark.parametrize(
    "word",
    ["suite.tasks=[jamp,janli]", "out=a b", "out=${x}", "out=it's", "model.path=/a;b", "out=~/x*"],
)
def test_words_that_a_shell_would_change_come_back_as_one(word: str) -> None:
    assert command("score", word) != f"evalkit score {word}"
    assert shlex.split(command("score", word)) == ["evalkit", "score", word]
