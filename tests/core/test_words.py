"""Every text that is said has its Japanese, with the same fields."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from evalkit.core import words
from evalkit.core.config import Lang
from evalkit.core.reasons import Reason
from evalkit.leaderboard.rows import Origin

PACKAGE = Path(words.__file__).parents[1]


def constants(node: ast.expr) -> Iterator[str]:
    """The texts an argument may be: one, those of a condition, or those of a tuple."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.IfExp):
        yield from (*constants(node.body), *constants(node.orelse))
    elif isinstance(node, ast.Tuple):
        yield from (text for one in node.elts for text in constants(one))


def said_in_python() -> Iterator[tuple[str, str]]:
    """The texts given to `t` and `Reason`, also by a name that the function gave them, and the titles and
    heads of tables, which are given to `t` where they are shown."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [
            node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        titles = [keyword.value for node in calls for keyword in node.keywords if keyword.arg == "title"]
        yield from ((path.name, text) for title in titles for text in constants(title))
        for inner in map(list, map(ast.walk, functions)):
            named: dict[str, list[str]] = {}
            for node in inner:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    named.setdefault(node.targets[0].id, []).extend(constants(node.value))
            for node in inner:
                name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
                given = node.args[:1] if name in ("t", "Reason") else node.args if name == "new_table" else []
                for one in given:
                    first = one.value if isinstance(one, ast.Starred) else one
                    texts = named.get(first.id, []) if isinstance(first, ast.Name) else constants(first)
                    yield from ((path.name, text) for text in texts)


def said_on_the_page() -> Iterator[tuple[str, str]]:
    for path in sorted((PACKAGE / "leaderboard" / "assets").glob("*.js")):
        if not path.name.startswith("chart."):
            for found in re.finditer(r'\bt\("((?:[^"\\]|\\.)*)"', path.read_text(encoding="utf-8")):
                yield path.name, found[1].replace("\\\\", "\\")


def test_every_text_has_its_japanese() -> None:
    said = [*said_in_python(), *said_on_the_page()]
    assert len(said) > 80
    # A template of fields alone has nothing to translate.
    missing = {text for _, text in said if re.search(r"\w", re.sub(r"\{\w+\}", "", text))}
    missing -= set(words.catalogue())
    assert not missing
    assert {kind.value for kind in Origin} <= set(words.catalogue())


def test_the_japanese_has_the_same_fields() -> None:
    for english, japanese in words.catalogue().items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", japanese)), english
        assert isinstance(japanese, str) and japanese.strip()


@pytest.fixture
def japanese() -> Iterator[None]:
    words.use(Lang.ja)
    yield
    words.use(Lang.en)


def test_t(japanese: None) -> None:
    assert words.t("score") == "スコア"
    assert words.t("{n} tokens", n=3) == "3 トークン"
    assert words.t("never translated {x}", x=1) == "never translated 1"
    words.use(Lang.en)
    assert words.t("{n} tokens", n=3) == "3 tokens"


def test_a_reason_is_its_english_text_and_is_shown_in_japanese(japanese: None) -> None:
    inner = Reason("{n} samples have no completion", n=2)
    reason = Reason("{name}: {reason}", name="score", reason=inner)
    assert reason == "score: 2 samples have no completion"
    # The name of a dataset is no text to translate, even where it is a word that has its Japanese.
    assert words.shown(reason) == "score: 2 件に回答がない"
    both = Reason("{model} is partial: {why}", model="m", why=[inner, Reason("not in this suite")])
    assert words.shown(both) == "m は部分的: 2 件に回答がない; このスイートに含まれない"


def test_what_is_no_reason_is_shown_as_it_is(japanese: None) -> None:
    assert words.shown("jamp: 2 samples have no completion") == "jamp: 2 samples have no completion"
    assert words.shown("the run is not finished") == "実行が完了していない"
