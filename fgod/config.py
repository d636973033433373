"""The config: read, filled with defaults, and checked before anything runs.

Three layers: YAML (`read_yaml`), the JSON Schema in workflow/schemas (`check_schema`), and what a schema cannot say
(`check_meaning`): parts that exist, files that are there, languages that are covered.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, TypeChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from fgod import refits
from fgod.data.sources import source_kinds, source_languages
from fgod.errors import UsageError, did_you_mean
from fgod.evaluate.metrics.reference import EQUALITY_METRICS
from fgod.evaluate.requirements import parse_requirements
from fgod.gate import GateLimits
from fgod.persona import Rule, goal_from_config, lookup
from fgod.registry import load_plugins
from fgod.system.files import digest
from fgod.train.recipe import TrainRecipe

SCHEMA = Path(__file__).resolve().parents[1] / "workflow" / "schemas" / "config.schema.yaml"
WRITTEN_PARTS = ("identity", "general", "replay", "disambiguation", "pairs")
"""Parts of a mix that the project's own data provide; `data.sources` adds a user's."""


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
        raise UsageError(f"{path}: found {_kind(value)}, expected a mapping of keys")
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
    raw = with_new_names(raw, where)
    check_schema(raw, where)
    config: dict[str, Any] = fill_defaults(raw, schema())
    _fill_limits(config)
    try:
        load_plugins([Path(file) for file in config["plugins"]])
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    check_meaning(config, where)
    return config


def _fill_limits(config: dict[str, Any]) -> None:
    """The limit that only holds for closed answers."""
    if config["base"]["closed_answers"] and config["gate"]["retention"] is None:
        config["gate"]["retention"] = GateLimits.retention


RENAMED = {"pull": "l2_sp"}
"""Keys of `train` by their old names, which are accepted too, also in refit rules."""


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


def base_words(config: Mapping[str, Any]) -> str:
    """The base in a few words, for the report and the model card."""
    base = config["base"]
    if base["kind"] == "folder":
        return f"the model in {base['path']}"
    if base["kind"] == "random":
        return f"random weights in the shape of {base['shape']}"
    return f"the embedded Qwen3 (hidden {base['hidden']}, {base['layers']} layers), trained for {base['steps']} steps"


def config_digest(config: Mapping[str, Any]) -> str:
    """Short digest of a checked config."""
    return digest(config)


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of the config."""
    return dict(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))


def _dereference(node: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in node:
        target = schema()["$defs"][node["$ref"].removeprefix("#/$defs/")]
        node = {**target, **{k: v for k, v in node.items() if k != "$ref"}}
    return node


def _branch(node: Mapping[str, Any], value: Any) -> Mapping[str, Any]:
    """A node with the branch of its `if` that applies merged in."""
    if "if" not in node:
        return node
    taken = node.get("then" if _validator(node["if"]).is_valid(value) else "else", {})
    taken = _dereference(taken) if isinstance(taken, Mapping) else {}
    properties = {**node.get("properties", {}), **{k: v for k, v in taken.get("properties", {}).items() if v}}
    merged = {k: v for k, v in node.items() if k not in ("if", "then", "else")} | {**taken, "properties": properties}
    return _branch(merged, value)  # a branch may branch again


def _finite(checker: TypeChecker, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_Validator: type[Draft202012Validator] = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine("number", _finite)
)
"""JSON Schema, in which nan and infinity, which YAML can write, are no numbers."""


def _validator(node: Mapping[str, Any]) -> Draft202012Validator:
    return _Validator({**node, "$defs": schema()["$defs"]})


def fill_defaults(value: Any, node: Mapping[str, Any]) -> Any:
    """A valid value with the schema's defaults filled in, at every depth."""
    node = _branch(_dereference(node), value)
    if isinstance(value, dict):
        for key, child in node.get("properties", {}).items():
            if key not in value and "default" in _dereference(child):
                value[key] = copy.deepcopy(_dereference(child)["default"])
        extra = node.get("additionalProperties")
        for key in value:
            child = node.get("properties", {}).get(key, extra)
            if isinstance(child, Mapping):
                value[key] = fill_defaults(value[key], child)
    elif isinstance(value, list) and isinstance(node.get("items"), Mapping):
        value = [fill_defaults(item, node["items"]) for item in value]
    elif isinstance(value, int) and not isinstance(value, bool) and "number" in node.get("type", ()):
        value = float(value)  # 1 and 1.0 are one recipe: one digest
    return value


def check_schema(raw: Mapping[str, Any], where: str, definition: str | None = None) -> None:
    """Check a config, or one `$defs` entry of it, against the schema.

    Raises:
        UsageError: every fault on a line of its own.
    """
    node = schema() if definition is None else schema()["$defs"][definition]
    errors = sorted(_validator(node).iter_errors(raw), key=lambda e: [str(p) for p in e.absolute_path])
    faults = [f"{where}: {message}" for error in errors for message in _explain(error, raw)]
    if faults:
        raise UsageError("\n".join(dict.fromkeys(faults)))


def _key_path(parts: Iterable[str | int], raw: Any) -> str:
    """`stages[1 B-nudge].train.lr`: list items carry their name where they have one."""
    text, value = "", raw
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


def _kind(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "not a finite number"
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def _explain(error: ValidationError, raw: Any) -> list[str]:
    """One fault in words: the key, what was found, what is allowed."""
    key = _key_path(error.absolute_path, raw)
    found: Any = error.instance
    rule: Any = error.validator_value
    node: Any = error.schema
    if error.validator in ("if", "then", "else") and error.context:
        return [m for e in error.context for m in _explain(e, raw)]
    if error.validator == "additionalProperties" and isinstance(found, Mapping):
        allowed = sorted(node.get("properties", {}))
        return [
            f"{key}: unknown key {name!r}{did_you_mean(name, allowed)}; allowed: {', '.join(allowed)}"
            for name in found
            if name not in allowed
        ]
    if error.validator == "required":
        missing = [name for name in rule if name not in found]
        return [f"{key}: the key {name!r} is missing" for name in missing]
    if error.validator in ("enum", "const"):
        allowed = [str(a) for a in (rule if error.validator == "enum" else [rule])]
        return [f"{key}: found {found!r}{did_you_mean(found, allowed)}; allowed: {', '.join(allowed)}"]
    if error.validator == "type":
        return [f"{key}: found {found!r} ({_kind(found)}), expected {_type_words(rule)}{_exponent_hint(found, rule)}"]
    if node is False or error.validator is None:
        return [f"{key}: not allowed here (final_shares belong to kind curriculum)"]
    return [f"{key}: found {found!r}, expected {_limit_words(str(error.validator), rule)}"]


def _exponent_hint(found: Any, rule: Any) -> str:
    """YAML reads `1e-4` as text: the commonest slip in a learning rate."""
    try:
        float(found)
    except (TypeError, ValueError):
        return ""
    return f" (YAML reads {found} as text: write 1.0e-4 with a point)" if "number" in str(rule) else ""


def _type_words(rule: str | list[str]) -> str:
    words = {"object": "a mapping", "array": "a list", "string": "text", "integer": "a whole number", "null": "null"}
    names = [rule] if isinstance(rule, str) else rule
    return " or ".join(words.get(n, f"a {n}") for n in names)


def _limit_words(name: str, rule: Any) -> str:
    words = {
        "minimum": f"at least {rule}",
        "exclusiveMinimum": f"more than {rule}",
        "maximum": f"at most {rule}",
        "exclusiveMaximum": f"less than {rule}",
        "minItems": f"at least {rule} items",
        "maxItems": f"at most {rule} items",
        "minLength": "text that is not empty",
        "maxLength": f"at most {rule} characters",
        "minProperties": f"at least {rule} key",
        "pattern": f"text like {rule}",
        "multipleOf": f"a multiple of {rule}",
        "uniqueItems": "items that differ from each other",
    }
    return words.get(name, f"{name} {rule}")


def check_meaning(config: Mapping[str, Any], where: str) -> None:
    """What a schema cannot say.

    Raises:
        UsageError: every fault on a line of its own.
    """
    faults = [fault for check in _CHECKS for fault in check(config)] or list(_refit_rules(config))
    if faults:
        raise UsageError("\n".join(dict.fromkeys(f"{where}: {fault}" for fault in faults)))


def _stage_names(config: Mapping[str, Any]) -> Iterator[str]:
    names = [stage["name"] for stage in config["stages"]]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"stages: the name {name!r} stands {names.count(name)} times; every stage needs its own"
    reserved = {"base", "mixes", "work", "release", "releases"}
    for name in reserved.intersection(names):
        yield f"stages: the name {name!r} is a folder of artifacts/; choose another"


def _mix_parts(config: Mapping[str, Any]) -> Iterator[str]:
    allowed = [*WRITTEN_PARTS, *config["data"]["sources"]]
    for i, stage in enumerate(config["stages"]):
        mix = stage["mix"]
        for table in ("shares", "final_shares", "at_least", "at_most"):
            for part in mix.get(table, {}):
                if part not in allowed:
                    hint = did_you_mean(part, allowed)
                    yield (
                        f"stages[{i} {stage['name']}].mix.{table}: unknown part {part!r}{hint}; "
                        f"allowed: {', '.join(allowed)} (data.sources adds files of yours)"
                    )
        if not any(mix["shares"].values()):
            yield f"stages[{i} {stage['name']}].mix.shares: all shares are 0: a stage without data"
        if mix["kind"] == "disambiguation" and not mix["shares"].get("pairs"):
            yield f"stages[{i} {stage['name']}].mix.shares: kind disambiguation needs a share of pairs above 0"
        if (mix["kind"] == "curriculum") != (stage["train"]["sample_mode"] == "curriculum"):
            yield (
                f"stages[{i} {stage['name']}].train.sample_mode: found {stage['train']['sample_mode']!r} with mix.kind "
                f"{mix['kind']!r}; a curriculum mix and sample_mode curriculum go together"
            )


def _recipes(config: Mapping[str, Any]) -> Iterator[str]:
    for i, stage in enumerate(config["stages"]):
        micro, batch = stage["train"]["micro_batch"], stage["train"]["batch"]
        if micro is not None and micro > batch:
            yield f"stages[{i} {stage['name']}].train.micro_batch: found {micro}, expected at most batch ({batch})"
            continue
        warmup, steps = stage["train"]["warmup"], stage["train"]["steps"]
        if warmup > steps:
            yield f"stages[{i} {stage['name']}].train.warmup: found {warmup}, expected at most steps ({steps})"
            continue
        try:
            TrainRecipe.from_dict(stage["train"])
        except UsageError as error:
            yield f"stages[{i} {stage['name']}].{error}"


_STAGE_CHECKS = (_mix_parts, _recipes)


def refit(stage: dict[str, Any], index: int, config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Change a checked stage in place by a refit rule; returns key, old and new value of each change.

    Raises:
        UsageError: the rule makes of it what the config could not hold.
    """
    where, name = f"refits.rules[{index}]", stage["name"]
    changes = list(refits.apply(stage, config["refits"]["rules"][index]["set"], where))
    for part in ("mix", "train"):
        check_schema(stage[part], f"{where} on stage {name}: {part}", part)
        stage[part] = fill_defaults(stage[part], schema()["$defs"][part])
    faults = [fault for check in _STAGE_CHECKS for fault in check({**config, "stages": [stage]})]
    if faults:
        raise UsageError("\n".join(f"{where} on stage {name}: {fault.partition('].')[2]}" for fault in faults))
    return changes


def _refit_rules(config: Mapping[str, Any]) -> Iterator[str]:
    """Every rule on every stage, once: what it makes must be allowed now, not first when it is needed at night."""
    for index in range(len(config["refits"]["rules"])):
        for stage in config["stages"]:
            try:
                refit(copy.deepcopy(stage), index, config)
            except UsageError as error:
                yield from str(error).splitlines()


def _written_languages(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The languages of the written sources; none where their folder is missing, which `_paths` reports."""
    folder = Path(config["data"]["folder"])
    return source_languages(folder) if folder.is_dir() else ()


def _kinds(config: Mapping[str, Any]) -> Iterator[str]:
    folder = Path(config["data"]["folder"])
    if not folder.is_dir():
        return
    known = source_kinds(folder)
    named = {f"disambiguation.{kind}": kind for kind in config["disambiguation"]}
    for i, stage in enumerate(config["stages"]):
        named |= {f"stages[{i} {stage['name']}].mix.kinds.{kind}": kind for kind in stage["mix"]["kinds"]}
    for key, kind in named.items():
        if kind not in known:
            hint, where = did_you_mean(kind, known), folder / "disambiguation.yaml"
            yield f"{key}: no such kind of question{hint}; {where} has {', '.join(known)}"


def _languages(config: Mapping[str, Any]) -> Iterator[str]:
    tables = {"persona.replies": config["persona"]["replies"], "persona.rule": config["persona"]["rule"]}
    for name, kind in config["disambiguation"].items():
        tables[f"disambiguation.{name}.rule"] = kind["rule"]
        if kind["replies"] != "base":
            tables[f"disambiguation.{name}.replies"] = kind["replies"]
    languages = _written_languages(config)
    known = {*languages, *(tag.split("-")[0] for tag in languages)}
    for key, table in tables.items():
        for tag in table:
            if languages and tag not in known:
                yield f"{key}: unknown language {tag!r}{did_you_mean(tag, known)}; allowed: {', '.join(sorted(known))}"
        for language in languages:
            try:
                lookup(table, language)
            except KeyError:
                yield f"{key}: no entry for the language {language}; found {', '.join(table)}"


def _replies(config: Mapping[str, Any]) -> Iterator[str]:
    """A reply that its own rule refuses could only be missed, however well it is learned."""
    if list(_languages(config)):
        return
    goal = goal_from_config(config)
    marks = ", ".join(goal.persona.marks)
    for language in _written_languages(config):
        reply = lookup(goal.persona.replies, language)
        yield from _refused(reply, lookup(goal.persona.rule, language), "persona", language)
        if not goal.persona.marked(reply):
            yield f"persona.replies, {language}: {reply!r} has none of persona.marks ({marks}), which find the persona"
        for name, kind in goal.kinds.items():
            if kind.replies is None:
                continue
            answer = lookup(kind.replies, language)
            yield from _refused(answer, lookup(kind.rule, language), f"disambiguation.{name}", language)
            if goal.persona.marked(answer):
                yield (
                    f"disambiguation.{name}.replies, {language}: {answer!r} has one of persona.marks ({marks}); such a "
                    "reply counts as the persona's"
                )


def _refused(reply: str, rule: Rule, key: str, language: str) -> Iterator[str]:
    if not rule.accepts(reply):
        wanted = "; ".join(f"{name}: {', '.join(words)}" for name, words in vars(rule).items() if words)
        yield f"{key}.replies, {language}: found {reply!r}, which {key}.rule refuses ({wanted}); change one of them"


def _paths(config: Mapping[str, Any]) -> Iterator[str]:
    if config["base"]["kind"] == "folder" and not Path(config["base"]["path"]).is_dir():
        yield f"base.path: found {config['base']['path']!r}, expected a folder that exists"
    if not Path(config["data"]["folder"]).is_dir():
        yield f"data.folder: found {config['data']['folder']!r}, expected a folder that exists"
    if not Path(config["data"]["probes"]).is_file():
        yield f"data.probes: found {config['data']['probes']!r}, expected a file that exists"
    for name, path in config["data"]["sources"].items():
        if name in WRITTEN_PARTS:
            yield f"data.sources.{name}: the name of a written part; choose another"
        if not Path(path).is_file():
            yield f"data.sources.{name}: found {path!r}, expected a file that exists"


def _requirements(config: Mapping[str, Any]) -> Iterator[str]:
    for i, stage in enumerate(config["stages"]):
        try:
            parse_requirements(stage["require"], f"stages[{i} {stage['name']}].require")
        except UsageError as error:
            yield str(error)


def _open_answers(config: Mapping[str, Any]) -> Iterator[str]:
    """Nothing may count equality with open answers."""
    if config["base"]["closed_answers"]:
        return
    asked = {f"stages[{i} {s['name']}].require.{name}" for i, s in enumerate(config["stages"])
             for name in s["require"] if name in EQUALITY_METRICS}  # fmt: skip
    asked |= {f"{table}.{key}" for table, key in (("gate", "retention"), ("probe", "chrf")) if config[table][key]}
    for key in sorted(asked):
        yield (
            f"{key}: counts replies that are equal to the base's, which says nothing where its answers are free text; "
            "limit kl_reference instead (base.closed_answers: true says that they are short and the only right ones)"
        )


_CHECKS = (_stage_names, *_STAGE_CHECKS, _requirements, _open_answers, _kinds, _languages, _replies, _paths)
