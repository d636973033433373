"""Command lines derived from dataclasses."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgod.arguments import (
    Input,
    JsonObject,
    NonNegativeFloat,
    Option,
    Output,
    Parser,
    PositiveInt,
    add_options,
    marked,
    options_of,
    words_of,
)
from fgod.errors import UsageError
from fgod.guard import Limits

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Size:
    """Options of their own."""

    width: Annotated[int, Option("tokens")]
    share: Annotated[NonNegativeFloat, Option("of 100 %% (default %(default)g)")] = 0.5

    def __post_init__(self) -> None:
        if self.width < 0:
            raise UsageError(f"width: found {self.width}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Everything:
    """One field of each kind."""

    folder: Annotated[Path, Input("a folder", "FOLDER", positional=True)]
    size: Size
    spec: Annotated[JsonObject, Option("a table that is never null")]
    files: Annotated[tuple[Path, ...], Input("files")] = ()
    table: Annotated[JsonObject | None, Option("a table", group="more")] = None
    keys: Annotated[JsonObject, Option("another")] = field(default_factory=dict)
    topics: Annotated[list[str], Option("texts")] = field(default_factory=list)
    dtype: Annotated[Literal["bfloat16", "float32"], Option("of weights")] = "bfloat16"
    gpus: Annotated[Literal[0, 1], Option("how many")] = 0
    batch: Annotated[PositiveInt | None, Option("prompts at once")] = None
    too_large_ok: Annotated[bool, Option("start all the same")] = False
    sizes: Annotated[tuple[PositiveInt, ...], Option("several")] = ()
    note: Annotated[str, Option("a text")] = ""
    out: Annotated[Path | None, Output("what it writes")] = None


T = TypeVar("T", bound="DataclassInstance")


def parsed(cls: type[T], words: list[str]) -> T:
    parser = Parser()
    add_options(parser, cls)
    return options_of(cls, parser.parse_args(words))


LEAST = ["models/a", "--width", "3", "--spec", "{}"]


def test_a_field_without_a_default_is_required_and_others_have_theirs() -> None:
    made = parsed(Everything, LEAST)
    assert made == Everything(folder=Path("models/a"), size=Size(3), spec={})
    assert made.size.share == 0.5 and made.files == () and made.batch is None


@pytest.mark.parametrize(
    ("words", "lacking"),
    [
        (LEAST[1:], "folder"),
        (LEAST[:1] + LEAST[3:], "--width"),
        (LEAST[:-2], "--spec"),
        ([], "folder, --width, --spec"),
    ],
)
def test_what_is_missing_is_said(words: list[str], lacking: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(Everything, words)
    assert capsys.readouterr().err.endswith(f"the following arguments are required: {lacking}\n")


def test_options_are_read_by_the_types_of_their_fields() -> None:
    more = ["--files", "a", "b", "--table", '{"a": 1}', "--dtype", "float32", "--gpus", "1", "--batch", "8"]
    made = parsed(Everything, [*LEAST, *more, "--too-large-ok", "--share", "1e-3", "--note", "-", "--out", "o"])
    assert made.files == (Path("a"), Path("b")) and made.table == {"a": 1} and made.dtype == "float32"
    assert (made.gpus, made.batch, made.too_large_ok, made.size.share, made.note) == (1, 8, True, 1e-3, "-")
    assert list(marked(made, Input)) == [Path("models/a"), (Path("a"), Path("b"))]
    assert list(marked(made, Output)) == [Path("o")]


def test_texts_in_json_and_texts_that_are_json_stay_texts() -> None:
    given = {"name": "1", "deep": [{"null": "null"}, "true"], "empty": None}
    texts = ["--files", "1", "null", '"quoted"', "--note", "[1]", "--topics", '["2", "{}"]']
    made = parsed(Everything, [*LEAST[:-1], json.dumps(given), "--keys", '{"class_path": "os.system"}', *texts])
    assert made.spec == given and made.keys == {"class_path": "os.system"} and made.topics == ["2", "{}"]
    assert made.files == (Path("1"), Path("null"), Path('"quoted"')) and made.note == "[1]"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--spec", "{"],
            "argument --spec: Not of type dict: Expecting property name enclosed in double quotes",
        ),
        (["--table", "[1]"], "argument --table: Not of type dict: found [1], expected a JSON object"),
        (["--keys", "null"], "argument --keys: Not of type dict: found None, expected a JSON object"),
        (["--topics", "a"], "argument --topics: Expected a list. Got value: a"),
        (["--batch", "0"], "argument --batch: Not of type PositiveInt: 0 does not conform to restriction v>0"),
        (["--batch", "x"], "argument --batch: Not of type PositiveInt: invalid literal for int() with base 10: 'x'"),
        (["--gpus", "2"], "argument --gpus: Expected a Literal[0, 1]. Got value: 2"),
        (["--dtype", "int8"], "argument --dtype: Expected a Literal['bfloat16', 'float32']. Got value: int8"),
        (["--width", "x"], "argument --width: Expected a int. Got value: x"),
        (
            ["--share", "nan"],
            "argument --share: Not of type NonNegativeFloat: nan does not conform to",
        ),
        (
            ["--sizes", "1", "x: 2"],
            "argument --sizes: Not of type PositiveInt: invalid literal for int() with",
        ),
        (["--no-such", "x"], "unrecognized arguments: --no-such x"),
    ],
)
def test_a_wrong_value_is_said_with_its_option(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(Everything, [*LEAST, *words])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_what_the_dataclass_refuses_is_an_error_of_usage() -> None:
    with pytest.raises(UsageError, match=r"^width: found -1"):
        parsed(Everything, ["a", "--width", "-1", "--spec", "{}"])
    with pytest.raises(UsageError, match=r"^guard\.limit_gb: found 0\.0"):
        parsed(Limits, ["--limit-gb", "0"])


def test_help_has_groups_choices_and_defaults() -> None:
    parser = Parser()
    add_options(parser, Everything)
    text = parser.format_help()
    assert "\nmore:\n  --table JSON" in text and "{bfloat16,float32}" in text and "of 100 % (default 0.5)" in text


def test_a_field_must_say_what_it_is() -> None:
    @dataclass(frozen=True)
    class Bare:
        name: str

    with pytest.raises(TypeError, match="name: expected Annotated"):
        add_options(Parser(), Bare)


TEXTS = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), max_size=6)
PATHS = TEXTS.map(lambda text: Path(f"x{text}"))
VALUES = st.none() | st.booleans() | st.integers() | TEXTS | st.lists(TEXTS, max_size=2)
TABLES = st.dictionaries(TEXTS, VALUES, max_size=2)


@settings(max_examples=40)
@given(
    st.builds(
        Everything,
        folder=PATHS,
        size=st.builds(Size, st.integers(0), st.floats(0, allow_nan=False)),
        spec=TABLES,
        files=st.lists(PATHS, max_size=2).map(tuple),
        table=st.none() | TABLES,
        topics=st.lists(TEXTS, max_size=2),
        dtype=st.sampled_from(["bfloat16", "float32"]),
        gpus=st.sampled_from([0, 1]),
        batch=st.none() | st.integers(1),
        too_large_ok=st.booleans(),
        sizes=st.lists(st.integers(1), max_size=2).map(tuple),
        note=TEXTS,
        out=st.none() | PATHS,
    )
)
def test_the_words_of_a_dataclass_give_it_again(made: Everything) -> None:
    assert parsed(Everything, [*words_of(made)]) == made
