"""The web page: the addresses of its views, pictures and assets. It reads through `Data` and changes nothing.

The page's scripts (`backend/web/pages/page.js`) make changes through the JSON API, like any other program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Request, Response
from fastapi import Path as InPath
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException

from backend.errors import Overloaded, ScanqueueError
from backend.learning.averages import Recorded, summarise
from backend.learning.evaluation import LabelScore
from backend.web import formatting, reference, texts
from backend.web.bodies import MAX_PROJECT
from backend.web.plots.curve import panel_names
from backend.web.problems import FEW
from backend.web.rendering import asset_answer, file_answer, render

PLOTS = {
    "map.svg": "image/svg+xml",
    "map.png": "image/png",
    "curve.svg": "image/svg+xml",
    "curve.png": "image/png",
}
CARDS = 24  # scans of the queue that are shown at first, and added by each "Show more"
PROBLEMS = 50  # number of problems shown, likewise
LISTED = 50  # newest models and rounds that tables list at first
CHANGES = 8  # latest changes on the first view
SIDES = (32, 1024)  # shortest and longest side of a picture in pixels
PARTS = ("image", "first", "second", "annotator", "difference")
Project = Annotated[int, InPath(ge=0, lt=MAX_PROJECT)]
Task = Annotated[int, InPath(ge=0, lt=2**63)]
Json = dict[str, Any]


class Data(Protocol):
    """The data of the page: the objects of the JSON API, and pictures as bytes.

    May raise any `ScanqueueError`; the application turns it into an answer (`rendering.error_page`).
    """

    def projects(self) -> list[Json]: ...

    def status(self, project: int) -> Json | None:
        """None when the project is not known here."""

    def brief(self, project: int) -> Json | None:
        """The head of every view: the part of `status` that is fast for a pool of any size."""

    def queue(self, project: int) -> Json: ...
    def rounds(self, project: int, newest: int = 0) -> Json:
        """{rounds, models, of}; 0: all."""

    def curve(self, project: int) -> Json: ...
    def settings(self, project: int) -> Json: ...
    def changes(self, project: int) -> Json: ...
    def workers(self, project: int) -> Json: ...
    def activity(self, project: int) -> Json:
        """May send requests to Label Studio, so only a separate view reads it."""

    def held_out(self, project: int, first: str, second: str) -> Sequence[int]:
        """The tasks that models are compared on."""

    def compare(self, project: int, first: str, second: str) -> Sequence[Compared]:
        """The two models on scans that neither has learnt from, worst first."""

    def legend(self, project: int, *versions: str) -> Mapping[str, str]:
        """The labels of the label config and of these models, with the colours of their outlines."""

    def scan_picture(self, project: int, task: int, side: int, model: str) -> bytes:
        """PNG, the longest side `side` pixels; model "" for the scan alone, "annotator" for the submitted mask."""

    def difference(self, project: int, task: int, first: str, second: str, part: str) -> bytes:
        """PNG of one of `PARTS`."""

    def plot(self, project: int, what: str, kind: str) -> bytes:
        """`what`: "map" or "curve"; `kind`: "svg" or "png"."""


class Compared(Protocol):
    """One scan: Dice and HD95 of both models against the annotator's mask, and Dice of one model against the other."""

    @property
    def task(self) -> int: ...
    @property
    def first(self) -> float | None: ...
    @property
    def second(self) -> float | None: ...
    @property
    def agreement(self) -> float: ...
    @property
    def first_hd95(self) -> float | None: ...
    @property
    def second_hd95(self) -> float | None: ...
    @property
    def unit(self) -> str: ...
    @property
    def truth_empty(self) -> bool: ...
    @property
    def first_empty(self) -> bool: ...
    @property
    def second_empty(self) -> bool: ...
    @property
    def first_labels(self) -> Mapping[str, LabelScore]: ...
    @property
    def second_labels(self) -> Mapping[str, LabelScore]: ...


def create_page(data: Data, openapi: Callable[[], Json]) -> APIRouter:
    """All views of the page, to be included in the application next to the JSON API.

    openapi  the description of the JSON API, for /docs

    Errors are raised as `HTTPException` and `ScanqueueError`. The application must keep headers that an answer
    already has, such as its Content-Security-Policy.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def index(request: Request) -> Response:
        projects = data.projects()
        if len(projects) == 1 and "all" not in request.query_params:
            return RedirectResponse(f"projects/{projects[0]['project']}", 307)
        return render(request, "index.html", projects=projects)

    @router.get("/notice")
    def notice(request: Request) -> Response:
        return render(request, "notice.html")

    @router.get("/docs")
    def docs(request: Request) -> Response:
        return render(request, "docs.html", **reference.read(openapi()))

    @router.get("/projects/{project}/")
    @router.get("/projects/{project}/{view}/")
    def slash(project: Project, view: str = "") -> Response:
        return RedirectResponse(f"../{view or project}", 308)

    @router.get("/assets/{name}")
    def asset(request: Request, name: str) -> Response:
        return asset_answer(request, name)

    _add_views(router, data)
    _add_model_views(router, data)
    _add_pictures(router, data)
    return router


def _add_views(router: APIRouter, data: Data) -> None:
    @router.get("/projects/{project}")
    def now(request: Request, project: Project, problems: int = PROBLEMS) -> Response:
        return render(
            request,
            "now.html",
            _known(data.status(project), project),
            workers=data.workers(project)["workers"],
            changes=data.changes(project)["changes"][:CHANGES],
            listed=max(problems, PROBLEMS),
            named=FEW if problems <= PROBLEMS else problems,
            more=PROBLEMS,
        )

    @router.get("/projects/{project}/map")
    def on_map(request: Request, project: Project) -> Response:
        return render(request, "map.html", _known(data.brief(project), project), evaluates=True)

    @router.get("/projects/{project}/queue")
    def queue(request: Request, project: Project, count: int = CARDS) -> Response:
        status, found = _known(data.brief(project), project), data.queue(project)
        shown = {"waiting": found["queue"], "drawn_by": found["model"], "count": max(count, 1), "more": CARDS}
        shown["legend"] = data.legend(project, found["model"]) if found["model"] else {}
        return render(request, "queue.html", status, **shown)

    @router.get("/projects/{project}/activity")
    def activity(request: Request, project: Project) -> Response:
        status, found = _known(data.brief(project), project), data.activity(project)
        return render(request, "activity.html", status, activity=found, legend=data.legend(project))

    @router.get("/projects/{project}/settings")
    def settings(request: Request, project: Project) -> Response:
        status, found = _known(data.brief(project), project), data.settings(project)
        changes = data.changes(project)["changes"]
        return render(request, "settings.html", status, found=found, changes=changes, controls=formatting.CONTROLS)


def _add_model_views(router: APIRouter, data: Data) -> None:
    @router.get("/projects/{project}/curve")
    def curve(request: Request, project: Project, all: bool = False) -> Response:
        status, found = _known(data.brief(project), project), data.curve(project)
        sentence, panels = formatting.curve(found), panel_names(found)
        listed = None if all else LISTED
        return render(request, "curve.html", status, curve=found, summary=sentence, panels=panels, listed=listed)

    @router.get("/projects/{project}/models")
    def models(request: Request, project: Project, all: bool = False) -> Response:
        status, found = _known(data.brief(project), project), data.rounds(project, 0 if all else LISTED)
        return render(request, "models.html", status, rounds=found["rounds"], models=found["models"], of=found["of"])

    @router.get("/projects/{project}/compare")
    def compare(request: Request, project: Project, first: str = "", second: str = "") -> Response:
        status, models = _known(data.brief(project), project), data.rounds(project)["models"]
        scans = data.compare(project, first, second) if first and second and first != second else None
        of = len(data.held_out(project, first, second)) if scans else 0
        chosen: Json = {"first": first, "second": second, "scans": scans, "of": of}
        chosen["a"] = summarise([Recorded(one.first_labels, one.unit) for one in scans or ()])
        chosen["b"] = summarise([Recorded(one.second_labels, one.unit) for one in scans or ()])
        chosen["legend"] = data.legend(project, first, second) if scans else {}
        return render(request, "compare.html", status, models=models, **chosen)


def _add_pictures(router: APIRouter, data: Data) -> None:
    @router.get("/projects/{project}/scans/{task}.png")
    def picture(project: Project, task: Task, side: int = 160, model: str = "", quiet: bool = False) -> Response:
        """quiet  answer 204 instead of an error if there is no picture, so that a browser's console stays empty"""
        try:
            return file_answer(data.scan_picture(project, task, _side(side), model), "image/png")
        except Overloaded:
            raise
        except ScanqueueError:
            if not quiet:
                raise
            if model:  # the scan alone is better than nothing
                return picture(project, task, side, quiet=True)
            return Response(status_code=204, headers={"Cache-Control": "no-store"})

    @router.get("/projects/{project}/compare/{task}.png")
    def difference(project: Project, task: Task, first: str, second: str, part: str = "difference") -> Response:
        if part not in PARTS:
            raise HTTPException(404, f"A comparison has no part {part!r}; choose one of {', '.join(PARTS)}.")
        return file_answer(data.difference(project, task, first, second, part), "image/png")

    @router.get("/projects/{project}/plots/{name}")
    def plot(project: Project, name: str) -> Response:
        if name not in PLOTS:
            raise HTTPException(404, f"There is no plot {name!r}; choose one of {', '.join(PLOTS)}.")
        _known(data.brief(project), project)
        what, _, kind = name.partition(".")
        return file_answer(data.plot(project, what, kind), PLOTS[name], f"project-{project}-{name}")


def _known(status: Json | None, project: int) -> Json:
    if status is None:
        raise HTTPException(404, texts.text("error.unknown_project", project=project))
    return status


def _side(side: int) -> int:
    return min(max(side, SIDES[0]), SIDES[1])
