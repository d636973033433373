"""Damaged and hostile files of tests/corpus/, each through its reader: refused with a message, or read, and no more.

A case is READER/refused-WHAT or READER/read-WHAT. What a fuzzer found (benchmarks/fuzz.py) stays there, cut to what
matters.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from fgod.errors import UsageError
from fgod.model.folder import check_folder
from fgod.nvfp4.folders import copy_side_files, open_weights
from tests.tiny_model import tiny_folder
from tests.untrusted import READERS, Watch

CORPUS = Path(__file__).parent / "corpus"
CASES = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.glob("*/*"))

ALLOCATED, EACH = 4 * 2**20, 64
"""Bytes that Python and numpy may allocate while a file is read: so many, and so many for each of the file's."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each reader, and whatever is imported late is there."""
    root, found = tmp_path_factory.mktemp("corpus"), {}
    for name, reader in READERS.items():
        found[name] = root / name / "inside"
        reader.prepare(found[name])
        for raw in reader.seeds():
            reader.try_one(found[name], raw)
    return found


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_refused_or_read(case: str, places: dict[str, Path], watch: Watch) -> None:
    name, _, what = case.partition("/")
    raw, folder = (CORPUS / case).read_bytes(), places[name]
    assert len(raw) < 4096
    tracemalloc.start()
    try:
        with watch.over(folder):
            error = READERS[name].try_one(folder, raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (error is None) == what.startswith("read-"), error
    assert peak < ALLOCATED + EACH * len(raw)
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "notes.txt"])
def test_a_link_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder, outside = tiny_folder(tmp_path / "model"), tmp_path / "elsewhere" / name
    outside.parent.mkdir()
    outside.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    words = rf"model/{name}: found a link to .*elsewhere/{name}, expected a file of this folder"
    for read in (check_folder, lambda place: copy_side_files(place, tmp_path), lambda place: opened(place)):
        with pytest.raises(UsageError, match=words):
            read(folder)
    assert not (tmp_path / name).exists()


def opened(folder: Path) -> None:
    with open_weights(folder):
        pass


def test_links_within_a_folder_and_of_a_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    folder, blobs = tiny_folder(tmp_path / "models--a--b" / "snapshots" / "1234"), tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (folder / "again.txt").symlink_to("tokenizer_config.json")
    for name in ("model.safetensors", "config.json"):
        (folder / name).rename(blobs / name)
        (folder / name).symlink_to(Path("..", "..", "blobs", name))
    assert check_folder(folder).layers == 2
    (tmp_path / "by-name").symlink_to(folder)
    assert check_folder(tmp_path / "by-name").layers == 2


@pytest.mark.parametrize("name", READERS)
def test_seeds_of_the_fuzzer_are_read(name: str, places: dict[str, Path]) -> None:
    """Else it would search among files that are refused at once."""
    reader = READERS[name]
    assert any(reader.try_one(places[name], raw) is None for raw in reader.seeds())
