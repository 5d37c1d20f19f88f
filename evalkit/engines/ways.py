"""The ways rows can go through a model, fastest first; which of them serves is found by `probe`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evalkit.config import PrefixMode
from evalkit.engines import expanded, plain
from evalkit.engines.batches import Batches, Lengths
from evalkit.engines.loading import LoadedModel
from evalkit.engines.rows import Row


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        name: what log and environment call it.
        prefix: what it does with tokens that prompts share; `off` is transformers' own `generate`.
        lengths: how prompts of different lengths come into one batch; packed ones just do.
        alone: one row at a time.
    """

    name: str
    prefix: PrefixMode
    lengths: Lengths = Lengths.apart
    alone: bool = False

    def run(self, rows: Sequence[Row], loaded: LoadedModel, batches: Batches) -> Iterator[Row]:
        """Finishes the rows in any way but the packed one (`pool`), and yields them."""
        generate = plain.generate if self.prefix is PrefixMode.off else expanded.generate
        return generate(rows, loaded, batches, self.lengths)


PACKED = Way("packed", PrefixMode.merged)
ALONE = Way("one prompt at a time by generate", PrefixMode.off, alone=True)
LADDER = (
    PACKED,
    Way("padded batches after a shared prefix", PrefixMode.expanded, Lengths.padded),
    Way("batches joined after their prompts", PrefixMode.expanded, Lengths.joined),
    Way("padded batches by generate", PrefixMode.off, Lengths.padded),
    Way("batches of one length after a shared prefix", PrefixMode.expanded),
    Way("one row at a time after a shared prefix", PrefixMode.expanded, alone=True),
    Way("batches of one length by generate", PrefixMode.off),
    ALONE,
)
