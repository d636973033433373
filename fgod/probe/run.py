"""Ask a run's reloaded export every probe, beside the reference's answers, and write its records.

fgod probe --export … --reference … --probes … --out results/runs/STAGE/LINEAGE/metrics.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from fgod.answers import Answer, read_answers
from fgod.chat import ChatSettings, chat_of
from fgod.data.probes import Probe
from fgod.data.rows import spread
from fgod.documents import Parity, Probed
from fgod.evaluate.scoring import NOT_COMPARED, Scored, Standard, score
from fgod.evaluate.settings import ProbeSettings
from fgod.layout import RunRecords
from fgod.model.ask import AnswerSettings, ask
from fgod.model.chats import ChatFormat
from fgod.model.load import Beat, beat_at_each_forward, load_model, silent
from fgod.nvfp4.folders import read_plain_config, stored_block_scales
from fgod.probe import parity
from fgod.probe.harness import answer_to
from fgod.probe.likelihood import compare
from fgod.probe.record import measured, write_probes
from fgod.system import files
from fgod.train.device.weights import as_module, stream_in


def answer_settings(settings: ProbeSettings, chat: ChatSettings) -> AnswerSettings:
    """How replies are decoded: as the reference's were."""
    return AnswerSettings(settings.max_new_tokens, settings.batch, settings.device, chat)


@dataclass(frozen=True)
class Reference:
    """What a run is compared with: a folder of the reference's answers, and the folder of weights that gave them."""

    answers: Path
    weights: Path


def run_probes(
    export: Path,
    master: Path | None,
    reference: Reference,
    probes: Sequence[Probe],
    known: Mapping[str, Sequence[str]],
    standard: Standard,
    settings: ProbeSettings,
    out: Path,
    beat: Beat = silent,
    chat: ChatFormat | None = None,
    processes: int = 1,
) -> list[Scored]:
    """Probe an export and write probes.tsv and metrics.json. The reference has passed `harness.check_reference`.

    Args:
        master: the weights that trained, for parity with the training forward; None: not measured.
        known: key of a probe → the answers that the corpus knows as right for the base.
        out: the run's folder of records.
        beat: called with what is done, and without a phase at each forward pass (`fgod.guard.heartbeat`).
        chat: how the export writes chats; None: as its own template has it.
        processes: that ask and compare batches side by side on a CPU; of no consequence for the records.

    Raises:
        UsageError: a folder is missing or broken, or the config lacks a rule for a probe.
        FgodError: the reference lacks an answer, or its logits are not finite.
    """
    theirs = read_answers(reference.answers)
    model, chat = load_model(export, device=settings.device), chat or ChatFormat.of_folder(export)
    beat_at_each_forward(model, beat)
    beat("model_loaded")

    def load_reference() -> PreTrainedModel:
        loaded = load_model(reference.weights, device=settings.device)
        beat_at_each_forward(loaded, beat)
        return loaded

    records, ours = score_probes(
        model, load_reference, chat, probes, theirs, known, standard, settings, beat, processes
    )
    same = None
    if master is not None:
        same = measure_parity(model, chat, master, spread(ours, parity.PROMPTS), beat)
    beat("saving")
    run = RunRecords(out)
    write_probes(run.probes, records)
    written = files.file_digests(run.folder, [run.probes])
    measured(records, same, export_record(export), written).write(run.metrics)
    return records


def score_probes(
    model: PreTrainedModel,
    reference: Callable[[], PreTrainedModel],
    chat: ChatFormat,
    probes: Sequence[Probe],
    theirs: Mapping[str, Answer],
    known: Mapping[str, Sequence[str]],
    standard: Standard,
    settings: ProbeSettings,
    beat: Beat = silent,
    processes: int = 1,
) -> tuple[list[Scored], list[Answer]]:
    """What a loaded model says to probes, scored beside the reference, and all its answers.

    Args:
        reference: loads the reference, once the model has answered.
        theirs: the reference's answers, by key; the other arguments are those of `run_probes`.
    """
    references = {p.key: answer_to(p, theirs) for p in probes}
    chats = list(dict.fromkeys(chat_of(p) for p in probes))
    answers = ask(model, chat, chats, answer_settings(settings, chat.settings), processes)
    ours = {a.key: a for a in answers}
    beat("answered")
    compared = [theirs[p.key] for p in probes if p.scored]
    found = compare(reference(), model, chat, compared, settings.batch, processes)
    near = dict(zip((a.key for a in compared), found, strict=True))
    beat("compared")

    def judged(probe: Probe) -> Scored:
        reply, right = answer_to(probe, ours), known.get(probe.key, ())
        return score(probe, standard, reply, references[probe.key], right, near.get(probe.key, NOT_COMPARED))

    records = [judged(probe) for probe in probes]
    beat("scored")
    return records, answers


def measure_parity(
    model: PreTrainedModel,
    chat: ChatFormat,
    master: Path,
    answers: Sequence[Answer],
    beat: Beat = silent,
) -> Parity:
    """Compare the export's logits with those of the training forward of the master weights, on its own answers."""
    starts = chat.prompts([chat_of(a) for a in answers])
    chats = [start + list(a.token_ids) for start, a in zip(starts, answers, strict=True)]
    exported = parity.logits_of(model, chats)
    config = read_plain_config(master)
    masters = stream_in(master, config, "bf16" if config.get("dtype") == "bfloat16" else "fp32", model.device)
    dtype = str(model.dtype).removeprefix("torch.")
    training = as_module(masters, dtype, stored_block_scales(master, config))
    beat_at_each_forward(training, beat)
    return Parity(**parity.compare(parity.logits_of(training, chats), exported, [len(s) for s in starts]))


def export_record(export: Path) -> Probed:
    """What was probed."""
    listing = files.file_digests(export)
    size = sum(path.stat().st_size for path in files.folder_files(export))
    return Probed(sha256=files.sha256_listing(listing), bytes=size, files=listing)
