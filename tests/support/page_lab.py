"""A fake lab: everything that the page reads, as the JSON API returns it, and the changes that the page requests.

For tests of the page that need no Label Studio and no model. Titles, labels and problems contain what users may type.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware

from backend.errors import BadSetting, ScanqueueError
from backend.learning.evaluation import LabelScore
from backend.web.page import create_page
from backend.web.rendering import error_page

SCRIPT = '<script>alert("1")</script>'
PROJECT = 4
SCANS = 60
AT = 1_795_404_647.0  # 22 Nov 2026
Json = dict[str, Any]

WHY_NOT = (
    "The image /data/local-files/?d=<b>scan</b>.png cannot be read: it is truncated. Export it again from the archive, "
    "and put it in the place of the old file."
)


def quality(dice: float | None = None, n: int = 0, *, missed: int = 0, n_empty: int = 0, alarms: int = 0) -> Json:
    return {
        "miss_rate": missed / n if n else None,
        "n_empty": n_empty,
        "false_alarm_rate": alarms / n_empty if n_empty else None,
        "dice": dice,
        "hd95": None if dice is None else 40 * (1 - dice),
        "hd": None,
        "unit": "px" if n else None,
        "n": n,
    }


@dataclass(frozen=True)
class Compared:
    task: int
    first: float
    second: float
    agreement: float
    first_hd95: float = 4.26
    second_hd95: float = 1.5
    unit: str = "mm"
    truth_empty: bool = False
    first_empty: bool = False
    second_empty: bool = False
    first_labels: dict[str, LabelScore] = field(default_factory=dict)
    second_labels: dict[str, LabelScore] = field(default_factory=dict)


def corrected() -> Json:
    """What smart tools were worth: most scans were corrected with them, some by hand."""

    def interval(value: float | None, n: int, name: str = "mean") -> Json:
        low, high = (None, None) if value is None else (0.9 * value, 1.1 * value)
        return {name: value, "low": low, "high": high, "n": n}

    return {
        name: {
            "scans": scans,
            "prompts": interval(prompts, scans if prompts else 0),
            "time": interval(seconds, scans, "median"),
            "before": interval(before, scans if before else 0),
            "after": interval(after, scans if after else 0),
        }
        for name, scans, prompts, seconds, before, after in (
            ("masked", 12, 2.4, 31.0, 0.78, 0.9),
            ("blank", 3, 3.7, 64.0, None, 0.86),
            ("by_hand", 19, None, 118.0, None, None),
        )
    }


class Lab:
    """One project, number 4, in round 2 of 60 scans. Change its parts before asking for a page."""

    def __init__(self, *, title: str = "Chest radiographs, 2026", studio_url: str = "http://127.0.0.1:9") -> None:
        self.asked: list[tuple[str, Json]] = []  # changes that the page requested
        self.looks = 0
        self.broken: ScanqueueError | None = None
        self.notice = ""
        self.one: Json = {
            "project": PROJECT,
            "title": title,
            "studio_url": studio_url,
            "phase": "active",
            "reason": "4 of 10 labels before the next model is trained.",
            "trouble": "",
            "round": 2,
            "model_version": "scanqueue-r2",
            "model": "scanqueue-r2",
            "scans": SCANS,
            "embedded": SCANS - 2,
            "labelled": 34,
            "labelled_empty": 0,
            "overlap": 1,
            "labels": ["Lung", "Heart"],
            "lost_labels": [],
            "image": "",
            "left_out": 0,
            "waiting": 0,
            "no_training": "",
            "embedder": {"name": "pixels", "why": ""},
            "validation": quality(0.912, 12),
            "shown": quality(0.934, 4),
            "queue": list(range(31, 57)),
            "job": {"step": "training scanqueue-r3 on 34 labels", "done": 120, "total": 400, "seconds_left": 185.0},
            "control": None,
            "stopping": {
                "advice": "go on",
                "sentence": "20 more labels are expected to add 0.012 to the Dice (0.004 to 0.021).",
                "gain": 0.012,
                "low": 0.004,
                "high": 0.021,
                "labels_worth": 40,
                "agreement": 0.93,
                "agreement_per_label": {"Lung": {"dice": 0.95, "n": 40}, "Heart": {"dice": 0.91, "n": 12}},
                "threshold": 0.005,
                "step": 20,
            },
            "problems": [
                {"task": 58, "what": WHY_NOT},
                {"task": 59, "what": "Its mask has another size than the scan."},
            ],
        }
        self.colours = {"Lung": "#E69F00", "Heart": "#56B4E9"}
        self.more_held_out = 0
        self.older_models = 0
        self.no_foreground: dict[int, tuple[bool, bool]] = {}  # task: whether A, or B, draws nothing there either
        self.waiting = [
            {
                "task": 30 + rank,
                "rank": rank,
                "reason": f"S = {0.9 - rank / 50:.2f}: entropy 0.{40 + rank}, distance 0.{70 - rank} (alpha 0.5)",
                "sentence": "The model is unsure of it, and it is unlike what was chosen before it.",
                "kind": "paper",
                "score": 0.9 - rank / 50,
                "entropy": 0.4 + rank / 100,
                "distance": 0.7 - rank / 100,
                "cluster": rank % 4,
            }
            for rank in range(1, 27)
        ]
        history = [{"step": s, "loss": 0.8 / (1 + s / 60), "dice": 0.9 - 0.5 / (1 + s / 40)} for s in range(0, 401, 40)]
        common = {"labels": ["Lung", "Heart"], "remark": "", "history": history, "champion": None, "held_out": []}
        self.models = [
            {
                **common,
                "version": "scanqueue-r1",
                "active": False,
                "kept": True,
                "accepted": True,
                "trained_on": 16,
                "validation": quality(0.871, 12),
                "created_at": AT,
            },
            {
                **common,
                "version": "scanqueue-r2",
                "active": True,
                "kept": True,
                "accepted": True,
                "trained_on": 24,
                "validation": quality(0.912, 12),
                "champion": {
                    "version": "scanqueue-r1",
                    "dice": 0.874,
                    "difference": {"mean": 0.034, "low": 0.011, "high": 0.057, "scans": 9},
                },
                "created_at": AT + 7200,
            },
        ]
        settings = {
            "cold_start_size": 20,
            "round_size": 10,
            "queue_depth": 0,
            "strategy": "proportional+paper",
            "uncertainty": "image",
            "one_per_patient": "on",
            "quick_model": "on",
            "least_dice": 0.3,
            "control_share": 0.0,
            "stratify_by": "",
            "alpha": 0.5,
            "retrain": "auto",
            "seed": 0,
            "tolerance": 0.01,
            "unit": "slice",
        }
        self.overrides: Json = {
            "settings": settings | {"round_size": 12, "alpha": 0.6},
            "given": {"round_size": 12, "alpha": 0.4},
            "changed": {"alpha": 0.6},
            "default": settings | {"strategy": "default"},
            "strategies": ["default", "paper", "random", "entropy"],
            "uncertainties": ["image", "foreground", "boundary", "top"],
            "units": ["slice", "scan"],
            "problem": "",
        }
        self.list = [
            {
                "change": 12,
                "at": AT + 9000,
                "user": "anna",
                "kind": "settings",
                "what": "alpha from 0.4 to 0.6",
                "undone": False,
                "undoable": True,
            },
            {
                "change": 11,
                "at": AT + 8000,
                "user": "",
                "kind": "train",
                "what": "Asked for a training",
                "undone": False,
                "undoable": False,
            },
            {
                "change": 10,
                "at": AT + 7000,
                "user": "ben",
                "kind": "wishes",
                "what": "Leave out 3 scans",
                "undone": True,
                "undoable": True,
            },
        ]
        self.people: Json = {
            "lately": [
                {"task": t, "at": "2026-11-23T10:15:00Z", "by": "anna@lab.example", "seconds": 65.0 + t}
                for t in (29, 30)
            ],
            "now": [{"task": 31, "by": "ben@lab.example"}],
            "note": "Label Studio tells of drafts that were saved, not of tasks that are merely open.",
        }
        self.working = [{"name": "worker-1", "seconds": 3.0, "doing": "training scanqueue-r3"}]
        rates = {"miss_rate": 0.25, "n_empty": 0, "false_alarm_rate": None}
        row = {"hd95_low": 2.0, "hd95_high": 5.5, "n": 12, "accepted": True, **rates}
        self.line: Json = {
            "unit": "px",
            "labels": ["Lung", "Heart"],
            "colours": self.colours,
            "models": [
                {
                    **row,
                    "version": f"scanqueue-r{n}",
                    "labels": labels,
                    "dice": dice,
                    "dice_low": dice - 0.03,
                    "dice_high": dice + 0.02,
                    "hd95": 40 * (1 - dice),
                    "classes": {
                        name: {"dice": dice - shift, "low": dice - shift - 0.02, "high": dice - shift + 0.02, "n": 12}
                        for name, shift in (("Lung", 0.0), ("Heart", 0.04))
                    },
                }
                for n, labels, dice in ((1, 20, 0.871), (2, 30, 0.912))
            ],
            "shown": [
                {
                    "round": n,
                    "model_version": f"scanqueue-r{n}",
                    "labels": labels,
                    "dice": dice,
                    "dice_low": dice - 0.02,
                    "dice_high": dice + 0.02,
                    "hd95": 3.4,
                    "hd95_low": None,
                    "hd95_high": None,
                    **rates,
                    "n": count,
                }
                for n, labels, dice, count in ((1, 20, 0.905, 10), (2, 30, 0.934, 4))
            ],
            "control": [
                {"version": "scanqueue-r2", "labels": 12, "ours": quality(0.90, 12), "control": quality(0.88, 12)},
            ],
            "lead_time": {
                "with": {"median": 41.0, "low": 36.0, "high": 52.0, "n": 14},
                "without": {"median": 128.0, "low": 110.0, "high": 150.0, "n": 20},
            },
            "corrections": corrected(),
            "stopping": self.one["stopping"],
        }
        self.others: list[Json] = []

    # what the page reads

    def projects(self) -> list[Json]:
        return [self.one, *self.others]

    def status(self, project: int) -> Json | None:
        self.looks += 1
        return self.one if project == PROJECT else None

    def brief(self, project: int) -> Json | None:
        if project != PROJECT:
            return None
        names = (
            "project",
            "title",
            "phase",
            "reason",
            "studio_url",
            "model",
            "scans",
            "embedded",
            "labelled",
            "left_out",
        )
        return {name: self.one[name] for name in names} | {"problems": len(self.one["problems"])}

    def queue(self, project: int) -> Json:
        return {"queue": self.waiting, "model": self.one["model"]}

    def rounds(self, project: int, newest: int = 0) -> Json:
        rounds = [
            {
                "round": n,
                "model_version": f"scanqueue-r{n}",
                "model": self.models[n - 1]["version"] if 0 < n <= len(self.models) else None,
                "labels": labels,
                "validation": self.models[n - 1]["validation"] if 0 < n <= len(self.models) else quality(),
                "shown": quality(0.92, 10) if n else quality(),
                "accepted": True if n else None,
                "remark": "",
                "control": None,
                "created_at": AT + n * 3600,
                "published_at": AT + n * 3600 + 60,
                "settings": {"alpha": 0.5, "round_size": 10},
                "activated": [{"at": AT + 7300, "user": "anna", "version": "scanqueue-r2"}] if n == 2 else [],
            }
            for n, labels in ((0, 0), (1, 20), (2, 30))
        ]
        of = {"rounds": len(rounds), "models": self.older_models + len(self.models)}
        return {"rounds": rounds if self.models else [], "models": self.models, "of": of}

    def curve(self, project: int) -> Json:
        return self.line

    def settings(self, project: int) -> Json:
        return self.overrides

    def changes(self, project: int) -> Json:
        return {"changes": self.list}

    def workers(self, project: int) -> Json:
        return {"workers": self.working}

    def activity(self, project: int) -> Json:
        return self.people

    def held_out(self, project: int, first: str, second: str) -> list[int]:
        return [7, 3, 9, *range(100, 100 + self.more_held_out)]

    def compare(self, project: int, first: str, second: str) -> list[Compared]:
        for version in (first, second):
            if version not in [m["version"] for m in self.models]:
                raise BadSetting(f"There is no model {version!r}. There are: scanqueue-r1, scanqueue-r2.")
        found = [(7, 0.612, 0.843), (3, 0.822, 0.801), (9, 0.93, 0.93)]
        empty = {task: (True, *drawn) for task, drawn in self.no_foreground.items()}
        compared = []
        for task, *dices in found:
            nothing = empty.get(task, (False, False, False))
            scores = [
                LabelScore(False, not quiet, 0.1 * (not quiet))
                if nothing[0]
                else LabelScore(True, True, 0.1, one, 9.0, far)
                for one, quiet, far in zip(dices, nothing[1:], (4.26, 1.5), strict=True)
            ]
            one, other = ({"Lung": score} for score in scores)
            compared.append(Compared(task, *dices, 0.8, 4.26, 1.5, "mm", *nothing, one, other))
        return compared

    def legend(self, project: int, *versions: str) -> dict[str, str]:
        return self.colours

    def scan_picture(self, project: int, task: int, side: int, model: str) -> bytes:
        if task >= 58:
            raise BadSetting(f"Task {task} has no pixels.")
        return drawing(task, side, outline=bool(model))

    def difference(self, project: int, task: int, first: str, second: str, part: str) -> bytes:
        return drawing(task, 256, outline=part != "image")

    def plot(self, project: int, what: str, kind: str) -> bytes:
        if kind == "png":
            return drawing(1, 300, outline=False)
        return (
            b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 300"><path fill="#fff" d="M0 0h600v300H0z"/>'
            b'<path d="M40 250 L200 120 L560 60" fill="none" stroke="#0b5c7a" stroke-width="3"/></svg>'
        )

    def openapi(self) -> Json:
        from backend.web.schemas import describe

        app = FastAPI(title="scanqueue", version="0.1.0")

        @app.get("/api/projects/{project}", tags=["projects"])
        def one(project: int) -> Json:
            """One project."""
            return {}

        @app.post("/api/projects/{project}/activate", tags=["projects"])
        def activate(project: int) -> Json:
            """Activate another model."""
            return {}

        describe(app)
        return app.openapi()

    def atlas(self) -> Json:
        rng = np.random.default_rng(0)
        cluster = [t % 4 for t in range(SCANS)]
        centres = np.array([[-8, -3], [6, 5], [9, -6], [-5, 8]])[cluster]
        places = centres + rng.normal(0, 2, (SCANS, 2))
        terms = {name: [round(float(v), 3) for v in rng.random(SCANS)] for name in ("entropy", "score", "distance")}
        rank = [max(0, t - 30) for t in range(1, SCANS + 1)]
        return {
            "task": list(range(1, SCANS + 1)),
            "x": [round(float(x), 3) for x in places[:, 0]],
            "y": [round(float(y), 3) for y in places[:, 1]],
            "cluster": cluster,
            "state": [1 if t < 30 else 2 if t > 57 else 0 for t in range(SCANS)],
            "round": [0 if t < 20 else 1 if t < 30 else -1 for t in range(SCANS)],
            **terms,
            "rank": rank,
            "served": [int(0 < r <= 26) for r in rank],
            "kind": [0] * SCANS,
            "kinds": ["paper"],
            "wish": [0] * SCANS,
            "clusters": 4,
            "alpha": 0.5,
            "why": {"paper": "the model is unsure of it, and it is unlike the others"},
        }

    # what the page requests

    def preview(self, query: Json) -> Json:
        head = self.waiting[:10]
        moved = [head[4], *head[:4], *head[5:9], {**head[9], "task": 57}]
        return {"now": head, "then": [{**p, "rank": n} for n, p in enumerate(moved, start=1)], "note": ""}

    def change(self, what: str, body: Json) -> Json:
        if what == "settings" and body.get("round_size") == 0:
            raise BadSetting("round_size is 0; it must be a whole number, 1 or more.")
        self.asked.append((what, body))
        if what == "undo":
            for change in self.list:
                if change["change"] == body["change"]:
                    change["undone"] = True
                    if change["kind"] == "settings":
                        self.overrides["changed"] = {}
                        self.overrides["settings"]["alpha"] = 0.4
        if what in ("settings", "wishes"):
            number = max(c["change"] for c in self.list) + 1
            words = ", ".join(f"{k} to {v}" for k, v in body.items())
            entry = {"change": number, "at": AT + 9999, "user": "anna", "kind": what, "what": words}
            self.list.insert(0, entry | {"undone": False, "undoable": True})
            if what == "settings":
                for name, value in body.items():
                    given = self.overrides["given"].get(name, self.overrides["default"][name])
                    self.overrides["changed"] = {**self.overrides["changed"], name: value}
                    if value is None:
                        del self.overrides["changed"][name]
                    self.overrides["settings"][name] = given if value is None else value
            return {"status": "noted", "change": number}
        return {"status": "noted"}


@lru_cache(maxsize=256)
def drawing(task: int, side: int, outline: bool) -> bytes:
    """A rough chest scan: two dark lungs in a bright body."""
    rng = np.random.default_rng(task)
    image = np.full((side, side, 3), 30, np.uint8)
    c = side / 100
    cv2.ellipse(image, (int(50 * c), int(55 * c)), (int(42 * c), int(46 * c)), 0, 0, 360, (150, 150, 150), -1)
    for x, turn in ((32, 8), (68, -8)):
        centre, axes = (int(x * c), int((50 + task % 5) * c)), (int(13 * c), int((26 + task % 7) * c))
        cv2.ellipse(image, centre, axes, turn, 0, 360, (55, 55, 55), -1)
        if outline:
            cv2.ellipse(image, centre, axes, turn, 0, 360, (0, 190, 240), max(1, int(1.5 * c)))
    noise = rng.normal(0, 6, image.shape[:2])[..., None]
    return bytes(cv2.imencode(".png", np.clip(image + noise, 0, 255).astype(np.uint8))[1])


def make_app(lab: Lab) -> FastAPI:
    """The page and the JSON API of the same lab, with errors as the real application returns them."""
    app = FastAPI(title="scanqueue", docs_url=None, redoc_url=None)
    app.include_router(create_page(lab, lab.openapi))
    app.state.notice = lambda: lab.notice

    @app.get("/api/projects/{project}")
    def one(project: int) -> Json:
        if lab.broken is not None:
            raise lab.broken
        return lab.status(project) or {}

    @app.get("/api/projects/{project}/preview")
    def preview(request: Request) -> Json:
        return lab.preview(dict(request.query_params))

    @app.get("/api/projects/{project}/atlas")
    def atlas(project: int) -> Json:
        return lab.atlas()

    @app.get("/api/doctor")
    def doctor() -> Json:
        return {
            "checks": [
                {"level": "ok", "what": "Label Studio answers.", "cure": ""},
                {"level": "error", "what": f"The folder {SCRIPT} is not there.", "cure": "Make it."},
            ]
        }

    @app.post("/api/projects/{project}/{what}", status_code=202)
    async def change(what: str, request: Request) -> Json:
        assert request.headers["content-type"] == "application/json"
        return lab.change(what, await request.json())

    def answer(request: Request, code: int, sentence: str) -> Response:
        return error_page(request, code, sentence) or JSONResponse({"error": sentence}, status_code=code)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return answer(request, error.status_code, str(error.detail))

    @app.exception_handler(ScanqueueError)
    async def explained(request: Request, error: ScanqueueError) -> Response:
        return answer(request, 400 if isinstance(error, BadSetting) else 503, str(error))

    app.add_middleware(GZipMiddleware)
    return app


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve `app` with a real server on loopback; yields its address."""
    listening = socket.create_server(("127.0.0.1", 0))  # held from now on: no other process gets this port
    port = listening.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < until, "the server does not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listening.close()
