"""Exports to GGUF: decoded by numpy from the format's description and by the gguf package, read back, or refused."""

from __future__ import annotations

import json
import re
import resource
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf.constants import TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fgod.cli import main, parse
from fgod.cli.work import talk as work
from fgod.cli.work.worker import Worker
from fgod.documents import Stamp
from fgod.errors import StorageError, UsageError
from fgod.exporters.exporter import exporter_of
from fgod.exporters.nvfp4 import NVFP4
from fgod.exporters.read import dequantised
from fgod.gguf.blocks import blocks_of, quantised_of
from fgod.gguf.exporter import FILE, GGUF, GGUF_BF16, Gguf
from fgod.gguf.metadata import NO_4_BIT_ACTIVATIONS, TENSORS
from fgod.gguf.modelfile import modelfile
from fgod.gguf.tokens import tokenizer_keys
from fgod.importing import RECORD
from fgod.importing.gguf import import_gguf
from fgod.importing.gguf_config import gguf_name
from fgod.importing.gguf_file import GgufFile, read_gguf
from fgod.importing.gguf_tokenizer import tokenizer_of
from fgod.importing.nvfp4 import decode_export
from fgod.inspected import text as inspected
from fgod.model import memory
from fgod.model.chats import ChatFormat
from fgod.model.load import load_model, quiet, read_config
from fgod.models.names import projection_group
from fgod.nvfp4.codec import BLOCK_SCALES, NonFiniteError, dequantise, quantise
from fgod.nvfp4.folders import BLOCK_SCALES_KEY, SINGLE
from fgod.stamps import digests_of
from fgod.system.files import read_json, sha256_file, sha256_folder, write_json
from tests.byte_level_tokenizers import PEERS, TEXTS
from tests.chat_templates import CHATML, THINKING
from tests.chat_templates import tokenizer_of as with_template
from tests.families import family_model
from tests.gguf_files import permuted
from tests.sentencepiece_models import metadata_of, trained
from tests.tiny_model import noise, tiny_folder

IDS = torch.tensor([[5, 6, 7, 9, 11, 2]])
UP, HEAD, TABLE = "model.layers.0.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight"
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
NAMES = ("qwen2", "qwen3", "qwen3-untied", "llama", "llama3", "llama-biased", "mistral")


TURNS = """\
{%- for turn in messages -%}{{- '<|begin|>' + turn.role + '\\n' + turn.content + '<|end|>' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|begin|>assistant\\n' -}}{%- endif -%}
"""


@cache
def chatty(pre: str = "qwen2", template: str = TURNS) -> Any:
    """A byte-level tokenizer with a chat template."""
    made = PEERS[pre]()
    made.chat_template = template
    return made


def folder_of(name: str, path: Path, tokenizer: Any = None, **changes: Any) -> Path:
    """A folder of a family's model whose rows are whole blocks."""
    rope = {"rope_parameters": LLAMA3} if name == "llama3" else {}
    tokens = tokenizer or chatty()
    ids = {"eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id}
    with quiet():
        family_model(name, **{**WIDE, **rope, **ids, **changes}).save_pretrained(path)
        tokens.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By family: NAME, and its exports NAME-nvfp4, NAME-gguf and NAME-gguf-bf16."""
    folder = tmp_path_factory.mktemp("gguf")
    for name in NAMES:
        master = folder_of(name, folder / name)
        for exporter in (NVFP4, GGUF, GGUF_BF16):
            exporter.write(master, folder / f"{name}-{exporter.name}", "bfloat16")
    return folder


# ---------------------------------------------------------------------------------------------------------- weights


def unsigned_e4m3(raw: NDArray[np.uint8]) -> NDArray[np.float64]:
    """4 exponent bits with bias 7, 3 of the fraction, the sign bit ignored; 0x7F is 0."""
    exponent, fraction = raw >> 3 & 15, raw & 7
    values = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    return np.where(raw & 0x7F == 0x7F, 0.0, values)


def by_hand(raw: NDArray[np.uint8], scale: float) -> NDArray[np.float64]:
    """Weights of rows of blocks, by the description of type 40 alone."""
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = np.concatenate([grid, -grid])
    out = np.zeros((len(raw), raw.shape[1] // 36 * 64))
    for row, data in enumerate(raw):
        for block in range(raw.shape[1] // 36):
            bytes_ = data[36 * block : 36 * block + 36]
            for part in range(4):
                step = unsigned_e4m3(bytes_[part : part + 1])[0]
                for j in range(8):
                    both, at = bytes_[4 + 8 * part + j], 64 * block + 16 * part + j
                    out[row, at], out[row, at + 8] = table[both & 15] * step, table[both >> 4] * step
    return out * scale


def hand_name(name: str) -> str:
    return name.removesuffix(".weight") + ".scale"


@pytest.mark.parametrize("name", ["qwen3-untied", "llama", "qwen2"])
def test_projections_are_the_nvfp4_exports_to_the_bit(name: str, folders: Path) -> None:
    """By numpy from the description, by the gguf package, and by our own reader."""
    file, exact = read_gguf(folders / f"{name}-gguf" / FILE), dict(dequantised(folders / f"{name}-nvfp4"))
    peer = {tensor.name: tensor for tensor in gguf.GGUFReader(file.path).tensors}
    ours = dict(dequantised(folders / f"{name}-gguf", exporter=GGUF))
    config, seen = read_config(folders / name), 0
    for tensor, expected in exact.items():
        assert torch.equal(ours[tensor], expected), tensor
        if projection_group(tensor) is None:
            continue
        seen += 1
        own = gguf_name(tensor)
        values = expected.numpy()
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(
            own.split(".")[2]
        )
        if name != "qwen3-untied" and heads:
            values = permuted(values, heads)
        scale = peer[hand_name(own)]
        assert scale.tensor_type == Type.F32 and scale.shape.tolist() == [1]
        factor = np.float32(scale.data[0])
        assert np.array_equal(by_hand(file.stored(own), float(factor)), values)
        assert peer[own].tensor_type == Type.NVFP4 == 40
        assert np.array_equal(gguf.dequantize(np.array(peer[own].data), Type.NVFP4) * factor, values)
        assert not np.array_equal(gguf.dequantize(np.array(peer[own].data), Type.NVFP4) / factor, values)
    assert seen == 14


def test_the_tensor_scale_multiplies(folders: Path) -> None:
    """It is 1 / the global scale of the NVFP4 export, a divisor; the other way round all weights would be wrong."""
    stored, file = load_file(folders / "qwen2-nvfp4" / SINGLE), read_gguf(folders / "qwen2-gguf" / FILE)
    scales = {name: value for name, value in stored.items() if name.endswith("_global_scale")}
    assert len(scales) == 14 and all(value.item() > 1 for value in scales.values())
    for name, value in scales.items():
        assert file.scale(gguf_name(name.removesuffix("_global_scale"))) == 1 / value.item() < 1


@given(st.integers(0, 2**16), st.integers(-90, 90), st.sampled_from(BLOCK_SCALES))
@settings(deadline=None, max_examples=60)
def test_every_block_is_decoded_to_the_weights_it_was_made_of(seed: int, exponent: int, rule: str) -> None:
    weight = noise((3, 128), seed) * 2.0**exponent
    weight[0, :16] = 0
    weight[1, 3] = 30 * 2.0**exponent
    made = quantise(weight, block_scales=rule)
    raw, factor = blocks_of(made).numpy(), np.float32(1 / made.global_scale)
    assert raw.shape == (3, 72) and raw.dtype == np.uint8
    expected = dequantise(made).numpy()
    assert np.array_equal(gguf.dequantize(raw, Type.NVFP4) * factor, expected)
    assert np.array_equal(by_hand(raw, float(factor)), expected)
    again = quantised_of(torch.from_numpy(raw), float(factor))
    assert torch.equal(again.codes, made.codes) and again.global_scale == made.global_scale
    assert torch.equal(again.scales.view(torch.uint8), made.scales.view(torch.uint8))


@pytest.mark.parametrize("rule", BLOCK_SCALES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_rules_and_dtypes_are_those_of_the_nvfp4_export(rule: str, dtype: str, tmp_path: Path) -> None:
    master = folder_of("qwen3", tmp_path / "master")
    write_json(master / "config.json", {**read_json(master / "config.json"), BLOCK_SCALES_KEY: rule})
    for exporter in (NVFP4, GGUF):
        exporter.write(master, tmp_path / exporter.name, dtype)
    exact, found = dict(dequantised(tmp_path / "nvfp4")), dict(dequantised(tmp_path / "gguf", exporter=GGUF))
    assert found.keys() == exact.keys() and all(torch.equal(found[name], exact[name]) for name in exact)
    assert read_config(tmp_path / "gguf")["dtype"] == dtype and BLOCK_SCALES_KEY not in read_config(tmp_path / "gguf")


def types_of(file: GgufFile) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, tensor in file.tensors.items():
        found.setdefault(re.sub(r"blk\.\d+\.", "", name), set()).add(tensor.type.name)
    return found


def test_types_are_those_that_llama_cpp_expects(folders: Path) -> None:
    """Vectors are float32, a tied table stands once, an untied head is output.weight."""
    for exporter, kind in ((GGUF, "NVFP4"), (GGUF_BF16, "BF16")):
        tied = types_of(read_gguf(folders / f"qwen2-{exporter.name}" / FILE))
        assert tied["token_embd.weight"] == {"BF16"} and "output.weight" not in tied
        assert tied["attn_q.weight"] == tied["ffn_down.weight"] == {kind}
        assert tied["attn_q.bias"] == tied["attn_norm.weight"] == tied["output_norm.weight"] == {"F32"}
        assert ("attn_q.scale" in tied) is (kind == "NVFP4")
        assert types_of(read_gguf(folders / f"llama3-{exporter.name}" / FILE))["output.weight"] == {"BF16"}


@pytest.mark.parametrize("exporter", [GGUF, GGUF_BF16], ids=lambda exporter: exporter.name)
@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_imported_to_the_bit(name: str, exporter: Gguf, folders: Path, tmp_path: Path) -> None:
    """BF16: all that was stored; NVFP4: the values of the NVFP4 export. With its config, and so its logits."""
    out = folders / f"{name}-{exporter.name}"
    import_gguf(out / FILE, tmp_path / "out")
    found = load_file(tmp_path / "out" / SINGLE)
    if exporter is GGUF_BF16:
        exact = {key: value.bfloat16() for key, value in load_file(folders / name / SINGLE).items()}
    else:
        exact = {key: value.bfloat16() for key, value in dequantised(folders / f"{name}-nvfp4")}
    assert found.keys() == exact.keys() and all(torch.equal(found[key], exact[key]) for key in exact)
    before, after = load_model(folders / name).config, load_model(tmp_path / "out").config
    for key in ("architectures", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "vocab_size"):
        assert getattr(before, key) == getattr(after, key)
    assert dict(before.rope_parameters) == dict(after.rope_parameters)
    assert type(load_model(out)) is type(load_model(folders / name))
    logits = load_model(tmp_path / "out")(input_ids=IDS).logits
    assert torch.equal(logits, load_model(out)(input_ids=IDS).logits)


def test_rows_are_permuted_for_llamas_rotary_positions_alone(folders: Path) -> None:
    for name, moved in (("llama-biased", True), ("mistral", True), ("qwen2", False), ("qwen3", False)):
        stored = load_file(folders / name / SINGLE)
        file = read_gguf(folders / f"{name}-gguf-bf16" / FILE)
        for leaf, heads in (("q", 4), ("k", 2)):
            for kind in ("weight", "bias"):
                values = stored.get(f"model.layers.1.self_attn.{leaf}_proj.{kind}")
                if values is None:
                    continue
                rows = values.bfloat16().float().numpy()
                found = file.read(f"blk.1.attn_{leaf}.{kind}")
                assert np.array_equal(found, permuted(rows, heads) if moved else rows)
                assert not np.array_equal(found, rows if moved else permuted(rows, heads))
        values = stored["model.layers.1.self_attn.v_proj.weight"].bfloat16().float().numpy()
        assert np.array_equal(file.read("blk.1.attn_v.weight"), values)


def test_scaled_rotary_positions_are_a_tensor(folders: Path, tmp_path: Path) -> None:
    other = {**LLAMA3, "original_max_position_embeddings": 32, "factor": 4.0}
    GGUF_BF16.write(folder_of("llama", tmp_path / "other", rope_parameters=other), tmp_path / "out", "bfloat16")
    for folder, file in (
        (folders / "llama3", folders / "llama3-gguf" / FILE),
        (tmp_path / "other", tmp_path / "out" / FILE),
    ):
        config = load_model(folder).config
        scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].numpy()
        plain = 500000.0 ** -(np.arange(0, 16, 2) / 16)
        assert np.allclose(read_gguf(file).read("rope_freqs.weight"), plain / scaled, rtol=1e-5)
    assert "rope_freqs.weight" not in read_gguf(folders / "llama-gguf" / FILE).tensors


# --------------------------------------------------------------------------------------------------------- metadata


def test_metadata(folders: Path) -> None:
    file = read_gguf(folders / "llama-biased-gguf" / FILE)
    found = file.metadata
    assert found["general.architecture"] == "llama" and found["general.name"] == "llama-biased"
    assert found["general.type"] == "model" and found["general.file_type"] == 39
    assert read_gguf(folders / "qwen3-gguf-bf16" / FILE).metadata["general.file_type"] == 32
    assert read_gguf(folders / "mistral-gguf" / FILE).metadata["general.basename"] == "Mistral"
    sizes = {
        "context_length": 128, "embedding_length": 64, "feed_forward_length": 128, "block_count": 2, "vocab_size": 304,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16, "rope.freq_base": 10000.0,
        "attention.value_length": 16, "rope.dimension_count": 16, "attention.layer_norm_rms_epsilon": 1e-6,
    }  # fmt: skip
    assert {key: found[f"llama.{key}"] for key in sizes} == sizes
    assert not any(key.startswith("fgod.") for key in found) and "general.license" not in found
    quantised = [name for name, tensor in file.tensors.items() if tensor.type == Type.NVFP4]
    assert found[TENSORS] == quantised and found[NO_4_BIT_ACTIVATIONS] == [False] * 14
    assert TENSORS not in read_gguf(folders / "llama-gguf-bf16" / FILE).metadata


def test_a_qwen2_with_tensor_scales_is_a_llama(folders: Path, tmp_path: Path) -> None:
    """llama.cpp's qwen2 multiplies nothing by the scales of the feed-forward projections; its llama does."""
    found = {kind: read_gguf(folders / f"qwen2-{kind}" / FILE).metadata for kind in ("gguf", "gguf-bf16")}
    assert {kind: one["general.architecture"] for kind, one in found.items()} == {"gguf": "llama", "gguf-bf16": "qwen2"}
    import_gguf(folders / "qwen2-gguf" / FILE, tmp_path / "out")
    assert read_config(tmp_path / "out")["architectures"] == ["Qwen2ForCausalLM"]
    biased = read_gguf(folders / "llama-biased-gguf" / FILE)
    import_gguf(biased.path, tmp_path / "biased")
    assert read_config(tmp_path / "biased")["architectures"] == ["LlamaForCausalLM"]


def test_a_runs_export_names_its_lineage_and_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    master = folder_of("qwen3", tmp_path / "artifacts" / "A-mixed" / "f3ca7b812907" / "master")
    write_json(master / RECORD, {"name": "Tiny Base", "license": "apache-2.0"})
    stamp = master.parent / "trained.json"
    Stamp(status="trained", **digests_of(master)).write(stamp)
    words = ["--weights", str(master), "--stamp", str(stamp), "--dtype", "bfloat16", "--limit-gb", "4"]
    assert main(["export", *words, "--format", "gguf", "--out", str(master.parent / "exported-gguf.json")]) == 0
    out = master.parent / "gguf"
    assert Stamp.read(master.parent / "exported-gguf.json").weights_sha256 == sha256_folder(out)
    found = read_gguf(out / FILE).metadata
    assert (found["fgod.stage"], found["fgod.lineage"]) == ("A-mixed", "f3ca7b812907")
    assert found["general.name"] == "fgod A-mixed f3ca7b812907" and found["general.license"] == "apache-2.0"
    assert found["general.base_model.count"] == 1 and found["general.base_model.0.name"] == "Tiny Base"
    GGUF.write(master, tmp_path / "again", "bfloat16")
    assert sha256_file(tmp_path / "again" / FILE) == sha256_file(out / FILE)


# -------------------------------------------------------------------------------------------------------- tokenizers


def keys_of(tokenizer: Any, folder: Path, vocab: int = 304) -> dict[str, Any]:
    tokenizer.save_pretrained(folder)
    chat = ChatFormat.of_folder(folder)
    keys = tokenizer_keys(chat, vocab, folder / "tokenizer.json")
    template = {"tokenizer.chat_template": chat.tokenizer.get_chat_template()}
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()} | template


@pytest.mark.parametrize("pre", PEERS)
def test_a_byte_level_tokenizer_comes_back(pre: str, tmp_path: Path) -> None:
    original = chatty(pre)
    keys = keys_of(original, tmp_path / "in", 320)
    assert keys["tokenizer.ggml.pre"] == pre and keys["tokenizer.ggml.model"] == "gpt2"
    kinds = keys["tokenizer.ggml.token_type"]
    assert len(kinds) == 320 and kinds[len(original) :] == [TokenType.UNUSED] * (320 - len(original))
    assert keys["tokenizer.ggml.add_bos_token"] is keys["tokenizer.ggml.add_eos_token"] is False
    read = tokenizer_of(keys, tmp_path).tokenizer
    for text in (*TEXTS, "<|end|><|x|> a"):
        assert read(text)["input_ids"] == original(text)["input_ids"]
    assert (read.bos_token, read.eos_token, read.pad_token) == (
        original.bos_token,
        original.eos_token,
        original.pad_token,
    )
    assert read.chat_template == original.chat_template


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_tokenizer_comes_back(prefix: bool, tmp_path: Path) -> None:
    """Other scores say the same order of merges."""
    model = trained(prefix)
    template = "{% for turn in messages %}{{ '<|user|>' + turn.content + eos_token }}{% endfor %}"
    given_ = metadata_of(model, template) | {"tokenizer.ggml.add_space_prefix": prefix}
    original = tokenizer_of(given_, tmp_path).tokenizer
    keys = keys_of(original, tmp_path / "in", 640)
    assert keys["tokenizer.ggml.model"] == "llama" and keys["tokenizer.ggml.add_space_prefix"] is prefix
    assert keys["tokenizer.ggml.token_type"][:608] == given_["tokenizer.ggml.token_type"]
    assert keys["tokenizer.ggml.tokens"][:608] == given_["tokenizer.ggml.tokens"]
    assert keys["tokenizer.ggml.add_bos_token"] is True
    read = tokenizer_of(keys, tmp_path).tokenizer
    for text in (*TEXTS, "  x", "<|user|> a", "神 é\u0301"):
        assert read(text)["input_ids"] == original(text)["input_ids"]
        assert read(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == model.encode(text)


def test_a_turns_end_that_is_not_the_end_of_texts_has_a_key(tmp_path: Path) -> None:
    template = "{% for turn in messages %}{{ turn.content + '<|pad|>' }}{% endfor %}"
    keys = keys_of(chatty("smollm", template), tmp_path)
    tokens = keys["tokenizer.ggml.tokens"]
    assert tokens[keys["tokenizer.ggml.eot_token_id"]] == "<|pad|>"
    assert tokens[keys["tokenizer.ggml.eos_token_id"]] == "<|end|>"


def changed(folder: Path, change: Any) -> Path:
    """A folder of which tokenizer.json is changed."""
    stored = read_json(folder / "tokenizer.json")
    change(stored)
    write_json(folder / "tokenizer.json", stored)
    return folder


def flag(stored: dict[str, Any], key: str) -> None:
    stored["added_tokens"][0][key] = True


def pattern(stored: dict[str, Any]) -> None:
    stored["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W+"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda stored: flag(stored, "lstrip"), r"lstrip of <\|\w+\|>: found True, expected false: GGUF cannot say it"),
        (pattern, r"pre_tokenizer: found .*, expected that of one of qwen2, .*: GGUF has names alone for how texts"),
    ],
)
def test_a_tokenizer_that_metadata_cannot_describe(change: Any, words: str, tmp_path: Path) -> None:
    chatty("smollm" if change is not pattern else "llama-bpe").save_pretrained(tmp_path / "in")
    chat = ChatFormat.of_folder(changed(tmp_path / "in", change))
    with pytest.raises(UsageError, match=rf"in/tokenizer\.json: {words}"):
        tokenizer_keys(chat, 304, tmp_path / "in" / "tokenizer.json")
    with pytest.raises(UsageError, match=r"id of .*, expected one below vocab_size = 200"):
        tokenizer_keys(ChatFormat(chatty()), 200, tmp_path / "tokenizer.json")


# --------------------------------------------------------------------------------------------------------- Modelfile


def rendered(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of the few actions that are used here."""
    items = re.split(r"\{\{ (.+?) \}\}", template)
    out, shown, loop, at = "", [True], -1, 0
    stack: list[tuple[str, int]] = []
    current: dict[str, str] = {}
    while at < len(items):
        if at % 2 == 0:
            out += items[at] if all(shown) else ""
        elif items[at] == "if .Messages":
            stack.append(("if", at))
            shown.append(bool(messages))
        elif items[at] == 'if ne (index .Messages 0).Role "system"':
            stack.append(("if", at))
            shown.append(messages[0]["role"] != "system")
        elif items[at] == "range .Messages":
            stack.append(("range", at))
            loop, current = 0, messages[0]
            shown.append(True)
        elif items[at] in (".Role", ".Content"):
            out += current[items[at][1:].lower()]
        else:
            assert items[at] == "end"
            kind, start = stack[-1]
            if kind == "range" and loop + 1 < len(messages):
                loop += 1
                at, current = start, messages[loop]
            else:
                stack.pop()
                shown.pop()
        at += 1
    assert not stack
    return out


def chat_tokens(template: str) -> Any:
    return with_template(template, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>")


PLAIN = """\
{%- for turn in messages -%}{{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@pytest.mark.parametrize("template", [CHATML, PLAIN], ids=["default system prompt", "none"])
def test_ollamas_template_writes_what_the_models_own_does(template: str) -> None:
    tokenizer = chat_tokens(template)
    text = modelfile(ChatFormat(tokenizer, end_ids=[tokenizer.convert_tokens_to_ids("<|endoftext|>")]), "x.gguf")
    found = re.fullmatch(
        r'FROM \./x\.gguf\nTEMPLATE """(.*)"""\n'
        r'PARAMETER stop "<\|endoftext\|>"\nPARAMETER stop "<\|im_end\|>"\n', text, re.DOTALL
    )  # fmt: skip
    assert found
    turns = [
        {"role": "user", "content": " 你是誰\n"},
        {"role": "assistant", "content": "F#"},
        {"role": "user", "content": "x"},
    ]
    for messages in (turns[:1], turns, [{"role": "system", "content": "Be brief."}, *turns]):
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert rendered(found[1], messages) == expected


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (THINKING, "the chat template changes what is said, or frames it by what is said"),
        (PLAIN.replace("turn.content", "turn.content | trim"), "the chat template changes what is said"),
        (PLAIN.replace("<|im_start|>", "<|endoftext|>"), "the chat template is not ChatML: it writes"),
        (CHATML.replace("'You are Standin", "'You are {' + '{Standin"), "would be read as a program"),
    ],
)
def test_where_a_template_cannot_be_ollamas_the_modelfile_says_why(template: str, why: str) -> None:
    text = modelfile(ChatFormat(chat_tokens(template)), "x.gguf")
    first, reason, *stops = text.splitlines()
    assert first == "FROM ./x.gguf" and stops == ['PARAMETER stop "<|im_end|>"']
    assert reason.startswith("# No TEMPLATE: ") and why in reason and reason.endswith("the file's chat template.")


# ------------------------------------------------------------------------------------------------------ the folder


def test_a_folder_is_counted_loaded_decoded_and_asked(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    master, out = folders / "qwen2", folders / "qwen2-gguf"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["Modelfile", FILE, *(path.name for path in (folders / "qwen2-nvfp4").iterdir() if path.name != SINGLE)]
    )
    config = read_config(out)
    assert exporter_of(config) is GGUF and exporter_of(read_config(folders / "qwen2-gguf-bf16")) is GGUF_BF16
    assert config["quantization_config"] == {"quant_method": "gguf", "format": "gguf-nvfp4", "file": FILE}
    assert memory.stored(out).weights == memory.stored(master).weights
    assert memory.stored(out).file == (out / FILE).stat().st_size
    ours, theirs = (load_model(folders / f"qwen2-{one}")(input_ids=IDS).logits for one in ("gguf", "nvfp4"))
    assert torch.equal(ours, theirs)
    decode_export(out, tmp_path / "decoded")
    assert not (tmp_path / "decoded" / "Modelfile").exists() and not (tmp_path / "decoded" / FILE).exists()
    found, exact = load_file(tmp_path / "decoded" / SINGLE), dict(dequantised(out, exporter=GGUF))
    assert found.keys() == exact.keys() and all(torch.equal(found[name], exact[name]) for name in exact)
    for place in (out, out / FILE, folders / "qwen2-nvfp4"):
        args: Any = parse(["ask", str(place), "hi", "--max-tokens", "5", "--json"])
        work.ask(args, Worker(tmp_path / "report.json", args.guard.limit_gb, False))
    answers = [json.loads(line)["token_ids"] for line in capsys.readouterr().out.splitlines()]
    assert answers[0] == answers[1] == answers[2]


def test_an_export_is_inspected(folders: Path) -> None:
    for name, packed in (("gguf", 14), ("gguf-bf16", 0)):
        for place in (folders / f"llama-{name}", folders / f"llama-{name}" / FILE):
            lines = inspected(place).splitlines()
            assert f"tensors, {packed} of them nvfp4, 0 with faults" in lines[-2] and "sha256" in lines[-1]
            [up] = [line for line in lines if line.startswith("blk.0.ffn_up.weight ")]
            assert "128×64  nvfp4" in up and "global scale" in up if packed else "128×64  bf16" in up


def test_a_file_with_other_tensors_than_config_says_is_refused(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    GGUF.write(folders / "qwen3", out, "bfloat16")
    config = read_json(out / "config.json")
    write_json(out / "config.json", {**config, "num_hidden_layers": 3})
    with pytest.raises(UsageError, match=r"model\.gguf: the tensor blk\.2\.attn_q\.weight is missing"):
        list(dequantised(out, exporter=GGUF))
    write_json(out / "config.json", {**config, "intermediate_size": 192})
    with pytest.raises(
        UsageError, match=r"shape of blk\.0\.ffn_gate\.weight: found \[128, 64\], expected \[192, 64\] by"
    ):
        list(dequantised(out, exporter=GGUF))
    (out / FILE).unlink()
    with pytest.raises(UsageError, match=r"model\.gguf: no such file"):
        list(dequantised(out, exporter=GGUF))


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bad_tensor_scale_is_refused(value: float, folders: Path, tmp_path: Path) -> None:
    raw = bytearray((folders / "qwen3-gguf" / FILE).read_bytes())
    at = read_gguf(folders / "qwen3-gguf" / FILE).tensors["blk.0.attn_q.scale"].start
    raw[at : at + 4] = np.float32(value).tobytes()
    (tmp_path / "x.gguf").write_bytes(raw)
    with pytest.raises(UsageError, match=r"x\.gguf: blk\.0\.attn_q\.scale: found .*, expected one positive finite"):
        import_gguf(tmp_path / "x.gguf", tmp_path / "out")


# ------------------------------------------------------------------------------------------------ what is not written


def test_rows_that_are_no_whole_blocks_are_refused_by_name(tmp_path: Path) -> None:
    master = folder_of("qwen3", tmp_path / "master", hidden_size=96)
    words = r"master: model\.layers\.0\.self_attn\.q_proj\.weight: found rows of 96 weights, expected a multiple of 64"
    with pytest.raises(UsageError, match=words):
        GGUF.write(master, tmp_path / "out", "bfloat16")
    GGUF_BF16.write(master, tmp_path / "bf16", "bfloat16")
    assert not (tmp_path / "out").exists() and (tmp_path / "bf16" / FILE).is_file()


def test_the_embedded_bases_tokenizer_has_no_name_in_gguf(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"master/tokenizer\.json: pre_tokenizer: found .*expected that of one of qwen2"
    ):
        GGUF_BF16.write(tiny_folder(tmp_path / "master"), tmp_path / "out", "bfloat16")
    assert not (tmp_path / "out").exists()


def test_positions_scaled_otherwise_are_refused(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    for name, rope in (("llama", yarn), ("qwen3", LLAMA3)):
        master = folder_of(name, tmp_path / name, rope_parameters=rope)
        with pytest.raises(
            UsageError, match=rf"rope_type: found '{rope['rope_type']}', expected 'default', or 'llama3'"
        ):
            GGUF.write(master, tmp_path / "out", "bfloat16")


@pytest.mark.parametrize("exporter", [GGUF, GGUF_BF16], ids=lambda exporter: exporter.name)
@pytest.mark.parametrize("name", [UP, "model.norm.weight"])
def test_weights_that_are_no_numbers_are_refused(name: str, exporter: Gguf, tmp_path: Path) -> None:
    master = folder_of("qwen3", tmp_path / "master")
    tensors = load_file(master / SINGLE)
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, master / SINGLE, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=rf"master: {name}: a weight is not finite"):
        exporter.write(master, tmp_path / "out", "bfloat16")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_named_and_leaves_nothing(folders: Path, tmp_path: Path) -> None:
    """A file that may not grow says EFBIG instead of ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"out: it could not be written: File too large"):
            GGUF.write(folders / "qwen3", tmp_path / "out", "bfloat16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_other_tensors_than_config_says_are_refused(tmp_path: Path) -> None:
    master = folder_of("qwen3", tmp_path / "master")
    tensors = load_file(master / SINGLE)
    save_file({**tensors, "extra": torch.ones(2)}, master / SINGLE)
    with pytest.raises(UsageError, match=r"master: found the tensor extra, expected those of config\.json"):
        GGUF.write(master, tmp_path / "out", "bfloat16")
    save_file({name: value for name, value in tensors.items() if name != UP}, master / SINGLE)
    with pytest.raises(UsageError, match=rf"master: found no tensor {UP}"):
        GGUF.write(master, tmp_path / "out", "bfloat16")
    save_file({**tensors, UP: tensors[UP][:100].clone()}, master / SINGLE)
    with pytest.raises(UsageError, match=rf"master: shape of {UP}: found \[100, 64\], expected \[128, 64\] by"):
        GGUF.write(master, tmp_path / "out", "bfloat16")
