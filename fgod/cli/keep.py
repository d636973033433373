"""Commands that keep weights, throw them away and bring them back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fgod import layout
from fgod.arguments import Input, Option
from fgod.call import Call
from fgod.cli.command import Personal, ReadOnly
from fgod.errors import RefusedError, UsageError
from fgod.keep import inventory, trash
from fgod.keep.holds import held_runs, needed_from_trash, pin, read_pins, unpin
from fgod.keep.protect import KEEP_RULES, WALK, pruned, refusals
from fgod.keep.trash import Move
from fgod.runs import RUNS, name_of, newest_of_each, resolve
from fgod.system.lock import held

DRY = Option("change nothing; show what would be moved or deleted, and the bytes", short="-n")


@contextmanager
def _alone() -> Iterator[None]:
    """As long as no snakemake works here; afterwards the inventory is as things then stand.

    Raises:
        LockHeldError: one does; names it.
    """
    with held(layout.RUNNING):
        inventory.read_remarks()  # what is wrong with them is said before anything moves
        try:
            yield
        finally:
            inventory.write()


def in_words(size: int) -> str:
    """`24.6 MB (24612345 bytes)`."""
    return f"{size / 1e6:.1f} MB ({size} bytes)"


def _say(verb: str, moves: Iterable[Move]) -> None:
    for each in moves:
        print(f"{verb} {each.source} to {each.target}: {in_words(each.bytes)}")


def refuse(what: str, refused: Mapping[str, Sequence[str]]) -> None:
    """Runs whose weights must not leave are named with the reasons.

    Raises:
        RefusedError: there are some.
    """
    if refused:
        reasons = [f"  {name}: {'; '.join(why)}" for name, why in refused.items()]
        raise RefusedError("\n".join([f"{what}:", *reasons]))


@dataclass(frozen=True, kw_only=True)
class Keeping(Personal):
    """A command that may only show what it would do."""

    dry_run: Annotated[bool, DRY] = False

    @property
    def changes(self) -> bool:
        """Whether it changes something."""
        return not self.dry_run

    @property
    def recorded(self) -> bool:
        return super().recorded and self.changes

    def run(self, call: Call) -> None:
        with _alone() if self.changes else nullcontext():
            self.act(call)

    @abstractmethod
    def act(self, call: Call) -> None:
        """Do it, or show what would be done."""

    def move(self, call: Call, moves: Mapping[str, Sequence[Move]], one: Callable[[str, Sequence[Move]], None]) -> None:
        """Move what was planned, run by run, and say what was moved, also where one fails; or only show it."""
        every = [move for of_run in moves.values() for move in of_run]
        if not self.changes:
            _say("would move", every)
            return
        try:
            for name, of_run in moves.items():
                one(name, of_run)
        finally:
            done = [move for move in every if move.done]
            call.note(moved=[move.facts() for move in done])
            _say("moved", done)

    def to_trash(self, call: Call, runs: Iterable[str]) -> None:
        """Move the weights of runs, by their names, to the trash."""
        moves = {name: trash.moves_to_trash(resolve(name)) for name in runs}
        self.move(call, moves, lambda name, of_run: trash.throw_away(resolve(name), of_run))
        total = sum(move.bytes for of_run in moves.values() for move in of_run)
        print(f"{in_words(total)} come free by `fgod trash --empty`; `fgod restore` brings them back")


@dataclass(frozen=True, kw_only=True)
class Pin(Personal):
    """Hold a run's weights by a name, so that they are not thrown away; without arguments, list the pins."""

    name: Annotated[str, Option("name of the pin", "NAME", positional=True)] = ""
    held: Annotated[str, Option(RUNS, "RUN", positional=True)] = ""
    remove: Annotated[bool, Option("let go of the run that NAME holds")] = False

    @property
    def recorded(self) -> bool:
        return super().recorded and bool(self.name)

    def outputs(self) -> list[Path]:
        return [layout.PINS]

    def run(self, call: Call) -> None:
        if not self.name:
            for name, run in sorted(read_pins().items()):
                print(f"{name}  {run}")
            return
        if self.remove == bool(self.held):
            raise UsageError(f"{self.name}: expected a RUN to hold, or --remove, and not both")
        with _alone():
            if self.remove:
                run = unpin(self.name)
                print(f"{self.name} holds {run} no more")
            else:
                found = resolve(self.held)
                run = name_of(found)
                pin(self.name, found)
                print(f"{self.name} holds {run}")
            call.note(pinned={"name": self.name, "run": run, "removed": self.remove})


@dataclass(frozen=True, kw_only=True)
class Trash(Keeping):
    """Move the weights of runs to the trash, or delete those that are there. Records and verdicts stay."""

    runs: Annotated[tuple[str, ...], Option(RUNS, "RUN", positional=True)] = ()
    empty: Annotated[bool, Option("delete for good what of these runs lies in the trash (default: all that does)")] = (
        False
    )

    def act(self, call: Call) -> None:
        if self.empty:
            self._empty(call)
            return
        if not self.runs:
            raise UsageError("fgod trash: expected a RUN, or --empty")
        names = [name_of(resolve(name)) for name in dict.fromkeys(self.runs)]
        refuse("nothing was moved", refusals(held_runs(), names))
        self.to_trash(call, names)

    def _empty(self, call: Call) -> None:
        there = trash.in_trash()
        names = trash.trashed_runs(self.runs, there) if self.runs else [*there]
        needed = needed_from_trash(held_runs())
        refuse("nothing was deleted", {name: needed[name] for name in names if name in needed})
        for name in names:
            trash.check_empty(name)
        sizes = {name: sum(map(trash.size_of, there[name])) for name in names}
        deleted: list[dict[str, object]] = []
        for name, size in sizes.items():
            if self.changes:
                trash.empty(name)
                deleted.append({"run": name, "bytes": size})
                call.note(deleted=deleted)
            print(f"{'deleted' if self.changes else 'would delete'} the weights of {name}: {in_words(size)}")
        print(f"{in_words(sum(sizes.values()))} {'came' if self.changes else 'would come'} free")


@dataclass(frozen=True, kw_only=True)
class Restore(Keeping):
    """Bring weights back from the trash; without a run, list what is there."""

    runs: Annotated[tuple[str, ...], Option(f"{RUNS}, of those in the trash", "RUN", positional=True)] = ()

    @property
    def changes(self) -> bool:
        return super().changes and bool(self.runs)

    def act(self, call: Call) -> None:
        there = trash.to_restore()
        if not self.runs:
            for name, folders in there.items():
                what = ", ".join(folder.name for folder in folders) or "no weights: only the records of a move"
                print(f"{name}  {what}  {in_words(sum(map(trash.size_of, folders)))}")
            return
        moves = {name: trash.moves_back(name) for name in trash.trashed_runs(self.runs, there)}
        self.move(call, moves, trash.bring_back)
        for name in [name for name, of_run in moves.items() if not of_run]:
            verb = "cleared" if self.changes else "would clear"
            print(f"{verb} what a move of the weights of {name} left of its records; none of them lie in the trash")


@dataclass(frozen=True, kw_only=True)
class Prune(Keeping):
    """Move the weights of all runs to the trash but those that are kept, pinned, released, not judged yet, or what one
    of these starts from."""

    keep: Annotated[
        tuple[str, ...],
        Option(f"any of {', '.join(f'{rule} ({what})' for rule, what in KEEP_RULES.items())}; or {RUNS}", "WHAT"),
    ]
    config: Annotated[Path, Input("the config whose walk is meant (default: config.yaml)")] = Path("config.yaml")

    def act(self, call: Call) -> None:
        rules = [word for word in self.keep if word in KEEP_RULES]
        named = [name_of(resolve(word)) for word in self.keep if word not in KEEP_RULES]
        newest = [name_of(run) for run in newest_of_each()]
        found = pruned(held_runs(), rules, named, self._walk() if WALK in rules else (), newest)
        for name, why in found.kept.items():
            print(f"keep {name}: {'; '.join(why)}")
        self.to_trash(call, found.leaving)

    def _walk(self) -> set[str]:
        """Lineages of the runs that the walk of the config has come by."""
        from fgod import records
        from fgod.cli.people import chains_of

        chains = chains_of(self.config).values()
        runs = [run for one in chains for run in one.chain.walk(records.decision).runs]
        return {run.lineage for run in runs} | {run.trained.lineage for run in runs if run.trained}


@dataclass(frozen=True, kw_only=True)
class Inventory(ReadOnly):
    """Write results/inventory.md and .tsv: every file of weights with purpose, origin, digest, size and status."""

    def run(self, call: Call) -> None:
        found = inventory.write()
        print(f"{layout.INVENTORY}, {layout.INVENTORY_TABLE}: {len(found)} groups of weights")
