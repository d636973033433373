"""What stands in a mix or a user's file, and what is wrong with it. Pure but for `audit_file`, which reads the file.

An *error* would teach something false or unreadable, or spoil the measurement: it stops the mix before it trains. A
*warning* is a questionable mix: it trains, and the report shows it. A *note* is only said. An error or warning that the
config lets through for a user's file is *accepted*: it trains, and audit, report and model card say so.

What is looked for is in `checks`, one function for each; what can be wrong with a line of a user's file is its format's
(`fgod.data.formats`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgod.data.audit.case import (
    MAX_CHARS,
    WRITTEN_PARTS,
    Accept,
    Audit,
    Case,
    Finding,
    Group,
    Line,
    Origins,
    Others,
    Scored,
    TokenLimit,
    by,
    identity_row,
    lines_of,
    number_of,
    sample_tag,
)
from fgod.data.audit.checks import AUDIT_CHECKS, EXAMPLES, Check, check_accepted, stated_share
from fgod.data.formats import UserFile, UserRow, UserSource, read_user_file
from fgod.data.mix import Changes, OldIdentity
from fgod.data.recipe import MixRecipe
from fgod.data.rows import NO_SYSTEM, Row, normalise
from fgod.persona import Persona

__all__ = [
    "Audit", "Finding", "TokenLimit", "audit_file", "audit_parsed", "audit_rows", "check_accepted", "identity_row",
    "sample_tag", "stated_share",
]  # fmt: skip


# ---------------------------------------------------------------------------------------------- facts

FRAME_WORDS = {"": "default", NO_SYSTEM: "none"}
"""What rows stand under: the config's system prompt or none; else a system prompt of their own."""


def _counts(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Rows and distinct prompts by part, kind and language."""
    groups = by(lines, lambda line: (line.row.part, line.row.kind, line.row.language))
    return [
        {
            "part": part,
            "kind": kind,
            "language": language,
            "rows": len(group),
            "prompts": len({line.row.prompt for line in group}),
            "share": round(len(group) / len(lines), 4),
        }
        for (part, kind, language), group in sorted(groups.items())
    ]


def _parts(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    return {
        part: {
            "rows": len(group),
            "share": round(len(group) / len(lines), 4),
            "prompts": len({line.row.prompt for line in group}),
            "targets": len({line.row.target for line in group}),
            "kinds": dict(sorted(Counter(line.row.kind for line in group).items())),
            "languages": dict(sorted(Counter(line.row.language for line in group).items())),
            "styles": dict(sorted(Counter(line.row.style for line in group if line.row.style).items())),
        }
        for part, group in sorted(by(lines, lambda line: line.row.part).items())
    }


def _aloud(facts: Mapping[str, Any]) -> list[str]:
    """The facts as sentences."""
    said = [
        f"{number_of(facts['rows'], 'row')}, {number_of(facts['distinct_prompts'], 'distinct prompt')}, "
        f"{number_of(facts['distinct_targets'], 'distinct target')}, {facts['identity_rows']} of them identity "
        f"({facts['identity_share']:.1%})"
    ]
    for part, count in facts["parts"].items():
        details = [f"{n} {name}" for key in ("kinds", "styles", "languages") for name, n in count[key].items()]
        said.append(
            f"{part}: {number_of(count['rows'], 'row')} ({count['share']:.1%}), "
            f"{number_of(count['prompts'], 'distinct prompt')}: {', '.join(details)}"
        )
    return said


def _facts(lines: Sequence[Line]) -> dict[str, Any]:
    prompts = Counter(normalise(line.row.prompt) for line in lines)
    identity = sum(line.identity for line in lines)
    return {
        "rows": len(lines),
        "distinct_prompts": len({line.row.prompt for line in lines}),
        "distinct_questions": len({line.stem for line in lines}),
        "distinct_targets": len({line.row.target for line in lines}),
        "identity_rows": identity,
        "identity_share": round(identity / len(lines), 4) if lines else 0.0,
        "most_repeats": max(prompts.values(), default=0),
        "longest_prompt": max((len(line.row.prompt) for line in lines), default=0),
        "longest_target": max((len(line.row.target) for line in lines), default=0),
        "frames": dict(sorted(Counter(FRAME_WORDS.get(line.row.system, "own") for line in lines).items())),
        "parts": _parts(lines),
        "counts": _counts(lines),
    }


def _findings(check: Check, case: Case, accept: Accept) -> list[Finding]:
    """What a check finds: as such in the parts that do not let it through, accepted where only the others have it."""
    found = list(check.findings(case))
    through = {part for part, codes in accept.items() if check.code in codes} if check.acceptable else set()
    if not found or not through:
        return found
    rest = list(check.findings(case.of_parts(lambda part: part not in through)))
    own = list(check.findings(case.of_parts(lambda part: part in through)))
    return [*rest, *(replace(finding, severity="accepted") for finding in (own or ([] if rest else found)))]


def _audit(case: Case, facts: Mapping[str, Any], accept: Accept, findings: Iterable[Finding] = ()) -> Audit:
    """Run all checks; `findings` are those that a file's reader gave."""
    rank = {"error": 0, "accepted": 1, "warning": 2, "note": 3}
    found = [*findings, *(found for _, check in AUDIT_CHECKS.items() for found in _findings(check, case, accept))]
    ordered = sorted(found, key=lambda finding: (rank[finding.severity], finding.line or 0, finding.code))
    said = {**_facts(case.lines), **facts, "codes": {finding.code: finding.count for finding in ordered}}
    return Audit(case.name, {**said, "aloud": _aloud(said)}, tuple(ordered))


# ---------------------------------------------------------------------------------------------- files


def _fault_findings(parsed: UserFile) -> Iterator[Finding]:
    """What the file's reader found, by kind, and its comments."""
    candidates = number_of(len(parsed.rows) + len(parsed.errors), "row")
    for kind, hits in by(parsed.faults, lambda fault: fault.kind).items():
        message = f"{len(hits)} of {candidates} {kind.words}"
        shown = [f"{fault.line}: {fault.text}" for fault in hits][:EXAMPLES]
        yield Finding(kind.severity, kind.code, min(fault.line for fault in hits), message, tuple(shown), len(hits))
    if parsed.comments:
        message = f"{number_of(len(parsed.comments), 'comment line')}, skipped"
        yield Finding("note", "comments", min(parsed.comments), message, (), len(parsed.comments))


def _file_row(row: UserRow, persona: Persona | None) -> Row:
    kind = "identity" if identity_row(row.prompt, row.target, persona) else "other"
    return replace(row.row("user"), kind=kind)


def audit_parsed(
    parsed: UserFile,
    name: str,
    probes: Sequence[Scored] = (),
    persona: Persona | None = None,
    max_chars: int = MAX_CHARS,
    others: Others = dict,
    tokens: TokenLimit | None = None,
    accept: Collection[str] = (),
) -> Audit:
    """The audit of a user's file that was parsed; `name` may state the share of identity rows, `accept` has the codes
    of faults that are let through."""
    parsed = parsed.accepting(accept)
    rows = ((row.line, _file_row(row, persona)) for row in parsed.rows)
    lines = tuple(lines_of(rows, persona))
    group = _tested("", lines)
    case = Case("file", name, lines, lines, (group,), tuple(probes), max_chars, others, tokens, parsed)
    counts = {"lines": parsed.lines, "comments": len(parsed.comments), "broken_lines": len(parsed.faults)}
    return _audit(case, {**counts, "tests": group.facts()}, {"user": accept}, _fault_findings(parsed))


def _tested(label: str, lines: Iterable[Line]) -> Group:
    """Identity rows are left out: one answer to very different questions is what they are for."""
    return Group(label, tuple(line for line in lines if not line.identity))


def audit_file(
    path: Path,
    probes: Sequence[Scored] = (),
    persona: Persona | None = None,
    max_chars: int = MAX_CHARS,
    others: Others = dict,
    tokens: TokenLimit | None = None,
    source: UserSource | None = None,
) -> Audit:
    """The audit of a user's file, of any registered row format; `source` says which, and what is let through.

    Raises:
        UsageError: it cannot be read, or no format matches it. Whatever it holds is a finding.
    """
    source = source or UserSource(path)
    parsed = read_user_file(path, source.format)
    audit = audit_parsed(parsed, path.name, probes, persona, max_chars, others, tokens, source.accept)
    return replace(audit, name=str(path))


# ---------------------------------------------------------------------------------------------- mixes


def _tested_parts(lines: Sequence[Line]) -> dict[str, Group]:
    """What the mismatch tests of a mix look at: its general topics, and each user's part apart."""
    parts = by((line for line in lines if line.row.part not in WRITTEN_PARTS), lambda line: line.row.part)
    return {
        part: _tested(f"part {part}: ", (line for line in group if part != "general" or line.row.topic))
        for part, group in sorted(parts.items())
    }


def audit_rows(
    rows: Sequence[Row],
    probes: Sequence[Scored] = (),
    persona: Persona | None = None,
    recipe: MixRecipe | None = None,
    max_chars: int = MAX_CHARS,
    name: str = "mix",
    others: Others = dict,
    tokens: TokenLimit | None = None,
    origins: Origins | None = None,
    accept: Accept | None = None,
    changes: Changes | None = None,
    old_identity: Sequence[OldIdentity] = (),
) -> Audit:
    """The audit of a planned mix. Lines are those of its table (`rows.write_rows`: line 1 is the header).

    `accept` has the codes that are let through by part, `changes` what the mix made of the user's files,
    `old_identity` what it does not rehearse.
    """
    lines = tuple(lines_of(enumerate(rows, start=2), persona, origins))
    users = tuple(line for line in lines if line.row.part not in (*WRITTEN_PARTS, "general"))
    groups = _tested_parts(lines)
    case = Case(
        "mix", name, lines, users, tuple(groups.values()), tuple(probes), max_chars, others, tokens, recipe=recipe,
        changes=changes or {}, persona=persona, old_identity=tuple(old_identity),
    )  # fmt: skip
    facts = {"tests": {part: group.facts() for part, group in groups.items()}, "changes": dict(case.changes)}
    return _audit(case, facts, accept or {})
