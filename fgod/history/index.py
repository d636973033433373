"""The commands on record by what they made. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from fgod import manifest, names
from fgod.layout import ARTIFACTS, TRASH
from fgod.names import run_name

Entry = Mapping[str, Any]
"""A command as `fgod.manifest.join` gives it."""


@dataclass(frozen=True)
class Made:
    """A file or folder that a command made, as it then was; `kind`: file, folder, missing (it was removed), unreadable.

    `sha256`: of a folder as of `fgod.system.files.sha256_folder`.
    """

    path: str
    kind: str
    sha256: str
    bytes: int | None
    entry: Entry

    @property
    def there(self) -> bool:
        """Whether the command left something."""
        return self.kind in ("file", "folder")


@dataclass
class Index:
    """What commands made, oldest first, by path."""

    by_path: dict[str, list[Made]] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Index:
        """That of all commands that ended; entries by their start."""
        found = cls()
        for entry in entries:
            for output in entry.get("outputs", ()):
                made = Made(output["path"], output["kind"], output["sha256"] or "", output["bytes"], entry)
                found.by_path.setdefault(made.path, []).append(made)
        return found

    def makers(self, path: str) -> list[Made]:
        """All that made a path, or a folder around it, oldest first; removals are left out."""
        around = (path, *(str(folder) for folder in PurePosixPath(path).parents))
        made = [made for place in around for made in self.by_path.get(place, ()) if made.there]
        return sorted(made, key=lambda one: str(one.entry.get("start")))

    def removed_by(self, path: str, since: str) -> Made | None:
        """The command that removed a path, or a folder around it, after a time."""
        around = (path, *(str(folder) for folder in PurePosixPath(path).parents))
        gone = [made for place in around for made in self.by_path.get(place, ()) if made.kind == "missing"]
        return next((made for made in reversed(gone) if str(made.entry.get("start")) > since), None)

    def newest(self) -> Iterator[Made]:
        """The newest of each path; what was removed since, by itself or with a folder around it, is left out."""
        for path, made in self.by_path.items():
            last = made[-1]
            if last.there and not self.removed_by(path, str(last.entry.get("start"))):
                yield last


def before(index: Index, entry: Entry) -> list[Entry]:
    """The commands that made what a command read, and what those read, the newest first; itself left out."""
    found: dict[str, Entry] = {}
    waiting = [entry]
    while waiting:
        current = waiting.pop()
        for read in current.get("inputs") or ():
            maker = maker_of(index, read["path"], read["sha256"], str(current.get("start")))
            if maker and maker.entry["name"] not in found and maker.entry["name"] != entry["name"]:
                found[maker.entry["name"]] = maker.entry
                waiting.append(maker.entry)
    return sorted(found.values(), key=lambda one: str(one.get("start")), reverse=True)


def maker_of(index: Index, path: str, sha256: str | None, until: str) -> Made | None:
    """The command that made what another one read: of this digest if one did, else the last before that."""
    earlier = [made for made in index.makers(path) if str(made.entry.get("start")) <= until]
    same = [made for made in earlier if made.path == path and made.sha256 == sha256]
    found = same or earlier
    return found[-1] if found else None


def home_of(path: str) -> str:
    """The place that a path in the trash came from; any other as it is."""
    match PurePosixPath(path).parts:
        case (ARTIFACTS.name, name, *rest) if name == TRASH:
            return str(PurePosixPath(ARTIFACTS.name, *rest))
    return path


def words_of(entry: Entry) -> str:
    """`train B-nudge@8d503d5b518c`: the subcommand, and the run that it was about."""
    words = subcommand(entry["argv"])
    return f"{words} {run_name(entry['stage'], entry['lineage'])}" if entry.get("stage") else words


def subcommand(argv: Sequence[str]) -> str:
    """The words that name a subcommand in a recorded command line: `data mix`."""
    return names.subcommand(manifest.arguments(argv))


def command_line(entry: Entry) -> str:
    """What to type in a shell."""
    return shlex.join(entry["argv"])
