"""The contract of every engine: requests in, completions out, each as soon as it is done."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from evalkit.core.errors import InputError
from evalkit.core.types import Completion, Request, Sampling

if TYPE_CHECKING:
    from evalkit.engines.models import ResolvedModel


@dataclass(frozen=True)
class Identified:
    """What identifies a run before its engine is built: the model, the engine's family, the precision.

    `context`: the tokens that a server allows a prompt and its answer now; no part of the identity.
    """

    model: "ResolvedModel"
    family: str
    dtype: str
    context: int | None = None


class Engine(ABC):
    """Makes completions.

    In float32 completions do not depend on batch size, order or workers, except where the two best
    logits tie. In bfloat16 some do; `certify` measures how many.

    Attributes:
        family: completions of one family may be in one run; local and Ray are one family.
    """

    family: str

    @abstractmethod
    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields one completion per request, in any order, as soon as each is done.

        A request that cannot be answered gives a completion with finish reason `error`.

        Raises:
            InputError: an id occurs twice, or the model cannot answer such requests at all.
            EvalkitError: the model's output is broken (not a number), or no memory is left.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What made the completions, ready for JSON: device, dtype, kernels, versions."""

    @abstractmethod
    def close(self) -> None:
        """Frees the model's memory; the engine cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def distinct(requests: Iterable[Request]) -> list[Request]:
    """The requests as a list.

    Raises:
        InputError: two of them have one id.
    """
    seen: set[str] = set()
    listed = list(requests)
    for request in listed:
        if request.id in seen:
            raise InputError(
                "two requests have the same id, so their answers could not be told apart", where=request.id
            )
        seen.add(request.id)
    return listed


def from_generation_config(own: Mapping[str, Any]) -> Sampling:
    """The sampling in a model's own generation_config."""
    defaults = Sampling()
    return Sampling(
        do_sample=own.get("do_sample", defaults.do_sample),
        temperature=own.get("temperature", defaults.temperature),
        top_p=own.get("top_p", defaults.top_p),
        # transformers filters to 50 when a sampling configuration does not say.
        top_k=own.get("top_k", 50),
        repetition_penalty=own.get("repetition_penalty", defaults.repetition_penalty),
    )


# Increment when the same configuration would give different completions.
GENERATION_VERSION = 1
# Increment when only sampled completions would differ.
SAMPLING_VERSION = 2
