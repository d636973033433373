"""SentencePiece BPE tokenizers (tokenizer.ggml.model is `llama`), as the tokenizers library has them.

A text is encoded as the sentencepiece library encodes it (src/bpe_model.cc): of all neighbours that are a token
together, those with the best score become one, the leftmost first; a character that is no token becomes its bytes in
UTF-8. Where llama.cpp and transformers do otherwise:

- Only normal tokens arise by merging. llama.cpp and transformers' own reading of GGUF files also merge letters to
  `</s>` and other control tokens, if their parts are tokens: what a user types would end a turn.
- A blank is put before each text, also where it begins with one (`add_space_prefix`); transformers' LlamaTokenizer
  leaves it out there.
- SentencePiece encodes texts without control tokens. What stands between two of them is a text of its own, as in
  llama.cpp and in Llama 2's reference code; transformers' LlamaTokenizer puts the blank before the first alone. After
  user-defined tokens a new text begins too, as in llama.cpp; for SentencePiece they stand within one.
- A chat template that writes a blank behind a control token itself (Mistral's do) means that very blank: then no other
  is put before a text that begins with one, as Mistral's own library and transformers have it. llama.cpp has two there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf.constants import TokenType
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from fgod.chat import DEFAULT
from fgod.errors import UsageError
from fgod.importing.gguf_vocabulary import TokenizerKeys, Vocabulary
from fgod.model.template import ChatTemplate, Shape

SPACE = "\u2581"
"""How a blank is spelled in tokens."""

UNREAD = {"remove_extra_whitespaces": "blanks", "precompiled_charsmap": "characters"}
"""Keys of tokenizers that change texts before they cut them."""


def sentencepiece(keys: TokenizerKeys, vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer, without its special tokens.

    Raises:
        UsageError: a key is missing or damaged, a byte has no token, or the tokenizer changes texts first.
    """
    for key, what in UNREAD.items():
        if keys.get(key):
            raise keys.wrong(key, "something", f"nothing: tokenizers that change {what} first are not read")
    _check_bytes(keys, vocabulary)
    merges, ids = _merges(keys, vocabulary), vocabulary.ids
    made = Tokenizer(
        models.BPE(vocab=ids, merges=merges, unk_token=unknown(keys, vocabulary), fuse_unk=True, byte_fallback=True)
    )
    prefix = keys.flag("add_space_prefix", True)
    replaced: list[Any] = [normalizers.Replace(" ", SPACE)]
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), *replaced] if prefix else replaced)
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return made


def written_blanks_are_the_prefix(made: Tokenizer, template: ChatTemplate) -> None:
    """Put no blank before a text that begins with one, where the chat template writes it behind a control token."""
    if made.normalizer is not None and template_writes_blanks(template):
        made.normalizer = None
        made.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=False)


def template_writes_blanks(template: ChatTemplate) -> bool:
    """Whether a chat template writes a blank right behind a control token."""
    try:
        frame = template.frame(Shape(DEFAULT, 3, prompt=True))
    except UsageError:  # it may write chats of one turn alone; if it does not either, this is said
        frame = template.frame(Shape(DEFAULT, 1, prompt=True))
    return any(part[found.end() :].startswith(" ") for part in frame for found in template.control.finditer(part))


def unknown(keys: TokenizerKeys, vocabulary: Vocabulary) -> str:
    """The token that stands for what is none."""
    named = keys.token("unknown_token_id", vocabulary)
    found = [named] if named is not None else vocabulary.of(TokenType.UNKNOWN)
    if len(found) != 1:
        raise keys.wrong("unknown_token_id", found or None, "the id of the token that stands for what is none")
    return found[0]


def merges_of(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs of tokens that are one together, best score first: what BPE by scores merges in this order.

    Args:
        scores: of normal tokens.
    """
    ordered = sorted(scores, key=lambda token: -scores[token])
    cuts = ((token[:place], token[place:]) for token in ordered for place in range(1, len(token)))
    return [(first, second) for first, second in cuts if first in scores and second in scores]


def _merges(keys: TokenizerKeys, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Merges by the scores of normal tokens; by the file's own list where all scores are the same, as converters that
    read no SentencePiece model write them."""
    each = zip(vocabulary.tokens, vocabulary.kinds, keys.scores(), strict=True)
    scores = {token: score for token, kind, score in each if kind == TokenType.NORMAL}
    if len(set(scores.values())) > 1 or len(scores) < 2:
        return merges_of(scores)
    if keys.get("merges") is None:
        expected = "another for each token: they say what is merged first; convert the model anew, with tokenizer.model"
        raise keys.wrong("scores", next(iter(scores.values()), None), expected)
    return keys.merges({token: i for i, token in enumerate(scores)})


def _check_bytes(keys: TokenizerKeys, vocabulary: Vocabulary) -> None:
    found, expected = vocabulary.of(TokenType.BYTE), [f"<0x{byte:02X}>" for byte in range(256)]
    for token in found:
        if token not in expected:
            raise keys.wrong("tokens", token, "a byte token as <0x00> to <0xFF>: this one has the type of bytes")
    missing = [token for token in expected if token not in found]
    if missing:
        many = f"{len(found)} of 256 byte tokens"
        raise keys.wrong("tokens", many, f"all, <0x00> to <0xFF>: {missing[0]} is the first that is missing")
