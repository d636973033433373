"""Scripts: turns that are asked one after another, with marks that their replies should carry.

    system: You are brief.            # or no system, and the list alone
    turns:
      - user: 你是誰
        expect: {any: [F# 之神, F#の神], none: 通義千問}
      - user: What did I ask?
        expect: {all: [who]}

or JSONL, a turn on each line: {"user": "你是誰", "expect": {"any": ["F# 之神"]}}. `reset: true` in a turn forgets the
turns before it. Marks are compared as the gate compares them (`fgod.persona.fold`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fgod.data.records import reason
from fgod.data.text import has_surrogate
from fgod.errors import UsageError, did_you_mean
from fgod.persona import Rule, fold

MARKS = ("all", "any", "none")
TURN = ("user", "expect", "reset")


@dataclass(frozen=True)
class Turn:
    """A question, and what its reply should carry. `line`: where it stands, from 1."""

    user: str
    expect: Rule
    line: int
    reset: bool = False


@dataclass(frozen=True)
class Script:
    """`system` is None where the script leaves it to the command and the template."""

    path: Path
    turns: tuple[Turn, ...]
    system: str | None = None


@dataclass(frozen=True)
class _Place:
    """A part of a script that knows where it stands."""

    path: Path
    key: str
    line: int

    def fail(self, found: Any, expected: str) -> UsageError:
        where = f"{self.path}:{self.line}"
        return UsageError(f"{where}: {self.key}: found {str(found)[:60]!r}, expected {expected}" if self.key else
                          f"{where}: found {str(found)[:60]!r}, expected {expected}")  # fmt: skip

    def under(self, key: str, lines: Mapping[int, Mapping[str, int]], owner: int) -> _Place:
        """The place of a key of a mapping."""
        name = f"{self.key}.{key}" if self.key else key
        return _Place(self.path, name, lines.get(owner, {}).get(key, self.line))


def read_script(path: Path) -> Script:
    """Read a script: YAML, or JSONL by its name.

    Raises:
        UsageError: it cannot be read, or a turn or a mark is none; names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; expected a script of turns") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from error
    return _jsonl(path, text) if path.suffix.lower() in (".jsonl", ".ndjson") else _yaml(path, text)


def _jsonl(path: Path, text: str) -> Script:
    turns = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}:{number}: not JSON: {reason(error)}") from None
        turns.append(_turn(value, _Place(path, "", number), {}))
    return _script(path, turns, None, 1)


class _Loader(yaml.SafeLoader):
    """Notes the line of each key of each mapping, and of what cannot be made, such as the date 2024-13-01."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lines: dict[int, dict[str, int]] = {}
        """By the identity of the mapping that was made, which `kept` keeps alive."""
        self.kept: list[Any] = []

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(problem=str(error), problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        made = super().construct_mapping(node, deep=True)
        lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
        self.kept.append(made)
        self.lines[id(made)] = {**lines, "": node.start_mark.line + 1}
        return made


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _yaml(path: Path, text: str) -> Script:
    try:
        loader = _Loader(text)
        value = loader.get_single_data()
    except RecursionError:
        raise UsageError(f"{path}: not YAML: nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}:{line}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    whole = _Place(path, "", 1)
    system = None
    if isinstance(value, dict):
        _check_keys(value, ("system", "turns"), whole, loader.lines)
        system = value.get("system")
        if system is not None and not isinstance(system, str):
            raise whole.under("system", loader.lines, id(value)).fail(system, "a text")
        value = value.get("turns")
    if not isinstance(value, list):
        raise whole.fail(value, "a list of turns, or a mapping with the key turns")
    turns = [_turn(one, _Place(path, "", loader.lines.get(id(one), {}).get("", 1)), loader.lines) for one in value]
    return _script(path, turns, system, 1)


def _script(path: Path, turns: list[Turn], system: str | None, line: int) -> Script:
    if not turns:
        raise UsageError(f"{path}:{line}: found no turn, expected at least one")
    return Script(path, tuple(turns), system)


def _check_keys(
    value: Mapping[Any, Any], known: tuple[str, ...], place: _Place, lines: Mapping[int, Mapping[str, int]]
) -> None:
    for key in value:
        if key not in known:
            where = place.under(str(key), lines, id(value))
            raise UsageError(
                f"{where.path}:{where.line}: {where.key}: unknown key{did_you_mean(key, known)}, expected "
                f"{', '.join(known)}"
            )


def _turn(value: Any, place: _Place, lines: Mapping[int, Mapping[str, int]]) -> Turn:
    if not isinstance(value, dict):
        raise place.fail(value, "a turn: {user: TEXT, expect: {all, any, none}}")
    _check_keys(value, TURN, place, lines)
    user, reset = value.get("user"), value.get("reset", False)
    if not isinstance(user, str) or not user.strip() or has_surrogate(user):
        raise place.under("user", lines, id(value)).fail(user, "the text of a question")
    if not isinstance(reset, bool):
        raise place.under("reset", lines, id(value)).fail(reset, "true or false")
    expect = _expect(value.get("expect", {}), place.under("expect", lines, id(value)), lines)
    return Turn(user, expect, place.line, reset)


def _expect(value: Any, place: _Place, lines: Mapping[int, Mapping[str, int]]) -> Rule:
    if not isinstance(value, dict):
        raise place.fail(value, "marks: {all: [TEXT, …], any: [TEXT, …], none: [TEXT, …]}")
    _check_keys(value, MARKS, place, lines)
    return Rule(**{key: _texts(marks, place.under(key, lines, id(value))) for key, marks in value.items()})


def _texts(value: Any, place: _Place) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) and one.strip() for one in texts):
        raise place.fail(value, "a text, or a list of texts (put words that YAML reads as others in quotes)")
    return tuple(texts)


def failures(rule: Rule, reply: str) -> list[str]:
    """In words, which marks of a rule a reply does not satisfy; none where `rule.accepts` it."""
    text = fold(reply)
    found = [f"all: {mark!r} is missing" for mark in rule.all if fold(mark) not in text]
    if rule.any and not any(fold(mark) in text for mark in rule.any):
        found.append(f"any: none of {', '.join(map(repr, rule.any))} is there")
    return found + [f"none: {mark!r} is there" for mark in rule.none if fold(mark) in text]
