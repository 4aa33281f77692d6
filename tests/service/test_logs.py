"""Log lines: their format, and that none contains a secret, whatever its origin."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from backend.demo.child import Child, free_port
from backend.logs import LINE, LinesFormatter, Redactor, TextFormatter, log_to

JWT = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg":"HS256"}', b'{"token_type":"refresh","exp":4102444800}', b"sig")
)
LEGACY = "0123456789abcdef0123456789abcdef01234567"


def record(message: object, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    trace = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("scanqueue.test", logging.WARNING, __file__, 1, message, args, trace)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"token {JWT} refused", "token *** refused"),
        (f"Authorization: Bearer {JWT}", "Authorization: ***"),
        ("headers: {'authorization': 'Basic bGFiOm9wZW4='}", "headers: {'authorization': ***}"),
        ("[('Cookie', 'sessionid=4711')]", "[('Cookie', ***)]"),
        ("sent Basic bGFiOm9wZW4=", "sent Basic ***"),
        (f"sent Token {LEGACY}", "sent Token ***"),
        (f"the legacy one is {LEGACY}.", "the legacy one is ***."),
        ('{"refresh": "abc", "my_password": "p", "id": 4}', '{"refresh": "***", "my_password": "***", "id": 4}'),
        ("X-Scanqueue-Secret: abcdef", "X-Scanqueue-Secret: ***"),
        ("postgresql+psycopg://me:pa%2Fss@db:5432/x", "postgresql+psycopg://***@db:5432/x"),
        ("https://images.example/a.png?X-Sig=1f&e=2 is gone", "https://images.example/a.png?*** is gone"),
        ("'/data/local-files/?d=a/b.png'", "'/data/local-files/?***'"),
        ("open sesame-1 and sesame%2F2", "open *** and ***"),
    ],
)  # fmt: skip
def test_secrets_are_replaced_and_the_rest_is_kept(text: str, kept: str) -> None:
    assert Redactor(["sesame-1", "sesame/2"]).line(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "project 4, task 7: the file is empty (0 bytes); upload the scan again",
        "Is this right? scanqueue retries every minute.",
        "Create a personal access token (Account & Settings) and set SCANQUEUE_LABEL_STUDIO_API_KEY.",
        "project 4: training scanqueue-r2 on 20 scans, 3 of 60, 12 s left",
        "The server at http://localhost:8080/ is not Label Studio",
        "Basic authentication is on; Token kinds differ",
        "model 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 was kept",
    ],
)
def test_ordinary_lines_are_left_as_they_are(text: str) -> None:
    assert Redactor(["sesame-1"]).line(text) == text


def test_input_cannot_inject_lines_or_terminal_escapes() -> None:
    line = Redactor().line("scan 'a\n2026-01-01 INFO all is well\x1b[2J\u2028.png'")
    assert line == "scan 'a\\n2026-01-01 INFO all is well\\x1b[2J\\u2028.png'"


def test_a_payload_is_truncated_quickly_without_leaving_part_of_a_secret() -> None:
    redactor = Redactor(["s" * 3000])
    for text in ("/" * 10**6, "eyJ" * 10**6, "[1, 2, 3]" * 10**6, "a://" * 10**6, '"token" : ' * 10**6):
        began = time.monotonic()
        assert len(redactor.line(text)) <= LINE + 20
        assert time.monotonic() - began < 1
    short = Redactor(["sesame" * 40])
    for start in range(3700, 4100, 7):
        text = f"{JWT} " * 40
        text += "x" * max(start - len(text), 0) + "sesame" * 40
        assert "sesame" not in short.line(text)


def test_tracebacks_are_redacted_and_bounded() -> None:
    try:
        raise RuntimeError(f"the answer was {{'token': 'abc'}} for Bearer {JWT}\nsesame-1")
    except RuntimeError as error:
        found = record("project 4: unexpected failure", error=error)
    for formatter in (TextFormatter(Redactor(["sesame-1"])), LinesFormatter(Redactor(["sesame-1"]))):
        said = formatter.format(found)
        assert "RuntimeError" in said
        assert "test_logs.py" in said
        for secret in ("sesame", "abc", JWT):
            assert secret not in said
    assert len(Redactor().lines("x\n" * 10**5).splitlines()) < 300


def test_requests_for_websockets_leave_no_line_in_the_log(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn advises to install a library; the request is answered as an ordinary one."""
    for name in ("uvicorn", "uvicorn.error"):  # another test may have started a server with uvicorn's own log
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
    app = FastAPI()
    app.add_api_route("/health", lambda: {"status": "UP"})
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "eA==",
    }
    before = logging.getLogger().handlers[:]
    log_to()
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, log_level="warning", ws="none"))
    running = threading.Thread(target=server.run)
    running.start()
    try:
        while not server.started:
            time.sleep(0.02)
        for more in ({}, {"Upgrade": "h2c"}):
            answer = httpx.get(f"http://127.0.0.1:{port}/health", headers=headers | more, trust_env=False)
            assert answer.json() == {"status": "UP"}
        logging.getLogger("uvicorn.error").warning("a useful line")
    finally:
        server.should_exit = True
        running.join()
        logging.getLogger().handlers[:] = before
    said = capfd.readouterr().err
    assert "a useful line" in said
    assert "pgrade" not in said
    assert "WebSocket" not in said


def test_json_lines_have_exactly_the_expected_fields() -> None:
    found = record("project %s, task %s: %s", 4, 7, 'broken \u2028 or "odd"')
    found.payload = {"token": "abc"}
    line = LinesFormatter(Redactor()).format(found)
    assert "\n" not in line
    said = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", said.pop("time"))
    assert said == {
        "level": "WARNING",
        "logger": "scanqueue.test",
        "message": 'project 4, task 7: broken \\u2028 or "odd"',
        "project": 4,
        "task": 7,
    }
    assert "project" not in json.loads(LinesFormatter(Redactor()).format(record("the worker ended")))


@pytest.mark.parametrize("formatter", [TextFormatter(Redactor(["sesame"])), LinesFormatter(Redactor(["sesame"]))])
def test_a_record_with_wrong_arguments_is_still_one_redacted_line(formatter: logging.Formatter) -> None:
    said = formatter.format(record("%d scans of %s", "sesame"))
    assert "its arguments do not fit" in said
    assert "sesame" not in said
    assert "sesame" not in formatter.format(record({"password": "sesame"}))


class Echo:
    """A failing Label Studio whose errors repeat everything that it was sent."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                outer.asked.append(self.path)
                body = json.dumps({"detail": f"{self.path} {dict(self.headers)} {sent}"}).encode()
                self.send_response(500)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PATCH = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.mark.server
@pytest.mark.parametrize(("form", "key"), [("json", JWT), ("text", LEGACY)])
def test_no_secret_that_passes_through_server_and_worker_is_in_their_logs(
    echo: Echo, tmp_path: Path, form: str, key: str
) -> None:
    marks = ["MARKEDpassword", "MARKEDtoken", "MARKEDguess", "MARKEDtask", "MARKEDsignature", key]
    port, log = free_port(), tmp_path / "serve.log"
    env = {k: v for k, v in os.environ.items() if not k.startswith("SCANQUEUE_")} | {
        "SCANQUEUE_LABEL_STUDIO_URL": echo.url,
        "SCANQUEUE_LABEL_STUDIO_API_KEY": key,
        "SCANQUEUE_PORT": str(port),
        "SCANQUEUE_DATA_DIR": str(tmp_path / "data"),
        "SCANQUEUE_EMBEDDER": "pixels",
        "SCANQUEUE_USER": "lab",
        "SCANQUEUE_PASSWORD": "MARKEDpassword",
        "SCANQUEUE_LOG_FORMAT": form,
        "PYTHONUNBUFFERED": "1",
    }
    child = Child("scanqueue", [sys.executable, "-m", "backend.cli", "serve"], env=env, log=log)
    url, auth = f"http://127.0.0.1:{port}", ("lab", "MARKEDpassword")
    task = {"id": 7, "data": {"image": f"{echo.url}/data/upload/4/a.png?sig=MARKEDsignature", "name": "MARKEDtask"}}
    project = {"id": 4, "token": "MARKEDtoken", "task_data_password": "MARKEDtoken"}
    try:
        child.wait_healthy(f"{url}/health", timeout=120)
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
            setup = {"project": "4.1", "access_token": "MARKEDtoken", "extra_params": None}
            assert http.post("/setup", json=setup, auth=auth).status_code == 200
            assert http.post("/setup", json=setup, auth=("lab", "MARKEDguess")).status_code == 401
            webhook = {"action": "TASKS_CREATED", "project": project, "task": task}
            assert http.post("/webhook", json=webhook, auth=auth).status_code == 201
            assert http.post("/webhook", json=webhook, headers={"X-Scanqueue-Secret": "MARKEDguess"}).status_code == 401
            assert http.post("/predict", json={"project": "4.1", "tasks": [task]}, auth=auth).status_code == 200
            http.get("/nowhere?token=MARKEDtoken", auth=auth)
            http.post("/webhook", content=b"MARKEDtask{", auth=auth)
        until = time.monotonic() + 90  # the worker reconciles the project, and Label Studio echoes its request
        while "Label Studio answered 500" not in log.read_text() and time.monotonic() < until:
            time.sleep(0.2)
    finally:
        child.stop(grace=30)
    said = log.read_text()
    assert "Label Studio answered 500" in said, said
    assert echo.asked
    assert [mark for mark in marks if mark in said] == []
    if form == "json":
        lines = [json.loads(line) for line in said.splitlines()]
        assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
        about = [line for line in lines if "Label Studio answered 500" in line["message"]]
        assert about[0]["project"] == 4
