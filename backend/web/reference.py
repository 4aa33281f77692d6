"""The API reference: our OpenAPI description as rows for a template. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

METHODS = ("get", "post", "put", "patch", "delete")
MAX_DEPTH = 6  # levels of nested objects that are shown
Json = Mapping[str, Any]


def read(openapi: Json) -> dict[str, Any]:
    """{"title", "version", "groups": [{"name", "endpoints": [...]}]}, in the order of declaration.

    An endpoint is {"anchor", "method", "path", "summary", "description", "parameters", "request", "answer",
    "refusals"}; request and answer are None or {"code", "rows", "example"}, with one row {"name", "type", "always",
    "meaning"} per field; fields of nested objects are named like `queue[].task`.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, operations in openapi["paths"].items():
        for method in METHODS:
            operation = operations.get(method)
            if operation is not None:
                name = (operation.get("tags") or ["other"])[0]
                groups.setdefault(name, []).append(_endpoint(openapi, method, path, operation))
    return {
        "title": openapi["info"]["title"],
        "version": openapi["info"]["version"],
        "groups": [{"name": name, "endpoints": endpoints} for name, endpoints in groups.items()],
    }


def anchor(method: str, path: str) -> str:
    """ "post-api-projects-project-train": the id of an endpoint on the page."""
    return "-".join([method, *path.replace("{", "").replace("}", "").strip("/").split("/")]).rstrip("-")


def _endpoint(openapi: Json, method: str, path: str, operation: Json) -> dict[str, Any]:
    responses = operation.get("responses", {})
    answers = [(code, r) for code, r in responses.items() if str(code).startswith("2")]
    request = _body(openapi, operation.get("requestBody", {}), "")
    return {
        "anchor": anchor(method, path),
        "method": method.upper(),
        "path": path,
        "summary": operation.get("summary", ""),
        "description": operation.get("description", ""),
        "parameters": [_parameter(openapi, p) for p in operation.get("parameters", [])],
        "request": request,
        "answer": _body(openapi, answers[0][1], str(answers[0][0])) if answers else None,
        "refusals": [
            {"code": code, "meaning": r.get("description", "")}
            for code, r in responses.items()
            if not str(code).startswith("2")
        ],
    }


def _parameter(openapi: Json, given: Json) -> dict[str, Any]:
    return {
        "name": given["name"],
        "where": given.get("in", ""),
        "type": _kind(openapi, given.get("schema", {})),
        "always": bool(given.get("required")),
        "meaning": given.get("description", ""),
    }


def _body(openapi: Json, given: Json, code: str) -> dict[str, Any] | None:
    for media, content in given.get("content", {}).items():
        schema = content.get("schema", {})
        rows = list(_rows(openapi, schema, "", 0))
        example = _example(openapi, schema, 0) if media == "application/json" else None
        return {"code": code, "media": media, "rows": rows, "example": example}
    return None


def _resolved(openapi: Json, schema: Json) -> Json:
    reference = schema.get("$ref", "")
    if reference:
        found: Json = openapi.get("components", {}).get("schemas", {}).get(reference.rpartition("/")[2], {})
        return found
    return schema


def _one(openapi: Json, schema: Json) -> tuple[Json, bool]:
    """A schema without its "or null", and whether it had one."""
    schema = _resolved(openapi, schema)
    choices = schema.get("anyOf")
    if not choices:
        return schema, False
    rest = [c for c in choices if c.get("type") != "null"]
    return (_resolved(openapi, rest[0]) if len(rest) == 1 else {"anyOf": rest}), len(rest) < len(choices)


def _kind(openapi: Json, schema: Json) -> str:
    """ "integer", "list of objects", "string or null"."""
    schema, nullable = _one(openapi, schema)
    if "anyOf" in schema:
        text = " or ".join(_kind(openapi, c) for c in schema["anyOf"])
    elif "enum" in schema:
        text = "one of " + ", ".join(str(v) for v in schema["enum"])
    elif "const" in schema:
        text = f'always "{schema["const"]}"'
    elif schema.get("type") == "array":
        text = "list of " + _many(_kind(openapi, schema.get("items", {})))
    else:
        text = schema.get("type", "anything")
    limits = [f"{words} {schema[key]}" for key, words in (("minimum", "from"), ("maximum", "to")) if key in schema]
    return " ".join([text, *limits]) + (" or null" if nullable else "")


def _many(kind: str) -> str:
    return kind + "s" if kind in ("object", "number", "integer", "string") else kind


def _rows(openapi: Json, schema: Json, before: str, depth: int) -> Iterator[dict[str, Any]]:
    schema, _ = _one(openapi, schema)
    if depth > MAX_DEPTH:
        return
    if schema.get("type") == "array":
        yield from _rows(openapi, schema.get("items", {}), f"{before}[]", depth + 1)
        return
    inner = schema.get("additionalProperties")
    properties = dict(schema.get("properties", {}))
    required = set(schema.get("required", ()))
    for name, given in properties.items():
        path = f"{before}.{name}" if before else name
        meaning = given.get("description") or _resolved(openapi, given).get("description", "")
        yield {"name": path, "type": _kind(openapi, given), "always": name in required, "meaning": meaning}
        yield from _rows(openapi, given, path, depth + 1)
    if isinstance(inner, Mapping) and inner:
        yield from _rows(openapi, inner, f"{before}.NAME" if before else "NAME", depth + 1)


def _example(openapi: Json, schema: Json, depth: int) -> Any:
    """A small example with this schema."""
    schema, _ = _one(openapi, schema)
    if depth > MAX_DEPTH:
        return None
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return _example(openapi, schema["anyOf"][0], depth + 1)
    kind = schema.get("type")
    if kind == "array":
        return [_example(openapi, schema.get("items", {}), depth + 1)]
    if kind == "object" or "properties" in schema:
        return {name: _example(openapi, s, depth + 1) for name, s in schema.get("properties", {}).items()}
    return {"integer": 1, "number": 0.5, "string": "text", "boolean": True}.get(str(kind))
