"""Reading a config: YAML, the models of its sections, its plugins, and what it means, in this order."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from fgod.config.check import check_meaning, with_limits
from fgod.config.models import Config
from fgod.errors import UsageError
from fgod.plugins import load_plugins
from fgod.system.files import digest
from fgod.train.recipe import RENAMED
from fgod.validation import kind_words, plain, validate


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UsageError: missing file, broken YAML (names the line), a key that stands twice, or not a mapping.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}:{line}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: found {kind_words(value)}, expected a mapping of keys")
    return value


class _StrictLoader(yaml.SafeLoader):
    """A loader that refuses a key that stands twice (YAML would silently take the second)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *other` gives what is not named here
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(path: Path) -> dict[str, Any]:
    """Read, fill and check a config file. Paths inside it are relative to the project root (the current folder)."""
    return resolve(read_yaml(path), str(path))


def resolve(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A checked config with every default filled in, its plugins loaded; `where` names the file in messages.

    Raises:
        UsageError: one message with every fault: key, found, allowed.
    """
    refuse_removed(raw, where)
    config: dict[str, Any] = plain(validate(Config, with_new_names(with_files(raw, where), where), where=where))
    try:
        load_plugins([Path(file) for file in config["plugins"]])
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    config["gate"] = with_limits(config["gate"], config["base"]["closed_answers"], where)
    check_meaning(config, where)
    return config


def with_files(raw: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A config that was read, with the experiments themselves where it has a pattern of their files.

    Raises:
        UsageError: no file has such a name, two have the same, or one cannot be read.
    """
    pattern = raw.get("experiments")
    if not isinstance(pattern, str):
        return raw
    files = sorted(Path(name) for name in glob(pattern, recursive=True))
    if not files:
        raise UsageError(f"{where}: experiments: found {pattern!r}, which no file matches; expected some, or a table")
    named = {file.stem: read_yaml(file) for file in files}
    if len(named) < len(files):
        twice = next(file for file in files if [other.stem for other in files].count(file.stem) > 1)
        raise UsageError(f"{where}: experiments: two files of {pattern!r} are called {twice.stem}; expected one")
    return {**raw, "experiments": named}


REMOVED = {
    ("guard", "soft_gb"): "guard.limit_gb is the one level; torch's allocator empties its cache before it passes that",
}
"""Keys that are no more, by section and name, and what does their work."""


def refuse_removed(raw: Mapping[str, Any], where: str) -> None:
    """Raises UsageError for a key that is no more; says what does its work."""
    for (section, key), instead in REMOVED.items():
        table = raw.get(section)
        if isinstance(table, dict) and key in table:
            raise UsageError(f"{where}: {section}.{key}: found {table[key]!r}, expected no such key: {instead}")


def with_new_names(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy of a config that was read, in which keys that were renamed have their new names.

    Raises:
        UsageError: a key stands under both names.
    """
    config: dict[str, Any] = copy.deepcopy(dict(raw))
    stages, refits_ = config.get("stages"), config.get("refits")
    tables = [(f"stages[{i}].train", s.get("train")) for i, s in enumerate(_mappings(stages))]
    rules = refits_.get("rules") if isinstance(refits_, dict) else None
    sets = [(f"refits.rules[{i}].set", rule.get("set")) for i, rule in enumerate(_mappings(rules))]
    for old, new in RENAMED.items():
        for key, table in tables:
            _rename(table, old, new, f"{where}: {key}")
        for key, table in sets:
            _rename(table, f"train.{old}", f"train.{new}", f"{where}: {key}")
    return config


def _mappings(items: Any) -> list[dict[str, Any]]:
    return [item if isinstance(item, dict) else {} for item in items] if isinstance(items, list) else []


def _rename(table: Any, old: str, new: str, where: str) -> None:
    if not isinstance(table, dict) or old not in table:
        return
    if new in table:
        raise UsageError(f"{where}: found both {new!r} and its old name {old!r}; expected one of them")
    table[new] = table.pop(old)


def base_words(base: Mapping[str, Any]) -> str:
    """A base, as the config's key has it, in a few words, for the report and the model card."""
    if base["kind"] in ("folder", "gguf", "dat"):
        return f"the model in {base['path']}"
    if base["kind"] == "random":
        return f"random weights in the shape of {base['shape']}"
    return f"the embedded Qwen3 (hidden {base['hidden']}, {base['layers']} layers), trained for {base['steps']} steps"


def config_digest(config: Mapping[str, Any]) -> str:
    """Short digest of a checked config, of all but the language of the DevLog, and other chains than its own."""
    return digest({key: value for key, value in config.items() if key not in ("language", "experiments")})
