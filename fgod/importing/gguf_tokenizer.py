"""The tokenizer of a GGUF file as transformers' fast tokenizer: vocabulary, merges, special tokens, chat template.

Byte-level BPE (tokenizer.ggml.model is `gpt2`) and SentencePiece BPE (`llama`, `fgod.importing.gguf_sentencepiece`).
How byte-level BPE cuts a text before merges apply is not in the file: it has a name for it (tokenizer.ggml.pre), and
what the name means is the tokenizer.json of the model that it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fgod.chat import ChatSettings
from fgod.importing.gguf_sentencepiece import sentencepiece, written_blanks_are_the_prefix
from fgod.importing.gguf_vocabulary import TokenizerKeys, Vocabulary
from fgod.model.template import ChatTemplate

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"


@dataclass(frozen=True)
class PreTokenizer:
    """How texts are cut before merges apply.

    Args:
        pattern: each match is a word of its own; None: GPT-2's pattern.
        digits: every digit is cut off first.
        nfc: texts are brought into Unicode's composed form first.
        whole_words: a word that is a token is one, whatever the merges say.
        begins: chats and texts begin with the beginning token, where the file does not say.
    """

    pattern: str | None
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    begins: bool = False

    def build(self) -> Any:
        """As tokenizers has it."""
        steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if self.digits else []
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None))
        return pre_tokenizers.Sequence(steps)


_QWEN2 = PreTokenizer(rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}", nfc=True)
_LLAMA3 = PreTokenizer(rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}", whole_words=True, begins=True)
_TEKKEN = PreTokenizer(
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_words=True,
    begins=True,
)

PRE_TOKENIZERS = {
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smollm": PreTokenizer(None, digits=True),
    "tekken": _TEKKEN,
    "gpt-2": PreTokenizer(None),
}
"""By tokenizer.ggml.pre. Patterns: tokenizer.json of Qwen2.5, Llama-3.1, SmolLM2, Mistral-Nemo and GPT-2."""


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer, and the ids that end an answer, the one that the chat template writes first."""

    tokenizer: PreTrainedTokenizerFast
    end_ids: tuple[int, ...]


KINDS = {"gpt2": "byte-level BPE", "llama": "SentencePiece BPE"}
"""What is read, by tokenizer.ggml.model."""


def tokenizer_of(metadata: Mapping[str, Any], where: Path, chat: ChatSettings | None = None) -> GgufTokenizer:
    """The tokenizer of a file's metadata.

    Args:
        chat: the config's `chat`, with which the template is asked whether it writes blanks itself.

    Raises:
        UsageError: there is none, it is of another kind, its way of cutting texts is not known, a key is missing or
            damaged, or there is no chat template.
    """
    keys = TokenizerKeys(metadata, where)
    kind = _kind(keys)
    vocabulary = keys.vocabulary()
    made = byte_level(keys, vocabulary) if kind == "gpt2" else sentencepiece(keys, vocabulary)
    _add_tokens(made, vocabulary)
    names = keys.named_tokens(vocabulary)
    begins = PRE_TOKENIZERS[keys.get("pre")].begins if kind == "gpt2" else True
    _add_ends(made, keys, names, begins)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        **names,
        extra_special_tokens=[token for token in vocabulary.special if token not in names.values()],
        chat_template=keys.chat_template(),
        clean_up_tokenization_spaces=False,
    )
    if kind == "llama":
        template = ChatTemplate(fast, chat or ChatSettings(), str(where))
        written_blanks_are_the_prefix(fast.backend_tokenizer, template)
    return GgufTokenizer(fast, keys.end_ids(vocabulary))


def _kind(keys: TokenizerKeys) -> str:
    found = keys.get("model")
    if found not in KINDS:
        many = " or ".join(f"'{name}' ({what})" for name, what in KINDS.items())
        raise keys.wrong("model", found, f"{many}: no other tokenizer is read")
    return str(found)


def byte_level(keys: TokenizerKeys, vocabulary: Vocabulary) -> Tokenizer:
    """A byte-level BPE, without its special tokens.

    Raises:
        UsageError: its way of cutting texts is not known, or a merge is damaged.
    """
    found = keys.get("pre")
    if found not in PRE_TOKENIZERS:
        raise keys.wrong("pre", found, f"one of {', '.join(PRE_TOKENIZERS)}: how this tokenizer cuts texts")
    how, ids = PRE_TOKENIZERS[found], vocabulary.ids
    made = Tokenizer(models.BPE(vocab=ids, merges=keys.merges(ids), ignore_merges=how.whole_words))
    if how.nfc:
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer, made.decoder = how.build(), decoders.ByteLevel()
    return made


def _add_tokens(made: Tokenizer, vocabulary: Vocabulary) -> None:
    """Special tokens, and those that are never split."""
    special = set(vocabulary.special)
    added = vocabulary.of(TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    made.add_tokens([AddedToken(token, special=token in special, normalized=False) for token in added])


def _add_ends(made: Tokenizer, keys: TokenizerKeys, names: Mapping[str, str], begins: bool) -> None:
    """What stands before and behind a text that is no chat, where the file says so or (`begins`) the family does."""
    wanted = {"bos_token": keys.flag("add_bos_token", begins), "eos_token": keys.flag("add_eos_token", False)}
    if keys.get("add_bos_token") and "bos_token" not in names:
        raise keys.wrong("bos_token_id", None, "the id of the token that begins texts, as add_bos_token is true")
    begin, end = ([names[name]] if wanted[name] and name in names else [] for name in wanted)
    if begin or end:
        made.post_processor = processors.TemplateProcessing(
            single=[*begin, "$A", *end],
            pair=[*begin, "$A", *end, *begin, "$B", *end],
            special_tokens=[(token, made.token_to_id(token)) for token in dict.fromkeys([*begin, *end])],
        )
