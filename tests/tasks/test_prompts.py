import pytest

from evalkit.core.config import ProtocolConfig
from evalkit.core.errors import InputError
from evalkit.core.types import Sample
from evalkit.tasks.load import Task
from evalkit.tasks.prompts import Asking, PromptTemplate
from evalkit.tasks.spec import load_spec

# Written out by hand from the protocol's description of the prompt.
EXPECTED = """\
以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。

### 指示:
計算してください。

### 入力:
1+1

### 応答:
2

### 入力:
2+3

### 応答:
5

### 入力:
4+4

### 応答:
"""

SHOTS = (Sample("t/train/0", "1+1", "2"), Sample("t/train/1", "2+3", "5"))


def test_the_default_prompt() -> None:
    assert PromptTemplate().render("計算してください。", SHOTS, "4+4") == EXPECTED


def test_without_few_shots() -> None:
    prompt = PromptTemplate().render("計算してください。", (), "4+4")
    assert prompt == EXPECTED[: EXPECTED.index("\n\n### 入力:")] + "\n\n### 入力:\n4+4\n\n### 応答:\n"


def test_braces_in_the_data_are_data() -> None:
    shots = (Sample("t/train/0", "{input}", "{output}{instruction}"),)
    prompt = PromptTemplate().render("{few_shots_text}", shots, "{input}{")
    assert "### 指示:\n{few_shots_text}\n" in prompt
    assert "### 入力:\n{input}\n\n### 応答:\n{output}{instruction}\n" in prompt
    assert prompt.endswith("### 入力:\n{input}{\n\n### 応答:\n")


def test_custom_templates() -> None:
    own = ProtocolConfig(custom_prompt_template="{instruction}|{few_shots_text}|{input}")
    assert PromptTemplate.of(own).render("I", SHOTS[:1], "x") == "I|\n\n### 入力:\n1+1\n\n### 応答:\n2|x"
    own.custom_fewshots_template = "<{input}={output}>"
    assert PromptTemplate.of(own).render("I", SHOTS, "x") == "I|<1+1=2><2+3=5>|x"


def test_a_template_without_a_place_for_the_input_is_refused() -> None:
    with pytest.raises(InputError, match="custom_prompt_template"):
        PromptTemplate.of(ProtocolConfig(custom_prompt_template="{instruction}"))


def test_requests_carry_the_protocol() -> None:
    task = Task(load_spec("mawps"), SHOTS, (Sample("t/dev/0", "4+4", "8"),), {})
    (request,) = Asking().requests(task)
    assert (request.id, request.max_new_tokens, request.stop) == ("t/dev/0", 10, ("\n\n",))
    assert not request.sampling.do_sample
    assert isinstance(request.prompt, str) and request.prompt.endswith("### 入力:\n4+4\n\n### 応答:\n")
