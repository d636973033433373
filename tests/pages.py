"""What an English page and its translation have in common, and where they differ.

README.zh-Hant.md belongs to README.md, docs/zh-Hant/NAME.md to docs/NAME.md. Words are translated; everything else is
the same, section by section:

- **Headings**: as many, of the same levels, in the same order. What a translation leaves out it names, by
  `<!-- not translated: HEADING -->` with the English heading; the sections below that one are left out too.
- **Code blocks**: byte for byte. Only a comment, from `# ` at the start of a line or after white space to its end, may
  be translated; it stays in its line and keeps its figures and inline code.
- **Inline code and figures**: the same in the text of a section, in any order, and in each cell of its tables. So a
  number written in digits on one side is written in digits on the other; a per cent sign belongs to its number.
- **Links and images**: to the same targets; to the translation of a page and of a heading where there is one. Not
  compared are links between a page and its own translation, and those to pages that exist in translation only.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import zip_longest
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

FOLDER = "docs/zh-Hant/"
README = "README.zh-Hant.md"
LEFT_OUT = re.compile(r"<!-- not translated: (.+?) -->")
COMMENT = re.compile(r"(?:(?<=\s)|^)# .*$")
FIGURE = re.compile(r"[−+]?(?:\d+(?:[.,]\d+)*|\.\d+)[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]*(?: ?%)?")
SPAN = re.compile(r"`([^`]+)`")
MARKDOWN = MarkdownIt("commonmark").enable("table")

Facts = Counter[str]
"""How often each inline code, between grave accents, and each figure occurs."""


def listed(found: Facts) -> list[str]:
    return sorted(found.elements())


@dataclass
class Section:
    """A heading and what stands below it, up to the next heading of any level."""

    level: int
    title: str
    text: Facts = field(default_factory=Counter)
    blocks: list[str] = field(default_factory=list)
    tables: list[list[list[Facts]]] = field(default_factory=list)
    """Of each table its rows, the head first, as cells."""
    links: list[str] = field(default_factory=list)

    def untranslated(self) -> tuple[object, ...]:
        """What it shares with its translation, code and links apart; hashable."""
        cells = tuple(tuple(tuple(listed(cell)) for cell in row) for table in self.tables for row in table)
        return self.level, tuple(listed(self.text)), len(self.blocks), cells

    def __str__(self) -> str:
        return f"{'#' * self.level} {self.title}" if self.level else "the beginning"


# -------------------------------------------------------------------------------------------------------------- reading


def figures(text: str) -> Facts:
    return Counter(found.replace(" ", "") for found in FIGURE.findall(text))


def plain(token: Token) -> str:
    """The text of an inline token, code and all, without its markup."""
    return "".join(child.content if not child.type.endswith("break") else " " for child in token.children or ())


def facts(token: Token) -> Facts:
    found: Facts = Counter()
    words = []
    for child in token.children or ():
        if child.type == "code_inline":
            found[f"`{child.content}`"] += 1
        words.append(child.content if child.type == "text" else " ")
    return found + figures("".join(words))


def targets(token: Token) -> Iterator[str]:
    for child in token.children or ():
        target = child.attrGet("href") or child.attrGet("src")
        if target:
            yield unquote(str(target))


def sections(text: str) -> list[Section]:
    """Those of a page; the first is what stands before its first heading, of level 0."""
    found = [Section(0, "")]
    cell = False
    for token in MARKDOWN.parse(text):
        here = found[-1]
        if token.type == "heading_open":
            found.append(Section(int(token.tag[1:]), ""))
        elif token.type in ("code_block", "fence"):
            here.blocks.append(token.content)
        elif token.type == "table_open":
            here.tables.append([])
        elif token.type == "tr_open":
            here.tables[-1].append([])
        elif token.type in ("td_open", "th_open", "td_close", "th_close"):
            cell = token.type.endswith("open")
        elif token.type == "inline":
            here.links += targets(token)
            if cell:
                here.tables[-1][-1].append(facts(token))
            else:
                here.text += facts(token)
                if here.level and not here.title:
                    here.title = plain(token)
    return found


def unclosed(text: str) -> list[str]:
    """Texts that show two asterisks: Markdown closes no `**` between a full stop or bracket and a letter."""
    inline = (child for token in MARKDOWN.parse(text) for child in token.children or ())
    return [child.content for child in inline if child.type == "text" and "**" in child.content]


def left_out(text: str) -> list[str]:
    return LEFT_OUT.findall(text)


def kept(found: list[Section], names: list[str]) -> list[Section]:
    """Sections without those of these titles and what is below them."""
    out, above = [], 0
    for section in found:
        if above and section.level > above:
            continue
        above = section.level if section.title in names else 0
        if not above:
            out.append(section)
    return out


def slugs(found: list[Section]) -> list[str]:
    """The anchor of each section, as GitHub makes it of the heading."""
    seen: Counter[str] = Counter()
    out = []
    for section in found:
        slug = re.sub(r"[^\w\- ]", "", section.title.lower()).replace(" ", "-")
        out.append(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return out


# ------------------------------------------------------------------------------------------------------------ comparing


def said(only: str, other: str, one: Facts, two: Facts) -> str:
    """What one side has more often than the other, in words; empty if nothing."""
    sides = ((only, one - two), (other, two - one))
    lists = (f"{side} has {', '.join(listed(more))} besides" for side, more in sides if more)
    return "; ".join(lists)


def counts(english: Facts, translation: Facts) -> str:
    return said("the English page", "the translation", english, translation)


def block_faults(english: str, translation: str) -> Iterator[str]:
    for one, two in zip_longest(english.splitlines(), translation.splitlines(), fillvalue=""):
        if COMMENT.sub("# ", one) != COMMENT.sub("# ", two):
            yield f"code differs: {one!r} in English, {two!r} in the translation"
        else:
            comments = ["".join(COMMENT.findall(line)) for line in (one, two)]
            spans = [Counter(SPAN.findall(comment)) + figures(comment) for comment in comments]
            if spans[0] != spans[1]:
                yield f"the comment of {two!r}: {counts(*spans)}"


def table_faults(english: list[list[Facts]], translation: list[list[Facts]]) -> Iterator[str]:
    shapes = [[len(row) for row in table] for table in (english, translation)]
    if shapes[0] != shapes[1]:
        yield f"{len(english)} rows of {shapes[0][0]} cells in English, {len(translation)} of {shapes[1][0]} translated"
        return
    for row, pair in enumerate(zip(english, translation, strict=True)):
        for column, (one, two) in enumerate(zip(*pair, strict=True), 1):
            if one != two:
                yield f"{f'row {row}' if row else 'head'}, column {column}: {counts(one, two)}"


def section_faults(english: Section, translation: Section) -> Iterator[str]:
    """Where two sections differ, links apart."""
    if english.text != translation.text:
        yield f"text: {counts(english.text, translation.text)}"
    if len(english.blocks) != len(translation.blocks):
        yield f"{len(english.blocks)} code blocks in English, {len(translation.blocks)} in the translation"
    else:
        for number, blocks in enumerate(zip(english.blocks, translation.blocks, strict=True), 1):
            yield from (f"code block {number}: {fault}" for fault in block_faults(*blocks))
    if len(english.tables) != len(translation.tables):
        yield f"{len(english.tables)} tables in English, {len(translation.tables)} in the translation"
    else:
        for number, tables in enumerate(zip(english.tables, translation.tables, strict=True), 1):
            yield from (f"table {number}: {fault}" for fault in table_faults(*tables))


def heading_faults(english: list[Section], translation: list[Section]) -> Iterator[str]:
    """Sections that only one side has, found by what they hold, as titles are translated."""
    if [section.level for section in english] == [section.level for section in translation]:
        return
    keys = [[section.untranslated() for section in side] for side in (english, translation)]
    matcher = SequenceMatcher(a=keys[0], b=keys[1], autojunk=False)
    apart = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    one = [str(section) for _, start, stop, _, _ in apart for section in english[start:stop]]
    two = [str(section) for _, _, _, start, stop in apart for section in translation[start:stop]]
    yield (
        f"the headings differ: {len(english) - 1} in English, {len(translation) - 1} in the translation; "
        f"without an equal one: {', '.join(one) or 'none'} in English; {', '.join(two) or 'none'} in the translation"
    )


# ---------------------------------------------------------------------------------------------------------------- pages


def english_of(path: str) -> str | None:
    """The page that is translated there; None for any other path."""
    if path == README:
        return "README.md"
    return f"docs/{path.removeprefix(FOLDER)}" if path.startswith(FOLDER) else None


@dataclass
class Pages:
    """Texts of pages by their paths from the root of the repository.

    A page of docs/zh-Hant without an English page of its name is there in translation only.
    """

    texts: Mapping[str, str]

    def __post_init__(self) -> None:
        self.sections = {path: sections(text) for path, text in self.texts.items()}

    def pairs(self) -> list[tuple[str, str]]:
        """Of each translation the English page and the translation."""
        found = ((english_of(path), path) for path in sorted(self.texts))
        return [(english, path) for english, path in found if english and english in self.texts]

    def kept(self, translation: str) -> list[Section]:
        """The English sections that this page translates."""
        english = english_of(translation)
        assert english is not None
        return kept(self.sections[english], left_out(self.texts[translation]))

    def place(self, page: str, target: str) -> tuple[str, str]:
        """Path and anchor of a link."""
        path, _, anchor = target.partition("#")
        return posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page, anchor

    def translated(self, path: str, anchor: str) -> tuple[str, str]:
        """Where a link of an English page goes in a translation: as before, if what it leads to is left out there."""
        for english, translation in self.pairs():
            if english == path:
                theirs = dict(zip(slugs(self.kept(translation)), slugs(self.sections[translation]), strict=False))
                return (translation, theirs[anchor]) if anchor in theirs else (path, anchor)
        return path, anchor

    def link_faults(self, pair: tuple[str, str], english: Section, translation: Section) -> Iterator[str]:
        alone = {path for path in self.texts if path.startswith(FOLDER)} - {path for _, path in self.pairs()}
        skipped = {pair[0], *alone}
        ours = (self.place(pair[0], link) for link in english.links if inside(link))
        one = (self.translated(*place) for place in ours if place[0] != pair[1])
        two = (self.place(pair[1], link) for link in translation.links if inside(link))
        wanted, found = (Counter("#".join(filter(None, place)) for place in side if place[0] not in skipped)
                         for side in (one, two))  # fmt: skip
        if wanted != found:
            yield f"links: {said('the English page, translated,', 'the translation', wanted, found)}"

    def faults(self, english: str, translation: str) -> list[str]:
        """Where a translation is out of step; a line for each fault, with both headings of its section."""
        unknown = Counter(left_out(self.texts[translation])) - Counter(s.title for s in self.sections[english])
        lines = [f"`<!-- not translated: {name} -->`: no such heading in English" for name in unknown.elements()]
        ours, theirs = self.kept(translation), self.sections[translation]
        lines += (apart := list(heading_faults(ours, theirs)))
        for one, two in [] if apart else zip(ours, theirs, strict=True):
            found = [*section_faults(one, two), *self.link_faults((english, translation), one, two)]
            lines += (f"{one} | {two}: {fault}" for fault in found)
        return [f"{english} and {translation}: {line}" for line in lines]

    def broken(self, page: str, exists: Callable[[str], bool]) -> list[str]:
        """Links of a page, to files and headings, that lead nowhere."""
        lines = []
        for link in (link for section in self.sections[page] for link in section.links if inside(link)):
            path, anchor = self.place(page, link)
            if not exists(path):
                lines.append(f"{page}: {link} leads to no file")
            elif anchor and path in self.sections and anchor not in slugs(self.sections[path]):
                lines.append(f"{page}: {link} leads to no heading of {path}")
        return lines


def inside(link: str) -> bool:
    """Whether a link leads to a file of the repository or to a heading."""
    return "://" not in link
