"""Models of keys: pydantic dataclasses that state types, ranges and defaults, and say in words what does not fit.

    @dataclass(frozen=True, config=KEYS)
    class Ring(Keys):
        \"\"\"What a ring is.\"\"\"
        stones: Count = 1
        \"\"\"What the key does: the help of editors.\"\"\"

    validate(Ring, {"stone": 2}, "ring")    # UsageError: ring: unknown key 'stone' (did you mean stones?); …

A value has the type that is stated: no text becomes a number, no truth value either, nan and infinity are no numbers.
A whole number is also a number. `plain` is the way back to JSON values.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Interval, MinLen
from pydantic import BeforeValidator, ConfigDict, GetCoreSchemaHandler, Tag, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from fgod.errors import UsageError, did_you_mean
from fgod.plugins import Registry

T = TypeVar("T")

KEYS = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, defer_build=True)
"""How every model of keys is checked. What checks it is made when it is first used: most commands use few of them."""


class Keys:
    """What every model of keys inherits: it is made of a mapping, though its values are checked strictly."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        made = handler(source)
        return {**made, "strict": False} if made["type"] == "dataclass" else made


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Text, one of these."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.names))


@dataclasses.dataclass(frozen=True)
class OneOfOrAdded(OneOf):
    """Text, one of these, or a name that a plugin has added to a registry. Editors know these alone."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any, known: core_schema.ValidatorFunctionWrapHandler) -> Any:
            added = isinstance(value, str) and value not in self.names and value in self.registry
            return value if added else known(value)

        return core_schema.no_info_wrap_validator_function(check, super().__get_pydantic_core_schema__(source, handler))


@dataclasses.dataclass(frozen=True)
class OrNull:
    """May also be null, which what reads the model replaces: the type does not show it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.nullable_schema(handler(source))


@dataclasses.dataclass(frozen=True)
class OmitDefault:
    """A key that `plain` leaves out where it has its default: digests of what was made before it came stay the same."""


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


FromList = BeforeValidator(_as_tuple)
"""A tuple in Python, a list in YAML and JSON."""

Text = Annotated[str, MinLen(1)]
Texts = Annotated[tuple[Text, ...], FromList]
SomeTexts = Annotated[tuple[Text, ...], MinLen(1), FromList]
TextByName = Annotated[Mapping[str, Text], MinLen(1)]
Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Device = Annotated[str, OneOf(("cpu", "cuda"))]
Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Weights = Annotated[Mapping[str, NotNegative], MinLen(1)]


def distinct(items: T) -> T:
    """Refuse a list that has an item twice (for `AfterValidator`)."""
    if isinstance(items, Sequence) and len({*items}) < len(items):
        raise PydanticCustomError("distinct", "items that differ from each other")
    return items


def fault(key: str, said: str) -> PydanticCustomError:
    """What a model's `__post_init__` raises for a key that does not go with others; empty: of the section as a whole.

    `said` stands behind the key in the message.
    """
    return PydanticCustomError("fault", "{said}", {"key": key, "said": said})


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def validate(model: Callable[..., T], value: Any, section: str = "", where: str = "") -> T:
    """A model of JSON or YAML values.

    Args:
        section: the key of the value, which messages name before those inside it; empty: it is a whole file.
        where: the file, which messages name first.

    Raises:
        UsageError: every fault on a line of its own: key, what was found, what is allowed.
    """
    try:
        made: T = _adapter(model).validate_python(value)
    except ValidationError as error:
        lines = [line for found in _own_faults(error) for line in _explain(found, model, value, section)]
        raise UsageError("\n".join(f"{where}: {line}" if where else line for line in dict.fromkeys(lines))) from None
    return made


def _own_faults(error: ValidationError) -> list[ErrorDetails]:
    """All faults but those that follow from others: a list whose items are faulty also counts as too short."""
    faults = error.errors(include_url=False)
    places = [found["loc"] for found in faults]

    def follows(found: ErrorDetails) -> bool:
        size = len(found["loc"])
        return found["type"] == "too_short" and any(len(p) > size and p[:size] == found["loc"] for p in places)

    return [found for found in faults if not follows(found)]


def plain(value: Any) -> Any:
    """A model as JSON values: mappings of all keys with their values, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        omitted = _omitted_defaults(type(value))
        items = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: plain(item) for name, item in items if name not in omitted or item != omitted[name]()}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@cache
def _omitted_defaults(model: type) -> Mapping[str, Callable[[], Any]]:
    """By key that is left out where it has its default: what gives the default."""
    return {
        field.name: partial(_default, field)
        for field in dataclasses.fields(model)
        if any(isinstance(extra, OmitDefault) for extra in _metadata(_hints(model)[field.name]))
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


# ---------------------------------------------------------------------------------------------- what a model says


@cache
def _hints(model: type) -> dict[str, Any]:
    return typing.get_type_hints(model, include_extras=True)


def _metadata(kind: Any) -> tuple[Any, ...]:
    return tuple(kind.__metadata__) if typing.get_origin(kind) is Annotated else ()


def _bare(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _members(kind: Any) -> list[Any]:
    """What a type may be besides null."""
    if typing.get_origin(kind) is Annotated and not any(isinstance(extra, Tag) for extra in _metadata(kind)):
        return _members(_bare(kind))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [inner for one in typing.get_args(kind) if one is not type(None) for inner in _members(one)]
    return [kind]


def nullable(kind: Any) -> bool:
    """Whether a type may be null."""
    if typing.get_origin(kind) is Annotated:
        return any(isinstance(extra, OrNull) for extra in _metadata(kind)) or nullable(_bare(kind))
    return type(None) in typing.get_args(kind)


def _tagged(kind: Any, tag: str | int) -> bool:
    """Whether this member of a union is the one that a tag names."""
    if any(isinstance(extra, Tag) and extra.tag == tag for extra in _metadata(kind)):
        return True
    return dataclasses.is_dataclass(kind) and tag in typing.get_args(_hints(typing.cast(type, kind)).get("kind"))


def _inside(kind: Any, part: str | int) -> Any:
    """The type of what stands under a key, or at a place of a list."""
    if dataclasses.is_dataclass(kind):
        return _hints(typing.cast(type, kind)).get(str(part))
    if typing.get_origin(kind) is Annotated:
        return _inside(_bare(kind), part)
    arguments = typing.get_args(kind)
    if isinstance(part, str) or not arguments:
        return arguments[-1] if arguments else None
    return arguments[part] if part < len(arguments) and arguments[-1] is not ... else arguments[0]


def _walk(model: Any, location: Sequence[str | int]) -> tuple[list[str | int], Any]:
    """The keys of a fault, without the tags of unions, and the type that stands there."""
    keys: list[str | int] = []
    kind = model
    for part in location:
        members = _members(kind)
        if len(members) > 1 or any(isinstance(extra, Tag) for extra in _metadata(members[0])):
            kind = _bare(next((one for one in members if _tagged(one, part)), None))
        elif part != "[key]":
            keys.append(part)
            kind = _inside(members[0], part)
    return (keys[:-1], kind) if "[key]" in location else (keys, kind)


# ---------------------------------------------------------------------------------------------- in words


def key_path(parts: Sequence[str | int], root: Any, section: str = "") -> str:
    """`stages[1 B-nudge].train.lr`: list items carry their name where they have one."""
    text, value = section, root
    for part in parts:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            value = None
        if isinstance(part, int):
            name = f" {value['name']}" if isinstance(value, Mapping) and "name" in value else ""
            text += f"[{part}{name}]"
        else:
            text += f".{part}" if text else str(part)
    return text or "the top level"


def kind_words(value: Any) -> str:
    """What kind of thing a value is."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not a finite number"
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def _explain(error: ErrorDetails, model: Any, root: Any, section: str) -> Iterator[str]:
    """One fault in words: the key, what was found, what is allowed."""
    kind, found, context = error["type"], plain(error["input"]), error.get("ctx", {})
    keys, stated = _walk(model, error["loc"])
    key = key_path(keys, root, section)
    match kind:
        case "missing" if isinstance(keys[-1], int):
            yield f"{key_path(keys[:-1], root, section)}: found {found!r}, expected at least {keys[-1] + 1} items"
        case "missing" | "missing_argument":
            yield f"{key_path(keys[:-1], root, section)}: the key {keys[-1]!r} is missing"
        case "union_tag_not_found":
            yield f"{key}: the key {context['discriminator'].strip(chr(39))!r} is missing"
        case "unexpected_keyword_argument" | "extra_forbidden":
            yield f"{key_path(keys[:-1], root, section)}: {_unknown(str(keys[-1]), _model_at(model, error['loc']))}"
        case "union_tag_invalid":
            tag = context["discriminator"].strip("'")
            yield f"{key}.{tag}: {_choice(found[tag], _quoted(context['expected_tags']))}"
        case "literal_error":
            allowed = [*(["null"] if nullable(stated) else []), *_quoted(context["expected"])]
            yield f"{key}: {_choice(found, allowed)}"
        case "invalid_key":
            yield f"{key_path(keys[:-1], root, section)}: found the key {found!r} ({kind_words(found)}), expected text"
        case "distinct":
            yield f"{key}: found {found!r}, expected {error['msg']}"
        case "fault":
            yield f"{key_path([*keys, *filter(None, [context['key']])], root, section)}: {context['said']}"
        case _:
            yield f"{key}: {_unfit(error, found, stated)}"


def _model_at(model: Any, location: Sequence[str | int]) -> Any:
    return _members(_walk(model, location[:-1])[1])[0]


def _unknown(name: str, model: Any) -> str:
    allowed = sorted(field.name for field in dataclasses.fields(model))
    return f"unknown key {name!r}{did_you_mean(name, allowed)}; allowed: {', '.join(allowed)}"


def _choice(found: Any, allowed: Sequence[str]) -> str:
    return f"found {found!r}{did_you_mean(found, allowed)}; allowed: {', '.join(allowed)}"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


_TYPES = {
    "a whole number": ("int_type", "int_from_float", "int_parsing"),
    "a number": ("float_type", "float_parsing", "finite_number"),
    "text": ("string_type",),
    "a boolean": ("bool_type", "bool_parsing"),
    "a list": ("list_type", "tuple_type"),
    "a mapping": ("mapping_type", "dict_type", "dataclass_type", "model_attributes_type"),
}
_TYPE_WORDS = {name: words for words, names in _TYPES.items() for name in names}


def _unfit(error: ErrorDetails, found: Any, stated: Any) -> str:
    kind = error["type"]
    if kind in _TYPE_WORDS:
        words = _TYPE_WORDS[kind] + (" or null" if nullable(stated) else "")
        return f"found {found!r} ({kind_words(found)}), expected {words}{_exponent_hint(found, words)}"
    limit = _limit_words(kind, error.get("ctx", {}))
    return f"found {found!r}, expected {limit}" if limit else f"found {found!r}: {error['msg']}"


def _exponent_hint(found: Any, words: str) -> str:
    """YAML reads `1e-4` as text: the commonest slip in a learning rate."""
    try:
        float(found if isinstance(found, str) else "no text")
    except ValueError:
        return ""
    return f" (YAML reads {found} as text: write 1.0e-4 with a point)" if "number" in words else ""


def _limit_words(kind: str, context: Mapping[str, Any]) -> str:
    """What a limit allows; empty for a kind of fault that no config has had yet: pydantic's own words serve then."""
    of = {key: _number(value) for key, value in context.items()}
    match kind:
        case "greater_than":
            return f"more than {of['gt']}"
        case "greater_than_equal":
            return f"at least {of['ge']}"
        case "less_than":
            return f"less than {of['lt']}"
        case "less_than_equal":
            return f"at most {of['le']}"
        case "multiple_of":
            return f"a multiple of {of['multiple_of']}"
        case "string_too_short":
            return "text that is not empty"
        case "string_too_long":
            return f"at most {of['max_length']} characters"
        case "string_pattern_mismatch":
            return f"text like {of['pattern']}"
        case "too_short":
            return f"at least {of['min_length']} {'key' if of['field_type'] == 'Dictionary' else 'items'}"
        case "too_long":
            return f"at most {of['max_length']} items"
    return ""


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
