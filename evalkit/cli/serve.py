"""python -m evalkit serve model=NAME [serve.port=8000] [serve.host=127.0.0.1]

Serves a model through evalkit's local engine as an OpenAI-compatible endpoint: /v1/models,
/v1/completions (texts or token ids) and /v1/chat/completions. It listens on this machine only; any
other serve.host needs a key in EVALKIT_API_KEY, which callers send too. A run through it has the
same run id and the same records as a local one:

    python -m evalkit serve model=smollm2-135m
    python -m evalkit model=smollm2-135m suite=sample engine=api engine.base_url=http://127.0.0.1:8000/v1

Ctrl-C or SIGTERM ends it. Requests that wait go into the engine together; a stream (stream=true)
brings the whole answer in one piece. docs/servers.md says more.

options: model and its options; serve.host, serve.port (0: a free one), serve.max_tokens,
serve.max_body, serve.max_waiting; dtype, protocol.bos, offline, engine.batch_size, engine.device,
engine.device_map, engine.prefix, engine.attention, engine.threads
"""

import logging
import os
import sys

from evalkit.config import Config


def run(config: Config) -> int:
    """Serves until it is told to stop; exit code 0."""
    from evalkit.serve.listen import serve

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if serve(config, say=lambda line: print(line, flush=True)):
        return 0
    # The engine's thread is in the middle of a long pass; an orderly exit would wait for it.
    sys.stderr.flush()
    os._exit(0)
