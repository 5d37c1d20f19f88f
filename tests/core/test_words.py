"""Every text that is said has its Japanese, with the same fields."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from evalkit.core import words
from evalkit.core.config import Lang
from evalkit.leaderboard.rows import Kind

PACKAGE = Path(words.__file__).parents[1]


def said_in_python() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_said = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "t"
            if is_said and node.args and isinstance(node.args[0], ast.Constant):
                yield path.name, str(node.args[0].value)


def said_on_the_page() -> Iterator[tuple[str, str]]:
    for path in sorted((PACKAGE / "leaderboard" / "assets").glob("*.js")):
        if not path.name.startswith("chart."):
            for found in re.finditer(r'\bt\("((?:[^"\\]|\\.)*)"', path.read_text(encoding="utf-8")):
                yield path.name, found[1].replace("\\\\", "\\")


def test_every_text_has_its_japanese() -> None:
    said = [*said_in_python(), *said_on_the_page()]
    assert len(said) > 80
    missing = {text for _, text in said if text not in words.catalogue()}
    assert not missing
    assert {kind.value for kind in Kind} <= set(words.catalogue())


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
