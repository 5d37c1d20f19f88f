"""python -m evalkit ask model=NAME "QUESTION"

Asks a model one question and prints the prompt exactly as the model gets it, special tokens
included, then the answer: the quickest check of a chat template. Sampling is that of the llm-jp-3
model card (max_new_tokens 100, top_p 0.95, temperature 0.7, repetition_penalty 1.05).

    python -m evalkit ask model=1.8b-instruct "自然言語処理とは何か"
    python -m evalkit ask model=hf model.path=DIR model.chat_template=FILE.jinja "こんにちは"
"""

from evalkit.core.config import Config
from evalkit.core.secrets import printable

OPTIONS = ("model", "model.", "ask.", "seed", "dtype", "engine", "engine.", "offline", "protocol.bos")


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
    console.print(f"--- answer, {completion.new_tokens} tokens, {completion.finish_reason}", style="dim")
    console.print(
        printable(completion.raw_text.strip() if completion.error is None else f"failed: {completion.error}")
    )
    return 0 if completion.error is None else 1
