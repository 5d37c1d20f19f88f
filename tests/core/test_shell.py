import shlex

import pytest

from evalkit.core.text import command


@pytest.mark.parametrize(
    "word", ["run=results/モデル", "suite.tasks=[jamp,janli]", "model=1.8b", "--partial"]
)
def test_plain_words_stay_as_they_are(word: str) -> None:
    assert command("score", word) == f"python -m evalkit score {word}"


@pytest.mark.parametrize(
    "word", ["out=a b", "out=${x}", "out=it's", "model.path=/a;b", "out=(x)", "out=~/x*"]
)
def test_others_come_back_as_one_word(word: str) -> None:
    assert command("score", word) != f"python -m evalkit score {word}"
    assert shlex.split(command("score", word)) == ["python", "-m", "evalkit", "score", word]
