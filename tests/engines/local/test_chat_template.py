"""Chat templates: what a model may see of them, and one message for those that will not do."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evalkit.core.config import ModelConfig
from evalkit.core.errors import InputError
from evalkit.core.types import Message
from evalkit.engines.local.chat_template import ChatTemplate, choose_template, clock_date, render_chat
from evalkit.engines.local.random_model import byte_tokenizer
from evalkit.engines.local.tokenizer import load_tokenizer
from evalkit.engines.models import resolve
from tests.tiny import save_tiny_model

USER = (Message("user", "1"),)
TALK = (
    Message("system", "規則"),
    Message("user", " 富士山の高さは？\n"),
    Message("assistant", "<think>えっと</think>3776 m"),
    Message("user", "1"),
)
LOOP = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"


def with_template(template: Any) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def nothing_said_before() -> Iterator[None]:
    from evalkit.engines.local import chat_template

    chat_template._warned.clear()
    yield


KEPT = {
    "as it is": LOOP,
    "stripped": LOOP.replace("m['content']", "m['content'] | trim"),
    "without thoughts": LOOP.replace("m['content']", "m['content'].split('</think>')[-1]"),
    "options": LOOP + "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
    "{% if add_generation_prompt %}[a]{% endif %}",
    "macro": "{% macro w(m) %}[{{ m['role'] }}]{{ m['content'] }}{% endmacro %}"
    "{% for m in messages %}{{ w(m) }}{% endfor %}{% for i in range(3) %}{{ i }}{% endfor %}",
    "dated": "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string }}" + LOOP,
}


@pytest.mark.parametrize("name", KEPT)
def test_templates_that_keep_the_words(name: str) -> None:
    """Their text is that of transformers, but for the date."""
    tokenizer = with_template(KEPT[name])
    text = render_chat(TALK, tokenizer)
    fresh = with_template(KEPT[name] + "{# compiled anew #}")
    turns = [{"role": one.role, "content": one.content} for one in TALK]
    usual = fresh.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == ("26 Jul 2024" + usual[len("26 Jul 2024") :] if name == "dated" else usual)


REFUSED = {
    "{{ messages[0]['content'] + 1 }}": "fails: ",
    "{{ messages | length / 0 }}": "fails: division by zero",
    "{{ raise_exception('only French') }}": "only French",
    "{{ nothing.at.all }}": "'nothing' is undefined",
    "{% for m in messages %}": "fails: ",
    "{{ messages | no_such_filter }}": "no_such_filter",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{{ messages.append(1) }}" + LOOP: "fails: ",
    "{{ ''.__class__.__mro__ }}": "fails: ",
    "{{ datetime.now() }}" + LOOP: "'datetime' is undefined",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "count further",
    "{% for i in range(99999) %}{{ 'aaaaaaaaaa' * 9999 }}{% endfor %}": "writes more than",
    "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{{ n.s }}{% endfor %}": (
        "writes more than"
    ),
    "": "no chat template",
    "{{ bos_token }}": "leaves out or changes",
    "Answer 1.": "leaves out or changes",
    LOOP.replace("m['content']", "m['content'] | upper"): "leaves out or changes",
    LOOP.replace("m['content']", "m['content'][:12]"): "leaves out or changes",
    LOOP.replace("m['content']", "m['content'] | e"): "leaves out or changes",
    LOOP.replace("m['content']", "m['content'].split() | join(' ')"): "leaves out or changes",
    "{% for m in messages[1:] %}{{ m['content'] }}{% endfor %}": "leaves out or changes",
    LOOP + "{{ ['a', 'b'] | random }}": "draws at random",
    LOOP + "{{ lipsum(1) }}": "draws at random",
    LOOP + "{{ raise_exception }}": "an address in memory",
}


@pytest.mark.parametrize("template", REFUSED)
def test_templates_that_will_not_do(template: str) -> None:
    with pytest.raises(InputError, match=r"(?i)chat template") as caught:
        render_chat(USER, with_template(template))
    assert REFUSED[template] in caught.value.what
    assert caught.value.where and caught.value.fix and "model.chat_template=" in caught.value.fix
    assert "\n" not in caught.value.what and len(caught.value.what) < 500


def test_all_users_words_count() -> None:
    last = with_template("{{ messages[-1]['content'] }}")
    assert render_chat(USER, last) == "1"
    with pytest.raises(InputError, match="leaves out"):
        render_chat(TALK, last)


USERS_ONLY = "{% for m in messages if m['role'] != 'assistant' %}U: {{ m['content'] }}{% endfor %}A:"


@pytest.mark.parametrize(
    "template",
    [
        USERS_ONLY,
        USERS_ONLY.replace("A:", "A: 3776 m"),
        LOOP.replace("m['content']", "m['content'][:1] if m['role'] == 'assistant' else m['content']"),
        LOOP.replace("in messages", "in messages | sort(attribute='role')"),
    ],
)
def test_the_assistants_turns_count(template: str) -> None:
    assert "1" in render_chat(USER, with_template(template))
    with pytest.raises(InputError, match="what the assistant said before"):
        render_chat(TALK, with_template(template))


def test_what_happens_to_some_answers_only_is_said(caplog: pytest.LogCaptureFixture) -> None:
    cut = LOOP.replace("m['content']", "m['content'][:50] if m['role'] == 'assistant' else m['content']")
    for _ in range(2):
        render_chat((*USER, Message("assistant", "あ" * 60), *USER), with_template(cut))
    assert [record.message for record in caplog.records] == [
        "the chat template changes what the assistant said before (the tokenizer's chat template)"
    ]


@pytest.mark.parametrize("end", ["{{ eos_token }}", "{{ eos_token }}\n", "{{ pad_token * 2 }}"])
def test_a_prompt_that_ends_in_eos_is_said(caplog: pytest.LogCaptureFixture, end: str) -> None:
    tokenizer = with_template(LOOP.replace("m['content'] }}", "m['content'] }}" + end))
    render_chat(TALK, tokenizer)
    render_chat(USER, tokenizer)
    (record,) = caplog.records
    token = tokenizer.pad_token if "pad" in end else tokenizer.eos_token
    assert f"puts {token} behind the prompt" in record.message
    caplog.clear()
    render_chat(TALK, with_template(tokenizer.chat_template + "A:"))
    assert not caplog.records


def test_a_tokenizer_that_is_never_the_same() -> None:
    class Restless:
        chat_template, count = LOOP, 0

        def apply_chat_template(self, turns: Any, **_: Any) -> str:
            self.count += 1
            return f"{self.count}: {turns[0]['content']}"

    with pytest.raises(InputError, match="another text each time"):
        render_chat(USER, Restless())


def test_the_details_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "evalkit"), pytest.raises(InputError):
        render_chat(USER, with_template("{{ messages | length / 0 }}"))
    assert "ZeroDivisionError" in caplog.text


def test_a_lost_system_message_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = with_template(LOOP.replace("in messages", "in messages if m['role'] != 'system'"))
    for _ in range(3):
        render_chat((TALK[0], *USER), tokenizer)
    assert [record.message for record in caplog.records] == [
        "the chat template leaves out the text of the system message (the tokenizer's chat template)"
    ]


def loaded(folder: Path, **options: Any) -> Any:
    return load_tokenizer(resolve(ModelConfig(path=str(folder), **options), offline=True))


def copy_of(folder: Path, target: Path, template: Any) -> Path:
    import json
    import shutil

    shutil.copytree(folder, target)
    (target / "chat_template.jinja").unlink()
    path = target / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": template}
    path.write_text(json.dumps(content), encoding="utf-8")
    return target


def test_a_message_names_the_file(folder: Path, tmp_path: Path) -> None:
    broken = "{{ 1 / 0 }}"
    own = copy_of(folder, tmp_path / "config", broken)
    with pytest.raises(InputError) as caught:
        render_chat(USER, loaded(own))
    assert caught.value.where == str(own / "tokenizer_config.json")
    (own / "chat_template.jinja").write_text(broken, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        render_chat(USER, loaded(own))
    assert caught.value.where == str(own / "chat_template.jinja")
    given = tmp_path / "given.jinja"
    given.write_text(broken, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        render_chat(USER, loaded(folder, chat_template=str(given)))
    assert caught.value.where == f"option model.chat_template={given}"


def test_templates_with_names(folder: Path, tmp_path: Path) -> None:
    """The default counts; without one a name chooses, and identifies the run like its text."""
    named = [{"name": "chat", "template": LOOP}, {"name": "rag", "template": LOOP + "資料"}]
    model = copy_of(folder, tmp_path / "named", named)
    with pytest.raises(InputError, match="chat, rag") as caught:
        render_chat(USER, loaded(model))
    assert caught.value.where == str(model / "tokenizer_config.json")
    assert "model.chat_template=chat" in str(caught.value.fix)
    assert render_chat(USER, loaded(model, chat_template="rag")) == "<s>[user]1資料"
    with pytest.raises(InputError, match=r"neither a file nor .* chat, rag"):
        loaded(model, chat_template="none")
    by_name = resolve(ModelConfig(path=str(model), chat_template="rag"), offline=True)
    by_text = resolve(ModelConfig(path=str(model), chat_template=LOOP + "資料"), offline=True)
    assert by_name.identity == by_text.identity
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "more.jinja").write_text(LOOP + "!", encoding="utf-8")
    assert render_chat(USER, loaded(model, chat_template="more")) == "<s>[user]1!"
    usual = copy_of(folder, tmp_path / "usual", [{"name": "default", "template": LOOP}, named[1]])
    assert render_chat(USER, loaded(usual)) == "<s>[user]1"


def test_a_clock_shows_one_date(folder: Path) -> None:
    template = "{{ strftime_now('%Y-%m-%d %H:%M') }}" + LOOP
    usual = loaded(folder, chat_template=template)
    other = loaded(folder, chat_template=template, template_date="2025-12-01")
    for _ in range(2):
        assert render_chat(USER, usual).startswith("2024-07-26 00:00")
        assert render_chat(USER, other).startswith("2025-12-01 00:00")
    assert (clock_date(usual), clock_date(other)) == ("2024-07-26", "2025-12-01")
    assert clock_date(loaded(folder, template_date="2025-12-01")) is None
    with pytest.raises(InputError, match="not a date"):
        loaded(folder, template_date="tomorrow")


def test_a_template_travels() -> None:
    import copy
    import pickle

    template = ChatTemplate(LOOP, "here", "2025-01-01")
    for other in (copy.deepcopy(template), pickle.loads(pickle.dumps(template))):
        assert (other, other.where, other.date) == (template, "here", "2025-01-01")
    assert choose_template(ModelConfig(), None, None) is None
