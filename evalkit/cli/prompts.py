"""python -m evalkit prompts suite=NAME [data_dir=DIR] out=DIR

Writes DIR/<dataset>.jsonl: one line per evaluated sample, in order, with `id`, `prompt`,
`max_new_tokens` and `stop`, for people who generate elsewhere. The completions come back with
`score suite=NAME completions=DIR`. With suite.chat=true a line has the `messages` of the chat, and
`prompt` is what the template of `model=` makes of them.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evalkit.core.config import Config, is_offline
from evalkit.core.durable import write_text_atomic
from evalkit.core.errors import InputError
from evalkit.core.types import REST_OF_CONTEXT, Request
from evalkit.engines.local.chat_template import as_text
from evalkit.runs.suite import asking_of, load_suite, missing_lines

OPTIONS = (
    "suite",
    "suite.tasks",
    "out",
    "data_dir",
    "mirror",
    "offline",
    "allow_missing",
    "limit",
    "num_few_shots",
    "suite.num_few_shots",
    "suite.chat",
    "suite.chat_turns",
    "suite.system",
    "model",
    "model.chat_template",
    "model.chat_template_args",
    "reasoning.",
    "split",
    "protocol.custom_prompt_template",
    "protocol.custom_fewshots_template",
)


def run(config: Config) -> int:
    """Dumps the prompts of a suite; exit code 0."""
    if config.out is None:
        raise InputError("where to? No folder is given", where="option out", fix="out=DIR")
    suite = load_suite(config, say=lambda line: print(line, file=sys.stderr))
    tokenizer = _tokenizer(config)
    asking = asking_of(config, tokenizer)
    out = Path(config.out).expanduser()
    for task in suite.tasks:
        lines = [
            json.dumps(_line(request, tokenizer), ensure_ascii=False) for request in asking.requests(task)
        ]
        write_text_atomic(out / f"{task.name}.jsonl", "".join(f"{line}\n" for line in lines))
        print(f"{task.name:<24}{len(lines):>6} prompts")
    for line in (*suite.warnings, *missing_lines(suite)):
        print(line, file=sys.stderr)
    print(f"written to {out}")
    return 0


def _tokenizer(config: Config) -> Any | None:
    """The tokenizer that renders chats; None where no model is named."""
    if config.model is None or config.suite is None or not config.suite.chat:
        return None
    from evalkit.engines.local.tokenizer import load_tokenizer
    from evalkit.engines.models import resolve_without_weights

    return load_tokenizer(resolve_without_weights(config.model, offline=is_offline(config)))


def _line(request: Request, tokenizer: Any | None) -> dict[str, Any]:
    """One line: the prompt as text, and the messages of a chat."""
    line: dict[str, Any] = {"id": request.id}
    if not isinstance(request.prompt, str):
        line["messages"] = [asdict(message) for message in request.prompt]
    if isinstance(request.prompt, str) or tokenizer is not None:
        line["prompt"] = as_text(request.prompt, tokenizer)
    limit = None if request.max_new_tokens == REST_OF_CONTEXT else request.max_new_tokens
    return line | {"max_new_tokens": limit, "stop": list(request.stop)}
