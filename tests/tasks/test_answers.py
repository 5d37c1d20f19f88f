"""Thought and answer: llm-jp's own parser's goldens, each rule and status, the page's examples, bad input."""

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evalkit import split_answer
from evalkit.core.errors import InputError
from evalkit.tasks.answers import RULES, check_rule, choose_rule, later_tags, opens_thought
from evalkit.tasks.harmony import read_harmony

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = [
    json.loads(line)
    for line in (ROOT / "tests/goldens/reasoning/harmony.jsonl").read_text(encoding="utf-8").splitlines()
]
PIECES = (
    "<think>",
    "</think>",
    "<thinking>",
    "</REASON>",
    "<th",
    "ink>",
    " ",
    "\n",
    "\r\n",
    "答え",
    "考える",
    "a",
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
FOREIGN = ("lm-eval", "lighteval", "flexeval", "swallow", "shaberi")
PATTERN = "(?P<thought>.*)最終回答:(?P<answer>.*)"


def answer(text: str | None, rule: str, **options: object) -> str:
    return split_answer(text, rule, **options).answer  # type: ignore[arg-type]


# --- harmony -------------------------------------------------------------------------------------


def test_the_goldens_are_all_there() -> None:
    assert len(GOLDENS) == 389


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden["case"])
def test_harmony_is_read_as_llm_jp_reads_it(golden: dict[str, str | None]) -> None:
    text = golden["text"]
    assert text is not None
    read = read_harmony(text)
    assert (read.thought, read.answer) == (golden["thought"], golden["answer"])
    thought, answer, status = split_answer(text, "harmony")
    assert thought == (None if golden["thought"] is None else golden["thought"].strip())
    assert answer == ("" if read.calls_tool else (golden["answer"] or "").strip())
    if answer:
        assert status == ("no_thought" if thought is None else "answered")
    else:
        assert status in ("unclosed", "empty", "tool_call")


@pytest.mark.parametrize(
    ("text", "finish", "thought", "answer", "status"),
    [
        ("<|channel|>analysis<|message|>考え", "length", "考え", "", "unclosed"),
        ("<|channel|>analysis<|message|>考え<|end|>", "stop", "考え", "", "unclosed"),
        ("<|channel|>ana", "length", None, "", "unclosed"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>fin",
            "length",
            "a",
            "",
            "unclosed",
        ),
        ("<|channel|>final<|message|>\n答え\n", "stop", None, "答え", "no_thought"),
        ("<|channel|>final<|message|>答", "length", None, "答", "cut_off"),
        # The answer has ended; what the length cut is the thought after it.
        (
            "<|channel|>final<|message|>b<|end|><|channel|>analysis<|message|>c",
            "length",
            "c",
            "b",
            "answered",
        ),
        ("<|channel|>final<|message|> <|return|>", "stop", None, "", "empty"),
        ("<|channel|>final<|message|>", "length", None, "", "cut_off"),
        ("<|channel|>final<|message|><|return|>", "length", None, "", "empty"),
        ("<|channel|>commentary to=functions.f<|message|>{}<|call|>", "stop", None, "", "tool_call"),
        # Half a marker is text: special tokens are decoded whole.
        ("<|channel|>final<|message|>答え<|retu", "stop", None, "答え<|retu", "no_thought"),
        (
            "<|channel|>analysis<|message|>x<|end|>\r\n<|channel|>final<|message|>y\r\n",
            None,
            "x",
            "y",
            "answered",
        ),
    ],
)
def test_harmony_statuses(
    text: str, finish: str | None, thought: str | None, answer: str, status: str
) -> None:
    assert split_answer(text, "harmony", finish_reason=finish) == (thought, answer, status)


def test_harmony_goes_on_in_a_thought_that_the_prompt_opened() -> None:
    text = "考える<|end|><|start|>assistant<|channel|>final<|message|>答え<|return|>"
    assert split_answer(text, "harmony", open_thought=True) == ("考える", "答え", "answered")
    assert split_answer("analysis", "harmony", open_thought=True) == ("analysis", "", "unclosed")


@pytest.mark.parametrize("text", ["analysisWe need toassistantfinal答え", "\nassistantfinal答え", "analysis"])
def test_harmony_without_its_special_tokens_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="special tokens") as error:
        split_answer(text, "harmony")
    assert error.value.where and error.value.fix
    assert split_answer("The analysis shows 4", "harmony").status == "no_thought"
    assert split_answer("analysis<|end|>", "harmony").status == "no_thought"


# --- think ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "thought", "answer", "status", "later"),
    [
        ("<think>a</think>b", "a", "b", "answered", 0),
        (" \r\n<think>\r\na\r\n</think>\r\n\r\nb\r\nc\r\n", "a", "b\r\nc", "answered", 0),
        ("　<think>考える\n\n続き</think>答え", "考える\n\n続き", "答え", "answered", 0),
        ("<think></think>b", "", "b", "answered", 0),
        ("a</think>b", "a", "b", "answered", 0),
        ("</think>b", "", "b", "answered", 0),
        ("a</think>b</think>c", "a", "b</think>c", "answered", 1),
        ("a</think>b<think>c</think>d", "a", "b<think>c</think>d", "answered", 2),
        ("<think>a<think>b</think>c</think>d", "a<think>b", "c</think>d", "answered", 1),
        ("<think>a</think>b<think>c</think>d", "a", "b<think>c</think>d", "answered", 2),
        ("<think>a", "a", "", "unclosed", 0),
        ("<think>", "", "", "unclosed", 0),
        ("<think>a</thi", "a</thi", "", "unclosed", 0),
        ("<think>a</think>", "a", "", "empty", 0),
        ("<think>a</think> \n", "a", "", "empty", 0),
        ("user <think>a</think>b", None, "user <think>a</think>b", "late_thought", 2),
        ("user <think>a", None, "user <think>a", "late_thought", 1),
        ("b\n", None, "b", "no_thought", 0),
        ("<THINK>a</THINK>b", None, "<THINK>a</THINK>b", "no_thought", 0),
        ("<thi", None, "<thi", "no_thought", 0),
        ("", None, "", "empty", 0),
        (" \n", None, "", "empty", 0),
        (None, None, "", "empty", 0),
    ],
)
def test_think(text: str | None, thought: str | None, answer: str, status: str, later: int) -> None:
    found = split_answer(text, "think")
    assert found == (thought, answer, status)
    assert found == split_answer(text, "think", finish_reason="stop")
    assert later_tags(found.answer, "think") == later


@pytest.mark.parametrize(
    ("text", "thought", "answer", "status"),
    [
        ("a</think>b", "a", "b", "answered"),
        ("\n<think>a</think>b", "a", "b", "answered"),
        ("a <think>c</think>b", "a <think>c", "b", "answered"),
        ("a", "a", "", "unclosed"),
        ("", "", "", "unclosed"),
        (None, "", "", "unclosed"),
        ("</think>", "", "", "empty"),
    ],
)
def test_think_in_a_thought_that_the_prompt_opened(
    text: str | None, thought: str, answer: str, status: str
) -> None:
    for finish in ("stop", None):
        found = split_answer(text, "think", open_thought=True, finish_reason=finish)
        assert found == (thought, answer, status)


def test_tags_of_ones_own() -> None:
    tags = {"start": "[THINK]", "end": "[/THINK]"}
    assert split_answer("[THINK]a[/THINK]b", "think", **tags) == ("a", "b", "answered")
    assert split_answer("[THINK]<think>a", "think", **tags).status == "unclosed"
    assert split_answer("<think>a</think>b", "think", **tags).status == "no_thought"
    assert answer("[THINK]a[/THINK] b", "lm-eval", **tags) == "b"
    assert answer("x[THINK]a[/THINK] b", "lighteval", **tags) == "x b"
    assert answer("[THINK]a[/THINK] b", "flexeval", **tags) == " b"
    assert answer("[THINK]a[/THINK]", "swallow", **tags) == "a"
    same = {"start": "---", "end": "---"}
    assert split_answer("---a---b", "think", **same) == ("a", "b", "answered")
    assert split_answer("a---b", "think", **same).status == "late_thought"


@given(TEXTS, st.booleans())
@example("<think><think></think>", False)
@example("<th ink></think>", False)
def test_think_loses_nothing_and_answers_only_behind_the_thought(text: str, opened: bool) -> None:
    thought, answer, status = split_answer(text, "think", open_thought=opened)
    if thought is None:
        assert answer == text.strip() and not opened
        assert not text.lstrip().startswith("<think>")
    else:
        squeezed = "".join(text.lstrip().removeprefix("<think>").split())
        close = "" if status == "unclosed" else "</think>"
        assert "".join((thought + close + answer).split()) == squeezed
        assert "</think>" not in thought
    assert (status == "unclosed") == (thought is not None and "</think>" not in text)


# --- length --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule", "status"),
    [
        ("<think>a</think>b", "think", "cut_off"),
        ("<think>a</think>", "think", "cut_off"),
        ("b", "think", "cut_off"),
        ("user <think>", "think", "cut_off"),
        ("<think>b", "think", "unclosed"),
        ("b", "none", "cut_off"),
        ("<think>a</think>b", "lm-eval", "cut_off"),
        ("<think>b", "lm-eval", "unclosed"),
        ("a最終回答:b", "regex", "cut_off"),
    ],
)
def test_an_answer_that_ended_by_length_is_cut_off(text: str, rule: str, status: str) -> None:
    pattern = PATTERN if rule == "regex" else None
    assert split_answer(text, rule, pattern=pattern, finish_reason="length").status == status


@pytest.mark.parametrize("rule", ["none", "think", "lm-eval", "lighteval"])
def test_an_answer_with_a_stop_string_did_not_end_by_length(rule: str) -> None:
    for stop in ("\n\n", ["", "\n\n"]):
        found = split_answer("<think>a\n\nb</think>c\n\nd", rule, stop=stop, finish_reason="length")
        assert found.status == ("no_thought" if rule == "none" else "answered")
    for stop in ("", ["\n\n\n"]):
        found = split_answer("<think>a\n\nb</think>c\n\nd", rule, stop=stop, finish_reason="length")
        assert found.status == "cut_off"


# --- regex ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text", "thought", "answer", "status"),
    [
        (PATTERN, "考え\n続き\n最終回答: 4 \n", "考え\n続き", "4", "answered"),
        ("最終回答:(.*)", "考え最終回答:4", None, "4", "answered"),
        ("(.*?)最終回答:(.*)", "考え最終回答:4", "考え", "4", "answered"),
        ("<a>(?P<reasoning_content>.*?)</a>(?P<content>.*)", "<a>x</a>y", "x", "y", "answered"),
        (PATTERN, "4", None, "4", "no_thought"),
        (PATTERN, "<think>4", "4", "", "unclosed"),
        (PATTERN, "a</think>4", None, "a</think>4", "no_thought"),
        (PATTERN, "考え最終回答:", "考え", "", "empty"),
        ("a(?P<answer>b)?", "a", None, "", "empty"),
        (r"(\p{Han}+):(.*)", "答:4", "答", "4", "answered"),
    ],
)
def test_regex(pattern: str, text: str, thought: str | None, answer: str, status: str) -> None:
    assert split_answer(text, "regex", pattern=pattern) == (thought, answer, status)


def test_regex_without_a_match_in_a_thought_that_the_prompt_opened() -> None:
    found = split_answer("考え", "regex", pattern=PATTERN, open_thought=True)
    assert found == ("考え", "", "unclosed")


def test_a_pattern_that_needs_exponential_time_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalkit.tasks.answers._SECONDS", 0.2)
    begun = time.process_time()
    with pytest.raises(InputError, match="takes more than") as error:
        split_answer("a" * 60 + "b", "regex", pattern="(?P<answer>(a|aa)+)c")
    assert time.process_time() - begun < 5
    assert "(a|aa)+" in str(error.value.where) and error.value.fix


# --- the rules of other harnesses ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        # In the order of FOREIGN.
        ("<think>a</think>\nb", ("b", "\nb", "\nb", "\nb", "\nb")),
        ("<think>a</think>", ("", "", "", "a", "")),
        (" <think>a", ("<think>a", " <think>a", "", " <think>a", " <think>a")),
        ("a</think> b", ("b", "a</think> b", "", "a</think> b", "a</think> b")),
        ("<think>a</think>b<think>c</think>d", ("d", "bd", "b<think>c</think>d", "b<think>c</think>d", "bd")),
        ("<think>a<think>b</think>c</think>d", ("d", "c</think>d", "c</think>d", "c</think>d", "c</think>d")),
        (
            "<th<think>a</think>ink>b</think>c",
            ("c", "c", "ink>b</think>c", "ink>b</think>c", "<think>b</think>c"),
        ),
        ("</think><think>a</think>b", ("b", "</think>b", "b", "b", "</think>b")),
        ("<Thinking>a</REASON>b", ("<Thinking>a</REASON>b",) * 2 + ("", "<Thinking>a</REASON>b", "b")),
        ("b", ("b", "b", "", "b", "b")),
        ("", ("", "", "", "", "")),
    ],
)
def test_what_other_harnesses_grade(text: str, answers: tuple[str, ...]) -> None:
    assert tuple(answer(text, rule) for rule in FOREIGN) == answers


def test_lm_eval_cuts_at_each_stop_string_in_turn() -> None:
    text = "<think>a\n\nb</think>\n\nc Q: d\n\ne"
    assert answer(text, "lm-eval", stop=["\n\n", "", "Q:"]) == "c "
    assert answer(text, "lm-eval", stop="Q:") == "c "
    assert answer("Q: d", "lm-eval", stop=("Q:",)) == ""
    assert answer(text, "lighteval", stop=("Q:",)) == "\n\nc Q: d\n\ne"


def test_flexeval_takes_a_pattern_of_ones_own() -> None:
    pattern = "(?P<reasoning_content>.*)答え:(?P<content>.*)"
    assert split_answer("a答え: 4", "flexeval", pattern=pattern) == ("a", " 4", "answered")
    assert split_answer("4", "flexeval", pattern=pattern) == (None, "", "empty")


@pytest.mark.parametrize(
    ("text", "statuses"),
    [
        ("<think>a</think>b", ("answered",) * 5),
        ("<think>a", ("unclosed",) * 5),
        ("b <think>a", ("late_thought", "late_thought", "empty", "late_thought", "late_thought")),
        ("a</think>b", ("answered", "no_thought", "empty", "no_thought", "no_thought")),
        ("<think>a</think>", ("empty",) * 5),
        ("b", ("no_thought", "no_thought", "empty", "no_thought", "no_thought")),
    ],
)
def test_statuses_of_the_other_rules(text: str, statuses: tuple[str, ...]) -> None:
    assert tuple(split_answer(text, rule).status for rule in FOREIGN) == statuses


def test_the_other_rules_know_a_thought_that_the_prompt_opened() -> None:
    assert split_answer("a", "lm-eval", open_thought=True) == (None, "a", "unclosed")
    assert split_answer("a</think>b", "lm-eval", open_thought=True) == ("a", "b", "answered")


@given(TEXTS)
def test_the_other_rules_do_as_their_definitions_say(text: str) -> None:
    """Each definition in its own words: the regular expressions and splits the notes give."""
    pair = re.search("<think>(.*?)</think>(.*)", text, re.DOTALL)
    named = "think|thinking|reason"
    expected = {
        "lm-eval": text.split("</think>")[-1].lstrip(),
        "flexeval": pair[2] if pair else "",
        "swallow": (pair[2] or pair[1]) if pair else text,
        "shaberi": re.sub(f"<({named})>.*?</({named})>", "", text, flags=re.DOTALL | re.IGNORECASE),
    }
    rest = text
    while found := re.search("<think>.*?</think>", rest, re.DOTALL):
        rest = rest[: found.start()] + rest[found.end() :]
    expected["lighteval"] = rest
    assert {rule: answer(text, rule) for rule in FOREIGN} == expected


# --- all rules -----------------------------------------------------------------------------------


def test_long_texts_with_many_tags_take_no_long_time() -> None:
    texts = [
        "<think>" * 20_000,
        "</think>" * 20_000,
        "<think>a</think>" * 10_000,
        "<|start|><|channel|>" * 20_000,
    ]
    begun = time.process_time()
    for text in texts:
        for rule in RULES:
            split_answer(text, rule, pattern=PATTERN if rule == "regex" else None)
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_takes_any_text(rule: str) -> None:
    generator = random.Random(0)
    pieces = (*PIECES, "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "final", "\ud83d", "最終回答:")
    for _ in range(300):
        text = "".join(generator.choices(pieces, k=generator.randrange(10)))
        found = split_answer(text, rule, pattern=PATTERN if rule == "regex" else None)
        assert isinstance(found.answer, str) and found == tuple(found)
        assert found.status in ("unclosed", "empty", "tool_call") or found.answer.strip()
        assert found.status != "answered" or found.thought is not None


def test_none_leaves_the_text_alone() -> None:
    text = " <think>a</think> b\n"
    assert split_answer(text, "none") == (None, text, "no_thought")
    assert later_tags(text, "none") == 0


def test_later_tags_count_those_of_the_rule() -> None:
    assert later_tags("<Reason>a</think>", "shaberi") == 2
    assert later_tags("a<|start|>b<|message|>", "harmony") == 2
    assert later_tags("[T]<think>", "think", start="[T]", end="[/T]") == 1


# --- the rule of a model -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        (None, "none"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "none"),
        ("{{ content.split('</think>')[-1] }}<|im_start|>assistant\n", "think"),
        ("{{ '<think>\n' }}", "think"),
        ("{{ '<|start|>assistant<|channel|>final<|message|>' }}", "harmony"),
        ("do not write <|channel|> or <think>: '<|message|>'", "harmony"),
        ("[THINK]", "none"),
    ],
)
def test_auto_reads_the_template(template: str | None, rule: str) -> None:
    assert choose_rule(template) == rule


def test_auto_knows_tags_of_ones_own() -> None:
    assert choose_rule("{{ '[THINK]' }}", start="[THINK]", end="[/THINK]") == "think"


@pytest.mark.parametrize(
    ("prompt", "rule", "is_open"),
    [
        ("<|im_start|>assistant\n<think>\n", "think", True),
        ("<|im_start|>assistant\n<think>", "lm-eval", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "think", False),
        ("What is <think>?<|im_start|>assistant\n", "think", False),
        ("<|im_start|>assistant\n<think>\n", "none", False),
        ("", "think", False),
        ("<|start|>assistant", "harmony", False),
        ("<|start|>assistant<|channel|>analysis<|message|>", "harmony", True),
        ("<|start|>assistant<|channel|>analysis<|message|>so", "harmony", True),
        ("<|start|>assistant<|channel|>final<|message|>", "harmony", False),
        ("<|start|>assistant<|channel|>analysis<|message|>a<|end|>", "harmony", False),
        ("<|start|>assistant<|channel|>analysis<|message|>a<|end|><|start|>assistant", "harmony", False),
        ("<|start|>assistant<|channel|>analysis", "harmony", False),
    ],
)
def test_whether_a_prompt_ends_in_a_thought(prompt: str, rule: str, is_open: bool) -> None:
    assert opens_thought(prompt, rule) is is_open


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "options", "where", "fix"),
    [
        ("thinks", {}, "reasoning.parser", "did you mean 'think'"),
        ("", {}, "reasoning.parser", "one of none, think"),
        ("auto", {}, "reasoning.parser", "choose_rule"),
        ("think", {"end": ""}, "reasoning.end", "</think>"),
        ("think", {"start": ""}, "reasoning.start", "<think>"),
        ("harmony", {"start": "[T]"}, "reasoning.start", "leave it out"),
        ("shaberi", {"end": "[/T]"}, "reasoning.end", "leave it out"),
        ("think", {"pattern": "(.*)"}, "reasoning.pattern", "reasoning.parser=regex"),
        ("regex", {}, "reasoning.pattern", "(?P<answer>.*)"),
        ("regex", {"pattern": ""}, "reasoning.pattern", "(?P<answer>.*)"),
        ("regex", {"pattern": "(a"}, "reasoning.pattern=(a", "syntax"),
        ("regex", {"pattern": "a"}, "reasoning.pattern=a", "(?P<answer>.*)"),
        ("regex", {"pattern": "(a)(b)(c)"}, "reasoning.pattern", "(?P<answer>.*)"),
        ("regex", {"pattern": "(?P<anwser>a)"}, "reasoning.pattern", "(?P<answer>.*)"),
        ("flexeval", {"pattern": "(?P<reasoning_content>a)"}, "reasoning.pattern", "(?P<answer>.*)"),
    ],
)
def test_bad_options_are_one_message(rule: str, options: dict[str, str], where: str, fix: str) -> None:
    for call in (check_rule, lambda rule, **options: split_answer("a", rule, **options)):
        with pytest.raises(InputError) as error:
            call(rule, **options)
        assert where in str(error.value.where) and fix in str(error.value.fix)
        assert "\n" not in error.value.what


# --- the package and the page --------------------------------------------------------------------


def test_it_is_there_without_torch() -> None:
    code = (
        "import sys, evalkit; assert 'evalkit.tasks' not in sys.modules\n"
        "assert evalkit.split_answer('<think>a</think>b', 'think').answer == 'b'\n"
        "assert not {'torch', 'transformers', 'numpy', 'regex', 'omegaconf'} & set(sys.modules)\n"
        "assert not hasattr(evalkit, 'split')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_examples_of_the_page_are_what_comes_out() -> None:
    page = (ROOT / "docs" / "thinking.md").read_text(encoding="utf-8")
    statuses = page.split("## Statuses")[1].split("\n## ")[0]
    shown = {}
    for line in statuses.splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 7 and cells[0].startswith("`"):
            status, _, rule, text, finish, thought, answer = (cell.strip("`") for cell in cells)
            given = split_answer(text.replace("\\n", "\n"), rule, finish_reason=finish)
            expected = (None if thought == "none" else thought, "" if answer == "empty" else answer, status)
            assert given == expected
            shown[status] = given
    assert list(shown) == [
        *("answered", "no_thought", "late_thought", "unclosed", "empty", "cut_off", "tool_call")
    ]
    assert re.findall(r"^\| `([\w-]+)` \|", page.split("## Rules")[1].split("## Statuses")[0], re.M) == list(
        RULES
    )
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert (names["thought"], names["answer"], names["status"]) == ("2+2 is 4.", "4", "answered")
