"""Ask a model many prompts and keep its replies in a folder: the reference's answers, and targets for rehearsal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import PreTrainedModel

from fgod.answers import BATCH, COLUMNS, FRAME, TABLE, Answer
from fgod.chat import Chat, ChatSettings, chat_of
from fgod.data.rows import history_json
from fgod.documents import AnswersStamp
from fgod.errors import UsageError
from fgod.layout import Answers
from fgod.model.chats import ChatFormat
from fgod.model.generate import Reply, length_batches, loops, replies
from fgod.model.load import Beat, beat_at_each_forward, load_model, silent
from fgod.progress.followed import follow
from fgod.system.files import atomic_folder, file_digests
from fgod.system.table import write_table

Again = Callable[[Sequence[Answer]], Sequence[Chat]]
"""What is asked once more, after the answers."""

PORTION = 4
"""Batches whose prompts are sorted by length together."""


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are made. `device`: cpu, cuda; `chat`: the config's."""

    max_new_tokens: int = 48
    batch_size: int = BATCH
    device: str = "cpu"
    chat: ChatSettings = field(default_factory=ChatSettings)

    def __post_init__(self) -> None:
        for key in ("max_new_tokens", "batch_size"):
            value = getattr(self, key)
            if value < 1:
                raise UsageError(f"{key}: found {value}, expected at least 1")


def write_answers(
    model_folder: Path,
    prompts: Sequence[str | Chat],
    out_dir: Path,
    settings: AnswerSettings,
    beat: Beat = silent,
    again: Again | None = None,
    processes: int = 1,
    chat: ChatFormat | None = None,
) -> list[Answer]:
    """Ask the model of a folder each distinct prompt or chat; write `answers.tsv` and `answers.json`, both in one move.

    Args:
        beat: called with what is done, and without a phase at each forward pass (`fgod.guard.heartbeat`).
        processes: that compute batches side by side on a CPU; of no consequence for the answers.
        chat: of the folder and `settings.chat`, where it is read already.

    Raises:
        UsageError: the model folder is missing or broken.
    """
    model = load_model(model_folder, device=settings.device)
    chat = chat or ChatFormat.of_folder(model_folder, settings.chat)
    beat_at_each_forward(model, beat)
    beat("model_loaded")
    answers = ask(model, chat, list(dict.fromkeys(prompts)), settings, processes)
    if again is not None:
        answers += ask(model, chat, again(answers), settings, processes)
    beat("saving")
    with atomic_folder(out_dir) as folder:
        write_folder(folder, answers, settings)
    return answers


def ask(
    model: PreTrainedModel,
    chat: ChatFormat,
    prompts: Sequence[str | Chat],
    settings: AnswerSettings,
    processes: int = 1,
) -> list[Answer]:
    """Greedy answers of a loaded model, in the order of the prompts; a text is a chat of one turn."""
    chats = chat.prompts(prompts)
    batches = portioned([len(one) for one in chats], settings.batch_size)
    with (
        replies(model, chat, chats, batches, settings.max_new_tokens, processes) as said,
        follow("", len(prompts), "prompt") as progress,
    ):
        found = dict(progress.each(said))
    return [as_answer(prompt, found[i]) for i, prompt in enumerate(prompts)]


def portioned(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches: of each `PORTION` batches in turn, those of similar lengths together."""
    portion = PORTION * batch_size
    return [
        [start + i for i in batch]
        for start in range(0, len(lengths), portion)
        for batch in length_batches(lengths[start : start + portion], batch_size)
    ]


def as_answer(asked: str | Chat, reply: Reply) -> Answer:
    """A reply with what was asked, and whether it loops."""
    chat = asked if isinstance(asked, Chat) else chat_of(asked)
    *history, prompt = chat.turns
    looped = loops(reply.text)
    return Answer(prompt.content, reply.text, reply.token_ids, reply.ended, looped, chat.system, tuple(history))


def write_folder(folder: Path, answers: Sequence[Answer], settings: AnswerSettings) -> None:
    """Write both files."""
    rows = [
        {**vars(a), "token_ids": " ".join(map(str, a.token_ids)), "history": history_json(a.history)} for a in answers
    ]
    frame = FRAME if any(a.system or a.history for a in answers) else ()
    write_table(folder / TABLE, (*COLUMNS, *frame), rows)
    AnswersStamp(settings=asdict(settings), files=file_digests(folder)).write(Answers(folder).stamp)
