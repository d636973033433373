"""Load a model folder, plain or an NVFP4 export, and its tokenizer: offline, quiet, for reading only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Qwen3ForCausalLM
from transformers.utils import logging

from fgod.errors import UsageError
from fgod.files import read_json


@contextmanager
def quiet() -> Iterator[None]:
    """transformers says nothing but errors and shows no progress bar; its settings are as before afterwards."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        UsageError: the folder or the file is missing.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder, expected a Hugging Face model folder")
    return dict(read_json(folder / "config.json"))


def check_device(name: str) -> None:
    """Raise UsageError for `cuda` where torch sees no CUDA device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("probe.device: found 'cuda', but torch sees no CUDA device; expected cpu here")


def load_model(folder: Path, dtype: torch.dtype | None = None, device: str = "cpu") -> PreTrainedModel:
    """The model in eval mode, without gradients.

    Args:
        folder: a Qwen3 folder or a compressed-tensors export.
        dtype: of the weights in memory; None: as config.json says.
        device: cpu, or cuda, to which it is moved once it is loaded.

    Raises:
        UsageError: the folder is missing or broken, its tensors are not those that config.json asks for, or there is
            no such device.
    """
    check_device(device)
    quantised = "quantization_config" in read_config(folder)
    kind: Any = AutoModelForCausalLM if quantised else Qwen3ForCausalLM
    wanted: Any = "auto" if dtype is None else dtype
    with quiet():
        try:
            model, info = kind.from_pretrained(folder, dtype=wanted, local_files_only=True, output_loading_info=True)
        except Exception as error:  # transformers, huggingface_hub and safetensors share no narrower kind
            raise UsageError(f"{folder}: the model does not load: {first_line(error)}") from error
    check_complete(folder, info)
    if quantised and model.dtype == torch.float32:
        _widen(model)
    return model.to(device).eval().requires_grad_(False)


def _widen(model: PreTrainedModel) -> None:
    """transformers 5.17 unpacks NVFP4 to BF16, which holds it exactly, also beside other weights in float32."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, torch.nn.Linear) and isinstance(weight, torch.Tensor) and weight.dtype == torch.bfloat16:
            module.weight = torch.nn.Parameter(weight.float(), requires_grad=False)


def check_complete(folder: Path, info: Mapping[str, Any]) -> None:
    """Raise UsageError for tensors that transformers would fill with random numbers, or ignore, and only warn of."""
    for key, words in (
        ("missing_keys", "is missing from the weights"),
        ("mismatched_keys", "has another shape than config.json says"),
        ("unexpected_keys", "stands in the weights, but config.json has no place for it"),
    ):
        if info[key]:
            names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in info[key])
            raise UsageError(f"{folder}: the tensor {names[0]} {words} ({len(names)} such)")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        UsageError: the folder is missing, or its tokenizer files are missing or broken.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder, expected a Hugging Face model folder")
    if not (folder / "tokenizer.json").is_file():
        raise UsageError(f"{folder / 'tokenizer.json'}: no such file, expected a fast tokenizer")
    with quiet():
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # tokenizers raises bare Exception for a broken tokenizer.json
            raise UsageError(f"{folder}: the tokenizer does not load: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The kind and the first line of an exception."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
