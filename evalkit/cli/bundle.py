"""evalkit bundle suite=jaster model=1.8b-instruct out=FILE.tar

Packs prepared data, MT-Bench's files, metric models and the model's files into one tar file with a
manifest of hashes, for machines without a network. There:

    tar xf FILE.tar && cd FILE && sha256sum --quiet -c SHA256SUMS && cd ..
    evalkit model=1.8b-instruct suite=jaster data_dir=FILE offline=true
"""

import sys
from pathlib import Path

from evalkit.cli.command import DATA, MODEL, PRESET, SUITE
from evalkit.core.config import Config
from evalkit.core.errors import InputError
from evalkit.core.progress import bar
from evalkit.core.text import quoted

OPTIONS = (*SUITE, *PRESET, *MODEL, "out", *DATA, "metrics.comet.")


def run(config: Config) -> int:
    """Writes the bundle; exit code 0, or 1 when something that belongs in it cannot be had."""
    from evalkit.cli.prepare import allow_network
    from evalkit.runs.bundle import collect, total_bytes, write

    if config.out is None or not config.out.endswith(".tar"):
        raise InputError("where to? A file name is needed", where="option out", fix="out=FILE.tar")
    if not config.offline:
        allow_network()
    contents = collect(config, say=lambda line: print(line, file=sys.stderr, flush=True))
    out = Path(config.out).expanduser()
    with bar("packing", total_bytes(contents.files.values()), "bytes") as packing:
        size = write(contents, out, progress=packing.advance)
    print(f"{out}: {len(contents.files)} files, {size / 1e9:.2f} GB")
    name = out.name.removesuffix(".tar")
    words = quoted(f"data_dir={name}")
    print(f"there: tar xf {quoted(out.name)}, then the same model= and suite= with: {words} offline=true")
    for option in contents.options:
        print(f"       {quoted(option.replace('BUNDLE', name))}")
    return 0
