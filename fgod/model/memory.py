"""What exporting a model, or asking it, will need in memory, part by part, before a tensor is loaded.

Sizes come from config.json and from the headers of the safetensors files. All numbers are bytes. The parts of a
prediction are alive at the same time. Temporaries of single operations are estimates; weights, KV cache and logits are
exact. On a GPU `process` is 0, and what lies on the host alone is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from fgod.errors import UsageError
from fgod.exporters.exporter import exporter_of
from fgod.model.load import read_config
from fgod.nvfp4.folders import DTYPES, MAPPED_BYTES, open_weights, weight_files

Parts = dict[str, int]
"""Bytes by what they are for."""

Predicted = Callable[[int, int], Parts]
"""By prompts at once, and by processes that ask as many each side by side."""

CACHE_ALIGNMENT = 16
"""The static KV cache's length is a multiple of this (`fgod.model.decode.ALIGNED`)."""

HIDDEN_COPIES, MLP_COPIES = 8, 3
"""Copies of a layer's hidden states (residual, norms in float32, their sum) and of its MLP's (gate, up, product)."""

FORKED_BYTES = 32 * 2**20
"""What a forked process (`fgod.model.forks`) has of its own besides what it computes: pages of Python's objects that it
has written to, buffers of the matrix products. 16 MiB after a pass of SmolLM2-135M with one row."""

DISTRIBUTIONS = 5
"""float64 copies [tokens, V] while one reply is compared: both log-probabilities, their difference, two temporaries."""

PLAIN_BYTES, PACKED_BYTES = 8, 12
"""Temporary bytes a weight while one tensor is read: in float32 and in its dtype; unpacked, codes and scales too."""


@dataclass(frozen=True)
class Dimensions:
    """Of a decoder, from its config.json."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Dimensions:
        """Raises UsageError for a missing size; names `where`."""

        def size(key: str, default: int | None = None) -> int:
            found = config.get(key, default)
            if not isinstance(found, int) or found < 1:
                raise UsageError(f"{where}: {key}: found {found!r}, expected a whole number above 0")
            return found

        hidden, heads = size("hidden_size"), size("num_attention_heads")
        return cls(
            layers=size("num_hidden_layers"),
            hidden=hidden,
            mlp=size("intermediate_size"),
            heads=heads,
            kv_heads=size("num_key_value_heads", heads),
            head_dim=size("head_dim", hidden // heads),
            vocab=size("vocab_size"),
        )


@dataclass(frozen=True)
class Stored:
    """A folder of weights, plain or an export."""

    weights: int
    """How many."""

    reading: int
    """Bytes of temporaries while the largest tensor is read."""

    file: int
    """Bytes of the largest file: it is mapped while it is read."""

    tensors: int
    """How many hold them."""


def stored(folder: Path) -> Stored:
    """Sizes of a folder's weights, from headers alone.

    Raises:
        UsageError: weights are missing or broken.
    """
    exporter = exporter_of(read_config(folder))
    with open_weights(folder) if exporter is None else exporter.open(folder) as weights:
        if exporter is None:
            shapes = {name: weights.shape(name) for name in weights.names}
        else:
            shapes = {name: exporter.shape(weights, name) for name in exporter.names(weights)}
        plain = {name for name, shape in shapes.items() if name in weights.files and weights.shape(name) == shape}
        files = {*weights.files.values()}
    counts = {name: prod(shape) for name, shape in shapes.items()}
    reading = max(count * (PLAIN_BYTES if name in plain else PACKED_BYTES) for name, count in counts.items())
    return Stored(sum(counts.values()), reading, max(file.stat().st_size for file in files), len(counts))


@dataclass(frozen=True)
class Asked:
    """What a model is asked. `width`: tokens of the longest chat; `new`: tokens of the longest reply."""

    width: int
    new: int


def predict_answers(
    model: Stored,
    dimensions: Dimensions,
    dtype: str,
    asked: Asked,
    batch: int,
    process: int,
    gpu: bool,
    processes: int = 1,
) -> Parts:
    """While a model decodes in batches.

    Args:
        dtype: of the weights in memory.
        process: bytes in use before anything is loaded.
        gpu: whether the model lies on a GPU, with a KV cache of a fixed size.
        processes: that decode a batch each and share the weights.
    """
    d, item = dimensions, DTYPES[dtype].itemsize
    length = asked.width + asked.new
    length += -length % CACHE_ALIGNMENT if gpu else 0
    layers = d.layers if gpu else d.layers + 1  # a cache that grows is copied layer by layer
    scores = 8 if item == 4 else item + 8  # as computed, in float32, and as log-probabilities
    return {
        "process": process,
        "forked processes": _forked(processes),
        "weights": model.weights * item,
        "KV cache": processes * 2 * layers * d.kv_heads * d.head_dim * batch * length * item,
        "activations": processes * _activations(d, item, batch, asked.width, length),
        "logits": processes * batch * d.vocab * scores,
    }


def _forked(processes: int) -> int:
    """Bytes of so many processes beside the one that forked them; of one, which is forked from none, 0."""
    return processes * FORKED_BYTES if processes > 1 else 0


def _activations(d: Dimensions, item: int, batch: int, width: int, length: int) -> int:
    """Bytes of one layer on `batch` sequences of `width` tokens that attend to `length`."""
    attention = (2 * d.heads + 2 * d.kv_heads) * d.head_dim * item
    layer = d.hidden * (item + 4) * HIDDEN_COPIES // 2 + d.mlp * item * MLP_COPIES + attention
    return batch * width * (layer + length * item)


def predict_comparison(
    model: Stored,
    reference: Stored,
    dimensions: Dimensions,
    dtype: str,
    asked: Asked,
    batch: int,
    process: int,
    processes: int = 1,
) -> Parts:
    """While a model and the reference read the reference's replies in the same batches, without a cache; each of
    `processes` a batch."""
    d, item, read = dimensions, DTYPES[dtype].itemsize, asked.width + asked.new
    return {
        "process": process,
        "forked processes": _forked(processes),
        "weights": model.weights * item,
        "reference weights": reference.weights * item,
        "activations": processes * _activations(d, item, batch, read, read),
        "logits": processes * 2 * batch * asked.new * d.vocab * item,
        "log-probabilities": processes * DISTRIBUTIONS * asked.new * d.vocab * 8,
    }


def predict_loading(model: Stored, dtype: str, process: int, gpu: bool) -> Parts:
    """While a folder is read: the mapped file, and one tensor that is unpacked."""
    return {
        "process": process,
        "weights": model.weights * DTYPES[dtype].itemsize,
        "mapped file": 0 if gpu else model.file,
        "tensor being read": model.reading,
    }


def predict_parity(
    model: Stored,
    master: Stored,
    dimensions: Dimensions,
    dtypes: tuple[str, str],
    asked: Asked,
    process: int,
) -> Parts:
    """While an export and the weights that it was made from answer the same few chats: no batch makes it smaller.

    Args:
        dtypes: of the export's weights and of the master's.
    """
    export, own = (DTYPES[dtype].itemsize for dtype in dtypes)
    return {
        "process": process,
        "weights": model.weights * export,
        "master weights": master.weights * own,
        "tensor being quantised": master.reading * PACKED_BYTES // PLAIN_BYTES,
        "logits": (asked.width + asked.new) * dimensions.vocab * (export + 4),
    }


def predict_export(master: Stored, process: int, gpu: bool) -> Parts:
    """While weights are quantised and written tensor by tensor. On the host: what is mapped of the file being read."""
    return {
        "process": process,
        "mapped file": 0 if gpu else _mapped(master),
        "tensors being quantised": master.reading * PACKED_BYTES // PLAIN_BYTES,
    }


def predict_interpolation(end: Stored, process: int, gpu: bool) -> Parts:
    """While weights are computed from two folders. On the host: what is mapped of the two files being read."""
    return {
        "process": process,
        "mapped files": 0 if gpu else 2 * _mapped(end),
        "tensors being computed": 2 * end.reading,
    }


def _mapped(folder: Stored) -> int:
    """Bytes of a file that are mapped at most while its tensors are read one after another."""
    return min(folder.file, MAPPED_BYTES + folder.reading // PLAIN_BYTES * 4)


def widest(*moments: Parts) -> Parts:
    """The moment that needs most."""
    return max(moments, key=lambda parts: sum(parts.values()))


def largest_batch(predicted: Callable[[int], Parts], batch: int, limit: int | None) -> int | None:
    """The batch, halved until its prediction is within the limit; None where that of 1 is not."""
    while limit is not None and sum(predicted(batch).values()) > limit:
        if batch == 1:
            return None
        batch //= 2
    return batch


def answers_predictor(export: Path, asked: Asked, process: int, gpu: bool) -> Predicted:
    """What asking an export will need at its widest."""
    model, config = stored(export), read_config(export)
    dimensions = Dimensions.from_config(config, str(export / "config.json"))

    def predicted(batch: int, processes: int) -> Parts:
        return widest(
            predict_loading(model, config["dtype"], process, gpu),
            predict_answers(model, dimensions, config["dtype"], asked, batch, process, gpu, processes),
        )

    return predicted


def predict_served(export: Path, width: int, process: int, new: int = 0) -> Parts:
    """While a model reads chats of so many tokens, on the host, as transformers loads it: it keeps what is stored
    beside what it unpacks.

    Args:
        new: tokens of the longest reply.
    """
    answers = answers_predictor(export, Asked(width, new), process, gpu=False)(1, 1)
    return {**answers, "weights as they are stored": sum(path.stat().st_size for path in weight_files(export))}


def probe_predictor(export: Path, reference: Path, master: Path, asked: Asked, process: int, gpu: bool) -> Predicted:
    """What a probe will need at its widest: asking the export, comparing it with the reference, and then with its
    master weights, which one process does."""
    answers, config = answers_predictor(export, asked, process, gpu), read_config(export)
    dimensions = Dimensions.from_config(config, str(export / "config.json"))
    dtypes = (config["dtype"], "bfloat16" if read_config(master).get("dtype") == "bfloat16" else "float32")
    model, theirs = stored(export), stored(reference)
    parity = predict_parity(model, stored(master), dimensions, dtypes, asked, process)

    def predicted(batch: int, processes: int) -> Parts:
        compared = predict_comparison(model, theirs, dimensions, config["dtype"], asked, batch, process, processes)
        return widest(answers(batch, processes), compared, parity)

    return predicted
