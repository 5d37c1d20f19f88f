"""python -m evalkit prompts suite=NAME [data_dir=DIR] out=DIR

Writes DIR/<dataset>.jsonl: one line per evaluated sample, in order, with `id`, `prompt`,
`max_new_tokens` and `stop`, for people who generate elsewhere. The completions come back with
`score suite=NAME completions=DIR`.
"""

import json
import sys
from pathlib import Path

from evalkit.cli.command import DATA, SAMPLES, SUITE, TEMPLATES
from evalkit.core.config import Config, given_suite
from evalkit.core.durable import write_text_atomic
from evalkit.core.errors import InputError
from evalkit.core.types import Sampling
from evalkit.runs.suite import load_suite
from evalkit.tasks.prompts import PromptTemplate, requests

OPTIONS = (*SUITE, "out", *DATA, *SAMPLES, "split", *TEMPLATES)


def run(config: Config) -> int:
    """Dumps the prompts of a suite; exit code 0."""
    if config.out is None:
        raise InputError("where to? No folder is given", where="option out", fix="out=DIR")
    template = PromptTemplate.of(config.protocol)
    suite = load_suite(given_suite(config.suite), config.data, say=lambda line: print(line, file=sys.stderr))
    out = Path(config.out).expanduser()
    for task in suite.tasks:
        lines = [
            json.dumps(
                {
                    "id": request.id,
                    "prompt": request.prompt,
                    "max_new_tokens": request.max_new_tokens,
                    "stop": list(request.stop),
                },
                ensure_ascii=False,
            )
            for request in requests(task, template, sampling=Sampling(), seed=config.seed)
        ]
        write_text_atomic(out / f"{task.name}.jsonl", "".join(f"{line}\n" for line in lines))
        print(f"{task.name:<24}{len(lines):>6} prompts")
    for line in suite.remarks:
        print(line, file=sys.stderr)
    print(f"written to {out}")
    return 0
