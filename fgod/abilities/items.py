"""Items that models are tested on: JSONL of one's own, or the data of a package (`packages`).

Each line is an item. Its keys tell its kind; `id` (default: the line's number) and `group`, such as a language or a
subject, are optional:

    {"prompt": "2 + 2 =\\nA. 3\\nB. 4\\nAnswer:", "choices": ["A", "B"], "answer": 1}
    {"prompt": "def twice(x):\\n    ...", "entry_point": "twice", "test": "def check(candidate): ..."}
    {"prompt": "Name two colours as a list.", "checks": {"bullets": 2, "excludes": ["red"]}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import AfterValidator, StringConstraints
from pydantic.dataclasses import dataclass

from fgod.abilities.checks import Checks
from fgod.data.formats import Fault
from fgod.data.records import Record, read_records
from fgod.errors import UsageError, did_you_mean
from fgod.validation import KEYS, CountOrZero, FromList, Keys, Text, distinct, fault, validate


@dataclass(frozen=True, config=KEYS)
class _Item(Keys):
    prompt: Annotated[str, StringConstraints(pattern=r"\S")]
    """What is asked."""
    id: Text = field(kw_only=True)
    """Distinct in its file."""
    group: str = field(default="", kw_only=True)
    """What results are also counted by."""


@dataclass(frozen=True, config=KEYS)
class Choice(_Item):
    """Multiple choice: the answer is the choice that the model finds likeliest behind the prompt."""

    choices: Annotated[tuple[Text, ...], MinLen(2), AfterValidator(distinct), FromList]
    """What may follow the prompt, after a space."""
    answer: CountOrZero
    """Place of the right one, from 0."""

    def __post_init__(self) -> None:
        if self.answer >= len(self.choices):
            raise fault("answer", f"found {self.answer}, expected less than {len(self.choices)}, the number of choices")


@dataclass(frozen=True, config=KEYS)
class Code(_Item):
    """A function to complete: right if `check(entry_point)` of `test` runs through."""

    entry_point: Text
    """Name of the function."""
    test: Text
    """Python that defines `check(candidate)`."""

    def __post_init__(self) -> None:
        if not self.entry_point.isidentifier():
            raise fault("entry_point", f"found {self.entry_point!r}, expected the name of a function")


@dataclass(frozen=True, config=KEYS)
class Instruction(_Item):
    """An instruction: right if the reply passes all checks."""

    checks: Checks


Item = Choice | Code | Instruction
KINDS: dict[str, Callable[..., Item]] = {
    "choices": Choice,
    "entry_point": Code,
    "checks": Instruction,
}
"""Which key makes an item one of which kind."""
NAMES: dict[type, str] = {Choice: "choice", Code: "code", Instruction: "instruction"}
"""What records call the kinds."""


@plain_dataclass(frozen=True)
class Suite:
    """Items of one source."""

    name: str
    items: Sequence[Item]


def read_items(source: str) -> Suite:
    """The items of a source: a JSONL file, or READER:PATH for the data of a package (`packages.READERS`).

    Raises:
        UsageError: the source cannot be read, has no item, or a line is no item; names file and line.
    """
    from fgod.abilities.packages import READERS

    reader, colon, path = source.partition(":")
    if colon and reader in READERS:
        found = Suite(reader, list(READERS[reader](Path(path))))
    elif colon and not Path(source).exists():
        raise UsageError(f"{source}: no such file and no reader{did_you_mean(reader, READERS)}; expected a JSONL file, "
                         f"or READER:PATH with one of {', '.join(READERS)}")  # fmt: skip
    else:
        found = Suite(Path(source).stem, _read_jsonl(Path(source)))
    if not found.items:
        raise UsageError(f"{source}: found no item, expected one on each line")
    return found


def path_of(source: str) -> Path:
    """The file or folder that a source is read from."""
    from fgod.abilities.packages import READERS

    reader, colon, path = source.partition(":")
    return Path(path) if colon and reader in READERS else Path(source)


def options(settings: Mapping[str, Any]) -> list[str]:
    """The config's key `evaluate` as options of `fgod evaluate`."""
    flags = [f"--{key.replace('_', '-')}" for key in ("code", "chat_template") if settings[key]]
    numbers = ["--loss-limit", f"{settings['limit']:g}", "--max-tokens", str(settings["max_new_tokens"])]
    return ["--items", *settings["items"], *numbers, *flags]


def read_suites(sources: Sequence[str]) -> list[Suite]:
    """The items of all sources.

    Raises:
        UsageError: as `read_items`; or two sources have the same name.
    """
    suites = [read_items(source) for source in sources]
    names = [suite.name for suite in suites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"evaluate.items: two sources are called {twice[0]!r}; rename a file")
    return suites


def check_allowed(suites: Sequence[Suite], code: bool) -> None:
    """Raise UsageError for items whose answers are programs, where those are not to be run."""
    names = [suite.name for suite in suites if any(isinstance(one, Code) for one in suite.items)]
    if names and not code:
        raise UsageError(
            f"{', '.join(names)}: items of code, whose answers are programs to be run; nothing was run: set "
            "evaluate.code to true (--code) to let programs that a model wrote run in a sandbox on this machine, or "
            "leave the items out"
        )


def item(value: Any, where: str, number: int) -> Item:
    """An item of a JSON object; `where` and `number` say which it is.

    Raises:
        UsageError: it is of no kind, lacks a key, has one too many or a wrong value.
    """
    if not isinstance(value, dict):
        raise UsageError(f"{where}: found {type(value).__name__}, expected an object")
    kinds = [kind for key, kind in KINDS.items() if key in value]
    if len(kinds) != 1:
        raise UsageError(f"{where}: found the keys {', '.join(value) or '(none)'}; expected prompt and exactly one of "
                         f"{', '.join(KINDS)}, which say what kind of item it is")  # fmt: skip
    made: Item = validate(kinds[0], {"id": str(number), **value}, where=where)
    return made


def _read_jsonl(path: Path) -> list[Item]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; expected a JSONL file of items") from error
    items: list[Item] = []
    lines: dict[str, int] = {}
    for record in read_records(data):
        if isinstance(record, Fault):
            raise UsageError(f"{path}:{record.line}: {record.text}; expected an item as JSON")
        items.append(_of_record(record, path))
        if (first := lines.setdefault(items[-1].id, record.line)) != record.line:
            raise UsageError(f"{path}:{record.line}: id: found {items[-1].id!r} again, as in line {first}")
    return items


def _of_record(record: Record, path: Path) -> Item:
    return item(record.value, f"{path}:{record.line}", record.line)
