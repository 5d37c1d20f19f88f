"""What every command needs, imported once in the process the commands are forked from."""

import gc

import openai  # noqa: F401
import rapidfuzz.fuzz  # noqa: F401
import sacrebleu.metrics  # noqa: F401
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
from evalkit.core.options import load_config, parse

# Makes Hydra import itself.
load_config(parse(["model=random"], ["run"]))
evalkit.scoring.categories.category_members()
# The collector need not look through all of this again in every command.
gc.collect()
gc.freeze()
