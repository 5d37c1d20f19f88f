"""evalkit prompts suite=NAME [data_dir=DIR] out=DIR

Writes DIR/<dataset>.jsonl: one line per evaluated sample, in order, with `id`, `prompt`,
`max_new_tokens` and `stop`, for people who generate elsewhere. The completions come back with
`score suite=NAME completions=DIR`. With suite.chat=true a line has the `messages` of the chat, and
`prompt` is what the template of `model=` makes of them. Sampled answers have their sampling and seed, with
samples=N a line for each. suite=pfgen: all trials, each line with its
sampling and seed; with `model=` the texts of its EOS and BOS are stop strings too.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evalkit.cli.command import ANSWERS, DATA, MODEL, SAMPLES, SUITE
from evalkit.core.config import Config, ModelConfig, given_suite
from evalkit.core.durable import write_text_atomic
from evalkit.core.errors import InputError
from evalkit.core.types import REST_OF_CONTEXT, Request
from evalkit.engines.local.chat_template import as_text
from evalkit.runs.suite import asking_of, load_suite

OPTIONS = (
    *SUITE,
    "out",
    *DATA,
    *SAMPLES,
    "split",
    *ANSWERS,
    "seed",
    *MODEL,
)


def run(config: Config) -> int:
    """Dumps the prompts of a suite; exit code 0."""
    if config.out is None:
        raise InputError("where to? No folder is given", where="option out", fix="out=DIR")
    chosen = given_suite(config.suite)
    tokenizer = None
    if config.model and (chosen.chat or chosen.pfgen):
        tokenizer = _tokenizer(config.model, offline=config.data.offline)
    asking = asking_of(config, tokenizer)
    suite = load_suite(chosen, config.data, say=lambda line: print(line, file=sys.stderr))
    out = Path(config.out).expanduser()
    for task in suite.tasks:
        lines = [
            json.dumps(_line(request, tokenizer), ensure_ascii=False) for request in asking.requests(task)
        ]
        write_text_atomic(out / f"{task.name}.jsonl", "".join(f"{line}\n" for line in lines))
        print(f"{task.name:<24}{len(lines):>6} prompts")
    for line in suite.remarks:
        print(line, file=sys.stderr)
    print(f"written to {out}")
    return 0


def _tokenizer(model: ModelConfig, *, offline: bool) -> Any:
    """The tokenizer that renders chats."""
    from evalkit.engines.local.tokenizer import load_tokenizer
    from evalkit.engines.models import resolve_without_weights

    return load_tokenizer(resolve_without_weights(model, offline=offline))


def _line(request: Request, tokenizer: Any | None) -> dict[str, Any]:
    """One line: the prompt as text, and the messages of a chat."""
    line: dict[str, Any] = {"id": request.id}
    if not isinstance(request.prompt, str):
        line["messages"] = [asdict(message) for message in request.prompt]
    if isinstance(request.prompt, str) or tokenizer is not None:
        line["prompt"] = as_text(request.prompt, tokenizer)
    limit = None if request.max_new_tokens == REST_OF_CONTEXT else request.max_new_tokens
    line |= {"max_new_tokens": limit, "stop": list(request.stop)}
    if request.sampling.do_sample:
        line |= {"temperature": request.sampling.temperature, "top_p": request.sampling.top_p}
        line["seed"] = request.seed
    return line
