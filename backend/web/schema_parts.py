"""Building blocks of JSON Schemas."""

from __future__ import annotations

from typing import Any

from backend.learning.clicks import PUBLISHED

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}


def object_of(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    found: Schema = {"type": "object", "properties": required | (optional or {})}
    return found | {"required": sorted(required)} if required else found


def list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def map_of(values: Schema) -> Schema:
    """An object with any names, whose values are like this."""
    return {"type": "object", "additionalProperties": values}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


NUMBER_OR_NULL = or_null(NUMBER)
_INTERVALS = dict.fromkeys(("prompts", "time", "before", "after"), ref("Interval"))
CORRECTIONS = object_of(dict.fromkeys(("masked", "blank", "by_hand"), object_of({"scans": INTEGER} | _INTERVALS)))
CLICK_TOOLS = or_null(
    object_of(
        dict.fromkeys(("n", "clicks"), INTEGER)
        | dict.fromkeys(("network", "geodesic", "seconds"), NUMBER)
        | {"best": TEXT},
        {**dict.fromkeys(PUBLISHED, NUMBER), "fitted": BOOLEAN},
    )
)
