"""Authenticated requests to Label Studio: tokens, the SDK's HTTP client, and errors with a remedy."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any
from urllib.parse import urlsplit

import httpx
from label_studio_sdk.base_client import LabelStudioBase  # `LabelStudio` imports pandas, NLTK and Faker
from label_studio_sdk.core.api_error import ApiError

from backend.errors import ProjectGone, StudioRefused, StudioUnavailable
from backend.json_text import parse_json
from backend.label_studio.slow_answers import limited, too_slow
from backend.workers.counters import CountCallback, discard

RETRY_AFTER = (0.5, 1.0, None)  # seconds after which a read is repeated; then the next pass, in a minute, does it
WRITE_SECONDS = 300  # timeout for uploads and new tasks: after it, it is unknown whether the write arrived


@dataclass(frozen=True)
class Token:
    """The information in a token itself.

    kind     "personal" (a refresh token), "access" (obtained with one, valid for five minutes), "legacy" or "none"
    expires  seconds since 1970; None if the token does not contain it
    """

    kind: str
    expires: float | None = None


def read_token(api_key: str) -> Token:
    """Parse a token offline, without checking its signature."""
    if not api_key:
        return Token("none")
    try:
        middle = api_key.split(".")[1]
        claims = parse_json(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        expires = claims.get("exp")
        kind = "access" if claims.get("token_type") == "access" else "personal"
    except (IndexError, ValueError, AttributeError):
        return Token("legacy")
    return Token(kind, float(expires) if isinstance(expires, int | float) else None)


def one_host(netloc: str) -> str:
    """A host, with or without a port, in lower case; `localhost`, `127.0.0.1` and `::1` are one host.

    >>> one_host("LocalHost:80"), one_host("[::1]:80"), one_host("::1"), one_host("pacs.lab")
    ('127.0.0.1:80', '127.0.0.1:80', '127.0.0.1', 'pacs.lab')
    """
    return re.sub(r"^(localhost|\[?::1\]?)(?=:\d+$|$)", "127.0.0.1", netloc.lower())


def redact_url(url: str) -> str:
    """The URL without its user name, password and query, which may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path


def _fits(answer: Any, expects: type | UnionType | tuple[str, ...]) -> bool:
    if isinstance(expects, tuple):
        return isinstance(answer, dict) and all(name in answer for name in expects)
    return isinstance(answer, expects)


def _is_temporary(status: int) -> bool:
    return status in (408, 409, 429) or status >= 500


def _path_pattern(path: str) -> str:
    """An API path with its numbers replaced by ID."""
    return re.sub(r"\d+", "ID", path)


def error_detail(body: Any) -> str:
    """The reason in an error response, as one sentence."""
    reason = body.get("validation_errors") or body.get("detail") if isinstance(body, Mapping) else None
    return str(reason or body)[:300].rstrip(".") + "."


def limits(url: str) -> httpx.Limits:
    """How a client of Label Studio uses its connections.

    Without TLS, each request gets a new one. Label Studio's own server sends a response in two pieces, with Nagle's
    algorithm on. On a connection that is used again, the second piece waits 40 ms for our delayed acknowledgement,
    which is longer than most requests take.
    """
    return httpx.Limits(max_connections=100, max_keepalive_connections=0 if url.startswith("http:") else 20)


class Client:
    """One Label Studio server, accessed as one user.

    url          URL of Label Studio, with or without a sub-path
    api_key      personal access token (a JWT that is exchanged for access tokens) or legacy token
    image_hosts  other hosts from which scans may be fetched, with or without a port; a trailing "!" also allows
                 names that resolve to the local network
    timeout      seconds per request
    count        counts requests ("studio", method and path, seconds) and failures ("studio_error", kind)

    Every method raises StudioUnavailable if a retry may help, and StudioRefused if it cannot.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        image_hosts: Sequence[str] = (),
        timeout: float = 60.0,
        count: CountCallback = discard,
    ) -> None:
        self.url = url.rstrip("/") + "/"  # without the slash the SDK refreshes tokens at the wrong path
        self._api_key = api_key
        self._image_hosts = frozenset(one_host(host.rstrip("!")) for host in image_hosts)
        self._local_hosts = frozenset(one_host(host.rstrip("!")) for host in image_hosts if host.endswith("!"))
        self._timeout = timeout
        self._count = count
        self._lock = threading.Lock()
        self._certificates = httpx.create_ssl_context()  # loading them takes longer than fetching a scan
        self._sdk: LabelStudioBase | None = None
        self.requests = 0

    def _client(self) -> LabelStudioBase:
        if not self._api_key:
            raise StudioRefused(
                "No token for Label Studio. Create one in Account & Settings > Personal Access Token and "
                "set SCANQUEUE_LABEL_STUDIO_API_KEY."
            )
        with self._lock:
            if self._sdk is None:
                http = limited(httpx.Client(timeout=self._timeout, follow_redirects=True, limits=limits(self.url)))
                try:
                    self._sdk = LabelStudioBase(
                        base_url=self.url, api_key=self._api_key, timeout=self._timeout, httpx_client=http
                    )
                except ApiError as error:
                    raise StudioRefused(f"The token is not usable: {error_detail(error.body)}") from error
            return self._sdk

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        content: bytes | None = None,
        content_type: str = "application/json",
        timeout: int | None = None,
    ) -> Any:
        """Send one request with the SDK's authentication; JSON in, JSON out.

        Only reads are retried: a write whose response was lost must not be repeated.
        """
        how: dict[str, Any] = {"params": params, "body": body, "content": content}
        how |= {"content_type": content_type, "timeout": timeout}
        status, answer = self._exchange(method, path, **how)
        if status == 401 and self._with_new_token():
            status, answer = self._exchange(method, path, **how)
        if status >= 400:
            raise self._refusal(status, answer, path)
        return answer

    def _read(
        self, path: str, expects: type | UnionType | tuple[str, ...], params: Mapping[str, Any] | None = None
    ) -> Any:
        """The JSON of a GET request. Raises StudioUnavailable if it is not `expects`: a type, or an object's keys."""
        answer = self._call("GET", path, params=params)
        if not _fits(answer, expects):
            raise StudioUnavailable(
                f"The server at {self.url} is not Label Studio, or a proxy answered for it: the response to {path} has "
                "other contents than expected. scanqueue retries every minute; check SCANQUEUE_LABEL_STUDIO_URL."
            )
        return answer

    def _with_new_token(self) -> bool:
        """After a 401: True if the next request uses a new access token, so that a retry may succeed.

        An access token is valid for five minutes by Label Studio's clock, but the SDK uses ours; either may jump.
        """
        if read_token(self._api_key).kind != "personal":
            return False
        with self._lock:
            self._sdk = None
        return True

    def _exchange(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        content: bytes | None = None,
        content_type: str = "application/json",
        timeout: int | None = None,
    ) -> tuple[int, Any]:
        """Status and JSON of a response, whatever the status; the text of an error response that is not JSON."""
        wrapper = self._client()._client_wrapper
        if body is not None:
            content = json.dumps(body).encode()
        self.requests += 1
        started = time.monotonic()
        try:
            for pause in RETRY_AFTER if method == "GET" else (None,):
                response = wrapper.httpx_client.request(
                    path,
                    method=method,
                    params=dict(params or {}),
                    content=content,
                    headers={"Content-Type": content_type} if content is not None else None,
                    request_options={  # the SDK would wait for as long as the answer asks it to
                        "max_retries": 0,
                        **({"timeout_in_seconds": timeout} if timeout is not None else {}),
                    },
                )
                if pause is None or not _is_temporary(response.status_code):
                    break
                time.sleep(pause)
        except ApiError as error:
            raise self._refusal(error.status_code or 0, error.body, path) from error
        except (httpx.HTTPError, ValueError) as error:  # ValueError: the token response is not JSON
            self._count("studio_error", "no answer")
            if slow := too_slow(error):
                raise StudioUnavailable(
                    f"Label Studio at {self.url} answers too slowly to {path}: {slow}. scanqueue retries every minute; "
                    "check how busy Label Studio's machine is, and the network and proxies on the way to it."
                ) from error
            raise StudioUnavailable(
                f"Label Studio at {self.url} does not answer ({type(error).__name__}). scanqueue retries every "
                "minute; check that Label Studio is running and that SCANQUEUE_LABEL_STUDIO_URL is correct."
            ) from error
        self._count("studio", f"{method} {_path_pattern(path)}", time.monotonic() - started)
        if response.status_code >= 400:
            self._count("studio_error", "failed" if response.status_code >= 500 else "refused")
        try:
            return response.status_code, response.json() if response.content else None
        except (ValueError, RecursionError) as error:
            if response.status_code >= 400:
                return response.status_code, response.text[:200]
            raise StudioUnavailable(
                f"The server at {self.url} is not Label Studio, or a proxy answered for it: the response to {path} is "
                "not JSON. scanqueue retries every minute; check SCANQUEUE_LABEL_STUDIO_URL."
            ) from error

    def _refusal(self, status: int, body: Any, path: str) -> StudioUnavailable | StudioRefused:
        detail = error_detail(body)
        if _is_temporary(status):
            return StudioUnavailable(
                f"Label Studio answered {status} to {path}: {detail} scanqueue retries every minute."
            )
        if status == 401:
            return StudioRefused(
                f"Label Studio refuses the token: {detail} Create a personal access token (Account & Settings) "
                "and set SCANQUEUE_LABEL_STUDIO_API_KEY; legacy tokens work only if the organization allows them."
            )
        if status == 404 and path.startswith("/api/projects/"):
            return ProjectGone(
                "Label Studio has no such project for this token: it was deleted, or it belongs to another "
                "organization. scanqueue kept all its data."
            )
        return StudioRefused(f"Label Studio answered {status} to {path}: {detail}")

    def version(self) -> str:
        """Label Studio's version, which needs no token.

        Raises StudioUnavailable on no response or a server error, StudioRefused if the server is not Label Studio.
        """
        self.requests += 1
        try:
            with limited(httpx.Client(timeout=min(self._timeout, 10.0), verify=self._certificates)) as client:
                response = client.get(self.url + "api/version/")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise StudioUnavailable(f"Nothing answers at {self.url} ({type(error).__name__}).") from error
        if response.status_code >= 500:
            raise StudioUnavailable(f"{self.url} answers with the server error {response.status_code}.")
        try:
            return str(response.json()["release"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            where = f" to {redact_url(response.headers['location'])}" if "location" in response.headers else ""
            raise StudioRefused(
                f"The server at {self.url} is not Label Studio: {response.status_code}{where} for api/version/."
            ) from error

    def whoami(self) -> str:
        """The e-mail address of the token's user."""
        return str(self._read("/api/current-user/whoami", ("email",))["email"])
