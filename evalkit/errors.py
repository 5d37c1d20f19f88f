"""The one family of exceptions: every message says what, where and how to fix it."""


class EvalkitError(Exception):
    """Something failed for a reason a person can act on; what was finished is kept.

    Args:
        what: the problem in one sentence.
        where: the file, field, option or URL concerned.
        fix: what the user can do about it, usually a command.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        super().__init__(self.message())

    def message(self) -> str:
        """The text shown to the user: `what`, then indented `where` and `fix` lines."""
        return _text(self.what, self.where, self.fix)


def _text(what: str, where: str | None, fix: str | None) -> str:
    lines = [what]
    if where:
        lines.append(f"  where: {where}")
    if fix:
        lines.append(f"  fix:   {fix}")
    return "\n".join(lines)


class InputError(EvalkitError):
    """Bad usage, configuration or input: exit code 2, nothing was started."""

    exit_code = 2


class FetchError(EvalkitError):
    """An upstream file could not be had: network, mirror, checksum or offline mode."""


class RunLockedError(EvalkitError):
    """Another process is working on the same run directory."""


class InterruptedRunError(KeyboardInterrupt):
    """A signal stopped the work; it is flushed to disk and the same command continues it.

    Not an `EvalkitError`, nor any `Exception`: code that tries something and goes on when it fails
    must not take a signal for a failure.
    """

    exit_code = 130

    def __init__(self, what: str, *, fix: str | None = None) -> None:
        self.what = what
        super().__init__(_text(what, None, fix))
