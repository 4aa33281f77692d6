"""JSON Schemas of requests and responses for `/openapi.json`, by method and path.

Written by hand instead of pydantic models: a model per object needs more lines, and validating answers would cost
time for large masks. tests/web/test_openapi.py checks that answers match.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    found: Schema = {"type": "object", "properties": required | (optional or {})}
    return found | {"required": sorted(required)} if required else found


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_NUMBER_OR_NULL = _or_null(NUMBER)
_RATES: dict[str, Schema] = dict.fromkeys(("sensitivity", "false_alarm_rate", "false_alarm_area"), _NUMBER_OR_NULL)
_SUMMARY: dict[str, Schema] = {
    "n": {"type": "integer", "description": "scans with any label"},
    "n_empty": {"type": "integer", "description": "scans without any label"},
    "unit": _or_null({"enum": ["px", "mm", "mixed"], "description": "no mean distances if mixed"}),
    "miss_rate": _NUMBER_OR_NULL | {"description": "1 - sensitivity"},
    **_RATES,
    **{f"{name}{end}": _NUMBER_OR_NULL for name in ("dice", "hd95") for end in ("", "_low", "_high")},
    "per_label": {"type": "object", "additionalProperties": _ref("LabelQuality")},
}
SCHEMAS: dict[str, Schema] = {
    "Error": _object({"error": TEXT}),
    "Noted": _object({"status": {"const": "noted"}}),
    "Changed": _object({"status": {"const": "noted"}, "change": INTEGER}),
    "Empty": {"type": "object"},
    "Health": _object({"status": {"const": "UP"}, "model_class": TEXT}),
    "Setup": _object(
        {"project": {"type": "string", "pattern": r"^[0-9]{1,15}(\.[0-9]*)?$", "examples": ["4.1795404647"]}},
        {
            "schema": TEXT,
            "hostname": TEXT,
            "access_token": TEXT,
            "extra_params": {"anyOf": [TEXT, {"type": "object"}, {"type": "null"}]},
        },
    ),
    "SetupAnswer": _object({"model_version": TEXT}),
    "Task": _object({"id": INTEGER, "data": {"type": "object"}}),
    "Predict": _object(
        {"project": {"type": "string", "pattern": r"^[0-9]{1,15}(\.[0-9]*)?$"}, "tasks": _list(_ref("Task"))},
        {"label_config": TEXT, "params": {"type": "object"}},
    ),
    "Prediction": _object(
        {
            "model_version": TEXT,
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "result": _list({"type": "object"}),
        }
    ),
    "Predictions": _object({"results": _list(_ref("Prediction"))}),
    "Webhook": _object(
        {
            "action": {"type": "string", "examples": ["ANNOTATION_CREATED", "START_TRAINING"]},
            "project": _object({"id": {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}}),
        }
    ),
    "Versions": _object({"versions": _list(TEXT)}),
    "Activate": _object({"version": {"type": "string", "examples": ["scanqueue-r2"]}}),
    "Quality": _object({}, {"hd": _NUMBER_OR_NULL, **_SUMMARY}) | {"description": "means over labels of `per_label`"},
    "LabelQuality": _object(
        {
            **dict.fromkeys(("n", "n_without"), INTEGER),
            **dict.fromkeys(("dice", "dice_low", "dice_high", "hd95", "hd"), _NUMBER_OR_NULL),
            **_RATES,
        }
    ),
    "LabelScore": _object(
        {
            **dict.fromkeys(("present", "drawn"), BOOLEAN),
            "area": NUMBER | {"description": "share of the picture, as drawn"},
            **dict.fromkeys(("dice", "hd95", "hd"), _NUMBER_OR_NULL | {"description": "null unless present"}),
        }
    ),
    "Job": _object({"step": TEXT, "done": INTEGER, "total": INTEGER, "seconds_left": _NUMBER_OR_NULL}),
    "Compared": _object(
        {"version": TEXT, "labels": INTEGER, "ours": _ref("Quality"), "control": _ref("Quality")},
        {"of": _object({"ours": INTEGER, "control": INTEGER})},
    ),
    "Stopping": _object(
        {
            "advice": {"enum": ["go on", "nearly there", "stop", "too early to say"]},
            "sentence": TEXT,
            "gain": _NUMBER_OR_NULL,
            "low": _NUMBER_OR_NULL,
            "high": _NUMBER_OR_NULL,
            "labels_worth": _or_null(INTEGER),
            "agreement": _NUMBER_OR_NULL,
            "threshold": NUMBER,
            "step": {"type": "integer", "description": "number of labels that `gain` and `threshold` speak of"},
        }
    ),
    "Project": _object(
        {
            "project": INTEGER,
            "title": TEXT,
            "phase": {
                "enum": [
                    *("empty", "embedding", "cold_start", "publishing", "training", "active", "done", "blocked"),
                    *("disconnected", "deleted"),
                ]
            },
            "reason": TEXT,
            "trouble": TEXT,
            "round": _or_null(INTEGER),
            "model_version": _or_null(TEXT),
            "model": _or_null(TEXT),
            "scans": INTEGER,
            "embedded": INTEGER,
            "labelled": INTEGER,
            "labelled_empty": {"type": "integer", "description": "labelled scans whose mask has no foreground"},
            "embedder": _object({"name": TEXT, "why": TEXT}),
            "validation": _ref("Quality"),
            "shown": _ref("Quality"),
            "queue": _list(INTEGER),
            "job": _or_null(_ref("Job")),
            "no_training": {"type": "string", "description": "why no training can be requested; empty if it can"},
            "control": _or_null(_ref("Compared")),
            "stopping": _or_null(_ref("Stopping")),
            "studio_url": TEXT,
            "left_out": INTEGER,
            "problems": _list(_object({"task": INTEGER, "what": TEXT})),
            "labels": _list(TEXT),
            "overlap": {"type": "integer", "description": "annotations that Label Studio wants of each scan"},
            "lost_labels": _list(_object({"label": TEXT, "annotations": INTEGER})),
            "image": {"type": "string", "description": "the <Image> tag in use, if the label config has others"},
            "problem_groups": _list(
                _object(
                    {
                        "what": TEXT,
                        "same": BOOLEAN | {"description": "whether all tasks of the group have this very sentence"},
                        "count": INTEGER,
                        "tasks": _list(INTEGER) | {"description": "the first few"},
                    }
                )
            ),
        }
    ),
    "Projects": _object({"projects": _list(_ref("Project"))}),
    "Map": _object(
        {
            "scans": _list(
                _object(
                    {
                        "task": INTEGER,
                        "x": NUMBER,
                        "y": NUMBER,
                        "cluster": _or_null(INTEGER),
                        "labelled": BOOLEAN,
                        "rank": _or_null(INTEGER),
                        "reason": _or_null(TEXT),
                    }
                )
            )
        }
    ),
    "Place": _object(
        {
            "task": INTEGER,
            "rank": INTEGER,
            "reason": TEXT,
            "sentence": TEXT,
            "kind": TEXT,
            "score": _NUMBER_OR_NULL,
            "entropy": _NUMBER_OR_NULL,
            "distance": _NUMBER_OR_NULL,
            "cluster": _or_null(INTEGER),
        }
    ),
    "Queue": _object({"queue": _list(_ref("Place"))}),
    "Preview": _object({"now": _list(_ref("Place")), "then": _list(_ref("Place")), "note": TEXT}),
    "Atlas": _object(
        {
            **{name: _list(INTEGER) for name in ("task", "cluster", "round", "rank", "kind")},
            **{name: _list(NUMBER) for name in ("x", "y")},
            **{name: _list(_NUMBER_OR_NULL) for name in ("entropy", "score", "distance")},
            "state": _list({"enum": [0, 1, 2, 3], "description": "0 open, 1 labelled, 2 problem, 3 skipped"}),
            "served": _list({"enum": [0, 1]}),
            "wish": _list({"enum": [-1, 0, 1], "description": "-1 left out, 0 none, 1 next"}),
            "kinds": _list(TEXT),
            "why": {"type": "object", "additionalProperties": TEXT},
            "clusters": INTEGER,
            "alpha": NUMBER,
        }
    ),
    "Interval": _object({"n": INTEGER}, dict.fromkeys(("dice", "median", "low", "high"), _NUMBER_OR_NULL)),
    "Means": _object(
        _SUMMARY,
        {
            "version": TEXT,
            "model_version": TEXT,
            "round": INTEGER,
            "labels": _or_null(INTEGER),
            "accepted": BOOLEAN,
            "classes": {"type": "object", "additionalProperties": _ref("Interval")},
        },
    ),
    "Curve": _object(
        {
            "unit": _or_null({"enum": ["px", "mm", "mixed"]}),
            "labels": _list(TEXT),
            "colours": {"type": "object", "additionalProperties": TEXT, "description": "by label, as #RRGGBB"},
            "models": _list(_ref("Means")),
            "shown": _list(_ref("Means")),
            "control": _list(_ref("Compared")),
            "lead_time": _object({"with": _ref("Interval"), "without": _ref("Interval")}),
            "stopping": _or_null(_ref("Stopping")),
        }
    ),
    "Comparison": _object(
        {
            "compared": _list(
                _object(
                    {
                        "task": INTEGER,
                        "agreement": NUMBER,
                        **dict.fromkeys(("first", "second", "first_hd95", "second_hd95"), _NUMBER_OR_NULL),
                        **{
                            key: {"additionalProperties": _ref("LabelScore")}
                            for key in ("first_labels", "second_labels")
                        },
                        **dict.fromkeys(("truth_empty", "first_empty", "second_empty"), BOOLEAN),
                        "unit": {"enum": ["px", "mm"]},
                    }
                )
            ),
            "held_out": INTEGER,
        }
    ),
    "Settings": _object(
        {
            **{name: {"type": "object"} for name in ("settings", "given", "changed", "default")},
            "strategies": _list(TEXT),
            "uncertainties": _list(TEXT),
            "units": _list(TEXT),
            "problem": TEXT,
        }
    ),
    "SetOverrides": {
        "type": "object",
        "description": "Project settings and their values; null restores the value from Label Studio.",
        "examples": [{"alpha": 0.7, "round_size": None}],
    },
    "RenameLabels": {
        "type": "object",
        "description": "Labels that the label config lost: their present names, or an empty text if no longer used.",
        "examples": [{"Lung": "Lungs", "Nodule": ""}],
    },
    "SetPriorities": _object({"tasks": _list(INTEGER), "wish": {"enum": ["next", "out", "none"]}}),
    "Undo": _object({"change": INTEGER}),
    "Retry": _object({}, {"task": INTEGER, "all": BOOLEAN | {"description": "every scan that has a problem"}})
    | {"minProperties": 1, "examples": [{"task": 7}]},
    "Changes": _object(
        {
            "changes": _list(
                _object(
                    {
                        "change": INTEGER,
                        "at": NUMBER,
                        "user": TEXT,
                        "kind": {"enum": ["settings", "wishes", "activate", "train", "retry", "labels"]},
                        "what": TEXT,
                        "undone": BOOLEAN,
                        "undoable": BOOLEAN,
                    }
                )
            )
        }
    ),
    "Activity": _object(
        {
            "lately": _list(_object({"task": INTEGER, "at": TEXT, "by": _or_null(TEXT), "seconds": _NUMBER_OR_NULL})),
            "now": _list(_object({"task": INTEGER, "by": _or_null(TEXT)})),
            "note": TEXT,
        }
    ),
    "Workers": _object({"workers": _list(_object({"name": TEXT, "seconds": NUMBER, "doing": TEXT}))}),
    "Checks": _object(
        {"checks": _list(_object({"level": {"enum": ["ok", "warning", "error"]}, "what": TEXT, "cure": TEXT}))}
    ),
    "Rounds": _object(
        {
            "rounds": _list(
                _object(
                    {
                        "round": INTEGER,
                        "model_version": TEXT,
                        "model": _or_null(TEXT),
                        "labels": INTEGER,
                        "validation": _ref("Quality"),
                        "shown": _ref("Quality"),
                        "accepted": _or_null(BOOLEAN),
                        "remark": TEXT,
                        "control": _or_null(_ref("Compared")),
                        "created_at": NUMBER,
                        "published_at": _NUMBER_OR_NULL,
                        "settings": {"type": "object"},
                        "activated": _list(_object({"version": TEXT, "at": NUMBER, "user": TEXT})),
                    }
                )
            ),
            "models": _list(
                _object(
                    {
                        "version": TEXT,
                        "active": BOOLEAN,
                        "kept": BOOLEAN,
                        "accepted": BOOLEAN,
                        "labels": _list(TEXT),
                        "trained_on": INTEGER,
                        "validation": _ref("Quality"),
                        "remark": TEXT,
                        "created_at": NUMBER,
                        "history": _list({"type": "object"}),
                        "champion": _or_null(_ref("Quality")),
                        "held_out": _list({"type": "object"}),
                    }
                )
            ),
        }
    ),
}

# method and path: request schema, status and schema of the response
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
    ("get", "/api/projects/{project}/settings"): (None, 200, "Settings"),
    ("get", "/api/projects/{project}/preview"): (None, 200, "Preview"),
    ("get", "/api/projects/{project}/changes"): (None, 200, "Changes"),
    ("get", "/api/projects/{project}/activity"): (None, 200, "Activity"),
    ("get", "/api/projects/{project}/workers"): (None, 200, "Workers"),
    ("get", "/api/doctor"): (None, 200, "Checks"),
    ("post", "/api/projects/{project}/train"): ("Empty", 202, "Changed"),
    ("post", "/api/projects/{project}/activate"): ("Activate", 202, "Changed"),
    ("post", "/api/projects/{project}/settings"): ("SetOverrides", 202, "Changed"),
    ("post", "/api/projects/{project}/labels"): ("RenameLabels", 202, "Changed"),
    ("post", "/api/projects/{project}/wishes"): ("SetPriorities", 202, "Changed"),
    ("post", "/api/projects/{project}/undo"): ("Undo", 202, "Changed"),
    ("post", "/api/projects/{project}/retry"): ("Retry", 202, "Changed"),
}
REFUSALS = {
    "400": "The request is invalid; `error` explains why.",
    "401": "Wrong or missing credentials.",
    "403": "The request comes from a page of another site, or with the secret of another project.",
    "404": "Unknown project, scan, model or address.",
    "413": "The body is too large.",
    "422": "The request is valid but cannot be carried out; `error` explains why.",
    "503": "The database or Label Studio does not answer, or the server is busy; try again.",
}


def describe(app: FastAPI) -> None:
    """Make `app` describe its requests and responses with the schemas above."""

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
                answers = {str(status): {"description": "Success.", "content": _json(answer)}}
            refusals = {code: {"description": text, "content": _json("Error")} for code, text in REFUSALS.items()}
            operation["responses"] = answers | refusals
    return found


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(name)}}
