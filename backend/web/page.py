"""The web page: every view as HTML, its pictures and its assets. Reads through `Data`, changes nothing.

What the page changes it asks for as JSON (`backend/web/pages/page.js`), like any other program.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Request, Response
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader
from starlette.exceptions import HTTPException

from backend.errors import Overloaded, ScanqueueError
from backend.web import reference
from backend.web import texts as wording

PAGES = Path(__file__).with_name("pages")
ASSETS = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "settings.js": "text/javascript; charset=utf-8",
    "map.css": "text/css; charset=utf-8",
    "map.js": "text/javascript; charset=utf-8",
    "plotly.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
PLOTS = {
    "map.svg": "image/svg+xml",
    "map.png": "image/png",
    "curve.svg": "image/svg+xml",
    "curve.png": "image/png",
}
POLICY = (
    "default-src 'none'; script-src 'self'{more}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
EVER = "public, max-age=31536000, immutable"  # of an asset, whose address changes when it does
CARDS = 24  # scans of the queue that are shown at first, and more each time
PROBLEMS = 50  # of them that are listed at first
CHANGES = 8  # that the first view lists
SIDES = (32, 1024)  # pixels of the longest side of a picture, least and most
PARTS = ("image", "first", "second", "annotator", "difference")
VIEWS = (
    ("now", "Now"),
    ("map", "Map"),
    ("queue", "Queue"),
    ("curve", "Curve"),
    ("models", "Models"),
    ("settings", "Settings"),
)
Project = Annotated[int, InPath(ge=0, lt=10**15)]
Task = Annotated[int, InPath(ge=0, lt=2**63)]
Json = dict[str, Any]


class Data(Protocol):
    """What the page reads: the objects that the JSON interface answers with, and pictures as bytes.

    May raise any `ScanqueueError`; whoever serves the page turns it into an answer (see `refusal`).
    """

    def projects(self) -> list[Json]: ...

    def status(self, project: int) -> Json | None:
        """None when the project is not known here."""

    def brief(self, project: int) -> Json | None:
        """The head of every view: what `status` says and is had at once of any pool."""

    def queue(self, project: int) -> Json: ...
    def rounds(self, project: int) -> Json: ...
    def curve(self, project: int) -> Json: ...
    def settings(self, project: int) -> Json: ...
    def changes(self, project: int) -> Json: ...
    def workers(self, project: int) -> Json: ...
    def activity(self, project: int) -> Json:
        """May ask Label Studio, so it is read by a page of its own."""

    def held_out(self, project: int) -> Sequence[int]:
        """The tasks that models are compared on."""

    def compare(self, project: int, first: str, second: str) -> Sequence[Compared]:
        """The two models on the held-out scans, worst first."""

    def scan_picture(self, project: int, task: int, side: int, model: str) -> bytes:
        """PNG, the longest side `side` pixels; model "" for the scan alone, "annotator" for the submitted mask."""

    def difference(self, project: int, task: int, first: str, second: str, part: str) -> bytes:
        """PNG of one of `PARTS`."""

    def plot(self, project: int, what: str, kind: str) -> bytes:
        """`what`: "map" or "curve"; `kind`: "svg" or "png"."""


class Compared(Protocol):
    """One scan: Dice and HD95 of the two models against the annotator's mask, and Dice of one against the other."""

    @property
    def task(self) -> int: ...
    @property
    def first(self) -> float: ...
    @property
    def second(self) -> float: ...
    @property
    def agreement(self) -> float: ...
    @property
    def first_hd95(self) -> float: ...
    @property
    def second_hd95(self) -> float: ...
    @property
    def unit(self) -> str: ...


def create_page(data: Data, openapi: Callable[[], Json]) -> APIRouter:
    """Every view of the page, to be included in the application beside the JSON interface.

    openapi  the description of the JSON interface, for /docs

    Errors are raised as `HTTPException` and `ScanqueueError`. The headers that an answer already has, such as its
    Content-Security-Policy, are for the application to leave as they are.
    """
    router = APIRouter(include_in_schema=False)

    def known(project: int) -> Json:
        return _there(data.brief(project), project)

    @router.get("/")
    def index(request: Request) -> Response:
        projects = data.projects()
        if len(projects) == 1 and "all" not in request.query_params:
            return RedirectResponse(f"projects/{projects[0]['project']}", 307)
        return _html(request, "index.html", projects=projects)

    @router.get("/docs")
    def docs(request: Request) -> Response:
        return _html(request, "docs.html", **reference.read(openapi()))

    @router.get("/projects/{project}")
    def now(request: Request, project: Project, problems: int = PROBLEMS) -> Response:
        return _html(
            request,
            "now.html",
            _there(data.status(project), project),
            workers=data.workers(project)["workers"],
            changes=data.changes(project)["changes"][:CHANGES],
            listed=max(problems, PROBLEMS),
            more=PROBLEMS,
        )

    @router.get("/projects/{project}/")
    @router.get("/projects/{project}/{view}/")
    def slash(project: Project, view: str = "") -> Response:
        return RedirectResponse(f"../{view or project}", 308)

    @router.get("/projects/{project}/map")
    def on_map(request: Request, project: Project) -> Response:
        return _html(request, "map.html", known(project), evaluates=True)  # plotly makes its shaders with `Function`

    @router.get("/projects/{project}/queue")
    def queue(request: Request, project: Project, count: int = CARDS) -> Response:
        status, found = known(project), data.queue(project)
        shown = {"waiting": found["queue"], "drawn_by": found["model"], "count": max(count, 1), "more": CARDS}
        return _html(request, "queue.html", status, **shown)

    @router.get("/projects/{project}/activity")
    def activity(request: Request, project: Project) -> Response:
        return _html(request, "activity.html", known(project), activity=data.activity(project))

    @router.get("/projects/{project}/curve")
    def curve(request: Request, project: Project) -> Response:
        status, found = known(project), data.curve(project)
        return _html(request, "curve.html", status, curve=found, summary=wording.curve(found))

    @router.get("/projects/{project}/models")
    def models(request: Request, project: Project) -> Response:
        status, found = known(project), data.rounds(project)
        return _html(request, "models.html", status, rounds=found["rounds"], models=found["models"], found=found)

    @router.get("/projects/{project}/compare")
    def compare(request: Request, project: Project, first: str = "", second: str = "") -> Response:
        status, models = known(project), data.rounds(project)["models"]
        scans = data.compare(project, first, second) if first and second and first != second else None
        of = len(data.held_out(project)) if scans else 0
        return _html(request, "compare.html", status, models=models, first=first, second=second, scans=scans, of=of)

    @router.get("/projects/{project}/settings")
    def settings(request: Request, project: Project) -> Response:
        status, found = known(project), data.settings(project)
        changes = data.changes(project)["changes"]
        return _html(request, "settings.html", status, found=found, changes=changes, levers=wording.LEVERS)

    @router.get("/projects/{project}/scans/{task}.png")
    def picture(project: Project, task: Task, side: int = 160, model: str = "", quiet: bool = False) -> Response:
        """quiet  a picture that cannot be had is no error but nothing (204): a browser's console stays empty"""
        try:
            return _file(data.scan_picture(project, task, _side(side), model), "image/png")
        except Overloaded:
            raise
        except ScanqueueError:
            if not quiet:
                raise
            if model:  # better the scan alone than nothing
                return picture(project, task, side, quiet=True)
            return Response(status_code=204, headers={"Cache-Control": "no-store"})

    @router.get("/projects/{project}/compare/{task}.png")
    def difference(project: Project, task: Task, first: str, second: str, part: str = "difference") -> Response:
        if part not in PARTS:
            raise HTTPException(404, f"There is no part {part!r} of a comparison. There are: {', '.join(PARTS)}.")
        return _file(data.difference(project, task, first, second, part), "image/png")

    @router.get("/projects/{project}/plots/{name}")
    def plot(project: Project, name: str) -> Response:
        if name not in PLOTS:
            raise HTTPException(404, f"There is no plot {name!r}. There are: {', '.join(PLOTS)}.")
        known(project)
        what, _, kind = name.partition(".")
        return _file(data.plot(project, what, kind), PLOTS[name], f"project-{project}-{name}")

    @router.get("/assets/{name}")
    def asset(request: Request, name: str) -> Response:
        if name not in ASSETS:
            raise HTTPException(404, f"There is no asset {name!r}.")
        content, packed, version = _asset(name)
        headers = {
            "Content-Type": ASSETS[name],
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": EVER if request.query_params.get("v") == version else "no-cache",
        }
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed, headers=headers | {"Content-Encoding": "gzip"})
        return Response(content, headers=headers)

    return router


def _there(status: Json | None, project: int) -> Json:
    if status is None:
        raise HTTPException(
            404, f"Project {project} is not known here. Connect scanqueue in its Settings > Model in Label Studio."
        )
    return status


def refusal(request: Request, code: int, sentence: str) -> Response | None:
    """An error as a page with a way out; None when no page was asked for, but JSON, a picture or an asset."""
    path = request.url.path
    if path.startswith(("/api/", "/assets/")) or "text/html" not in request.headers.get("accept", ""):
        return None
    if sentence == "Not Found":  # of an address without a route
        sentence = "There is nothing at this address."
    answer = _html(request, "error.html", code=code, sentence=sentence)
    answer.status_code = code
    return answer


def _html(
    request: Request, template: str, status: Json | None = None, *, evaluates: bool = False, **more: Any
) -> Response:
    """A view. Relative addresses only, as a proxy may serve us under a path of its own."""
    root = _root(request)
    project = status["project"] if status else None
    text = (
        _environment()
        .get_template(template)
        .render(
            status=status,
            project=project,
            studio_url=status.get("studio_url") if status else None,
            root=root,
            base=f"{root}projects/{project}",
            api=f"{root}api/projects/{project}",
            view=template.removesuffix(".html"),
            views=VIEWS,
            asset=lambda name: f"{root}assets/{name}?v={_asset(name)[2]}",
            **more,
        )
    )
    headers = {
        "Content-Security-Policy": POLICY.format(more=" 'unsafe-eval'" if evaluates else ""),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(text, headers=headers)


def _file(content: bytes, kind: str, name: str = "") -> Response:
    """A picture or plot. Scans are patients': no browser keeps them on its disk."""
    headers = {"Content-Type": kind, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    if name:
        headers["Content-Disposition"] = f'inline; filename="{name}"'
    if kind == "image/svg+xml":  # opened by itself it is a document, and may be made from what a lab typed
        headers["Content-Security-Policy"] = (
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
        )
    return Response(content, headers=headers)


def _root(request: Request) -> str:
    """The way from the page that was asked for up to `/`."""
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
    return "../" * (raw.count(b"/") - 1)


def _side(side: int) -> int:
    return min(max(side, SIDES[0]), SIDES[1])


@lru_cache(maxsize=len(ASSETS))
def _asset(name: str) -> tuple[bytes, bytes, str]:
    """An asset, the same compressed, and a short name of its content. Read once."""
    content = _asset_path(name).read_bytes()
    return content, gzip.compress(content, 6, mtime=0), hashlib.sha256(content).hexdigest()[:12]


def warm() -> None:
    """Have the large script packed before somebody waits for it."""
    with suppress(HTTPException):
        _asset("plotly.js")


def _asset_path(name: str) -> Path:
    if name != "plotly.js":
        return PAGES / name
    found = importlib.util.find_spec("plotly")  # not imported: the page needs nothing but its script
    places = found.submodule_search_locations if found else None
    if not places:
        raise HTTPException(404, "The package plotly is not installed, so there is no map. Install scanqueue again.")
    return Path(places[0]) / "package_data" / "plotly.min.js"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """The templates. Whatever comes from data is escaped, in each of them."""
    environment = Environment(loader=FileSystemLoader(PAGES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    filters: Mapping[str, Callable[..., Any]] = wording.FILTERS
    environment.filters.update(filters)
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False, indent=2)
    environment.globals["training_curve"] = wording.training_curve
    return environment
