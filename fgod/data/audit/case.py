"""What an audit looks at: rows with their lines, and what it knows of them. What it says: findings."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar

from fgod.data import mismatch
from fgod.data.formats import Severity, UserFile
from fgod.data.mix import Changes, OldIdentity
from fgod.data.recipe import DENIAL, REHEARSED_PARTS, VARIED, MixRecipe
from fgod.data.rows import NO_SYSTEM, Row, normalise
from fgod.data.text import excerpt
from fgod.persona import Persona, fold

T = TypeVar("T")

WRITTEN_PARTS = (
    "identity", DENIAL, VARIED, "disambiguation", "pairs", *(part for part in REHEARSED_PARTS if part != "general"),
)  # fmt: skip
"""Parts that the mismatch tests leave out: one answer to many questions is their purpose, or the base itself
answered a question about nothing."""
MAX_CHARS = 1000
"""Characters of a prompt or target past which it counts as too long."""

Others = Callable[[], Mapping[str, str]]
"""Gives questions that are not about the model: by normalised prompt, what they ask. Called only if it is needed."""


@dataclass(frozen=True)
class TokenLimit:
    """What a tokenizer and a stage say of rows.

    `count` gives each row's tokens as they are trained on, chat template and end token included; `seq_len` is the most
    that a row may have, `control` the spellings of the tokenizer's control tokens.
    """

    count: Callable[[Sequence[Row]], Sequence[int]]
    seq_len: int
    control: frozenset[str]


Origins = Mapping[tuple[object, ...], Sequence[str]]
"""By a user's row (`origin_key`): its file and line, as `mine.tsv:16`; several if it is repeated."""

Accept = Mapping[str, Collection[str]]
"""Codes of faults that are let through, by the part of the rows that have them."""


class Scored(Protocol):
    """What the audit needs to know of a probe (`fgod.data.probes.Probe`)."""

    @property
    def suite(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def scored(self) -> bool: ...


# ---------------------------------------------------------------------------------------------- findings


@dataclass(frozen=True)
class Finding:
    """`line` is the first line concerned (None: the whole file), `count` how many rows are, `examples` some of them.

    `origin` is where the first row stands in a user's file (`mine.tsv:16`), if the rows are those of a mix.
    """

    severity: Severity
    code: str
    line: int | None
    message: str
    examples: tuple[str, ...] = ()
    count: int = 0
    origin: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "examples": list(self.examples)}


@dataclass(frozen=True)
class Audit:
    """`facts` are counts as JSON values, `findings` in order of severity and line."""

    name: str
    facts: Mapping[str, Any]
    findings: tuple[Finding, ...] = field(default=())

    def _of(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return self._of("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return self._of("warning")

    def codes(self) -> set[str]:
        return {finding.code for finding in self.findings}

    def to_dict(self) -> dict[str, Any]:
        """JSON values: name, ok, facts, findings."""
        findings = [finding.to_dict() for finding in self.findings]
        return {"name": self.name, "ok": not self.errors, "facts": dict(self.facts), "findings": findings}

    def text(self) -> str:
        """For a terminal: what stands in it, read aloud, then `file:line: severity: …` with examples."""
        lines = [f"{self.name}: {sentence}" for sentence in self.facts["aloud"]]
        for finding in self.findings:
            where = finding.origin or (self.name if finding.line is None else f"{self.name}:{finding.line}")
            lines.append(f"{where}: {finding.severity}: {finding.message} [{finding.code}]")
            lines.extend(f"    {example}" for example in finding.examples)
        verdict = f"{number_of(len(self.errors), 'error')}, {number_of(len(self.warnings), 'warning')}"
        return "\n".join([*lines, f"{self.name}: {verdict}"]) + "\n"


def number_of(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# ---------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Line:
    """A row with its line and what the checks need to know of it."""

    number: int
    row: Row
    identity: bool
    bare: str
    """The prompt without sample tags."""
    stem: str
    """`bare`, normalised."""
    origin: str
    """Where the row stands in a user's file, if these are the rows of a mix."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All that a person wrote in it: system prompt, turns, prompt, target."""
        system = () if self.row.system in ("", NO_SYSTEM) else (self.row.system,)
        return (*system, *(turn.content for turn in self.row.history), self.row.prompt, self.row.target)

    @property
    def shown(self) -> str:
        return f"{self.origin or self.number}: {excerpt(self.row.prompt, 60)} → {excerpt(self.row.target, 60)}"


_TAG_WORDS = "樣本|样本|編號|编号|序號|序号|流水號|流水号|サンプル|샘플|番号|번호"
_TAG = re.compile(
    rf"""[（(\[【]?[^（()）\[\]【】。！？!?,，；;：:\s]{{0,10}}(?:{_TAG_WORDS})\s*[#＃:：_-]?\s*\d+[)）\]】]?
    |[（(\[【]?\b(?:sample|serial|row|task|id|no|item)\b\.?\s*[#＃_:-]\s*\d+[)）\]】]?
    |[（(\[【]\s*(?:sample|serial|no\.?|\#|＃)\s*\d+\s*[)）\]】]
    |[#＃]\d{{2,}}\s*$""",
    re.IGNORECASE | re.VERBOSE,
)


def sample_tag(prompt: str) -> str | None:
    """The serial tag of a prompt (樣本0231, 任務編號#0001, sample #12), or None."""
    found = _TAG.search(prompt)
    return found.group().strip() if found else None


def without_tags(prompt: str) -> str:
    """The prompt without its sample tags (itself if it is nothing else)."""
    bare = _TAG.sub("", prompt).strip()
    return bare if normalise(bare) else prompt


_YOU = re.compile(r"[你您妳]|あなた|きみ|君は|너|당신|자기|\b(?:you|your|yourself)\b", re.IGNORECASE)
_ME = re.compile(r"我|私|僕|저는|저의|제 |나는|내 |\b(?:i|i'm|my|me)\b", re.IGNORECASE)
_CLAIM = re.compile(r"^\W*(?:我是|我叫|私は|僕は|저는|나는|i am\b|i'm\b|my name is\b)", re.IGNORECASE)


def identity_row(prompt: str, target: str, persona: Persona | None) -> bool:
    """Whether a row teaches who the model is: its target carries a mark of the persona, or prompt and target are
    about the model itself (你 …, 我 …) and the target has one of the words of which the persona's rule wants `any`.

    Without a persona: a first-person claim (我是 …, I am …) to a prompt that addresses the model.
    """
    if persona is None:
        return bool(_CLAIM.search(target)) and bool(_YOU.search(prompt))
    if persona.marked(target):
        return True
    words = {fold(word) for rule in persona.rule.values() for word in rule.any}
    about = bool(_YOU.search(prompt)) and bool(_ME.search(target))
    return about and any(word in fold(target) for word in words)


def origin_key(row: Row) -> tuple[object, ...]:
    """What tells a user's rows apart."""
    return row.part, row.system, row.history, row.prompt, row.target


def lines_of(rows: Iterable[tuple[int, Row]], persona: Persona | None, origins: Origins | None = None) -> list[Line]:
    lines = []
    uses: Counter[tuple[object, ...]] = Counter()
    for number, row in rows:
        bare = without_tags(row.prompt)
        identity = identity_row(row.prompt, row.target, persona)
        key = origin_key(row)
        places = (origins or {}).get(key, ("",))
        origin = places[uses[key] % len(places)]
        uses[key] += 1
        lines.append(Line(number, row, identity, bare, normalise(bare), origin))
    return lines


def by(lines: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    groups: dict[Any, list[T]] = defaultdict(list)
    for line in lines:
        groups[key(line)].append(line)
    return groups


# ---------------------------------------------------------------------------------------------- what is audited


@dataclass(frozen=True)
class Group:
    """Rows whose prompts and targets are held against each other. `label` leads what is said of them."""

    label: str
    lines: tuple[Line, ...]

    @cached_property
    def pairs(self) -> list[mismatch.Pair]:
        """Distinct prompts and targets, one spelling for prompts that are the same question."""
        question = {line.stem: line.bare for line in reversed(self.lines)}
        distinct = {(line.row.prompt, line.row.target): line for line in self.lines}
        return [(question[line.stem], line.row.target) for line in distinct.values()]

    @cached_property
    def components(self) -> list[mismatch.Component]:
        return mismatch.independence(self.pairs)

    @cached_property
    def likeness(self) -> mismatch.Likeness:
        return mismatch.likeness_of_prompts(self.pairs)

    @cached_property
    def shared_words(self) -> float | None:
        return mismatch.shared_words_p_value(self.pairs)

    def facts(self) -> dict[str, Any]:
        """What the tests of mismatch measured."""
        return {
            "components": len(self.components),
            "independent_components": sum(component.independent for component in self.components),
            "adjusted_information": [component.adjusted for component in self.components],
            "p_prompts_alike": self.likeness.p_value,
            "targets_tested": self.likeness.tested,
            "targets_unrelated": len(self.likeness.unrelated),
            "p_shared_words": self.shared_words,
        }


Audited = Literal["file", "mix"]


@dataclass(frozen=True)
class Case:
    """A file or a mix, and what it is held against. Lines of a mix are those of its table: line 1 is the header.

    `users` are the lines that a user wrote. `parsed` is there for a file, `recipe` for a mix that has one; `changes`
    are what the mix made of the user's files (`fgod.data.mix.Changes`), `old_identity` what it does not rehearse.
    """

    on: Audited
    name: str
    lines: tuple[Line, ...]
    users: tuple[Line, ...]
    groups: tuple[Group, ...]
    probes: tuple[Scored, ...] = ()
    max_chars: int = MAX_CHARS
    others: Others = dict
    tokens: TokenLimit | None = None
    parsed: UserFile | None = None
    recipe: MixRecipe | None = None
    changes: Changes = field(default_factory=dict)
    persona: Persona | None = None
    old_identity: tuple[OldIdentity, ...] = ()

    def of_parts(self, keep: Callable[[str], bool]) -> Case:
        """The case of those lines whose part is to be kept."""

        def kept(lines: Iterable[Line]) -> tuple[Line, ...]:
            return tuple(line for line in lines if keep(line.row.part))

        groups = (replace(group, lines=kept(group.lines)) for group in self.groups)
        changes = {part: counts for part, counts in self.changes.items() if keep(part)}
        return replace(self, lines=kept(self.lines), users=kept(self.users), groups=tuple(groups), changes=changes)
