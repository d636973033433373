"""Registries and plugin files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgod.errors import UsageError
from fgod.plugins import Registry, load_plugins


def test_a_registry_gives_entries_by_name_and_names_what_it_has() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("two", 2)
    registry.register("one", 1)
    assert registry["two"] == 2 and list(registry) == ["two", "one"] and "three" not in registry
    with pytest.raises(UsageError, match=r"number: found 'tow' \(did you mean two\?\), expected one of one, two"):
        registry["tow"]
    with pytest.raises(UsageError, match="number 'one': registered twice"):
        registry.register("one", 3)


def test_a_registry_refuses_what_its_check_does() -> None:
    def check(name: str, entry: int) -> None:
        if entry < 0:
            raise UsageError(f"{name}: found {entry}, expected a count")

    registry: Registry[int] = Registry("number", check=check)
    with pytest.raises(UsageError, match="two: found -2, expected a count"):
        registry.register("two", -2)
    assert "two" not in registry


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("x = 1\nif x\n", r":2: SyntaxError"),
        ("\n\nraise ValueError('no')\n", r":3: ValueError: no"),
        ("def f():\n    return 1 / 0\n\nf()\n", r":2: ZeroDivisionError"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named_with_its_line(
    tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=rf"plugins: .*mine\.py.*{message}"):
        load_plugins([file])


def test_a_plugin_is_imported_once(tmp_path: Path) -> None:
    file = tmp_path / "counted.py"
    file.write_text(
        "from pathlib import Path\nseen = Path(__file__).with_suffix('.seen')\n"
        "seen.write_text(seen.read_text() + '.' if seen.exists() else '.')\n"
    )
    load_plugins([file, file])
    load_plugins([file])
    assert file.with_suffix(".seen").read_text() == "."
