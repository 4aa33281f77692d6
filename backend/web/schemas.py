"""JSON Schemas of requests and responses for `/openapi.json`, by method and path.

Written by hand instead of pydantic models: a model per object needs more lines, and validating answers would cost
time for large masks. tests/web/test_openapi.py checks that answers match.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from backend.web.schema_parts import (
    BOOLEAN,
    CLICK_TOOLS,
    CORRECTIONS,
    INTEGER,
    NUMBER,
    NUMBER_OR_NULL,
    TEXT,
    Schema,
    list_of,
    map_of,
    object_of,
    or_null,
    ref,
)

_RATES: dict[str, Schema] = dict.fromkeys(("sensitivity", "false_alarm_rate", "false_alarm_area"), NUMBER_OR_NULL)
_SUMMARY: dict[str, Schema] = {
    "n": {"type": "integer", "description": "scans with any label"},
    "n_empty": {"type": "integer", "description": "scans without any label"},
    "unit": or_null({"enum": ["px", "mm", "mixed"], "description": "no mean distances if mixed"}),
    "miss_rate": NUMBER_OR_NULL | {"description": "1 - sensitivity"},
    **_RATES,
    **{f"{name}{end}": NUMBER_OR_NULL for name in ("dice", "hd95") for end in ("", "_low", "_high")},
    "per_label": map_of(ref("LabelQuality")),
}
SCHEMAS: dict[str, Schema] = {
    "Error": object_of({"error": TEXT}),
    "Noted": object_of({"status": {"const": "noted"}}),
    "Changed": object_of({"status": {"const": "noted"}, "change": INTEGER}),
    "Empty": {"type": "object"},
    "Health": object_of({"status": {"const": "UP"}, "model_class": TEXT}),
    "Setup": object_of(
        {"project": {"type": "string", "pattern": r"^[0-9]{1,15}(\.[0-9]*)?$", "examples": ["4.1795404647"]}},
        {
            "schema": TEXT,
            "hostname": TEXT,
            "access_token": TEXT,
            "extra_params": {"anyOf": [TEXT, {"type": "object"}, {"type": "null"}]},
        },
    ),
    "SetupAnswer": object_of({"model_version": TEXT}),
    "Task": object_of({"id": INTEGER, "data": {"type": "object"}}),
    "Predict": object_of(
        {"project": {"type": "string", "pattern": r"^[0-9]{1,15}(\.[0-9]*)?$"}, "tasks": list_of(ref("Task"))},
        {"label_config": TEXT, "params": {"type": "object"}},
    ),
    "Prediction": object_of(
        {
            "model_version": TEXT,
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "result": list_of({"type": "object"}),
        }
    ),
    "Predictions": object_of({"results": list_of(ref("Prediction"))}),
    "Webhook": object_of(
        {
            "action": {"type": "string", "examples": ["ANNOTATION_CREATED", "START_TRAINING"]},
            "project": object_of({"id": {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}}),
        }
    ),
    "Versions": object_of({"versions": list_of(TEXT)}),
    "Activate": object_of({"version": {"type": "string", "examples": ["scanqueue-r2"]}}),
    "Quality": object_of({}, {"hd": NUMBER_OR_NULL, **_SUMMARY}) | {"description": "means over labels of `per_label`"},
    "Champion": object_of({"version": TEXT}, {"hd": NUMBER_OR_NULL, **_SUMMARY, "difference": ref("Difference")})
    | {"description": "the model that was active before, or the quick model, on scans that neither has learnt from"},
    "Difference": object_of({**dict.fromkeys(("mean", "low", "high"), NUMBER), "scans": INTEGER})
    | {"description": "new model minus the one before, and its 95 % interval: above 0 the new one is better"},
    "LabelQuality": object_of(
        {
            **dict.fromkeys(("n", "n_without"), INTEGER),
            **dict.fromkeys(("dice", "dice_low", "dice_high", "hd95", "hd"), NUMBER_OR_NULL),
            **_RATES,
        }
    ),
    "LabelScore": object_of(
        {
            **dict.fromkeys(("present", "drawn"), BOOLEAN),
            "area": NUMBER | {"description": "share of the picture, as drawn"},
            **dict.fromkeys(("dice", "hd95", "hd"), NUMBER_OR_NULL | {"description": "null unless present"}),
        }
    ),
    "Job": object_of({"step": TEXT, "done": INTEGER, "total": INTEGER, "seconds_left": NUMBER_OR_NULL}),
    "Compared": object_of(
        {"version": TEXT, "labels": INTEGER, "ours": ref("Quality"), "control": ref("Quality")},
        {"of": object_of({"ours": INTEGER, "control": INTEGER})},
    ),
    "Stopping": object_of(
        {
            "advice": {"enum": ["go on", "nearly there", "stop", "too early to say"]},
            "sentence": TEXT,
            "gain": NUMBER_OR_NULL,
            "low": NUMBER_OR_NULL,
            "high": NUMBER_OR_NULL,
            "labels_worth": or_null(INTEGER),
            "agreement": NUMBER_OR_NULL,
            "agreement_per_label": map_of(object_of({"dice": NUMBER, "n": INTEGER})),
            "threshold": NUMBER,
            "step": {"type": "integer", "description": "number of labels that `gain` and `threshold` speak of"},
        }
    ),
    "Project": object_of(
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
            "round": or_null(INTEGER),
            "model_version": or_null(TEXT),
            "model": or_null(TEXT),
            "scans": INTEGER,
            "embedded": INTEGER,
            "labelled": INTEGER,
            "labelled_empty": {"type": "integer", "description": "labelled scans whose mask has no foreground"},
            "embedder": object_of({"name": TEXT, "why": TEXT}),
            "validation": ref("Quality"),
            "shown": ref("Quality"),
            "queue": list_of(INTEGER),
            "waiting": {"type": "integer", "description": "scans that join the order once they are read or scored"},
            "job": or_null(ref("Job")),
            "no_training": {"type": "string", "description": "why no training can be requested; empty if it can"},
            "control": or_null(ref("Compared")),
            "stopping": or_null(ref("Stopping")),
            "quick": or_null(object_of({"labels": INTEGER, "dice": NUMBER_OR_NULL, "hidden": BOOLEAN})),
            "clicks": or_null(object_of(dict.fromkeys(("answers", "failed", "slow"), INTEGER))),
            "studio_url": TEXT,
            "left_out": INTEGER,
            "problems": list_of(object_of({"task": INTEGER, "what": TEXT})),
            "labels": list_of(TEXT),
            "overlap": {"type": "integer", "description": "annotations that Label Studio wants of each scan"},
            "lost_labels": list_of(object_of({"label": TEXT, "annotations": INTEGER})),
            "image": {"type": "string", "description": "the <Image> tag in use, if the label config has others"},
            "problem_groups": list_of(
                object_of(
                    {
                        "what": TEXT,
                        "same": BOOLEAN | {"description": "whether all tasks of the group have this very sentence"},
                        "count": INTEGER,
                        "tasks": list_of(INTEGER) | {"description": "the first few"},
                    }
                )
            ),
        }
    ),
    "Projects": object_of({"projects": list_of(ref("Project"))}),
    "Map": object_of(
        {
            "scans": list_of(
                object_of(
                    {
                        "task": INTEGER,
                        "x": NUMBER,
                        "y": NUMBER,
                        "cluster": or_null(INTEGER),
                        "labelled": BOOLEAN,
                        "rank": or_null(INTEGER),
                        "reason": or_null(TEXT),
                    }
                )
            )
        }
    ),
    "Place": object_of(
        {
            "task": INTEGER,
            "rank": INTEGER,
            "reason": TEXT,
            "sentence": TEXT,
            "kind": TEXT,
            "score": NUMBER_OR_NULL,
            "entropy": NUMBER_OR_NULL,
            "distance": NUMBER_OR_NULL,
            "cluster": or_null(INTEGER),
        }
    ),
    "Queue": object_of({"queue": list_of(ref("Place"))}),
    "Preview": object_of({"now": list_of(ref("Place")), "then": list_of(ref("Place")), "note": TEXT}),
    "Atlas": object_of(
        {
            **{name: list_of(INTEGER) for name in ("task", "cluster", "round", "rank", "kind")},
            **{name: list_of(NUMBER) for name in ("x", "y")},
            **{name: list_of(NUMBER_OR_NULL) for name in ("entropy", "score", "distance")},
            "state": list_of({"enum": [0, 1, 2, 3], "description": "0 open, 1 labelled, 2 problem, 3 skipped"}),
            "served": list_of({"enum": [0, 1]}),
            "wish": list_of({"enum": [-1, 0, 1], "description": "-1 left out, 0 none, 1 next"}),
            "kinds": list_of(TEXT),
            "why": map_of(TEXT),
            "clusters": INTEGER,
            "alpha": NUMBER,
        }
    ),
    "Interval": object_of({"n": INTEGER}, dict.fromkeys(("dice", "mean", "median", "low", "high"), NUMBER_OR_NULL)),
    "Means": object_of(
        _SUMMARY,
        {
            "version": TEXT,
            "model_version": TEXT,
            "round": INTEGER,
            "labels": or_null(INTEGER),
            "accepted": BOOLEAN,
            "classes": map_of(ref("Interval")),
        },
    ),
    "Curve": object_of(
        {
            "unit": or_null({"enum": ["px", "mm", "mixed"]}),
            "labels": list_of(TEXT),
            "colours": map_of(TEXT) | {"description": "by label, as #RRGGBB"},
            "models": list_of(ref("Means")),
            "shown": list_of(ref("Means")),
            "quick": list_of(ref("Means")),
            "control": list_of(ref("Compared")),
            "lead_time": object_of({"with": ref("Interval"), "without": ref("Interval")}),
            "corrections": CORRECTIONS,
            "stopping": or_null(ref("Stopping")),
        }
    ),
    "Comparison": object_of(
        {
            "compared": list_of(
                object_of(
                    {
                        "task": INTEGER,
                        "agreement": NUMBER,
                        **dict.fromkeys(("first", "second", "first_hd95", "second_hd95"), NUMBER_OR_NULL),
                        **dict.fromkeys(("first_labels", "second_labels"), map_of(ref("LabelScore"))),
                        **dict.fromkeys(("truth_empty", "first_empty", "second_empty"), BOOLEAN),
                        "unit": {"enum": ["px", "mm"]},
                    }
                )
            ),
            "held_out": INTEGER | {"description": "scans that neither model has learnt from"},
        }
    ),
    "Settings": object_of(
        {
            **{name: {"type": "object"} for name in ("settings", "given", "changed", "default")},
            **dict.fromkeys(("strategies", "uncertainties", "units"), list_of(TEXT)),
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
    "SetPriorities": object_of({"tasks": list_of(INTEGER), "wish": {"enum": ["next", "out", "none"]}}),
    "Undo": object_of({"change": INTEGER}),
    "Retry": object_of({}, {"task": INTEGER, "all": BOOLEAN | {"description": "every scan that has a problem"}})
    | {"minProperties": 1, "examples": [{"task": 7}]},
    "Changes": object_of(
        {
            "changes": list_of(
                object_of(
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
    "Activity": object_of(
        {
            "lately": list_of(object_of({"task": INTEGER, "at": TEXT, "by": or_null(TEXT), "seconds": NUMBER_OR_NULL})),
            "now": list_of(object_of({"task": INTEGER, "by": or_null(TEXT)})),
            "note": TEXT,
        }
    ),
    "Workers": object_of({"workers": list_of(object_of({"name": TEXT, "seconds": NUMBER, "doing": TEXT}))}),
    "Checks": object_of(
        {"checks": list_of(object_of({"level": {"enum": ["ok", "warning", "error"]}, "what": TEXT, "cure": TEXT}))}
    ),
    "HeldOut": object_of({"version": TEXT, "held_out": list_of({"type": "object"})}),
    "Rounds": object_of(
        {
            "rounds": list_of(
                object_of(
                    {
                        "round": INTEGER,
                        "model_version": TEXT,
                        "model": or_null(TEXT),
                        "labels": INTEGER,
                        "validation": ref("Quality"),
                        "shown": ref("Quality"),
                        "accepted": or_null(BOOLEAN),
                        "remark": TEXT,
                        "control": or_null(ref("Compared")),
                        "created_at": NUMBER,
                        "published_at": NUMBER_OR_NULL,
                        "settings": {"type": "object"},
                        "activated": list_of(object_of({"version": TEXT, "at": NUMBER, "user": TEXT})),
                    }
                )
            ),
            "models": list_of(
                object_of(
                    {
                        "version": TEXT,
                        "active": BOOLEAN,
                        "kept": BOOLEAN,
                        "accepted": BOOLEAN,
                        "labels": list_of(TEXT),
                        "trained_on": INTEGER,
                        "validation": ref("Quality"),
                        "remark": TEXT,
                        "created_at": NUMBER,
                        "history": list_of({"type": "object"}),
                        "champion": or_null(ref("Champion")),
                        "clicks": CLICK_TOOLS,
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
    ("get", "/api/projects/{project}/models/{version}"): (None, 200, "HeldOut"),
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
    "408": "The body did not arrive completely in time.",
    "413": "The body is too large.",
    "422": "The request is valid but cannot be carried out; `error` explains why.",
    "429": "Too many wrong passwords came from this address; `Retry-After` says when the next is compared.",
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
    schemes = {"basic": {"type": "http", "scheme": "basic"}}
    found["components"] = {"schemas": SCHEMAS, "securitySchemes": schemes}
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
    return {"application/json": {"schema": ref(name)}}
