"""The completion's text, against transformers' own clean-up and hand-worked cases."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from evalkit.engines.local.random_model import byte_tokenizer
from evalkit.engines.local.tokens import CompletionDecoder, clean_up


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A sentencepiece-like tokenizer: `▁` is a space, and the first one of a text is dropped."""
    words = ["</s>", "▁Yes", "▁.", "▁No", "▁,", "▁do", "▁n't", "A:", "\n", "▁'", "▁it", "▁'s", "<0xE6>"]
    words += ["<0x97>", "<0xA5>", "ab\n", "\n\n"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


TOKENIZER = word_tokenizer()


def ids(*words: str) -> list[int]:
    return [TOKENIZER.get_vocab()[word] for word in words]


def test_the_ten_replacements_in_their_order() -> None:
    assert clean_up("a . b ? c ! d , e ' f do n't I 'm it 's I 've we 're") == (
        "a. b? c! d, e'f don't I'm it's I've we're"
    )
    # The comma goes before the lone apostrophe is looked for, so nothing is left for the latter.
    assert clean_up("x ' 's") == "x''s"
    assert clean_up("  ..") == " .."


def test_a_leading_space_is_kept() -> None:
    text = CompletionDecoder(TOKENIZER).decode(ids("A:"), ids("▁Yes"))
    assert (text.text, text.raw_text) == (" Yes", "Yes")


def test_clean_up_works_on_the_whole_text_and_is_cut_at_the_cleaned_prompt() -> None:
    text = CompletionDecoder(TOKENIZER).decode(ids("▁do"), ids("▁n't", "▁,", "▁Yes", "▁."))
    assert text.text == "n't, Yes."
    assert text.raw_text == "n't , Yes ."


def test_special_tokens_are_left_out() -> None:
    assert CompletionDecoder(TOKENIZER).decode(ids("A:"), ids("▁No", "</s>")).text == " No"


@pytest.mark.parametrize(
    ("prompt", "new", "stopped"),
    [
        (["A:"], ["▁Yes"], False),
        (["A:"], ["▁Yes", "\n"], False),
        (["A:"], ["▁Yes", "\n", "\n"], True),
        (["A:"], ["▁Yes", "\n\n"], True),
        (["A:"], ["ab\n", "\n"], True),
        # A special token between the two newlines is no text.
        (["A:"], ["\n", "</s>", "\n"], True),
        # The blank line begins in the prompt: it is not in the completion.
        (["A:", "\n"], ["\n"], False),
        (["A:", "\n"], ["\n", "\n"], True),
    ],
)
def test_a_blank_line_is_found_in_text(prompt: list[str], new: list[str], stopped: bool) -> None:
    assert CompletionDecoder(TOKENIZER).stopped(ids(*prompt), ids(*new), ("\n\n",)) is stopped


def test_a_stop_string_of_a_character_in_three_tokens() -> None:
    decoder = CompletionDecoder(TOKENIZER)
    parts = ids("<0xE6>", "<0x97>", "<0xA5>")
    found = [decoder.stopped(ids("A:"), parts[:end], ("日",)) for end in (1, 2, 3)]
    assert found == [False, False, True]


def test_a_stop_string_ending_in_a_space() -> None:
    tokenizer: Any = byte_tokenizer()
    decoder = CompletionDecoder(tokenizer)
    new = tokenizer("No. ", add_special_tokens=False)["input_ids"]
    found = [decoder.stopped([], new[:end], (". ",)) for end in range(1, len(new) + 1)]
    assert found == [False, False, False, True]


def test_japanese_bytes_come_back_whole() -> None:
    tokenizer: Any = byte_tokenizer()
    prompt = tokenizer("問い:\n")["input_ids"]
    new = tokenizer("富士山 .\n\n次", add_special_tokens=False)["input_ids"]
    assert CompletionDecoder(tokenizer).decode(prompt, new).text == "富士山.\n\n次"
