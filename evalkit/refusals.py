"""What a service's error says: its code, its words, the pause it asks for, never the key it repeats."""

import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from evalkit.redaction import hide, printable
from evalkit.text import unicode_text

if TYPE_CHECKING:
    import openai


def redact(text: str, *secrets: str) -> str:
    """A service's error text on one line, without the key it may repeat."""
    # Cut last: half a key at the end would be no longer recognised.
    return printable(hide(" ".join(unicode_text(text).split()), *secrets))[:500]


def public_address(url: str) -> str:
    """An address without name, password, query and the slash at its end."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def without_credentials(text: str) -> str:
    """A text with addresses in it, without the names, passwords and queries they carry."""
    bare = re.sub(r"(?<=://)[^/,\]\s]*@", "", text)
    return re.sub(r"\?[^,\]\s]*", "", bare)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The pause in seconds that response headers ask for: Retry-After-Ms, else Retry-After."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) / unit)
        except ValueError:
            parsed = email.utils.parsedate_tz(value)
            if parsed is not None:
                return max(0.0, email.utils.mktime_tz(parsed) - time.time())
    return None


def error_code(body: object) -> str | None:
    """The most telling code in the body of an error: the inner one of Azure, else `code` or `type`."""
    if not isinstance(body, dict):
        return None
    inner = body.get("error", body)
    if not isinstance(inner, dict):
        return None
    deeper = inner.get("innererror")
    if isinstance(deeper, dict) and isinstance(deeper.get("code"), str):
        return str(deeper["code"])
    code = inner.get("code") or inner.get("type")
    return code if isinstance(code, str) else None


def error_text(error: "openai.APIStatusError") -> str:
    """What the service says went wrong."""
    body = error.body.get("error", error.body) if isinstance(error.body, dict) else error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])
    return json.dumps(body, ensure_ascii=False) if body else error.message


def is_filtered(code: str | None) -> bool:
    """Whether an error code says that the content was refused."""
    return code in ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")


def is_overflow(status: int, code: str | None, text: str) -> bool:
    """Whether an error says that the prompt does not fit; servers without codes say it in words."""
    words = re.search(
        r"context[ _](length|window|size)|too many tokens|maximum .{0,20}tokens|tokens.{0,30}must be <=",
        text,
        re.I,
    )
    said = status in (400, 422) and words is not None
    return code == "context_length_exceeded" or status == 413 or said
