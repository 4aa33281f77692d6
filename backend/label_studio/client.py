"""TODO: what this module promises."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from label_studio_sdk import LabelStudio
from label_studio_sdk.core.api_error import ApiError

from backend.errors import ProjectGone, StudioRefused, StudioUnavailable
from backend.workers.counters import CountCallback, discard

WRITE_SECONDS = 300  # for uploads and new tasks: a write that is given up too early must be looked for


@dataclass(frozen=True)
class Token:
    """What a token is, as far as its own text tells.

    kind     "personal" (a refresh token), "access" (made from one, valid five minutes), "legacy" or "none"
    expires  seconds since 1970; None when the token does not say
    """

    kind: str
    expires: float | None = None


def read_token(api_key: str) -> Token:
    """Read a token without asking anybody, and without checking its signature."""
    if not api_key:
        return Token("none")
    try:
        middle = api_key.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        expires = claims.get("exp")
        kind = "access" if claims.get("token_type") == "access" else "personal"
    except (IndexError, ValueError, AttributeError):
        return Token("legacy")
    return Token(kind, float(expires) if isinstance(expires, int | float) else None)


def redact_url(url: str) -> str:
    """An address without what may be secret in it: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path


def _path_pattern(path: str) -> str:
    """A path of the API without the numbers in it."""
    return re.sub(r"\d+", "ID", path)


def error_detail(body: Any) -> str:
    said = body.get("validation_errors") or body.get("detail") if isinstance(body, Mapping) else None
    return str(said or body)[:300].rstrip(".") + "."


class Client:
    """One Label Studio, as one user.

    url          of Label Studio, with or without a sub-path
    api_key      personal access token (a JWT that is exchanged for access tokens) or legacy token
    image_hosts  hosts besides Label Studio's own that scans may be fetched from, each with a port or without;
                 "name!" also when the name leads to an address of the local network
    timeout      seconds one request may take
    count        counts requests ("studio", what was asked, seconds) and failures ("studio_error", of which kind)

    Every method raises StudioUnavailable when trying again may help and StudioRefused when not.
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
        self.url = url.rstrip("/") + "/"  # the SDK refreshes tokens against the wrong path without it
        self._api_key = api_key
        self._image_hosts = frozenset(host.lower().rstrip("!") for host in image_hosts)
        self._local_hosts = frozenset(host.lower().rstrip("!") for host in image_hosts if host.endswith("!"))
        self._timeout = timeout
        self._count = count
        self._lock = threading.Lock()
        self._certificates = httpx.create_ssl_context()  # reading them takes longer than fetching a scan
        self._sdk: LabelStudio | None = None
        self.requests = 0

    def _client(self) -> LabelStudio:
        if not self._api_key:
            raise StudioRefused(
                "No token for Label Studio. Create one in Account & Settings > Personal Access Token and "
                "set SCANQUEUE_LABEL_STUDIO_API_KEY."
            )
        with self._lock:
            if self._sdk is None:
                try:
                    self._sdk = LabelStudio(  # type: ignore[no-untyped-call]
                        base_url=self.url, api_key=self._api_key, timeout=self._timeout
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
        """One request with the SDK's own authentication; JSON in, JSON out.

        Only reading is retried: a write that was answered late must not be done twice.
        """
        how: dict[str, Any] = {"params": params, "body": body, "content": content}
        how |= {"content_type": content_type, "timeout": timeout}
        status, answer = self._exchange(method, path, **how)
        if status == 401 and self._with_new_token():
            status, answer = self._exchange(method, path, **how)
        if status >= 400:
            raise self.refusal(status, answer, path)
        return answer

    def _with_new_token(self) -> bool:
        """After a 401: True when the next request comes with a new access token, so that it is worth another try.

        An access token lives five minutes by Label Studio's clock, and the SDK judges it by ours: either may jump.
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
        """Status and JSON of one answer, whatever the status; its text when an error is not JSON."""
        wrapper = self._client()._client_wrapper
        if body is not None:
            content = json.dumps(body).encode()
        self.requests += 1
        began = time.monotonic()
        try:
            response = wrapper.httpx_client.request(
                path,
                method=method,
                params=dict(params or {}),
                content=content,
                headers={"Content-Type": content_type} if content is not None else None,
                request_options={
                    "max_retries": 2 if method == "GET" else 0,
                    **({"timeout_in_seconds": timeout} if timeout is not None else {}),
                },
            )
        except ApiError as error:
            raise self.refusal(error.status_code or 0, error.body, path) from error
        except (httpx.HTTPError, ValueError) as error:  # ValueError: a token answer that is not JSON
            self._count("studio_error", "no answer")
            raise StudioUnavailable(
                f"Label Studio at {self.url} does not answer ({type(error).__name__}). "
                "It is asked again every minute; check that it runs and that SCANQUEUE_LABEL_STUDIO_URL is right."
            ) from error
        self._count("studio", f"{method} {_path_pattern(path)}", time.monotonic() - began)
        if response.status_code >= 400:
            self._count("studio_error", "failed" if response.status_code >= 500 else "refused")
        try:
            return response.status_code, response.json() if response.content else None
        except ValueError as error:
            if response.status_code >= 400:
                return response.status_code, response.text[:200]
            raise StudioUnavailable(
                f"What answers at {self.url} is not Label Studio, or a proxy before it: its answer to {path} is not "
                "JSON. It is asked again every minute; check SCANQUEUE_LABEL_STUDIO_URL."
            ) from error

    def refusal(self, status: int, body: Any, path: str) -> StudioUnavailable | StudioRefused:
        detail = error_detail(body)
        if status in (408, 409, 429) or status >= 500:
            return StudioUnavailable(
                f"Label Studio answered {status} to {path}: {detail} It is asked again every minute."
            )
        if status == 401:
            return StudioRefused(
                f"Label Studio refuses the token: {detail} Create a personal access token (Account & Settings) "
                "and set SCANQUEUE_LABEL_STUDIO_API_KEY; a legacy token works only where the organization "
                "allows it."
            )
        if status == 404 and path.startswith("/api/projects/"):
            return ProjectGone(
                "Label Studio has no such project for this token: it was deleted, or its organization is another. "
                "Nothing of ours was removed."
            )
        return StudioRefused(f"Label Studio answered {status} to {path}: {detail}")

    def version(self) -> str:
        """Label Studio's version, which it tells without a token.

        Raises StudioUnavailable when nothing or a server error comes back, StudioRefused when
        something else than Label Studio answers.
        """
        self.requests += 1
        try:
            with httpx.Client(timeout=min(self._timeout, 10.0), verify=self._certificates) as client:
                response = client.get(self.url + "api/version/")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise StudioUnavailable(f"Nothing answers at {self.url} ({type(error).__name__}).") from error
        if response.status_code >= 500:
            raise StudioUnavailable(f"{self.url} answers with the server error {response.status_code}.")
        try:
            return str(response.json()["release"])
        except (ValueError, TypeError, KeyError) as error:
            where = f" to {redact_url(response.headers['location'])}" if "location" in response.headers else ""
            raise StudioRefused(
                f"What answers at {self.url} is not Label Studio: {response.status_code}{where} for api/version/."
            ) from error

    def whoami(self) -> str:
        """The e-mail address of the user whose token this is."""
        return str(self._call("GET", "/api/current-user/whoami")["email"])
