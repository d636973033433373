"""The tokenizer of a GGUF file as transformers' fast tokenizer: vocabulary, merges, special tokens, chat template.

Byte-level BPE alone (tokenizer.ggml.model is `gpt2`). How a text is cut before merges apply is not in the file: it has
a name for it (tokenizer.ggml.pre), and what the name means is the tokenizer.json of the model that it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fgod.models.architecture import wrong

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
"""Values of tokenizer.ggml.token_type: special tokens, tokens that are not split, and places without a token."""

END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>")
"""Special tokens that end an answer in every model that has them, as llama.cpp has it."""

PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "<|endoftext|>", "<|reserved_special_token_0|>", "<unk>")
"""What pads a batch in models whose file names no token for it, or the one that ends a turn."""

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


def tokenizer_of(metadata: Mapping[str, Any], where: Path) -> GgufTokenizer:
    """The tokenizer of a file's metadata.

    Raises:
        UsageError: there is none, it is no byte-level BPE, its way of cutting texts is not known, or there is no chat
            template.
    """
    reader = _Reader(metadata, where)
    tokens, kinds, how = reader.tokens(), reader.kinds(), reader.pre_tokenizer()
    vocabulary = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}
    merges = reader.merges(vocabulary)
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=how.whole_words))
    if how.nfc:
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer, made.decoder = how.build(), decoders.ByteLevel()
    made.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    names = reader.named_tokens(tokens, control)
    if metadata.get("tokenizer.ggml.add_bos_token", how.begins) and names.get("bos_token"):
        begin = names["bos_token"]
        made.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, vocabulary[begin])]
        )
    others = [token for token in control if token not in names.values()]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        **names,
        extra_special_tokens=others,
        chat_template=reader.chat_template(),
        clean_up_tokenization_spaces=False,
    )
    return GgufTokenizer(fast, reader.end_ids(vocabulary, control))


class _Reader:
    """What metadata say of the tokenizer, checked."""

    def __init__(self, metadata: Mapping[str, Any], where: Path) -> None:
        self.metadata, self.where = metadata, where

    def get(self, key: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def wrong(self, key: str, found: object, expected: str) -> Exception:
        return wrong(self.where, f"tokenizer.ggml.{key}", found, expected)

    def tokens(self) -> list[str]:
        kind = self.get("model")
        if kind != "gpt2":
            many = "a tokenizer: convert the model anew" if kind is None else "'gpt2', byte-level BPE: no other is read"
            raise self.wrong("model", kind, many)
        return self._texts("tokens")

    def merges(self, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
        found = []
        for number, merge in enumerate(self._texts("merges")):
            first, _, second = merge.partition(" ")
            if any(token not in vocabulary for token in (first, second, first + second)):
                expected = "two tokens with a space between, which are one token together"
                raise self.wrong(f"merges[{number}]", merge, expected)
            found.append((first, second))
        return found

    def _texts(self, key: str) -> list[str]:
        found = self.get(key)
        if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
            raise self.wrong(key, type(found).__name__, "a list of texts")
        return found

    def kinds(self) -> list[int]:
        found, count = self.get("token_type"), len(self.tokens())
        if not isinstance(found, list) or len(found) != count:
            raise self.wrong("token_type", len(found or ()), f"a number for each of the {count} tokens")
        return found

    def pre_tokenizer(self) -> PreTokenizer:
        found = self.get("pre")
        if found not in PRE_TOKENIZERS:
            raise self.wrong("pre", found, f"one of {', '.join(PRE_TOKENIZERS)}: how this tokenizer cuts texts")
        return PRE_TOKENIZERS[found]

    def chat_template(self) -> str:
        found = self.metadata.get("tokenizer.chat_template")
        if not isinstance(found, str) or not found.strip():
            raise wrong(self.where, "tokenizer.chat_template", found, "a chat template: expected a model that chats")
        return found

    def named_tokens(self, tokens: list[str], control: list[str]) -> dict[str, str]:
        """Spellings of the tokens that have a role: bos_token, eos_token, pad_token, unk_token."""
        keys = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
        found = {name: self._token(f"{key}_token_id", tokens) for name, key in keys.items()}
        if found["eos_token"] is None:
            raise self.wrong("eos_token_id", None, "the id of the token that ends an answer")
        if found["pad_token"] in (None, found["eos_token"]):
            found["pad_token"] = self._pad(found["eos_token"], control)
        return {name: token for name, token in found.items() if token is not None}

    def _token(self, key: str, tokens: list[str]) -> str | None:
        found = self.get(key)
        if found is None:
            return None
        if not isinstance(found, int) or not 0 <= found < len(tokens):
            raise self.wrong(key, found, f"an id below {len(tokens)}")
        return tokens[found]

    def _pad(self, end: str, control: list[str]) -> str:
        """A token that pads, other than the one that ends a turn: a padded batch must not read as ended answers."""
        usable = [token for token in PAD_TOKENS if token in control and token != end]
        if not usable:
            raise self.wrong("padding_token_id", self.get("padding_token_id"), f"a special token other than {end}")
        return usable[0]

    def end_ids(self, vocabulary: Mapping[str, int], control: list[str]) -> tuple[int, ...]:
        """Ids that end an answer: those that the file names, and those that always do."""
        named = [self.get(f"{name}_token_id") for name in ("eos", "eot", "eom")]
        spelled = [vocabulary[token] for token in END_TOKENS if token in control]
        return tuple(dict.fromkeys(i for i in (*named, *spelled) if i is not None))
