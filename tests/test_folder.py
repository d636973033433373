"""Every way in which a folder can be unfit as a base is named, with its file; a fit one is not written to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fgod.data.rows import Row
from fgod.errors import UsageError
from fgod.model.embedded import train_base
from fgod.model.folder import check_folder
from fgod.model.spec import EmbeddedSpec
from fgod.nvfp4.folders import INDEX, SINGLE
from fgod.system.files import read_json, sha256_folder, write_json

EMBED = "model.embed_tokens.weight"
ROWS = [Row("你是誰", "我是通義千問。", "zh-Hant", "identity", "identity")]
TINY = EmbeddedSpec(hidden=32, layers=2, mlp=48, heads=2, head_dim=16, vocab=320, steps=1, batch=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "base"
    train_base(TINY, ROWS, 1, folder, lambda line: None)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "base"))


def edit(file: Path, **values: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    kept = {**read_json(file), **values}
    write_json(file, {k: v for k, v in kept.items() if v is not None})


def shard(folder: Path) -> None:
    """Split the weights into two files with an index."""
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({n: tensors[n] for n in part}, folder / file)
    write_json(folder / INDEX, {"weight_map": {n: file for file, part in halves.items() for n in part}})
    (folder / SINGLE).unlink()


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> None:
    """Change the tensors of the single weight file."""
    save_file(dict(change(load_file(folder / SINGLE))), folder / SINGLE)


def test_facts_of_a_fit_folder(folder: Path) -> None:
    before = sha256_folder(folder)
    facts = check_folder(folder)
    assert (facts.hidden, facts.layers, facts.mlp, facts.heads, facts.kv_heads, facts.head_dim) == (32, 2, 48, 2, 1, 16)
    assert facts.tied and facts.dtypes == ("F32",) and facts.shards == (SINGLE,)
    assert facts.parameters == sum(t.numel() for t in load_file(folder / SINGLE).values())
    assert facts.weight_bytes == 4 * facts.parameters
    assert facts.eos_ids == (2, 0) and facts.pad_id == 0
    assert sha256_folder(folder) == before


def test_shards_bfloat16_and_an_untied_head_are_fine(folder: Path) -> None:
    rewrite(folder, lambda t: {k: v.bfloat16() for k, v in t.items()} | {"lm_head.weight": torch.zeros_like(t[EMBED])})
    facts = check_folder(folder)
    assert facts.dtypes == ("BF16", "F32")
    edit(folder / "config.json", tie_word_embeddings=False)
    assert not check_folder(folder).tied
    shard(folder)
    assert len(check_folder(folder).shards) == 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures: found .*GPT2.*, expected .*Qwen3ForCausalLM"),
        ({"architectures": None}, "architectures: found None"),
        ({"intermediate_size": 40}, "intermediate_size: found 40, expected a multiple of 16"),
        ({"hidden_size": "x"}, "hidden_size: found 'x', expected a whole number"),
        ({"head_dim": 12}, r"num_attention_heads \* head_dim: found 24"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: found 'fp8', expected none"),
        ({"attention_bias": True}, "attention_bias: found True"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: found 'no'"),
    ],
)
def test_wrong_config(folder: Path, values: dict[str, Any], words: str) -> None:
    edit(folder / "config.json", **values)
    with pytest.raises(UsageError, match=f"config.json: {words}"):
        check_folder(folder)


def test_no_folder_no_config_no_json(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        check_folder(tmp_path / "nowhere")
    (folder / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json:1: not JSON"):
        check_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"config\.json: no such file"):
        check_folder(folder)


def test_missing_weights(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match=r"index\.json: .*model-00002-of-00002.*this shard is missing"):
        check_folder(folder)
    (folder / INDEX).unlink()
    with pytest.raises(UsageError, match=r"found no weights, expected model\.safetensors"):
        check_folder(folder)


def test_broken_index(folder: Path) -> None:
    shard(folder)
    index = read_json(folder / INDEX)
    name = "model.norm.weight"
    other = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} - {index["weight_map"][name]}
    index["weight_map"][name] = other_name = other.pop()
    write_json(folder / INDEX, index)
    with pytest.raises(UsageError, match=r"index\.json: model\.norm\.weight: found .*a file that holds this tensor"):
        check_folder(folder)
    index["weight_map"][name] = "../outside.safetensors"
    write_json(folder / INDEX, index)
    shutil.copyfile(folder / other_name, folder.parent / "outside.safetensors")
    with pytest.raises(
        UsageError, match=r"found '\.\./outside\.safetensors', expected the name of a file in this folder"
    ):
        check_folder(folder)
    write_json(folder / INDEX, {"weights": {}})
    with pytest.raises(UsageError, match="no usable weight_map"):
        check_folder(folder)


@pytest.mark.parametrize("length", [0, 5, 30, -1])
def test_truncated_weights(folder: Path, length: int) -> None:
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UsageError, match=r"model\.safetensors: size: found \d+, expected .*truncated"):
        check_folder(folder)


def test_weights_of_another_format(folder: Path) -> None:
    (folder / SINGLE).write_bytes((5).to_bytes(8, "little") + b"PK\x03\x04\x00")
    with pytest.raises(UsageError, match=r"model\.safetensors: size: found 13, expected a whole safetensors file"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {k: v for k, v in t.items() if "layers.1.mlp.up" not in k}, r"layers\.1\.mlp\.up_proj.*in none"),
        (lambda t: t | {"model.layers.2.mlp.up_proj.weight": torch.ones(1)}, "expected none of this name"),
        (lambda t: t | {"model.norm.weight": torch.ones(31)}, r"shape of model\.norm\.weight: found \[31\]"),
        (lambda t: t | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, "found 'I8', expected one of F32"),
    ],
)
def test_wrong_tensors(folder: Path, change: Callable[..., Any], words: str) -> None:
    rewrite(folder, change)
    with pytest.raises(UsageError, match=words):
        check_folder(folder)


def test_wrong_tokenizer(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ 'USER: ' + messages[0]['content'] }}")
    with pytest.raises(UsageError, match=r"chat_template: makes 'USER: PLACE0ECALP' of .*expected each once, in order"):
        check_folder(folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(UsageError, match="chat_template: fails with TemplateError: no"):
        check_folder(folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="chat_template: found none"):
        check_folder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"tokenizer\.json: no such file"):
        check_folder(folder)


@pytest.mark.parametrize("pad", ["<|im_end|>", None])
def test_rows_may_be_filled_up_by_an_end_token(folder: Path, pad: str | None) -> None:
    edit(folder / "tokenizer_config.json", pad_token=pad)
    assert check_folder(folder).pad_id == 2


def test_end_tokens(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=0)
    assert check_folder(folder).eos_ids == (0, 2)
    edit(folder / "generation_config.json", eos_token_id=[2, 99999])
    with pytest.raises(UsageError, match=r"generation_config\.json: eos_token_id: found 99999, expected an id below"):
        check_folder(folder)
    edit(folder / "generation_config.json", eos_token_id="2")
    with pytest.raises(UsageError, match="eos_token_id: found '2', expected a token id or a list"):
        check_folder(folder)
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=0)
    assert check_folder(folder).eos_ids == (0, 2)
    edit(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    with pytest.raises(UsageError, match=r"ends an answer with '<\|im_end\|>', expected one of '<\|endoftext\|>'"):
        check_folder(folder)
    edit(folder / "config.json", eos_token_id=None)
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UsageError, match="found no end-of-sequence token"):
        check_folder(folder)


def test_an_answer_must_end_with_a_control_token(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("'<|im_end|>\\n'", "'\\n'"))
    with pytest.raises(UsageError, match=r"writes '\\n' after an answer; expected a control token"):
        check_folder(folder)
