"""The inventory: every file of weights with purpose, origin, digest, size and status, and what people remark on it.

results/inventory.md and results/inventory.tsv are made from records and stamps; no weights are read. What it says
stands in `fgod.keep.words`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgod.decisions import ACCEPTED
from fgod.documents import BaseStamp, Outcome, Recipe, Release, Stamp, Trashed, Verdict
from fgod.errors import FgodError
from fgod.escape import markdown_text, one_line
from fgod.exporters.names import NVFP4
from fgod.keep.holds import held_runs
from fgod.keep.protect import Held
from fgod.keep.remarks import marked, remarks_of
from fgod.keep.trash import weights_of
from fgod.keep.words import STATUSES, WORDS
from fgod.layout import (
    ARTIFACTS,
    FORMATS,
    INVENTORY,
    INVENTORY_TABLE,
    RESULTS,
    Base,
    Export,
    Releases,
    RunRecords,
    RunWeights,
    all_releases,
    views,
)
from fgod.names import run_name
from fgod.runs import all_runs, name_of
from fgod.stamps import stamped
from fgod.system.files import read_json, write_text
from fgod.system.table import write_table

COLUMNS = ("path", "bytes", "sha256", "status", "format", "of", "purpose", "origin", "pins", "remark")


@dataclass(frozen=True)
class File:
    """A file of weights where it lies now, or lay last; `bytes` None: it is not there."""

    path: str
    bytes: int | None
    sha256: str


@dataclass(frozen=True)
class Folder:
    """A folder of weights; `status`: a key of STATUSES."""

    format: str
    status: str
    purpose: str
    files: tuple[File, ...]
    bytes: int | None


@dataclass(frozen=True)
class Group:
    """What belongs together: the base, the weights of a run, a release. Remarks go by `key`, in whatever language."""

    key: str
    title: str
    origin: str
    folders: tuple[Folder, ...]
    pins: tuple[str, ...] = ()


def write(results: Path = RESULTS, artifacts: Path = ARTIFACTS) -> list[Group]:
    """Write both files; returns what they list. Remarks are taken over from the file that stands there.

    Raises:
        FgodError: the marks of its remarks are faulty; names the line, and nothing is written.
    """
    remarks = read_remarks(results)
    groups = gather(results, artifacts)
    write_text(results / INVENTORY.name, text(groups, remarks))
    write_table(results / INVENTORY_TABLE.name, COLUMNS, _rows(groups, remarks))
    return groups


def read_remarks(results: Path = RESULTS) -> dict[str, str]:
    """The remarks that people wrote, by key.

    Raises:
        FgodError: see `fgod.keep.remarks.remarks_of`; or the file is not UTF-8.
    """
    file = results / INVENTORY.name
    if not file.exists():
        return {}
    try:
        return remarks_of(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise FgodError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


# What there is


def gather(results: Path = RESULTS, artifacts: Path = ARTIFACTS) -> list[Group]:
    """All weights that records or stamps speak of: bases, runs, releases."""
    bases = [Base(path.parent) for path in sorted((artifacts / "base").glob("*/base.json"))]
    held = held_runs(results, artifacts)
    candidates = _candidates(results)
    runs = [_run(run, held[name_of(run)], candidates, held, artifacts) for run in all_runs(results)]
    releases = [_release(record, of) for of in all_releases(results, artifacts) for record in of.records()]
    return [*map(_base, bases), *(group for group in runs if group.folders), *releases]


def _candidates(results: Path) -> set[str]:
    """Lineages of the fits that every gate accepted, by the walks on record."""
    visits = [visit for told in views(results) for visit in read_json(told.walk)["walk"]["visits"]]
    return {visit["lineage"] for visit in visits if visit["candidate"]}


def _base(base: Base) -> Group:
    stamp = BaseStamp.read(base.stamp)
    own = stamp.base.get("path") if stamp.base["kind"] == "folder" and not base.master.is_dir() else None
    master = Path(own) if own else base.master
    folders = [_folder(master, "master", "base", WORDS["purpose_base"], stamp)]
    for place in sorted(path for path in base.folder.iterdir() if path.is_dir()):
        for folder, _, exported in stamped(Export(place)):
            purpose = WORDS["purpose_base_export"].format(format=folder.name)
            folders.append(_folder(folder, folder.name, "base", purpose, exported))
    kind = " ".join(str(stamp.base[key]) for key in ("kind", "path", "shape") if key in stamp.base)
    title, origin = WORDS["base"].format(id=base.folder.name), WORDS["base_origin"].format(kind=one_line(kind))
    return Group(f"base {base.folder.name}", title, origin, tuple(folders))


def _run(run: RunRecords, held: Held, candidates: set[str], others: Mapping[str, Held], artifacts: Path) -> Group:
    weights = weights_of(run, artifacts)
    sizes = Trashed.read(run.trashed).folders if run.trashed.exists() else {}
    folders = []
    for folder, _, stamp in stamped(weights):
        name = folder.name
        in_trash = weights.trash / name
        status = status_of(held, folder.is_dir(), in_trash.is_dir(), bool(sizes), held.lineage in candidates)
        place = folder if folder.is_dir() or not in_trash.is_dir() else in_trash
        folders.append(_folder(place, name, status, _purpose(weights, folder), stamp))
    return Group(held.name, held.name, _run_origin(run, held, others), tuple(folders), held.pins)


def status_of(held: Held, there: bool, in_trash: bool, was_in_trash: bool, candidate: bool) -> str:
    """The status of a folder of a run's weights, a key of STATUSES. Pure."""
    if not there:
        return "trashed" if in_trash else "emptied" if was_in_trash else "missing"
    if held.releases:
        return "released"
    if held.pins:
        return "pinned"
    if held.decision is None:
        return "pending"
    if held.decision != ACCEPTED:
        return "failed"
    return "candidate" if candidate else "accepted"


def _purpose(weights: RunWeights, folder: Path) -> str:
    which = {weights.master: "purpose_master", weights.exported: "purpose_export"}.get(folder, "purpose_format")
    return WORDS[which].format(format=folder.name)


def _run_origin(run: RunRecords, held: Held, others: Mapping[str, Held]) -> str:
    recipe = Recipe.read(run.recipe)
    names = {other.lineage: name for name, other in others.items()}
    if recipe.alpha is None:
        how = WORDS["steps"].format(steps=recipe.train.get("steps", "–"), lr=recipe.train.get("lr"), seed=recipe.seed)
    else:
        how = WORDS["interpolated"].format(alpha=f"{recipe.alpha:g}", of=names.get(recipe.of, recipe.of))
    start = names.get(recipe.starts_from, WORDS["base"].format(id=recipe.starts_from))
    said = WORDS["run_origin"].format(stage=recipe.stage, start=start, how=how)
    if run.outcome.exists():
        outcome = Outcome.read(run.outcome)
        where = {"device": outcome.device, "cpu": outcome.cpu, "torch": outcome.torch_version}
        said += WORDS["trained_on"].format(**where) if outcome.torch_version else ""
    return said + _judged(run, held)


def _judged(run: RunRecords, held: Held) -> str:
    if held.decision is None:
        return WORDS["pending"]
    first = Verdict.read(run.verdict).reasons[:1]
    said = WORDS["verdict"].format(decision=held.decision, reasons="".join(f" ({reason})" for reason in first))
    if held.releases:
        said += WORDS["released"].format(folders=", ".join(held.releases))
    return said


def _release(record: Path, places: Releases) -> Group:
    release, folder = Release.read(record), record.parent
    last = release.promoted[-1]
    counts = WORDS["counts"] if places.link.exists() and places.link.resolve() == folder.resolve() else ""
    files: dict[str, dict[str, str]] = {}
    for name, sha256 in release.files.items():
        top, _, rest = name.partition("/")
        format = rest.partition("/")[0] if top == FORMATS else ""
        files.setdefault(format, {})[name] = sha256
    folders = [
        _listed(folder, format or NVFP4, "released", WORDS["purpose_release"], listing)
        for format, listing in files.items()
    ]
    origin = WORDS["release_origin"].format(run=run_name(last.stage, last.lineage), fits=release.fits, counts=counts)
    number = "/".join(filter(None, [places.experiment, folder.name]))
    return Group(f"release {number}", WORDS["release"].format(number=number), origin, tuple(folders))


def _folder(place: Path, format: str, status: str, purpose: str, stamp: Stamp) -> Folder:
    """A folder that a stamp speaks of, which lies at `place`."""
    status = "missing" if status == "base" and not place.is_dir() else status
    return _listed(place, format, status, purpose, stamp.weights_files)


def _listed(place: Path, format: str, status: str, purpose: str, listing: Mapping[str, str]) -> Folder:
    files = tuple(File((place / name).as_posix(), _size(place / name), sha256) for name, sha256 in listing.items())
    there = [file.bytes for file in files if file.bytes is not None]
    return Folder(format, status, purpose.format(format=format), files, sum(there) if there else None)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


# What is written


def text(groups: Sequence[Group], remarks: Mapping[str, str]) -> str:
    """The inventory as Markdown."""
    keys = {group.key for group in groups}
    lines = [f"# {WORDS['title']}", "", WORDS["how"], "", *_totals(groups)]
    for group in groups:
        lines += ["", f"## {markdown_text(group.title)}", "", markdown_text(group.origin)]
        if group.pins:
            lines.append(markdown_text(WORDS["pinned"].format(pins=", ".join(group.pins)).strip()))
        lines += ["", WORDS["remark"], *marked(group.key, remarks.get(group.key, "")), "", *_table(group)]
    lost = {key: remark for key, remark in remarks.items() if key not in keys}
    if lost:
        lines += ["", f"## {WORDS['lost']}"]
        for key, remark in lost.items():
            lines += ["", f"{markdown_text(key)}:", *marked(key, remark)]
    return "\n".join(lines) + "\n"


def _totals(groups: Sequence[Group]) -> Iterator[str]:
    folders = [folder for group in groups for folder in group.folders]
    counts = Counter(folder.status for folder in folders)
    yield f"| {WORDS['totals']} | {WORDS['folders']} | {WORDS['bytes']} |"
    yield "|---|---|---|"
    for status, count in sorted(counts.items()):
        size = sum(folder.bytes or 0 for folder in folders if folder.status == status)
        yield f"| {STATUSES[status]} | {count} | {size:,} |"


def _table(group: Group) -> Iterator[str]:
    heads = ("file", "status", "purpose", "bytes", "sha256")
    yield f"| {' | '.join(WORDS[head] for head in heads)} |"
    yield "|---|---|---|---|---|"
    for folder in group.folders:
        for file in folder.files:
            size = "–" if file.bytes is None else f"{file.bytes:,}"
            cells = (file.path, STATUSES[folder.status], folder.purpose, size, file.sha256)
            yield f"| {' | '.join(map(markdown_text, cells))} |"


def _rows(groups: Sequence[Group], remarks: Mapping[str, str]) -> Iterator[dict[str, object]]:
    for group in groups:
        for folder in group.folders:
            for file in folder.files:
                yield {
                    "path": file.path,
                    "bytes": file.bytes,
                    "sha256": file.sha256,
                    "status": STATUSES[folder.status],
                    "format": folder.format,
                    "of": group.title,
                    "purpose": folder.purpose,
                    "origin": group.origin,
                    "pins": ", ".join(group.pins),
                    "remark": remarks.get(group.key, ""),
                }
