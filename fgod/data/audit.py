r"""What stands in a mix or a user's file, and what is wrong with it. Pure but for `audit_file`, which reads the file.

An *error* would teach something false or unreadable, or spoil the measurement: it stops the mix before it trains. A
*warning* is a questionable mix: it trains, and the report shows it. A *note* is only said. The tests of prompt–target
mismatch are in `fgod.data.mismatch`. What can be wrong with a line of a user's file is its format's
(`fgod.data.formats`), with further codes.

| code | severity | found |
|---|---|---|
| empty | error | no rows at all |
| header | error | a row of column names (`prompt<TAB>target`) |
| missing_target | error | a row without a target, also a file of plain prompts |
| empty_prompt | error | a row without a prompt |
| control | error | control characters, U+FFFD, bidirectional overrides, zero-width spaces |
| control_token | error | the spelling of a control token (`<|im_end|>`) in a prompt or target |
| too_long | error | more tokens than `train.seq_len` allows (where a tokenizer is at hand) |
| contradiction | error | one prompt with a persona's claim and with another answer |
| misplaced | error | the persona's answer to a question of the written sources that asks something else |
| probe_overlap | error | a prompt that is scored as a probe (those that are shown only are exempt) |
| mismatch | error | prompt and target drawn independently, or targets shared across unrelated prompts |
| split_pair | error | (mixes) a minimal pair that is not two adjacent rows |
| over_repeated | error | (mixes) a prompt more often than `max_repeats` |
| off_plan | error | (mixes) another number of rows than the recipe's |
| mismatch_suspected | warning | a few targets shared across unrelated prompts, or without a word of their prompts |
| two_targets | warning | one prompt with several targets |
| duplicates | warning | (files) the same row several times |
| few_prompts | warning | (files) under half of the rows have a prompt of their own, of 20 rows or more |
| one_target | warning | a single target, of 20 rows or more |
| sample_tags | warning | serial noise in prompts: 樣本0231, 任務編號#0001 |
| long_field | warning | a prompt or target of more than `max_chars` characters |
| share | warning | the share of identity rows is not what the file's name or the recipe says |
| unseen_share | warning | (mixes) a part with a share that got no row |
| comments | note | comment lines, which are skipped |
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fgod.data import mismatch
from fgod.data.formats import Severity, UserFile, read_user_file
from fgod.data.mix import MixRecipe
from fgod.data.rows import Row, normalise
from fgod.data.text import CONTROL_TOKEN, excerpt, guess_language, has_control, is_header
from fgod.persona import Persona, fold

SEVERITY: Mapping[str, Severity] = {
    **dict.fromkeys(("empty", "header", "missing_target", "empty_prompt", "control"), "error"),
    **dict.fromkeys(("control_token", "too_long"), "error"),
    **dict.fromkeys(("contradiction", "misplaced", "probe_overlap", "mismatch"), "error"),
    **dict.fromkeys(("split_pair", "over_repeated", "off_plan"), "error"),
    **dict.fromkeys(("mismatch_suspected", "two_targets", "duplicates", "few_prompts", "one_target"), "warning"),
    **dict.fromkeys(("sample_tags", "long_field", "share", "unseen_share"), "warning"),
    "comments": "note",
}
MAX_CHARS = 1000
"""Characters of a prompt or target past which it counts as too long."""
MANY_ROWS = 20
"""Rows below which few prompts or a single target are no fault."""
SHARE_TOLERANCE = 0.05
"""How far the share of identity rows may be from what a name or recipe says."""
EXAMPLES = 3

T = TypeVar("T")

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


Origins = Mapping[tuple[str, str, str], str]
"""By part, prompt and target of a user's row: its file and line, as `mine.tsv:16`."""


class Scored(Protocol):
    """What the audit needs to know of a probe (`fgod.data.probes.Probe`)."""

    @property
    def suite(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def scored(self) -> bool: ...


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
        verdict = f"{_number(len(self.errors), 'error')}, {_number(len(self.warnings), 'warning')}"
        return "\n".join([*lines, f"{self.name}: {verdict}"]) + "\n"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _finding(code: str, message: str, lines: Sequence[int] = (), examples: Iterable[str] = ()) -> Finding:
    first = min(lines, default=None)
    return Finding(SEVERITY[code], code, first, message, tuple(examples)[:EXAMPLES], len(lines))


# ---------------------------------------------------------------------------------------------- rows and their marks


@dataclass(frozen=True)
class _Line:
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
_ENDING_NUMBER = re.compile(r"[\s（(\[【_-]+\d+\s*[)）\]】]?\s*$")


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


def _lines(rows: Iterable[tuple[int, Row]], persona: Persona | None, origins: Origins | None = None) -> list[_Line]:
    lines = []
    for number, row in rows:
        bare = without_tags(row.prompt)
        identity = identity_row(row.prompt, row.target, persona)
        origin = (origins or {}).get((row.part, row.prompt, row.target), "")
        lines.append(_Line(number, row, identity, bare, normalise(bare), origin))
    return lines


# ---------------------------------------------------------------------------------------------- checks of rows


def _by(lines: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    groups: dict[Any, list[T]] = defaultdict(list)
    for line in lines:
        groups[key(line)].append(line)
    return groups


def _numbers(lines: Iterable[_Line]) -> list[int]:
    return [line.number for line in lines]


def _found(code: str, message: str, lines: Sequence[_Line]) -> Iterable[Finding]:
    """One finding for all the lines that a check found, none for none; `{n}` in the message is their number."""
    if lines:
        text = message.replace("{n}", _number(len(lines), "row"))
        ordered = sorted(lines, key=lambda line: line.number)
        found = _finding(code, text, _numbers(ordered), (line.shown for line in ordered))
        yield replace(found, origin=ordered[0].origin)


def _field_findings(lines: Sequence[_Line], max_chars: int) -> Iterable[Finding]:
    """What a planned row can have wrong by itself (a file's broken lines are faults of the parser)."""
    rows = [(line, line.row.prompt, line.row.target) for line in lines]
    yield from _found("empty_prompt", "{n} without a prompt", [line for line, p, _ in rows if not p.strip()])
    yield from _found("missing_target", "{n} without a target", [line for line, _, t in rows if not t.strip()])
    yield from _found("header", "{n} of column names", [line for line, p, t in rows if is_header(p, t)])
    hidden = [line for line, p, t in rows if has_control(re.sub(r"[\n\t]", " ", p + t))]
    yield from _found("control", "{n} with control characters", hidden)
    long = [line for line, p, t in rows if max(len(p), len(t)) > max_chars]
    yield from _found("long_field", f"{{n}} with a field of more than {max_chars} characters", long)


def _token_findings(lines: Sequence[_Line], tokens: TokenLimit | None) -> Iterable[Finding]:
    """Spelled control tokens, and rows longer than training takes them."""
    spelled = tokens.control if tokens else frozenset()
    texts = [(line, f"{line.row.prompt}\n{line.row.target}") for line in lines]
    hits = [line for line, text in texts if CONTROL_TOKEN.search(text) or any(token in text for token in spelled)]
    yield from _found("control_token", "{n} with a control token spelled out: only the chat template sets them", hits)
    if tokens is None:
        return
    counts = tokens.count([line.row for line in lines])
    long = {line.number: count for line, count in zip(lines, counts, strict=True) if count > tokens.seq_len}
    most = max(long.values(), default=0)
    message = f"{{n}} longer than train.seq_len, {tokens.seq_len} tokens (the longest has {most}): shorten or raise it"
    yield from _found("too_long", message, [line for line in lines if line.number in long])


def _target_findings(lines: Sequence[_Line]) -> Iterable[Finding]:
    """One prompt with several targets: a contradiction if only some of them claim to be the persona."""
    for code, said in (("contradiction", ", only some of which claim to be the persona"), ("two_targets", "")):
        hits = []
        for group in _by(lines, lambda line: normalise(line.row.prompt)).values():
            claims = {line.identity for line in group}
            targets = {line.row.target for line in group}
            if len(targets) > 1 and (len(claims) > 1) == (code == "contradiction"):
                hits.append(group)
        if hits:
            shown = [
                f"{', '.join(map(str, _numbers(group)[:4]))}: {excerpt(group[0].row.prompt, 50)} → "
                + " | ".join(excerpt(target, 40) for target in dict.fromkeys(line.row.target for line in group))
                for group in hits
            ]
            message = f"{_number(len(hits), 'prompt')} with several targets{said}"
            yield _finding(code, message, [n for group in hits for n in _numbers(group)], shown)


def _overlap_findings(lines: Sequence[_Line], probes: Iterable[Scored]) -> Iterable[Finding]:
    scored = {normalise(probe.prompt): probe.suite for probe in probes if probe.scored}
    hits = [line for line in lines if normalise(line.row.prompt) in scored]
    suites = sorted({scored[normalise(line.row.prompt)] for line in hits})
    yield from _found("probe_overlap", f"{{n}} with a prompt that is scored as a probe ({', '.join(suites)})", hits)


def _misplaced_findings(lines: Sequence[_Line], others: Others) -> Iterable[Finding]:
    identity = [line for line in lines if line.identity]
    asked = others() if identity else {}
    hits = [line for line in identity if line.stem in asked]
    kinds = ", ".join(sorted({asked[line.stem] for line in hits}))
    yield from _found("misplaced", f"{{n}} with the persona's answer to another question ({kinds})", hits)


def _tag_findings(lines: Sequence[_Line]) -> Iterable[Finding]:
    """Known tags anywhere, and numbers at the end of prompts that are otherwise the same and share their target."""
    tagged = [line for line in lines if sample_tag(line.row.prompt)]
    counted = []
    same = _by(lines, lambda line: (_ENDING_NUMBER.sub("", line.row.prompt), line.row.target))
    for (bare, _), group in same.items():
        if len({line.row.prompt for line in group}) >= 5 and all(line.row.prompt != bare for line in group):
            counted += group
    hits = list({line.number: line for line in [*tagged, *counted]}.values())
    tags = list(dict.fromkeys(sample_tag(line.row.prompt) or "a number at the end" for line in hits))
    yield from _found("sample_tags", f"{{n}} with a sample tag in the prompt ({', '.join(tags[:2])}, …)", hits)


def _variety_findings(lines: Sequence[_Line]) -> Iterable[Finding]:
    """A file's duplicates, few prompts, a single target."""
    copies = [group for group in _by(lines, lambda line: (line.row.prompt, line.row.target)).values() if len(group) > 1]
    again = [line for group in copies for line in group[1:]]
    most = max(copies, key=len, default=[])
    yield from _found("duplicates", f"{{n}} that stood there before (one row {len(most)} times)", again)
    prompts = Counter(line.row.prompt for line in lines)
    if len(lines) >= MANY_ROWS and 2 * len(prompts) < len(lines):
        common = [f"{count} ×: {excerpt(prompt, 60)}" for prompt, count in prompts.most_common(EXAMPLES)]
        yield _finding("few_prompts", f"only {len(prompts)} distinct prompts in {len(lines)} rows", (), common)


def _one_target(lines: Sequence[_Line]) -> Iterable[Finding]:
    targets = {line.row.target for line in lines}
    if len(lines) >= MANY_ROWS and len(targets) == 1:
        shown = excerpt(lines[0].row.target)
        yield _finding("one_target", f"a single target for {len(lines)} rows: whatever is asked, it is {shown}")


# ---------------------------------------------------------------------------------------------- mismatch

UNRELATED_TARGETS = 3
"""Targets with unrelated prompts from which on, and …"""
UNRELATED_SHARE = 0.2
"""… share of the tested rows from which on, they are an error; fewer are a warning."""


def _mismatch_findings(lines: Sequence[_Line]) -> tuple[list[Finding], dict[str, Any]]:
    """Findings and facts of the three tests. Identity rows are left out: one answer to very different questions is
    what they are for."""
    tested = [line for line in lines if not line.identity]
    question = {line.stem: line.bare for line in reversed(tested)}
    distinct = {(line.row.prompt, line.row.target): line for line in tested}
    pairs = [(question[line.stem], line.row.target) for line in distinct.values()]
    components = mismatch.independence(pairs)
    likeness = mismatch.likeness_of_prompts(pairs)
    words = mismatch.shared_words_p_value(pairs)
    findings = [*_independent(components, tested), *_unrelated(likeness, tested), *_wordless(words, tested)]
    facts = {
        "components": len(components),
        "independent_components": sum(component.independent for component in components),
        "adjusted_information": [component.adjusted for component in components],
        "p_prompts_alike": likeness.p_value,
        "targets_tested": likeness.tested,
        "targets_unrelated": len(likeness.unrelated),
        "p_shared_words": words,
    }
    return findings, facts


def _independent(components: Sequence[mismatch.Component], lines: Sequence[_Line]) -> Iterable[Finding]:
    independent = [component for component in components if component.independent]
    if not independent:
        return
    rows, questions, targets = (sum(getattr(c, key) for c in independent) for key in ("pairs", "questions", "targets"))
    known = max(0.0, max(component.adjusted for component in independent))
    message = (
        f"prompt and target were drawn independently in {len(independent)} of {len(components)} groups of linked rows: "
        f"{_number(rows, 'distinct row')}, {questions} questions, {targets} targets; a question tells at most "
        f"{known:.0%} of what it could about its target"
    )
    several = {question for question, _ in independent[0].examples}
    shown = [line for line in lines if line.bare in several]
    yield _finding("mismatch", message, _numbers(shown), (line.shown for line in shown))


def _unrelated(likeness: mismatch.Likeness, lines: Sequence[_Line]) -> Iterable[Finding]:
    random_file = likeness.p_value is not None and likeness.p_value > mismatch.ALPHA
    many = (
        len(likeness.unrelated) >= UNRELATED_TARGETS
        and likeness.questions_unrelated >= UNRELATED_SHARE * likeness.questions_tested
    )
    if not (random_file or likeness.unrelated):
        return
    worst = {target.target for target in likeness.unrelated}
    shown = [line for line in lines if line.row.target in worst]
    what = f"{len(worst)} of {likeness.tested} targets are shared by prompts that are no more alike than any others"
    if random_file:
        what += f"; over the whole file prompts with one target are no more alike either (p = {likeness.p_value:.2f})"
    yield _finding(
        "mismatch" if random_file or many else "mismatch_suspected",
        what,
        _numbers(shown),
        (f"{excerpt(t.target, 50)} ← {' | '.join(excerpt(e, 30) for e in t.examples)}" for t in likeness.unrelated),
    )


def _wordless(p_value: float | None, lines: Sequence[_Line]) -> Iterable[Finding]:
    if p_value is not None and p_value > mismatch.ALPHA:
        message = f"targets share no more words with their own prompts than with others (p = {p_value:.2f})"
        yield _finding("mismatch_suspected", message, (), (line.shown for line in lines))


# ---------------------------------------------------------------------------------------------- shares


def stated_share(name: str) -> float | None:
    """The share of identity rows that a file's name states: `1percent`, `5pct`, `10%`, or `30-70` (two numbers that
    sum to 100, identity first)."""
    found = re.search(r"(\d+(?:\.\d+)?)\s*(?:percent|pct|％|%)", name, re.IGNORECASE)
    if found:
        return float(found.group(1)) / 100
    for first, second in re.findall(r"(?<!\d)(\d{1,2})[-_](\d{1,2})(?!\d)", name):
        if int(first) + int(second) == 100:
            return int(first) / 100
    return None


def _share_finding(lines: Sequence[_Line], stated: float | None, source: str) -> Iterable[Finding]:
    """Warn if the share of identity rows is off by more than the tolerance, or by more than twice a small share."""
    if stated is None or not lines:
        return
    identity = [line for line in lines if line.identity]
    share = len(identity) / len(lines)
    if abs(share - stated) > min(SHARE_TOLERANCE, max(stated, 1 / len(lines))):
        message = f"{source} {stated:.0%} identity rows, but {len(identity)} of {len(lines)} are ({share:.0%})"
        yield _finding("share", message, (), (line.shown for line in identity))


# ---------------------------------------------------------------------------------------------- facts


def _counts(lines: Sequence[_Line]) -> list[dict[str, Any]]:
    """Rows and distinct prompts by part, kind and language."""
    groups = _by(lines, lambda line: (line.row.part, line.row.kind, line.row.language))
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


def _parts(lines: Sequence[_Line]) -> dict[str, dict[str, Any]]:
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
        for part, group in sorted(_by(lines, lambda line: line.row.part).items())
    }


def _aloud(facts: Mapping[str, Any]) -> list[str]:
    """The facts as sentences."""
    said = [
        f"{_number(facts['rows'], 'row')}, {_number(facts['distinct_prompts'], 'distinct prompt')}, "
        f"{_number(facts['distinct_targets'], 'distinct target')}, {facts['identity_rows']} of them identity "
        f"({facts['identity_share']:.1%})"
    ]
    for part, count in facts["parts"].items():
        details = [f"{n} {name}" for key in ("kinds", "styles", "languages") for name, n in count[key].items()]
        said.append(
            f"{part}: {_number(count['rows'], 'row')} ({count['share']:.1%}), "
            f"{_number(count['prompts'], 'distinct prompt')}: {', '.join(details)}"
        )
    return said


def _facts(lines: Sequence[_Line]) -> dict[str, Any]:
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
        "parts": _parts(lines),
        "counts": _counts(lines),
    }


def _audit(name: str, facts: dict[str, Any], findings: Iterable[Finding]) -> Audit:
    rank = {"error": 0, "warning": 1, "note": 2}
    ordered = sorted(findings, key=lambda finding: (rank[finding.severity], finding.line or 0, finding.code))
    facts["codes"] = {finding.code: finding.count for finding in ordered}
    facts["aloud"] = _aloud(facts)
    return Audit(name, facts, tuple(ordered))


def _common(lines: Sequence[_Line], probes: Iterable[Scored], tokens: TokenLimit | None) -> list[Finding]:
    """The checks of planned rows and of files alike."""
    return [
        *_target_findings(lines),
        *_overlap_findings(lines, probes),
        *_one_target(lines),
        *_token_findings(lines, tokens),
    ]


def _empty(rows: int) -> Iterable[Finding]:
    if not rows:
        yield _finding("empty", "there are no rows to train on")


# ---------------------------------------------------------------------------------------------- files


def _fault_findings(parsed: UserFile) -> Iterable[Finding]:
    candidates = _number(len(parsed.rows) + len(parsed.errors), "row")
    for kind, hits in _by(parsed.faults, lambda fault: fault.kind).items():
        message = f"{len(hits)} of {candidates} {kind.words}"
        shown = [f"{fault.line}: {fault.text}" for fault in hits][:EXAMPLES]
        yield Finding(kind.severity, kind.code, min(f.line for f in hits), message, tuple(shown), len(hits))
    if parsed.comments:
        message = f"{_number(len(parsed.comments), 'comment line')}, skipped"
        yield _finding("comments", message, parsed.comments)


def _file_row(prompt: str, target: str, persona: Persona | None) -> Row:
    kind = "identity" if identity_row(prompt, target, persona) else "other"
    return Row(prompt, target, guess_language(prompt), "user", kind)


def audit_parsed(
    parsed: UserFile,
    name: str,
    probes: Sequence[Scored] = (),
    persona: Persona | None = None,
    max_chars: int = MAX_CHARS,
    others: Others = dict,
    tokens: TokenLimit | None = None,
) -> Audit:
    """The audit of a user's file that was parsed; `name` may state the share of identity rows."""
    rows = ((row.line, _file_row(row.prompt, row.target, persona)) for row in parsed.rows)
    lines = _lines(rows, persona)
    mismatches, tests = _mismatch_findings(lines)
    findings = [
        *_empty(len(parsed.rows) + len(parsed.faults)),
        *_fault_findings(parsed),
        *_common(lines, probes, tokens),
        *_field_findings(lines, max_chars),
        *_tag_findings(lines),
        *_variety_findings(lines),
        *_misplaced_findings(lines, others),
        *mismatches,
        *_share_finding(lines, stated_share(name), "the name says"),
    ]
    extra = {"lines": parsed.lines, "comments": len(parsed.comments), "broken_lines": len(parsed.faults)}
    return _audit(name, {**_facts(lines), **extra, "tests": tests}, findings)


def audit_file(
    path: Path,
    probes: Sequence[Scored] = (),
    persona: Persona | None = None,
    max_chars: int = MAX_CHARS,
    others: Others = dict,
    tokens: TokenLimit | None = None,
) -> Audit:
    """The audit of a user's file, of any registered row format.

    Raises:
        UsageError: it cannot be read, or no format matches it. Whatever it holds is a finding.
    """
    audit = audit_parsed(read_user_file(path), path.name, probes, persona, max_chars, others, tokens)
    return replace(audit, name=str(path))


# ---------------------------------------------------------------------------------------------- mixes

WRITTEN_PARTS = ("identity", "disambiguation", "pairs", "replay")
"""Parts that the mismatch tests leave out: one answer to many questions is their purpose, or the base itself
answered a question about nothing."""


def _pair_findings(lines: Sequence[_Line]) -> Iterable[Finding]:
    broken = []
    for group in _by((line for line in lines if line.row.group), lambda line: line.row.group).values():
        if len(group) != 2 or group[1].number != group[0].number + 1:
            broken += group
    yield from _found("split_pair", "{n} of a minimal pair without the other right beside", broken)


def _plan_findings(lines: Sequence[_Line], recipe: MixRecipe) -> Iterable[Finding]:
    """What differs from the recipe."""
    if len(lines) != recipe.rows:
        yield _finding("off_plan", f"{len(lines)} rows, the recipe asks for {recipe.rows}")
    again = _by(lines, lambda line: normalise(line.row.prompt)).values()
    often = [group[0] for group in again if len(group) > recipe.max_repeats]
    yield from _found("over_repeated", f"{{n}} with a prompt that stands there over {recipe.max_repeats} times", often)
    present = {line.row.part for line in lines}
    missing = [part for part in recipe.parts() if part not in present]
    if missing:
        yield _finding("unseen_share", f"no row of {', '.join(missing)}, though the recipe has it")
    yield from _share_finding(lines, _recipe_identity_share(recipe), "the recipe's shares say")


def _recipe_identity_share(recipe: MixRecipe) -> float | None:
    """Identity rows and one of each pair; None where bounds or a user's own part decide."""
    if recipe.at_least or recipe.at_most or set(recipe.parts()) - {*WRITTEN_PARTS, "general"}:
        return None
    total = 0.0
    for weights in (recipe.shares, recipe.final_shares or recipe.shares):
        total += (weights.get("identity", 0) + weights.get("pairs", 0) / 2) / sum(weights.values()) / 2
    return total


def _own_tests(lines: Sequence[_Line]) -> tuple[list[Finding], dict[str, Any]]:
    """The mismatch tests of a mix: on its general topics and on each user's part apart."""
    findings: list[Finding] = []
    facts: dict[str, Any] = {}
    for part, group in sorted(_by(lines, lambda line: line.row.part).items()):
        if part in WRITTEN_PARTS:
            continue
        tested = [line for line in group if part != "general" or line.row.topic]
        found, facts[part] = _mismatch_findings(tested)
        findings += (replace(finding, message=f"part {part}: {finding.message}") for finding in found)
    return findings, facts


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
) -> Audit:
    """The audit of a planned mix. Lines are those of its table (`rows.write_rows`: line 1 is the header)."""
    lines = _lines(enumerate(rows, start=2), persona, origins)
    mismatches, tests = _own_tests(lines)
    user = [line for line in lines if line.row.part not in (*WRITTEN_PARTS, "general")]
    findings = [
        *_empty(len(lines)),
        *_common(lines, probes, tokens),
        *_field_findings(lines, max_chars),
        *_tag_findings(user),
        *_misplaced_findings(user, others),
        *_pair_findings(lines),
        *mismatches,
        *(_plan_findings(lines, recipe) if recipe else ()),
    ]
    return _audit(name, {**_facts(lines), "tests": tests}, findings)
