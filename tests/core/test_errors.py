"""`foreign`: whatever a library raises on a user's input is one message, the traceback in the log."""

import errno
import json
import logging
import socket

import httpx
import pytest

from evalkit.core.errors import EvalkitError, InputError, InterruptedRunError, foreign, no_connection


class StrangeError(Exception):
    pass


@pytest.mark.parametrize(
    "error, said",
    [
        (StrangeError("header too large"), "header too large"),
        (StrangeError("short"), "StrangeError: short"),
        (StrangeError(""), "StrangeError"),
        (SystemExit(0), "SystemExit: 0"),
        (KeyError("llama"), "KeyError: 'llama'"),
        (StopIteration(3), "StopIteration: 3"),
        (RuntimeError("first\n\n   second"), "first second"),
        (json.JSONDecodeError("Expecting value", "", 0), "Expecting value: line 1 column 1 (char 0)"),
        (RecursionError("too deep"), "too deep"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "[Errno 2] No such file"),
    ],
)
def test_any_exception_becomes_one_message(error: BaseException, said: str) -> None:
    with pytest.raises(InputError) as caught, foreign("it cannot be read", where="FILE", fix="do this"):
        raise error
    assert caught.value.message() == f"it cannot be read: {said}\n  where: FILE\n  fix:   do this"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "words, package",
    [
        ("Loading it requires x: `pip install -U bits-and-bytes>=0.4`", "-U bits-and-bytes"),
        ("Run `pip install aqlm[gpu,cpu]`", "aqlm[gpu,cpu]"),
        ("You need to install fugashi to use MecabTokenizer.", "fugashi"),
        ("\nTokenizer requires the rjieba library but it was not found: `pip install\nrjieba`.", "rjieba"),
    ],
)
def test_a_missing_package_is_the_fix(words: str, package: str) -> None:
    with pytest.raises(InputError) as caught, foreign("no", fix="copy it again"):
        try:
            raise ImportError(words)
        except ImportError:
            # As transformers does: the last of several tries says nothing of the first.
            raise StrangeError("none of the ways worked") from None
    assert caught.value.fix == f"pip install {package}"
    with pytest.raises(InputError) as caught, foreign("no"):
        import nowhere_to_be_found  # noqa: F401
    assert caught.value.fix == "pip install nowhere_to_be_found"


def test_a_long_reason_is_cut() -> None:
    with pytest.raises(InputError) as caught, foreign("no"):
        raise StrangeError("word " * 1000)
    assert len(caught.value.what) < 500


def test_the_class_decides_the_exit_code() -> None:
    with pytest.raises(EvalkitError) as caught, foreign("no", raises=EvalkitError):
        raise StrangeError("x")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    "error",
    [
        InputError("ours"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
        InterruptedRunError("stopped"),
    ],
)
def test_what_says_nothing_of_the_input_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, foreign("no"):
        raise error
    assert caught.value is error


def test_the_traceback_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "evalkit"), pytest.raises(InputError), foreign("no", where="FILE"):
        raise StrangeError("deep inside")
    assert "Traceback" in caplog.text and "deep inside" in caplog.text


def test_nothing_happens_when_all_is_well() -> None:
    with foreign("no"):
        value = 1
    assert value == 1


def test_a_connection_that_did_not_come_about_is_told_from_an_answer() -> None:
    try:
        try:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        except OSError as error:
            raise RuntimeError("the library's own") from error
    except RuntimeError as error:
        assert no_connection(error) == "Name or service not known"
    assert no_connection(httpx.ConnectTimeout("timed out")) == "timed out"
    assert no_connection(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
    answer = httpx.Response(503, request=httpx.Request("GET", "http://a"))
    assert no_connection(httpx.HTTPStatusError("503", request=answer.request, response=answer)) is None
    assert no_connection(httpx.ReadError("broken off")) is None
