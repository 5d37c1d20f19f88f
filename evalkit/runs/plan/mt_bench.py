"""An MT-Bench suite on paper: the answers' tokens, and what judging them costs.

Source: sections 2 and 10 of the MT-Bench protocol notes; prompts counted with the llm-jp-3
tokenizer, judge prompts with cl100k.
"""

from dataclasses import dataclass
from pathlib import Path

from evalkit.core.config import Config
from evalkit.core.errors import InputError
from evalkit.mtbench.judge.budget import EXPLANATION_TOKENS, load_prices, price_of
from evalkit.mtbench.judge.judges import judge_config, resolve_judge
from evalkit.mtbench.presets import DEFAULT_PRESET, LengthRule, Preset, load_preset
from evalkit.runs.plan.workload import DatasetCount, Group, Item

QUESTIONS = 80
# Mean tokens of the first prompt, and of what the second turn adds to prompt and first answer.
FIRST_PROMPT, SECOND_PROMPT = 95.0, 36.0
# Mean tokens of an answer: 193 of ELYZA-7b-fast-instruct's, 182 of the gpt-4 references.
TYPICAL_ANSWER = 190.0
# Tokens of the 160 judge prompts of a run: answers of ELYZA-7b, and the long ones of gpt-4o.
JUDGE_INPUT_TYPICAL, JUDGE_INPUT_LONG = 177_057, 225_339
_JUDGED = 160


@dataclass(frozen=True)
class JudgeCost:
    """What judging one run takes; dollars None: no price is known for `model`."""

    judge: str
    model: str
    calls: int
    input_tokens_typical: int
    input_tokens_long: int
    output_tokens: int
    dollars_typical: float | None
    dollars_long: float | None


def preset_of(config: Config) -> Preset:
    """The preset of an MT-Bench suite."""
    assert config.suite is not None
    return load_preset(config.preset or config.suite.preset or DEFAULT_PRESET)


def turns_of(config: Config) -> tuple[list[list[Group]], DatasetCount]:
    """The work of each turn (the second waits for the first), and the counts of both together."""
    preset, default = preset_of(config), load_preset(DEFAULT_PRESET)
    rule = preset.length.rule or default.length.rule
    limit = preset.length.tokens or default.length.tokens or 0
    questions = min(config.limit, QUESTIONS) if config.limit and config.limit > 0 else QUESTIONS
    answers = questions * preset.sampling.answers
    turns, prompt, computed, most, typical = [], 0.0, 0.0, 0, 0.0
    context, own = 0.0, FIRST_PROMPT
    for _ in preset.turns:
        used = context + own if rule is LengthRule.total else 0.0
        longest = max(1, int(limit - used))
        usual = min(TYPICAL_ANSWER, longest)
        item = Item(own, longest, usual, cached=context)
        turns.append([Group(0.0, (item,) * answers)])
        prompt += answers * (context + own)
        computed += answers * own
        most += answers * longest
        typical += answers * usual
        # What the first turn has computed is kept for the second.
        context, own = context + own + usual, SECOND_PROMPT
    samples = answers * len(preset.turns)
    row = DatasetCount("mt-bench", samples, prompt, computed, 0.0, most, typical, "kept counts")
    return turns, row


def judge_cost(config: Config, answered: int) -> JudgeCost | None:
    """What judging `answered` turns costs; None: no judge is chosen and the preset names none.

    Raises:
        InputError: an incomplete judge, or a price file that is none.
    """
    preset = preset_of(config)
    try:
        judge = resolve_judge(judge_config(config.judge, preset))
    except InputError:
        if config.judge is not None:
            raise
        return None
    model = judge.config.model or judge.model
    own = judge.config.prices
    price = price_of(model, load_prices(Path(own).expanduser() if own else None))
    calls = answered * judge.config.repeats
    share = calls / _JUDGED
    output = round(EXPLANATION_TOKENS * calls)
    usual, long = round(JUDGE_INPUT_TYPICAL * share), round(JUDGE_INPUT_LONG * share)
    return JudgeCost(
        judge=judge.label,
        model=model,
        calls=calls,
        input_tokens_typical=usual,
        input_tokens_long=long,
        output_tokens=output,
        dollars_typical=price.of(usual, output) if price else None,
        dollars_long=price.of(long, output) if price else None,
    )
