"""Text of tokens as they come. A character is shown once all of its bytes are there."""

from __future__ import annotations

from typing import cast

from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"
"""What bytes decode to that are no character, or not one yet."""


class Stream:
    """What a growing list of tokens spells, piece by piece; the pieces together are the text of all of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0
        self._before = 0
        """Where the last piece begins: what follows is decoded beside it, as a tokenizer may join words by blanks."""

    def add(self, token: int) -> str:
        """The text that this token completes; empty while the last character lacks bytes."""
        self._ids.append(token)
        return self._new(hold=True)

    def rest(self) -> str:
        """What was held back, as it stands."""
        return self._new(hold=False)

    def _new(self, hold: bool) -> str:
        before, whole = self._text(self._before, self._shown), self._text(self._before, len(self._ids))
        if hold and whole.endswith(BROKEN):
            return ""
        self._before, self._shown = self._shown, len(self._ids)
        return whole[len(before) :]

    def _text(self, start: int, end: int) -> str:
        return cast(str, self._tokenizer.decode(self._ids[start:end], skip_special_tokens=False))
