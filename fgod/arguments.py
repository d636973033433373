"""Arguments of a command as a frozen dataclass, and the command line that jsonargparse makes of it.

    @dataclass(frozen=True, kw_only=True)
    class Gate:
        limits: Annotated[JsonObject, Option("the key gate")]
        out: Annotated[Path, Output("verdict.json to write")]
        fold: Annotated[PositiveInt | None, Option("a fold, from 1")] = None

    parser = Parser(prog="gate")
    add_options(parser, Gate)                   # --limits JSON --out PATH [--fold N]
    options_of(Gate, parser.parse_args())       # a Gate

jsonargparse reads and checks the text of a field by its type; a class of our own is made known to it by
`jsonargparse.typing.register_type`. The field's name is the option's; without a default it is required.
A `bool` is a flag, a `tuple` takes one or more words. A field that is a dataclass, like `Limits` of the guard, stands
for the options of that dataclass.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from jsonargparse import REMAINDER, SUPPRESS, ArgumentParser, Namespace
from jsonargparse.typing import get_registered_type, register_type, restricted_number_type

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    PositiveInt = int  # to mypy: jsonargparse makes these classes where it runs
    NonNegativeInt = int
    NonNegativeFloat = float
    PositiveFloat = float
    FiniteNonNegative = float
    PositiveShare = float
    Seed = int
else:
    from jsonargparse.typing import NonNegativeFloat as NonNegativeFloat
    from jsonargparse.typing import NonNegativeInt as NonNegativeInt
    from jsonargparse.typing import PositiveFloat as PositiveFloat
    from jsonargparse.typing import PositiveInt as PositiveInt

    FiniteNonNegative = restricted_number_type("FiniteNonNegative", float, [(">=", 0), ("<", math.inf)])
    PositiveShare = restricted_number_type("PositiveShare", float, [(">", 0), ("<=", 1)])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)])

HIDDEN = SUPPRESS
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


JsonObject = dict[str, Any]
"""An object of JSON."""


def read_object(given: Any) -> JsonObject:
    """For jsonargparse, which hands over what JSON holds, or a text that is none.

    Raises:
        ValueError: it is no object of JSON.
    """
    value = json.loads(given) if isinstance(given, str) else given
    if not isinstance(value, dict):
        raise ValueError(f"found {given!r}, expected a JSON object")
    return value


# By itself, jsonargparse would read the texts in a dict[str, Any] as JSON once more: {"name": "1"} as {"name": 1}.
register_type(dict, serializer=dict, deserializer=read_object, type_check=isinstance)

METAVARS = {Path: "PATH", int: "N", PositiveInt: "N", NonNegativeInt: "N", Seed: "N", JsonObject: "JSON"}


@dataclass(frozen=True)
class Argument:
    """A field as an argument: its name, type, default (MISSING: required) and what its annotation says.

    `many`: it takes words as a tuple; `nested`: the dataclass for whose options it stands.
    """

    name: str
    type: Any
    default: Any
    option: Option
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
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if is_dataclass(hint):
        return Argument(field.name, hint, default, Option(""), False, hint)
    kind, *marks = get_args(hint) if get_origin(hint) is Annotated else [hint]
    option = next((mark for mark in marks if isinstance(mark, Option)), None)
    if option is None:
        raise TypeError(f"{field.name}: expected Annotated[…, Option(…)]")
    if get_origin(kind) in (Union, UnionType):  # an error then says what was expected, and not that null would do too
        [kind] = [one for one in get_args(kind) if one is not NoneType]
    many = get_origin(kind) is tuple
    return Argument(field.name, get_args(kind)[0] if many else kind, default, option, many, None)


LACKING = "the following arguments are required: "
AT_KEY = re.compile(r'^Parser key "(\w+)"(?: element \d+)?:\s*')
PYTHON_TYPE = re.compile(r"<class '(\w+)'>|typing\.(?=Literal)")
"""How jsonargparse says which arguments are missing, at which one something is wrong, and which type it expects."""


class Parser(ArgumentParser):
    """jsonargparse's parser, with JSON as values and options whose names have dashes, as its messages write them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(parser_mode="json", formatter_class=argparse.HelpFormatter, allow_abbrev=True, **settings)
        self.commands: dict[str, Parser] = {}
        """Of a parser with subcommands: the parser of each, by its words with dots between them."""

    def titled(self, title: str) -> argparse._ActionsContainer:
        """Where options go that help shows under a title; without one, the parser itself."""
        groups = self.groups or {}
        return groups.get(title) or self.add_argument_group(title, name=title) if title else self

    def print_usage(self, file: Any = None) -> None:
        """As in help: by itself, jsonargparse shows what is required as optional where a subcommand was misread."""
        print(self.format_help().partition("\n\n")[0], file=file)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong, with the usage of the subcommand that it is about, and end with 2."""
        if message.startswith(LACKING):
            keys = message.removeprefix(LACKING).split(", ")
            parser = self.commands.get(keys[0].rpartition(".")[0], self)
            message = LACKING + ", ".join(parser._written(key.rpartition(".")[2]) for key in keys)
            ArgumentParser.error(parser, message, ex)
        message = AT_KEY.sub(lambda at: f"argument {self._written(at[1])}: ", message)
        super().error(PYTHON_TYPE.sub(r"\1", message), ex)

    def _written(self, key: str) -> str:
        """A key as the command line writes it: an option with its dashes."""
        flag = f"--{key.replace('_', '-')}"
        return flag if flag in self._option_string_actions else key


def add_options(parser: Parser, cls: type[DataclassInstance]) -> None:
    """Give a parser the options of a dataclass."""
    for argument in arguments_of(cls):
        if argument.nested:
            add_options(parser, argument.nested)
            continue
        option = argument.option
        names = [argument.name] if option.positional else [option.short, argument.flag]
        parser.titled(option.group).add_argument(*filter(None, names), **_settings(argument))


def _settings(argument: Argument) -> dict[str, Any]:
    """What jsonargparse is told of an argument besides its name."""
    option, required = argument.option, argument.default is MISSING
    found: dict[str, Any] = {"help": option.help}
    if not required:
        found["default"] = SUPPRESS if is_dataclass(argument.default) else argument.default
    if argument.type is bool:
        return {**found, "action": option.action or "store_true"}
    if metavar := option.metavar or METAVARS.get(argument.type):
        found["metavar"] = metavar
    if option.rest:
        return {**found, "nargs": REMAINDER}
    found |= {"type": argument.type, "nargs": "+" if argument.many else None}
    if not option.positional:
        return {**found, "required": required}
    return found if required else {**found, "nargs": "*" if argument.many else "?"}


T = TypeVar("T", bound="DataclassInstance")


def options_of(cls: type[T], found: Namespace) -> T:
    """The dataclass of what jsonargparse found.

    Raises:
        UsageError: the dataclass refuses a value.
    """
    values: dict[str, Any] = {}
    for argument in arguments_of(cls):
        if argument.nested:
            values[argument.name] = options_of(argument.nested, found)
        elif argument.name in found:
            value = found[argument.name]
            values[argument.name] = tuple(value) if argument.many else value
    return cls(**values)


def words_of(made: DataclassInstance) -> Iterator[str]:
    """The command line that gives this dataclass again; what has its default is left out."""
    for argument in arguments_of(type(made)):
        value = getattr(made, argument.name)
        if argument.nested:
            yield from words_of(value)
        elif argument.type is bool and value:
            yield argument.flag
        elif value != argument.default:
            texts = [_text(argument.type, one) for one in (value if argument.many else [value])]
            named = [] if argument.option.positional else [argument.flag]
            yield from [*named, *texts] if argument.many or not named else ["=".join([*named, *texts])]


def _text(kind: Any, value: Any) -> str:
    registered = get_registered_type(kind)
    plain = registered.serializer(value) if registered else value
    return plain if isinstance(plain, str) else json.dumps(plain)


def marked(made: DataclassInstance, mark: type[Option]) -> Iterator[Any]:
    """The values of the fields whose annotation is of a kind, `Input` or `Output`; None is left out."""
    for argument in arguments_of(type(made)):
        value = getattr(made, argument.name)
        if isinstance(argument.option, mark) and value is not None:
            yield value
