"""The base as the teacher: its distributions at the labels of a mix's rehearsed rows, made once and kept on disk.

    artifacts/mixes/{mix}/teacher-{id}/soft.safetensors    of each distinct row, at each of its labels, the top tokens
    artifacts/mixes/{mix}/teacher-{id}/teacher.json        what they were made of

Training then needs no second model: it reads the labels of a batch from the mapped file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from fgod.data.rows import Row, is_rehearsed
from fgod.errors import FgodError, UsageError
from fgod.layout import SOFT_LABELS
from fgod.model import memory
from fgod.model.chats import ChatFormat, Sample
from fgod.model.forks import in_batches
from fgod.model.generate import length_batches
from fgod.model.load import read_config
from fgod.nvfp4.folders import DTYPES, save_tensors
from fgod.progress.followed import follow
from fgod.train.batches import collate
from fgod.train.distil import Rehearsed, SoftLabels, places_of

LABELS_AT_ONCE = 128
"""Labels whose logits over the whole vocabulary exist at once."""

BYTES_A_TOKEN, BYTES_A_LABEL = 8, 4
"""On disk: of a top token its id and its log-probability, of a label the mass of all other tokens."""


def table_bytes(labels: int, top_k: int) -> int:
    """Of the file, without its header."""
    return labels * (top_k * BYTES_A_TOKEN + BYTES_A_LABEL)


def check_answered(rows: Sequence[Row], where: str) -> None:
    """Raise UsageError unless every row says who answered it."""
    if any(not row.answered_by for row in rows):
        raise UsageError(
            f"{where}: the column answered_by is missing or empty, so that nobody knows which rows are rehearsed; an "
            "older version made this mix: delete its folder and run snakemake again"
        )


def rehearsed_samples(samples: Sequence[Sample], rows: Sequence[Row]) -> list[Sample]:
    """The distinct samples of rehearsed rows, in order."""
    return list(dict.fromkeys(s for s, row in zip(samples, rows, strict=True) if is_rehearsed(row)))


def teacher_samples(chat: ChatFormat, rows: Sequence[Row]) -> dict[Sample, Sample]:
    """What the teacher reads for each distinct sample of a rehearsed row: the sample itself, or the same answer behind
    the system prompt under which the base gave it (`Row.asked_under`).

    Raises:
        FgodError: the answer has other tokens there.
    """
    numbered = [(number, row) for number, row in enumerate(rows, start=1) if is_rehearsed(row)]
    samples = chat.rows([row for _, row in numbered], numbers=[number for number, _ in numbered])
    moved = [(number, replace(row, system=row.asked_under)) for number, row in numbered if row.asked_under]
    elsewhere = iter(chat.rows([row for _, row in moved], numbers=[number for number, _ in moved]))
    pairs: dict[Sample, Sample] = {}
    for (_, row), sample in zip(numbered, samples, strict=True):
        other = next(elsewhere) if row.asked_under else sample
        if sample.ids[sample.prompt_length :] != other.ids[other.prompt_length :]:
            raise FgodError(
                f"the answer to {row.prompt!r} has other tokens under the system prompt {row.asked_under!r} than under "
                "its own, so that the teacher's distributions do not fit; leave out data.rehearse.neutral_system"
            )
        pairs[sample] = other
    return pairs


def key_of(sample: Sample) -> str:
    """Names a sample by its tokens."""
    return hashlib.sha256(f"{sample.earlier}|{sample.prompt_length}|{sample.ids}".encode()).hexdigest()[:32]


class TopTokens(NamedTuple):
    """Of one sample: ids int32 and log-probabilities float32 [labels, k], and the mass of the others [labels]."""

    ids: Tensor
    logprobs: Tensor
    rest: Tensor


@torch.inference_mode()
def top_tokens(logits: Tensor, top_k: int, temperature: float) -> TopTokens:
    """The most probable tokens of softmax(logits / temperature), from logits [labels, V]."""
    cooled = logits.float() / temperature
    total = cooled.logsumexp(-1, keepdim=True)
    top = cooled.topk(min(top_k, cooled.shape[1]))
    others = cooled.scatter_(1, top.indices, -torch.inf).logsumexp(-1)
    rest = torch.exp(others - total.squeeze(1))
    return TopTokens(top.indices.int(), top.values - total, rest)


def ask_teacher(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    top_k: int,
    temperature: float,
    batch_size: int,
    processes: int = 1,
) -> list[TopTokens]:
    """The top tokens of each sample's labels, on the CPU; samples of similar lengths run together.

    Args:
        processes: that compute batches side by side on a CPU; of no consequence for what they find.
    """
    batches = list(length_batches([len(sample.ids) for sample in samples], batch_size))

    @torch.inference_mode()
    def found_in(numbers: Sequence[int]) -> list[TopTokens]:
        batch = collate([samples[i] for i in numbers], 0)
        hidden = model.model(input_ids=batch.input_ids.to(model.device), use_cache=False).last_hidden_state
        chosen = hidden.flatten(0, 1).index_select(0, batch.positions.to(model.device))
        parts = [top_tokens(model.lm_head(some), top_k, temperature) for some in chosen.split(LABELS_AT_ONCE)]
        whole = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        counts = [len(samples[i].learned) for i in numbers]
        # copies, as pickle writes the whole of what a tensor is a view of
        columns = [[one.clone() for one in column.split(counts)] for column in whole]
        return [TopTokens(*found) for found in zip(*columns, strict=True)]

    with (
        in_batches(found_in, batches, processes, model.device) as made,
        follow("", len(samples), "row") as progress,
    ):
        found = dict(progress.each(made))
    return [found[i] for i in range(len(samples))]


def write_table(path: Path, samples: Sequence[Sample], found: Sequence[TopTokens]) -> None:
    """Write the top tokens of samples, each under its key.

    Raises:
        FgodError: a log-probability is not finite; names the sample.
    """
    tensors: dict[str, Tensor] = {}
    for number, (sample, one) in enumerate(zip(samples, found, strict=True)):
        if not (one.logprobs.isfinite().all() and one.rest.isfinite().all()):
            raise FgodError(f"the teacher's log-probabilities of rehearsed row {number} are not finite")
        key = key_of(sample)
        tensors |= {f"{key}.ids": one.ids, f"{key}.logprobs": one.logprobs, f"{key}.rest": one.rest}
    save_tensors(tensors, path)


def table_size(folder: Path) -> int:
    """Bytes of the file; read, it takes no more than twice that."""
    return (folder / SOFT_LABELS).stat().st_size


def with_teacher(samples: Sequence[Sample], rows: Sequence[Row], folder: Path) -> list[Sample]:
    """The samples, those of rehearsed rows with the teacher's distributions, which are views of the mapped file.

    Raises:
        UsageError: a row does not say who answered it.
        FgodError: the file has no entry for a rehearsed row.
    """
    check_answered(rows, str(folder.parent))
    path, known = folder / SOFT_LABELS, dict[Sample, SoftLabels]()
    with safe_open(path, framework="pt") as stored:
        names = frozenset(stored.keys())  # asked once: each call reads all names
        for sample in rehearsed_samples(samples, rows):
            if f"{key_of(sample)}.ids" not in names:
                raise FgodError(
                    f"{path}: no teacher distribution for a rehearsed row of {len(sample.ids)} tokens; delete "
                    f"{path.parent} and run snakemake again"
                )
            known[sample] = _read(stored, sample)
    return [
        Rehearsed(sample.ids, sample.prompt_length, sample.earlier, soft=known[sample]) if is_rehearsed(row) else sample
        for sample, row in zip(samples, rows, strict=True)
    ]


def _read(stored: safe_open, sample: Sample) -> SoftLabels:
    key = key_of(sample)
    ids, logprobs, rest = (stored.get_tensor(f"{key}.{name}") for name in ("ids", "logprobs", "rest"))
    p = logprobs.exp()
    total = p.sum(-1) + rest
    known = torch.ones(len(ids), dtype=torch.bool)
    return SoftLabels(ids, p / total[:, None], rest / total, known, places_of(sample))


def teacher_predictor(folder: Path, samples: Sequence[Sample], top_k: int, process: int, gpu: bool) -> memory.Predicted:
    """What asking the teacher will need at its widest; on the host its top tokens too."""
    model, config = memory.stored(folder), read_config(folder)
    dimensions = memory.Dimensions.from_config(config, str(folder / "config.json"))
    asked = memory.Asked(width=max((len(sample.ids) for sample in samples), default=1), new=1)
    item = DTYPES[config["dtype"]].itemsize
    labels = sum(len(sample.learned) for sample in samples)

    def predicted(batch: int, processes: int) -> memory.Parts:
        asking = memory.predict_answers(model, dimensions, config["dtype"], asked, batch, process, gpu, processes)
        asking["logits"] = processes * LABELS_AT_ONCE * dimensions.vocab * (item + 8)
        asking["soft labels"] = 0 if gpu else 2 * table_bytes(labels, top_k)  # and once more while they are written
        return memory.widest(memory.predict_loading(model, config["dtype"], process, gpu), asking)

    return predicted
