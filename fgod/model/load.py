"""Load a model folder, plain or an export, and its tokenizer: offline, quiet, for reading only.

transformers is imported where it is used: its models alone take longer than a short command's whole work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fgod.errors import UsageError
from fgod.exporters.exporter import EXPORTERS, Exporter, exporter_of
from fgod.exporters.read import dequantised
from fgod.models.files import check_links
from fgod.models.names import TIED_HEAD
from fgod.nvfp4.folders import DTYPES
from fgod.system.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextmanager
def quiet() -> Iterator[None]:
    """transformers says nothing but errors and shows no progress bar; its settings are as before afterwards."""
    from transformers.utils import logging

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
        UsageError: the folder or the file is missing, or the file or its quantization_config is no object; or a link
            leads out of the folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder, expected a Hugging Face model folder")
    check_links(folder)
    found = read_json(folder / "config.json")
    if not isinstance(found, dict):
        raise UsageError(f"{folder / 'config.json'}: found {type(found).__name__}, expected an object of keys")
    if not isinstance(quantised := found.get("quantization_config"), dict | None):
        raise UsageError(f"{folder / 'config.json'}: quantization_config: found {quantised!r}, expected an object")
    return found


Beat = Callable[..., None]
"""Called with a phase, or with nothing: a heartbeat (`fgod.guard.heartbeat`)."""


def silent(phase: str | None = None) -> None:
    """The heartbeat of a process that nobody watches."""


def beat_at_each_forward(model: PreTrainedModel, beat: Beat) -> None:
    """Give a heartbeat after each forward pass: a token of a batch. None where it is captured as a CUDA graph."""

    def hook(asked: PreTrainedModel, *_: object) -> None:  # no reference to `model`: it must go when its last user does
        if asked.device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            beat()

    model.register_forward_hook(hook)


def check_device(name: str, key: str = "probe.device") -> None:
    """Raise UsageError, which names `key`, for `cuda` where torch sees no CUDA device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"{key}: found 'cuda', but torch sees no CUDA device; expected cpu here")


def load_model(folder: Path, dtype: torch.dtype | None = None, device: str = "cpu") -> PreTrainedModel:
    """The model in eval mode, without gradients.

    Args:
        folder: plain weights, or an export, which is unpacked on the device, one weight at a time.
        dtype: of the weights in memory; None: as config.json says.
        device: cpu, or cuda.

    Raises:
        UsageError: the folder is missing or broken, it is quantised in an unknown format, its tensors are not those
            that config.json asks for, or there is no such device.
    """
    check_device(device)
    config = read_config(folder)
    if exporter := exporter_of(config):
        model = _load_export(exporter, folder, config, dtype or _stored_dtype(folder, config), torch.device(device))
    elif found := config.get("quantization_config"):
        raise unknown_format(folder, found)
    else:
        model = _load_plain(folder, "auto" if dtype is None else dtype).to(device)
    return model.eval().requires_grad_(False)


def _stored_dtype(folder: Path, config: Mapping[str, Any]) -> torch.dtype:
    """What an export is computed in."""
    found = config.get("dtype")
    if not isinstance(found, str) or found not in DTYPES:
        raise UsageError(f"{folder / 'config.json'}: dtype: found {found!r}, expected one of {', '.join(DTYPES)}")
    return DTYPES[found]


def unknown_format(folder: Path, found: Mapping[str, Any]) -> UsageError:
    """The error for weights that are quantised in a format that no exporter reads."""
    said = ", ".join(f"{key} {found[key]!r}" for key in ("quant_method", "format", "quant_algo") if key in found)
    known = ", ".join(sorted({exporter.engine for _, exporter in EXPORTERS.items() if exporter.engine}))
    return UsageError(
        f"{folder / 'config.json'}: quantization_config: found {said}, expected none or a format of {known}"
    )


@dataclass(frozen=True)
class Stock:
    """A model as transformers alone loads it. `cast`: its weights were cast to the dtype of its config.json, as this
    version of transformers unpacks them to another one, with which it cannot compute."""

    model: PreTrainedModel
    cast: bool


def load_stock(folder: Path) -> Stock:
    """The model of a folder as `AutoModelForCausalLM` loads it, on the CPU, in eval mode, without gradients.

    Raises:
        UsageError: transformers does not load it, or misses a tensor.
    """
    model = _load_plain(folder, "auto")
    dtype = DTYPES[read_config(folder)["dtype"]]
    cast = dtype == torch.float32 and any(one.dtype == torch.bfloat16 for one in model.parameters())
    return Stock((model.to(dtype) if cast else model).eval().requires_grad_(False), cast)


def _load_plain(folder: Path, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM
    with quiet(), explained(f"{folder}: the model does not load"):
        model, info = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
    check_complete(folder, info)
    return model


def _load_export(
    exporter: Exporter, folder: Path, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    with explained(f"{folder / 'config.json'}: transformers makes no model of it"):
        empty = _empty({key: value for key, value in config.items() if key != "quantization_config"})
    tensors = {name: weight.to(dtype, copy=True) for name, weight in dequantised(folder, device, exporter)}
    wanted = {name: parameter.shape for name, parameter in empty.named_parameters()}
    if empty.config.tie_word_embeddings:
        wanted.pop(TIED_HEAD, None)
    info = {
        "missing_keys": wanted.keys() - tensors.keys(),
        "mismatched_keys": {name for name in wanted.keys() & tensors.keys() if tensors[name].shape != wanted[name]},
        "unexpected_keys": tensors.keys() - wanted.keys(),
    }
    check_complete(folder, info)
    return _filled(empty, tensors)


def model_from_tensors(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """transformers' model of a config.json on these very tensors, by name, all on one device."""
    return _filled(_empty(config), tensors)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Models that are made inside have their parameters on the meta device, and their buffers on the CPU."""
    register = torch.nn.Module.register_parameter

    def register_on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else torch.nn.Parameter(parameter.to("meta")))

    torch.nn.Module.register_parameter = register_on_meta  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def _empty(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    known = {key: value for key, value in config.items() if key != "model_type"}
    with quiet(), _parameters_on_meta():
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **known))


def _filled(model: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """With rotary frequencies made anew: in float32, whatever the weights are."""
    own = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    model.load_state_dict(own, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    device = next(iter(tensors.values())).device
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model


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
    check_links(folder)
    _check_merges(folder / "tokenizer.json")
    from transformers import AutoTokenizer

    with quiet(), explained(f"{folder}: the tokenizer does not load"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


TOKENIZED = "Who are you, 你是誰？ お前は誰\n너는 누구니: it's 1234.5 __init__(self)  → Ünïcode"
"""A text by which two tokenizers of one vocabulary are compared."""


def check_same_tokens(folder: Path, base: Path) -> None:
    """Weights that are taught rows which the base's tokenizer measured, and compared with the base, have its tokenizer.

    Raises:
        UsageError: they have another; names a token.
    """
    ours, theirs = load_tokenizer(folder), load_tokenizer(base)
    found, expected = ours.get_vocab(), theirs.get_vocab()
    differing = sorted(token for token in found.keys() | expected.keys() if found.get(token) != expected.get(token))
    if differing:
        token = differing[0]
        ids = [vocabulary.get(token, "none") for vocabulary in (found, expected)]
        how = f"the token {token!r} has id {ids[0]}, expected {ids[1]} ({len(differing)} such)"
    elif ours.encode(TOKENIZED) != theirs.encode(TOKENIZED):
        how = f"it cuts {TOKENIZED!r} into other tokens"
    else:
        return
    raise UsageError(
        f"{folder}: found another tokenizer than that of {base}: {how}; expected the same, as rows and probes "
        "are written by the base's"
    )


def _check_merges(path: Path) -> None:
    """Raise UsageError for merges at which tokenizers panics, or ends the process: it cuts `continuing_subword_prefix`
    off the second token of each without a look whether it is there."""
    found = read_json(path)
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict):
        raise UsageError(f"{path}: model: found {type(model).__name__}, expected an object: it is no fast tokenizer")
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if not isinstance(prefix, str) or not prefix or not isinstance(merges, list):
        return
    for number, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        second = pair[1] if isinstance(pair, list) and len(pair) == 2 else ""
        if not isinstance(second, str) or not second.startswith(prefix):
            expected = f"a second token that begins with {prefix!r}, model.continuing_subword_prefix"
            raise UsageError(f"{path}: model.merges[{number}]: found {merge!r}, expected {expected}")


@contextmanager
def explained(said: str) -> Iterator[None]:
    """Turn whatever a library raises of a damaged file into a UsageError that begins so.

    transformers, huggingface_hub, safetensors and tokenizers share no narrower kind; what panics in Rust arrives as a
    BaseException of its own.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UsageError(f"{said}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The kind and the first line of an exception."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
