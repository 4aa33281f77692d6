"""The HTTP answers to Label Studio and to programs. The bodies have the shapes of Label Studio 1.23.2."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from servers import PostgresServer

from backend.errors import BadSetting, StudioUnavailable, UnreadableScan
from backend.facts import SECRET_HEADER
from backend.records.rounds import Pick
from backend.records.store import Store
from backend.settings import Settings
from backend.web import access, api, bodies
from backend.web.overview import Overview
from backend.workers.worker import RequestBuffer

CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">'
    '<Label value="Lung"/><Label value="Heart"/></BrushLabels></View>'
)
UNKNOWN = {
    "error": "Project 9 is not known here. Connect scanqueue in its Settings > Model in Label Studio.",
}


def setup_body(**changes: Any) -> dict[str, Any]:
    return {
        "project": "4.1795404647",
        "schema": CONFIG,
        "hostname": "http://localhost:8181",
        "access_token": "a" * 40,
        "extra_params": None,
        **changes,
    }


def task(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "data": {"image": f"/data/upload/4/6421950f-img_{number:03}.png"},
        "meta": {},
        "created_at": "2026-11-23T03:33:38.112097Z",
        "updated_at": "2026-11-23T03:33:38.112104Z",
        "is_labeled": False,
        "overlap": 1,
        "total_annotations": 0,
        "project": 4,
        "annotations": [],
        "predictions": [],
    }


def predict_body(*tasks: dict[str, Any]) -> dict[str, Any]:
    params = {"login": None, "password": None, "context": None}
    return {"tasks": list(tasks), "project": "4.1795404647", "label_config": CONFIG, "params": params}


def hook_body(action: str, project: int = 4) -> dict[str, Any]:
    facts = {"id": project, "title": "webhooks", "label_config": CONFIG, "token": "t", "task_data_password": "p"}
    return {"action": action, "project": facts}


AS_JSON = {"Content-Type": "application/json"}
CHECK = {"level": "ok", "what": "", "cure": ""}


class Away:
    """A Label Studio that does not answer."""

    def tasks_with_drafts(self, project: int) -> list[int]:
        raise StudioUnavailable("Label Studio does not answer.")


class Edge:
    """The HTTP application on a real store, with its requests to the worker and the predictor."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.store = Store(folder)
        self._touched: list[int] = []
        self.predicted: list[tuple[int, list[int]]] = []
        self.fails: Exception | None = None
        known = lambda project: self.store.project(project) is not None  # noqa: E731
        self.buffer = RequestBuffer(self._touched.append, known, self.store.request_training)
        overview = Overview(self.store, Away(), None, lambda project: [dict(CHECK, what=str(project))])  # type: ignore[arg-type]
        app = api.create_api(
            Settings(data_dir=folder, **settings), self.store, self.buffer.request, self.predict, overview=overview
        )
        self.http = TestClient(app, base_url="http://127.0.0.1:9090", raise_server_exceptions=False)

    @property
    def touched(self) -> list[int]:
        """The requests that were passed on, once all of them were."""
        until = time.monotonic() + 10
        while not self.buffer.idle():
            assert time.monotonic() < until
            time.sleep(0.005)
        return self._touched

    def predict(self, project: int, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self.fails is not None:
            raise self.fails
        self.predicted.append((project, [t["id"] for t in tasks]))
        return [{"model_version": "scanqueue-r0", "score": t["id"] / 100, "result": []} for t in tasks]

    def connect(self, **changes: Any) -> None:
        assert self.http.post("/setup", json=setup_body(**changes)).status_code == 200
        self.touched.clear()


@pytest.fixture
def edge(tmp_path: Path) -> Edge:
    return Edge(tmp_path)


@pytest.fixture
def guarded(tmp_path: Path) -> Edge:
    return Edge(tmp_path, user="lab", password="Röntgen: 5/1")


def basic(user: str, password: str, encoding: str = "utf-8") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode(encoding)).decode()}


def refused(response: Response, code: int) -> str:
    """The reason, the only content of the answer."""
    assert response.status_code == code, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert body["error"].strip()
    assert "\n" not in body["error"]
    assert "Traceback" not in response.text
    return str(body["error"])


# /health and /versions


def test_health_has_the_wording_that_label_studio_expects(edge: Edge) -> None:
    response = edge.http.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "UP", "model_class": "scanqueue"})


def test_versions_lists_the_rounds_newest_first(edge: Edge) -> None:
    assert edge.http.get("/versions").json() == {"versions": ["scanqueue-r0"]}
    edge.connect()
    for n in (0, 1, 2):
        edge.store.put_round(4, n=n, key=f"k{n}", model="", picks=[Pick(7, "medoid")], carried=[], size=1, labels=0)
    assert edge.http.get("/versions").json() == {"versions": ["scanqueue-r2", "scanqueue-r1", "scanqueue-r0"]}


# /setup


def test_setup_stores_the_project_and_requests_its_reconciliation(edge: Edge) -> None:
    response = edge.http.post("/setup", json=setup_body())
    assert (response.status_code, response.json()) == (200, {"model_version": "scanqueue-pending"})
    row = edge.store.project(4)
    assert row is not None
    assert (row["backend_url"], row["extra_params"]) == ("http://127.0.0.1:9090", "")
    assert len(row["secret"]) >= 32
    assert edge.touched == [4]


def test_setup_again_with_the_same_body_does_nothing(edge: Edge) -> None:
    edge.connect()
    before = edge.store.project(4)
    edge.http.post("/setup", json=setup_body(access_token="b" * 40))
    assert edge.store.project(4) == before
    assert edge.touched == []


@pytest.mark.parametrize("given", ['{"round_size": 3}', {"round_size": 3}])
def test_setup_takes_extra_params_as_text_and_as_an_object(edge: Edge, given: Any) -> None:
    edge.connect()
    edge.http.post("/setup", json=setup_body(extra_params=given))
    row = edge.store.project(4)
    assert row is not None
    assert json.loads(row["extra_params"]) == {"round_size": 3}
    assert edge.touched == [4]
    edge.http.post("/setup", json=setup_body(extra_params=given))
    assert edge.touched == [4]


def test_setup_names_the_latest_round(edge: Edge) -> None:
    edge.connect()
    edge.store.put_round(4, n=3, key="k", model="", picks=[], carried=[], size=0, labels=0)
    assert edge.http.post("/setup", json=setup_body()).json() == {
        "model_version": "scanqueue-pending"
    }  # not served yet
    edge.store.mark_published(4, 3)
    assert edge.http.post("/setup", json=setup_body()).json() == {"model_version": "scanqueue-r3"}


def test_setup_keeps_no_token(edge: Edge, tmp_path: Path) -> None:
    edge.connect(access_token="9f" * 20)
    assert all(b"9f" * 20 not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


# /predict


def test_predict_answers_one_item_per_task_in_their_order(edge: Edge) -> None:
    response = edge.http.post("/predict", json=predict_body(task(12), task(7)))
    assert response.status_code == 200
    items = response.json()["results"]
    assert [item["score"] for item in items] == [0.12, 0.07]
    assert all(isinstance(item["result"], list) and item["model_version"] for item in items)
    assert edge.predicted == [(4, [12, 7])]


@pytest.mark.parametrize("drawn", [[], [{"id": "lungs", "type": "brushlabels", "value": {}}]])
def test_a_prompt_of_a_smart_tool_gets_an_empty_result(edge: Edge, drawn: list[Any]) -> None:
    body = predict_body(task(12)) | {"params": {"context": {"result": drawn}}}
    (item,) = edge.http.post("/predict", json=body).json()["results"]
    assert item["result"] == []
    assert edge.predicted == []


def test_predict_without_tasks_returns_an_empty_list(edge: Edge) -> None:
    assert edge.http.post("/predict", json=predict_body()).json() == {"results": []}


@pytest.mark.parametrize(
    ("tasks", "project"),
    [(None, "4.1"), ({"id": 1}, "4.1"), ([None], "4.1"), ([1], "4.1"), ([task(1), "two"], "4.1")],
)
def test_predict_without_a_list_of_tasks_is_refused(edge: Edge, tasks: Any, project: str) -> None:
    response = edge.http.post("/predict", json={"tasks": tasks, "project": project})
    assert refused(response, 400) == '"tasks" must be a list of tasks.'
    assert edge.predicted == []


PROJECT_WORDS = '"project" must name a Label Studio project, for example "4.1795404647".'


@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
@pytest.mark.parametrize(
    "project", [None, "", "four", "-4", "4e3", "٤", "9" * 16, ".4", [], {}, {"id": None}, {"id": "x"}, True]
)
def test_an_invalid_project_is_refused(edge: Edge, path: str, project: Any) -> None:
    response = edge.http.post(path, json={"tasks": [], "project": project})
    assert refused(response, 400) == PROJECT_WORDS
    assert edge.store.projects() == []


@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "The request body is not valid JSON."),
        (b"\xff\xfe", "The request body is not valid JSON."),
        (b"tasks=1", "The request body is not valid JSON."),
        (b"[" * 100_000, "The request body is not valid JSON."),
        (b"[]", "The request body must be a JSON object."),
        (b'"text"', "The request body must be a JSON object."),
        (b"null", "The request body must be a JSON object."),
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(edge: Edge, path: str, content: bytes, words: str) -> None:
    assert refused(edge.http.post(path, content=content), 400) == words


# /webhook


@pytest.mark.parametrize(
    "action",
    ["ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "TASKS_CREATED", "PROJECT_UPDATED", "NEW_ONE"],
)
def test_a_webhook_requests_a_reconciliation_of_its_project(edge: Edge, action: str) -> None:
    edge.connect()
    response = edge.http.post("/webhook", json=hook_body(action))
    assert (response.status_code, response.json()) == (201, {"status": "noted"})
    row = edge.store.project(4)
    assert row is not None
    assert row["training_requests"] == 0
    assert edge.touched == [4]


def test_start_training_is_recorded_as_a_request(edge: Edge) -> None:
    edge.connect()
    assert edge.http.post("/webhook", json=hook_body("START_TRAINING")).status_code == 201
    assert edge.touched == [4]
    row = edge.store.project(4)
    assert row is not None
    assert row["training_requests"] == 1


@pytest.mark.parametrize("action", ["ANNOTATION_CREATED", "START_TRAINING"])
def test_a_webhook_of_an_unknown_project_is_ignored(edge: Edge, action: str) -> None:
    edge.connect()
    assert edge.http.post("/webhook", json=hook_body(action, project=9)).status_code == 201
    assert edge.touched == []
    assert edge.buffer.idle()
    assert edge.store.projects() == [4]


def secret_of(edge: Edge) -> str:
    edge.store.add_project(4)
    row = edge.store.project(4)
    assert row is not None
    return str(row["secret"])


def test_a_webhook_is_accepted_with_the_secret_or_with_basic_credentials(guarded: Edge) -> None:
    hook = hook_body("ANNOTATION_CREATED")
    secret = {"X-Scanqueue-Secret": secret_of(guarded)}
    assert guarded.http.post("/webhook", json=hook, headers=secret).status_code == 201
    assert guarded.touched == [4]
    credentials = basic("lab", "Röntgen: 5/1")
    assert guarded.http.post("/webhook", json=hook, headers=credentials).status_code == 201
    assert guarded.touched == [4, 4]
    wrong = {"Authorization": "Basic bm9ib2R5", **secret}
    assert guarded.http.post("/webhook", json=hook, headers=wrong).status_code == 201
    assert guarded.touched == [4, 4, 4]


def test_a_secret_is_valid_for_its_own_project_only_and_cannot_request_training(guarded: Edge) -> None:
    """Members of Label Studio can read the headers of a project's webhook."""
    secret = {"X-Scanqueue-Secret": secret_of(guarded)}
    guarded.store.add_project(5)
    words = refused(guarded.http.post("/webhook", json=hook_body("PROJECT_UPDATED", 5), headers=secret), 403)
    assert "does not belong to project 5" in words
    assert guarded.touched == []
    training = hook_body("START_TRAINING")

    def asked() -> int:
        assert guarded.touched.pop() == 4
        row = guarded.store.project(4)
        assert row is not None
        return int(row["training_requests"])

    assert guarded.http.post("/webhook", json=training, headers=secret).status_code == 201
    assert asked() == 0
    both = secret | basic("lab", "Röntgen: 5/1")
    assert guarded.http.post("/webhook", json=training, headers=both).status_code == 201
    assert asked() == 1


def test_known_secrets_do_not_wait_for_the_database_and_unknown_ones_not_long(
    guarded: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = {"X-Scanqueue-Secret": secret_of(guarded)}
    assert guarded.http.post("/webhook", json=hook_body("X"), headers=secret).status_code == 201
    assert guarded.touched == [4]
    thaw, looks = threading.Event(), []
    real = guarded.store.rows

    def hang(statement: Any) -> Any:
        looks.append(1)
        thaw.wait(20)
        return real(statement)

    monkeypatch.setattr(guarded.store, "rows", hang)
    time.sleep(access.LOOKUP_INTERVAL)
    try:
        for headers, code in [(secret, 201)] * 20 + [({"X-Scanqueue-Secret": "no"}, 503)] * 3:
            began = time.monotonic()
            assert guarded.http.post("/webhook", json=hook_body("X"), headers=headers).status_code == code
            assert time.monotonic() - began < api.PATIENCE
        assert len(looks) <= 2  # one by the buffer, and one for the secrets
    finally:
        thaw.set()
    assert guarded.touched[1:] in ([4], [4, 4])


@pytest.mark.parametrize("secret", ["", "wrong", "gehäuse"])
def test_a_webhook_with_a_wrong_secret_is_refused(guarded: Edge, secret: str) -> None:
    secret_of(guarded)
    headers = {"X-Scanqueue-Secret": secret.encode()}
    response = guarded.http.post("/webhook", json=hook_body("START_TRAINING"), headers=headers)
    assert "credentials" in refused(response, 401)
    assert guarded.touched == []


def test_the_webhook_secret_gives_access_to_nothing_else(guarded: Edge) -> None:
    headers = {"X-Scanqueue-Secret": secret_of(guarded)}
    refused(guarded.http.post("/setup", json=setup_body(), headers=headers), 401)
    refused(guarded.http.get("/api/projects", headers=headers), 401)


# credentials

PATHS = [
    ("POST", "/setup"),
    ("POST", "/predict"),
    ("POST", "/webhook"),
    ("GET", "/versions"),
    ("GET", "/api/projects"),
    ("GET", "/api/projects/4"),
    ("POST", "/api/projects/4/train"),
    ("GET", "/openapi.json"),
    ("GET", "/no-such-page"),
    ("GET", "/health/"),
    ("POST", "//webhook"),
]
WRONG = [
    {},
    basic("lab", "wrong"),
    basic("", ""),
    basic("lab", ""),
    basic("lab", "R?ntgen: 5/1"),
    {"Authorization": "Basic"},
    {"Authorization": "Basic !"},
    {"Authorization": "Bearer Röntgen: 5/1".encode()},
]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("headers", WRONG)
def test_everything_but_health_needs_credentials(guarded: Edge, method: str, path: str, headers: Any) -> None:
    response = guarded.http.request(method, path, headers=headers, json=setup_body() if method == "POST" else None)
    words = refused(response, 401)
    assert words == "Wrong or missing credentials; see SCANQUEUE_USER and SCANQUEUE_PASSWORD."
    assert response.headers["www-authenticate"] == 'Basic realm="scanqueue"'
    assert guarded.store.projects() == []


def test_monitors_may_ask_for_health_with_head_and_options(guarded: Edge) -> None:
    answer = guarded.http.head("/health")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "application/json"
    answer = guarded.http.options("/health")
    assert (answer.status_code, answer.content, answer.headers["allow"]) == (204, b"", "GET, HEAD, OPTIONS")
    assert guarded.http.post("/health").status_code == 405
    assert set(guarded.http.app.openapi()["paths"]["/health"]) == {"get"}  # type: ignore[attr-defined]


def test_health_needs_no_credentials(guarded: Edge) -> None:
    assert guarded.http.get("/health").status_code == 200


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_credentials_are_accepted_as_browsers_and_as_label_studio_write_them(guarded: Edge, encoding: str) -> None:
    headers = basic("lab", "Röntgen: 5/1", encoding)
    assert guarded.http.post("/setup", json=setup_body(), headers=headers).status_code == 200
    assert guarded.http.get("/api/projects/4", headers=headers).status_code == 200


def test_without_a_user_no_credentials_are_required(edge: Edge) -> None:
    assert edge.http.get("/api/projects").json() == {"projects": []}


# failures


def test_a_body_that_is_too_large_is_refused_by_its_announced_length(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_BYTES", 2**20)
    response = edge.http.post("/predict", content=b" " * (2**20 + 1))
    assert refused(response, 413) == "The request is larger than 1 MiB."


def test_a_body_that_is_too_large_is_refused_while_it_arrives(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_BYTES", 2**20)
    sent = []

    def parts() -> Any:
        for _ in range(3):
            sent.append(1)
            yield b" " * 2**19

    response = edge.http.post("/predict", content=parts())
    assert "content-length" not in response.request.headers
    assert refused(response, 413) == "The request is larger than 1 MiB."


@pytest.mark.parametrize("then", [{"type": "http.disconnect"}, None], ids=["gone", "silent"])
@pytest.mark.parametrize("path", ["/predict", "/webhook", "/api/projects/4/retry"])
def test_a_body_that_stops_halfway_is_answered_and_is_no_failure(
    path: str,
    then: dict[str, str] | None,
    edge: Edge,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)
    arriving = [{"type": "http.request", "body": b'{"project": ', "more_body": True}, *([then] if then else [])]
    sent: list[Any] = []

    async def receive() -> Any:
        if not arriving:
            await asyncio.sleep(60)
        return arriving.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"host", b"testserver")]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 9090), "scheme": "http"}
    asyncio.run(edge.http.app(scope, receive, send))  # type: ignore[arg-type]
    assert [message["status"] for message in sent if message["type"] == "http.response.start"] in ([408], [])
    assert sent or then  # nobody is left to read the answer
    assert "unexpected failure" not in caplog.text


def test_an_unexpected_failure_reveals_no_internals(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    edge.fails = RuntimeError("the password is 1234")
    response = edge.http.post("/predict", json=predict_body(task(1)))
    assert refused(response, 500) == "Unexpected error; see the scanqueue log for details."
    assert "1234" not in response.text
    assert "the password is 1234" in caplog.text


@pytest.mark.parametrize(
    ("error", "code"),
    [(BadSetting("no such version"), 400), (UnreadableScan("not an image"), 422), (StudioUnavailable("is down"), 503)],
)
def test_an_explained_failure_is_passed_on_verbatim(edge: Edge, error: Exception, code: int) -> None:
    edge.fails = error
    assert refused(edge.http.post("/predict", json=predict_body(task(1))), code) == str(error)


def test_a_page_or_a_method_that_does_not_exist_is_refused_in_the_same_shape(edge: Edge) -> None:
    assert refused(edge.http.get("/no-such-page"), 404) == "Not Found"
    response = edge.http.get("/predict")
    assert refused(response, 405) == "Method Not Allowed"
    assert response.headers["allow"] == "POST"


# projects


@pytest.mark.parametrize("rest", ["", "/map", "/queue", "/rounds"])
def test_requests_about_an_unknown_project_are_refused(edge: Edge, rest: str) -> None:
    edge.connect()
    response = edge.http.get(f"/api/projects/9{rest}")
    assert response.json() == UNKNOWN
    refused(response, 404)


@pytest.mark.parametrize(("rest", "body"), [("train", {}), ("activate", {"version": "scanqueue-r1"})])
def test_commands_for_an_unknown_project_are_refused(edge: Edge, rest: str, body: Any) -> None:
    edge.connect()
    response = edge.http.post(f"/api/projects/9/{rest}", json=body)
    assert response.json() == UNKNOWN
    refused(response, 404)
    assert edge.touched == []


@pytest.mark.parametrize("project", ["four", "4.5", "%20"])
def test_a_project_that_is_not_a_number_is_refused(edge: Edge, project: str) -> None:
    words = refused(edge.http.get(f"/api/projects/{project}"), 400)
    assert words.startswith("project: ")


def test_a_new_project_is_empty(edge: Edge) -> None:
    edge.connect()
    one = edge.http.get("/api/projects/4").json()
    assert edge.http.get("/api/projects").json() == {"projects": [one]}
    assert one["project"] == 4
    assert one["phase"] == "empty"
    assert (one["scans"], one["labelled"], one["queue"], one["problems"]) == (0, 0, [], [])
    assert one["round"] is None
    assert one["job"] is None
    assert edge.http.get("/api/projects/4/map").json() == {"scans": []}
    assert edge.http.get("/api/projects/4/queue").json() == {"queue": []}
    assert edge.http.get("/api/projects/4/rounds").json() == {"rounds": [], "models": []}


def labelled(edge: Edge, scans: int = 2, labels: int = 1) -> None:
    """Project 4 with scans, of which the first are labelled."""
    edge.connect()
    row = {"image": "/data/upload/4/a.png", "updated_at": "2026-01-01", "skipped": 0}
    edge.store.put_tasks(4, [{"task": t, "annotated": int(t < labels), **row} for t in range(scans)], "2026-01-01")
    edge.store.set_project(4, phase="active" if scans else "empty")


@pytest.mark.parametrize(
    ("scans", "labels", "phase", "why"),
    [
        (0, 0, "empty", "the project has no scans"),
        (2, 0, "cold_start", "no scan is labelled"),
        (2, 1, "blocked", "stopped: The config draws no masks."),
        (2, 1, "disconnected", "not connected to this project"),
        (2, 1, "deleted", "no such project"),
    ],
)
def test_a_training_that_is_not_possible_is_refused_with_its_reason(
    edge: Edge, scans: int, labels: int, phase: str, why: str
) -> None:
    labelled(edge, scans, labels)
    edge.store.set_project(4, phase=phase, reason="The config draws no masks.")
    response = edge.http.post("/api/projects/4/train", json={})
    assert response.status_code == 422
    assert why in response.json()["error"]
    assert edge.http.get("/api/projects/4").json()["no_training"] == response.json()["error"]
    row = edge.store.project(4)
    assert row is not None
    assert (row["training_requests"], edge.touched) == (0, [])
    assert edge.http.get("/api/projects/4/changes").json() == {"changes": []}


def test_a_training_can_be_requested(edge: Edge) -> None:
    labelled(edge)
    assert edge.http.get("/api/projects/4").json()["no_training"] == ""
    form = edge.http.post("/api/projects/4/train")  # as a page of another site could send it
    assert (form.status_code, form.json()) == (400, {"error": "Send this as application/json."})
    response = edge.http.post("/api/projects/4/train", json={})
    assert (response.status_code, response.json()) == (202, {"status": "noted", "change": 1})
    row = edge.store.project(4)
    assert row is not None
    assert row["training_requests"] == 1
    assert edge.touched == [4]


def test_a_model_that_does_not_exist_cannot_be_activated(edge: Edge) -> None:
    edge.connect()
    response = edge.http.post("/api/projects/4/activate", json={"version": "scanqueue-r7"})
    assert refused(response, 400) == "project 4 has no model 'scanqueue-r7'; available: none yet."
    assert edge.touched == []


def test_a_form_of_another_site_cannot_activate_a_model(edge: Edge) -> None:
    edge.connect()
    content = b'{"version": "scanqueue-r7"}'
    response = edge.http.post("/api/projects/4/activate", content=content, headers={"Content-Type": "text/plain"})
    assert refused(response, 400) == "Send this as application/json."


def test_a_model_is_activated(edge: Edge) -> None:
    edge.connect()
    model = {
        "version": "scanqueue-r1",
        "fingerprint": "f",
        "labels": ["Lung"],
        "trained_on": [],
        "accepted": 0,
        "validation": {},
        "details": {"held_out": [{"task": 7, "dice": 0.5}]},
    }
    edge.store.put_model(4, model, active="", training_requests=0)
    held_out = edge.http.get("/api/projects/4/models/scanqueue-r1").json()
    assert held_out == {"version": "scanqueue-r1", "held_out": [{"task": 7, "dice": 0.5}]}
    unknown = edge.http.get("/api/projects/4/models/scanqueue-r2")
    assert "available: scanqueue-r1" in refused(unknown, 404)
    response = edge.http.post("/api/projects/4/activate", json={"version": "scanqueue-r1"})
    assert "SCANQUEUE_KEEP_MODELS" in refused(response, 400)
    assert [m["kept"] for m in edge.http.get("/api/projects/4/rounds").json()["models"]] == [False]
    edge.store.put_folder("models", "f", lambda folder: None)
    response = edge.http.post("/api/projects/4/activate", json={"version": "scanqueue-r1"})
    assert (response.status_code, response.json()) == (202, {"status": "noted", "change": 1})
    assert edge.http.get("/api/projects/4").json()["model"] == "scanqueue-r1"
    assert edge.touched == [4]


# rejected requests


@pytest.mark.parametrize("length", ["many", "-1", "1e3", "+5", "\u0663"])
def test_an_invalid_content_length_is_refused(edge: Edge, length: str) -> None:
    edge.connect()
    headers = {"Content-Length": length.encode("utf-8")}
    assert "Content-Length" in refused(edge.http.post("/webhook", content=b"{}", headers=headers), 400)


def test_only_predict_may_be_large(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SMALL_BODY_BYTES", 2**20)
    edge.connect()
    large = predict_body(task(1)) | {"padding": "x" * 2**20}
    assert edge.http.post("/predict", json=large).status_code == 200
    for path in ("/webhook", "/setup", "/api/projects/4/activate"):
        assert "1 MiB" in refused(edge.http.post(path, json=large), 413)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_cannot_change_anything(edge: Edge, headers: dict[str, str]) -> None:
    edge.connect()
    refused(edge.http.post("/api/projects/4/train", json={}, headers=headers), 403)
    row = edge.store.project(4)
    assert row is not None
    assert row["training_requests"] == 0


def test_our_own_page_can(edge: Edge) -> None:
    labelled(edge)
    headers = {"Origin": "http://127.0.0.1:9090", "Sec-Fetch-Site": "same-origin"}
    assert edge.http.post("/api/projects/4/train", json={}, headers=headers).status_code == 202


def test_no_answer_may_be_framed_sniffed_or_cached(edge: Edge) -> None:
    for response in (edge.http.get("/health"), edge.http.get("/api/projects"), edge.http.get("/nowhere")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["cache-control"] == "no-store"


def test_our_pages_load_nothing_from_other_hosts(edge: Edge) -> None:
    edge.connect()
    for path in ("/docs", "/projects/4", "/projects/4/map", "/projects/4/settings"):
        page = edge.http.get(path)
        assert page.status_code == 200
        loaded = re.findall(r'(?:src|<link[^>]* href)="([^"]*)"', page.text)
        assert loaded
        assert not [address for address in loaded if "//" in address]


def test_an_unreachable_database_is_reported_and_label_studio_still_finds_us_healthy(tmp_path: Path) -> None:
    with PostgresServer() as server:
        store = Store(tmp_path, server.new_database("records"))
        settings = Settings(data_dir=tmp_path, user="u", password="p")
        application = api.create_api(settings, store, lambda *_: None, lambda *_: [])
        http = TestClient(application, base_url="http://127.0.0.1:9090", raise_server_exceptions=False)
        server.kill()
        assert http.get("/health").status_code == 200
        secret = {SECRET_HEADER: "whatever"}
        assert "does not answer" in refused(http.post("/webhook", json=hook_body("X"), headers=secret), 503)
        assert "does not answer" in refused(http.get("/api/projects", auth=("u", "p")), 503)
        setup = http.post("/setup", json=setup_body(), auth=("u", "p"))
        assert (setup.status_code, setup.json()) == (200, {"model_version": "scanqueue-pending"})


# -- the page's JSON ---------------------------------------------------------------------------


def test_settings_are_set_shown_and_reset_and_the_project_is_reconciled(edge: Edge) -> None:
    edge.connect()
    touched = len(edge.touched)
    made = edge.http.post("/api/projects/4/settings", json={"alpha": 0.25})
    assert (made.status_code, made.json()) == (202, {"status": "noted", "change": 1})
    assert edge.http.get("/api/projects/4/settings").json()["settings"]["alpha"] == 0.25
    assert len(edge.touched) == touched + 1
    assert edge.http.post("/api/projects/4/undo", json={"change": 1}).json() == {"status": "noted", "change": 2}
    assert edge.http.get("/api/projects/4/settings").json()["changed"] == {}
    newest, oldest = edge.http.get("/api/projects/4/changes").json()["changes"]
    assert (oldest["what"], oldest["user"], oldest["undone"]) == ("alpha: 0.25", "local", True)
    assert newest["what"] == "alpha: back to the setting in Label Studio"


def test_a_change_has_the_name_of_the_signed_in_user(tmp_path: Path) -> None:
    edge = Edge(tmp_path, user="radiology", password="secret")
    edge.store.add_project(4)
    answer = edge.http.post("/api/projects/4/settings", json={"alpha": 0.25}, auth=("radiology", "secret"))
    assert answer.status_code == 202
    assert edge.store.changes(4)[0]["user"] == "radiology"


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("settings", {"alpha": 3}, "alpha is 3; it must be from 0 to 1."),
        ("wishes", {"tasks": [1, "2"], "wish": "next"}, '"tasks" must be a list of task numbers.'),
        ("wishes", {"tasks": [7], "wish": "next"}, "project 4 has no task 7."),
        ("wishes", {"tasks": [], "wish": "next"}, "tasks is empty; name at least one scan."),
        ("undo", {"change": "1"}, '"change" must be a whole number.'),
        ("retry", {"task": 7}, "project 4 has no task 7."),
    ],
)
def test_an_impossible_change_is_refused_with_a_reason(path: str, body: Any, words: str, edge: Edge) -> None:
    edge.connect()
    answer = edge.http.post(f"/api/projects/4/{path}", json=body)
    assert (answer.status_code, answer.json()) == (400, {"error": words})
    assert edge.store.changes(4) == []


@pytest.mark.parametrize("path", ["settings", "wishes", "undo", "retry", "train", "activate"])
def test_no_form_of_another_site_can_change_anything(path: str, edge: Edge) -> None:
    edge.connect()
    answer = edge.http.post(f"/api/projects/4/{path}", data={"alpha": "1"})
    assert (answer.status_code, answer.json()) == (400, {"error": "Send this as application/json."})
    foreign = {"Sec-Fetch-Site": "cross-site"}
    assert edge.http.post(f"/api/projects/4/{path}", json={}, headers=foreign).status_code == 403


def test_other_sites_may_link_to_pages_and_load_nothing(edge: Edge) -> None:
    edge.connect()
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert edge.http.get("/projects/4/settings", headers=link).status_code == 200
    assert edge.http.get("/api/projects/4", headers=link).status_code == 403
    for dest, mode in (("iframe", "navigate"), ("image", "no-cors"), ("empty", "cors")):
        other = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
        for path in ("/projects/4/settings", "/api/doctor", "/api/projects/4/preview?alpha=1"):
            assert edge.http.get(path, headers=other).status_code == 403
    own = {"Sec-Fetch-Site": "same-origin", "Origin": "https://lab.example"}  # behind a proxy that renames us
    assert edge.http.post("/api/projects/4/settings", json={"alpha": 0.25}, headers=own).status_code == 202


@pytest.mark.parametrize("given", [{"stratify_by": "\ud800"}, {"stratify_by": "a\0b"}, {"seed": 2**31}])
def test_settings_that_no_database_can_store_are_refused(given: dict[str, Any], edge: Edge) -> None:
    edge.connect()
    assert edge.http.post("/api/projects/4/settings", content=json.dumps(given), headers=AS_JSON).status_code == 400
    assert edge.http.get(f"/api/projects/4/preview?seed={'[' * 20_000}").status_code == 400


@pytest.mark.parametrize(
    "params", ["[" * 100_000, f'{{"alpha": {10**400}}}', f'{{"image": "{"x" * 10**6}"}}', f'{{"{"x" * 10**6}": 1}}']
)
def test_extra_params_of_junk_are_a_problem_of_their_project(params: str, edge: Edge) -> None:
    edge.connect(extra_params=params)
    for path in ("", "/1", "/4", "/4/queue", "/4/atlas", "/4/curve", "/4/settings", "/4/preview"):
        answer = edge.http.get(f"/api/projects{path}")
        assert answer.status_code == (404 if path == "/1" else 400 if path == "/4/preview" else 200), path
        assert len(answer.content) < 20_000
    assert edge.http.get("/").status_code == 200
    assert edge.http.get("/projects/4").status_code == 200
    assert edge.http.get("/api/projects/4/settings").json()["problem"]


def test_a_number_that_no_float_can_hold_is_refused(edge: Edge) -> None:
    edge.connect()
    given = f'{{"alpha": {10**400}}}'
    assert edge.http.post("/api/projects/4/settings", content=given, headers=AS_JSON).status_code == 400
    assert edge.http.get(f"/api/projects/4/preview?alpha={10**400}").status_code == 400


@pytest.mark.parametrize(
    "path", ["atlas", "curve", "settings", "preview", "changes", "activity", "workers", "map", "queue", "rounds"]
)
def test_views_of_an_unknown_project_are_404_and_of_an_empty_one_are_not(path: str, edge: Edge) -> None:
    edge.connect()
    assert edge.http.get(f"/api/projects/4/{path}").status_code == 200
    missing = edge.http.get(f"/api/projects/9/{path}")
    assert (missing.status_code, missing.json()) == (404, UNKNOWN)


def test_the_doctor_examines_the_service_or_a_project(edge: Edge) -> None:
    edge.connect()
    assert edge.http.get("/api/doctor").json() == {"checks": [dict(CHECK, what="None")]}
    assert edge.http.get("/api/doctor?project=4").json() == {"checks": [dict(CHECK, what="4")]}
    assert edge.http.get("/api/doctor?project=9").status_code == 404


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("https://labels.hospital.example/studio/", "https://labels.hospital.example/studio"),
        ("http://localhost:8181", "http://localhost:8080"),
        ("javascript:alert(1)//x.y", "http://localhost:8080"),
        (None, "http://localhost:8080"),
        ("http://[", "http://localhost:8080"),
    ],
)
def test_links_use_the_address_that_label_studio_reports_unless_it_is_loopback(
    said: Any, kept: str, edge: Edge
) -> None:
    edge.http.post("/setup", json=setup_body(hostname=said))
    assert edge.http.get("/api/projects/4").json()["studio_url"] == kept


def test_links_use_the_reported_address_where_ours_is_a_compose_service_name(tmp_path: Path) -> None:
    edge = Edge(tmp_path, label_studio_url="http://label-studio:8080")
    edge.http.post("/setup", json=setup_body(hostname="http://localhost:8080"))
    assert edge.http.get("/api/projects/4").json()["studio_url"] == "http://localhost:8080"


def test_large_answers_are_compressed_for_clients_that_accept_it(edge: Edge) -> None:
    answer = edge.http.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) < len(answer.content) / 4
