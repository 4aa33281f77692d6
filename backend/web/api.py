"""What Label Studio and programs ask over HTTP. Thin: read the request, one call, answer."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hmac
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Protocol
from urllib.parse import urlsplit

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from backend import __version__
from backend.errors import (
    BadSetting,
    NotKnown,
    Overloaded,
    ScanqueueError,
    StorageFull,
    StoreUnavailable,
    StudioUnavailable,
)
from backend.facts import PENDING, SECRET_HEADER, version_name
from backend.loop import audit as changes
from backend.records.store import Store
from backend.settings import Settings
from backend.web import metrics, status
from backend.web import schemas as contract
from backend.web.overview import Overview
from backend.web.page import create_page, refusal
from backend.workers.counters import CountCallback, discard

log = logging.getLogger("scanqueue.api")

BODY_BYTES = 64 * 2**20  # of /predict, which brings whole tasks with their annotations
SMALL_BODY_BYTES = 8 * 2**20  # of the others; 5,000 new tasks in one webhook are 2.4 MB
Number = Annotated[int, Path(ge=0, lt=10**15, description="The project's number in Label Studio.")]
PATIENCE = 1.0  # seconds after which Label Studio gives a webhook up
LOOK_UP = 0.5  # seconds that a webhook with an unknown secret may wait for the database
LOOKS_APART = 0.2  # seconds between two such looks, however many ask
OWN_THREADS = 16  # for Label Studio, which does not wait for what people look at
FRESH = 60.0  # seconds after which secrets that are in use are read again in the background
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Touch(Protocol):
    """Has a project, if there is such a one, looked at soon, and returns at once.

    wish  somebody wants a training now
    """

    def __call__(self, project: int, wish: bool = False, /) -> None: ...


class Predict(Protocol):
    """One item {model_version, score, result} per task; never raises."""

    def __call__(self, project: int, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]: ...


class BadRequest(Exception):
    """The request cannot be understood; the text says why."""

    code = 400


def create_api(
    settings: Settings,
    store: Store,
    touch: Touch,
    predict: Predict,
    *,
    overview: Overview | None = None,
    waiting: Callable[[], int] | None = None,
    count: CountCallback = discard,
) -> FastAPI:
    """The HTTP application.

    overview what people are shown; without it there is no page, and nothing of the JSON that it takes
    waiting  how many jobs wait for a worker, for /metrics
    note     counts the requests, for /metrics too
    """
    secrets = Secrets(store.secrets)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        secrets.renew()  # so that they are known should the database hang before the first webhook
        yield

    app = FastAPI(
        title="scanqueue",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # they would lead out of a sub-path
        lifespan=lifespan,
    )
    app.include_router(_for_label_studio(settings, store, touch, predict))
    app.include_router(_for_people(store, touch, settings.user))
    if overview is not None:
        app.include_router(_shown(store, overview))
        app.include_router(create_page(overview, lambda: app.openapi()))  # asked late: `contract` sets it

    @app.get("/metrics", tags=["monitoring"], response_class=PlainTextResponse)
    def measured() -> Response:
        """The state of every project for Prometheus; described in docs/metrics.md."""
        return Response(metrics.render(store, waiting), headers={"Content-Type": metrics.CONTENT_TYPE})

    contract.describe(app)
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=6)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.monotonic()
        try:
            answer = await _refused(request, settings, secrets) or await call_next(request)
        except ScanqueueError as error:  # the handlers below stand behind this
            answer = _explained(error)
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)  # pages say themselves what they may load
        route, took = _route(request), time.monotonic() - began
        count("http", f"{route} {answer.status_code}", took)
        if took > PATIENCE:
            count("http_slow", route)
        return answer

    @app.exception_handler(BadRequest)
    async def bad_request(request: Request, error: BadRequest) -> Response:
        return _refusal(request, error.code, str(error))

    @app.exception_handler(RequestValidationError)
    async def misread(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _refusal(request, 400, f"{first['loc'][-1]}: {first['msg']}.")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        answer = _refusal(request, error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(ScanqueueError)
    async def explained(request: Request, error: ScanqueueError) -> Response:
        answer = _explained(error)
        return refusal(request, answer.status_code, str(error)) or answer

    @app.exception_handler(Exception)
    async def unexplained(request: Request, error: Exception) -> Response:
        log.error("unexpected failure", exc_info=error)
        return _refusal(request, 500, "Unexpected failure; the log of scanqueue has the details.")

    return app


def _refusal(request: Request, code: int, text: str) -> Response:
    """A page for a browser that asked for one, JSON for programs."""
    return refusal(request, code, text) or _error(code, text)


def _explained(error: ScanqueueError) -> Response:
    if isinstance(error, StudioUnavailable | StoreUnavailable | StorageFull | Overloaded):
        return _error(503, str(error))
    return _error(404 if isinstance(error, NotKnown) else 400 if isinstance(error, BadSetting) else 422, str(error))


async def _refused(request: Request, settings: Settings, secrets: Secrets) -> Response | None:
    """The answer to a request that is not let in; nothing of its body has been read by then."""
    if request.url.path != "/health" and settings.user and not await _allowed(request, settings, secrets):
        answer = _error(401, "Wrong or missing credentials; see SCANQUEUE_USER and SCANQUEUE_PASSWORD.")
        answer.headers["WWW-Authenticate"] = 'Basic realm="scanqueue"'
        return answer
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        return _error(400, "The Content-Length is not a number.")
    if int(length) > _limit(request):
        return _error(_TooLarge.code, str(_TooLarge(_limit(request))))
    if _of_another_site(request):
        return _error(403, "A page of another site may not ask for this.")
    return None


def _route(request: Request) -> str:
    """Where a request was for, in one of a few words."""
    known = getattr(request.scope.get("route"), "path", "")
    return known or (request.url.path if ("post", request.url.path) in contract.BODIES else "other")


def _limit(request: Request) -> int:
    """Bytes that the body of a request may have."""
    return BODY_BYTES if request.url.path == "/predict" else SMALL_BODY_BYTES


def _of_another_site(request: Request) -> bool:
    """Whether a browser says that the request was made by somebody else's page. Programs say nothing.

    A link of another site may lead people to a page of ours, and to nothing else.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        followed = request.headers.get("sec-fetch-mode") == "navigate"
        followed &= request.headers.get("sec-fetch-dest") == "document" and request.method in ("GET", "HEAD")
        return site not in ("none", "same-origin") and not (followed and not request.url.path.startswith("/api/"))
    origin = request.headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    except ValueError:  # no address at all, such as "http://["
        return True


async def _allowed(request: Request, settings: Settings, secrets: Secrets) -> bool:
    """Basic credentials, or for the webhook the secret header that we gave Label Studio.

    A secret is noted in `request.state.only`: the projects that it may speak of.
    """
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            raw = base64.b64decode(given, validate=True)
        except ValueError:
            raw = b""
        if hmac.compare_digest(_spelled(raw).encode(), f"{settings.user}:{settings.password}".encode()):
            return True
    secret = request.headers.get(SECRET_HEADER, "")
    if request.url.path == "/webhook" and secret:
        request.state.only = await secrets.projects(secret)
        return bool(request.state.only)
    return False


class Secrets:
    """The webhook secrets of all projects, in memory: no webhook waits for the database, whatever it is at.

    read  asks the database for them, by project
    """

    def __init__(self, read: Callable[[], Mapping[int, str]]) -> None:
        self._read = read
        self._known: Mapping[int, str] = {}
        self._reading: Future[None] | None = None
        self._began = -FRESH
        self._error: ScanqueueError | None = None

    async def projects(self, secret: str) -> set[int]:
        """Those that this is the secret of; an unknown one costs a look at the database that is soon given up.

        Raises StoreUnavailable when the database did not answer by then.
        """
        found = self._with(secret)
        if found:
            if time.monotonic() - self._began > FRESH:
                self.renew()
            return found
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self.renew())), LOOK_UP)
        except TimeoutError:
            raise StoreUnavailable(
                "The database does not answer in time, so it is not known whose secret this is. Try again; check that "
                "it runs."
            ) from None
        if self._error is not None:
            raise self._error
        return self._with(secret)

    def _with(self, secret: str) -> set[int]:
        known = [(hmac.compare_digest(secret.encode(), s.encode()), p) for p, s in self._known.items()]  # all, for time
        return {project for same, project in known if same}

    def renew(self) -> Future[None]:
        """Have them read again, unless that is under way or was just done. To be called by the loop's thread only."""
        reading = self._reading
        if reading is None or (reading.done() and time.monotonic() - self._began >= LOOKS_APART):
            self._began = time.monotonic()
            self._reading = reading = Future()
            threading.Thread(target=self._fetch, args=(reading,), daemon=True).start()
        return reading

    def _fetch(self, reading: Future[None]) -> None:
        try:
            self._known, self._error = dict(self._read()), None
        except ScanqueueError as error:
            self._error = error
        except Exception:
            log.exception("the webhooks' secrets cannot be read")
            self._error = StoreUnavailable(
                "The webhooks' secrets cannot be read; the log of scanqueue has the details."
            )
        finally:
            reading.set_result(None)


def _spelled(raw: bytes) -> str:
    """Credentials as browsers encode them (UTF-8), or as Label Studio does (Latin-1)."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _for_label_studio(settings: Settings, store: Store, touch: Touch, predict: Predict) -> APIRouter:
    router = APIRouter(tags=["Label Studio"])
    own = CapacityLimiter(OWN_THREADS)

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "scanqueue"}

    @router.post("/setup")
    async def setup(request: Request) -> dict[str, str]:
        """Remember the project; called by Label Studio again and again, so it does no work."""
        body = await _json(request)
        project = _project(body)
        address = str(request.base_url).rstrip("/")
        extra = body.get("extra_params")
        text = extra if isinstance(extra, str) else json.dumps(extra) if extra else ""
        if "\0" in text or _has_half_a_character(text):  # no database takes either
            raise BadRequest('"extra_params" holds characters that are none.')

        def remember() -> str:
            row = store.project(project)
            if row is None:
                store.add_project(project)
            found = _address_for_people(body.get("hostname"), settings.label_studio_url)
            given = {"backend_url": address, "extra_params": text, "studio_url": found}
            changed = {k: v for k, v in given.items() if row is None or row[k] != v}
            try:
                if changed:
                    store.set_project(project, **changed)
                    touch(project)
            except StorageFull as error:  # of a project that is known Label Studio tells again and again
                if row is None:
                    raise
                log.warning("project %s: %s", project, error)
            latest = store.latest_round(project)
            return version_name(latest["n"]) if latest else PENDING

        try:
            return {"model_version": await to_thread.run_sync(remember, limiter=own)}
        except StoreUnavailable as error:  # Label Studio asks again and again
            log.warning("project %s: %s", project, error)
            return {"model_version": PENDING}

    @router.post("/predict")
    async def predictions(request: Request) -> dict[str, Any]:
        body = await _json(request)
        tasks = body.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(t, dict) for t in tasks):
            raise BadRequest('"tasks" must be a list of tasks.')
        project = _project(body)
        try:
            return {"results": await to_thread.run_sync(predict, project, tasks, limiter=own)}
        except (StoreUnavailable, StorageFull) as error:  # the annotator gets an empty task rather than an error page
            log.warning("project %s: %s", project, error)
            return {"results": [{"model_version": PENDING, "score": 1.0, "result": []} for _ in tasks]}

    @router.post("/webhook", status_code=201)
    async def webhook(request: Request) -> dict[str, str]:
        """Something happened in a project: have it looked at. What the message says is not believed."""
        body = await _json(request)
        project = _project(body)
        only: set[int] | None = getattr(request.state, "only", None)
        if only is not None and project not in only:
            raise _NotYours(project)
        # members of Label Studio can read a webhook's headers, so its secret has us look and no more
        touch(project, only is None and body.get("action") == "START_TRAINING")
        return {"status": "noted"}

    @router.get("/versions")
    async def versions() -> dict[str, list[str]]:
        def collect() -> list[str]:
            rounds = {r["n"] for p in store.projects() for r in store.rounds(p, picks=False)}
            return [version_name(n) for n in sorted(rounds, reverse=True)] or [version_name(0)]

        return {"versions": await run_in_threadpool(collect)}

    return router


def _known(store: Store, project: int) -> None:
    if store.project(project) is None:
        raise _Unknown(project)


def _for_people(store: Store, touch: Touch, account: str) -> APIRouter:
    """account: the user name that all people sign in with; "" when nobody has to."""
    router = APIRouter(prefix="/api/projects", tags=["projects"])
    user = account or "local"
    known = partial(_known, store)

    @router.get("")
    def projects() -> dict[str, Any]:
        return {"projects": [status.describe(store, p) for p in store.projects()]}

    @router.get("/{project}")
    def one(project: Number) -> dict[str, Any]:
        known(project)
        return status.describe(store, project) or {}

    @router.get("/{project}/map")
    def points(project: Number) -> dict[str, Any]:
        known(project)
        return {"scans": status.map_points(store, project)}

    @router.get("/{project}/queue")
    def waiting(project: Number) -> dict[str, Any]:
        known(project)
        return {"queue": status.queue(store, project)}

    @router.get("/{project}/rounds")
    def rounds(project: Number) -> dict[str, Any]:
        known(project)
        return {"rounds": status.round_list(store, project), "models": status.model_list(store, project)}

    def noted(project: int, number: int) -> dict[str, Any]:
        touch(project)
        return {"status": "noted", "change": number}

    async def given(request: Request) -> dict[str, Any]:
        """The body, sent as application/json: no page of another site can do that unasked."""
        _as_json(request)
        return await _json(request)

    async def change(project: int, make: Callable[[], int]) -> dict[str, Any]:
        def made() -> dict[str, Any]:
            known(project)
            return noted(project, make())

        return await run_in_threadpool(made)

    @router.post("/{project}/train", status_code=202)
    def train(project: Number, request: Request) -> dict[str, Any]:
        """Train now. Sent as application/json, which no page of another site can do unasked."""
        _as_json(request)
        known(project)
        return noted(project, changes.ask(store, project, user))

    @router.post("/{project}/activate", status_code=202)
    async def activate(project: Number, request: Request) -> dict[str, Any]:
        """Let another model draw the masks: {"version": "scanqueue-r2"}, as application/json."""
        version = str((await given(request)).get("version") or "")
        return await change(project, lambda: changes.activate(store, project, user, version))

    @router.post("/{project}/settings", status_code=202)
    async def set_overrides(project: Number, request: Request) -> dict[str, Any]:
        """Set settings of the project, {"alpha": 0.7}; null takes one back to what Label Studio says."""
        body = await given(request)
        return await change(project, lambda: changes.set_overrides(store, project, user, body))

    @router.post("/{project}/wishes", status_code=202)
    async def set_priorities(project: Number, request: Request) -> dict[str, Any]:
        """Have scans labelled "next", left "out", or in the usual order again: {"tasks": [1, 2], "wish": "next"}."""
        body = await given(request)
        tasks, wish = body.get("tasks"), body.get("wish")
        if not isinstance(tasks, list) or not all(type(t) is int and 0 <= t < 10**15 for t in tasks):
            raise BadRequest('"tasks" must be a list of numbers of tasks.')
        return await change(project, lambda: changes.set_priorities(store, project, user, tasks, str(wish)))

    @router.post("/{project}/undo", status_code=202)
    async def undo(project: Number, request: Request) -> dict[str, Any]:
        """Take a change back: {"change": 13}."""
        number = _whole(await given(request), "change")
        return await change(project, lambda: changes.undo(store, project, user, number))

    @router.post("/{project}/retry", status_code=202)
    async def retry(project: Number, request: Request) -> dict[str, Any]:
        """Have a scan that has a problem, or its annotation, read again at once: {"task": 7}."""
        task = _whole(await given(request), "task")
        return await change(project, lambda: changes.retry(store, project, user, task))

    return router


def _shown(store: Store, overview: Overview) -> APIRouter:
    """What is only there for people to look at."""
    router = APIRouter(prefix="/api", tags=["the page"])
    known = partial(_known, store)

    @router.get("/projects/{project}/atlas")
    def atlas(project: Number, request: Request) -> Response:
        """The map as columns: lists that are all as long as `task`."""
        known(project)
        packed = overview.packed_atlas(project)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(gzip.decompress(packed), media_type="application/json")
        headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return Response(packed, media_type="application/json", headers=headers)

    @router.get("/projects/{project}/curve")
    def curve(project: Number) -> dict[str, Any]:
        """The learning curve, with 95 % intervals; what annotators were shown, and how long they took."""
        known(project)
        return overview.curve(project)

    @router.get("/projects/{project}/compare")
    def compare(project: Number, first: str, second: str) -> dict[str, Any]:
        """Two models on the held-out scans, the worst first; Dice against the annotators, and of one with the other."""
        known(project)
        found = overview.compare(project, first, second)
        return {"compared": [asdict(one) for one in found], "held_out": len(overview.held_out(project))}

    @router.get("/projects/{project}/settings")
    def settings(project: Number) -> dict[str, Any]:
        """The settings in force, and where they come from."""
        known(project)
        return overview.settings(project)

    @router.get("/projects/{project}/preview")
    def preview(project: Number, request: Request) -> dict[str, Any]:
        """The head of the queue now, and as it would be with other settings; nothing is saved.

        Any setting of a project is a parameter: ?alpha=0.7&strategy=paper
        """
        known(project)
        return overview.preview(project, dict(request.query_params))

    @router.get("/projects/{project}/changes")
    def changed(project: Number) -> dict[str, Any]:
        """What people changed, newest first."""
        known(project)
        return overview.changes(project)

    @router.get("/projects/{project}/activity")
    def activity(project: Number) -> dict[str, Any]:
        """What was labelled lately and by whom, and what was begun, as far as Label Studio tells."""
        known(project)
        return overview.activity(project)

    @router.get("/projects/{project}/workers")
    def workers(project: Number) -> dict[str, Any]:
        """The workers that gave signs of life in the last minute."""
        known(project)
        return overview.workers(project)

    @router.get("/doctor")
    def doctor(project: Annotated[int | None, Query(ge=0, lt=10**15)] = None) -> dict[str, Any]:
        """The checks of `scanqueue doctor`, each with its cure; takes seconds."""
        if project is not None:
            known(project)
        return overview.doctor(project)

    return router


class _TooLarge(BadRequest):
    code = 413

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request is larger than {limit >> 20} MiB.")


class _NotYours(BadRequest):
    code = 403

    def __init__(self, project: int) -> None:
        super().__init__(
            f"This secret is not that of project {project}. Have the webhook of that project send its own; scanqueue "
            "sets it by itself."
        )


class _Unknown(BadRequest):
    code = 404

    def __init__(self, project: int) -> None:
        super().__init__(
            f"Project {project} is not known here. Connect scanqueue in its Settings > Model in Label Studio."
        )


def _as_json(request: Request) -> None:
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise BadRequest("Send this as application/json.")


async def _json(request: Request) -> dict[str, Any]:
    size, parts = 0, []
    async for part in request.stream():
        size += len(part)
        if size > _limit(request):
            raise _TooLarge(_limit(request))
        parts.append(part)
    try:
        body = json.loads(b"".join(parts) or b"{}")
    except (ValueError, RecursionError):
        raise BadRequest("The request is not JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest("The request must be a JSON object.")
    return body


def _whole(body: dict[str, Any], name: str) -> int:
    number = body.get(name)
    if type(number) is not int or not 0 <= number < (2**31 if name == "change" else 10**15):
        raise BadRequest(f'"{name}" must be a whole number.')
    return number


def _address_for_people(said: Any, ours: str) -> str:
    """Where people find Label Studio: what it says itself, unless that is only good on its own machine."""
    try:
        parts = urlsplit(said if isinstance(said, str) else "")
    except ValueError:
        return ours
    name = urlsplit(ours).hostname or ""
    inner = "." not in name and ":" not in name and name != "localhost"  # of a service, say, which no browser knows
    local = (parts.hostname or "localhost") in ("localhost", "127.0.0.1", "0.0.0.0", "::1")
    written = (parts.netloc + parts.path).isascii() and (parts.netloc + parts.path).isprintable()
    good = parts.scheme in ("http", "https") and bool(parts.hostname) and written and (inner or not local)
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/") if good else ours


def _has_half_a_character(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _project(body: dict[str, Any]) -> int:
    """The project's number from "4.1795404647" (setup, predict) or {"id": 4, ...} (webhook)."""
    given = body.get("project")
    if isinstance(given, dict):
        given = given.get("id")
    number = str(given).partition(".")[0]
    if not (number.isascii() and number.isdigit()) or len(number) > 15:
        raise BadRequest('"project" must name a Label Studio project, for example "4.1795404647".')
    return int(number)


def _error(code: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=code)
