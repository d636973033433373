"""Commands that make the base, and the export of weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from fgod import layout
from fgod.arguments import Input, JsonObject, Option, Output
from fgod.call import Call
from fgod.cli.command import Guarded, check_new, is_project
from fgod.cli.options import Chatting, Format, Gpus, Sourced
from fgod.documents import BaseStamp, Stamp
from fgod.errors import UsageError
from fgod.exporters.exporter import EXPORTERS
from fgod.exporters.names import NVFP4
from fgod.guard.limits import WholeMachine
from fgod.inputs import own_weights
from fgod.models.files import beside_weights
from fgod.stamps import check_weights, digests_of

if TYPE_CHECKING:
    from fgod.cli.work.worker import Work


@dataclass(frozen=True, kw_only=True)
class Base(Sourced, Chatting, Guarded):
    """Make the embedded base or a random one, import a file, or check a folder; base.json says what it is."""

    base: Annotated[JsonObject, Option("the config's key base")]
    out: Annotated[Path, Output("base.json to write, beside master/")]

    @property
    def path(self) -> list[Path]:
        """The user's own file or folder, if the base is made of one, and what is taken of the folder that it is
        like."""
        own = [Path(self.base["path"])] if "path" in self.base else []
        return [*own, *(beside_weights(Path(self.base["like"])) if "like" in self.base else ())]

    @property
    def master(self) -> Path:
        """The folder of weights that it makes."""
        return layout.Base(self.out.parent).master

    def inputs(self) -> list[Path]:
        return [*super().inputs(), *self.path]

    def outputs(self) -> list[Path]:
        return [*super().outputs(), *([] if self.path else [self.master])]

    def run(self, call: Call) -> None:
        facts = self.supervised(call, "the base")
        folder = own_weights(self.base) or self.master
        BaseStamp(status="trained", base=self.base, **digests_of(folder), facts=dict(facts)).write(self.out)

    def work(self) -> Work:
        from fgod.cli.work.base import base

        return partial(base, self)


@dataclass(frozen=True, kw_only=True)
class Export(Guarded):
    """Export a folder of weights; or those of a run, which leaves a stamp: without weights one that says so."""

    folder: Annotated[Path | None, Input("a folder of weights of yours", "FOLDER", positional=True)] = None
    out: Annotated[Path, Output("of FOLDER: the folder to make; of a run: the stamp to write, beside the export")]
    weights: Annotated[Path | None, Input("of a run: folder of its weights, in place of FOLDER")] = None
    stamp: Annotated[Path | None, Input("of a run: stamp of its training")] = None
    dtype: Annotated[
        Literal["float32", "bfloat16"], Option("format of what stays unquantised (default: %(default)s)")
    ] = "bfloat16"
    format: Format = NVFP4
    gpus: Gpus = 0
    guard: WholeMachine

    @property
    def source(self) -> Path:
        """The folder that it reads."""
        found = self.folder or self.weights
        assert found is not None
        return found

    @property
    def exported(self) -> Path:
        """The folder that it makes."""
        return self.out if self.folder else layout.Export(self.out.parent).of(self.format)

    @property
    def recorded(self) -> bool:
        return self.folder is None or is_project()

    def outputs(self) -> list[Path]:
        return [*dict.fromkeys([*super().outputs(), self.exported])]

    def run(self, call: Call) -> None:
        self._check_source()
        what = f"the export of {self.source} as {self.format}"
        if self.weights is None or self.stamp is None:
            check_new(self.out)
            self.supervised(call, what, gpu=self.gpus > 0)
            return
        self._check_out()
        stamp = Stamp.read(self.stamp)
        if stamp.status != "trained":
            Stamp(status="skipped", reason=f"{stamp.status}: {stamp.reason}").write(self.out)
            return
        check_weights(self.weights, self.stamp)
        self.supervised(call, what, gpu=self.gpus > 0)
        exported = digests_of(self.exported)
        Stamp(status="exported", source_sha256=stamp.weights_sha256, **exported).write(self.out)

    def _check_source(self) -> None:
        """Raise UsageError unless it is either a folder or a run with its stamp."""
        if (self.folder is None) is (self.weights is None) or (self.weights is None) is not (self.stamp is None):
            given = [name for name in ("folder", "weights", "stamp") if getattr(self, name) is not None]
            raise UsageError(f"export: found {given or 'nothing'}, expected FOLDER, or --weights and --stamp of a run")

    def _check_out(self) -> None:
        """Raise UsageError if the stamp would be written over that of another format, or over the export."""
        stamp_of = layout.Export(self.out.parent).stamp_of
        if self.out == self.exported:
            raise UsageError(
                f"--out: found {self.out}, which is the folder that is made; expected the name of a stamp beside it, "
                f"such as {stamp_of(self.format).name}"
            )
        others = {stamp_of(name): name for name, _ in EXPORTERS.items() if name != self.format}
        if other := others.get(self.out):
            raise UsageError(
                f"--out: found {self.out}, the stamp of the format {other}; expected {stamp_of(self.format).name} for "
                f"the format {self.format}"
            )

    def work(self) -> Work:
        from fgod.cli.work.weights import export

        return partial(export, self)
