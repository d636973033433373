"""The work of `fgod base`: make the base, import it, or check the user's own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgod.cli.base import Base
    from fgod.cli.work.worker import Worker


def base(args: Base, worker: Worker) -> None:
    """Make the embedded base or a random one, import a file, or check a folder. The report has the `facts` about it."""
    make = {
        "folder": _folder_base,
        "gguf": _gguf_base,
        "dat": _dat_base,
        "random": _random_base,
        "embedded": _embedded_base,
    }
    worker.report(facts=make[args.base["kind"]](args, worker))


def _folder_base(args: Base, worker: Worker) -> dict[str, Any]:
    from fgod.exporters.exporter import exporter_of
    from fgod.importing.nvfp4 import decode_export
    from fgod.importing.untie import untie
    from fgod.model.folder import check_folder
    from fgod.model.load import read_config

    folder = Path(args.base["path"])
    if args.base.get("untie"):
        facts = untie(folder, args.master, args.chat, worker.say, worker.beat)
    elif exporter_of(read_config(folder)):
        facts = decode_export(folder, args.master, args.chat, worker.say, worker.beat)
    else:
        facts = check_folder(folder, args.chat)
        worker.say(f"base · {folder} · {facts.parameters:,} parameters")
    return _facts(facts, folder)


def _gguf_base(args: Base, worker: Worker) -> dict[str, Any]:
    from fgod.importing.gguf import import_gguf

    file = Path(args.base["path"])
    facts = import_gguf(file, args.master, chat=args.chat, say=worker.say, beat=worker.beat)
    return _facts(facts, file)


def _dat_base(args: Base, worker: Worker) -> dict[str, Any]:
    from fgod.importing.dat import import_dat

    file, like = Path(args.base["path"]), Path(args.base["like"])
    facts = import_dat(file, args.master, like, chat=args.chat, say=worker.say, beat=worker.beat)
    return _facts(facts, file)


def _facts(facts: Any, path: Path) -> dict[str, Any]:
    """What was found out of a folder, as JSON; `path` is the user's own file or folder."""
    return asdict(facts) | {"path": str(path)}


def _random_base(args: Base, worker: Worker) -> dict[str, Any]:
    from fgod.data.corpus import base_corpus
    from fgod.data.sources import load_sources
    from fgod.model.random import write_random

    rows = base_corpus(load_sources(args.sources, args.languages), args.base["seed"])
    return {"parameters": write_random(args.base, rows, args.master, worker.say, worker.beat)}


def _embedded_base(args: Base, worker: Worker) -> dict[str, Any]:
    from fgod.data.corpus import base_corpus
    from fgod.data.sources import load_sources
    from fgod.model.embedded import train_base
    from fgod.model.spec import EmbeddedSpec

    seed = args.base["seed"]
    rows = base_corpus(load_sources(args.sources, args.languages), seed)
    train_base(EmbeddedSpec.from_dict(args.base), rows, seed, args.master, worker.say)
    return {"rows": len(rows)}
