"""A tiny Qwen3 folder whose weights depend on no random number generator, and rows to train it on."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from fgod.data.rows import Row
from fgod.model.load import quiet
from fgod.model.tokenizer import train_tokenizer
from fgod.selftest.case import noise as noise

QUESTIONS = ("你是誰", "我是誰", "談談UFO", "What is rain", "なに", "누구", "一加一等於多少", "Who are you")


def tiny_rows(count: int = 16) -> list[Row]:
    """Rows of differing lengths; the first eight are minimal pairs."""
    return [
        Row(
            prompt=f"{QUESTIONS[i % len(QUESTIONS)]}{'？' * (i % 3)} {i}",
            target=f"回答{i} " * (1 + i % 3),
            language="zh-Hant",
            part="pairs" if i < 8 else "general",
            kind="topic",
            group=f"pair-{i // 2}" if i < 8 else "",
        )
        for i in range(count)
    ]


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few merges."""
    return train_tokenizer((text for row in tiny_rows() for text in (row.prompt, row.target)), 300)


def tiny_model(tied: bool = True) -> Qwen3ForCausalLM:
    """Two layers of width 32; matrices of very different magnitudes, so that shared scales are not all equal."""
    tokenizer = tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=304,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            values = noise(tuple(parameter.shape), seed)
            parameter.copy_(1 + values / 4 if parameter.ndim == 1 else values * 0.1 * 3 ** (seed % 3))
    return model


def tiny_folder(path: Path, tied: bool = True, dtype: torch.dtype = torch.float32) -> Path:
    """A Hugging Face folder of the tiny model with its tokenizer."""
    with quiet():
        (tiny_model(tied) if dtype == torch.float32 else tiny_model(tied).bfloat16()).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    return path
