"""Arguments of a command as a frozen dataclass, and the command line that argparse derives from it.

    @dataclass(frozen=True, kw_only=True)
    class Gate:
        limits: Annotated[Json, Option("the key gate")]
        out: Annotated[Path, Output("verdict.json to write")]
        fold: Annotated[Count, Option("a fold, from 1")] = 0

    add_options(parser, Gate)                   # --limits JSON --out PATH [--fold N]
    options_of(Gate, parser.parse_args())       # a Gate

The type of a field says how its text is read and the name how the option is called; without a default it is required.
A `bool` is a flag, a `tuple` takes one or more words, a `Literal` names the choices. A field that is a dataclass,
like `Limits` of the guard, stands for the options of that dataclass.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fgod.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HIDDEN = argparse.SUPPRESS
"""The help of an option that people do not set."""


@dataclass(frozen=True)
class Option:
    """What a command line says of a field besides its type.

    Args:
        help: as argparse formats it: `%(default)s` is the default, and a percent sign is doubled.
        metavar: what stands for its value in help.
        positional: it is given by its place, without a name.
        rest: with `positional`, it takes all that is left of the command line, for the command of another program.
        group: title of the options among which help shows it.
        short: a second name of one letter, with its dash.
        action: what argparse does where a flag is met, instead of keeping that it was.
    """

    help: str
    metavar: str = ""
    positional: bool = False
    rest: bool = False
    group: str = ""
    short: str = ""
    action: type[argparse.Action] | None = None


class Input(Option):
    """A file or folder that the command reads, or a collection of them; the manifest digests it."""


class Output(Option):
    """A file or folder that the command makes or removes; the manifest digests it."""


@dataclass(frozen=True)
class Reader:
    """How a text of the command line becomes a value.

    Args:
        read: raises UsageError that says what was found and what was expected.
        metavar: what stands for the value in help.
        write: the text that is read as a value.
    """

    read: Callable[[str], Any]
    metavar: str
    write: Callable[[Any], str] = str

    def __call__(self, text: str) -> Any:
        """For argparse, whose message names the option."""
        try:
            return self.read(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error


def read_json(text: str) -> Any:
    """Raises UsageError where the text is no JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"not JSON: {error.msg} at character {error.pos}") from None


def read_object(text: str) -> dict[str, Any]:
    """Raises UsageError where the text is no object of JSON."""
    value = read_json(text)
    if not isinstance(value, dict):
        raise UsageError(f"found {text!r}, expected a JSON object")
    return value


def read_object_or_null(text: str) -> dict[str, Any] | None:
    """Raises UsageError where the text is neither an object of JSON nor null."""
    return None if read_json(text) is None else read_object(text)


def read_count(text: str) -> int:
    """Raises UsageError where the text is no whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"found {text!r}, expected a whole number above 0")
    return int(text)


Json = Annotated[Any, Reader(read_json, "JSON", json.dumps)]
JsonObject = Annotated[dict[str, Any], Reader(read_object, "JSON", json.dumps)]
OptionalObject = Annotated[dict[str, Any] | None, Reader(read_object_or_null, "JSON", json.dumps)]
Count = Annotated[int, Reader(read_count, "N")]

METAVARS = {Path: "PATH", int: "N"}


@dataclass(frozen=True)
class Argument:
    """A field as an argument: its name, type, default (MISSING: required) and what its annotation says.

    `many`: it takes words as a tuple; `nested`: the dataclass for whose options it stands.
    """

    name: str
    type: Any
    default: Any
    option: Option
    reader: Reader | None
    many: bool
    nested: type[DataclassInstance] | None

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"


@cache
def arguments_of(cls: type[DataclassInstance]) -> tuple[Argument, ...]:
    """The fields of a dataclass as arguments, in their order."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(_argument(field, hints[field.name]) for field in fields(cls))


def _argument(field: Field[Any], hint: Any) -> Argument:
    kind, marks = _unwrapped(hint)
    many = get_origin(kind) is tuple
    if many:
        kind, more = _unwrapped(get_args(kind)[0])
        marks += more
    option = next((mark for mark in marks if isinstance(mark, Option)), None)
    nested = kind if is_dataclass(kind) and option is None else None
    if option is None and nested is None:
        raise TypeError(f"{field.name}: expected Annotated[…, Option(…)]")
    reader = next((mark for mark in marks if isinstance(mark, Reader)), None)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return Argument(field.name, kind, default, option or Option(""), reader, many, nested)


def _unwrapped(hint: Any) -> tuple[Any, list[Any]]:
    """The type below annotations and `| None`, and the annotations."""
    marks: list[Any] = []
    while True:
        if get_origin(hint) is Annotated:
            marks += hint.__metadata__
            hint = hint.__origin__
        elif get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint):
            [hint] = [one for one in get_args(hint) if one is not NoneType]
        else:
            return hint, marks


def add_options(parser: argparse.ArgumentParser, cls: type[DataclassInstance]) -> None:
    """Give a parser the options of a dataclass."""
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    for argument in arguments_of(cls):
        if argument.nested:
            add_options(parser, argument.nested)
            continue
        title = argument.option.group
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        names = [argument.name] if argument.option.positional else [argument.option.short, argument.flag]
        groups[title].add_argument(*filter(None, names), **_settings(argument))


def _settings(argument: Argument) -> dict[str, Any]:
    """What argparse is told of an argument besides its name."""
    option, required = argument.option, argument.default is MISSING
    found: dict[str, Any] = {"help": option.help}
    if not required:
        found["default"] = argument.default
    if argument.type is bool:
        return {**found, "action": option.action or "store_true"}
    if not option.positional:
        found["required"] = required
    return {**found, **_type(argument), "nargs": _nargs(argument, required)}


def _type(argument: Argument) -> dict[str, Any]:
    metavar, reader = argument.option.metavar, argument.reader
    if reader:
        return {"type": reader, "metavar": metavar or reader.metavar}
    if get_origin(argument.type) is Literal:
        choices = get_args(argument.type)
        return {"type": type(choices[0]), "choices": choices, "metavar": metavar or None}
    return {"type": argument.type, "metavar": metavar or METAVARS.get(argument.type)}


def _nargs(argument: Argument, required: bool) -> str | None:
    if argument.option.rest:
        return argparse.REMAINDER
    if argument.option.positional and not required:
        return "*" if argument.many else "?"
    return "+" if argument.many else None


T = TypeVar("T", bound="DataclassInstance")


def options_of(cls: type[T], found: argparse.Namespace) -> T:
    """The dataclass of what argparse found.

    Raises:
        UsageError: the dataclass refuses a value.
    """
    values: dict[str, Any] = {}
    for argument in arguments_of(cls):
        if argument.nested:
            values[argument.name] = options_of(argument.nested, found)
        else:
            value = getattr(found, argument.name)
            values[argument.name] = tuple(value) if argument.many else value
    return cls(**values)


def words_of(made: DataclassInstance) -> list[str]:
    """The command line that gives this dataclass again; what has its default is left out."""
    words: list[str] = []
    for argument in arguments_of(type(made)):
        value = getattr(made, argument.name)
        if argument.nested:
            words += words_of(value)
        elif value != argument.default:
            words += _words(argument, value)
    return words


def _words(argument: Argument, value: Any) -> list[str]:
    if argument.type is bool:
        return [argument.flag]
    write = argument.reader.write if argument.reader else str
    texts = [write(one) for one in (value if argument.many else [value])]
    if argument.option.positional:
        return texts
    return [argument.flag, *texts] if argument.many else [f"{argument.flag}={texts[0]}"]


def marked(made: DataclassInstance, mark: type[Option]) -> Iterator[Any]:
    """The values of the fields whose annotation is of a kind, `Input` or `Output`; None is left out."""
    for argument in arguments_of(type(made)):
        value = getattr(made, argument.name)
        if isinstance(argument.option, mark) and value is not None:
            yield value
