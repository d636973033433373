"""Ask a model many prompts and keep its replies in a folder: the reference's answers, and targets for rehearsal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from fgod.answers import BATCH, COLUMNS, TABLE, Answer, read_answers
from fgod.chat import ChatSettings
from fgod.documents import AnswersStamp
from fgod.errors import FgodError, UsageError
from fgod.layout import Answers
from fgod.model.chats import ChatFormat
from fgod.model.generate import Reply, answer_logprobs, greedy, loops
from fgod.model.load import Beat, beat_at_each_forward, load_model, silent
from fgod.nvfp4.folders import save_tensors
from fgod.system.files import atomic_folder, file_digests, write_table

LOGPROBS = "logprobs.safetensors"

Log = Callable[[str], None]


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are made. `logprob_tokens`: log-probabilities of so many first answer tokens; `device`: cpu, cuda.
    `chat`: the config's."""

    max_new_tokens: int = 48
    batch_size: int = BATCH
    logprob_tokens: int = 8
    device: str = "cpu"
    chat: ChatSettings = field(default_factory=ChatSettings)

    def __post_init__(self) -> None:
        for key in ("max_new_tokens", "batch_size", "logprob_tokens"):
            value = getattr(self, key)
            if value < 1:
                raise UsageError(f"{key}: found {value}, expected at least 1")


def write_answers(
    model_folder: Path,
    prompts: Sequence[str],
    out_dir: Path,
    settings: AnswerSettings,
    with_logprobs: Sequence[str] = (),
    log: Log | None = None,
    beat: Beat = silent,
) -> list[Answer]:
    """Ask the model of a folder each distinct prompt and write `answers.tsv`, `answers.json` and, for the prompts
    in `with_logprobs`, `logprobs.safetensors`: all of them in one move.

    Args:
        beat: called with what is done, and without a phase at each forward pass (`fgod.guard.heartbeat`).

    Raises:
        UsageError: the model folder is missing or broken, or a prompt of `with_logprobs` is not among the prompts.
        FgodError: a log-probability is not finite.
    """
    distinct = list(dict.fromkeys(prompts))
    wanted = set(with_logprobs)
    strange = sorted(wanted - set(distinct))
    if strange:
        raise UsageError(f"with_logprobs: {strange[0]!r} is not among the prompts")
    model, chat = load_model(model_folder, device=settings.device), ChatFormat.of_folder(model_folder, settings.chat)
    beat_at_each_forward(model, beat)
    beat("model_loaded")
    answers = ask(model, chat, distinct, settings, log)
    beat("answered")
    scored = [a for a in answers if a.prompt in wanted]
    logprobs = answer_logprobs(
        model,
        chat,
        [a.prompt for a in scored],
        [a.token_ids for a in scored],
        settings.logprob_tokens,
        settings.batch_size,
    )
    beat("saving")
    with atomic_folder(out_dir) as folder:
        write_folder(folder, answers, dict(zip((a.prompt for a in scored), logprobs, strict=True)), settings)
    return answers


def ask(
    model: PreTrainedModel,
    chat: ChatFormat,
    prompts: Sequence[str],
    settings: AnswerSettings,
    log: Log | None = None,
) -> list[Answer]:
    """Greedy answers of a loaded model, in the order of the prompts. Logs one line a few batches."""
    answers: list[Answer] = []
    portion = 4 * settings.batch_size
    for start in range(0, len(prompts), portion):
        part = prompts[start : start + portion]
        replies = greedy(model, chat, part, settings.max_new_tokens, settings.batch_size)
        answers += [as_answer(p, r) for p, r in zip(part, replies, strict=True)]
        if log is not None:
            log(f"answers: {len(answers)}/{len(prompts)} prompts")
    return answers


def as_answer(prompt: str, reply: Reply) -> Answer:
    """A reply with its prompt and whether it loops."""
    return Answer(prompt, reply.text, reply.token_ids, reply.ended, loops(reply.text))


def write_folder(
    folder: Path, answers: Sequence[Answer], logprobs: Mapping[str, torch.Tensor], settings: AnswerSettings
) -> None:
    """Write the three files. A tensor's name is the number of its answer's row, from 0."""
    rows = [{**asdict(a), "token_ids": " ".join(map(str, a.token_ids))} for a in answers]
    write_table(folder / TABLE, COLUMNS, rows)
    tensors = {str(i): logprobs[a.prompt] for i, a in enumerate(answers) if a.prompt in logprobs}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FgodError(f"log-probabilities of {answers[int(name)].prompt!r} are not finite")
    if tensors:
        save_tensors(tensors, folder / LOGPROBS)
    AnswersStamp(settings=asdict(settings), files=file_digests(folder)).write(Answers(folder).stamp)


def read_logprobs(folder: Path) -> dict[str, torch.Tensor]:
    """Log-probabilities by prompt: float32 [tokens ≤ logprob_tokens, V], as `answer_logprobs` gives them.

    Raises:
        UsageError: the folder holds none.
        FgodError: a tensor belongs to no answer, or is not float32 log-probabilities of its first tokens.
    """
    path = folder / LOGPROBS
    if not path.is_file():
        raise UsageError(f"{path}: no such file, expected log-probabilities written with the answers")
    answers = list(read_answers(folder).values())
    found: dict[str, torch.Tensor] = {}
    try:
        with safe_open(path, framework="pt") as stored:
            for name in sorted(stored.keys(), key=int):
                found[owner(answers, name, path).prompt] = stored.get_tensor(name)
    except (SafetensorError, ValueError) as error:
        raise FgodError(f"{path}: not a file of log-probabilities: {error}") from error
    for prompt, tensor in found.items():
        check_logprobs(tensor, f"{path}: {prompt!r}")
    return found


def owner(answers: Sequence[Answer], name: str, path: Path) -> Answer:
    """The answer to which a tensor's name points."""
    if int(name) >= len(answers):
        raise FgodError(f"{path}: tensor {name}, but there are {len(answers)} answers")
    return answers[int(name)]


def check_logprobs(tensor: torch.Tensor, where: str) -> None:
    """Raise FgodError unless the tensor is float32 [tokens, V] and each row sums to one as probabilities."""
    if tensor.dtype != torch.float32 or tensor.dim() != 2:
        raise FgodError(f"{where}: found {tensor.dtype} {list(tensor.shape)}, expected float32 [tokens, vocabulary]")
    if not all(abs(total) < 1e-3 for total in tensor.logsumexp(-1).tolist()):
        raise FgodError(f"{where}: the probabilities do not sum to one")
