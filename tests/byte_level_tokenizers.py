"""Small byte-level BPE tokenizers that cut texts as common families do, made by tokenizers and transformers alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

TEXTS = [
    "你是誰？我是 F# 之神。", "Who are you? I'm here; we'll see, it's 12345 o'clock.", "안녕하세요 なに ありがとう",
    "def f(x):\n    return x ** 2\n\n\n", "ÀÉÎ ß ﬁ e\u0301 １２ ३४५", "a  b\t c \r\n d",
    "HelloWorld fooBAR /path/to//file\n",
]  # fmt: skip


def trained(pre: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges that a corpus gives with a pre-tokenizer; special tokens come last, as in Qwen's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    model = json.loads(made.to_str())["model"]
    return model["vocab"], [tuple(m) for m in model["merges"]]


SPECIAL = ("<|begin|>", "<|end|>", "<|pad|>")


def peer_qwen2() -> Any:
    vocab, merges = trained(Qwen2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer.pre_tokenizer)
    return with_tokens(Qwen2Tokenizer(vocab=vocab, merges=merges).backend_tokenizer)


def peer_gpt2() -> Any:
    vocab, merges = trained(GPT2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer.pre_tokenizer)
    return with_tokens(GPT2Tokenizer(vocab=vocab, merges=merges).backend_tokenizer)


def peer_llama3() -> Any:
    pattern = TikTokenConverter("x").pattern
    return plain(pre_tokenizers.Split(Regex(pattern), "isolated"), ignore_merges=True)


def peer_smollm() -> Any:
    return plain(pre_tokenizers.Digits(individual_digits=True), use_regex=True)


def plain(first: Any, use_regex: bool = False, ignore_merges: bool = False) -> Any:
    pre = pre_tokenizers.Sequence(
        [first, pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=use_regex)]
    )
    vocab, merges = trained(pre)
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    made.pre_tokenizer, made.decoder = pre, decoders.ByteLevel()
    return with_tokens(made)


def with_tokens(made: Any) -> PreTrainedTokenizerFast:
    """The tokenizer with special tokens and a chat template."""
    made.post_processor = None
    made.add_special_tokens([token for token in SPECIAL if made.token_to_id(token) is None])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template="{{ messages[0]['content'] }}",
        clean_up_tokenization_spaces=False,
    )


PEERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "qwen2": peer_qwen2, "gpt-2": peer_gpt2, "llama-bpe": peer_llama3, "smollm": peer_smollm,
}  # fmt: skip
"""By tokenizer.ggml.pre."""
