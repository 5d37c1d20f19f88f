"""The judgments made so far: keyed by content, shared by all runs, never asked twice.

A store is a folder with one append-only log per judge. A line is written whole under a lock and
carries a checksum; a torn one is skipped, and so is asked again. While a judgment is being made its
key is claimed by a record lock, which the system drops with the process: two processes never pay
for the same judgment, and a killed one leaves nothing behind.
"""

import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from evalkit.core.durable import Appender, from_line
from evalkit.core.errors import EvalkitError, write_error
from evalkit.core.text import canonical_json, folder_name, text_sha256
from evalkit.core.types import Message
from evalkit.services.replies import Reply, is_lost

# Another process is making a judgment: seconds until the next look.
CLAIM_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class CachedReply:
    """What the service answered: everything a judgment is read from.

    `text` is whole, also where a rule splits a thought off; `thought` is what the service returned apart
    from it.
    """

    id: str
    status: str
    text: str | None
    finish_reason: str | None
    served_model: str | None
    input_tokens: int | None
    output_tokens: int | None
    error: str | None = None
    thought: str | None = None

    @classmethod
    def of(cls, key: str, reply: Reply) -> "CachedReply":
        """A reply under its key."""
        return cls(
            id=key,
            status=reply.status,
            text=reply.text,
            finish_reason=reply.finish_reason,
            served_model=reply.model,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            error=reply.error,
            thought=reply.thought,
        )

    def has_words(self) -> bool:
        """Whether anything was written, be it a thought alone."""
        return bool((self.text or "").strip() or (self.thought or "").strip())

    def is_lost(self) -> bool:
        """Whether it was stored as an answer and is none: a failure of the service, or an empty text."""
        return self.status == "ok" and is_lost(self.finish_reason, self.text, self.thought)


def judgment_key(
    identity: Mapping[str, Any],
    parameters: Mapping[str, Any],
    messages: Sequence[Message],
    repeat: int,
    reask: int = 0,
    prompts: str | None = None,
) -> str:
    """The cache key of a judgment: a hash of everything that decides it.

    `identity` names the judge, `prompts` is the sha256 of a local judge prompt file.
    """
    content = {
        "judge": dict(identity),
        "parameters": dict(parameters),
        "messages": [[message.role, message.content] for message in messages],
        "repeat": repeat,
    }
    # Left out when 0, so that presets with and without re-asking share their first judgments.
    if reask:
        content["reask"] = reask
    # Likewise without a local file: the keys of judgments made before there were such files.
    if prompts is not None:
        content["prompts"] = prompts
    return text_sha256(canonical_json(content))


class JudgmentStore:
    """The judgments of the judge that `identity` names; use as a context manager.

    `kept` are replies from a run folder; they are known, and not written to the store.

    Raises:
        EvalkitError: the folder cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], kept: Sequence[CachedReply] = ()) -> None:
        name = f"{folder_name(str(identity['model']))}-{text_sha256(canonical_json(dict(identity)))[:8]}"
        self.path = folder / f"{name}.jsonl"
        self._claims_path = folder / f".{name}.claims"
        self._kept = kept
        self._known: dict[str, CachedReply] = {}
        # The reply of a local model is final, also when it is empty.
        self._asks_a_service = "weights" not in identity
        self._lost: set[str] = set()
        self._offset = 0

    def __enter__(self) -> Self:
        self._log = Appender(self.path, "judge.store")
        try:
            self._claims = os.open(self._claims_path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise write_error(self.path, error, "judge.store") from error
        self.refresh()
        for reply in self._kept:
            if reply.id not in self._lost and not self._is_lost(reply):
                self._known.setdefault(reply.id, reply)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._log.close()
        except EvalkitError:
            # What stopped the judging is the message, not what that did to the closing of files.
            if error is None:
                raise
        finally:
            os.close(self._claims)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> CachedReply | None:
        """The reply stored under a key, if there is one."""
        return self._known.get(key)

    def refresh(self) -> None:
        """Reads what was appended since the last look, by this process or another."""
        if os.fstat(self._log.descriptor).st_size <= self._offset:
            return
        with os.fdopen(self._log.descriptor, "rb", closefd=False) as log:
            log.seek(self._offset)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                row = from_line(line)
                if row is not None and (reply := reply_in(row)) is not None:
                    if self._is_lost(reply):
                        self._lost.add(reply.id)
                    else:
                        self._known.setdefault(reply.id, reply)

    def _is_lost(self, reply: CachedReply) -> bool:
        # Earlier versions stored failures as answers: they are asked again.
        return self._asks_a_service and reply.is_lost()

    def add(self, reply: CachedReply) -> None:
        """Appends a reply to the store's file.

        Raises:
            EvalkitError: no space left; the log ends with the last whole line.
        """
        try:
            fcntl.flock(self._log.descriptor, fcntl.LOCK_EX)
            try:
                self._log.append(asdict(reply))
            finally:
                fcntl.flock(self._log.descriptor, fcntl.LOCK_UN)
        except OSError as error:
            raise write_error(self.path, error, "judge.store") from error
        self._known.setdefault(reply.id, reply)

    def claim(self, key: str) -> bool:
        """Whether this process may make the judgment of `key` now; False: another process is making it.

        Raises:
            EvalkitError: the file system has no locks, so a judgment could be paid for twice.
        """
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
        except (BlockingIOError, PermissionError):
            # POSIX allows either for a lock that another process holds.
            return False
        except OSError as error:
            raise write_error(self._claims_path, error, "judge.store") from error
        return True

    def release(self, key: str) -> None:
        """Ends a claim."""
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, _place(key))


def _place(key: str) -> int:
    return int(key[:15], 16)


def reply_in(row: dict[str, Any]) -> CachedReply | None:
    """The reply of a line; None: it is of another version."""
    known = {field.name for field in fields(CachedReply)}
    try:
        return CachedReply(**{key: value for key, value in row.items() if key in known})
    except TypeError:
        return None
