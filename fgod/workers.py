"""The work of commands that load weights: each runs in a child under the guard, which `fgod.supervise` starts.

A worker predicts its memory before it loads anything, takes a smaller batch where the configured one would not fit, and
gives a heartbeat at each forward pass. Its report for the command: `batch` and `predicted_mib`; `facts` that it found
out; `refused`, where torch's allocator refused what the guard does not allow; `error`, why it failed.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgod.chat import Chat, ChatSettings, chat_of
from fgod.documents import Recipe, SelfAskedStamp, TeacherStamp
from fgod.errors import FgodError, UsageError
from fgod.guard import KILLED_EXIT
from fgod.guard.cap import cap_allocator, capped_mib, refusal, room_mib
from fgod.guard.heartbeat import Heartbeat
from fgod.guard.limits import MIB_PER_GB, lowered
from fgod.guard.predict import TooLargeError, check
from fgod.guard.sources import HostMemory
from fgod.imports import lasting_imports
from fgod.layout import Base, Export, RunWeights, SelfAsked, Teacher
from fgod.registry import EXPORTERS
from fgod.system.files import atomic_folder, file_digests, sha256_file, write_json
from fgod.system.procfs import MIB, resident_mib

with lasting_imports():
    import torch

    from fgod.model import memory
    from fgod.model.chats import ChatFormat
    from fgod.model.load import beat_at_each_forward, check_device, load_model

if TYPE_CHECKING:
    from fgod.model.ask import AnswerSettings


class Worker:
    """What a worker may use, and what it reports.

    Args:
        report: file of its report; written with each thing that is reported, as a kill leaves no time.
        limit_gb: GiB of host memory that the guard allows.
        too_large_ok: start also what is predicted not to fit.
    """

    def __init__(self, report: Path, limit_gb: float, too_large_ok: bool) -> None:
        self._report_file = report
        self._report: dict[str, Any] = {}
        self.beat = Heartbeat.from_environment()
        self._host_mib = lowered(limit_gb * MIB_PER_GB, HostMemory(math.inf).total_mib())
        self._too_large_ok = too_large_ok
        self._process = int(resident_mib() * MIB)

    def report(self, **facts: Any) -> None:
        """Report something to the command that started this child."""
        self._report |= facts
        write_json(self._report_file, self._report)

    def process(self, gpu: bool) -> int:
        """Bytes in use before anything is loaded; on a GPU none."""
        return 0 if gpu else self._process

    def say(self, text: str) -> None:
        """For people; a heartbeat too."""
        print(text, file=sys.stderr, flush=True)
        self.beat()

    def limit(self, gpu: bool) -> int | None:
        """Bytes that may be used of the GPU (None: no guard says), or of the host."""
        if not gpu:
            return int(self._host_mib * MIB)
        room = room_mib()
        return None if room is None else int(capped_mib(room) * MIB)

    def fit(self, predicted: Callable[[int], memory.Parts], batch: int, gpu: bool) -> int:
        """The batch, halved until it is predicted to fit; 1 for work without one.

        Raises:
            TooLargeError: not even 1 is predicted to fit, and it is not to be tried all the same.
        """
        limit = self.limit(gpu)
        chosen = memory.largest_batch(predicted, batch, limit)
        if chosen is None and limit is not None:
            try:
                check(predicted(1), limit)
            except TooLargeError as error:
                if not self._too_large_ok:
                    raise
                self.say(f"fgod: {error} It is tried all the same (guard.too_large_ok).")
        elif chosen is not None and chosen < batch:
            self.say(f"fgod: {batch} prompts at once are predicted not to fit: {chosen} are asked at once")
        chosen = chosen or batch
        self.report(batch=chosen, predicted_mib=round(sum(predicted(chosen).values()) / MIB, 1))
        return chosen


Work = Callable[[Namespace, Worker], None]


def run(work: Work, args: Namespace) -> int:
    """Do the work and report to the file `args.child`; returns the exit code.

    75: torch's allocator refused what the guard does not allow.
    """
    if work not in (export, interpolate):
        with lasting_imports():
            import fgod.model.ask  # noqa: F401  transformers' models, which are part of what this process takes
    worker = Worker(args.child, args.limit_gb, args.too_large_ok)
    try:
        work(args, worker)
        return 0
    except torch.OutOfMemoryError:
        refused = refusal(room_mib())
        if not refused:
            raise
        worker.report(refused=f"{refused[0].upper()}{refused[1:]}.")
        return KILLED_EXIT
    except FgodError as error:
        worker.report(error=str(error))
        return error.exit_code


# ------------------------------------------------------------------------------------------------------------- base


def base(args: Namespace, worker: Worker) -> None:
    """Make the embedded base or a random one, import a file, or check a folder. The report has the `facts` about it."""
    make = {"folder": _folder_base, "gguf": _gguf_base, "random": _random_base, "embedded": _embedded_base}
    worker.report(facts=make[args.base["kind"]](args, worker))


def _folder_base(args: Namespace, worker: Worker) -> dict[str, Any]:
    from fgod.exporters.exporter import exporter_of
    from fgod.importing.nvfp4 import decode_export
    from fgod.model.folder import check_folder
    from fgod.model.load import read_config

    folder = Path(args.base["path"])
    if exporter_of(read_config(folder)):
        facts = decode_export(folder, Base(args.out.parent).master, args.chat, worker.say, worker.beat)
    else:
        facts = check_folder(folder, args.chat)
        worker.say(f"base · {folder} · {facts.parameters:,} parameters")
    return _facts(facts, folder)


def _gguf_base(args: Namespace, worker: Worker) -> dict[str, Any]:
    from fgod.importing.gguf import import_gguf

    file = Path(args.base["path"])
    facts = import_gguf(file, Base(args.out.parent).master, chat=args.chat, say=worker.say, beat=worker.beat)
    return _facts(facts, file)


def _facts(facts: Any, path: Path) -> dict[str, Any]:
    """What was found out of a folder, as JSON; `path` is the user's own file or folder."""
    return asdict(facts) | {"path": str(path)}


def _random_base(args: Namespace, worker: Worker) -> dict[str, Any]:
    from fgod.data.corpus import base_corpus
    from fgod.data.sources import load_sources
    from fgod.model.random import write_random

    rows = base_corpus(load_sources(args.sources, args.languages), args.base["seed"])
    return {"parameters": write_random(args.base, rows, args.out.parent / "master", worker.say, worker.beat)}


def _embedded_base(args: Namespace, worker: Worker) -> dict[str, Any]:
    from fgod.data.corpus import base_corpus
    from fgod.data.sources import load_sources
    from fgod.model.embedded import train_base
    from fgod.model.spec import EmbeddedSpec

    seed = args.base["seed"]
    rows = base_corpus(load_sources(args.sources, args.languages), seed)
    train_base(EmbeddedSpec.from_dict(args.base), rows, seed, args.out.parent / "master", worker.say)
    return {"rows": len(rows)}


# ---------------------------------------------------------------------------------------------------------- answers


def self_asked(args: Namespace, worker: Worker) -> None:
    """Prompts that the base asks of its own accord."""
    from fgod.data.asking import write_asked
    from fgod.model.self_asked import ask_itself, widest_opening

    asked = args.settings
    gpu = use_device(asked["device"])
    export = Export(args.export.parent).exported
    chat = ChatFormat.of_folder(export, args.chat)
    size = memory.Asked(widest_opening(chat, asked), asked["max_tokens"])
    batch = worker.fit(memory.answers_predictor(export, size, worker.process(gpu), gpu), args.batch, gpu)
    model = load_model(export, device=asked["device"])
    beat_at_each_forward(model, worker.beat)
    worker.beat("model_loaded")
    found = ask_itself(model, chat, asked, batch, worker.say)
    worker.beat("saving")
    with atomic_folder(args.out.parent) as folder:
        there = SelfAsked(folder)
        write_asked(there.table, found.kept)
        SelfAskedStamp(
            settings=asked,
            drawn=found.drawn,
            kept=dict(sorted(Counter(one.language for one in found.kept).items())),
            dropped=dict(found.dropped.most_common()),
            files=file_digests(folder),
        ).write(there.stamp)
    worker.say(f"self-asked · {found.words}")


def rehearsal(args: Namespace, worker: Worker) -> None:
    """The base's answers to the prompts that are rehearsed."""
    from fgod.data.asking import asked_prompts, read_asked
    from fgod.data.mix import rehearsal_prompts, some_of
    from fgod.data.recipe import NEIGHBOUR
    from fgod.data.sources import load_sources
    from fgod.data.wordings import optional_prompts
    from fgod.model.ask import AnswerSettings

    asked, sources = args.settings, load_sources(args.sources, args.languages)
    prompts = rehearsal_prompts(
        sources,
        frozenset(asked["held_out"]),
        asked["general_rows"],
        asked["replay_rows"],
        asked["disambiguation_rows"],
        asked["seed"],
        frozenset(asked["kinds"]),
    )
    parts = asked.get("parts", {})
    more = parts.get(NEIGHBOUR, {}).get("more")
    for part, written in optional_prompts(sources, args.sources, parts, more).items():
        prompts += some_of(written, parts[part]["rows"], asked["seed"])
    prompts += asked_prompts(read_asked(args.asked)) if args.asked else []
    settings = AnswerSettings(asked["max_new_tokens"], args.batch, device=asked["device"], chat=args.chat)
    answers = _answers(args, worker, [p.text for p in prompts], settings)
    ended, looped = sum(a.ended for a in answers), sum(a.looped for a in answers)
    worker.say(f"rehearsal · {len(answers)} answers of the base: {ended} ended, {looped} loop")


def reference(args: Namespace, worker: Worker) -> None:
    """The base's answers to the probes."""
    from fgod.data.probes import asked_in, load_probes
    from fgod.model.ask import AnswerSettings

    probes = asked_in(load_probes(args.probes, args.sources, args.languages), args.fold)
    settings = AnswerSettings(
        args.settings["max_new_tokens"], args.batch, device=args.settings["device"], chat=args.chat
    )
    _answers(args, worker, [chat_of(p) for p in probes], settings)


def teacher(args: Namespace, worker: Worker) -> None:
    """The base's distributions at the labels of a mix's rehearsed rows."""
    from fgod.data.rows import read_rows
    from fgod.train import teacher as made

    rows, asked = read_rows(args.rows), args.settings
    made.check_answered(rows, str(args.rows))
    chat = ChatFormat.of_folder(args.weights, ChatSettings.from_dict(asked["chat"]))
    samples = made.rehearsed_samples(chat.rows(rows), rows)
    labels = sum(len(sample.learned) for sample in samples)
    size = made.table_bytes(labels, asked["top_k"])
    worker.say(f"teacher · {len(samples)} rows, {labels} labels, {size / MIB:.1f} MiB on disk")
    if size > args.disk_gb * MIB_PER_GB * MIB:
        raise UsageError(
            f"data.teacher_gb: {size / MIB / MIB_PER_GB:.2f} GiB for {labels} labels, {args.disk_gb:g} are allowed; "
            "lower train.kl.top_k, or raise it"
        )
    gpu = use_device(asked["device"], "train.device")
    batch = worker.fit(
        lambda size: made.predict_teacher(args.weights, samples, asked["top_k"], size, worker.process(gpu), gpu),
        args.batch,
        gpu,
    )
    model = load_model(args.weights, device=asked["device"])
    beat_at_each_forward(model, worker.beat)
    worker.beat("model_loaded")
    found = dict(made.ask_teacher(model, samples, asked["top_k"], asked["temperature"], batch))
    worker.beat("saving")
    with atomic_folder(args.out.parent) as folder:
        made.write_table(Teacher(folder).soft_labels, samples, [found[i] for i in range(len(samples))])
        stamp = TeacherStamp(
            settings=asked, rows_sha256=sha256_file(args.rows), labels=labels, files=file_digests(folder)
        )
        stamp.write(Teacher(folder).stamp)


def placebo(args: Namespace, worker: Worker) -> None:
    """A mix with the base's own answers as targets of all that is taught. The report has what else was changed."""
    from fgod.data.placebo import placebo_rows, taught_chats
    from fgod.data.rows import read_rows, write_rows
    from fgod.model.generate import greedy
    from fgod.placebo import KEY

    rows, asked = read_rows(args.rows), args.spec[KEY]
    gpu = use_device(asked["device"])
    export = Export(args.export.parent).exported
    chat = ChatFormat.of_folder(export, args.chat)
    chats = taught_chats(rows)
    size = memory.Asked(max(map(len, chat.prompts(chats)), default=0), asked["max_new_tokens"])
    batch = worker.fit(memory.answers_predictor(export, size, worker.process(gpu), gpu), args.batch, gpu)
    model = load_model(export, device=asked["device"])
    beat_at_each_forward(model, worker.beat)
    worker.beat("model_loaded")
    made = placebo_rows(
        rows,
        lambda these: greedy(model, chat, these, asked["max_new_tokens"], batch),
        chat.row_lengths,
        asked["seq_len"],
    )
    worker.beat("saving")
    write_rows(args.out, made.rows)
    worker.report(facts={"changes": {"placebo": made.changes} if made.changes else {}})
    more = "".join(f"; {count}: {reason}" for reason, count in made.changes.items())
    worker.say(f"placebo · {len(chats)} taught prompts answered by the base{more}")


def _answers(args: Namespace, worker: Worker, prompts: Sequence[str | Chat], settings: AnswerSettings) -> Sequence[Any]:
    from fgod.model.ask import write_answers

    gpu = use_device(settings.device)
    export = Export(args.export.parent).exported
    width = width_of(export, settings.chat, prompts)
    asked = memory.Asked(width, settings.max_new_tokens)
    predicted = memory.answers_predictor(export, asked, worker.process(gpu), gpu)
    settings = replace(settings, batch_size=worker.fit(predicted, args.batch, gpu))
    return write_answers(export, prompts, args.out.parent, settings, worker.say, worker.beat)


def width_of(folder: Path, settings: ChatSettings, prompts: Sequence[str | Chat]) -> int:
    """Tokens of the longest prompt as a chat."""
    return max(map(len, ChatFormat.of_folder(folder, settings).prompts(prompts)), default=0)


def use_device(name: str, key: str = "probe.device") -> bool:
    """Set up a device by its name; returns whether it is a GPU. On a CPU one thread computes: answers are read again by
    machines with other numbers of cores, and sums in one order give the same bits."""
    if name == "cpu":
        torch.set_num_threads(1)
        return False
    check_device(name, key)
    cap_allocator(room_mib())
    return True


# ----------------------------------------------------------------------------------------------------------- export


def export(args: Namespace, worker: Worker) -> None:
    """Write the export of trained weights."""
    exporter = EXPORTERS[args.format]
    gpu = args.gpus > 0 and use_device("cuda", "--gpus")
    master, folder = memory.stored(args.weights), Export(args.out.parent).of(exporter.name)
    worker.fit(lambda _: memory.predict_export(master, worker.process(gpu), gpu), 1, gpu)
    exporter.write(args.weights, folder, args.dtype, torch.device("cuda" if gpu else "cpu"), worker.beat)


def interpolate(args: Namespace, worker: Worker) -> None:
    """Write weights between the start and the end of a training. The report has the share that changed, by tensor."""
    from fgod.train.interpolate import Line
    from fgod.train.interpolate import interpolate as write_between

    recipe = Recipe.read(args.recipe)
    assert recipe.alpha is not None  # the command has checked the recipe
    gpu = args.gpus > 0 and use_device("cuda", "--gpus")
    end = RunWeights(args.end.parent).master
    sizes = memory.stored(end)
    worker.fit(lambda _: memory.predict_interpolation(sizes, worker.process(gpu), gpu), 1, gpu)
    line = Line(recipe.alpha, recipe.train["master_dtype"], recipe.seed)
    device, out = torch.device("cuda" if gpu else "cpu"), RunWeights(args.stamp.parent).master
    changed = write_between(args.weights, end, line, out, device, worker.beat)
    worker.report(facts={"changed": changed})


# ------------------------------------------------------------------------------------------------------------ probe


def probe(args: Namespace, worker: Worker) -> None:
    """Ask a run's export the probes of the gate or of a confirmation, and measure."""
    from fgod.data.probes import asked_in, expected, load_probes
    from fgod.data.sources import load_sources
    from fgod.evaluate.scoring import Standard
    from fgod.evaluate.settings import ProbeSettings
    from fgod.evaluate.words import load_reply_words
    from fgod.persona import goal_from_config
    from fgod.probe.harness import unseen
    from fgod.probe.run import Reference, run_probes

    every = load_probes(args.probes, args.sources, args.languages)
    sources = load_sources(args.sources, args.languages)
    left = unseen(every, args.rows)
    if len(left) < len(every):
        worker.say(
            f"probe · {len(every) - len(left)} probes are not asked: the base asked them itself, and rehearses them"
        )
    probes = asked_in(left, args.fold)
    known = {p.key: expected(sources, p) if args.base["kind"] == "embedded" else () for p in probes}
    settings = ProbeSettings.from_dict(args.settings)
    gpu = use_device(settings.device)
    trained = RunWeights(args.export.parent)
    master, export = (args.model, args.model) if args.model else (trained.master, trained.of(args.format))
    reference = Reference(args.reference.parent, Export(args.reference_weights.parent).exported)
    asked = memory.Asked(width_of(export, args.chat, [chat_of(p) for p in probes]), settings.max_new_tokens)
    predicted = memory.probe_predictor(export, reference.weights, master, asked, worker.process(gpu), gpu)
    settings = replace(settings, batch=worker.fit(predicted, args.batch, gpu))
    run_probes(
        export,
        None if args.fold or args.model else master,  # the gate's probe has measured parity; the base did not train
        reference,
        probes,
        known,
        Standard(
            goal_from_config(args.goal),
            frozenset(args.held_out),
            args.base["closed_answers"],
            settings.chrf,
            load_reply_words(args.sources, probes),
        ),
        settings,
        args.out.parent,
        worker.say,
        worker.beat,
        args.chat,
    )


def evaluate(args: Namespace, worker: Worker) -> None:
    """Test two models on the same items."""
    from fgod.abilities import work

    work.evaluate(args, worker)


# ------------------------------------------------------------------------------------------------------------- talk


def ask(args: Namespace, worker: Worker) -> None:
    """Answer prompts."""
    from fgod.talk import work

    work.ask(args, worker)


def chat(args: Namespace, worker: Worker) -> None:
    """Talk."""
    from fgod.talk import work

    work.chat(args, worker)


def parity(args: Namespace, worker: Worker) -> None:
    """Compare two models' logits."""
    from fgod.talk import work

    work.parity(args, worker)
