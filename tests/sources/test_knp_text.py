"""Samples of one small annotated document, made here in KNP's format."""

import pytest
from rhoknp import Document

from evalkit.core.types import Row
from evalkit.sources import knp_text
from evalkit.sources.knp_text import LETTER_NAMES

HEAD, BRACKET = "wiki00000001-00-01", "wiki00000001-00-02"
# 京都大学（京大）の太郎はNHKに行った。 The bracket is a sentence of its own; 太郎 and 彼 are one person.
KNP = f"""# S-ID:{HEAD} 括弧削除 KNP:5.0 DATE:2022/04/27 SCORE:1.0 MOD:2022/12/21 MEMO:
* 1D
+ 1D
京都 きょうと 京都 名詞 6 地名 4 * 0 * 0 NIL
+ 2D <NE:ORGANIZATION:京都大学>
大学 だいがく 大学 名詞 6 普通名詞 1 * 0 * 0 NIL
の の の 助詞 9 接続助詞 3 * 0 * 0 NIL
* 3D
+ 4D <NE:PERSON:太郎>
太郎 たろう/たろー 太郎 名詞 6 人名 5 * 0 * 0 NIL
は は は 助詞 9 副助詞 2 * 0 * 0 NIL
* 3D
+ 4D <NE:OPTIONAL:NHK>
NHK NHK NHK 名詞 6 組織名 6 * 0 * 0 NIL
に に に 助詞 9 格助詞 1 * 0 * 0 NIL
* -1D
+ -1D <rel type="ガ" target="太郎" sid="{HEAD}" id="2"/><rel type="ニ" target="NHK" sid="{HEAD}" id="3"/>\
<rel type="ヲ" target="不特定:物"/>
行った いった 行く 動詞 2 * 0 子音動詞カ行促音便形 3 タ形 10 NIL
。 。 。 特殊 1 句点 1 * 0 * 0 NIL
EOS
# S-ID:{BRACKET} 括弧始:（ 括弧終:） 括弧位置:4 KNP:5.0 DATE:2022/04/27 SCORE:0.0 MOD:2023/01/25 MEMO:
* -1D
+ -1D <rel type="=" target="大学" sid="{HEAD}" id="1"/>
京大 きょうだい 京大 名詞 6 普通名詞 1 * 0 * 0 NIL
EOS
# S-ID:wiki00000001-01 KNP:5.0 DATE:2022/04/27 SCORE:1.0 MOD:2022/12/21 MEMO:
* 1D
+ 1D <rel type="=" target="太郎" sid="{HEAD}" id="2"/>
彼 かれ 彼 名詞 6 普通名詞 1 * 0 * 0 NIL
は は は 助詞 9 副助詞 2 * 0 * 0 NIL
* -1D
+ -1D <rel type="ガ" target="彼" sid="wiki00000001-01" id="0"/>
学生 がくせい 学生 名詞 6 普通名詞 1 * 0 * 0 NIL
だ だ だ 判定詞 4 * 0 判定詞 25 基本形 2 NIL
。 。 。 特殊 1 句点 1 * 0 * 0 NIL
EOS
"""
SHORT = "京都大学の太郎はNHKに行った。彼は学生だ。"
LONG = "京都大学（京大）の太郎はNHKに行った。彼は学生だ。"


@pytest.fixture(scope="module")
def samples() -> dict[str, Row]:
    return knp_text.samples(KNP)


def test_reading(samples: dict[str, Row]) -> None:
    assert samples["reading"] == Row(
        SHORT, "きょうとだいがくのたろうはえぬえいちけーにいった。かれはがくせいだ。"
    )


def test_named_entities(samples: dict[str, Row]) -> None:
    assert samples["named_entities"] == Row(LONG, "京都大学（組織名） 太郎（人名）")


def test_dependencies(samples: dict[str, Row]) -> None:
    lines = ["京都大学の -> 太郎は", "太郎は -> 行った。", "NHKに -> 行った。", "彼は -> 学生だ。"]
    assert samples["dependencies"] == Row(SHORT, "\n".join(lines))


def test_predicates(samples: dict[str, Row]) -> None:
    assert samples["predicates"] == Row(LONG, "行った ガ：太郎 ニ：NHK\n学生だ ガ：彼")


def test_coreferences_without_the_mention_in_brackets(samples: dict[str, Row]) -> None:
    assert samples["coreferences"] == Row(SHORT, "太郎 彼")


def test_samples_are_those_of_documents_that_rhoknp_reads(samples: dict[str, Row]) -> None:
    """All relations resolved at once; without brackets, in a document that never had them."""
    whole = Document.from_knp(KNP)
    bracket = KNP[KNP.index(f"# S-ID:{BRACKET}") : KNP.index("# S-ID:wiki00000001-01 ")]
    shorter = Document.from_knp(KNP.replace(bracket, ""))
    assert knp_text.coreferences(whole).output == "京都大学 京大\n太郎 彼"
    for name, row in samples.items():
        assert row == getattr(knp_text, name)(shorter if name == "coreferences" else whole)


def test_every_letter_has_a_name() -> None:
    assert "".join(LETTER_NAMES) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
