"""Templates to HTML, and assets. Addresses are relative, because a proxy may serve the page under a sub-path."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader
from starlette.exceptions import HTTPException

from backend.web import formatting, texts

PAGES = Path(__file__).with_name("pages")
ASSETS = {
    "page.css": "text/css; charset=utf-8",
    "texts.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "settings.js": "text/javascript; charset=utf-8",
    "map.css": "text/css; charset=utf-8",
    "map.js": "text/javascript; charset=utf-8",
    "plotly.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'{more}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
IMMUTABLE = "public, max-age=31536000, immutable"  # for an asset whose address names its content
TURNS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")  # of the direction of writing
VIEWS = ("now", "map", "queue", "curve", "models", "settings")


def render(
    request: Request,
    template: str,
    status: Mapping[str, Any] | None = None,
    *,
    evaluates: bool = False,
    **more: Any,
) -> Response:
    """A view as HTML, with the notice that `app.state.notice` returns, if it is set.

    status     the head of the project's views; None for views of no project
    evaluates  whether its scripts may compile code (plotly does for WebGL)
    """
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
            notice=getattr(request.app.state, "notice", str)(),
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


def error_page(request: Request, code: int, sentence: str) -> Response | None:
    """An error as a page with a way out; None when the request was for JSON, a picture or an asset."""
    path = request.url.path
    if path.startswith(("/api/", "/assets/")) or "text/html" not in request.headers.get("accept", ""):
        return None
    if sentence == "Not Found":  # Starlette's text for an address without a route
        sentence = texts.text("error.no_page")
    answer = render(request, "error.html", code=code, sentence=sentence)
    answer.status_code = code
    return answer


def file_answer(content: bytes, kind: str, name: str = "") -> Response:
    """A picture or plot. Scans are patient data: browsers must not store them."""
    headers = {"Content-Type": kind, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    if name:
        headers["Content-Disposition"] = f'inline; filename="{name}"'
    if kind == "image/svg+xml":  # opened directly, it is a document that may contain text entered by a lab
        headers["Content-Security-Policy"] = (
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
        )
    return Response(content, headers=headers)


def asset_answer(request: Request, name: str) -> Response:
    """Raises HTTPException (404) for an unknown asset."""
    if name not in ASSETS:
        raise HTTPException(404, f"There is no asset {name!r}.")
    content, packed, version = _asset(name)
    headers = {
        "Content-Type": ASSETS[name],
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": IMMUTABLE if request.query_params.get("v") == version else "no-cache",
    }
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(packed, headers=headers | {"Content-Encoding": "gzip"})
    return Response(content, headers=headers)


def warm() -> None:
    """Compress the large script before the first browser waits for it."""
    with suppress(HTTPException):
        _asset("plotly.js")


def _root(request: Request) -> str:
    """The relative path from the requested page up to `/`."""
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
    return "../" * (raw.count(b"/") - 1)


@lru_cache(maxsize=len(ASSETS))
def _asset(name: str) -> tuple[bytes, bytes, str]:
    """An asset, its gzip-compressed form, and a short hash of its content. Read once."""
    content = texts.script() if name == "texts.js" else _asset_path(name).read_bytes()
    return content, gzip.compress(content, 6, mtime=0), hashlib.sha256(content).hexdigest()[:12]


def _asset_path(name: str) -> Path:
    if name != "plotly.js":
        return PAGES / name
    found = importlib.util.find_spec("plotly")  # not imported: only its script is needed
    places = found.submodule_search_locations if found else None
    if not places:
        raise HTTPException(404, "The package plotly is not installed, so there is no map. Reinstall scanqueue.")
    return Path(places[0]) / "package_data" / "plotly.min.js"


def _straight(value: Any) -> Any:
    """A value whose characters that change the direction of writing are replaced."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.translate(TURNS)  # HTML stays HTML


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """The templates. They escape every value, and none can turn the words after it round."""
    environment = Environment(
        loader=FileSystemLoader(PAGES), autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_straight
    )
    filters: Mapping[str, Callable[..., Any]] = formatting.FILTERS
    environment.filters.update(filters)
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False, indent=2)
    environment.globals |= {"t": texts.text, "rich": texts.rich, "training_curve": formatting.training_curve}
    return environment
