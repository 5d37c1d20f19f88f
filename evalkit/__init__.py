"""evalkit: llm-jp-eval v1.3.1 and Japanese MT-Bench, exact and resumable."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evalkit.tasks.answers import split_answer

__version__ = "0.1.0"
__all__ = ["__version__", "split_answer"]


def __getattr__(name: str) -> Any:
    if name == "split_answer":
        from evalkit.tasks.answers import split_answer

        return split_answer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
