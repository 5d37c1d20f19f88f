"""A service's error: its kind, its text without the API key, and the pause it asks for.

Services have no common format for errors. `refusal_of` reads those of the servers and gateways in
use: by the HTTP status, a number or a name in the body (also of an error in an HTTP 200), else by
the text.
"""

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

RefusalKind = Literal["filtered", "overflow", "quota", "rate_limit", "key", "model", "passing", "request"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a service did not answer.

    `kind`: `filtered` the content is refused; `overflow` the prompt is too long; `rate_limit` too
    many requests or tokens; `passing` a transient error; `quota`, `key`, `model`: it refuses every
    request because of credit, the key or the model; `request`: it does not accept this request.
    `place` is the HTTP status and the error's own number, `text` the service's message, `after` the
    pause in seconds that it asks for.
    """

    kind: RefusalKind
    text: str
    place: str = "HTTP 200"
    after: float | None = None


# Names of errors in code, type or status fields.
_FILTER_CODES = re.compile(
    r"content_?(filter|policy|moderation|blocked)|responsible_?ai|data_?inspection|moderation_|\bsafety\b"
    r"|prohibited_content|blocklist|guardrail|sensitive|invalid_prompt\b"
)
_LONG_CODES = re.compile(
    r"context_?(length|window|size|overflow)|exceed_context|(prompt|input)_?(is_)?too_?(long|large)"
    r"|request_?(entity_)?too_?large|input_length_error|\b1261\b"
)
_QUOTA_CODES = re.compile(
    r"insufficient_?(quota|balance|credit|fund)|billing|exceeded_current_quota|arrearage|payment_?required"
    r"|budget_?exceeded"
)
_RATE_CODES = re.compile(
    r"rate_?limit|too_?many_?requests|throttl|resource_?exhausted|overloaded|capacity_exceeded"
)
# litellm without a database knows its one key only, and says of every other that it has no database.
_KEY_CODES = re.compile(
    r"api_?key|authentication|unauthori[sz]ed|unauthenticated|\bauth_error|no_db_connection|expired_key"
    r"|(token|key)_?not_?found|invalid_(access_)?token"
)
_MODEL_CODES = re.compile(r"model_?not_?(found|exist)|deployment_?not_?found|model_access_denied")

# Messages, for errors whose code does not tell.
_FILTER_WORDS = re.compile(
    r"content (management )?polic|content[_ ]filter|usage polic|content exists risk|safety system"
    r"|inappropriate content|prohibited content|\bflagged (as|by|for)|\b(was|were|been) flagged",
    re.I,
)
_QUOTA_WORDS = re.compile(
    r"credit balance is too low|insufficient (account )?(balance|credit|fund)|余额不足|requires more credits"
    r"|(out of|no|your) (included )?credits|exceeded your monthly",
    re.I,
)
_RATE_WORDS = re.compile(
    r"rate[ _-]?limit|too many requests|too many tokens, please wait|overloaded|throttl|at capacity"
    r"|(tokens|requests|queries) ?(per|/) ?(second|sec|minute|min|hour|day)|\b[TRQ]P[SMD]\b"
    r"|resource (has been )?exhausted|server is busy|请求过多",
    re.I,
)
_LONG_WORDS = re.compile(
    r"context[ _-]?(length|window|size|limit)|context\b.{0,10}overflow"
    # The prompt is too long, longer than, exceeds ...
    r"|\b(prompt|prompts|inputs?|messages|sequence|conversation)\b.{0,60}"
    r"(too (long|large)|(longer|larger) than|is greater than|exceed)"
    r"|\b(message|content|text) is too (long|large)|(messages|prompt|inputs?)\S*: \w+ should have at most"
    r"|\b(input|requested|prompt)[ _](tokens?|length)\b.{0,40}(exceed|too (long|large)|must be (<|less))"
    r"|too many (input |prompt )?tokens|input token count|range of input length"
    r"|must have (less|fewer) than \d+ tokens|tokens`? ?\+ ?.{0,30}must be <="
    r"|max(imum)?[ _](allowed|input|model|prompt|seq(uence)?|total)[ _](len|length|tokens)\b"
    r"|exceed.{0,40}(model token limit|input tokens)"
    r"|exceed.{0,40}\bmax(imum)?\b(?!.{0,30}(output|completion)).{0,30}\btokens"
    r"|(reduce|shorten) (the (length|size|number) of )?(the |your )?(input|prompt|messages?)\b"
    r"|shorter (input|prompt)|(payload|entity|body) (size )?(is )?(too large|exceeds)|request too large"
    # What is left for the answer, where the prompt takes more than there is.
    r"|max_(completion_|new_)?tokens\b.{0,60}[ (=]-\d"
    r"|(トークン|プロンプト|入力).{0,30}(長すぎ|超え|超過)|超长|(长度|token).{0,20}超[过出]"
    r"|超[过出].{0,20}(长度|上下文|token)",
    re.I,
)
# An unknown field, the length of the answer, the time: nothing that a shorter prompt would change.
_OTHER_WORDS = re.compile(
    r"(unknown|unrecogni[sz]ed|unexpected|unsupported) (request )?(argument|parameter|field|keyword)"
    r"|extra inputs are not permitted|is not supported|supports at most \d+ completion tokens"
    r"|maximum allowed number of output tokens|deadline|timed out|time ?(out|limit)",
    re.I,
)
_KEY_WORDS = re.compile(
    r"(invalid|incorrect|expired|missing|no) api key\b|api key\b.{0,20}(not valid|invalid|expired|missing)"
    r"|\bauthentication ?(error|failed)|invalid (proxy server|access|auth\w*|bearer) token",
    re.I,
)
_MODEL_WORDS = re.compile(
    r"model not exist|(invalid|unknown|no such) model\b|\bmodel\b.{0,80}(does not exist|not found)"
    r"|no healthy deployments? for|llm provider not provided",
    re.I,
)
# More tokens in one request than a whole minute may have: no pause helps.
_ALLOWANCE = re.compile(r"\blimit:? (\d+)\b.{0,60}\brequested:? (\d+)", re.I | re.S)

_CODE_FIELDS = (
    *("code", "type", "status", "error_type", "error_code", "status_code", "errorCode", "reason"),
    *("blockReason", "block_reason", "__type"),
)
_TEXT_FIELDS = (
    *("message", "msg", "detail", "error", "error_msg", "error_message", "errorMessage"),
    *("status_msg", "raw"),
)
_INNER_FIELDS = (
    *("error", "errors", "detail", "details", "innererror", "inner_error", "metadata", "raw"),
    *("base_resp", "promptFeedback", "prompt_feedback"),
)
_DELAY_FIELDS = {"retryDelay": 1.0, "retry_after": 1.0, "retry_after_seconds": 1.0, "retry_after_ms": 1e-3}
# An error page of a proxy can be long; the message is at its beginning.
_LONGEST_TEXT = 20_000


@dataclass(slots=True)
class _ErrorBody:
    """Codes, HTTP numbers, messages and pause in the body of an error, outermost first."""

    codes: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    after: float | None = None

    def read(self, value: object, depth: int = 0) -> None:
        """Reads text, an error object, or a list of them; never a field that repeats the request."""
        if isinstance(value, str):
            self._read_text(value, depth)
        elif isinstance(value, list) and depth < 8:
            for part in value[:16]:
                self.read(part, depth + 1)
        elif isinstance(value, dict) and depth < 8:
            for name in _CODE_FIELDS:
                self._read_code(value.get(name))
            for name in _TEXT_FIELDS:
                if isinstance(text := value.get(name), str):
                    place = value.get("loc")
                    where = ".".join(map(str, place)) + ": " if isinstance(place, list) else ""
                    self._read_text(where + text, depth)
            for name, unit in _DELAY_FIELDS.items():
                if self.after is None and name in value:
                    self.after = _seconds(value[name], unit)
            if isinstance(headers := value.get("headers"), dict) and self.after is None:
                self.after = retry_after(headers)
            for name in _INNER_FIELDS:
                if isinstance(inner := value.get(name), dict | list):
                    self.read(inner, depth + 1)

    def _read_code(self, value: object) -> None:
        number = value if isinstance(value, int) and not isinstance(value, bool) else None
        if isinstance(value, str) and re.fullmatch(r"\d{3}", value):
            number = int(value)
        if number is not None and 400 <= number < 600:
            self.numbers.append(number)
        elif isinstance(value, str | int) and value:
            # resourceExhausted and RESOURCE_EXHAUSTED are one name.
            self.codes.append(re.sub(r"(?<=[a-z])(?=[A-Z])|[\s.-]+", "_", str(value)).lower())

    def _read_text(self, text: str, depth: int) -> None:
        text = text.strip()
        if text.startswith("{") and depth < 8:
            # Gateways repeat the error of the service behind them as text.
            with suppress(ValueError, RecursionError):
                self.read(json.loads(text), depth + 1)
                return
        if re.search(r"<(html|body|head|title|h1)\b", text[:_LONGEST_TEXT], re.I):
            text = re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>", " ", text[:_LONGEST_TEXT])
        text = " ".join(text[:_LONGEST_TEXT].split())
        if text and text not in self.texts:
            self.texts.append(text)


def refusal_of(status: int, headers: Mapping[str, str], body: object, silent: str | None = None) -> Refusal:
    """Classifies an error by the response's status (200: the error is in an answer), headers and body.

    `body` is JSON or text; `silent` is the message where it has none.
    """
    error = _ErrorBody()
    error.read(body)
    text = ": ".join(error.texts)
    kind = _kind(status, error, text)
    after = None
    if kind in ("rate_limit", "passing"):
        asked = [retry_after(headers), error.after, _pause_in(text)]
        asked += [_until_reset(headers)] if kind == "rate_limit" else []
        after = next((pause for pause in asked if pause is not None), None)
    number = next((number for number in error.numbers if number != status), None)
    place = f"HTTP {status}" if number is None else f"HTTP {status}, error {number}"
    if not text:
        shown = json.dumps(body, ensure_ascii=False)[:200] if body else ""
        text = ": ".join(
            part for part in (silent or "no reason given", ", ".join(error.codes), shown) if part
        )
    elif silent is not None:
        text = f"{silent}: {text}"
    return Refusal(kind, text, place, after)


def _kind(status: int, error: _ErrorBody, text: str) -> RefusalKind:
    numbers, codes = {status, *error.numbers}, " ".join(error.codes)
    if _FILTER_CODES.search(codes):
        return "filtered"
    if _FILTER_WORDS.search(text) and numbers.isdisjoint({401, 404, 429}) and not _OTHER_WORDS.search(text):
        return "filtered"
    if _LONG_CODES.search(codes) and not _RATE_WORDS.search(text):
        return "overflow"
    if 402 in numbers or _QUOTA_CODES.search(codes) or _QUOTA_WORDS.search(text):
        return "quota"
    busy = _RATE_CODES.search(codes) or (_RATE_WORDS.search(text) and numbers.isdisjoint({401, 404}))
    if busy or not numbers.isdisjoint({429, 498, 529}):
        allowance = _ALLOWANCE.search(text)
        return "passing" if allowance and int(allowance[2]) > int(allowance[1]) else "rate_limit"
    long = _LONG_WORDS.search(text) and not _OTHER_WORDS.search(text)
    if 413 in numbers or (long and numbers.isdisjoint({401, 403, 404})):
        return "overflow"
    unknown_model = _MODEL_CODES.search(codes) is not None
    refused = not numbers.isdisjoint({401, 403}) or _KEY_CODES.search(codes) or _KEY_WORDS.search(text)
    if refused and not unknown_model:
        return "key"
    # 501: the service does not have what is asked for, now or later.
    if (max(numbers) >= 500 and 501 not in numbers) or not numbers.isdisjoint({408, 409, 424, 425, 499}):
        return "passing"
    if unknown_model or not numbers.isdisjoint({404, 410}) or _MODEL_WORDS.search(text):
        return "model"
    return "request" if max(numbers) >= 400 else "passing"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The pause in seconds that response headers ask for: Retry-After-Ms, else Retry-After.

    A number of seconds, a duration such as 1m30s, or a date.
    """
    given = {name.lower(): value for name, value in headers.items()}
    for name, unit in (("retry-after-ms", 1e-3), ("x-ms-retry-after-ms", 1e-3), ("retry-after", 1.0)):
        if (pause := _seconds(given.get(name), unit)) is not None:
            return pause
    return None


def _until_reset(headers: Mapping[str, str]) -> float | None:
    """The seconds until every exhausted limit is reset."""
    given = {name.lower(): value for name, value in headers.items()}
    pauses = []
    for name, value in given.items():
        if "ratelimit" not in name.replace("rate-limit", "ratelimit") or "reset" not in name:
            continue
        left = given.get(name.replace("reset", "remaining"))
        if left is None or left.strip() in ("0", "0.0", "0.00"):
            pauses.append(_seconds(value))
    return max((pause for pause in pauses if pause is not None), default=None)


_UNITS = {"ms": 1e-3, "mil": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = (
    r"(?:\d+(?:\.\d+)?\s*(?:milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d)\b\s*)"
)
_COMPACT = r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+"
_AGAIN = re.compile(rf"\b(?:again|retry|wait)\b[^.\d]{{0,30}}({_COMPACT}\b|{_DURATION}+)", re.I)


def _pause_in(text: str) -> float | None:
    found = _AGAIN.search(text)
    return _seconds(found[1]) if found else None


def _seconds(value: object, unit: float = 1.0) -> float | None:
    """Seconds from now: of a number, a duration, a date, or a time since 1970 in seconds or milliseconds."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return _of_words(text)
    if not math.isfinite(number):
        return None
    if number > 1e9:
        number, unit = (number / 1000 if number > 1e12 else number) - time.time(), 1.0
    return max(0.0, number * unit)


def _of_words(text: str) -> float | None:
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text, re.I)
    if parts and not re.sub(r"\d+(?:\.\d+)?\s*[a-z]+|[\s,]", "", text, flags=re.I):
        units = [
            _UNITS.get(name.lower()) or _UNITS.get(name[:3].lower()) or _UNITS.get(name[0].lower())
            for _, name in parts
        ]
        if all(units):
            return sum(float(number) * (unit or 0.0) for (number, _), unit in zip(parts, units, strict=True))
    for date_of in (email.utils.parsedate_to_datetime, datetime.fromisoformat):
        with suppress(ValueError, OverflowError):
            date = date_of(text)
            # HTTP's dates are in UTC, with or without a word for it.
            date = date if date.tzinfo else date.replace(tzinfo=UTC)
            return max(0.0, date.timestamp() - time.time())
    return None
