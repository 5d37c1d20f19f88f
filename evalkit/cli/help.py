"""--help: of evalkit, or of one verb (the docstring of its module)."""

import importlib
import inspect
from collections.abc import Mapping

GENERAL = """\
usage: python -m evalkit [VERB] [key=value ...] [flags]

  python -m evalkit model=smollm2-135m suite=sample       try it: a small real model, bundled items
  python -m evalkit prepare suite=jaster                  fetch and verify the data
  python -m evalkit model=1.8b-instruct suite=jaster      the table of the llm-jp-3 model card
  python -m evalkit model=hf model.path=DIR suite=mc      any model of the hub or in a folder
  python -m evalkit -m model=1.8b,13b suite=jaster        several, one job each (-m or --multirun)

verbs:
{verbs}

options of run (all are key=value):
  model=NAME             see: list models; model=hf takes model.path=HUB_NAME_OR_FOLDER
  suite=NAME             see: list suites; suite=task takes suite.tasks=[jamp,janli]
  limit=N                samples per dataset (the protocol: 100; 0: all)
  num_few_shots=N        examples in each prompt (the protocol: 4); of one task: suite.num_few_shots.jamp=2
  data_dir=DIR           prepared data; default: the cache folder
  mirror=DIR             read upstream files from a folder with MANIFEST.csv, not the network
  offline=true           fetch nothing (default when HF_HUB_OFFLINE=1)
  allow_missing=true     go on without datasets that are not there; the result is partial
  watch=DIR              evaluate the checkpoints in a folder as they appear
  out=DIR                where results go (default: results)
  dtype=auto             auto, bfloat16, float16, float32
  seed=42                seed of sampled generation
  engine.batch_size=N    rows at a time; default: what fits. Outputs: see certify
  engine.device=auto     auto, cpu, cuda, cuda:1
  engine=api             ask servers at engine.base_url=ADDRESS or [ADDRESS,ADDRESS]; or engine=vllm
  lang=ja                say it in Japanese
  protocol.bos=auto      auto: the tokenizer's own BOS; none: without
  protocol.strip=true    strip predictions, as versions after 1.3.1 do (a named deviation)
  protocol.answer_regex=REGEX   take the first match as the answer (a named deviation)

exit codes: 0 done, 1 something failed (the rest is kept), 2 bad input, 130 interrupted (resumable)
More: python -m evalkit VERB --help
"""


def print_help(verbs: Mapping[str, str], verb: str | None) -> int:
    """Prints the general help, or that of `verb`."""
    if verb is None:
        width = max(map(len, verbs)) + 2
        print(GENERAL.format(verbs="\n".join(f"  {name:<{width}}{text}" for name, text in verbs.items())))
    else:
        module = importlib.import_module(f"evalkit.cli.{verb}")
        print(inspect.cleandoc(module.__doc__ or verbs[verb]))
    return 0
