"""Small files in upstream's formats, made here, and the samples the protocol makes of them."""

import io
import json
import zipfile

from evalkit.core.types import Row
from evalkit.sources import chabsa, jglue, mawps, mmlu, nli, qa, translation
from evalkit.sources.convert import converter, module_names
from evalkit.sources.pins import pins_of
from evalkit.sources.readers import SourceError
from evalkit.tasks.spec import load_spec, task_names
from tests.sources.helpers import Upstream
from tests.sources.test_archives import tar, zipped


def lines(*records: object) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def test_every_task_names_a_source_and_a_converter() -> None:
    for name in task_names():
        upstream = load_spec(name).upstream.get("1.3.1")
        assert upstream is not None
        assert pins_of(upstream.source)
        assert callable(converter(upstream.converter))


def test_every_converter_is_used() -> None:
    used = {
        upstream.converter for name in task_names() if (upstream := load_spec(name).upstream.get("1.3.1"))
    }
    assert used == set(module_names())


def test_jnli(upstream: Upstream) -> None:
    """Not in the mirror: JSON lines as the JGLUE repository describes them."""
    record = {
        "sentence_pair_id": "0",
        "yjcaptions_id": "1-2-3",
        "sentence1": "二人の男性がジャンボジェット機を見ています。",
    }
    record |= {"sentence2": "2人の男性が、白い飛行機を眺めています。", "label": "entailment"}
    file = upstream.file("train-v1.1.json", lines(record))
    expected = Row(
        "前提：二人の男性がジャンボジェット機を見ています。\n仮説：2人の男性が、白い飛行機を眺めています。",
        "entailment",
    )
    assert jglue.jnli({"pool": [file]}) == {"pool": [[expected]]}


def test_jsquad(upstream: Upstream) -> None:
    """Not in the mirror: SQuAD's layout, the context with its title, the first of several answers."""
    questions = [
        {
            "id": "a1",
            "question": "梅雨とは何季か。",
            "answers": [{"text": "雨季", "answer_start": 9}, {"text": "雨", "answer_start": 9}],
        },
        {"id": "a2", "question": "どこで見られるか。", "answers": [{"text": "東アジア", "answer_start": 0}]},
    ]
    article = {
        "title": "梅雨",
        "paragraphs": [{"context": "梅雨 [SEP] 梅雨は雨季の一種。", "qas": questions}],
    }
    file = upstream.file(
        "train-v1.1.json", json.dumps({"version": "1.1", "data": [article, article | {"paragraphs": []}]})
    )
    assert jglue.jsquad({"pool": [file]}) == {
        "pool": [
            [
                Row("文章：梅雨 [SEP] 梅雨は雨季の一種。\n質問：梅雨とは何季か。", "雨季"),
                Row("文章：梅雨 [SEP] 梅雨は雨季の一種。\n質問：どこで見られるか。", "東アジア"),
            ]
        ]
    }


def test_jcommonsenseqa_and_jsts(upstream: Upstream) -> None:
    choices = {f"choice{number}": text for number, text in enumerate("あいうえお")}
    quiz = upstream.file("q.json", lines({"q_id": 1, "question": "どれ？"} | choices | {"label": 3}))
    assert jglue.jcommonsenseqa({"test": [quiz]}) == {
        "test": [[Row("質問：どれ？\n選択肢：0.あ,1.い,2.う,3.え,4.お", "3")]]
    }
    pair = {"sentence_pair_id": "0", "sentence1": "a", "sentence2": "b", "label": 3.799999952316284}
    pairs = upstream.file("s.json", lines(pair, pair | {"sentence_pair_id": "1", "label": 0.0}))
    assert jglue.jsts({"pool": [pairs]}) == {
        "pool": [[Row("文1：a\n文2：b", "3.799999952316284"), Row("文1：a\n文2：b", "0.0")]]
    }


def test_tables_are_split_at_tabs_and_quotes_are_text(upstream: Upstream) -> None:
    file = upstream.file("jamp.tsv", 'num\tpremise\thypothesis\tgold_label\tx\n1\t"前提\t仮説"\tneutral\tz\n')
    assert nli.jamp({"pool": [file]}) == {"pool": [[Row('前提："前提\n仮説：仮説"', "neutral")]]}


def test_janli_has_its_split_in_the_last_column(upstream: Upstream) -> None:
    head = "\tsentence_A_Ja\tsentence_B_Ja\tentailment_label_Ja\th\tn\ts\tsplit\n"
    table = "0\ta\tb\tentailment\t\t\t\ttrain\n1\tc\td\tnon-entailment\t\t\t\ttest \n"
    assert nli.janli({"all": [upstream.file("janli.tsv", head + table)]}) == {
        "pool": [[Row("前提：a\n仮説：b", "entailment")]],
        "test": [[Row("前提：c\n仮説：d", "non-entailment")]],
    }


def test_jsem_joins_premises_and_drops_judgements_of_acceptability(upstream: Upstream) -> None:
    problem = '<problem answer="{}">{}<h><script> 仮説。\n</script></h></problem>'
    premises = '<p idx="1"><script>\n 一つ目。</script></p><p idx="2"><script>二つ目。 </script></p>'
    kept = [problem.format(answer, premises) for answer in ("yes", "undef")]
    dropped = [problem.format(a, premises) for a in ("", "infelicitous", "unacceptable", "weakacceptable")]
    file = upstream.file("x.xml", f"<jsem-dataset>{''.join(kept + dropped)}</jsem-dataset>")
    text = "前提：一つ目。二つ目。\n仮説：仮説。"
    assert nli.jsem({"all": [file]}) == {"all": [[Row(text, "yes"), Row(text, "undef")]]}


def test_niilc_joins_answers_and_drops_questions_without(upstream: Upstream) -> None:
    question = '<question id="{}"><text> 何？ </text><answers>{}</answers></question>'
    answers = [
        "<answer>4年</answer>",
        "<answer>あ</answer><answer/><answer> い </answer>",
        "<answer>-</answer>",
        "<answer></answer>",
    ]
    body = "".join(question.format(index, answer) for index, answer in enumerate(answers))
    file = upstream.file("n.xml", f"<questions>{body}</questions>")
    (rows,) = qa.niilc({"pool": [file]})["pool"]
    assert rows == [Row("質問：何？", "4年"), Row("質問：何？", "あ,い"), Row("質問：何？", "")]


def test_mawps(upstream: Upstream) -> None:
    example = {"shot_example": "問題：2足す3は？\n解答： 2 + 3 = 5 。よって、答えは5です。\n"}
    question = {"idx": 0, "question": "問題：1足す1は？\n解答：", "answer": "2", "float": 0}
    files = {
        "train": [
            upstream.file("zero.json", json.dumps([example])),
            upstream.file("shot.json", json.dumps([example])),
        ],
        "pool": [upstream.file("test.json", json.dumps([question]))],
    }
    assert mawps.mawps(files) == {
        "train": [[Row("問題：2足す3は？", "5")], [Row("問題：2足す3は？", "5")]],
        "pool": [[Row("問題：1足す1は？", "2")]],
    }


def test_jmmlu_reads_line_ends_in_cells_as_lf(upstream: Upstream) -> None:
    file = upstream.file("a.csv", '\ufeff"一行\r\n二行", い,ろ,"は,に",ほ,C\r\n')
    assert mmlu.jmmlu({"all": [file]}) == {
        "all": [[Row("質問：一行\n二行\n選択肢：A. い,B.ろ,C.は,に,D.ほ", "C")]]
    }


def test_mmlu_keeps_the_misspelling_and_the_order_of_names(upstream: Upstream) -> None:
    folders = ("dev", "val", "test")
    contents = {
        f"data/{folder}/{subject}_{folder}.csv": f'"{subject}, {folder}?\r\n",w,x,y,z,B\n'.encode()
        for folder in folders
        for subject in ("b", "a")
    }
    file = upstream.file("data.tar", tar(contents, "w:"), " ".join(f"data/{f}/*_{f}.csv" for f in folders))
    pools = mmlu.mmlu({"all": [file]})
    assert list(pools) == ["train", "dev", "test"]
    assert pools["dev"] == [
        [Row(f"Qusetion: {subject}, val?\r\n\nChoices: A.w, B.x, C.y, D.z", "B")] for subject in "ab"
    ]


def test_chabsa_writes_one_line_for_each_opinion(upstream: Upstream) -> None:
    opinions = [{"target": "当社", "polarity": "positive"}, {"target": "当社", "polarity": "positive"}]
    sentences = [
        {"sentence_id": 0, "sentence": "増収。", "opinions": opinions},
        {"sentence_id": 1, "sentence": "なし。", "opinions": []},
    ]
    contents = {
        f"c/e{number}_ann.json": json.dumps({"sentences": sentences[: number + 1]}).encode()
        for number in (1, 0)
    }
    file = upstream.file("c.zip", zipped(contents), "c/e*_ann.json")
    row = Row("文章：増収。", "当社 positive\n当社 positive")
    assert chabsa.chabsa({"all": [file]}) == {"all": [[row], [row]]}


ARTICLE = """<?xml version="1.0" encoding="UTF-8"?>
<art orl="ja" trl="en"><tit><j>題</j><e type="check" ver="1">Title</e></tit>
<par id="1">
<sen id="1"><j>甲&乙。</j><e type="trans" ver="1">no</e><e type="check" ver="1">A & B.</e></sen>
<sen id="2"><j>丙。</j><e type="check" ver="1"></e></sen>
<sen id="3"><j>丁。</j><e type="check" ver="1">D.</e><e type="check" ver="2">no</e></sen></par>
<par id="2"><sen id="4"><j>LONG</j><e type="check" ver="1">E</e></sen></par>
<sec><par id="3"><sen id="5"><j>深い。</j><e type="check" ver="1">Deep.</e></sen></par></sec></art>
"""


def test_wiki_corpus_joins_the_sentences_of_a_paragraph(upstream: Upstream) -> None:
    limit = ARTICLE.replace("LONG", "長" * 498), ARTICLE.replace("LONG", "長" * 499)
    stub = '<?xml version="1.0" encoding="UTF-8"?>\n<art orl="ja" trl="en"/>\n'
    contents = {f"w/{name}.xml": text.encode() for name, text in zip("cab", (*limit, stub), strict=True)}
    file = upstream.file("w.tar.gz", tar(contents), "w/*.xml")
    both = Row("A & B. D.", "甲&乙。 丁。")
    assert translation.wiki_corpus_e_to_j({"all": [file]}) == {
        "all": [[both], None, [both, Row("E", "長" * 498)]]
    }
    turned = translation.wiki_corpus_j_to_e({"all": [file]})["all"]
    assert turned[0] == [Row("甲&乙。 丁。", "A & B. D.")] and turned[1] is None


def alt_files(upstream: Upstream, english: str, japanese: str) -> dict[str, list[object]]:
    """ALT is in no mirror: data and lists in the format NICT describes."""
    top = "ALT-Parallel-Corpus-20191206"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{top}/data_en.txt", english)
        archive.writestr(f"{top}/data_ja.txt", japanese)
    return {
        "pairs": [upstream.file("alt.zip", out.getvalue(), f"{top}/data_en.txt {top}/data_ja.txt")],
        "train": [upstream.file("URL-train.txt", "URL.9\thttp://a\nURL.7\thttp://b\nURL.8\thttp://c\n")],
        "dev": [upstream.file("URL-dev.txt", "URL.5\thttp://d\n")],
    }


def test_alt_follows_the_list_of_articles(upstream: Upstream) -> None:
    english = (
        "SNT.7.2\t Two. \nno tab here\nSNT.7.1\tOne.\nSNT.9.4\tFour.\nSNT.9.5\tOnly English.\nSNT.5.6\tSix.\n"
    )
    japanese = f"SNT.7.1\t一。\nSNT.7.2\t二。\nSNT.9.4\t{'四' * 494}\nSNT.5.6\t{'六' * 496}\n"
    files = alt_files(upstream, english, japanese)
    pools = translation.alt_e_to_j(files)  # type: ignore[arg-type]
    assert pools["train"] == [[Row("Four.", "四" * 494), Row("Two.", "二。"), Row("One.", "一。")]]
    assert pools["dev"] == [[]], "500 characters are too many"
    assert translation.alt_j_to_e(files)["train"][0] == [  # type: ignore[arg-type]
        Row("四" * 494, "Four."),
        Row("二。", "Two."),
        Row("一。", "One."),
    ]


def test_alt_refuses_ids_used_twice_and_other_tags(upstream: Upstream) -> None:
    for english in ("SNT.7.1\ta\nSNT.7.1\tb\n", "7.1\ta\n"):
        files = alt_files(upstream, english, "SNT.7.1\ta\n")
        try:
            translation.alt_e_to_j(files)  # type: ignore[arg-type]
        except SourceError as error:
            assert "data_en.txt, line" in str(error) and "alt.zip" in str(error)
        else:
            raise AssertionError(english)
