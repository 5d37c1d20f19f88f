"""leaderboard.html: one file with data, styles and scripts in it; it needs no network and no server.

Data is embedded as JSON in elements that do not run, with `<` escaped, or packed; the scripts put text on the
page as text only. The page's content security policy allows the embedded scripts by hash and
nothing else: text that a model wrote cannot run, and nothing is fetched.
"""

import base64
import gzip
import json
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any

from evalkit.core.config import Lang
from evalkit.leaderboard.board import Board
from evalkit.leaderboard.page_data import page_data
from evalkit.leaderboard.page_samples import conversations, dataset_samples
from evalkit.records.results import PROTOCOL_RESAMPLES

# A block of more characters is packed; the browser unpacks it when it is looked at.
_PACKED_FROM = 300_000
SCRIPTS = ("base", "table", "charts", "samples", "pair", "mt_bench", "steps", "main")


@dataclass(frozen=True)
class PageOptions:
    """The options of a page.

    Attributes:
        lang: the language it opens in.
        resamples: of the intervals of each pair of runs.
        data_dir: the prepared data for whole prompts, where a run's own is elsewhere.
        mirror: the mirror that has the questions of MT-Bench.
        across_rules: pairs of runs are compared although their options differ.
    """

    lang: Lang = Lang.en
    resamples: int = PROTOCOL_RESAMPLES
    data_dir: str | None = None
    mirror: str | None = None
    across_rules: bool = False


def page_html(board: Board, options: PageOptions) -> str:
    """The page of a board.

    Raises:
        InputError: the samples of a run cannot be read.
    """
    from jinja2 import Environment

    runs = {index: row.run for index, row in enumerate(board.rows) if row.run is not None}
    benches = {
        index: row.mt_bench_run for index, row in enumerate(board.rows) if row.mt_bench_run is not None
    }
    samples, tokens = dataset_samples(runs, options.data_dir)
    across_rules = options.across_rules
    content = page_data(board, runs, options.lang, options.resamples, tokens, across_rules=across_rules)
    blocks = {"data": content}
    blocks |= {f"samples-{name}": found for name, found in samples.items()}
    if benches:
        blocks["mt-bench"] = conversations(benches, options.data_dir, options.mirror)
    # The library's last line points browsers to a source map that is not embedded.
    library = _asset("chart.umd.min.js").split("//# sourceMappingURL")[0]
    scripts = [library, _own_script()]
    environment = Environment(autoescape=True)
    template = environment.from_string(_asset("page.html.j2"))
    return template.render(
        lang=options.lang.value,
        policy=_policy(scripts),
        style=_asset("page.css"),
        blocks={name: _block(name, content) for name, content in blocks.items()},
        scripts=scripts,
    )


def _block(name: str, content: Any) -> tuple[str, str]:
    """The type and the text of a block of data: JSON, packed where it is large."""
    text = embedded_json(content)
    if name == "data" or len(text) < _PACKED_FROM:
        return "application/json", text
    return "application/gzip", base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def embedded_json(content: Any) -> str:
    """JSON that is safe inside a script element: nothing in it can end the element or start a comment."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # A lone surrogate cannot be written as UTF-8.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: list[str]) -> str:
    hashes = " ".join(f"'sha256-{base64.b64encode(sha256(s.encode()).digest()).decode()}'" for s in scripts)
    rules = ("default-src 'none'", f"script-src {hashes}", "style-src 'unsafe-inline'", "img-src data:")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _own_script() -> str:
    parts = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}\n}})();\n'


def _asset(name: str) -> str:
    return (files("evalkit.leaderboard") / "assets" / name).read_text(encoding="utf-8")
