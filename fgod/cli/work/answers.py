"""The work of commands that ask the base (`fgod answers …`, `fgod data placebo`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fgod import layout
from fgod.answers import Answer
from fgod.chat import Chat, ChatSettings, chat_of
from fgod.cli.work.worker import Worker, use_device, width_of
from fgod.data.asking import DRAFTS, asked_prompts, read_asked, write_asked
from fgod.data.mix import rehearsal_prompts, some_of
from fgod.data.probes import asked_in, load_probes
from fgod.data.recipe import NEIGHBOUR
from fgod.data.rows import read_rows, write_rows
from fgod.data.sources import load_sources
from fgod.data.wordings import optional_prompts
from fgod.documents import SelfAskedStamp, TeacherStamp
from fgod.errors import UsageError
from fgod.guard.limits import MIB_PER_GB
from fgod.imports import lasting_imports
from fgod.persona import has_any
from fgod.placebo_rows import placebo_rows, taught_chats
from fgod.recipes import PLACEBO
from fgod.system.files import atomic_folder, file_digests, sha256_file
from fgod.system.procfs import MIB

with lasting_imports():
    from fgod.model import memory
    from fgod.model.ask import Again, AnswerSettings, write_answers
    from fgod.model.chats import ChatFormat
    from fgod.model.generate import greedy
    from fgod.model.self_asked import ask_itself, widest_opening
    from fgod.train import teacher as made

if TYPE_CHECKING:
    from fgod.cli.answers import Reference, Rehearsal, SelfAsked, Teacher
    from fgod.cli.data import Placebo


def self_asked(args: SelfAsked, worker: Worker) -> None:
    """Prompts that the base asks of its own accord."""
    asked = args.settings
    gpu = use_device(asked["device"])
    export = layout.Export(args.export.parent).exported
    chat = ChatFormat.of_folder(export, args.chat)
    size = memory.Asked(widest_opening(chat, asked), asked["max_tokens"])
    predicted = memory.answers_predictor(export, size, worker.process(gpu), gpu)
    drafts = DRAFTS * asked["prompts"]
    batch, processes = worker.fit_processes(predicted, args.at_once, gpu, drafts, args.most_processes)
    model = worker.load(export, asked["device"])
    found = ask_itself(model, chat, asked, batch, processes)
    worker.beat("saving")
    with atomic_folder(args.out.parent) as folder:
        there = layout.SelfAsked(folder)
        write_asked(there.table, found.kept)
        SelfAskedStamp(
            settings=asked,
            drawn=found.drawn,
            kept=dict(sorted(Counter(one.language for one in found.kept).items())),
            dropped=dict(found.dropped.most_common()),
            files=file_digests(folder),
        ).write(there.stamp)
    worker.say(f"self-asked · {found.words}")


def rehearsal(args: Rehearsal, worker: Worker) -> None:
    """The base's answers to the prompts that are rehearsed."""
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
    settings = AnswerSettings(asked["max_new_tokens"], args.at_once, device=asked["device"], chat=args.chat)
    texts, neutral = [p.text for p in prompts], asked.get("neutral_system", "")
    under = {text: replace(chat_of(text), system=neutral) for text in texts} if neutral else {}
    chat = ChatFormat.of_folder(layout.Export(args.export.parent).exported, args.chat)
    if neutral:
        _check_neutral(chat, neutral)

    def again(answers: Sequence[Answer]) -> list[Chat]:
        """The prompts whose answers name whom the persona replaces, under the system prompt that names nobody."""
        chats = [under[one.prompt] for one in answers if has_any(one.reply, asked.get("replaces", ()))]
        worker.say(f"rehearsal · {len(chats)} answers name whom the persona replaces; their prompts are asked again")
        return chats

    answers = _answers(args, worker, chat, texts, settings, list(under.values()), again if neutral else None)
    ended, looped = sum(a.ended for a in answers), sum(a.looped for a in answers)
    worker.say(f"rehearsal · {len(answers)} answers of the base: {ended} ended, {looped} loop")


def _check_neutral(chat: ChatFormat, neutral: str) -> None:
    """Raise UsageError if the base's template takes no system prompt."""
    try:
        chat.prompts([replace(chat_of("?"), system=neutral)])
    except UsageError as error:
        raise UsageError(
            f"data.rehearse.neutral_system: {error}; leave it out: prompts whose answers name the old identity are "
            "then not rehearsed"
        ) from error


def reference(args: Reference, worker: Worker) -> None:
    """The base's answers to the probes."""
    probes = asked_in(load_probes(args.probes, args.sources, args.languages), args.fold)
    settings = AnswerSettings(
        args.settings["max_new_tokens"], args.at_once, device=args.settings["device"], chat=args.chat
    )
    chat = ChatFormat.of_folder(layout.Export(args.export.parent).exported, args.chat)
    _answers(args, worker, chat, [chat_of(p) for p in probes], settings)


def teacher(args: Teacher, worker: Worker) -> None:
    """The base's distributions at the labels of a mix's rehearsed rows."""
    rows, asked = read_rows(args.rows), args.settings
    made.check_answered(rows, str(args.rows))
    chat = ChatFormat.of_folder(args.weights, ChatSettings.from_dict(asked["chat"]))
    pairs = made.teacher_samples(chat, rows)
    samples, asked_samples = list(pairs), list(pairs.values())
    labels = sum(len(sample.learned) for sample in samples)
    size = made.table_bytes(labels, asked["top_k"])
    worker.say(f"teacher · {len(samples)} rows, {labels} labels, {size / MIB:.1f} MiB on disk")
    if size > args.disk_gb * MIB_PER_GB * MIB:
        raise UsageError(
            f"data.teacher_gb: {size / MIB / MIB_PER_GB:.2f} GiB for {labels} labels, {args.disk_gb:g} are allowed; "
            "lower train.kl.top_k, or raise it"
        )
    gpu = use_device(asked["device"], "train.device")
    predicted = made.teacher_predictor(args.weights, asked_samples, asked["top_k"], worker.process(gpu), gpu)
    batch, processes = worker.fit_processes(predicted, args.at_once, gpu, len(samples), args.most_processes)
    model = worker.load(args.weights, asked["device"])
    found = made.ask_teacher(model, asked_samples, asked["top_k"], asked["temperature"], batch, processes)
    worker.beat("saving")
    with atomic_folder(args.out.parent) as folder:
        made.write_table(layout.Teacher(folder).soft_labels, samples, found)
        stamp = TeacherStamp(
            settings=asked, rows_sha256=sha256_file(args.rows), labels=labels, files=file_digests(folder)
        )
        stamp.write(layout.Teacher(folder).stamp)


def placebo(args: Placebo, worker: Worker) -> None:
    """A mix with the base's own answers as targets of all that is taught. The report has what else was changed."""
    rows, asked = read_rows(args.rows), args.spec[PLACEBO]
    gpu = use_device(asked["device"])
    export = layout.Export(args.export.parent).exported
    chat = ChatFormat.of_folder(export, args.chat)
    chats = taught_chats(rows)
    size = memory.Asked(max(map(len, chat.prompts(chats)), default=0), asked["max_new_tokens"])
    predicted = memory.answers_predictor(export, size, worker.process(gpu), gpu)
    batch, processes = worker.fit_processes(predicted, args.at_once, gpu, len(chats), args.most_processes)
    model = worker.load(export, asked["device"])
    made = placebo_rows(
        rows,
        lambda these: greedy(model, chat, these, asked["max_new_tokens"], batch, processes),
        chat.row_lengths,
        asked["seq_len"],
    )
    worker.beat("saving")
    write_rows(args.out, made.rows)
    worker.report(facts={"changes": {"placebo": made.changes} if made.changes else {}})
    more = "".join(f"; {count}: {reason}" for reason, count in made.changes.items())
    worker.say(f"placebo · {len(chats)} taught prompts answered by the base{more}")


def _answers(
    args: Rehearsal | Reference,
    worker: Worker,
    chat: ChatFormat,
    prompts: Sequence[str | Chat],
    settings: AnswerSettings,
    also: Sequence[Chat] = (),
    again: Again | None = None,
) -> Sequence[Answer]:
    """Answers to the prompts, then to those of `also` that `again` chooses."""
    gpu = use_device(settings.device)
    export = layout.Export(args.export.parent).exported
    asked = memory.Asked(width_of(chat, [*prompts, *also]), settings.max_new_tokens)
    predicted = memory.answers_predictor(export, asked, worker.process(gpu), gpu)
    batch, processes = worker.fit_processes(predicted, args.at_once, gpu, len(prompts), args.most_processes)
    settings = replace(settings, batch_size=batch)
    return write_answers(export, prompts, args.out.parent, settings, worker.beat, again, processes, chat)
