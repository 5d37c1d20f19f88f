"""Token ids -> the completion's text, by the protocol's decoding rule.

Source: section 1 ("Tokens and generation") of the llm-jp-eval v1.3.1 protocol.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from evalkit.text import unicode_text

# In this order: what the text-generation pipeline's clean-up replaces.
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
# A token that holds part of a character decodes to this on its own.
_BROKEN = "\ufffd"
# Tokens decoded beyond the length of the longest stop string when one is looked for.
_MARGIN = 8


def clean_up(text: str) -> str:
    """The text with the pipeline's tokenization spaces taken out."""
    for old, new in CLEAN_UP:
        text = text.replace(old, new)
    return text


class DecodedText(NamedTuple):
    """A completion's text by the protocol's rule, and the plain decoding of its new tokens."""

    text: str
    raw_text: str


class CompletionDecoder:
    """Decodes completions of one tokenizer.

    The rule: clean_up(decode(prompt + new)) without its first len(clean_up(decode(prompt)))
    characters, special tokens left out. Decoding the new ids alone could lose a leading space.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def decode(self, prompt: Sequence[int], new: Sequence[int]) -> DecodedText:
        """The text of `new` (without EOS) as the continuation of `prompt`."""
        before = clean_up(self._plain(prompt))
        whole = clean_up(self._plain([*prompt, *new]))
        return DecodedText(whole[len(before) :], self._plain(new))

    def stopped(self, prompt: Sequence[int], new: Sequence[int], stops: Sequence[str]) -> bool:
        """Whether the text of `new` contains one of `stops`, given that it did not one token before.

        Most tokens cannot complete a stop string and cost one look-up; for the others the tail is
        decoded, and only a tail that contains the string is decoded by the rule.
        """
        if not stops or not new or not any(self._may_complete(new[-1], stop) for stop in stops):
            return False
        length = max(map(len, stops)) + _MARGIN
        tail = [*prompt[-length:], *new][-2 * length :]
        if not any(stop in self._plain(tail) for stop in stops):
            return False
        text = self.decode(prompt, new).text
        return any(stop in text for stop in stops)

    def _may_complete(self, token: int, stop: str) -> bool:
        # Decoders strip and add spaces by context, so only other last characters tell anything.
        if stop[-1] == " ":
            return True
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._plain([token])
        return stop[-1] in piece or _BROKEN in piece

    def _plain(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        # A tokenizer written in Python may give half a character for the bytes of one that was cut.
        return unicode_text(text)
