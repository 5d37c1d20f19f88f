"""vLLM, run by the interpreter of an environment of its own.

python vllm_worker.py MODEL DTYPE: one line of JSON when it can answer, then for each line
{prompts, new, forced} on standard input one line {seconds, texts}.
"""

import json
import os
import sys
import time
from typing import TextIO


def main(model: str, dtype: str, answers: TextIO) -> None:
    from vllm import LLM, SamplingParams

    engine = LLM(model, dtype=dtype, enable_prefix_caching=True)
    engine.generate([{"prompt_token_ids": [1, 2, 3]}], SamplingParams(max_tokens=2), use_tqdm=False)
    _say(answers, {})
    for line in sys.stdin:
        job = json.loads(line)
        engine.reset_prefix_cache()
        prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
        if job["forced"]:
            asked = [
                SamplingParams(temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True)
                for new in job["new"]
            ]
        else:
            asked = [
                SamplingParams(temperature=0, max_tokens=new, stop=["\n\n"], include_stop_str_in_output=True)
                for new in job["new"]
            ]
        start = time.perf_counter()
        done = engine.generate(prompts, asked, use_tqdm=False)
        seconds = time.perf_counter() - start
        _say(answers, {"seconds": seconds, "texts": [one.outputs[0].text for one in done]})


def _say(answers: TextIO, content: object) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    # vLLM's own processes and libraries write to standard output: that goes to the log.
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main(sys.argv[1], sys.argv[2], own)
