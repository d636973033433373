"""What `fgod evaluate` does in its child under the guard (see `fgod.cli.work.worker`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fgod.abilities import record
from fgod.abilities.choices import encode
from fgod.abilities.figures import summary
from fgod.abilities.items import Choice, Code, Instruction, Item, Suite, check_allowed, read_suites
from fgod.abilities.measure import Answers, Settings, answer, question
from fgod.cli.work.talk import check_like, folder_of, use
from fgod.cli.work.worker import Worker
from fgod.model import memory
from fgod.model.chats import ChatFormat
from fgod.model.load import Beat, beat_at_each_forward, load_model, silent
from fgod.system.files import file_digests, sha256_listing
from fgod.talk.opening import check_place, context_of, stored_dtype

if TYPE_CHECKING:
    from fgod.cli.judging import Evaluate


def evaluate(args: Evaluate, worker: Worker) -> None:
    """Ask both models all items, one model after the other, and write the records."""
    suites = read_suites(args.items)
    check_allowed(suites, args.code)
    check_like((args.base, args.tuned), args.like)
    gpu = use(args.device)
    folders = [folder_of(place, worker, args.like) for place in (args.base, args.tuned)]
    settings = Settings(args.code, args.chat_template, args.max_tokens, args.at_once, args.device, args.chat)
    predicted = [predictor(folder, suites, settings, worker.process(gpu), gpu) for folder in folders]
    batch = worker.fit(lambda size: memory.widest(*(one(size) for one in predicted)), settings.batch, gpu)
    settings = replace(settings, batch=batch)
    base, tuned = (ask_folder(folder, suites, settings, worker.say, worker.beat) for folder in folders)
    worker.beat("saving")
    compared = tuple({"folder": str(place), "sha256": _digest(place)} for place in (args.base, args.tuned))
    asked = asdict(settings) | {"chat": settings.chat.to_dict(), "items": args.items}
    document = record.write(args.out, suites, (base, tuned), args.loss_limit, (compared[0], compared[1]), asked)
    worker.say(summary(document))


def ask_folder(
    folder: Path, suites: Sequence[Suite], settings: Settings, say: Callable[[str], None], beat: Beat = silent
) -> Answers:
    """Load the model of a folder and ask it all items."""
    model = load_model(folder, stored_dtype(folder, check_place(folder)), settings.device)
    beat_at_each_forward(model, beat)
    beat("model_loaded")
    answers = answer(model, ChatFormat.of_folder(folder, settings.chat), suites, settings, say)
    del model
    if settings.device == "cuda":
        torch.cuda.empty_cache()
    return answers


def predictor(
    folder: Path, suites: Sequence[Suite], settings: Settings, process: int, gpu: bool
) -> Callable[[int], memory.Parts]:
    """By batch, what asking the model of a folder will need at its widest."""
    config = check_place(folder)
    chat, longest = ChatFormat.of_folder(folder, settings.chat), context_of(folder, config)
    items = [one for suite in suites for one in suite.items]
    choices = encode(chat, [one for one in items if isinstance(one, Choice)], settings.template, longest)
    asked = [one for own in choices for one in own]
    read = memory.Asked(_longest(one.read for one in asked), _longest(one.scored for one in asked))
    generated: list[Item] = [one for one in items if isinstance(one, Code | Instruction)]
    replied = memory.Asked(_longest(chat.prompts([question(one) for one in generated])), settings.max_new_tokens)
    dimensions = memory.Dimensions.from_config(config, str(folder / "config.json"))
    dtype, model = str(stored_dtype(folder, config)).removeprefix("torch."), memory.stored(folder)

    def parts(batch: int) -> memory.Parts:
        answers = memory.predict_answers(model, dimensions, dtype, replied, batch if generated else 0, process, gpu)
        scores = memory.predict_answers(model, dimensions, dtype, read, batch if asked else 0, process, gpu)
        scores |= {"KV cache": 0, "head in float32": dimensions.vocab * dimensions.hidden * 4}
        scores["logits"] = 2 * batch * read.new * dimensions.vocab * 4
        return memory.widest(memory.predict_loading(model, dtype, process, gpu), answers, scores)

    return parts


def _longest(rows: Iterable[Sequence[int]]) -> int:
    return max(map(len, rows), default=0)


def _digest(place: Path) -> str:
    return sha256_listing(file_digests(place)) if place.is_dir() else file_digests(place.parent, [place])[place.name]
