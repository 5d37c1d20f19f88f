"""160 judgments at 200 ms each, 16 at once, against a local server: seconds beside the ideal 2.

    python -m benchmarks.judge [--rounds 3]

The ideal is 160 x 0.2 s / 16. The first call goes alone by design, so 2.2 s is the best there is;
the bar is 1.3 times the ideal.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from evalkit.core.config import JudgeConfig
from evalkit.core.types import Message
from evalkit.mtbench.judge.asking import ask_online
from evalkit.mtbench.judge.calls import JudgeCall
from evalkit.mtbench.judge.judges import Judge
from evalkit.mtbench.judge.store import JudgmentStore
from evalkit.mtbench.presets import DEFAULT_PRESET, load_preset

JUDGMENTS, LATENCY, CONCURRENCY, BAR = 160, 0.2, 16, 1.3
IDEAL = JUDGMENTS * LATENCY / CONCURRENCY
# Characters of a usual judge prompt.
PROMPT = 2200


def main() -> int:
    """Runs the rounds and prints the median; exit code 1 above the bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}/v1"
    try:
        seconds = [asyncio.run(one_round(url)) for _ in range(rounds + 1)][1:]
    finally:
        server.terminate()
    median = statistics.median(seconds)
    print(f"{JUDGMENTS} judgments, {LATENCY * 1000:.0f} ms each, {CONCURRENCY} at once, median of {rounds}:")
    print(f"  {median:.2f} s = {median / IDEAL:.2f} x the ideal {IDEAL:.1f} s (bar {BAR} x)")
    return 0 if median <= BAR * IDEAL else 1


async def one_round(url: str) -> float:
    """Seconds from the first call to the last judgment on disk."""
    options = JudgeConfig(name="judge", base_url=url, concurrency=CONCURRENCY)
    judge = Judge("judge", url, "judge", {"temperature": 0}, options, load_preset(DEFAULT_PRESET))
    calls = [_call(number, judge) for number in range(JUDGMENTS)]
    with tempfile.TemporaryDirectory() as folder, JudgmentStore(Path(folder), judge.identity) as store:
        started = time.perf_counter()
        await ask_online(judge, calls, store)
        seconds = time.perf_counter() - started
        assert len(store) == JUDGMENTS
    return seconds


def _call(number: int, judge: Judge) -> JudgeCall:
    messages = (
        Message("system", "You are a helpful assistant."),
        Message("user", f"{number} " + "あ" * PROMPT),
    )
    keys = judge.keys(messages, 0)
    return JudgeCall(str(number), "m", number, "math", 1, 0, 0, "single-v1", messages, keys)


def serve(pipe: Connection) -> None:
    """Answers every chat request after the latency; sends its port through `pipe`."""
    from aiohttp import web

    async def chat(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(LATENCY)
        message = {"role": "assistant", "content": "説明です。" * 60 + "Rating: [[5]]"}
        usage = {"prompt_tokens": 1107, "completion_tokens": 231, "total_tokens": 1338}
        return web.json_response(
            {
                "id": "c",
                "object": "chat.completion",
                "created": 1,
                "model": "judge",
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": usage,
            }
        )

    async def start() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(start())


if __name__ == "__main__":
    sys.exit(main())
