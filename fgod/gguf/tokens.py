"""The tokenizer of a model folder as metadata of a GGUF file: the way back of `fgod.importing.gguf_tokenizer`.

Metadata have a name for how a byte-level BPE cuts texts, and scores for a SentencePiece BPE. What they cannot say, and
llama.cpp so would encode otherwise, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf.constants import TokenType

from fgod.chat import DEFAULT
from fgod.errors import UsageError
from fgod.importing.gguf_sentencepiece import SPACE, merges_of
from fgod.importing.gguf_tokenizer import PRE_TOKENIZERS, PreTokenizer
from fgod.model.chats import ChatFormat
from fgod.model.template import Shape

Keys = dict[str, Any]
"""Metadata below tokenizer.ggml."""

ROLES = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding", "unk_token_id": "unknown"}
"""Attributes of transformers' tokenizers, and what llama.cpp calls them."""


def tokenizer_keys(chat: ChatFormat, vocab: int, where: Path) -> Keys:
    """What stands below tokenizer.ggml.

    Args:
        vocab: rows of the embedding: places that no token has are unused.
        where: the tokenizer's file, for messages.

    Raises:
        UsageError: metadata cannot say what the tokenizer does; names the file.
    """
    stored: dict[str, Any] = json.loads(chat.tokenizer.backend_tokenizer.to_str())
    _check(stored, where)
    made = _sentencepiece if stored["model"]["byte_fallback"] else _byte_level
    return made(stored, vocab, where) | _roles(chat)


def _wrong(where: Path, key: str, found: object, expected: str) -> UsageError:
    return UsageError(f"{where}: {key}: found {found!r}, expected {expected}")


def _check(stored: Mapping[str, Any], where: Path) -> None:
    model = stored["model"]
    if model["type"] != "BPE":
        raise _wrong(where, "model.type", model["type"], "'BPE': GGUF has no other tokenizer of these families")
    for token in stored["added_tokens"]:
        for key in ("lstrip", "rstrip", "single_word"):
            if token[key]:
                raise _wrong(where, f"{key} of {token['content']}", True, "false: GGUF cannot say it")


def _spelled(stored: Mapping[str, Any], vocab: int, where: Path) -> list[str | None]:
    """The spelling of each token by its id; None: no token has this place."""
    found: list[str | None] = [None] * vocab
    added = {token["content"]: token["id"] for token in stored["added_tokens"]}
    for token, number in {**stored["model"]["vocab"], **added}.items():
        if number >= vocab:
            raise _wrong(where, f"id of {token!r}", number, f"one below vocab_size = {vocab}")
        found[number] = token
    return found


def _kinds(stored: Mapping[str, Any], spelled: Sequence[str | None]) -> list[TokenType]:
    """The type of each token, as `fgod.importing.gguf_tokenizer` takes them apart again."""
    special = {token["content"]: token["special"] for token in stored["added_tokens"]}
    unknown, bytes_ = stored["model"]["unk_token"], stored["model"]["byte_fallback"]
    every_byte = {f"<0x{byte:02X}>" for byte in range(256)} if bytes_ else set()

    def kind(token: str | None) -> TokenType:
        if token is None:
            return TokenType.UNUSED
        if token == unknown:
            return TokenType.UNKNOWN
        if token in every_byte:
            return TokenType.BYTE
        if token in special:
            return TokenType.CONTROL if special[token] else TokenType.USER_DEFINED
        return TokenType.NORMAL

    return [kind(token) for token in spelled]


def _tokens(spelled: Sequence[str | None], kinds: Sequence[TokenType]) -> Keys:
    named = [f"[PAD{number}]" if token is None else token for number, token in enumerate(spelled)]
    return {"tokens": named, "token_type": [int(kind) for kind in kinds]}


def _merges(stored: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in stored["model"]["merges"]]


# ---------------------------------------------------------------------------------------------------- byte-level BPE


def _byte_level(stored: Mapping[str, Any], vocab: int, where: Path) -> Keys:
    spelled = _spelled(stored, vocab, where)
    merges = [" ".join(merge) for merge in _merges(stored)]
    if not merges:
        raise _wrong(where, "model.merges", [], "at least one: a GGUF file has no empty lists")
    pre = _pre_tokenizer(stored, where)
    return {"model": "gpt2", "pre": pre, **_tokens(spelled, _kinds(stored, spelled)), "merges": merges}


def _pre_tokenizer(stored: Mapping[str, Any], where: Path) -> str:
    """llama.cpp's name of how a byte-level BPE cuts texts."""
    found = _cuts(stored)
    for name, known in PRE_TOKENIZERS.items():
        if found == replace(known, begins=False):
            return name
    raise _wrong(
        where,
        "pre_tokenizer",
        found.pattern if found else (stored["pre_tokenizer"] or {}).get("type"),
        f"that of one of {', '.join(PRE_TOKENIZERS)}: GGUF has names alone for how texts are cut, and this has none",
    )


def _cuts(stored: Mapping[str, Any]) -> PreTokenizer | None:
    """How a tokenizer cuts texts; None: not as any byte-level BPE that is known."""
    first = stored["pre_tokenizer"] or {}
    *before, last = first.get("pretokenizers", [first])
    digits = bool(before) and before[0] == {"type": "Digits", "individual_digits": True}
    before = before[digits:]
    pattern = before[0].get("pattern", {}).get("Regex") if before else None
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": pattern is None}
    normalizer = stored["normalizer"]
    known = (
        before == ([] if pattern is None else [split])
        and {key: value for key, value in last.items() if key != "trim_offsets"} == byte_level
        and normalizer in (None, {"type": "NFC"})
    )
    nfc, whole = normalizer is not None, bool(stored["model"]["ignore_merges"])
    return PreTokenizer(pattern, digits=digits, nfc=nfc, whole_words=whole) if known else None


# ------------------------------------------------------------------------------------------------- SentencePiece BPE


def _sentencepiece(stored: Mapping[str, Any], vocab: int, where: Path) -> Keys:
    """Scores say what is merged first. They are made of the order of the merges, which has to be that of scores."""
    prefix = _prefix(stored, where)
    spelled = _spelled(stored, vocab, where)
    kinds = _kinds(stored, spelled)
    normal = {token for token, kind in zip(spelled, kinds, strict=True) if kind == TokenType.NORMAL}
    merges = [merge for merge in _merges(stored) if {*merge, "".join(merge)} <= normal]
    ranks = dict.fromkeys("".join(merge) for merge in merges)
    ranks |= dict.fromkeys(token for token in spelled if token is not None and token in normal)
    scores = {token: -float(rank) for rank, token in enumerate(ranks)}
    if [*map("".join, merges)] != [*map("".join, merges_of(scores))] or {*merges} != {*merges_of(scores)}:
        raise _wrong(where, "model.merges", len(merges), "all pairs of tokens that are one, those of a token together")
    return {
        "model": "llama",
        "pre": "default",
        **_tokens(spelled, kinds),
        "scores": [scores.get(token or "", 0.0) for token in spelled],
        "add_space_prefix": prefix,
    }


def _prefix(stored: Mapping[str, Any], where: Path) -> bool:
    """Whether a blank is put before texts."""
    normalizer, before = stored["normalizer"], stored["pre_tokenizer"]
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    if before is None and steps in ([blanks], [{"type": "Prepend", "prepend": SPACE}, blanks]):
        return len(steps) > 1
    for scheme in ("always", "first", "never"):
        metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
        if not steps and before == metaspace:
            return scheme != "never"
    raise _wrong(
        where, "normalizer and pre_tokenizer", (normalizer, before), "those of SentencePiece: blanks become ▁ alone"
    )


# ------------------------------------------------------------------------------------------------------------- roles


def _roles(chat: ChatFormat) -> Keys:
    """Ids of tokens that have a role, and whether texts that are no chats begin or end with one."""
    tokenizer: Any = chat.tokenizer
    named = {attribute: getattr(tokenizer, attribute) for attribute in ROLES}
    keys: Keys = {f"{ROLES[name]}_token_id": int(one) for name, one in named.items() if one is not None}
    end = tokenizer.convert_tokens_to_ids(turn_end(chat))
    if keys.setdefault("eos_token_id", int(end)) != end:
        keys["eot_token_id"] = int(end)
    bare, whole = (tokenizer("a", add_special_tokens=some)["input_ids"] for some in (False, True))
    begins = len(whole) > len(bare) and whole[0] == tokenizer.bos_token_id
    ends = len(whole) > len(bare) and whole[-1] == tokenizer.eos_token_id
    return keys | {"add_bos_token": begins, "add_eos_token": ends}


def turn_end(chat: ChatFormat) -> str:
    """The control token that the chat template ends an answer with.

    Raises:
        UsageError: there is none.
    """
    after = chat.template.frame(Shape(DEFAULT, 2, prompt=False))[-1]
    ended = after[: chat.template.end(after)]
    return str(chat.template.control.findall(ended)[0])
