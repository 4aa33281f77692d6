"""An administrator's actions in Label Studio's web interface: the same HTTP calls in the same session."""

from __future__ import annotations

import html
import mimetypes
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from backend.errors import ScanqueueError, StudioRefused
from backend.label_studio.client import limits

# Label Studio answers 500 if a request has more files than this (DATA_UPLOAD_MAX_NUMBER_FILES)
FILES_PER_REQUEST = 100
BYTES_PER_REQUEST = 100 * 1024 * 1024


def sign_in(url: str, email: str, password: str) -> httpx.Client:
    """A browser session that has filled in the login form."""
    browser = _browser(url)
    _send_form(browser, "/user/login/", {"email": email, "password": password, "persist_session": "on"})
    return browser


def sign_up(url: str, invite: str, email: str, password: str) -> httpx.Client:
    """A browser session that has followed an invite link and filled in the sign-up form."""
    browser = _browser(url)
    fields = {"email": email, "password": password, "how_find_us": "", "elaborate": ""}
    _send_form(browser, invite, fields)
    return browser


def answer(response: httpx.Response) -> Any:
    """The JSON of a successful response. Raises StudioRefused with Label Studio's message otherwise."""
    if response.is_success:
        return response.json() if response.content else None
    call = f"{response.request.method} {response.request.url.path}"
    raise StudioRefused(f"{call}: Label Studio answered {response.status_code}: {response.text[:600]}")


def _browser(url: str) -> httpx.Client:
    # Label Studio's development server is local: no proxy, and slow responses only while it works
    return httpx.Client(base_url=url, trust_env=False, follow_redirects=True, timeout=120, limits=limits(url))


def _send_form(browser: httpx.Client, path: str, fields: dict[str, str]) -> None:
    page = browser.get(path)
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    if token is None:
        raise ScanqueueError(f"{page.url} is not a form of Label Studio (status {page.status_code})")
    form = {"csrfmiddlewaretoken": token.group(1), **fields}
    done = browser.post(path, data=form, headers={"Referer": str(page.url)})
    if browser.get("/api/current-user/whoami").status_code == 200:
        return
    errors = re.findall(r'class="[^"]*(?:error|alert)[^"]*"[^>]*>\s*(?:<li>)?\s*([^<\s][^<]*)', done.text)
    why = html.unescape(errors[0].strip()) if errors else f"status {done.status_code}"
    raise StudioRefused(f"Label Studio rejected {fields['email']} at {path.split('?')[0]}: {why}")


class Administrator:
    """The first user of one Label Studio. Signs in on the first call that needs it."""

    def __init__(self, url: str, email: str, password: str) -> None:
        self.url = url
        self.email = email
        self.password = password
        self._browser: httpx.Client | None = None
        self._token = ""

    @property
    def browser(self) -> httpx.Client:
        """The signed-in session, for calls that have no method here."""
        if self._browser is None:
            self._browser = sign_in(self.url, self.email, self.password)
        return self._browser

    def get(self, path: str, **params: Any) -> Any:
        return answer(self.browser.get(path, params=params))

    def post(self, path: str, body: Any = None) -> Any:
        return answer(self.browser.post(path, json=body))

    def patch(self, path: str, body: Any) -> Any:
        return answer(self.browser.patch(path, json=body))

    def delete(self, path: str) -> None:
        answer(self.browser.delete(path))

    # accounts and tokens

    def personal_access_token(self) -> str:
        """The personal access token (Account & Settings > Personal Access Token); a user has one at a time."""
        if not self._token:
            self._token = str(self.post("/api/token/")["token"])
        return self._token

    def legacy_token(self) -> str:
        """This user's legacy token; it works only while legacy tokens are enabled."""
        return str(self.get("/api/current-user/token")["token"])

    def legacy_tokens(self, on: bool) -> None:
        """Enable or disable legacy tokens for the organization; personal access tokens stay enabled."""
        self.post("/api/jwt/settings", {"api_tokens_enabled": True, "legacy_api_tokens_enabled": on})

    def invite(self, email: str, password: str) -> None:
        """Sign up another person through the organization's invite link."""
        link = self.get("/api/invite")["invite_url"]
        sign_up(self.url, link, email, password).close()

    # projects and tasks

    def create_project(self, title: str, label_config: str, **settings: Any) -> int:
        """Create a project and return its id. `settings` are fields of Label Studio's project."""
        body = {"title": title, "label_config": label_config, **settings}
        return int(self.post("/api/projects/", body)["id"])

    def import_files(self, project: int, paths: Iterable[Path]) -> list[int]:
        """Upload files from disk, at most 100 per request, and return the new tasks in the order of `paths`."""
        created: list[int] = []
        for chunk in _chunks(list(paths)):
            with ExitStack() as opened:
                files = [
                    (
                        "FileUpload" if len(chunk) == 1 else f"FileUpload{number}",
                        (
                            path.name,
                            opened.enter_context(path.open("rb")),
                            mimetypes.guess_type(path.name)[0] or "application/octet-stream",
                        ),
                    )
                    for number, path in enumerate(chunk)
                ]
                reply = answer(
                    self.browser.post(
                        f"/api/projects/{project}/import", params={"return_task_ids": "true"}, files=files
                    )
                )
            created += reply["task_ids"]
        return created

    def import_tasks(self, project: int, tasks: Sequence[dict[str, Any]]) -> list[int]:
        """Import tasks as JSON: `{"image": url}` or `{"data": ..., "annotations": ...}` each."""
        reply = answer(
            self.browser.post(f"/api/projects/{project}/import", params={"return_task_ids": "true"}, json=list(tasks))
        )
        return list(reply["task_ids"])

    def local_files_storage(self, project: int, folder: Path, *, pattern: str = r".*\.png$") -> list[int]:
        """Connect a folder under the document root as local storage, sync it, return the project's tasks."""
        storage = self.post(
            "/api/storages/localfiles/",
            {
                "project": project,
                "title": folder.name,
                "path": str(folder),
                "regex_filter": pattern,
                "use_blob_urls": True,
            },
        )
        done = self.post(f"/api/storages/localfiles/{storage['id']}/sync")
        if done["status"] != "completed":
            raise StudioRefused(f"Label Studio could not sync {folder}: {done}")
        return self.task_ids(project)

    def task_ids(self, project: int) -> list[int]:
        """All task IDs of the project."""
        reply = self.get("/api/tasks", project=project, page_size=100_000, include="id")
        return sorted(task["id"] for task in reply["tasks"])

    def annotations(self, task: int) -> list[dict[str, Any]]:
        """All annotations of one task, including skips."""
        return list(self.get(f"/api/tasks/{task}/annotations/"))

    # backends and webhooks

    def connect_backend(
        self,
        project: int,
        url: str,
        *,
        title: str = "scanqueue",
        user: str | None = None,
        password: str | None = None,
        extra_params: dict[str, Any] | None = None,
        interactive: bool = False,
        timeout: float = 60,
    ) -> dict[str, Any]:
        """Settings > Model > Connect Model. Returns Label Studio's record of the backend."""
        body: dict[str, Any] = {"project": project, "url": url, "title": title, "is_interactive": interactive}
        if user is not None:
            body |= {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password or ""}
        if extra_params is not None:
            body["extra_params"] = extra_params
        return dict(answer(self.browser.post("/api/ml", json=body, timeout=timeout)))

    def start_training(self, backend: int) -> None:
        """Settings > Model > Start Training."""
        self.post(f"/api/ml/{backend}/train")

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        return list(self.get("/api/webhooks/", project=project))

    def close(self) -> None:
        if self._browser is not None:
            self._browser.close()
            self._browser = None


def _chunks(paths: list[Path]) -> Iterable[list[Path]]:
    chunk: list[Path] = []
    size = 0
    for path in paths:
        weight = path.stat().st_size
        if chunk and (len(chunk) == FILES_PER_REQUEST or size + weight > BYTES_PER_REQUEST):
            yield chunk
            chunk, size = [], 0
        chunk.append(path)
        size += weight
    if chunk:
        yield chunk
