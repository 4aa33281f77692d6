"""The HTTP application: routes, access control, headers and error answers."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import PlainTextResponse
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
from backend.records.store import Store
from backend.settings import Settings
from backend.web import metrics, schemas
from backend.web.access import Secrets, error_answer, refused
from backend.web.bodies import BadRequest
from backend.web.guesses import Guesses
from backend.web.ml_backend import Correct, Predict, RequestReconcile, create_ml_backend, no_correction
from backend.web.overview import Overview
from backend.web.page import create_page
from backend.web.project_api import create_change_api, create_state_api, create_view_api
from backend.web.rendering import error_page
from backend.workers.counters import CountCallback, discard

log = logging.getLogger("scanqueue.api")

PATIENCE = 1.0  # seconds after which Label Studio gives up on a webhook
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def create_api(
    settings: Settings,
    store: Store,
    request_reconcile: RequestReconcile,
    predict: Predict,
    *,
    correct: Correct = no_correction,
    overview: Overview | None = None,
    waiting: Callable[[], int] | None = None,
    count: CountCallback = discard,
) -> FastAPI:
    """The HTTP application.

    correct   answers smart tools
    overview  the data of the page; without it, there is neither a page nor its JSON
    waiting   returns the number of jobs that wait for a worker, for /metrics
    count     counts requests, for /metrics
    """
    secrets = Secrets(store.secrets)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        secrets.renew()  # loaded now, in case the database hangs before the first webhook arrives
        yield

    app = FastAPI(
        title="scanqueue",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # they would lead out of a sub-path
        lifespan=lifespan,
    )
    app.include_router(
        create_ml_backend(store, request_reconcile, predict, studio_url=settings.label_studio_url, correct=correct)
    )
    app.include_router(create_state_api(store))
    app.include_router(create_change_api(store, request_reconcile, settings.user))
    if overview is not None:
        app.include_router(create_view_api(store, overview))
        app.include_router(create_page(overview, lambda: app.openapi()))  # called late: `schemas.describe` replaces it
        app.state.notice = overview.notice

    @app.get("/metrics", tags=["monitoring"], response_class=PlainTextResponse)
    def measured() -> Response:
        """The state of every project for Prometheus; described in docs/reference/metrics.md."""
        return Response(metrics.render(store, waiting), headers={"Content-Type": metrics.CONTENT_TYPE})

    schemas.describe(app)
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=6)
    _add_guard(app, settings, secrets, count)
    _add_error_handlers(app)
    return app


def _add_guard(app: FastAPI, settings: Settings, secrets: Secrets, count: CountCallback) -> None:
    """Admit or reject requests, add security headers, count answers."""
    guesses = Guesses()

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.monotonic()
        try:
            answer = await refused(request, settings, secrets, guesses) or await call_next(request)
        except ScanqueueError as error:  # raised before the error handlers can catch it
            answer = _explained(error)
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)  # pages set their own Content-Security-Policy
        route, took = _route(request), time.monotonic() - began
        count("http", f"{route} {answer.status_code}", took)
        if took > PATIENCE:
            count("http_slow", route)
        return answer


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(BadRequest)
    async def bad_request(request: Request, error: BadRequest) -> Response:
        return _error(request, error.code, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _error(request, 400, f"{first['loc'][-1]}: {first['msg']}.")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        answer = _error(request, error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(ScanqueueError)
    async def explained(request: Request, error: ScanqueueError) -> Response:
        answer = _explained(error)
        return error_page(request, answer.status_code, str(error)) or answer

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("unexpected failure", exc_info=error)
        return _error(request, 500, "Unexpected error; see the scanqueue log for details.")


def _error(request: Request, code: int, text: str) -> Response:
    """A page for a browser that asked for one, JSON for programs."""
    return error_page(request, code, text) or error_answer(code, text)


def _explained(error: ScanqueueError) -> Response:
    if isinstance(error, StudioUnavailable | StoreUnavailable | StorageFull | Overloaded):
        return error_answer(503, str(error))
    code = 404 if isinstance(error, NotKnown) else 400 if isinstance(error, BadSetting) else 422
    return error_answer(code, str(error))


def _route(request: Request) -> str:
    """The route of a request: one of a few words, because it becomes a metric label."""
    known = getattr(request.scope.get("route"), "path", "")
    return known or (request.url.path if ("post", request.url.path) in schemas.BODIES else "other")
