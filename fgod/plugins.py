"""Named implementations that a config may choose from, and the files by which a user adds some.

A plugin is a Python file that calls `register` of a registry when it is imported:

    from fgod.evaluate.metric import Metric, register
    register(Metric(name="mean_length", …))    # in METRICS; `fgod.registry` has all registries

`plugins: [FILE.py]` in the config names such files. Each command gets them as `fgod --plugin FILE.py COMMAND …`.
A registry loads the modules that fill it only when it is first read, so that naming it costs no import of torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from fgod.errors import UsageError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Implementations of one interface by name, in the order of their registration.

    Args:
        what: what an entry is, in words, for messages: "metric".
        modules: modules whose import registers the project's own entries.
        check: raises UsageError for an entry that may not be registered under its name.
    """

    def __init__(
        self, what: str, modules: Sequence[str] = (), check: Callable[[str, T], None] = lambda name, entry: None
    ) -> None:
        self.what = what
        self._check = check
        self._modules = tuple(modules)
        self._loaded = False
        self._entries: dict[str, T] = {}
        self._files: dict[str, Path] = {}

    def register(self, name: str, entry: T) -> T:
        """Add an entry after the project's own; returns it.

        Raises:
            UsageError: the name is taken, or the entry is none that may be registered.
        """
        self._load()
        if name in self._entries:
            raise UsageError(f"{self.what} {name!r}: registered twice; expected another name")
        self._check(name, entry)
        self._entries[name] = entry
        self._files[name] = Path(sys._getframe(1).f_code.co_filename)
        return entry

    def adds(self, file: Path) -> bool:
        """Whether code in a plugin file registered an entry."""
        return file.resolve() in self._files.values()

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            for module in self._modules:
                importlib.import_module(module)

    def __getitem__(self, name: str) -> T:
        """The entry of a name.

        Raises:
            UsageError: there is none.
        """
        self._load()
        if name not in self._entries:
            hint = did_you_mean(name, self._entries)
            raise UsageError(f"{self.what}: found {name!r}{hint}, expected one of {', '.join(sorted(self._entries))}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._entries)

    def __len__(self) -> int:
        self._load()
        return len(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        """Names and entries."""
        self._load()
        return iter(self._entries.items())


def plugin_options(files: Iterable[str | Path]) -> list[str]:
    """The options by which a command of fgod loads plugin files."""
    return [option for file in files for option in ("--plugin", str(file))]


_LOADED_PLUGINS: set[Path] = set()


def load_plugins(files: Sequence[Path]) -> None:
    """Import each plugin file once in this process.

    Raises:
        UsageError: a file is missing or fails while it is imported; names the file, and the line where it failed.
    """
    for file in files:
        path = file.resolve()
        if path in _LOADED_PLUGINS:
            continue
        if not path.is_file():
            raise UsageError(f"plugins: {file}: no such file; expected a Python file")
        name = f"fgod_plugin_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"plugins: {file}: cannot be imported; expected a file that ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except UsageError as error:
            raise UsageError(f"plugins: {file}: {error}") from error
        except Exception as error:
            raise UsageError(f"plugins: {file}:{_line_in(path, error)}: {type(error).__name__}: {error}") from error
        _LOADED_PLUGINS.add(path)


def _line_in(path: Path, error: BaseException) -> int:
    """The last line of the plugin that the error passed through; that of a syntax error is its own."""
    if isinstance(error, SyntaxError) and error.lineno:
        return error.lineno
    line, trace = 1, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
