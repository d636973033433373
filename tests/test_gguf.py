"""GGUF files: read as the gguf package reads them, imported to the weights and tokens they were made of, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer

from fgod.cli import main
from fgod.errors import UsageError
from fgod.importing import RECORD
from fgod.importing.gguf import import_gguf
from fgod.importing.gguf_config import unpermuted
from fgod.importing.gguf_file import decodable, read_gguf
from fgod.importing.gguf_tokenizer import tokenizer_of
from fgod.model.load import load_model
from fgod.system.files import read_json, sha256_file
from tests.byte_level_tokenizers import PEERS, SPECIAL, TEXTS, peer_llama3
from tests.families import family_model
from tests.gguf_files import add_tokenizer, permuted, write_gguf
from tests.tiny_model import tiny_tokenizer

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {"llama3": {"rope_parameters": LLAMA3_ROPE}}
NAMES = ("qwen2", "qwen3", "qwen3-untied", "llama", "llama3", "llama-biased", "mistral")
TYPES = [kind for kind in Type if decodable(kind)]
QUANTISED = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.F16, Type.BF16, Type.MXFP4)


def model_of(name: str) -> Any:
    return family_model(name, **CHANGES.get(name, {}))


@pytest.mark.parametrize("name", NAMES)
def test_a_family_comes_back_as_it_was_written(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    file = write_gguf(tmp_path / "model.gguf", model)
    facts = import_gguf(file, tmp_path / "out", "float32")
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert read_json(tmp_path / "out" / RECORD)["sha256"] == sha256_file(file)
    again = load_model(tmp_path / "out")
    assert type(again) is type(model)
    expected, found = dict(model.named_parameters()), dict(again.named_parameters())
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    ids = torch.tensor([[5, 6, 7, 9, 11, 2]])
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


def test_weights_are_written_in_bfloat16_unless_asked_otherwise(tmp_path: Path) -> None:
    model = model_of("qwen2")
    import_gguf(write_gguf(tmp_path / "model.gguf", model), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[n], p.detach().bfloat16()) for n, p in model.named_parameters())
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_every_type_is_decoded_as_the_gguf_package_decodes_it(kind: Type, seed: int, tmp_path: Path) -> None:
    """Random blocks, infinite scales and all; both the header and the data are read by the package too."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(seed).integers(0, 256, (3, 2 * size * (256 // block or 1)), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("padding", np.ones(3, np.float32))
    writer.add_tensor("weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file, peer = read_gguf(tmp_path / "one.gguf"), gguf.GGUFReader(tmp_path / "one.gguf")
    theirs = {tensor.name: tensor for tensor in peer.tensors}
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(np.array(theirs["weight"].data), kind)
        assert np.array_equal(file.read("weight"), expected, equal_nan=True)
        assert np.array_equal(file.read("weight", slice(1, None, 2)), expected[1::2], equal_nan=True)
    assert {n: (t.start, t.nbytes) for n, t in file.tensors.items()} == {
        n: (t.data_offset, t.n_bytes) for n, t in theirs.items()
    }


def test_a_weight_is_multiplied_by_its_scale_and_not_by_that_of_its_input(tmp_path: Path) -> None:
    model = model_of("qwen3")
    scales = {"blk.0.attn_q.scale": np.array([0.25]), "blk.1.ffn_down.scale": np.array([3.0])}
    inputs = {"blk.0.attn_q.input_scale": np.array([7.0]), "blk.1.ffn_up.input_scale": np.array([7.0])}
    file = write_gguf(tmp_path / "model.gguf", model, tensors={**scales, **inputs})
    import_gguf(file, tmp_path / "out", "float32")
    found, factors = (
        load_file(tmp_path / "out" / "model.safetensors"),
        {"0.self_attn.q_proj": 0.25, "1.mlp.down_proj": 3},
    )
    for name, parameter in model.named_parameters():
        factor = factors.get(name.removeprefix("model.layers.").removesuffix(".weight"), 1)
        assert torch.equal(found[name], parameter.detach() * factor)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_a_quantised_file_gives_what_its_blocks_stand_for(kind: Type, tmp_path: Path) -> None:
    model = model_of("llama")
    stored = ["token_embd.weight", "blk.0.attn_q.weight", "blk.1.ffn_up.weight"]
    file = write_gguf(tmp_path / "model.gguf", model, dict.fromkeys(stored, kind))
    import_gguf(file, tmp_path / "out", "float32")
    found, masters = load_file(tmp_path / "out" / "model.safetensors"), dict(model.named_parameters())
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"):
        rounded = gguf.dequantize(gguf.quantize(masters[name].detach().numpy(), kind), kind)
        assert np.array_equal(found[name].numpy(), rounded)
    q = "model.layers.0.self_attn.q_proj.weight"
    heads = model.config.num_attention_heads
    rounded = gguf.dequantize(gguf.quantize(permuted(masters[q].detach().numpy(), heads), kind), kind)
    assert np.array_equal(permuted(found[q].numpy(), heads), rounded)


def test_metadata_are_read_as_the_gguf_package_reads_them(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "qwen2")
    add_tokenizer(writer, tiny_tokenizer(), "qwen2")
    for number, value in enumerate([-3, 1e-6, True, "神", [1, 2, 3], ["a", "é"], [0.5, 2.5], [True, False]]):
        writer.add_key_value(f"some.{number}", value, gguf.GGUFValueType.get_type(value))
    writer.add_key_value("some.u64", 2**63, gguf.GGUFValueType.UINT64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    peer = gguf.GGUFReader(tmp_path / "one.gguf")
    theirs = {name: field.contents() for name, field in peer.fields.items() if not name.startswith("GGUF.")}
    ours = read_gguf(tmp_path / "one.gguf").metadata
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(np.array(ours[k], np.float32), np.array(v, np.float32)) if k == "some.1" else ours[k] == v
               for k, v in theirs.items())  # fmt: skip
    assert ours["some.1"] == 1e-6


@settings(deadline=None)
@given(heads=st.integers(1, 4), half=st.integers(1, 5), columns=st.integers(0, 3))
def test_the_order_of_rotary_rows_is_undone(heads: int, half: int, columns: int) -> None:
    shape = (2 * heads * half, columns) if columns else (2 * heads * half,)
    rows = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert np.array_equal(unpermuted(permuted(rows, heads), heads), rows)


# ------------------------------------------------------------------------------------------------- a table stored twice


def stored_twice(path: Path, name: str, types: dict[str, Type], head: np.ndarray | None = None) -> tuple[Any, Path]:
    model = model_of(name)
    table = model.get_input_embeddings().weight.detach().numpy()
    tensors = {"output.weight": table if head is None else head}
    return table, write_gguf(path / "model.gguf", model, types, tensors=tensors)


@pytest.mark.parametrize("finer", ["output.weight", "token_embd.weight"])
def test_of_a_tied_table_that_is_stored_twice_the_finer_one_is_both(finer: str, tmp_path: Path) -> None:
    types = {"output.weight": Type.Q4_0, "token_embd.weight": Type.Q4_0, finer: Type.Q8_0}
    table, file = stored_twice(tmp_path, "qwen2", types)
    assert import_gguf(file, tmp_path / "out", "float32").tied
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in found
    rounded = gguf.dequantize(gguf.quantize(table, Type.Q8_0), Type.Q8_0)
    assert np.array_equal(found["model.embed_tokens.weight"].numpy(), rounded)
    record = read_json(tmp_path / "out" / RECORD)
    assert record["table_stored_twice"] and record["embedding_from"] == finer


def test_two_tables_stay_two(tmp_path: Path) -> None:
    table, file = stored_twice(tmp_path, "qwen2", {}, head=-model_of("qwen2").lm_head.weight.detach().numpy())
    assert not import_gguf(file, tmp_path / "out", "float32").tied
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(found["lm_head.weight"].numpy(), -table)


# ------------------------------------------------------------------------------------------------------------ tokenizer


@pytest.fixture(scope="module", params=PEERS)
def tokenizers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The original and the one that was read from a GGUF file, saved and loaded."""
    folder = tmp_path_factory.mktemp("tokens")
    original = PEERS[request.param]()
    writer = gguf.GGUFWriter(folder / "one.gguf", "llama")
    add_tokenizer(writer, original, request.param)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    tokenizer_of(read_gguf(folder / "one.gguf").metadata, folder).tokenizer.save_pretrained(folder / "out")
    return original, AutoTokenizer.from_pretrained(folder / "out")


@settings(max_examples=60, deadline=None)
@given(text=st.text() | st.sampled_from(TEXTS) | st.text("aI'm s1２\n\t　é\u0301神<|end|>", max_size=30))
def test_a_tokenizer_gives_the_ids_of_the_original(tokenizers: tuple[Any, Any], text: str) -> None:
    original, read = tokenizers
    for options in ({}, {"split_special_tokens": True}):
        expected = original(text, add_special_tokens=False, **options)["input_ids"]
        assert read(text, add_special_tokens=False, **options)["input_ids"] == expected
    assert read.decode(expected) == original.decode(expected)


def test_roles_of_tokens_are_kept(tokenizers: tuple[Any, Any]) -> None:
    original, read = tokenizers
    assert (read.bos_token, read.eos_token, read.pad_token) == SPECIAL
    assert read.convert_tokens_to_ids(list(SPECIAL)) == original.convert_tokens_to_ids(list(SPECIAL))
    assert read.chat_template == original.chat_template
    assert len(read) == len(original)


def test_the_beginning_token_is_written_where_the_file_says_so_or_the_family_does(tmp_path: Path) -> None:
    original = peer_llama3()
    for add, pre, begins in ((None, "llama-bpe", True), (False, "llama-bpe", False), (True, "smollm", True)):
        writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
        add_tokenizer(writer, original, pre)
        if add is not None:
            writer.add_add_bos_token(add)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        read = tokenizer_of(read_gguf(tmp_path / "one.gguf").metadata, tmp_path).tokenizer
        assert (read("a")["input_ids"][0] == original.bos_token_id) is begins


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("good") / "model.gguf", model_of("llama"))


def refused(file: Path, words: str) -> None:
    """Importing fails with a message that names the file, and leaves nothing."""
    out = file.parent / "out"
    with pytest.raises(UsageError, match=words) as caught:
        import_gguf(file, out)
    assert str(file) in str(caught.value)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_short(good: Path, tmp_path: Path, share: float) -> None:
    data = good.read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(data[: int(share * (len(data) - 64))])
    refused(file, r"cut short|expected a GGUF file")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_refused_or_read_but_never_fails_otherwise(good: Path, tmp_path: Path, data: Any) -> None:
    content = bytearray(good.read_bytes())
    for place in data.draw(st.lists(st.integers(0, 2500), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    file = tmp_path / "damaged.gguf"
    file.write_bytes(content)
    try:
        import_gguf(file, tmp_path / "out")
    except UsageError as error:
        assert str(file) in str(error)
        assert not (tmp_path / "out").exists()
    else:
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("taken", [False, True])
def test_the_command_writes_a_folder_once(taken: bool, good: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    if taken:
        out.mkdir()
        with pytest.raises(SystemExit):
            main(["import", str(good), str(out)])
        assert "this folder exists; expected a new name" in capsys.readouterr().err and not list(out.iterdir())
    else:
        assert main(["import", str(good), str(out), "--dtype", "float32"]) == 0
        assert "LlamaForCausalLM, 2 layers, F32" in capsys.readouterr().err and (out / "config.json").exists()


def test_another_format(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    refused(file, "the first bytes: found b'PK.*, expected b'GGUF'")
    file.write_bytes(b"GGUF" + (3).to_bytes(4, "big") + bytes(100))
    refused(file, "version: found 50331648, expected 2 or 3, little-endian")
    with pytest.raises(UsageError, match=r"nowhere\.gguf: no such file, expected a GGUF file"):
        import_gguf(tmp_path / "nowhere.gguf", tmp_path / "out")


def test_a_type_that_nobody_decodes(good: Path, tmp_path: Path) -> None:
    name = b"blk.0.attn_q.weight"
    at = good.read_bytes().index(name) + len(name) + 4 + 2 * 8
    for number, found in ((99, "99"), (int(Type.Q8_K), "'Q8_K'")):
        content = bytearray(good.read_bytes())
        content[at : at + 4] = number.to_bytes(4, "little")
        (tmp_path / "model.gguf").write_bytes(content)
        refused(tmp_path / "model.gguf", f"type of blk.0.attn_q.weight: found {found}, expected one that can be .*Q4_K")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metadata": {"general.architecture": "gpt2"}}, "general.architecture: found 'gpt2', expected one of qwen2"),
        ({"metadata": {"general.architecture": None}}, "general.architecture: found None"),
        ({"metadata": {"llama.block_count": 2**24}}, "llama.block_count: found 16777216, expected at most"),
        ({"metadata": {"llama.block_count": None}}, "llama.block_count: found None, expected a whole number"),
        ({"metadata": {"llama.attention.head_count_kv": [1, 2]}}, r"head_count_kv: found \[1, 2\], .*all layers"),
        ({"metadata": {"llama.expert_count": 8}}, "llama.expert_count: found 8, expected none: a mixture of experts"),
        ({"metadata": {"llama.attention.sliding_window": 64}}, "sliding_window: found 64, expected none"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "rope.scaling.type: found 'yarn', expected none"),
        ({"metadata": {"llama.rope.dimension_count": 8}}, "rope.dimension_count: found 8, expected 16"),
        ({"metadata": {"split.count": 2}}, "split.count: found 2, expected one file"),
        ({"tensors": {"blk.1.ffn_up.weight": None}}, "the tensor blk.1.ffn_up.weight is missing"),
        ({"tensors": {"token_embd.weight": None}}, "the tensor token_embd.weight is missing"),
        ({"tensors": {"blk.0.strange.weight": np.ones(3)}}, "found the tensor blk.0.strange.weight, expected none"),
        ({"tensors": {"token_embd.scale": np.ones(1)}}, "found the tensor token_embd.scale, expected none"),
        ({"tensors": {"blk.0.attn_norm.scale": np.ones(1)}}, "found the tensor blk.0.attn_norm.scale, expected none"),
        ({"tensors": {"blk.0.attn_v.scale": np.ones(2)}}, r"blk.0.attn_v.scale: found \[1.0, 1.0\], expected one"),
        ({"tensors": {"output_norm.weight": np.ones(31)}}, r"shape of output_norm.weight: found \[31\], .*\[32\]"),
        ({"tensors": {"output_norm.weight": np.full(32, np.nan)}}, "output_norm.weight: a weight is not finite"),
        ({"tensors": {"rope_freqs.weight": np.arange(1, 9)}}, "rope_freqs.weight: found factors up to 8"),
        ({"metadata": {"tokenizer.ggml.model": None}}, "tokenizer.ggml.model: found None, expected 'gpt2'"),
        ({"metadata": {"tokenizer.ggml.model": "t5"}}, "tokenizer.ggml.model: found 't5', .*byte-level BPE"),
        ({"metadata": {"tokenizer.ggml.tokens": None}}, "tokenizer.ggml.tokens: found 'NoneType'"),
        ({"metadata": {"tokenizer.ggml.merges": ["abc"]}}, r"merges\[0\]: found 'abc', expected two tokens"),
        ({"metadata": {"tokenizer.ggml.merges": ["a ☃"]}}, r"merges\[0\]: found 'a ☃', expected two tokens"),
        ({"metadata": {"tokenizer.ggml.token_type": [1]}}, "token_type: found 1, expected a number for each"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": None}}, "eos_token_id: found None, expected the id"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": 9999}}, "eos_token_id: found 9999, expected an id below 304"),
        ({"metadata": {"tokenizer.chat_template": None}}, "tokenizer.chat_template: found None, expected a chat"),
        ({"pre": "strange"}, "tokenizer.ggml.pre: found 'strange', expected one of qwen2"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    refused(write_gguf(tmp_path / "model.gguf", model_of("llama"), **changes), words)
