"""The vocabulary of a GGUF file's tokenizer, and what the metadata say of its tokens; all of it checked.

Types of tokens are those of llama.cpp, which are SentencePiece's: normal, unknown, control (special), user-defined
(never split), unused (a place without a token), byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import TokenType

from fgod.models.architecture import wrong

END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>")
"""Special tokens that end an answer in every model that has them, as llama.cpp has it."""

PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "<|endoftext|>", "<|reserved_special_token_0|>", "<unk>")
"""What pads a batch in models whose file names no token for it, or the one that ends a turn."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and the type of each."""

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]

    @property
    def ids(self) -> dict[str, int]:
        """The id of each token that is one: unused places have none."""
        pairs = zip(self.tokens, self.kinds, strict=True)
        return {token: i for i, (token, kind) in enumerate(pairs) if kind != TokenType.UNUSED}

    def of(self, *kinds: TokenType) -> list[str]:
        """Tokens of some types, by id."""
        return [token for token, kind in zip(self.tokens, self.kinds, strict=True) if kind in kinds]

    @property
    def special(self) -> list[str]:
        """Tokens that no text is parsed as."""
        return self.of(TokenType.CONTROL, TokenType.UNKNOWN)


class TokenizerKeys:
    """Metadata of a tokenizer. Every method raises a UsageError that names file, key, what was found and expected."""

    def __init__(self, metadata: Mapping[str, Any], where: Path) -> None:
        self.metadata, self.where = metadata, where

    def get(self, key: str) -> Any:
        """A value below tokenizer.ggml; None if there is none."""
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def wrong(self, key: str, found: object, expected: str) -> Exception:
        """The error that a key's value is not what it should be."""
        return wrong(self.where, f"tokenizer.ggml.{key}", found, expected)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        found = self.get(key)
        if not isinstance(found, bool | None):
            raise self.wrong(key, found, "true or false")
        return default if found is None else found

    def vocabulary(self) -> Vocabulary:
        """All tokens: each is there once, and has a type."""
        tokens, kinds, seen = self._texts("tokens"), self._numbers("token_type"), dict[str, int]()
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
            if kind != TokenType.UNUSED and seen.setdefault(token, i) != i:
                expected = f"each token once: tokens[{seen[token]}] is the same"
                raise self.wrong(f"tokens[{i}]", token, expected)
        return Vocabulary(tuple(tokens), tuple(kinds))

    def scores(self) -> list[float]:
        """A score for each token."""
        found = self._numbers("scores")
        for i, score in enumerate(found):
            if not isinstance(score, float) or not math.isfinite(score):
                raise self.wrong(f"scores[{i}]", score, "a finite number")
        return found

    def merges(self, ids: Mapping[str, int]) -> list[tuple[str, str]]:
        """Pairs of tokens that become one, first ones first."""
        found = []
        for number, merge in enumerate(self._texts("merges")):
            first, _, second = merge.partition(" ")
            if any(token not in ids for token in (first, second, first + second)):
                expected = "two tokens with a space between, which are one token together"
                raise self.wrong(f"merges[{number}]", merge, expected)
            found.append((first, second))
        return found

    def chat_template(self) -> str:
        """The chat template's source."""
        found = self.metadata.get("tokenizer.chat_template")
        if not isinstance(found, str) or not found.strip():
            raise wrong(self.where, "tokenizer.chat_template", found, "a chat template: expected a model that chats")
        return found

    def named_tokens(self, vocabulary: Vocabulary) -> dict[str, str]:
        """Spellings of the tokens that have a role: bos_token, eos_token, pad_token, unk_token."""
        keys = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
        found = {name: self.token(f"{key}_token_id", vocabulary) for name, key in keys.items()}
        if found["eos_token"] is None:
            raise self.wrong("eos_token_id", None, "the id of the token that ends an answer")
        if found["pad_token"] in (None, found["eos_token"]):
            found["pad_token"] = self._pad(found["eos_token"], vocabulary.special)
        return {name: token for name, token in found.items() if token is not None}

    def token(self, key: str, vocabulary: Vocabulary) -> str | None:
        """The token whose id a key has; None where there is no such key."""
        found = self.get(key)
        if found is None:
            return None
        if not isinstance(found, int) or not 0 <= found < len(vocabulary.tokens):
            raise self.wrong(key, found, f"an id below {len(vocabulary.tokens)}")
        return vocabulary.tokens[found]

    def end_ids(self, vocabulary: Vocabulary) -> tuple[int, ...]:
        """Ids that end an answer: those that the file names, and those that always do."""
        ids, special = vocabulary.ids, vocabulary.special
        named = [self.get(f"{name}_token_id") for name in ("eos", "eot", "eom")]
        spelled = [ids[token] for token in END_TOKENS if token in special]
        return tuple(dict.fromkeys(i for i in (*named, *spelled) if i is not None))

    def _texts(self, key: str) -> list[str]:
        found = self.get(key)
        if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
            raise self.wrong(key, type(found).__name__, "a list of texts")
        return found

    def _numbers(self, key: str) -> list[Any]:
        found, count = self.get(key), len(self._texts("tokens"))
        if not isinstance(found, list) or len(found) != count:
            raise self.wrong(
                key, len(found if isinstance(found, list) else ()), f"a number for each of the {count} tokens"
            )
        return found

    def _pad(self, end: str, special: list[str]) -> str:
        """A token that pads, other than the one that ends a turn: a padded batch must not read as ended answers."""
        usable = [token for token in PAD_TOKENS if token in special and token != end]
        if not usable:
            raise self.wrong("padding_token_id", self.get("padding_token_id"), f"a special token other than {end}")
        return usable[0]
