"""What every command needs, imported once in the process the commands are forked from."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import openai  # noqa: F401
import scipy.stats  # noqa: F401
import torch  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import evalkit.__main__
import evalkit.cli.judge
import evalkit.cli.leaderboard
import evalkit.cli.prepare
import evalkit.cli.run
import evalkit.cli.score
import evalkit.engines.local.engine
import evalkit.engines.local.random_model
import evalkit.runs.mt_bench
import evalkit.runs.watch.watcher
import evalkit.scoring.categories

# As in tests/conftest.py.
os.fsync = lambda descriptor: None
WORDS = ["model=random", "suite=sample", "suite.tasks=[jamp,mawps,jsts,jemhopqa]", "limit=1"]


def run_once() -> None:
    """A small run: it imports, composes and measures what the first command of a process has to."""
    streams, nothing = {number: os.dup(number) for number in (1, 2)}, os.open(os.devnull, os.O_WRONLY)
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, EVALKIT_CACHE=f"{folder}/cache"):
        for number in streams:
            os.dup2(nothing, number)
        code = evalkit.__main__.main([*WORDS, "engine.threads=1", "offline=true", f"out={folder}"])
    sys.stdout.flush()
    sys.stderr.flush()
    for number, kept in streams.items():
        os.dup2(kept, number)
        os.close(kept)
    os.close(nothing)
    assert code == 0


run_once()
evalkit.scoring.categories.category_members()
# The collector need not look through all of this again in every command.
gc.collect()
gc.freeze()


def serve(number: int, session: int) -> None:
    """Forks for everyone who connects to the socket of this number, until the process `session` has ended."""
    # Nobody waits for what is forked.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=number) as listener:
        listener.settimeout(1.0)
        while _is_there(session):
            with contextlib.suppress(TimeoutError):
                connected, _ = listener.accept()
                if os.fork() == 0:
                    listener.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    signal.signal(signal.SIGINT, interrupt)
                    _attend(Connection(connected.detach()))
                    os._exit(0)
                connected.close()
        Path(listener.getsockname()).unlink()


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _attend(connection: Connection) -> None:
    """Calls the function that comes in a process of its own; sends its number, later its exit code."""
    sys.path[:], call = connection.recv()
    target, values = pickle.loads(call)
    process = multiprocessing.get_context("fork").Process(target=target, args=values)
    process.start()
    connection.send(process.pid)
    process.join()
    # Who asked may have ended.
    with contextlib.suppress(OSError):
        connection.send(process.exitcode)
