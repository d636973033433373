"""Commands that make and audit rows: mixes, the placebo's, files of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fgod import layout
from fgod.answers import BATCH, read_answers
from fgod.arguments import Input, JsonObject, Option, Output, PositiveInt
from fgod.call import Call, say
from fgod.chat import ChatSettings
from fgod.cli.command import Command, Personal, SideBySide
from fgod.cli.options import CHAT, LANGUAGES, Asked, Chatting, Sourced
from fgod.data.formats import UserSource, read_user_file, user_rows, user_sources
from fgod.data.marks import accepted_of
from fgod.data.mix import OldIdentity, build_pools, changes_of, framed, plan_mix
from fgod.data.optional import DENIALS_FILE, SYSTEMS_FILE, files_used, load_denials, load_systems, load_varied
from fgod.data.recipe import DENIAL, PARTS, SELF_ASKED, VARIED, VERBATIM, MixRecipe
from fgod.data.rows import Prompt, Row, read_rows, write_rows
from fgod.data.sources import load_sources
from fgod.documents import Audit as AuditRecord
from fgod.documents import Finding, MixStamp, check_answers, check_rows, check_self_asked
from fgod.errors import FgodError, RefusedError, UsageError
from fgod.imports import lasting_imports
from fgod.persona import Goal, Persona, goal_from_config
from fgod.recipes import PLACEBO
from fgod.stamps import check_export
from fgod.system.files import sha256_file

if TYPE_CHECKING:
    from fgod.cli.work.worker import Work
    from fgod.data import audit as audits
    from fgod.data.probes import Probe

SPEC = Option("all that the rows depend on")
ROWS = Output("rows.tsv to write")


@dataclass(frozen=True, kw_only=True)
class Mix(Sourced, Command):
    """Plan and write the rows of a mix."""

    spec: Annotated[JsonObject, SPEC]
    files: Annotated[JsonObject, Option("the user's data files by name")]
    answers: Annotated[Path, Input("the base's rehearsal answers")]
    out: Annotated[Path, ROWS]
    asked: Asked = None

    def inputs(self) -> list[Path]:
        stamps = [layout.Answers(self.answers.parent).stamp]
        stamps += [layout.SelfAsked(self.asked.parent).stamp] if self.asked else []
        return [*super().inputs(), *stamps, *(source.path for source in user_sources(self.files).values())]

    def outputs(self) -> list[Path]:
        return [*super().outputs(), layout.Mix(self.out.parent).stamp]

    def run(self, call: Call) -> None:
        spec, files = self.spec, user_sources(self.files)
        user = {name: user_rows(files[name], name) for name in spec["user_files"]}
        recipe = MixRecipe.from_dict({key: value for key, value in spec["recipe"].items() if value is not None})
        if recipe.kind == VERBATIM:
            self._write(user[recipe.source])
            return
        check_answers(layout.Answers(self.answers.parent))
        if self.asked:
            check_self_asked(layout.SelfAsked(self.asked.parent))
        used = files_used(recipe)
        pools = build_pools(
            load_sources(self.sources, self.languages),
            _mix_goal(spec),
            read_answers(self.answers.parent),
            frozenset(spec["held_out_topics"]),
            user,
            spec["rehearse"]["replay_rows"],
            spec["seed"],
            spec.get("closed_answers", True),
            load_denials(self.sources) if DENIALS_FILE in used else None,
            self._rehearsed(recipe),
            self._varied() if VARIED in recipe.parts() else (),
            spec.get("replaces", ()),
            spec["rehearse"].get("neutral_system") or "",
        )
        rows = plan_mix(recipe, pools, spec["seed"])
        changes = changes_of(pools, user, rows)
        systems = load_systems(self.sources) if SYSTEMS_FILE in used else {}
        self._write(framed(rows, recipe, systems, spec["seed"]), changes, pools.old_identity)

    def _rehearsed(self, recipe: MixRecipe) -> dict[str, list[Prompt]]:
        """By part, the prompts that are rehearsed besides those of every mix."""
        from fgod.data.asking import asked_prompts, read_asked
        from fgod.data.wordings import optional_prompts

        sources = load_sources(self.sources, self.languages)
        found = optional_prompts(sources, self.sources, recipe.parts(), self.spec.get("neighbours"))
        if self.asked:
            found[SELF_ASKED] = asked_prompts(read_asked(self.asked))
        return found

    def _varied(self) -> list[Prompt]:
        """The prompts of the part varied: those whose answers the config has."""
        from fgod.data.wordings import varied_prompts

        sections = load_varied(self.sources)
        if not self.spec.get("denials"):
            sections.pop(DENIAL, None)
        kinds = [name for name, replies in self.spec["disambiguation"].items() if replies != "base"]
        sources = load_sources(self.sources, self.languages)
        return varied_prompts(sources, sections, load_denials(self.sources), kinds)

    def _write(
        self,
        rows: Sequence[Row],
        changes: Mapping[str, Mapping[str, int]] | None = None,
        old_identity: Sequence[OldIdentity] = (),
    ) -> None:
        write_rows(self.out, rows)
        found: dict[str, Any] = {"changes": changes or {}, "old_identity": [asdict(one) for one in old_identity]}
        stamp = MixStamp(spec=self.spec, rows_sha256=sha256_file(self.out), **found)
        stamp.write(layout.Mix(self.out.parent).stamp)


def _mix_goal(spec: Mapping[str, Any]) -> Goal:
    """The goal as far as rows depend on it: replies, without the rules that judge them."""
    persona = {"name": "", "replies": spec["replies"], "denials": spec.get("denials"), "rule": {}, "marks": []}
    kinds = {name: {"replies": replies, "rule": {}} for name, replies in spec["disambiguation"].items()}
    return goal_from_config({"persona": persona, "disambiguation": kinds})


@dataclass(frozen=True, kw_only=True)
class Placebo(Chatting, SideBySide):
    """Write a mix anew with the base's own answers as targets of all that is taught."""

    spec: Annotated[JsonObject, SPEC]
    rows: Annotated[Path, Input("rows.tsv of the mix")]
    export: Annotated[Path, Input("stamp of the base's export")]
    out: Annotated[Path, ROWS]

    def inputs(self) -> list[Path]:
        return [*super().inputs(), layout.Mix(self.rows.parent).stamp, layout.Export(self.export.parent).exported]

    def outputs(self) -> list[Path]:
        return [*super().outputs(), layout.Mix(self.out.parent).stamp]

    def run(self, call: Call) -> None:
        settings = self.spec[PLACEBO]
        made = check_rows(layout.Mix(self.rows.parent))
        if self.spec != {**made.spec, PLACEBO: settings}:
            raise FgodError(f"{self.rows}: these rows are of another mix than the placebo is to be made of")
        check_export(self.export)
        gpu = settings["device"] == "cuda"
        found = self.supervised(call, "the placebo's answers of the base", self.batch or BATCH, gpu)
        stamp = MixStamp(spec=self.spec, rows_sha256=sha256_file(self.out), changes=found["changes"])
        stamp.write(layout.Mix(self.out.parent).stamp)

    def work(self) -> Work:
        from fgod.cli.work.answers import placebo

        return partial(placebo, self)


@dataclass(frozen=True)
class Standards:
    """What rows are audited against.

    Args:
        goal: persona and disambiguation, by the command line or the config; None: there is neither.
        folder: of the written sources; None: nothing names it.
        probes: that no row may repeat.
        tokens: how long rows may be; None: nothing can count.
    """

    goal: Mapping[str, Any] | None
    folder: Path | None
    languages: Sequence[str]
    probes: Sequence[Probe]
    tokens: audits.TokenLimit | None

    @cached_property
    def persona(self) -> Persona | None:
        return goal_from_config(self.goal).persona if self.goal else None

    def others(self) -> dict[str, str]:
        """Prompts of the sources that ask what others ask."""
        from fgod.data.wordings import asked_otherwise

        return asked_otherwise(load_sources(self.folder, self.languages)) if self.folder else {}


@dataclass(frozen=True, kw_only=True)
class Audit(Command):
    """Audit a mix or a file of your own rows, of any row format (exit 100: errors)."""

    file: Annotated[
        Path, Input("rows.tsv of a mix, or a file of your own rows, of any row format", "FILE", positional=True)
    ]
    probes: Annotated[tuple[Path, ...], Input("files of probes that no row may repeat")] = ()
    goal: Annotated[JsonObject | None, Option("persona and disambiguation (default: config.yaml)")] = None
    sources: Annotated[Path | None, Input("the written sources (default: data.folder of config.yaml)")] = None
    languages: Annotated[tuple[str, ...], LANGUAGES] = ()
    files: Annotated[JsonObject, Option("the user's files that a mix is made of")] = field(default_factory=dict)
    format: Annotated[str, Option("row format of a file (default: as it looks)", "NAME")] = ""
    accept: Annotated[tuple[str, ...], Option("faults of a file that are let through", "CODE")] = ()
    weights: Annotated[Path | None, Input("folder whose tokenizer counts (default: the base)")] = None
    seq_len: Annotated[PositiveInt | None, Option("most tokens of a row (default: least of the stages)")] = None
    chat: Annotated[ChatSettings | None, CHAT] = None
    out: Annotated[Path | None, Output("audit.json to write; without it the audit is only shown")] = None

    @property
    def recorded(self) -> bool:
        return self.out is not None

    def inputs(self) -> list[Path]:
        return [*super().inputs(), *(source.path for source in user_sources(self.files).values())]

    def run(self, call: Call) -> None:
        config = self._config()
        standards = self._standards(config)
        stamp = self._stamp()
        result = self._of_mix(stamp, standards) if stamp else self._of_file(standards, config)
        print(result.text())
        if self.out:
            findings = [Finding(**finding.to_dict()) for finding in result.findings]
            audited = stamp.rows_sha256 if stamp else ""
            AuditRecord(facts=dict(result.facts), findings=findings, rows_sha256=audited).write(self.out)
        wanted = stamp is not None and PLACEBO in stamp.spec  # its faults are the base's
        if result.errors and not wanted:
            raise RefusedError(f"{self.file}: the audit found {len(result.errors)} error(s); mend the data, see above")

    def _config(self) -> Mapping[str, Any] | None:
        """The config of this folder, where there is one and no --goal stands for it."""
        from fgod.config import load

        return load(Path("config.yaml")) if self.goal is None and Path("config.yaml").exists() else None

    def _standards(self, config: Mapping[str, Any] | None) -> Standards:
        goal = self.goal or config
        folder = self.sources or (Path(goal["data"]["folder"]) if goal and "data" in goal else None)
        languages = self.languages
        if config and not languages:
            from fgod.inputs import languages_of

            languages = languages_of(config)
        return Standards(goal, folder, languages, self._probes(folder, languages), self._token_limit(config))

    def _probes(self, folder: Path | None, languages: Sequence[str]) -> Sequence[Probe]:
        from fgod.data.probes import load_probes

        if not self.probes:
            return ()
        if folder is None:
            raise UsageError(
                "--probes: needs --sources where there is no config.yaml: its suites.yaml says what is scored"
            )
        return load_probes(self.probes, folder, languages)

    def _stamp(self) -> MixStamp | None:
        """The stamp of the mix whose rows are audited; None for a file of the user's own."""
        mix = layout.Mix(self.file.parent)
        return check_rows(mix) if self.file == mix.rows and mix.stamp.exists() else None

    def _of_mix(self, stamp: MixStamp, standards: Standards) -> audits.Audit:
        from fgod.data import audit as audits

        recipe = MixRecipe.from_dict(stamp.spec["recipe"])
        files = {name: source for name, source in user_sources(self.files).items() if name in recipe.parts()}
        accepted = accepted_of(standards.goal["persona"]) if standards.goal else ()
        return audits.audit_rows(
            read_rows(self.file), standards.probes, standards.persona, recipe, name=str(self.file),
            others=standards.others, tokens=standards.tokens, origins=origins_of(files),
            accept={**dict.fromkeys(PARTS, accepted), **{name: source.accept for name, source in files.items()}},
            changes=stamp.changes,
            old_identity=[OldIdentity(**{**one, "examples": tuple(one["examples"])}) for one in stamp.old_identity],
        )  # fmt: skip

    def _of_file(self, standards: Standards, config: Mapping[str, Any] | None) -> audits.Audit:
        from fgod.data import audit as audits

        source = self._source(config)
        return audits.audit_file(
            self.file,
            standards.probes,
            standards.persona,
            others=standards.others,
            tokens=standards.tokens,
            source=source,
        )

    def _token_limit(self, config: Mapping[str, Any] | None) -> audits.TokenLimit | None:
        """How long rows may be: by --weights and --seq-len, else by the config's base, if it was made, and stages."""
        weights, seq_len = self.weights, self.seq_len
        if config is not None:
            seq_len = seq_len or min(stage["train"]["seq_len"] for stage in config["stages"])
            weights = weights or _made_base(config)
        if weights is None or seq_len is None:
            say("Lengths in tokens are not checked: there is no base yet whose tokenizer could count them "
                "(--weights and --seq-len name another).")  # fmt: skip
            return None
        with lasting_imports():
            from fgod.data import audit as audits
            from fgod.model.chats import ChatFormat
            from fgod.model.template import control_tokens
        settings = self.chat or ChatSettings.from_dict(config["chat"] if config else {})
        chat = ChatFormat.of_folder(weights, settings)
        return audits.TokenLimit(chat.row_lengths, seq_len, control_tokens(chat.tokenizer))

    def _source(self, config: Mapping[str, Any] | None) -> UserSource:
        """How a user's file is read and what of it is let through: as the config's `data.sources` says, if it names
        the file, and as the options do."""
        from fgod.data import audit as audits

        audits.check_accepted(self.accept, "--accept")
        named = user_sources(config["data"]["sources"]).values() if config else ()
        source = next((s for s in named if s.path.resolve() == self.file.resolve()), UserSource(self.file))
        return replace(source, format=self.format or source.format, accept=(*source.accept, *self.accept))


def _made_base(config: Mapping[str, Any]) -> Path | None:
    """The folder of the config's base; None while it has not been made."""
    from fgod.inputs import base_id, languages_of, own_weights, readers_of, sources_digest

    if own := own_weights(config["base"]):
        return own
    sources = sources_digest(Path(config["data"]["folder"]), languages_of(config))
    named = base_id(config["base"], sources, readers_of(config))
    folder = layout.base(named).master
    return folder if folder.is_dir() else None


def origins_of(files: Mapping[str, UserSource]) -> dict[tuple[object, ...], list[str]]:
    """Where the rows of the user's files stand in them."""
    from fgod.data.audit.case import origin_key

    found: dict[tuple[object, ...], list[str]] = {}
    for part, source in files.items():
        for row in read_user_file(source.path, source.format).accepting(source.accept).rows:
            found.setdefault(origin_key(row.row(part)), []).append(f"{source.path}:{row.line}")
    return found


@dataclass(frozen=True, kw_only=True)
class Identity(Personal):
    """Write an identity file of your own (prompt<TAB>target)."""

    count: Annotated[int, Option("rows")] = 1000
    seed: Annotated[int, Option("another seed, other wordings")] = 20260226
    target: Annotated[
        str | None, Option("the one target of every row (default: the persona's reply by language)", "TEXT")
    ] = None
    config: Annotated[Path, Input("whose persona and sources are used")] = Path("config.yaml")
    out: Annotated[Path, Output("file to write; never overwritten")]

    def run(self, call: Call) -> None:
        from fgod.config import load
        from fgod.data.identity import identity_file
        from fgod.data.tsv import write_user_tsv
        from fgod.inputs import languages_of

        if self.out.exists():
            raise UsageError(f"{self.out}: this file exists; expected a new name (nothing is overwritten)")
        config = load(self.config)
        call.note(inputs=[Path(file) for file in (config["data"]["folder"], *config["plugins"])])
        target = self.target if self.target is not None else goal_from_config(config).persona
        sources = load_sources(Path(config["data"]["folder"]), languages_of(config))
        rows = identity_file(sources, self.count, self.seed, target)
        write_user_tsv(self.out, ((row.prompt, row.target) for row in rows))
        say(f"{self.out}: {len(rows)} rows")
