"""The words of other harnesses -> evalkit's options: one message says them all, with the whole command."""

import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from evalkit.core.errors import InputError
from evalkit.core.text import command

# What lm-evaluation-harness, inspect, lighteval and llm-jp-eval call an option; None: nothing is needed.
HABITS: Mapping[str, str | None] = {
    **dict.fromkeys(("model_path", "model_name", "model_name_or_path", "pretrained"), "model"),
    **dict.fromkeys(("task", "tasks", "benchmark", "benchmarks", "dataset", "datasets"), "suite"),
    **dict.fromkeys(("num_fewshot", "num_fewshots", "num_shots", "n_shot", "fewshot"), "num_few_shots"),
    **dict.fromkeys(("few_shots", "num_few_shot", "n_shots", "shots"), "num_few_shots"),
    **dict.fromkeys(("output", "output_path", "output_dir", "out_dir", "log_dir", "results_dir"), "out"),
    **dict.fromkeys(("max_samples", "max_num_samples", "num_examples"), "limit"),
    **dict.fromkeys(("max_new_tokens", "max_tokens", "max_gen_toks"), "generation.output_length"),
    **dict.fromkeys(("system_instruction", "system_prompt", "system_message"), "suite.system"),
    **dict.fromkeys(("torch_dtype", "precision"), "dtype"),
    **dict.fromkeys(("dataset_dir", "data_path"), "data_dir"),
    **dict.fromkeys(("apply_chat_template", "chat"), "suite.chat"),
    **dict.fromkeys(("log_samples", "write_out", "show_config", "verbosity", "verbose"), None),
    **dict.fromkeys(("use_cache", "cache_requests", "check_integrity"), None),
    # What lm-eval hands on to vLLM.
    **{
        name: f"engine.parameters.{name}"
        for name in ("tensor_parallel_size", "gpu_memory_utilization", "max_model_len")
    },
    "fewshot_as_multiturn": "suite.chat_turns",
    "max_batch_size": "engine.batch_size",
    "batch_size": "engine.batch_size",
    "device": "engine.device",
    "device_map": "engine.device_map",
    "base_url": "engine.base_url",
    "model_base_url": "engine.base_url",
    "tokenizer": "model.tokenizer",
    "revision": "model.revision",
    "trust_remote_code": "model.trust_remote_code",
    "chat_template": "model.chat_template",
    "do_sample": "generation.do_sample",
    "temperature": "generation.temperature",
    "top_p": "generation.top_p",
    "top_k": "generation.top_k",
    "epochs": "samples",
}
# What others call a verb.
OTHER_VERBS = {"eval": "run", "evaluate": "run", "view": "leaderboard", "ls": "list", "help": "--help"}
# Of those that need nothing here, the ones that a word follows.
_TAKES_WORD = ("verbosity", "use_cache", "cache_requests")
# lm-eval's pairs `key=value,key=value` in one word.
_PAIRS = ("model_args", "gen_kwargs")
# What lm-eval's --model says beside the models: who runs them.
_ENGINES = {
    "vllm": "vllm",
    **dict.fromkeys(
        (f"{who}{kind}-completions" for who in ("local", "openai") for kind in ("", "-chat")), "api"
    ),
}
# What others call an engine.
OTHER_ENGINES = {
    **dict.fromkeys(("hf", "transformers", "huggingface", "accelerate"), "local"),
    **dict.fromkeys(("openai", "server", "sglang", "tgi", "llama.cpp"), "api"),
}
# Verbs whose model is the judge.
_JUDGING = ("judge", "calibrate", "pairwise")
_OF_JUDGE: Mapping[str, str] = {
    "model": "judge",
    "engine.base_url": "judge.base_url",
    "generation.output_length": "judge.parameters.max_tokens",
    "generation.temperature": "judge.parameters.temperature",
    "generation.top_p": "judge.parameters.top_p",
    "generation.top_k": "judge.parameters.top_k",
}
# Verbs that have their own options for those of a run.
OF_VERB: Mapping[str, Mapping[str, str]] = {
    "ask": {
        "generation.output_length": "ask.max_new_tokens",
        "generation.temperature": "ask.temperature",
        "generation.top_p": "ask.top_p",
        "suite.system": "ask.system",
    },
    **dict.fromkeys(_JUDGING, _OF_JUDGE),
}
# How a word of ask is no option.
IN_A_QUESTION = "in a question write a space before ="
# What numbers and switches are.
_NUMBER_OR_SWITCH = re.compile(r"[-+.eE0-9]+|true|false|auto|none|null", re.IGNORECASE)


def right_name(name: str, verb: str) -> str | None:
    """evalkit's name of what another harness calls `name`, for this verb; None: nothing is needed."""
    right = HABITS.get(name, name)
    return None if right is None else OF_VERB.get(verb, {}).get(right, right)


def fits(kind: Any, value: str) -> bool:
    """Whether this may be the value of an option of a kind: of a number or a switch not every text is."""
    return kind not in (int, float, bool) or _NUMBER_OR_SWITCH.fullmatch(value) is not None


@dataclass
class Habits:
    """The words of a command line, those of other harnesses as evalkit writes them, and what was renamed.

    `options` gives every option by its name, with its kind. `renamed`: the right names of each word.
    """

    options: Callable[[], Mapping[str, Any]]
    verb: str
    words: list[str] = field(default_factory=list)
    renamed: dict[str, list[str]] = field(default_factory=dict)

    def knows(self, word: str) -> bool:
        """Whether this is `name=value` of another harness, or `--name` of one or of evalkit's options.

        A question may be an equation: `temperature=300Kのとき` is one, for the value is no number.
        """
        name = _name(word)
        option = self.options().get(HABITS.get(name) or "")
        may_be_equation = self.verb == "ask" and not word.startswith("-")
        if may_be_equation and option and not fits(option.kind, word.partition("=")[2]):
            return False
        if name in HABITS or name in _PAIRS or (name == "model" and self.verb in _JUDGING):
            return "=" in word or word.startswith("--")
        return word.startswith("--") and name in self.options()

    def take(self, word: str, rest: deque[str]) -> None:
        """Adds a word that it `knows`; a value that stands apart is taken from the `rest` of the words.

        Raises:
            InputError: lm-eval's `--tasks list`.
        """
        name, (given, equals, value) = _name(word), word.partition("=")
        right = right_name(name, self.verb)
        if not equals:
            apart = bool(rest) and not rest[0].startswith("-")
            option = self.options().get(right) if right else None
            if option and option.kind is bool and not (apart and rest[0].lower() in ("true", "false")):
                value = "true"
            elif right or (name in _TAKES_WORD and apart and "=" not in rest[0]):
                value = rest.popleft() if apart else "VALUE"
        if right == "suite" and value == "list":
            raise InputError(f"{given} list is the verb list", fix=command("list", "tasks"))
        if name in _PAIRS:
            pairs = [pair.partition("=") for pair in value.split(",")]
            self.renamed[given] = [name for key, _, text in pairs for name in self._add(_name(key), text)]
        else:
            self.renamed[given + equals] = self._add(name, value)

    def _add(self, name: str, value: str) -> list[str]:
        """Adds `value` under the right name, if there is one, and returns that."""
        right = right_name(name, self.verb)
        if right is None:
            return []
        if right == "model" and value in _ENGINES:
            right, value = "engine", _ENGINES[value]
        if right == "model":
            # lm-eval's --model hf only says that a path follows.
            self.words = [one for one in self.words if one != "model=hf"]
        # batch_size=auto is the default.
        if right != "engine.batch_size" or value.isdigit():
            self.words.append(f"{right}={value}")
        return [right]

    def check(self, takes: Callable[[str], bool]) -> None:
        """Refuses a command line with words of other harnesses; the verb `takes` some of their options.

        Raises:
            InputError: all of them with the right word; the fix is the whole command.
        """
        if not self.renamed:
            return
        foreign = {name for names in self.renamed.values() for name in names if not takes(name)}
        no_option = f" (no option of {self.verb or 'run'})"
        listed = [
            f"{given} is "
            + (" ".join(f"{one}={no_option if one in foreign else ''}" for one in names) or "not needed")
            for given, names in self.renamed.items()
        ]
        what = f"options are written key=value, under these names: {', '.join(listed)}"
        if self.verb == "ask" and not all(given.startswith("-") for given in self.renamed):
            what += f"; {IN_A_QUESTION}"
        kept = [word for word in self.words if word.partition("=")[0] not in foreign]
        raise InputError(what, fix=command(*kept))


def _name(word: str) -> str:
    return word.partition("=")[0].lstrip("-").replace("-", "_")
