"""What `/openapi.json` says about the bodies of requests and answers: JSON Schema, by method and path."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
YES_NO: Schema = {"type": "boolean"}


def _thing(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    found: Schema = {"type": "object", "properties": required | (optional or {})}
    return found | {"required": sorted(required)} if required else found


def _many(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _of(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_MAYBE = _or_null(NUMBER)
SCHEMAS: dict[str, Schema] = {
    "Error": _thing({"error": TEXT}),
    "Noted": _thing({"status": {"const": "noted"}}),
    "Changed": _thing({"status": {"const": "noted"}, "change": WHOLE}),
    "Empty": {"type": "object"},
    "Health": _thing({"status": {"const": "UP"}, "model_class": TEXT}),
    "Setup": _thing(
        {"project": {"type": "string", "pattern": r"^[0-9]{1,15}(\.[0-9]*)?$", "examples": ["4.1795404647"]}},
        {
            "schema": TEXT,
            "hostname": TEXT,
            "access_token": TEXT,
            "extra_params": {"anyOf": [TEXT, {"type": "object"}, {"type": "null"}]},
        },
    ),
    "SetupAnswer": _thing({"model_version": TEXT}),
    "Task": _thing({"id": WHOLE, "data": {"type": "object"}}),
    "Predict": _thing(
        {"project": {"type": "string", "pattern": r"^[0-9]{1,15}(\.[0-9]*)?$"}, "tasks": _many(_of("Task"))},
        {"label_config": TEXT, "params": {"type": "object"}},
    ),
    "Prediction": _thing(
        {
            "model_version": TEXT,
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "result": _many({"type": "object"}),
        }
    ),
    "Predictions": _thing({"results": _many(_of("Prediction"))}),
    "Webhook": _thing(
        {
            "action": {"type": "string", "examples": ["ANNOTATION_CREATED", "START_TRAINING"]},
            "project": _thing({"id": {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}}),
        }
    ),
    "Versions": _thing({"versions": _many(TEXT)}),
    "Activate": _thing({"version": {"type": "string", "examples": ["scanqueue-r2"]}}),
    "Quality": _thing(
        {},
        {
            "dice": _MAYBE,
            "hd95": _MAYBE,
            "hd": _MAYBE,
            "n": WHOLE,
            "unit": _or_null({"enum": ["px", "mm", "mixed"], "description": "of both distances; no mean when mixed"}),
        },
    ),
    "Job": _thing({"step": TEXT, "done": WHOLE, "total": WHOLE, "seconds_left": _MAYBE}),
    "Compared": _thing({"version": TEXT, "labels": WHOLE, "ours": _of("Quality"), "control": _of("Quality")}),
    "Stopping": _thing(
        {
            "advice": {"enum": ["go on", "nearly there", "stop", "too early to say"]},
            "sentence": TEXT,
            "gain": _MAYBE,
            "low": _MAYBE,
            "high": _MAYBE,
            "labels_worth": _or_null(WHOLE),
            "agreement": _MAYBE,
            "threshold": NUMBER,
        }
    ),
    "Project": _thing(
        {
            "project": WHOLE,
            "title": TEXT,
            "phase": {"enum": ["empty", "embedding", "cold_start", "training", "active", "done", "blocked"]},
            "reason": TEXT,
            "trouble": TEXT,
            "round": _or_null(WHOLE),
            "model_version": _or_null(TEXT),
            "model": _or_null(TEXT),
            "scans": WHOLE,
            "embedded": WHOLE,
            "labelled": WHOLE,
            "embedder": _thing({"name": TEXT, "why": TEXT}),
            "validation": _of("Quality"),
            "shown": _of("Quality"),
            "queue": _many(WHOLE),
            "job": _or_null(_of("Job")),
            "control": _or_null(_of("Compared")),
            "stopping": _or_null(_of("Stopping")),
            "studio_url": TEXT,
            "left_out": WHOLE,
            "problems": _many(_thing({"task": WHOLE, "what": TEXT})),
        }
    ),
    "Projects": _thing({"projects": _many(_of("Project"))}),
    "Map": _thing(
        {
            "scans": _many(
                _thing(
                    {
                        "task": WHOLE,
                        "x": NUMBER,
                        "y": NUMBER,
                        "cluster": _or_null(WHOLE),
                        "labelled": YES_NO,
                        "rank": _or_null(WHOLE),
                        "reason": _or_null(TEXT),
                    }
                )
            )
        }
    ),
    "Place": _thing(
        {
            "task": WHOLE,
            "rank": WHOLE,
            "reason": TEXT,
            "sentence": TEXT,
            "kind": TEXT,
            "score": _MAYBE,
            "entropy": _MAYBE,
            "distance": _MAYBE,
            "cluster": _or_null(WHOLE),
        }
    ),
    "Queue": _thing({"queue": _many(_of("Place")), "model": _or_null(TEXT)}),
    "Preview": _thing({"now": _many(_of("Place")), "then": _many(_of("Place")), "note": TEXT}),
    "Atlas": _thing(
        {
            **{name: _many(WHOLE) for name in ("task", "cluster", "round", "rank", "kind")},
            **{name: _many(NUMBER) for name in ("x", "y")},
            **{name: _many(_MAYBE) for name in ("entropy", "score", "distance")},
            "state": _many({"enum": [0, 1, 2, 3], "description": "open, labelled, problem, skipped"}),
            "served": _many({"enum": [0, 1]}),
            "wish": _many({"enum": [-1, 0, 1], "description": "left out, none, next"}),
            "kinds": _many(TEXT),
            "why": {"type": "object", "additionalProperties": TEXT},
            "clusters": WHOLE,
            "alpha": NUMBER,
        }
    ),
    "Interval": _thing({"n": WHOLE}, dict.fromkeys(("dice", "median", "low", "high"), _MAYBE)),
    "Means": _thing(
        {
            "n": WHOLE,
            "unit": _or_null({"enum": ["px", "mm", "mixed"]}),
            **{f"{name}{end}": _MAYBE for name in ("dice", "hd95") for end in ("", "_low", "_high")},
        },
        {
            "version": TEXT,
            "model_version": TEXT,
            "round": WHOLE,
            "labels": _or_null(WHOLE),
            "accepted": YES_NO,
            "classes": {"type": "object", "additionalProperties": _of("Interval")},
        },
    ),
    "Curve": _thing(
        {
            "unit": _or_null({"enum": ["px", "mm", "mixed"]}),
            "labels": _many(TEXT),
            "models": _many(_of("Means")),
            "shown": _many(_of("Means")),
            "control": _many(_of("Compared")),
            "lead_time": _thing({"with": _of("Interval"), "without": _of("Interval")}),
            "stopping": _or_null(_of("Stopping")),
        }
    ),
    "Comparison": _thing(
        {
            "compared": _many(
                _thing(
                    {
                        "task": WHOLE,
                        **dict.fromkeys(("first", "second", "agreement", "first_hd95", "second_hd95"), NUMBER),
                        "unit": {"enum": ["px", "mm"]},
                    }
                )
            ),
            "held_out": WHOLE,
        }
    ),
    "Levers": _thing(
        {
            **{name: {"type": "object"} for name in ("settings", "given", "changed", "default")},
            "strategies": _many(TEXT),
            "uncertainties": _many(TEXT),
            "units": _many(TEXT),
            "problem": TEXT,
        }
    ),
    "SetLevers": {
        "type": "object",
        "description": "Names of project settings and their values; null: back to what Label Studio says.",
        "examples": [{"alpha": 0.7, "round_size": None}],
    },
    "SetWishes": _thing({"tasks": _many(WHOLE), "wish": {"enum": ["next", "out", "none"]}}),
    "Undo": _thing({"change": WHOLE}),
    "Retry": _thing({"task": WHOLE}),
    "Changes": _thing(
        {
            "changes": _many(
                _thing(
                    {
                        "change": WHOLE,
                        "at": NUMBER,
                        "user": TEXT,
                        "kind": {"enum": ["settings", "wishes", "activate", "train", "retry"]},
                        "what": TEXT,
                        "undone": YES_NO,
                        "undoable": YES_NO,
                    }
                )
            )
        }
    ),
    "Activity": _thing(
        {
            "lately": _many(_thing({"task": WHOLE, "at": TEXT, "by": _or_null(TEXT), "seconds": _MAYBE})),
            "now": _many(_thing({"task": WHOLE, "by": _or_null(TEXT)})),
            "note": TEXT,
        }
    ),
    "Workers": _thing({"workers": _many(_thing({"name": TEXT, "seconds": NUMBER, "doing": TEXT}))}),
    "Checks": _thing(
        {"checks": _many(_thing({"level": {"enum": ["ok", "warning", "error"]}, "what": TEXT, "cure": TEXT}))}
    ),
    "Rounds": _thing(
        {
            "rounds": _many(
                _thing(
                    {
                        "round": WHOLE,
                        "model_version": TEXT,
                        "model": _or_null(TEXT),
                        "labels": WHOLE,
                        "validation": _of("Quality"),
                        "shown": _of("Quality"),
                        "accepted": _or_null(YES_NO),
                        "remark": TEXT,
                        "control": _or_null(_of("Compared")),
                        "created_at": NUMBER,
                        "published_at": _MAYBE,
                        "settings": {"type": "object"},
                        "activated": _many(_thing({"version": TEXT, "at": NUMBER, "user": TEXT})),
                    }
                )
            ),
            "models": _many(
                _thing(
                    {
                        "version": TEXT,
                        "active": YES_NO,
                        "kept": YES_NO,
                        "accepted": YES_NO,
                        "labels": _many(TEXT),
                        "trained_on": WHOLE,
                        "validation": _of("Quality"),
                        "remark": TEXT,
                        "created_at": NUMBER,
                        "history": _many({"type": "object"}),
                        "champion": _or_null(_of("Quality")),
                        "held_out": _many({"type": "object"}),
                    }
                )
            ),
        }
    ),
}

# method and path: body of the request, status and body of the answer
BODIES: dict[tuple[str, str], tuple[str | None, int, str]] = {
    ("get", "/health"): (None, 200, "Health"),
    ("post", "/setup"): ("Setup", 200, "SetupAnswer"),
    ("post", "/predict"): ("Predict", 200, "Predictions"),
    ("post", "/webhook"): ("Webhook", 201, "Noted"),
    ("get", "/versions"): (None, 200, "Versions"),
    ("get", "/api/projects"): (None, 200, "Projects"),
    ("get", "/api/projects/{project}"): (None, 200, "Project"),
    ("get", "/api/projects/{project}/map"): (None, 200, "Map"),
    ("get", "/api/projects/{project}/queue"): (None, 200, "Queue"),
    ("get", "/api/projects/{project}/rounds"): (None, 200, "Rounds"),
    ("get", "/api/projects/{project}/atlas"): (None, 200, "Atlas"),
    ("get", "/api/projects/{project}/curve"): (None, 200, "Curve"),
    ("get", "/api/projects/{project}/compare"): (None, 200, "Comparison"),
    ("get", "/api/projects/{project}/settings"): (None, 200, "Levers"),
    ("get", "/api/projects/{project}/preview"): (None, 200, "Preview"),
    ("get", "/api/projects/{project}/changes"): (None, 200, "Changes"),
    ("get", "/api/projects/{project}/activity"): (None, 200, "Activity"),
    ("get", "/api/projects/{project}/workers"): (None, 200, "Workers"),
    ("get", "/api/doctor"): (None, 200, "Checks"),
    ("post", "/api/projects/{project}/train"): ("Empty", 202, "Changed"),
    ("post", "/api/projects/{project}/activate"): ("Activate", 202, "Changed"),
    ("post", "/api/projects/{project}/settings"): ("SetLevers", 202, "Changed"),
    ("post", "/api/projects/{project}/wishes"): ("SetWishes", 202, "Changed"),
    ("post", "/api/projects/{project}/undo"): ("Undo", 202, "Changed"),
    ("post", "/api/projects/{project}/retry"): ("Retry", 202, "Changed"),
}
REFUSALS = {
    "400": "The request cannot be understood; `error` says why.",
    "401": "Wrong or missing credentials.",
    "403": "A page of another site, or the secret of another project, may not ask for this.",
    "404": "Not known here.",
    "413": "The body is too large.",
    "422": "Understood, but it cannot be done; `error` says why.",
    "503": "The database or Label Studio does not answer; try again.",
}


def describe(app: FastAPI) -> None:
    """Have `app` serve a description with the bodies above instead of what FastAPI guesses."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(get_openapi(title=app.title, version=app.version, routes=app.routes))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _described(found: dict[str, Any]) -> dict[str, Any]:
    found["components"] = {
        "schemas": SCHEMAS,
        "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
    }
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            if path != "/health":
                operation["security"] = [{"basic": []}]
            request, status, answer = BODIES.get((method, path), (None, 0, ""))
            if request is not None:
                operation["requestBody"] = {"required": True, "content": _json(request)}
            answers = {k: v for k, v in operation["responses"].items() if k.startswith("2")}
            if answer:
                answers = {str(status): {"description": "Done, or noted.", "content": _json(answer)}}
            refusals = {code: {"description": text, "content": _json("Error")} for code, text in REFUSALS.items()}
            operation["responses"] = answers | refusals
    return found


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _of(name)}}
