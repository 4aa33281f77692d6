"""Label Studio's contract with an ML backend: /health, /setup, /predict, /webhook and /versions."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from backend.errors import StorageFull, StoreUnavailable
from backend.facts import DISCONNECTED, PENDING, version_name
from backend.records.projects import CALL_EXPECTED, CONNECTED
from backend.records.store import Store
from backend.web.bodies import MAX_PROJECT, BadRequest, WrongSecret, project_number, read_json

log = logging.getLogger("scanqueue.api")

CLICK_THREADS = 4  # threads for smart tools, which wait for nothing else
OWN_THREADS = 16  # threads reserved for Label Studio, so that it never waits for the page


class RequestReconcile(Protocol):
    """Requests that a project, if known, is reconciled soon. Returns immediately.

    train  also request training now
    """

    def __call__(self, project: int, train: bool = False, /) -> None: ...


class Predict(Protocol):
    """One item {model_version, score, result} per task; never raises."""

    def __call__(self, project: int, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]: ...


class Correct(Protocol):
    """{model_version, score, result} for the prompts of a smart tool, `params.context`, on a task; never raises.

    label_config  of the project, as Label Studio sends it
    """

    def __call__(self, project: int, task: dict[str, Any], context: Any, label_config: Any, /) -> dict[str, Any]: ...


def no_correction(project: int, task: dict[str, Any], context: Any, label_config: Any) -> dict[str, Any]:
    """Smart tools get nothing."""
    return _no_masks([task])[0]


@dataclass(frozen=True)
class _Setup:
    """The facts about a project in a /setup request."""

    project: int
    backend_url: str
    extra_params: str
    studio_url: str


def create_ml_backend(
    store: Store,
    request_reconcile: RequestReconcile,
    predict: Predict,
    *,
    studio_url: str,
    correct: Correct = no_correction,
) -> APIRouter:
    """studio_url  Label Studio's address in our settings, shown to people unless /setup sends a better one
    correct     answers smart tools
    """
    router = APIRouter(tags=["Label Studio"])
    own, clicks = CapacityLimiter(OWN_THREADS), CapacityLimiter(CLICK_THREADS)

    _add_health(router)

    @router.post("/setup")
    async def setup(request: Request) -> dict[str, str]:
        """Register the project. Label Studio calls this again and again, so it does no work."""
        body = await read_json(request)
        shown = _address_for_people(body.get("hostname"), studio_url)
        given = _Setup(project_number(body), str(request.base_url).rstrip("/"), _extra_params(body), shown)
        try:
            version = await to_thread.run_sync(_register, store, request_reconcile, given, limiter=own)
        except StoreUnavailable as error:  # Label Studio calls again
            log.warning("project %s: %s", given.project, error)
            version = PENDING
        return {"model_version": version}

    @router.post("/predict")
    async def predictions(request: Request) -> dict[str, Any]:
        """A mask for each task, and its score (the lower, the earlier it is served), or the answer to a smart tool."""
        body = await read_json(request)
        project, tasks = project_number(body), _tasks(body)
        try:
            if tasks and _prompted(body):  # always one task
                given = (project, tasks[0], body["params"]["context"], body.get("label_config"))
                return {"results": [await to_thread.run_sync(correct, *given, limiter=clicks)]}
            return {"results": await to_thread.run_sync(predict, project, tasks, limiter=own)}
        except (StoreUnavailable, StorageFull) as error:  # the annotator gets an empty task instead of an error
            log.warning("project %s: %s", project, error)
            return {"results": _no_masks(tasks)}

    @router.post("/webhook", status_code=201)
    async def webhook(request: Request) -> dict[str, str]:
        """Something changed in a project; check it soon. The content of the message is not trusted."""
        body = await read_json(request)
        project = project_number(body)
        only: set[int] | None = getattr(request.state, "only", None)
        if only is not None and project not in only:
            raise WrongSecret(project)
        # members of Label Studio can read a webhook's headers, so its secret does not start a training
        request_reconcile(project, only is None and body.get("action") == "START_TRAINING")
        return {"status": "noted"}

    @router.get("/versions")
    async def versions() -> dict[str, list[str]]:
        """The model versions of all projects, newest first."""
        return {"versions": await run_in_threadpool(_versions, store)}

    return router


def _add_health(router: APIRouter) -> None:
    """/health for Label Studio (GET) and for monitors (HEAD, OPTIONS)."""

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "scanqueue"}

    @router.head("/health", include_in_schema=False)
    async def up() -> Response:
        return Response(media_type="application/json")

    @router.options("/health", include_in_schema=False)
    async def methods() -> Response:
        return Response(status_code=204, headers={"Allow": "GET, HEAD, OPTIONS"})


def _tasks(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Tasks whose `id` is a number that Label Studio can give, else None, and whose `data` is an object.

    Raises BadRequest.
    """
    tasks = body.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(t, dict) for t in tasks):
        raise BadRequest('"tasks" must be a list of tasks.')
    return [t | {"id": _known_number(t.get("id")), "data": _object(t.get("data"))} for t in tasks]


def _known_number(given: Any) -> int | None:
    return given if type(given) is int and 0 <= given < MAX_PROJECT else None


def _object(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}


def _prompted(body: dict[str, Any]) -> bool:
    """Whether /predict is asked by a smart tool, with what was drawn on the screen; `result` may be an empty list.

    An empty answer changes nothing on the screen; the stored mask would replace what was drawn.
    """
    params = body.get("params")
    context = params.get("context") if isinstance(params, dict) else None
    return isinstance(context, dict) and "result" in context


def _no_masks(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"model_version": PENDING, "score": 1.0, "result": []} for _ in tasks]


def _versions(store: Store) -> list[str]:
    rounds = {n for p in store.projects() for (n,) in store.round_columns(p, "n")}
    return [version_name(n) for n in sorted(rounds, reverse=True)] or [version_name(0)]


def _register(store: Store, request_reconcile: RequestReconcile, given: _Setup) -> str:
    """Store what changed since the last call; returns the version that Label Studio shows."""
    row = store.project(given.project)
    if row is None:
        store.add_project(given.project)
    fields = {"backend_url": given.backend_url, "extra_params": given.extra_params, "studio_url": given.studio_url}
    changed: dict[str, Any] = {k: v for k, v in fields.items() if row is None or row[k] != v}
    expected = row is not None and row["connected"] == CALL_EXPECTED
    try:
        if changed or expected:
            store.set_project(given.project, **changed, **({"connected": CONNECTED} if expected else {}))
        if changed or (row is not None and row["phase"] == DISCONNECTED and not expected):  # connected again
            request_reconcile(given.project)
    except StorageFull as error:
        if row is None:  # a known project can wait: Label Studio calls again
            raise
        log.warning("project %s: %s", given.project, error)
    latest = store.latest_round(given.project, served=True)
    return version_name(latest["n"]) if latest else PENDING


def _extra_params(body: dict[str, Any]) -> str:
    extra = body.get("extra_params")
    text = extra if isinstance(extra, str) else json.dumps(extra) if extra else ""
    if "\0" in text or not _encodable(text):  # databases store neither
        raise BadRequest('"extra_params" contains invalid characters.')
    return text


def _encodable(text: str) -> bool:
    """False for half a surrogate pair, which JSON can contain but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _address_for_people(reported: Any, ours: str) -> str:
    """Label Studio's address for people: the reported one, unless only its own machine can reach that."""
    try:
        parts = urlsplit(reported if isinstance(reported, str) else "")
    except ValueError:
        return ours
    name = urlsplit(ours).hostname or ""
    inner = "." not in name and ":" not in name and name != "localhost"  # a compose service, unknown to browsers
    local = (parts.hostname or "localhost") in ("localhost", "127.0.0.1", "0.0.0.0", "::1")
    written = (parts.netloc + parts.path).isascii() and (parts.netloc + parts.path).isprintable()
    good = parts.scheme in ("http", "https") and bool(parts.hostname) and written and (inner or not local)
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/") if good else ours
