"""Command lines derived from dataclasses."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgod.arguments import (
    Count,
    Input,
    Json,
    JsonObject,
    Option,
    OptionalObject,
    Output,
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
    share: Annotated[float, Option("of 100 %% (default %(default)g)")] = 0.5

    def __post_init__(self) -> None:
        if self.width < 0:
            raise UsageError(f"width: found {self.width}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Everything:
    """One field of each kind."""

    folder: Annotated[Path, Input("a folder", "FOLDER", positional=True)]
    size: Size
    spec: Annotated[Json, Option("a value")]
    files: Annotated[tuple[Path, ...], Input("files")] = ()
    table: Annotated[OptionalObject, Option("a table", group="more")] = None
    keys: Annotated[JsonObject, Option("a table that is never null")] = field(default_factory=dict)
    dtype: Annotated[Literal["bfloat16", "float32"], Option("of weights")] = "bfloat16"
    gpus: Annotated[Literal[0, 1], Option("how many")] = 0
    batch: Annotated[Count | None, Option("prompts at once")] = None
    too_large_ok: Annotated[bool, Option("start all the same")] = False
    note: Annotated[str, Option("a text")] = ""
    out: Annotated[Path | None, Output("what it writes")] = None


T = TypeVar("T", bound="DataclassInstance")


def parsed(cls: type[T], words: list[str]) -> T:
    parser = argparse.ArgumentParser()
    add_options(parser, cls)
    return options_of(cls, parser.parse_args(words))


LEAST = ["models/a", "--width", "3", "--spec", "{}"]


def test_a_field_without_a_default_is_required_and_others_have_theirs() -> None:
    made = parsed(Everything, LEAST)
    assert made == Everything(folder=Path("models/a"), size=Size(3), spec={})
    assert made.size.share == 0.5 and made.files == () and made.batch is None
    for missing in (LEAST[1:], LEAST[:1] + LEAST[3:], LEAST[:-2]):
        with pytest.raises(SystemExit):
            parsed(Everything, missing)


def test_options_are_read_by_the_types_of_their_fields() -> None:
    more = ["--files", "a", "b", "--table", '{"a": 1}', "--dtype", "float32", "--gpus", "1", "--batch", "8"]
    made = parsed(Everything, [*LEAST, *more, "--too-large-ok", "--share", "1e-3", "--note", "-", "--out", "o"])
    assert made.files == (Path("a"), Path("b")) and made.table == {"a": 1} and made.dtype == "float32"
    assert (made.gpus, made.batch, made.too_large_ok, made.size.share, made.note) == (1, 8, True, 1e-3, "-")
    assert list(marked(made, Input)) == [Path("models/a"), (Path("a"), Path("b"))]
    assert list(marked(made, Output)) == [Path("o")]


def test_null_stands_for_an_object_that_is_not_there() -> None:
    assert parsed(Everything, [*LEAST, "--table", "null"]).table is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--spec", "{"],
            "argument --spec: not JSON: Expecting property name enclosed in double quotes at character 1",
        ),
        (["--table", "[1]"], "argument --table: found '[1]', expected a JSON object"),
        (["--keys", "null"], "argument --keys: found 'null', expected a JSON object"),
        (["--batch", "0"], "argument --batch: found '0', expected a whole number above 0"),
        (["--batch", "x"], "argument --batch: found 'x', expected a whole number above 0"),
        (["--gpus", "2"], "argument --gpus: invalid choice: 2 (choose from"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8' (choose from"),
        (["--width", "x"], "argument --width: invalid int value: 'x'"),
        (["--no-such", "x"], "unrecognized arguments: --no-such x"),
    ],
)
def test_a_wrong_value_is_said_with_its_option(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(Everything, [*LEAST, *words])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_what_the_dataclass_refuses_is_an_error_of_usage() -> None:
    with pytest.raises(UsageError, match=r"^width: found -1"):
        parsed(Everything, ["a", "--width", "-1", "--spec", "1"])
    with pytest.raises(UsageError, match=r"^guard\.limit_gb: found 0\.0"):
        parsed(Limits, ["--limit-gb", "0"])


def test_help_has_groups_choices_and_defaults() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Everything)
    text = parser.format_help()
    assert "\nmore:\n  --table JSON" in text and "{bfloat16,float32}" in text and "of 100 % (default 0.5)" in text


def test_a_field_must_say_what_it_is() -> None:
    @dataclass(frozen=True)
    class Bare:
        name: str

    with pytest.raises(TypeError, match="name: expected Annotated"):
        add_options(argparse.ArgumentParser(), Bare)


TEXTS = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), max_size=6)
PATHS = TEXTS.map(lambda text: Path(f"x{text}"))
VALUES = st.none() | st.booleans() | st.integers() | TEXTS | st.lists(TEXTS, max_size=2)
TABLES = st.dictionaries(TEXTS, VALUES, max_size=2)


@settings(max_examples=40)
@given(
    st.builds(
        Everything,
        folder=PATHS,
        size=st.builds(Size, st.integers(0), st.floats(allow_nan=False)),
        spec=VALUES | TABLES,
        files=st.lists(PATHS, max_size=2).map(tuple),
        table=st.none() | TABLES,
        dtype=st.sampled_from(["bfloat16", "float32"]),
        gpus=st.sampled_from([0, 1]),
        batch=st.none() | st.integers(1),
        too_large_ok=st.booleans(),
        note=TEXTS,
        out=st.none() | PATHS,
    )
)
def test_the_words_of_a_dataclass_give_it_again(made: Everything) -> None:
    assert parsed(Everything, words_of(made)) == made
