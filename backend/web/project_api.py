"""Projects as JSON: their state, the changes people can make, and all data of the page."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from backend.loop import audit
from backend.records.store import Store
from backend.web import status
from backend.web.bodies import (
    MAX_PROJECT,
    UnknownProject,
    read_json,
    require_json_type,
    task_numbers,
    whole_number,
)
from backend.web.overview import Overview

Number = Annotated[int, Path(ge=0, lt=MAX_PROJECT, description="The project's number in Label Studio.")]


def _require(store: Store, project: int) -> None:
    if store.project(project) is None:
        raise UnknownProject(project)


def create_state_api(store: Store) -> APIRouter:
    """The state of projects."""
    router = APIRouter(prefix="/api/projects", tags=["projects"])
    require = partial(_require, store)

    @router.get("")
    def projects() -> dict[str, Any]:
        """The status of every project."""
        return {"projects": [status.describe(store, p) for p in store.projects()]}

    @router.get("/{project}")
    def one(project: Number) -> dict[str, Any]:
        """The status of one project."""
        require(project)
        return status.describe(store, project) or {}

    @router.get("/{project}/map")
    def points(project: Number) -> dict[str, Any]:
        """Every scan on the map, one object per scan."""
        require(project)
        return {"scans": status.map_points(store, project)}

    @router.get("/{project}/queue")
    def waiting(project: Number) -> dict[str, Any]:
        """The scans in the queue, in order, each with the reason why it was chosen.

        While the project's phase is "publishing", these are still the scans of the order before.
        """
        require(project)
        return {"queue": status.queue(store, project)}

    @router.get("/{project}/rounds")
    def rounds(project: Number) -> dict[str, Any]:
        """All rounds and models, oldest first."""
        require(project)
        return {"rounds": status.round_list(store, project), "models": status.model_list(store, project)}

    @router.get("/{project}/models/{version}")
    def model(project: Number, version: str) -> dict[str, Any]:
        """What one model scores on each of its held-out scans."""
        require(project)
        return {"version": version, "held_out": status.held_out(store, project, version)}

    return router


async def _json_body(request: Request) -> dict[str, Any]:
    require_json_type(request)
    return await read_json(request)


def _noted(
    store: Store, request_reconcile: Callable[[int], None], project: int, change: Callable[[], int]
) -> dict[str, Any]:
    """Make a change, which returns its number in the audit log, and request that the project is reconciled."""
    _require(store, project)
    number = change()
    request_reconcile(project)
    return {"status": "noted", "change": number}


def create_change_api(store: Store, request_reconcile: Callable[[int], None], account: str) -> APIRouter:
    """The changes people can make. Every change is recorded in the audit log.

    account  the user name with which everybody signs in; "" without a sign-in
    """
    router = APIRouter(prefix="/api/projects", tags=["projects"])
    user = account or "local"
    noted = partial(_noted, store, request_reconcile)

    @router.post("/{project}/train", status_code=202)
    def train(project: Number, request: Request) -> dict[str, Any]:
        """Train a model now. Send {} as application/json. 422 with the reason if the project cannot be trained."""
        require_json_type(request)
        status.check_trainable(store, project)
        return noted(project, lambda: audit.request_training(store, project, user))

    @router.post("/{project}/activate", status_code=202)
    async def activate(project: Number, request: Request) -> dict[str, Any]:
        """Make another model draw the masks: {"version": "scanqueue-r2"}."""
        version = str((await _json_body(request)).get("version") or "")
        return await run_in_threadpool(noted, project, lambda: audit.activate(store, project, user, version))

    @router.post("/{project}/settings", status_code=202)
    async def set_overrides(project: Number, request: Request) -> dict[str, Any]:
        """Override settings of the project: {"alpha": 0.7}. null restores the value from Label Studio."""
        body = await _json_body(request)
        return await run_in_threadpool(noted, project, lambda: audit.set_overrides(store, project, user, body))

    @router.post("/{project}/labels", status_code=202)
    async def rename_labels(project: Number, request: Request) -> dict[str, Any]:
        """Say what became of labels that the label config lost: {"Lung": "Lungs"}, or "" if it is no longer used."""
        body = await _json_body(request)
        return await run_in_threadpool(noted, project, lambda: audit.rename_labels(store, project, user, body))

    @router.post("/{project}/wishes", status_code=202)
    async def set_priorities(project: Number, request: Request) -> dict[str, Any]:
        """Put scans first ("next"), leave them out ("out"), or restore their usual place ("none").

        {"tasks": [1, 2], "wish": "next"}
        """
        body = await _json_body(request)
        tasks, wish = task_numbers(body), str(body.get("wish"))
        return await run_in_threadpool(noted, project, lambda: audit.set_priorities(store, project, user, tasks, wish))

    @router.post("/{project}/undo", status_code=202)
    async def undo(project: Number, request: Request) -> dict[str, Any]:
        """Undo a change: {"change": 13}."""
        number = whole_number(await _json_body(request), "change")
        return await run_in_threadpool(noted, project, lambda: audit.undo(store, project, user, number))

    @router.post("/{project}/retry", status_code=202)
    async def retry(project: Number, request: Request) -> dict[str, Any]:
        """Read a scan that has a problem, or its annotation, again at once: {"task": 7}; {"all": true} for all."""
        body = await _json_body(request)
        task = None if body.get("all") is True else whole_number(body, "task")
        return await run_in_threadpool(noted, project, lambda: audit.retry(store, project, user, task))

    return router


def create_view_api(store: Store, overview: Overview) -> APIRouter:
    """Data for the page only."""
    router = APIRouter(prefix="/api", tags=["the page"])
    require = partial(_require, store)

    @router.get("/projects/{project}/atlas")
    def atlas(project: Number, request: Request) -> Response:
        """The map as columns: lists with one entry per scan."""
        require(project)
        packed = overview.packed_atlas(project)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(gzip.decompress(packed), media_type="application/json")
        headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return Response(packed, media_type="application/json", headers=headers)

    @router.get("/projects/{project}/curve")
    def curve(project: Number) -> dict[str, Any]:
        """The learning curve with 95 % intervals, how much of the masks was kept, and the time per scan."""
        require(project)
        return overview.curve(project)

    @router.get("/projects/{project}/compare")
    def compare(project: Number, first: str, second: str) -> dict[str, Any]:
        """Two models on scans that neither has learnt from, worst first: Dice against the annotators and each other."""
        require(project)
        found = overview.compare(project, first, second)
        return {"compared": [asdict(one) for one in found], "held_out": len(overview.held_out(project, first, second))}

    @router.get("/projects/{project}/settings")
    def settings(project: Number) -> dict[str, Any]:
        """The settings in force, and where each value comes from."""
        require(project)
        return overview.settings(project)

    @router.get("/projects/{project}/preview")
    def preview(project: Number, request: Request) -> dict[str, Any]:
        """The first places of the order now and with other settings. Nothing is saved.

        Every project setting is a query parameter: ?alpha=0.7&strategy=paper
        """
        require(project)
        return overview.preview(project, dict(request.query_params))

    _add_log_routes(router, require, overview)
    return router


def _add_log_routes(router: APIRouter, require: Callable[[int], None], overview: Overview) -> None:
    @router.get("/projects/{project}/changes")
    def changes(project: Number) -> dict[str, Any]:
        """What people changed, newest first."""
        require(project)
        return overview.changes(project)

    @router.get("/projects/{project}/activity")
    def activity(project: Number) -> dict[str, Any]:
        """Recent labels with their annotators, and open drafts, as far as Label Studio reports them."""
        require(project)
        return overview.activity(project)

    @router.get("/projects/{project}/workers")
    def workers(project: Number) -> dict[str, Any]:
        """The workers that sent a heartbeat in the last minute."""
        require(project)
        return overview.workers(project)

    @router.get("/doctor")
    def doctor(project: Annotated[int | None, Query(ge=0, lt=MAX_PROJECT)] = None) -> dict[str, Any]:
        """The checks of `scanqueue doctor`, each with its fix. Takes seconds."""
        if project is not None:
            require(project)
        return overview.doctor(project)
