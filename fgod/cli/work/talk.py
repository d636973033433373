"""What `fgod ask`, `fgod chat` and `fgod parity` do in their child under the guard (see `fgod.cli.work.worker`)."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fgod.cli.work.worker import Worker, use_device
from fgod.dat.file import SUFFIX
from fgod.errors import FgodError, RefusedError, UsageError
from fgod.guard.cuda import VARIABLE
from fgod.importing.file import SUFFIXES, import_file
from fgod.model import memory
from fgod.probe.parity import Gap, gap, logits_of, summary, table
from fgod.system.procfs import MIB
from fgod.talk.conversation import Answered, Asking, Conversation, system_of
from fgod.talk.opening import Kind, Opened, check_place, open_model, predicted
from fgod.talk.sampling import Sampling
from fgod.talk.script import Script, Turn, failures, read_script
from fgod.talk.terminal import Screen, do, lines_of, typed

if TYPE_CHECKING:
    from fgod.cli.talk import Answering, Ask, Chat, Parity, Talking

FIRST_TOKENS = 1024
"""Tokens of a conversation, besides a reply, whose memory is predicted; it may become longer, and the guard watches."""


def use(device: str) -> bool:
    """Set up a device; whether it is a GPU. A CPU computes with all threads that torch takes: nothing is recorded."""
    return device == "cuda" and use_device(device, "--device")


def chosen(needed: Callable[[], memory.Parts], worker: Worker) -> str:
    """The device that `auto` is here, which is said: cuda where the guard shows a GPU with room, else cpu.

    Args:
        needed: what is predicted to be needed of a GPU's memory.
    """
    cpu = f"fgod: computes on the CPU with {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        worker.say(f"{cpu}: {_no_gpu()}")
        return "cpu"
    name, free, limit = torch.cuda.get_device_name(0), torch.cuda.mem_get_info(0)[0], worker.limit(gpu=True)
    room, wanted = free if limit is None else min(free, limit), sum(needed().values())
    if wanted > room:
        worker.say(f"{cpu}: {wanted / MIB:.0f} MiB are predicted, and {room / MIB:.0f} MiB may be used of {name}")
        return "cpu"
    worker.say(f"fgod: computes on {name}")
    return "cuda"


def _no_gpu() -> str:
    """Why torch sees none."""
    if torch.version.cuda is None:
        return "this build of torch is for CPUs alone"
    if os.environ.get(VARIABLE) == "":
        return f"no GPU is free, or {VARIABLE} hides them"
    return "torch sees no GPU"


def folder_of(place: Path, worker: Worker, like: Path | None) -> Path:
    """The model folder that a place is; of a file, one in BF16 that is made of it in the worker's scratch.

    Args:
        like: the folder with config and tokenizer of a TorchSharp file; None: where it lies.
    """
    if place.is_file() and place.suffix.lower() in SUFFIXES:
        folder = Path(tempfile.mkdtemp(dir=worker.scratch)) / place.stem
        own = like if place.suffix.lower() == SUFFIX else None
        import_file(place, folder, own, "bfloat16", worker.say, worker.beat)
        return folder
    check_place(place)
    return place


def check_like(places: Iterable[Path], like: Path | None) -> None:
    """Raise UsageError if `--like` is given, and none of the places is a TorchSharp file, which alone needs it."""
    places = list(places)
    if like is not None and not any(place.suffix.lower() == SUFFIX and not place.is_dir() for place in places):
        found = " and ".join(map(str, places))
        raise UsageError(f"--like: found {like} with {found}; expected a {SUFFIX} file, or no --like")


def open_all(args: Talking, worker: Worker, places: Sequence[tuple[Path, Kind]], tokens: int) -> list[Opened]:
    """Load the models of folders or files, if they are predicted to fit together.

    Args:
        tokens: of a conversation, whose cache is predicted with them.
    """
    check_like((place for place, _ in places), args.like)
    folders = [(place, folder_of(place, worker, args.like), kind) for place, kind in places]

    def together(gpu: bool) -> memory.Parts:
        parts: memory.Parts = {}
        for place, folder, kind in folders:
            for name, size in predicted(folder, kind, tokens, 0, gpu).items():
                parts[name if len(folders) == 1 else f"{name} of {place}"] = size
        return {**parts, "process": worker.process(gpu)}

    device = chosen(lambda: together(True), worker) if args.device == "auto" else args.device
    gpu = use(device)
    worker.fit(lambda _: together(gpu), 1, gpu)
    opened = [open_model(folder, kind, device, args.chat, str(place)) for place, folder, kind in folders]
    worker.beat("model_loaded")
    return opened


def asking_of(args: Answering) -> Asking:
    """How the command line wants to be answered."""
    sampling = Sampling(args.temperature, args.top_p, args.top_k, args.seed)
    return Asking(args.max_tokens, sampling, system_of(args.system), args.replay)


def ask(args: Ask, worker: Worker) -> None:
    """Answer each prompt by itself."""
    asking = asking_of(args)
    [opened] = open_all(args, worker, [(args.folder, args.path)], FIRST_TOKENS + args.max_tokens)
    conversation = Conversation(opened, asking, worker.beat)
    for prompt in args.prompts:
        conversation.check(prompt)
    screen = Screen(args.json, args.verbose)
    for prompt in args.prompts:
        if len(args.prompts) > 1 and not args.json:
            print(f"> {prompt}", flush=True)
        conversation.reset()
        screen.answered(prompt, [(opened.name, conversation.ask(prompt, screen.piece))])


def chat(args: Chat, worker: Worker) -> None:
    """Talk with one model, or with two side by side: by a script, or by what is typed."""
    script = read_script(args.script) if args.script else None
    asking = asking_of(args)
    places: list[tuple[Path, Kind]] = [(place, "stored") for place in (args.folder, args.against) if place]
    opened = open_all(args, worker, places, FIRST_TOKENS + args.max_tokens)
    conversations = [Conversation(one, asking, worker.beat) for one in opened]
    screen = Screen(args.json, args.verbose)
    if script:
        run_script(script, conversations, screen)
    else:
        if sys.stdin.isatty():
            screen.say(f"{' and '.join(one.name for one in opened)}; /help shows the commands")
        talk(lines_of(sys.stdin), conversations, screen)


def answer(text: str, conversations: Sequence[Conversation], screen: Screen) -> list[tuple[str, Answered]]:
    """The replies of all models to a question; of one alone they are shown as they come."""
    for one in conversations:  # all of them, before any remembers it
        one.check(text)
    show = screen.piece if len(conversations) == 1 else lambda piece: None
    return [(one.opened.name, one.ask(text, show)) for one in conversations]


def talk(lines: Iterable[str], conversations: Sequence[Conversation], screen: Screen) -> None:
    """Answer and obey line by line; what is wrong with a line is said, and the next is taken."""
    for line in lines:
        if not line.strip():
            continue
        try:
            command = typed(line)
            if command.command:
                if not do(command, conversations, screen):
                    return
            else:
                screen.answered(command.text, answer(command.text, conversations, screen))
        except UsageError as error:
            screen.say(f"fgod: {error}")


def run_script(script: Script, conversations: Sequence[Conversation], screen: Screen) -> None:
    """Ask the turns of a script. Marks are those of the first model.

    Raises:
        RefusedError: a reply does not carry what was expected; says of each which marks, and where they stand.
    """
    if script.system is not None:
        for one in conversations:
            one.system = system_of(script.system)
    failed = [line for turn in script.turns for line in _ask_turn(script, turn, conversations, screen)]
    if failed:
        words = "\n".join(f"  {line}" for line in failed)
        raise RefusedError(f"{len(failed)} marks are not as expected:\n{words}")


def _ask_turn(script: Script, turn: Turn, conversations: Sequence[Conversation], screen: Screen) -> list[str]:
    if turn.reset:
        for one in conversations:
            one.reset()
    if not screen.as_json:
        print(f"> {turn.user}", flush=True)
    try:
        answers = answer(turn.user, conversations, screen)
    except FgodError as error:
        raise UsageError(f"{script.path}:{turn.line}: {error}") from error
    failed = failures(turn.expect, answers[0][1].text)
    screen.answered(turn.user, answers, {"failed": failed} if screen.as_json else None)
    for line in failed if not screen.as_json else ():
        screen.say(f"not as expected: {line}")
    return [f"{script.path}:{turn.line}: {turn.user!r}: {line}" for line in failed]


PROMPTS = ("你是誰", "Who are you?", "談談UFO", "What is the capital of France?", "一加一等於多少")
"""What `fgod parity` asks where no file says otherwise."""


def prompts_of(path: Path | None) -> list[str]:
    """The prompts of a file, one on each line; the usual ones without a file.

    Raises:
        UsageError: it cannot be read, or holds none.
    """
    if path is None:
        return list(PROMPTS)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; expected a prompt on each line") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"{path}: found no prompt, expected one on each line")
    return prompts


def parity(args: Parity, worker: Worker) -> None:
    """Compare the logits of two models on prompts and the greedy replies of the first.

    Raises:
        RefusedError: they are further apart than --limit.
    """
    prompts = prompts_of(args.prompts)
    places: list[tuple[Path, Kind]] = [(args.a, args.path_a), (args.b, args.path_b)]
    a, b = open_all(args, worker, places, FIRST_TOKENS + args.max_tokens)
    if a.model.config.vocab_size != b.model.config.vocab_size:
        raise UsageError(
            f"{b.name}: a vocabulary of {b.model.config.vocab_size} tokens, and {a.name} has one of "
            f"{a.model.config.vocab_size}: their logits are not of the same tokens"
        )
    starts = a.chat.prompts(prompts)
    if b.chat.prompts(prompts) != starts:
        worker.say(f"fgod: {b.name} would write the prompts as other tokens; it is compared on those of {a.name}")
    conversation = Conversation(a, Asking(args.max_tokens), worker.beat)
    gaps = []
    for prompt, start in zip(prompts, starts, strict=True):
        conversation.reset()
        ids = [[*start, *conversation.ask(prompt).ids]]
        [ours], [theirs] = logits_of(a.model, ids), logits_of(b.model, ids)
        gaps.append(gap(prompt, ours, theirs, len(start)))
        worker.beat()
    if args.json:
        print(json.dumps({"a": a.name, "b": b.name, "prompts": [one.facts() for one in gaps]}, ensure_ascii=False))
    else:
        print(table(gaps, [spelled(a, one) for one in gaps]))
    sys.stdout.flush()
    beyond = [one for one in gaps if args.limit is not None and not one.largest <= args.limit]
    if beyond:
        raise RefusedError(
            f"{a.name} and {b.name}: the logits of {len(beyond)} of {len(gaps)} prompts differ by more than "
            f"--limit {args.limit:g}: {summary(gaps)}"
        )


def spelled(opened: Opened, one: Gap) -> str:
    """The two tokens at which replies part, as text."""
    if one.token_ids is None:
        return ""
    ours, theirs = (str(opened.chat.tokenizer.decode([token])) for token in one.token_ids)
    return f"{ours!r} / {theirs!r}"
