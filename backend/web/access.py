"""Access control: credentials, webhook secrets, body sizes, and requests made by pages of other sites."""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from backend.errors import ScanqueueError, StoreUnavailable
from backend.facts import SECRET_HEADER
from backend.settings import Settings
from backend.web.bodies import TooLarge, size_limit
from backend.web.guesses import Guesses, TooManyGuesses

log = logging.getLogger("scanqueue.api")

LOOKUP_TIMEOUT = 0.5  # seconds that a webhook with an unknown secret may wait for the database
LOOKUP_INTERVAL = 0.2  # minimum seconds between two such lookups, however many webhooks arrive
FRESH = 60.0  # seconds after which used secrets are read again in the background


class Secrets:
    """The webhook secrets of all projects, in memory: a webhook never waits long for the database.

    read  loads them from the database, by project
    """

    def __init__(self, read: Callable[[], Mapping[int, str]]) -> None:
        self._read = read
        self._known: Mapping[int, str] = {}
        self._reading: Future[None] | None = None
        self._started = -FRESH
        self._error: ScanqueueError | None = None

    async def projects(self, secret: str) -> set[int]:
        """The projects with this secret; an unknown secret costs one database lookup with a short timeout.

        Raises StoreUnavailable when the database does not answer in time.
        """
        found = self._with(secret)
        if found:
            if time.monotonic() - self._started > FRESH:
                self.renew()
            return found
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self.renew())), LOOKUP_TIMEOUT)
        except TimeoutError:
            raise StoreUnavailable(
                "The database does not answer in time, so this secret cannot be checked. Try again, and check that "
                "the database is running."
            ) from None
        if self._error is not None:
            raise self._error
        return self._with(secret)

    def _with(self, secret: str) -> set[int]:
        # compare with all of them: the time taken must not tell which one matched
        known = [(hmac.compare_digest(secret.encode(), s.encode()), p) for p, s in self._known.items()]
        return {project for same, project in known if same}

    def renew(self) -> Future[None]:
        """Read the secrets again, unless this is in progress or was just done. Call only from the event loop."""
        reading = self._reading
        if reading is None or (reading.done() and time.monotonic() - self._started >= LOOKUP_INTERVAL):
            self._started = time.monotonic()
            self._reading = reading = Future()
            threading.Thread(target=self._fetch, args=(reading,), daemon=True).start()
        return reading

    def _fetch(self, reading: Future[None]) -> None:
        try:
            self._known, self._error = dict(self._read()), None
        except ScanqueueError as error:
            self._error = error
        except Exception:
            log.exception("the webhook secrets cannot be read")
            self._error = StoreUnavailable("The webhook secrets cannot be read; see the scanqueue log for details.")
        finally:
            reading.set_result(None)


async def refused(request: Request, settings: Settings, secrets: Secrets, guesses: Guesses) -> Response | None:
    """The answer to a rejected request, else None. Decides without reading the body."""
    try:
        open_to_all = request.url.path == "/health" or not settings.user
        if not (open_to_all or await _allowed(request, settings, secrets, guesses)):
            answer = error_answer(401, "Wrong or missing credentials; see SCANQUEUE_USER and SCANQUEUE_PASSWORD.")
            answer.headers["WWW-Authenticate"] = 'Basic realm="scanqueue"'
            return answer
    except TooManyGuesses as error:
        answer = error_answer(429, str(error))
        answer.headers["Retry-After"] = str(error.seconds)
        return answer
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        return error_answer(400, "The Content-Length header is not a number.")
    if int(length) > size_limit(request):
        return error_answer(TooLarge.code, str(TooLarge(size_limit(request))))
    if _from_another_site(request):
        return error_answer(403, "Pages of other sites may not send this request.")
    return None


def error_answer(code: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=code)


def _from_another_site(request: Request) -> bool:
    """Whether a browser reports that a page of another site made the request. Programs send no such headers.

    A link on another site may open one of our pages, and nothing else.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        followed = request.headers.get("sec-fetch-mode") == "navigate"
        followed &= request.headers.get("sec-fetch-dest") == "document" and request.method in ("GET", "HEAD")
        return site not in ("none", "same-origin") and not (followed and not request.url.path.startswith("/api/"))
    origin = request.headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    except ValueError:  # not a URL, such as "http://["
        return True


async def _allowed(request: Request, settings: Settings, secrets: Secrets, guesses: Guesses) -> bool:
    """Whether the request has Basic credentials or, for a webhook, the secret header that we gave Label Studio.

    Sets `request.state.only` to the projects that a secret belongs to. Secrets are too long to be guessed, so a webhook
    with the right one never waits. Raises TooManyGuesses.
    """
    try:
        if _has_credentials(request, settings, guesses):
            return True
    except TooManyGuesses:
        if not await _has_secret(request, secrets):
            raise
        return True
    return await _has_secret(request, secrets)


def _has_credentials(request: Request, settings: Settings, guesses: Guesses) -> bool:
    """Whether the request has the right Basic credentials. Raises TooManyGuesses."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            raw = base64.b64decode(given, validate=True)
        except ValueError:
            raw = b""
        given, right = _decoded(raw), f"{settings.user}:{settings.password}".encode()
        address = request.client.host if request.client is not None else ""
        return guesses.right(address, given, lambda: hmac.compare_digest(given.encode(), right))
    return False


async def _has_secret(request: Request, secrets: Secrets) -> bool:
    """Whether a webhook has a project's secret."""
    secret = request.headers.get(SECRET_HEADER, "")
    if request.url.path == "/webhook" and secret:
        request.state.only = await secrets.projects(secret)
        return bool(request.state.only)
    return False


def _decoded(raw: bytes) -> str:
    """Credentials as browsers encode them (UTF-8) or as Label Studio does (Latin-1)."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
