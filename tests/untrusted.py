"""Readers of files that somebody else made, each given the bytes of one file: of benchmarks/fuzz.py and test_corpus.py.

A reader succeeds, or refuses the file by an `FgodError` that names it. It executes nothing of what it reads but chat
templates, in jinja's sandbox, and touches no file outside the folder.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gguf import GGMLQuantizationType
from safetensors.torch import load_file

import fgod
from fgod.chat import ChatSettings
from fgod.dat.exporter import DAT, DAT_FLOAT16
from fgod.dat.exporter import FILE as DAT_FILE
from fgod.dat.file import read_dat
from fgod.dat.weights import read_weight, stored_weights
from fgod.errors import FgodError
from fgod.exporters.nvfp4 import NVFP4
from fgod.importing.gguf_config import HEAD, TABLE, config_of, same_table
from fgod.importing.gguf_file import read_gguf
from fgod.importing.gguf_tokenizer import tokenizer_of
from fgod.importing.gguf_weights import model_of
from fgod.inspected import text as inspected
from fgod.model import memory
from fgod.model.chats import ChatFormat
from fgod.model.folder import checked_chat, checked_config, checked_weights, read_header
from fgod.model.load import load_model, read_config
from fgod.models.files import CONFIG
from fgod.nvfp4.folders import INDEX, SINGLE, open_weights, save_tensors
from tests.chat_templates import CHATML
from tests.families import family_model
from tests.gguf_files import write_gguf
from tests.tiny_model import tiny_folder

TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"


@dataclass(frozen=True)
class Untrusted:
    """A kind of file, and how the package reads it.

    Args:
        file: its name in the folder.
        read: reads the folder.
        seeds: small valid files, or some that are almost valid.
        beside: the other files of the folder, by name.
    """

    file: str
    read: Callable[[Path], None]
    seeds: Callable[[], list[bytes]]
    beside: Callable[[], Mapping[str, bytes]] = dict

    def prepare(self, folder: Path) -> None:
        """Make the folder with all files but the one that is to be read."""
        folder.mkdir(parents=True)
        for name, content in self.beside().items():
            (folder / name).write_bytes(content)

    def try_one(self, folder: Path, raw: bytes) -> FgodError | None:
        """The error by which a file is refused in a prepared folder; None: it is read.

        Raises:
            AssertionError: the error does not name the file or its folder.
        """
        (folder / self.file).write_bytes(raw)
        try:
            self.read(folder)
        except FgodError as error:
            assert str(folder) in str(error), f"the message names neither file nor folder: {error}"
            return error
        return None


class Forbidden(BaseException):
    """A reader did what it must not do. Nothing catches it."""


class Watch:
    """An audit hook that refuses what no reader may do, while it is on. Python cannot take it away again."""

    def __init__(self) -> None:
        self.folder, self.seen = "", ""
        sys.addaudithook(self._hook)

    @contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        """A reader of this folder works inside.

        Raises:
            Forbidden: it did what it must not do, even if it went on.
        """
        self.folder, self.seen = str(folder), ""
        try:
            yield
        finally:
            self.folder = ""
        if self.seen:
            raise Forbidden(self.seen)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder and self._forbids(event, args):
            self.seen = f"{event} {str(args)[:200]}"
            raise Forbidden(self.seen)

    def _forbids(self, event: str, args: tuple[Any, ...]) -> bool:
        if event.startswith(("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.", "pickle.")):
            return True
        if event == "open":
            path, _, flags = args
            return bool(flags & os.O_ACCMODE) and not isinstance(path, int) and not self._inside(path)
        if event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "shutil.rmtree"):
            return not self._inside(args[0])
        if event == "exec":
            return not _known(args[0].co_filename)
        return event == "compile" and not _known(str(args[1]))

    def _inside(self, path: Any) -> bool:
        return os.fsdecode(path).startswith(self.folder)


def _known(file: str) -> bool:
    """Whether code is that of an installed module, or of a chat template, which runs in jinja's sandbox."""
    installed = file.startswith((sys.prefix, sys.base_prefix, str(Path(fgod.__file__).parent), "<frozen"))
    return installed or file in ("<template>", "<unknown>", "<string>", "None")


@cache
def tiny_files(export: bool = False) -> Mapping[str, bytes]:
    """The files of a tiny model's folder, or of its NVFP4 export."""
    with TemporaryDirectory() as scratch:
        folder = tiny_folder(Path(scratch) / "tiny")
        if export:
            NVFP4.write(folder, folder := Path(scratch) / "export", "bfloat16")
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tiny_but(*left_out: str, export: bool = False) -> Mapping[str, bytes]:
    return {name: content for name, content in tiny_files(export).items() if name not in left_out}


# ------------------------------------------------------------------------------------------------------------ readers


def _read_dat(folder: Path) -> None:
    file = read_dat(folder / DAT_FILE)
    for stored in stored_weights(file).values():
        read_weight(file, stored)
    inspected(folder / DAT_FILE)


def _read_gguf(folder: Path) -> None:
    """All that `fgod import` does before it writes, and `fgod inspect`."""
    path = folder / "model.gguf"
    file = read_gguf(path)
    inspected(path)
    tied = HEAD not in file.tensors or (TABLE in file.tensors and same_table(file))
    config = config_of(file, tied)
    model = model_of(file, config, path, tied)
    for name in model.shapes:
        model.read(name)
    tokenizer_of(file.metadata, path)


def _read_safetensors(folder: Path) -> None:
    read_header(folder / SINGLE)
    with open_weights(folder) as weights:
        for name in weights.names:
            weights.shape(name)
            weights.read(name)


def _read_index(folder: Path) -> None:
    _read_safetensors_of_index(folder)
    checked_weights(folder, json.loads((folder / CONFIG).read_text()))


def _read_safetensors_of_index(folder: Path) -> None:
    with open_weights(folder) as weights:
        for name in weights.names:
            weights.read(name)


def _read_chats(folder: Path) -> None:
    checked_chat(folder, read_config(folder), ChatSettings())


def _read_config(folder: Path) -> None:
    """All that a base, or a folder that is asked, has to pass, and then its model."""
    config = checked_config(folder)
    checked_weights(folder, config)
    memory.stored(folder)
    memory.Dimensions.from_config(config, str(folder / CONFIG))
    ChatFormat.of_folder(folder)
    load_model(folder)


def _read_export(folder: Path) -> None:
    """The same of an export, whose config.json says how its weights are stored."""
    config = checked_config(folder, export_ok=True)
    memory.stored(folder)
    memory.Dimensions.from_config(config, str(folder / CONFIG))
    load_model(folder)


# -------------------------------------------------------------------------------------------------------------- seeds


def _dat_seeds() -> list[bytes]:
    with TemporaryDirectory() as scratch:
        root, found = Path(scratch), []
        master = tiny_folder(root / "master")
        for exporter in (DAT, DAT_FLOAT16):
            exporter.write(master, root / exporter.name, "bfloat16")
            found.append((root / exporter.name / DAT_FILE).read_bytes())
    one = b"\x01aw\x00"
    codes = b"\x07a.qdata\x00\x02\x01\x08" + bytes(range(8))
    return [*found, b"\x02" + codes + b"\x07a.scale\x65\x02\x01\x01\x38", b"\x01\x01a\x06\x01\x01\x00\x00\x80\x3f",
            b"\x02" + codes + b"\x07a.scale\x05\x02\x01\x01\x00\x3c", one]  # fmt: skip


def _gguf_seeds() -> list[bytes]:
    found = []
    with TemporaryDirectory() as scratch:
        for name in ("qwen3", "llama3"):
            model = family_model(name, num_hidden_layers=1)
            found.append(write_gguf(Path(scratch) / name, model).read_bytes())
        kinds = {"blk.0.attn_q.weight": GGMLQuantizationType.Q8_0, "token_embd.weight": GGMLQuantizationType.Q4_0}
        found.append(write_gguf(Path(scratch) / "quantised", family_model("qwen2"), kinds).read_bytes())
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 4, 2) + struct.pack("<II", 7, 8)
    tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 4, 0, 0)
    body = header + key + tensor
    return [*found, body + bytes(-len(body) % 32) + struct.pack("<4f", 1, 2, 3, 4)]


def _safetensors_seeds() -> list[bytes]:
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / SINGLE
        (Path(scratch) / "tiny").write_bytes(tiny_files()[SINGLE])
        tensors = {name: value for name, value in load_file(Path(scratch) / "tiny").items() if value.ndim == 1}
        save_tensors(tensors, path, {"format": "pt"})
        few = path.read_bytes()
    return [few, with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))]


def with_header(header: Any, data: bytes) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _index() -> bytes:
    names = json.loads(tiny_files()[SINGLE][8:][: struct.unpack("<Q", tiny_files()[SINGLE][:8])[0]])
    return json.dumps({"metadata": {}, "weight_map": {name: SINGLE for name in names if name[:2] != "__"}}).encode()


READERS = {
    "dat": Untrusted(DAT_FILE, _read_dat, _dat_seeds),
    "gguf": Untrusted("model.gguf", _read_gguf, _gguf_seeds),
    "safetensors": Untrusted(SINGLE, _read_safetensors, _safetensors_seeds),
    "index": Untrusted(INDEX, _read_index, lambda: [_index()], tiny_files),
    "tokenizer": Untrusted(
        TOKENIZER, _read_chats, lambda: [tiny_files()[TOKENIZER]], lambda: tiny_but(TOKENIZER, SINGLE)
    ),
    "template": Untrusted(
        TEMPLATE, _read_chats, lambda: [tiny_files()[TEMPLATE], CHATML.encode()], lambda: tiny_but(TEMPLATE, SINGLE)
    ),
    "export": Untrusted(
        CONFIG, _read_export, lambda: [tiny_files(export=True)[CONFIG]], lambda: tiny_but(CONFIG, export=True)
    ),
    "config": Untrusted(CONFIG, _read_config, lambda: [tiny_files()[CONFIG]], lambda: tiny_but(CONFIG)),
}
"""By the name of their folder in tests/corpus/."""
