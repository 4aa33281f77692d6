"""Label Studio, spoken to through its SDK. The only module that knows its URLs and its JSON.

Everything is read in bulk: the number of requests does not depend on how many tasks a project
has, except that listings and imports are cut into chunks. Times, masks and versions mean what
`label-studio` 1.23 makes of them.
"""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import logging
import posixpath
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urljoin, urlsplit

import httpx
import numpy as np
from label_studio_sdk import LabelStudio
from label_studio_sdk.core.api_error import ApiError
from numpy.typing import NDArray

from backend.errors import ProjectGone, StudioRefused, StudioUnavailable, UnreadableMask, UnreadableScan
from backend.facts import SAMPLING, SECRET_HEADER, LabelConfig
from backend.formats.pixels import mask_to_polygons, merge_labels, polygon_to_mask
from backend.workers.counters import CountCallback, discard

log = logging.getLogger("scanqueue.studio")

PAGE = 5000
ANNOTATION_CHUNK = 25
# Label Studio applies `include` to the annotations inside a task as well
ANNOTATION_FIELDS = (
    "id,annotations,predictions,result,created_at,updated_at,was_cancelled,ground_truth,lead_time,completed_by,"
    "parent_prediction"
)
IMPORT_BYTES = 32 * 2**20  # well below Label Studio's DATA_UPLOAD_MAX_MEMORY_SIZE of 250 MiB
IMAGE_BYTES = 160 * 2**20  # 64 million pixels of 16 bits are 122 MiB, unpacked
IMAGE_SECONDS = 300.0  # for one image in all; `timeout` is for each of its pieces
UPLOAD_FILES = 100  # Label Studio answers 500 to more in one request
UPLOAD_BYTES = 64 * 2**20
WRITE_SECONDS = 300  # for uploads and new tasks: a write that is given up too early must be looked for
VIEW_TITLE = "scanqueue"
HIDDEN_COLUMNS = [  # by the "Default" tab that Label Studio's web page makes
    f"tasks:{name}"
    for name in (
        "inner_id",
        "annotations_results",
        "annotations_ids",
        "predictions_score",
        "predictions_model_versions",
        "predictions_results",
        "file_upload",
        "storage_filename",
        "created_at",
        "updated_at",
        "updated_by",
        "avg_lead_time",
        "draft_exists",
    )
]
FILE_PATHS = r"/(data|storage-data)/.|/(tasks|projects)/\d+/(resolve|presign)/?$"
DRAWN = ("brushlabels", "polygonlabels")
REDIRECTS = 5
NOT_THE_SCANS_FAULT = (401, 429, 502, 503, 504)

_LENGTH_BITS = np.array([3, 4, 8, 16])  # the four ways to write the length of a run
_RUN_LIMITS = np.array([8, 16, 256])  # the longest run of all but the last
_RUN = 2**16  # the longest of all; longer ones are cut
RLE_BYTES = 16 * 2**20  # of one brush region; pure noise on 4096 x 4096 pixels needs 14.5
REGION_PIXELS = 2 * 10**10  # regions of an annotation times pixels of its image: half a minute of drawing

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class TaskRow:
    """One task as the listing has it; `updated_at` is Label Studio's own text.

    annotated  how many annotations it has that count
    skipped    how often somebody skipped it
    """

    task: int
    data: Mapping[str, Any]
    updated_at: str
    annotated: int
    skipped: int


@dataclass(frozen=True)
class Other:
    """An annotation of a task beside the one that counts; `skipped`: somebody pressed Skip."""

    id: int
    created_at: str
    completed_by: int | None
    ground_truth: bool
    skipped: bool


@dataclass(frozen=True)
class Annotation:
    """The annotation that counts for a task: ground truth first, else the latest not cancelled.

    created_at  when it was submitted first, as `updated_at` in Label Studio's own text
    others      the task's other annotations, oldest first
    """

    task: int
    id: int
    updated_at: str
    result: Sequence[Mapping[str, Any]]
    lead_time: float | None
    completed_by: int | None
    shown_version: str  # of the prediction it was made from; "" when it was made from none
    created_at: str = ""
    ground_truth: bool = False
    others: tuple[Other, ...] = ()


@dataclass(frozen=True)
class Upload:
    """A file that was uploaded: `name` as we gave it, `address` for a task's data, `size` in bytes."""

    number: int
    name: str
    address: str
    size: int


@dataclass(frozen=True)
class ProjectPage:
    """What `GET /api/projects/P` says, as far as it concerns us; `annotations` and `skips` are those of all tasks."""

    title: str
    parsed_config: Mapping[str, Any]
    model_version: str
    sampling: str
    show_predictions: bool
    tasks: int
    maximum_annotations: int = 1
    annotations: int = 0
    skips: int = 0


@dataclass(frozen=True)
class Token:
    """What a token is, as far as its own text tells.

    kind     "personal" (a refresh token), "access" (made from one, valid five minutes), "legacy" or "none"
    expires  seconds since 1970; None when the token does not say
    """

    kind: str
    expires: float | None = None


class Studio:
    """One Label Studio, as one user.

    url          of Label Studio, with or without a sub-path
    api_key      personal access token (a JWT that is exchanged for access tokens) or legacy token
    image_hosts  hosts besides Label Studio's own that scans may be fetched from, each with a port or without;
                 "name!" also when the name leads to an address of the local network
    timeout      seconds one request may take
    note         counts requests ("studio", what was asked, seconds) and failures ("studio_error", of which kind)

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

    # -- requests ---------------------------------------------------------------------------

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
                    raise StudioRefused(f"The token is not usable: {_detail(error.body)}") from error
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
            raise self._refusal(status, answer, path)
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
            raise self._refusal(error.status_code or 0, error.body, path) from error
        except (httpx.HTTPError, ValueError) as error:  # ValueError: a token answer that is not JSON
            self._count("studio_error", "no answer")
            raise StudioUnavailable(
                f"Label Studio at {self.url} does not answer ({type(error).__name__}). "
                "It is asked again every minute; check that it runs and that SCANQUEUE_LABEL_STUDIO_URL is right."
            ) from error
        self._count("studio", f"{method} {_pattern(path)}", time.monotonic() - began)
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

    def _refusal(self, status: int, body: Any, path: str) -> StudioUnavailable | StudioRefused:
        detail = _detail(body)
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
            where = f" to {plain_url(response.headers['location'])}" if "location" in response.headers else ""
            raise StudioRefused(
                f"What answers at {self.url} is not Label Studio: {response.status_code}{where} for api/version/."
            ) from error

    def whoami(self) -> str:
        """The e-mail address of the user whose token this is."""
        return str(self._call("GET", "/api/current-user/whoami")["email"])

    # -- reading ----------------------------------------------------------------------------

    def project(self, project: int) -> ProjectPage:
        page = self._call("GET", f"/api/projects/{project}/")
        return ProjectPage(
            title=page.get("title") or "",
            parsed_config=page.get("parsed_label_config") or {},
            model_version=page.get("model_version") or "",
            sampling=page.get("sampling") or "",
            show_predictions=bool(page.get("show_collab_predictions")),
            tasks=int(page.get("task_number") or 0),
            maximum_annotations=int(page.get("maximum_annotations") or 1),
            annotations=int(page.get("total_annotations_number") or 0),
            skips=int(page.get("skipped_annotations_number") or 0),
        )

    def _tasks(self, project: int, include: str, query: Mapping[str, Any], **more: Any) -> Iterator[Any]:
        page, received = 1, 0
        while True:
            params = {
                "project": project,
                "page": page,
                "page_size": PAGE,
                "include": include,
                "query": json.dumps(query),
                **more,
            }
            answer = self._call("GET", "/api/tasks", params=params)
            yield from answer["tasks"]
            received += len(answer["tasks"])  # Label Studio may be set to give fewer than were asked for
            if received >= answer["total"] or not answer["tasks"]:
                return
            page += 1

    def tasks(self, project: int, since: str = "") -> list[TaskRow]:
        """Tasks changed after `since` (an `updated_at` of Label Studio), or all of them."""
        return list(self.each_task(project, since))

    def each_task(self, project: int, since: str = "") -> Iterator[TaskRow]:
        """As `tasks`, holding one page of the listing at a time."""
        query = _filters(("updated_at", "greater", "Datetime", since)) if since else {}
        for row in self._tasks(project, "id,data,updated_at,total_annotations,cancelled_annotations", query):
            yield TaskRow(
                task=row["id"],
                data=row.get("data") or {},
                updated_at=row["updated_at"],
                annotated=int(row.get("total_annotations") or 0),
                skipped=int(row.get("cancelled_annotations") or 0),
            )

    def task_ids(self, project: int) -> set[int]:
        return {row["id"] for row in self._tasks(project, "id", {})}

    def annotations(self, project: int, tasks: Sequence[int]) -> Iterator[Annotation | int]:
        """For each of `tasks` the annotation that counts, or the bare task id when there is none left."""
        for start in range(0, len(tasks), ANNOTATION_CHUNK):
            chunk = list(tasks[start : start + ANNOTATION_CHUNK])
            query = _filters(("id", "in_list", "List", chunk))
            rows = self._tasks(project, ANNOTATION_FIELDS, query, fields="all")
            found = {row["id"]: row for row in rows}
            for task in chunk:
                row = found.get(task, {})
                best = _counting(row.get("annotations") or ())
                if best is None:
                    yield task
                    continue
                versions = {p["id"]: p.get("model_version") or "" for p in row.get("predictions") or ()}
                rest = sorted((a for a in row["annotations"] if a is not best), key=lambda a: int(a["id"]))
                yield Annotation(
                    task=task,
                    id=best["id"],
                    updated_at=best["updated_at"],
                    result=best.get("result") or (),
                    lead_time=best.get("lead_time"),
                    completed_by=_user(best),
                    shown_version=versions.get(best.get("parent_prediction") or 0, ""),
                    created_at=best.get("created_at") or "",
                    ground_truth=bool(best.get("ground_truth")),
                    others=tuple(
                        Other(
                            id=a["id"],
                            created_at=a.get("created_at") or "",
                            completed_by=_user(a),
                            ground_truth=bool(a.get("ground_truth")),
                            skipped=bool(a.get("was_cancelled")),
                        )
                        for a in rest
                    ),
                )

    def drawn(
        self, project: int, tasks: Sequence[int], versions: Sequence[str]
    ) -> Iterator[tuple[int, Sequence[Mapping[str, Any]] | None]]:
        """For each of `tasks` the regions of its newest prediction with one of `versions`; None when it has none."""
        for start in range(0, len(tasks), ANNOTATION_CHUNK):
            chunk = list(tasks[start : start + ANNOTATION_CHUNK])
            query = _filters(("id", "in_list", "List", chunk))
            found = {row["id"]: row for row in self._tasks(project, "id,predictions", query, fields="all")}
            for task in chunk:
                shown = [p for p in found.get(task, {}).get("predictions") or () if p.get("model_version") in versions]
                newest = max(shown, key=lambda p: int(p["id"]), default=None)
                yield task, None if newest is None else newest.get("result") or ()

    def people(self) -> dict[int, str]:
        """The name, or else the e-mail address, of every user that this token may see, by number."""
        rows = self._call("GET", "/api/users/")
        rows = rows.get("results", []) if isinstance(rows, Mapping) else rows
        named = {u["id"]: f"{u.get('first_name') or ''} {u.get('last_name') or ''}".strip() for u in rows}
        return {u["id"]: named[u["id"]] or str(u.get("email") or u["id"]) for u in rows}

    def begun(self, project: int) -> list[int]:
        """Tasks of which somebody has a draft that was not submitted. Label Studio does not say who."""
        query = _filters(("draft_exists", "equal", "Boolean", True))
        return [row["id"] for row in self._tasks(project, "id", query)]

    def image(self, reference: str) -> bytes:
        """The bytes behind a task's image value: upload, local file, or a URL on an allowed host.

        Raises UnreadableScan when this scan cannot be had, StudioUnavailable when nothing can.
        """
        if not isinstance(reference, str) or not reference:
            raise UnreadableScan("the task has no image under the key that the label config names; re-import it.")
        url = _joined(self.url, reference)
        own = urlsplit(self.url)
        if reference.startswith("/") and own.path.rstrip("/") and not reference.startswith(own.path):
            url = self.url + reference.lstrip("/")
        renewed = False
        with httpx.Client(timeout=self._timeout, verify=self._certificates) as client:
            for _ in range(REDIRECTS):
                ours = self._allowed(url)
                self.requests += 1
                began = time.monotonic()
                try:
                    authorization = {"Authorization": self._authorization()} if ours else {}
                    address, name, extensions = (url, {}, {}) if ours else self._pinned(url)
                    asked = {"Accept-Encoding": "identity", **authorization, **name}
                    with client.stream("GET", address, headers=asked, extensions=extensions) as response:
                        if response.is_redirect:
                            url = _joined(url, response.headers.get("location", ""))
                            continue
                        if ours and response.status_code == 401 and not renewed and self._with_new_token():
                            renewed = True
                            continue
                        if ours and response.status_code in NOT_THE_SCANS_FAULT:
                            raise self._refusal(response.status_code, response.reason_phrase, "an image")
                        if ours and response.status_code == 403:
                            raise UnreadableScan(_forbidden(url, reference))
                        body = _body(response, reference)
                        if ours:
                            self._count("studio", "GET image", time.monotonic() - began)
                        return body
                except (httpx.HTTPError, ValueError) as error:  # ValueError: a token answer that is not JSON
                    if ours:
                        self._count("studio_error", "no answer")
                        raise StudioUnavailable(
                            f"Label Studio at {self.url} does not answer ({type(error).__name__})."
                        ) from error
                    raise UnreadableScan(
                        f"{urlsplit(url).netloc} does not answer ({type(error).__name__}); it is asked again later."
                    ) from error
                except ApiError as error:
                    raise self._refusal(error.status_code or 0, error.body, "/api/token/refresh/") from error
        raise UnreadableScan(f"more than {REDIRECTS} redirects; give the image's final address.")

    def _authorization(self) -> str:
        return str(self._client()._client_wrapper.get_headers()["Authorization"])

    def _allowed(self, url: str) -> bool:
        """True for Label Studio's own host, False for an allowed one; UnreadableScan for any other."""
        parts, own = urlsplit(url), urlsplit(self.url)
        loopback = ("localhost", "127.0.0.1", "::1")
        if "@" in parts.netloc or httpx.URL(url).host != (parts.hostname or "").lower():  # two readings of one address
            raise UnreadableScan(
                f"its image has the address {parts.path[:100]!r} with a user name or an odd host in it. "
                "Correct it, or import the image again."
            )
        if parts.scheme in ("http", "https"):
            same = parts.hostname == own.hostname or (parts.hostname in loopback and own.hostname in loopback)
            if same and parts.port == own.port and parts.scheme == own.scheme:
                if not _is_file(parts.path, own.path):
                    raise UnreadableScan(
                        f"its image has the address {parts.path[:100]!r}, which is not that of a file in Label Studio. "
                        "Import the image again."
                    )
                return True
            if (parts.hostname or "").lower() in self._image_hosts or parts.netloc.lower() in self._image_hosts:
                return False
        raise UnreadableScan(
            f"its image lies on {parts.netloc or parts.scheme!r}, which is neither Label Studio nor listed. "
            "If that host is to be trusted, add it to SCANQUEUE_IMAGE_HOSTS."
        )

    def _pinned(self, url: str) -> tuple[str, dict[str, str], dict[str, Any]]:
        """Address, headers and extensions that ask an allowed host at an IP address that was looked at.

        Whoever runs a name's DNS must not turn our requests on the local network, now or a moment later. An entry
        that is an IP address, or a name marked with "!", is taken as it is.
        """
        parts = urlsplit(url)
        host = parts.hostname or ""
        if _as_ip(host) or host in self._local_hosts or parts.netloc.lower() in self._local_hosts:
            return url, {}, {}
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            found = sorted(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))  # IPv4 first
        except (OSError, UnicodeError) as error:
            raise UnreadableScan(f"the host {host!r} is not found ({error}); it is asked again later.") from error
        addresses = [str(sockaddr[0]) for *_, sockaddr in found]
        local = [address for address in addresses if not _is_public(address)]
        if local:
            raise UnreadableScan(
                f"its image lies on {host!r}, whose address {local[0]} is one of the local network. If that is meant, "
                f"write {host + '!'!r} in SCANQUEUE_IMAGE_HOSTS."
            )
        target = httpx.URL(url).copy_with(host=addresses[0])
        return str(target), {"Host": parts.netloc}, {"sni_hostname": host}

    # -- importing --------------------------------------------------------------------------

    def task_count(self, project: int) -> int:
        """How many tasks the project has; the cheapest question of all."""
        return int(self._call("GET", f"/api/projects/{project}/", params={"include": "id,task_number"})["task_number"])

    def task_data(self, project: int, after: int = 0) -> Iterator[tuple[int, Mapping[str, Any], int]]:
        """Task number, data and how many annotations and skips, of every task numbered above `after`; ascending."""
        query = _filters(("id", "greater", "Number", after)) if after else {}
        include = "id,data,total_annotations,cancelled_annotations"
        for row in self._tasks(project, include, {**query, "ordering": ["tasks:id"]}):
            touched = int(row.get("total_annotations") or 0) + int(row.get("cancelled_annotations") or 0)
            yield int(row["id"]), row.get("data") or {}, touched

    def add_tasks(self, project: int, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Make a task of each data; their numbers, in this order.

        After StudioUnavailable nobody knows whether they were made: ask with `task_data` before trying again.
        """
        answer = self._call(
            "POST",
            f"/api/projects/{project}/import",
            params={"return_task_ids": "true"},
            content=json.dumps([{"data": dict(row)} for row in rows], allow_nan=False).encode(),
            timeout=WRITE_SECONDS,
        )
        return [int(number) for number in answer["task_ids"]]

    def delete_task(self, task: int) -> None:
        """Remove one task with all it holds."""
        self._call("DELETE", f"/api/tasks/{task}/")

    def upload(self, project: int, files: Sequence[tuple[str, bytes]]) -> list[Upload]:
        """Give Label Studio PNG files (name, content) without making tasks of them; in this order.

        At most UPLOAD_FILES and UPLOAD_BYTES together. After StudioUnavailable nobody knows which of them arrived:
        ask with `uploads` before trying again.
        """
        parts = [(f"file{number}", (name, data, "image/png")) for number, (name, data) in enumerate(files)]
        request = httpx.Request("POST", self.url, files=parts)
        answer = self._call(
            "POST",
            f"/api/projects/{project}/import",
            params={"commit_to_project": "false"},
            content=request.read(),
            content_type=request.headers["Content-Type"],
            timeout=WRITE_SECONDS,
        )
        numbers = [int(number) for number in answer["file_upload_ids"]]
        found = {one.number: one for one in self.uploads(project, numbers)}
        return [found[number] for number in numbers]

    def uploads(self, project: int, numbers: Sequence[int] | None = None) -> Iterator[Upload]:
        """Files that the token's user has uploaded to the project, whether tasks show them or not.

        numbers  these only; None: all of them
        """
        params = {"all": "true"} if numbers is None else {"ids": json.dumps(list(numbers))}
        root = urlsplit(self.url).path.rstrip("/")
        for row in self._call("GET", f"/api/projects/{project}/file-uploads", params=params):
            name = str(row["file"]).rsplit("/", 1)[-1]
            address = f"{root}/data/{row['file']}"
            yield Upload(int(row["id"]), name.partition("-")[2], address, int(row.get("size") or 0))

    def local_address(self, relative: str) -> str:
        """What task data say for a local file; `relative` to the document root, quoted."""
        return f"{urlsplit(self.url).path.rstrip('/')}/data/local-files/?d={relative}"

    def local_storages(self, project: int) -> list[str]:
        """The folders, as Label Studio names them, of the project's storages of local files."""
        rows = self._call("GET", "/api/storages/localfiles/", params={"project": project}) or ()
        return [str(row.get("path") or "") for row in rows]

    def document_root(self, project: int) -> str:
        """The folder, as Label Studio names it, below which it may serve local files; "" when it does not say."""
        said = self._storage_objection(project, "/")
        found = re.search(r'LOCAL_FILES_DOCUMENT_ROOT="([^"]+)"', said)
        return found[1] if found else ""

    def local_files_objection(self, project: int, folder: str) -> str:
        """Why Label Studio would not serve files of `folder` (its own name for it); "" when it would."""
        return self._storage_objection(project, folder)

    def _storage_objection(self, project: int, folder: str) -> str:
        path = "/api/storages/localfiles/validate"
        status, answer = self._exchange("POST", path, body=_local_storage(project, folder))
        if status == 401 and self._with_new_token():
            status, answer = self._exchange("POST", path, body=_local_storage(project, folder))
        if status < 400:
            return ""
        faults = answer.get("validation_errors") if isinstance(answer, Mapping) else None
        if status != 400 or not isinstance(faults, Mapping):
            raise self._refusal(status, answer, path)
        return " ".join(str(text) for texts in faults.values() for text in texts)

    def add_local_storage(self, project: int, folder: str) -> None:
        """Let Label Studio serve the files of `folder` (its own name for it) to whoever sees the project.

        Its pattern fits no file: "Sync" in Label Studio makes no tasks of the same pictures.
        """
        self._call("POST", "/api/storages/localfiles/", body=_local_storage(project, folder))

    # -- the queue --------------------------------------------------------------------------

    def published(self, project: int, version: str) -> dict[int, int]:
        """How many predictions of exactly `version` each task holds; tasks with none are absent."""
        counts = self._call("GET", f"/api/projects/{project}/model-versions/") or {}
        if version not in counts:
            return {}
        query = _filters(("predictions_model_versions", "contains", "List", [version]))
        rows = self._tasks(project, "id,predictions_model_versions", query)
        tasks = [r["id"] for r in rows if version in str(r["predictions_model_versions"]).split(",")]
        if counts[version] <= len(tasks):
            return dict.fromkeys(tasks, 1)
        return Counter(task for task, _ in self._prediction_ids(project, version))

    def _prediction_ids(self, project: int, version: str) -> list[tuple[int, int]]:
        query = _filters(("predictions_model_versions", "contains", "List", [version]))
        rows = self._tasks(project, "id,predictions", query, fields="all")
        return [
            (row["id"], p["id"])
            for row in rows
            for p in row.get("predictions") or ()
            if p.get("model_version") == version
        ]

    def remove_doubles(self, project: int, version: str) -> int:
        """Keep the oldest prediction of `version` per task; returns how many were removed."""
        seen: set[int] = set()
        removed = 0
        for task, prediction in sorted(self._prediction_ids(project, version)):
            if task in seen:
                self._call("DELETE", f"/api/predictions/{prediction}/")
                removed += 1
            seen.add(task)
        return removed

    def import_predictions(self, project: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add prediction rows {task, score, model_version, result}, cut by size into few requests.

        Raises StudioRefused when Label Studio stored fewer than were sent: it drops what it
        does not like without a word.
        """
        for chunk in _chunks([json.dumps(row, allow_nan=False).encode() for row in rows], IMPORT_BYTES):
            content = b"[" + b",".join(chunk) + b"]"
            answer = self._call("POST", f"/api/projects/{project}/import/predictions", content=content)
            created = int((answer or {}).get("created", 0))
            if created != len(chunk):
                raise StudioRefused(
                    f"Label Studio stored {created} of {len(chunk)} predictions and gave no reason. "
                    "The label config has probably just changed; it is read again and published anew."
                )

    def show_round(self, project: int, version: str) -> None:
        """Let annotators be served `version` by ascending score. Its predictions must exist already."""
        body = {"sampling": SAMPLING, "model_version": version, "show_collab_predictions": True}
        self._call("PATCH", f"/api/projects/{project}/", body=body)

    def has_view(self, project: int) -> bool:
        views = self._call("GET", "/api/dm/views/", params={"project": project})
        return any((v.get("data") or {}).get("title") == VIEW_TITLE for v in views)

    def add_view(self, project: int) -> None:
        """Add the Data Manager tab that shows the queue: unlabelled tasks by ascending score.

        The web page makes its "Default" tab only in a project that has no tab yet, and ours hides what is
        labelled: where nobody has opened the Data Manager so far, "Default" is made first.
        """
        if not self._call("GET", "/api/dm/views/", params={"project": project}):
            self._add_tab(project, {"title": "Default", "hiddenColumns": {"explore": HIDDEN_COLUMNS, "labeling": []}})
        score = ("tasks:predictions_score", "tasks:predictions_model_versions")
        shown = {
            "title": VIEW_TITLE,
            "ordering": ["tasks:predictions_score"],
            **_filters(("total_annotations", "equal", "Number", 0)),
            "hiddenColumns": {"explore": [c for c in HIDDEN_COLUMNS if c not in score], "labeling": []},
        }
        self._add_tab(project, shown)

    def _add_tab(self, project: int, shown: Mapping[str, Any]) -> None:
        same = {"type": "list", "target": "tasks", "columnsDisplayType": {}, "columnsWidth": {}, "gridWidth": 4}
        self._call("POST", "/api/dm/views/", body={"project": project, "data": {**same, **shown}})

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        hooks = self._call("GET", "/api/webhooks/", params={"project": project})
        return [hook for hook in hooks if hook.get("project") == project]

    def has_webhook(self, project: int, url: str, secret: str) -> bool:
        return any(_hook_is_right(hook, url, secret) for hook in self.webhooks(project))

    def set_webhook(self, project: int, url: str, secret: str) -> None:
        """Make the project's webhook to `url` exist, active, for every action, with our secret header.

        Label Studio creates one without credentials when a backend is connected; it is mended
        in place. Raises StudioRefused with the cure when Label Studio will not have the address.
        """
        body: dict[str, Any] = {
            "send_payload": True,
            "send_for_all_actions": True,
            "is_active": True,
            "actions": [],
        }
        same = [hook for hook in self.webhooks(project) if hook.get("url") == url]
        try:
            if not same:
                headers = {SECRET_HEADER: secret}
                more = {"project": project, "url": url, "headers": headers}
                self._call("POST", "/api/webhooks/", body=body | more)
                return
            headers = {**(same[0].get("headers") or {}), SECRET_HEADER: secret}
            self._call("PATCH", f"/api/webhooks/{same[0]['id']}/", body=body | {"url": url, "headers": headers})
        except StudioRefused as error:
            raise StudioRefused(f"The webhook to {url} could not be set: {error} {webhook_cure(url)}") from error

    def backends(self, project: int) -> list[dict[str, Any]]:
        """The ML backends connected to the project. Asking makes Label Studio call each of them."""
        return list(self._call("GET", "/api/ml", params={"project": project}) or ())

    def webhook_objection(self, url: str) -> str:
        """Why Label Studio would not have a webhook to `url`, in its own words; "" when it would.

        Nothing is created: the request also names an action that does not exist, so it is refused either way.
        """
        return self._objection("/api/webhooks/", {"url": url, "actions": ["SCANQUEUE_DOCTOR"]}, "actions")

    def backend_objection(self, url: str) -> str:
        """Why Label Studio would not have an ML backend at `url`; "" when it would. Nothing is created or called."""
        return self._objection("/api/ml", {"url": url, "timeout": "none"}, "timeout")

    def _objection(self, path: str, body: Mapping[str, Any], wrong: str) -> str:
        status, answer = self._exchange("POST", path, body=body)
        faults = answer.get("validation_errors") if isinstance(answer, Mapping) else None
        if status == 401:
            raise self._refusal(status, answer, path)
        if not isinstance(faults, Mapping):
            return _detail(answer)  # a blocked address, or a name that cannot be looked up
        if wrong not in faults:
            raise StudioRefused(f"Label Studio took an impossible request to {path}; this version is not known.")
        about = faults.get("url") or ()
        return str(about[0] if isinstance(about, list) and about else about or "")


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


def plain_url(url: str) -> str:
    """An address without what may be secret in it: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path


def webhook_cure(url: str) -> str:
    """What to do when Label Studio will not deliver to `url`."""
    host = urlsplit(url).hostname or ""
    if "." not in host and host != "localhost" and ":" not in host:
        return (
            f"Label Studio takes no webhook address whose host has no dot: give {host!r} an alias with one "
            f"(for example {host}.internal) and set SCANQUEUE_PUBLIC_URL to it."
        )
    return (
        "Label Studio blocks private addresses by default: start it with USE_DEFAULT_BANNED_SUBNETS=false and "
        "USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16 (or SSRF_PROTECTION_ENABLED=false)."
    )


# -- masks ------------------------------------------------------------------------------------


def read_mask(
    result: Sequence[Mapping[str, Any]], config: LabelConfig, height: int, width: int
) -> tuple[Mask, list[str]]:
    """The label map (height, width) that an annotation's regions draw, and remarks about it.

    Class i + 1 is `config.labels[i]`, 0 is background; where regions overlap the later one wins.
    Brush and polygon regions may be mixed. Regions of labels that the config no longer has are
    left out and remarked upon. Raises UnreadableMask when a region does not fit the image.
    """
    classes = {label: i + 1 for i, label in enumerate(config.labels)}
    remarks: list[str] = []
    if not isinstance(result, Sequence) or not all(isinstance(region, Mapping) for region in result):
        raise UnreadableMask("the annotation is not a list of regions. Delete it and annotate the task again.")
    drawn = [(i, r) for i, r in enumerate(result, start=1) if str(r.get("type")).lower() in DRAWN]
    if len(drawn) * height * width > REGION_PIXELS:
        raise UnreadableMask(
            f"{len(drawn):,} regions on {width} x {height} pixels are more than can be drawn; "
            f"at most {REGION_PIXELS // (height * width):,} are. Join regions of the same label."
        )

    def masks() -> Iterator[tuple[int, NDArray[np.bool_]]]:
        for number, region in drawn:
            kind = str(region["type"]).lower()
            value = region.get("value")
            names = value.get(kind) if isinstance(value, Mapping) else None
            label = str(names[0])[:80] if isinstance(names, list) and names else "(no label)"
            if not isinstance(value, Mapping) or label not in classes:
                remarks.append(
                    f"region {number} is labelled {label!r}, which the label config does not have; it was left out. "
                    "Add the label again, or relabel the region."
                )
                continue
            where = f"region {number} ({label!r})"
            size = (region.get("original_height"), region.get("original_width"))
            if size != (height, width):
                raise UnreadableMask(
                    f"{where} was drawn on {str(size[1])[:20]} x {str(size[0])[:20]} pixels, but the image has "
                    f"{width} x {height}. Delete the region and draw it again."
                )
            if kind == "brushlabels":
                yield classes[label], _decode_brush(value.get("rle"), height, width, where)
            else:
                try:
                    yield classes[label], polygon_to_mask(value.get("points") or (), height, width)
                except UnreadableMask as error:
                    raise UnreadableMask(f"{where}: {error}") from error

    return merge_labels(masks(), height, width), remarks  # one at a time: together they may be gigabytes


def _decode_brush(rle: Any, height: int, width: int, where: str) -> NDArray[np.bool_]:
    if isinstance(rle, list) and len(rle) > RLE_BYTES:
        raise UnreadableMask(
            f"{where} holds a brush mask of {len(rle):,} bytes; at most {RLE_BYTES:,} are read. "
            "Delete the region and draw it again."
        )
    try:
        if not isinstance(rle, list):
            raise ValueError
        return decode_brush(bytes(rle), height, width)
    except (ValueError, TypeError) as error:
        raise UnreadableMask(
            f"{where} holds a brush mask that does not fit its {width} x {height} pixels. "
            "Delete the region and draw it again."
        ) from error


def decode_brush(rle: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """The mask (height, width) that Label Studio's run lengths draw: where they are not fully transparent.

    The same as `label_studio_sdk`'s `brush.decode_rle`, which takes seconds for a noisy megapixel. Raises ValueError
    when they are damaged or of another size; nothing is allocated before that is checked.
    """
    count, bits = height * width * 4, len(rle) * 8
    if len(rle) < 8 or int.from_bytes(rle[:4], "big") != count:
        raise ValueError("another size")
    head = int.from_bytes(rle[4:8], "big")
    if head >> 27 != 7:
        raise ValueError("the values are not bytes")
    sizes = [(head >> shift & 15) + 1 for shift in (23, 19, 15, 11)]
    flat = np.empty(count, np.uint8)
    data = rle + bytes(8)
    at, done = 53, 0
    while done < count:
        window = int.from_bytes(data[at >> 3 : (at >> 3) + 8], "big") << (at & 7)  # 57 bits and more from `at` on
        size = sizes[window >> 61 & 3]
        length = (window >> (61 - size) & ((1 << size) - 1)) + 1
        end = done + length
        after = at + 3 + size
        at = after + (8 if window >> 63 & 1 else 8 * length)
        if at > bits or end > count:
            raise ValueError("truncated, or longer than announced")
        if window >> 63 & 1:
            flat[done:end] = window >> (53 - size) & 255
        else:
            values = int.from_bytes(data[after >> 3 : (at + 7) >> 3], "big") >> (-at & 7)
            flat[done:end] = np.frombuffer((values & ((1 << 8 * length) - 1)).to_bytes(length, "big"), np.uint8)
        done = end
    return np.asarray(flat[3::4].reshape(height, width) > 0)


def draw_mask(labelmap: Mask, labels: Sequence[str], config: LabelConfig, version: str) -> list[dict[str, Any]]:
    """Label Studio regions for a label map (H, W), class i + 1 being labels[i].

    Each label is drawn with the tag the config has for it, brush or polygon; classes whose label
    the config no longer has, and empty ones, are left out.
    """
    height, width = labelmap.shape
    regions: list[dict[str, Any]] = []
    for index, label in enumerate(labels, start=1):
        if label not in config.labels:
            continue
        mask = labelmap == index
        if not mask.any():
            continue
        tag = config.tag_of(label)
        common = {
            "from_name": tag.name,
            "to_name": tag.to_name,
            "type": f"{tag.kind}labels",
            "origin": "prediction",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
        }
        if tag.kind == "brush":
            rle = encode_brush(mask)
            value: dict[str, Any] = {"format": "rle", "rle": rle, "brushlabels": [label]}
            regions.append({"id": f"{version}-{index}", **common, "value": value})
        else:
            for part, points in enumerate(mask_to_polygons(mask)):
                value = {"points": np.round(points, 3).tolist(), "closed": True, "polygonlabels": [label]}
                regions.append({"id": f"{version}-{index}-{part}", **common, "value": value})
    return regions


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Label Studio's run lengths for a mask (H, W); inside is fully opaque.

    Byte for byte what `label_studio_sdk`'s `brush.mask2rle` gives for 0 and 255, without a Python step per run.
    Format: https://github.com/thi-ng/umbrella/blob/develop/packages/rle-pack/src/index.ts
    """
    flat = mask.astype(bool).ravel()
    last = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)  # of each run
    lengths = np.diff(last, prepend=-1) * 4  # a pixel is four equal values
    values = flat[last] * 255
    kinds = np.searchsorted(_RUN_LIMITS, lengths)
    pieces = -(-lengths // _RUN)  # of which all but the last of a run are full
    rests = lengths - (pieces - 1) * _RUN
    lengths = np.full(pieces.sum(), _RUN)
    lengths[np.cumsum(pieces) - 1] = rests
    kinds, values = np.repeat(kinds, pieces), np.repeat(values, pieces)

    # one code for each run, left-aligned in 32 bits: "repeated", kind, length - 1, value
    bits = _LENGTH_BITS[kinds]
    codes = (((4 + kinds) << bits | (lengths - 1)) << 8) | values
    widths = 3 + bits + 8
    padded = np.unpackbits((codes << (32 - widths)).astype(">u4").view(np.uint8)).reshape(-1, 32)
    runs = padded[np.arange(32) < widths[:, None]]
    head = np.frombuffer(f"{flat.size * 4:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}".encode(), np.uint8) - ord("0")
    end = np.zeros(8 - (head.size + runs.size) % 8, np.uint8)
    rle: list[int] = np.packbits(np.concatenate([head, runs, end])).tolist()
    return rle


# -- small things -----------------------------------------------------------------------------


def _counting(annotations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    valid = [a for a in annotations if not a.get("was_cancelled")]
    return max(valid, key=lambda a: (bool(a.get("ground_truth")), a["updated_at"], a["id"]), default=None)


def _user(annotation: Mapping[str, Any]) -> int | None:
    user = annotation.get("completed_by")
    number = user.get("id") if isinstance(user, Mapping) else user
    return None if number is None else int(number)


def _local_storage(project: int, folder: str) -> dict[str, Any]:
    return {
        "project": project,
        "path": folder,
        "title": "scanqueue import",
        "regex_filter": "^$",
        "use_blob_urls": True,
    }


def _hook_is_right(hook: Mapping[str, Any], url: str, secret: str) -> bool:
    return (
        hook.get("url") == url
        and bool(hook.get("is_active"))
        and bool(hook.get("send_for_all_actions"))
        and bool(hook.get("send_payload"))  # without it Label Studio does not even say which project it is about
        and (hook.get("headers") or {}).get(SECRET_HEADER) == secret
    )


def _filters(*items: tuple[str, str, str, Any]) -> dict[str, Any]:
    names = ("filter", "operator", "type", "value")
    rows = [dict(zip(names, (f"filter:tasks:{i[0]}", *i[1:]), strict=True)) for i in items]
    return {"filters": {"conjunction": "and", "items": rows}}


def _chunks(rows: Sequence[bytes], limit: int) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for row in rows:
        if chunk and size + len(row) > limit:
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += len(row)
    if chunk:
        yield chunk


def _pattern(path: str) -> str:
    """A path of the API without the numbers in it."""
    return re.sub(r"\d+", "ID", path)


def _is_file(path: str, root: str) -> bool:
    """Whether a path of Label Studio, below the sub-path `root`, is one that files are served from.

    Whoever may import a task chooses the path, and our token opens all of Label Studio's API.
    """
    plain = path
    while unquote(plain) != plain:
        plain = unquote(plain)
    if "\\" in plain or posixpath.normpath(plain).rstrip("/") != plain.rstrip("/") or not plain.startswith(root):
        return False
    return re.match(FILE_PATHS, "/" + plain.removeprefix(root)) is not None


def _as_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_public(address: str) -> bool:
    """Whether an IP address is one of the internet; IPv4 inside IPv6 counts as what it stands for."""
    ip = _as_ip(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = inner or ip
    return ip is not None and ip.is_global and not ip.is_multicast


def _joined(base: str, reference: str) -> str:
    """`reference` as an absolute address; UnreadableScan when it is none that could be asked for."""
    try:
        url = urljoin(base, reference)
        _ = urlsplit(url).port, httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise UnreadableScan(
            f"its image has the address {reference[:100]!r}, which is not a valid one ({error}). "
            "Correct it, or delete the task and import the image again."
        ) from error
    return url


def _name(reference: str) -> str:
    """What an image is called in messages: the query may hold a signature, or the path of a local file."""
    parts = urlsplit(reference)
    return parse_qs(parts.query).get("d", [parts.path])[0].rsplit("/", 1)[-1][:80]


def _forbidden(url: str, reference: str) -> str:
    """Why Label Studio answers 403 to a file, which it never does for a wrong token."""
    what = f"its image {_name(reference)!r} may not be read: the server answered 403. "
    if urlsplit(url).path.rstrip("/").endswith("/data/local-files"):
        return (
            what + "Label Studio does not serve local files: start it with LOCAL_FILES_SERVING_ENABLED=true, "
            "or import the image again as an upload."
        )
    return (
        what + "The owner of our token does not see it, perhaps because it belongs to another organization. "
        "Import the image again in this one, or set SCANQUEUE_LABEL_STUDIO_API_KEY to a token of somebody who sees it."
    )


def _body(response: httpx.Response, reference: str) -> bytes:
    name = _name(reference)
    if response.status_code >= 400:
        raise UnreadableScan(
            f"its image {name!r} cannot be had: the server answered {response.status_code}. "
            "Restore the file, or delete the task and import the image again."
        )
    if response.headers.get("content-encoding", "").lower() not in ("", "identity"):
        raise UnreadableScan(
            f"its image {name!r} comes compressed, which was not asked for. Have its host send it as it is."
        )
    body, until = io.BytesIO(), time.monotonic() + IMAGE_SECONDS  # one buffer, which `getvalue` does not copy
    for piece in response.iter_raw():
        if time.monotonic() > until:
            raise UnreadableScan(f"its image {name!r} came too slowly: not whole after {IMAGE_SECONDS:.0f} seconds.")
        if body.tell() + len(piece) > IMAGE_BYTES:
            raise UnreadableScan(f"its image {name!r} is larger than {IMAGE_BYTES >> 20} MiB. Make it smaller.")
        body.write(piece)
    return body.getvalue()


def _detail(body: Any) -> str:
    said = body.get("validation_errors") or body.get("detail") if isinstance(body, Mapping) else None
    return str(said or body)[:300].rstrip(".") + "."
