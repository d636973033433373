"""Give a model whose head is its embedding a head of its own: a copy, which trains apart from the embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from fgod.chat import ChatSettings
from fgod.importing import RECORD
from fgod.model.folder import FolderFacts, check_folder, checked_config
from fgod.models.architecture import architecture_of, tensors_of, wrong
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.folders import DEVICE_SHARD_BYTES, copy_side_files, described, open_weights, write_weights
from fgod.system.files import atomic_folder, sha256_folder, write_json

TIED = "tie_word_embeddings"


def untie(
    source: Path,
    out: Path,
    chat: ChatSettings | None = None,
    say: Callable[[str], None] = lambda text: None,
    beat: Callable[[], None] = lambda: None,
) -> FolderFacts:
    """Write a folder of plain weights again, with a head of its own. `out` appears whole.

    Args:
        chat: the config's `chat`.

    Raises:
        UsageError: the folder is no base, or its head is no copy of the embedding.
    """
    config = checked_config(source)
    where = source / "config.json"
    if not architecture_of(config, str(where)).sizes(config, str(where)).tied:
        raise wrong(where, TIED, False, "true, or base.untie left out: this model has a head of its own")
    untied = {**config, TIED: False}
    wanted = tensors_of(untied, str(where))
    say(f"base · {source} · its head is made a tensor of its own")
    with open_weights(source) as weights, atomic_folder(out) as folder:

        def stored(name: str) -> Tensor:
            return weights.read(EMBEDDING if name == TIED_HEAD else name)

        def planned(name: str) -> dict[str, Tensor]:
            return {name: described(wanted[name], stored(name).dtype)}

        def made(name: str) -> dict[str, Tensor]:
            beat()
            return {name: stored(name)}

        write_weights(folder, list(wanted), planned, made, DEVICE_SHARD_BYTES)
        copy_side_files(source, folder)
        write_json(folder / "config.json", untied)
        write_json(folder / RECORD, {"source": source.name, "sha256": sha256_folder(source), "untied": True})
        return check_folder(folder, chat)
