"""mode=batch: requests and answers as files of the OpenAI Batch API, submitted and read.

The request file is named by its content, and the batch carries that name: the same command finds
its batch again, also after a crash, instead of paying for a second one.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.core.config import BatchConfig, JudgeKind, JudgeMode
from evalkit.core.durable import write_text_atomic
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.files import parse_rows, read_rows, text_field
from evalkit.core.progress import Say
from evalkit.core.secrets import redact
from evalkit.core.text import text_sha256
from evalkit.mtbench.judge.budget import CostLimitError, most_tokens
from evalkit.mtbench.judge.calls import AskingResult, JudgeCall, open_key
from evalkit.mtbench.judge.judges import Judge, open_service
from evalkit.mtbench.judge.store import CachedReply, JudgmentStore
from evalkit.services.client import ApiClient
from evalkit.services.refusals import Refusal, refusal_of
from evalkit.services.replies import Reply, chat_body, read_reply

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types import Batch

# The Batch API's own limit for one file.
MOST_REQUESTS = 50_000
ENDED = ("completed", "expired", "failed", "cancelled", "canceled")


def ask_by_batch(
    judge: Judge,
    options: BatchConfig,
    waiting: Mapping[str, JudgeCall],
    store: JudgmentStore,
    folder: Path,
    say: Say,
) -> AskingResult | None:
    """Writes the request file below `folder`, submits it or reads an answer file.

    None while answers are to come.

    Raises:
        InputError: a local judge, or a file that is no answer file.
        CostLimitError: the worst case of the batch is above `judge.max_cost`.
        EvalkitError: the batch failed as a whole.
    """
    if judge.config.kind is JudgeKind.local:
        raise InputError("a local judge has no batches", where="option mode", fix="mode=online")
    if options.results is not None:
        path = Path(options.results).expanduser()
        rows = list(read_rows(path, mend=True))
        if not {row.get("custom_id") for _, row in rows} & _keys(waiting):
            what = f"none of the {len(rows)} answers belongs to a judgment that is still to be made"
            fix = f"the output file of the batch that RUN/batch asks of {judge.label}, with the same options"
            raise InputError(what, where=f"batch.results={path}", fix=fix)
        return _absorb(judge, rows, waiting, store, say)
    _check_cost(judge, waiting)
    name = text_sha256("\n".join(sorted(waiting)))[:16]
    path = folder / "batch" / f"{name}.jsonl"
    write_text_atomic(path, "".join(_line(judge, key, call) for key, call in waiting.items()))
    if not options.submit:
        say(f"batch: {len(waiting)} requests are in {path}")
        say("  mode=batch batch.submit=true sends them")
        say("  mode=batch batch.results=FILE reads the answers of a batch you sent")
        return None
    rows, old = asyncio.run(_drive(judge, path, name, options.poll, say))
    asked = _absorb(judge, rows, waiting, store, say)
    if old and not asked.calls:
        # It was read before and has none of these answers: reading it again would never end.
        rows, _ = asyncio.run(_drive(judge, path, name, options.poll, say, afresh=True))
        asked = _absorb(judge, rows, waiting, store, say)
    return asked


def _keys(waiting: Mapping[str, JudgeCall]) -> set[str]:
    return {key for call in waiting.values() for key in call.keys}


def _line(judge: Judge, key: str, call: JudgeCall) -> str:
    path = "/chat/completions" if judge.config.kind is JudgeKind.azure else "/v1/chat/completions"
    body = chat_body(judge.model, call.messages, judge.parameters)
    row = {"custom_id": key, "method": "POST", "url": path, "body": body}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _check_cost(judge: Judge, waiting: Mapping[str, JudgeCall]) -> None:
    if len(waiting) > MOST_REQUESTS:
        raise InputError(
            f"{len(waiting)} requests, and a batch takes {MOST_REQUESTS}", fix="judge fewer models"
        )
    limit, price = judge.config.max_cost, judge.price_in(JudgeMode.batch)
    if limit is None or price is None:
        return
    worst = sum(price.of(most_tokens(call.messages), judge.max_output) for call in waiting.values())
    if worst > limit:
        raise CostLimitError(
            f"the batch may cost up to ${worst:.2f}, judge.max_cost is {limit:g}",
            fix="raise judge.max_cost, or mode=online, which stops on the way",
        )


def _absorb(
    judge: Judge,
    rows: Iterable[tuple[str, dict[str, Any]]],
    waiting: Mapping[str, JudgeCall],
    store: JudgmentStore,
    say: Say,
) -> AskingResult:
    """Puts the answers of a batch into the store; a call without one is made again next time."""
    asked = AskingResult()
    wanted = _keys(waiting)
    failures: dict[str, Reply] = {}
    foreign = 0
    for place, row in rows:
        key = text_field(row, "custom_id", place)
        if key not in wanted:
            foreign += 1
            continue
        reply = _reply(row)
        if reply.status == "api_error":
            failures[key] = reply
            continue
        if key not in store:
            store.add(CachedReply.of(key, reply))
            asked.add(reply.input_tokens or 0, reply.output_tokens or 0)
    if foreign:
        say(f"batch: {foreign} answers belong to other judgments and were left out")
    for call in waiting.values():
        if still_open := open_key(judge, call, store):
            none = Reply("api_error", error="the batch has no answer for it")
            asked.failed[call.id] = failures.get(still_open, none)
    return asked


def _reply(row: dict[str, Any]) -> Reply:
    response, error = row.get("response"), row.get("error")
    if error or not isinstance(response, dict):
        answer: Reply | Refusal = refusal_of(0, {}, {"error": error}, None if error else "no answer")
    else:
        status = str(response.get("status_code") or 200)
        code, body = int(status) if status.isdecimal() else 0, response.get("body")
        answer = read_reply(code, {}, body, needs_text=True)
    if isinstance(answer, Reply):
        return answer
    text = redact(answer.text)
    if answer.kind in ("filtered", "overflow"):
        return Reply(answer.kind, error=text)
    return Reply("api_error", error=text)


async def _drive(
    judge: Judge, path: Path, name: str, poll: float, say: Say, *, afresh: bool = False
) -> tuple[list[tuple[str, dict[str, Any]]], bool]:
    """Submits the file once, waits until the batch has ended, and fetches its answers.

    Also returns whether the batch had ended before. `afresh`: submits it even then.
    """
    import openai

    async with ApiClient(open_service(judge)) as client:
        try:
            found = None if afresh else await _find(client.api, name)
            old = found is not None and found.status in ENDED
            batch = found or await _submit(client.api, path, name, say)
            shown = None
            while batch.status not in ENDED:
                if batch.status != shown:
                    say(f"batch {batch.id}: {batch.status}")
                    shown = batch.status
                await asyncio.sleep(poll)
                batch = await client.api.batches.retrieve(batch.id)
            rows = []
            for file_id in (batch.output_file_id, batch.error_file_id):
                if file_id:
                    content = await client.api.files.content(file_id)
                    rows += list(parse_rows(content.content, f"{file_id} of batch {batch.id}", mend=True))
        except openai.APIError as error:
            raise client.explain(error) from None
    say(f"batch {batch.id}: {batch.status}, {len(rows)} answers")
    if not rows:
        problems = "; ".join(problem.message or "" for problem in (batch.errors and batch.errors.data) or [])
        raise EvalkitError(f"the batch {batch.status} without an answer: {problems or 'no reason given'}")
    return rows, old


async def _find(api: "AsyncOpenAI", name: str) -> "Batch | None":
    async for batch in api.batches.list(limit=100):
        named = (batch.metadata or {}).get("evalkit") == name
        # One that failed as a whole cost nothing and may be sent again.
        if named and (batch.status not in ENDED or batch.output_file_id or batch.error_file_id):
            return batch
    return None


async def _submit(api: "AsyncOpenAI", path: Path, name: str, say: Say) -> "Batch":
    with path.open("rb") as stream:
        file = await api.files.create(file=(path.name, stream), purpose="batch")
    batch = await api.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"evalkit": name},
    )
    say(f"batch {batch.id}: submitted; the same command waits for it and reads it")
    return batch
