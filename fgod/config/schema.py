"""The JSON Schema of the config, made of its models: for editors and for whoever checks a config without fgod.

python -m fgod.config            write config.schema.json anew, beside this file
python -m fgod.config --print    show it
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from fgod import rule
from fgod.config import models
from fgod.config.models import Config, RefitRule
from fgod.evaluate.metric import METRICS, Metric
from fgod.train import recipe
from fgod.train.recipe import RENAMED, TrainKeys

SCHEMA = Path(__file__).with_name("config.schema.json")
"""The schema as it is checked in."""


class _Untitled(GenerateJsonSchema):
    """Without a title for each key, which would say the key again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        """Every key has its pattern: pydantic states what those have that do."""
        made = super().dict_schema(schema)
        for pattern, values in made.pop("patternProperties", {}).items():
            made |= {"propertyNames": {"pattern": pattern}, "additionalProperties": values}
        return made


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the config."""
    made = TypeAdapter(Config).json_schema(schema_generator=_Untitled)
    for name, section in [(Config.__name__, made), *made["$defs"].items()]:
        model = next(getattr(place, name) for place in (models, recipe, rule) if hasattr(place, name))
        for key, text in _helps(model).items():
            section["properties"][key]["description"] = text
    keys = made["$defs"][TrainKeys.__name__]["properties"]
    keys |= {old: {**keys[new], "deprecated": True} for old, new in RENAMED.items()}
    made["properties"]["gate"] |= _gate()
    made["$defs"][RefitRule.__name__] |= _refit_rule()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "fgod config"}


def _refit_rule() -> dict[str, Any]:
    """A rule has one kind of answer; interpolation answers damage alone, bisection what the rate may have caused."""
    unused = {"set": {"maxProperties": 0}, "interpolate": {"maxItems": 0}, "bisect": {"type": "null"}}
    failed = {"stage": {"const": "failed"}}
    kinds: dict[str, dict[str, Any]] = {
        "set": {"set": {"minProperties": 1}},
        "interpolate": {"interpolate": {"minItems": 1}, "when": {"items": {"const": "damaged"}}, **failed},
        "bisect": {"bisect": {"type": "object"}, "when": {"items": {"not": {"const": "killed"}}}, **failed},
    }
    return {"oneOf": [{"required": [kind], "properties": {**unused, **own}} for kind, own in kinds.items()]}


def _gate() -> dict[str, Any]:
    """Limits of the project's own metrics; a plugin's may stand beside them."""
    own = {metric.short: _limit(metric) for _, metric in METRICS.items() if metric.gated}
    return {"properties": own, "additionalProperties": {"type": ["number", "null"]}}


def _limit(metric: Metric) -> dict[str, Any]:
    direction = "at least" if metric.better == "higher" else "at most"
    text = f"{metric.verdict}: {metric.description}, {direction}"
    bounds = {"minimum": metric.unit.low, "maximum": metric.unit.high}
    finite = {key: value for key, value in bounds.items() if abs(value) != float("inf")}
    kind: str | list[str] = ["number", "null"] if metric.limit is None else "number"
    return {"type": kind, **finite, "default": metric.limit, "description": text}


def _helps(model: type) -> Mapping[str, str]:
    """The text behind each field of a model, and of those that it is made of."""
    helps: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if dataclasses.is_dataclass(one):
            helps |= _texts(ast.parse(inspect.getsource(one)).body[0])
    return helps


def _texts(node: ast.stmt) -> Iterator[tuple[str, str]]:
    assert isinstance(node, ast.ClassDef)
    for field, text in zip(node.body, node.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                yield name, inspect.cleandoc(words).replace("\n", " ")


def text() -> str:
    """The file that is checked in."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write or show the schema."""
    if "--print" in sys.argv[1:]:
        print(text(), end="")
    else:
        SCHEMA.write_text(text(), encoding="utf-8")
        print(f"wrote {SCHEMA}")
