"""evalkit ask model=NAME "QUESTION"

Asks a model one question and prints the prompt exactly as the model gets it, special tokens
included, then the answer: the quickest check of a chat template. Sampling is that of the llm-jp-3
model card (max_new_tokens 100, top_p 0.95, temperature 0.7, repetition_penalty 1.05).

An equation whose name is like an option's is a question with a space before its =.

A thought before the answer is shown apart, shortened unless --long is given; the answer has
ask.max_new_tokens, the thought reasoning.thought_length tokens at most.

    evalkit ask model=1.8b-instruct "自然言語処理とは何か"
    evalkit ask model=1.8b suite=pfgen Q01        (a question of pfgen as a run asks it)
    evalkit ask model=hf model.path=DIR model.chat_template=FILE.jinja "こんにちは"
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evalkit.core.config import Config
from evalkit.core.secrets import printable

if TYPE_CHECKING:
    from evalkit.runs.ask import AskedQuestion

OPTIONS = (
    *("model", "model.", "suite", "samples", "pfgen.", "ask.", "reasoning.", "long"),
    *("seed", "dtype", "engine", "engine.", "offline", "protocol.bos"),
)

# How much of a thought is shown: its beginning and its end, in characters.
_HEAD, _TAIL = 200, 100


def run(config: Config) -> int:
    """Prints prompt and answer; exit code 1 when nothing could be generated."""
    from rich.console import Console

    from evalkit.runs.ask import ask

    asked = ask(config)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    heading = "prompt" if asked.templated else "prompt (the model has no chat template)"
    completion = asked.completion
    console.print(f"--- {heading}, {completion.prompt_tokens} tokens", style="dim")
    console.print(printable(asked.prompt))
    for text, dim in _answered(asked, whole=config.long):
        console.print(printable(text), style="dim" if dim else None)
    return 0 if completion.error is None else 1


def _answered(asked: "AskedQuestion", *, whole: bool) -> Iterator[tuple[str, bool]]:
    """What the model wrote, with headings, and whether each text is dimmed."""
    completion, split = asked.completion, asked.split
    thought = completion.served_thought if split is None else split.thought
    if thought is not None:
        by = (
            "as the server split it"
            if completion.served_thought is not None
            else f"rule {split and split.rule}"
        )
        count = "" if split is None or split.thought_tokens is None else f"{split.thought_tokens} tokens, "
        yield f"--- thought, {count}{by}", True
        yield _folded(thought.strip(), whole), True
    tokens, ended = completion.new_tokens, str(completion.finish_reason)
    if split is not None:
        tokens = completion.new_tokens if split.answer_tokens is None else split.answer_tokens
        ended = f"{ended}, {split.status}, rule {split.rule}"
    yield f"--- answer, {tokens} tokens, {ended}", True
    if completion.error is not None:
        yield f"failed: {completion.error}", False
    else:
        yield (completion.raw_text.strip() if split is None else split.answer), False


def _folded(thought: str, whole: bool) -> str:
    left_out = len(thought) - _HEAD - _TAIL
    if whole or left_out <= 0:
        return thought
    return f"{thought[:_HEAD]}\n... {left_out:,} characters more (--long shows all)\n{thought[-_TAIL:]}"
