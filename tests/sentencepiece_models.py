"""Small SentencePiece models that the sentencepiece library trains, and GGUF files with such a tokenizer."""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
from gguf import TokenType
from sentencepiece import SentencePieceProcessor

from tests.families import family_model
from tests.gguf_files import write_gguf

VOCABULARY = 608

TEXTS = (
    "The god of F# is in the details; the rest is in the tests, and the tests are in tests/.",
    "What is the capital of France? The capital of France is Paris.",
    "def answer(question):\n    return \"It's 12345\"\n\n\nif __name__ == '__main__':\n        answer(None)\n",
    "你是誰？我是 F# 之神。你好，很高興見到你。", "你是谁？我是一个模型。早上好，再见。",
    "こんにちは、お会いできてうれしいです。先生が話した桜って何でしょう",
    "안녕하세요, 만나서 반가워요. 오늘도 좋은 아침",
    "Ça va très bien, où êtes-vous né ? Größe und Übermut", "a  b   c    d     e\t\tf", "==== ---- .... aaaa abab",
)  # fmt: skip
"""What models are trained on, in several languages and with runs of blanks."""

CONTROL = ("<|user|>", "<|assistant|>")


@cache
def trained(prefix: bool = True, own: tuple[str, ...] = ()) -> SentencePieceProcessor:
    """A BPE with byte fallback, as Llama's and Mistral's are.

    Args:
        prefix: a blank is put before each text.
        own: user-defined tokens.
    """
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS for line in [text] * 3]),
        model_writer=written,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        allow_whitespace_only_pieces=True,
        split_by_whitespace=True,
        max_sentence_length=10000,
        control_symbols=list(CONTROL),
        user_defined_symbols=list(own),
        num_threads=1,
        minloglevel=2,
    )
    return SentencePieceProcessor(model_proto=written.getvalue())


def kind_of(model: SentencePieceProcessor, token: int, own: Iterable[str] = ()) -> TokenType:
    """The type of a token, as llama.cpp's converter finds it."""
    if model.is_unknown(token):
        return TokenType.UNKNOWN
    if model.is_control(token):
        return TokenType.CONTROL
    if model.is_byte(token):
        return TokenType.BYTE
    return TokenType.USER_DEFINED if model.id_to_piece(token) in own else TokenType.NORMAL


def metadata_of(model: SentencePieceProcessor, template: str, own: Iterable[str] = ()) -> dict[str, Any]:
    """What llama.cpp's converter writes of a model."""
    ids = range(model.vocab_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [int(kind_of(model, i, own)) for i in ids],
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
        "tokenizer.chat_template": template,
    }


def write_llama(path: Path, template: str, **metadata: Any) -> Path:
    """A GGUF file of a tiny Llama with such a tokenizer.

    Args:
        metadata: changed values by the end of their key (None: left out).
    """
    whole = metadata_of(trained(), template)
    for key, value in metadata.items():
        whole["tokenizer.chat_template" if key == "chat_template" else f"tokenizer.ggml.{key}"] = value
    left_out = dict.fromkeys(("tokenizer.ggml.merges", "tokenizer.ggml.padding_token_id"))
    model = family_model("llama", vocab_size=VOCABULARY)
    return write_gguf(path, model, metadata={**left_out, **whole})


def write_vocabulary(path: Path, metadata: dict[str, Any]) -> Path:
    """A GGUF file of metadata alone."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path
