"""deploy/nginx/lab.conf in a real nginx: scanqueue over HTTPS and below a sub-path."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from service import Lab, Service

from backend.demo.child import Child, free_port
from backend.demo.label_studio import LabelStudio
from backend.records.store import Store
from backend.settings import Settings
from backend.web import api
from backend.web.guesses import FREE

CONF = Path(__file__).resolve().parents[2] / "deploy" / "nginx" / "lab.conf"
AUTH = ("lab", "reading-room")
CREDENTIALS = {"SCANQUEUE_USER": AUTH[0], "SCANQUEUE_PASSWORD": AUTH[1]}
MAIN = """
daemon off; user root; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{ access_log off; {temporary} include {folder}/lab.conf; }}
"""
AT_ONCE = 700  # requests, more than the burst limit where requests are limited
KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def write_certificate(folder: Path) -> None:
    """A self-signed certificate for localhost."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "lab.key"), "-out", str(folder / "lab.crt")]
    subprocess.run(command, check=True, capture_output=True)


def proxy_to(studio: str, scanqueue_port: int, folder: Path, port: int) -> Child:
    """nginx with our file; only addresses, host name and certificate paths are replaced."""
    text = CONF.read_text()
    changes = {
        "listen 443": f"listen 127.0.0.1:{port}",
        "lab.example": "localhost",
        "/etc/nginx/tls": str(folder),
        "http://127.0.0.1:8080": studio,
        "http://127.0.0.1:9090": f"http://127.0.0.1:{scanqueue_port}",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "lab.conf").write_text(text)
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in KINDS)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, temporary=temporary))
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    command = [nginx, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    return Child("nginx", command, env=dict(os.environ), log=folder / "nginx.log")


def sign_in(browser: httpx.Client, studio: LabelStudio, origin: str) -> int:
    """The status of the login form, posted as by a browser, with its page as the referer."""
    page = browser.get("/user/login/")
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    assert token is not None
    form = {"csrfmiddlewaretoken": token[1], "email": studio.email, "password": studio.password}
    headers = {"Origin": origin, "Referer": f"{origin}/user/login/"}
    return browser.post("/user/login/", data=form, headers=headers).status_code


def sign_up(browser: httpx.Client) -> int:
    """The status of the sign-up form, posted without an invitation."""
    browser.cookies.clear()
    page = browser.get("/user/signup/")
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    assert token is not None
    form = {"csrfmiddlewaretoken": token[1], "email": "nobody@example.com", "password": "not-invited-1"}
    headers = {"Origin": str(browser.base_url).rstrip("/"), "Referer": f"{browser.base_url}user/signup/"}
    return browser.post("/user/signup/", data=form, headers=headers).status_code


def guessed(people: httpx.Client, request: httpx.Request) -> set[int]:
    """The statuses of many password attempts, sent one after another without pause."""
    answers = set()
    for n in range(AT_ONCE):
        answers.add(people.send(request, auth=(AUTH[0], f"guess-{n}")).status_code)
    return answers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("nginx is not installed; apt-get install nginx-light")
    write_certificate(tmp_path)
    return tmp_path


@pytest.mark.long
@pytest.mark.label_studio
def test_label_studio_connects_and_works_through_the_proxy(scans60: list[tuple[Path, Path]], folder: Path) -> None:
    """Settings > Model with https://.../scanqueue: setup, webhook with its secret, masks."""
    port = free_port()
    # the first as in docker-compose.yml, from LABEL_STUDIO_HOST
    trust = {"CSRF_TRUSTED_ORIGINS": f"https://localhost:{port}"}
    trust |= {"REQUESTS_CA_BUNDLE": str(folder / "lab.crt"), "DISABLE_SIGNUP_WITHOUT_LINK": "1"}
    with LabelStudio.start(folder / "studio", extra_env=trust) as studio:
        base = f"https://localhost:{port}/scanqueue"
        service = Service(studio, folder / "data", env={**CREDENTIALS, "SCANQUEUE_PUBLIC_URL": base})
        service.public_url = base
        nginx = proxy_to(studio.url, service.port, folder, port)
        try:
            with service:
                people = httpx.Client(
                    verify=ssl.create_default_context(cafile=str(folder / "lab.crt")), trust_env=False
                )
                assert people.get(f"{base}/health").status_code == 200
                assert people.get(f"{base}/api/projects").status_code == 401
                assert people.get(f"https://localhost:{port}/health").json() == {"status": "UP"}  # Label Studio's
                people.base_url = httpx.URL(f"https://localhost:{port}")
                assert [sign_in(people, studio, o) for o in ("https://elsewhere.example", str(people.base_url))] == [
                    403,
                    302,
                ]
                assert sign_up(people) == 403
                lab = Lab(studio, scans60[:12], extra_params={"cold_start_size": 4, "round_size": 4})
                lab.connect(service)
                lab.wait_for_round(0, seconds=300)
                (hook,) = studio.webhooks(lab.project)
                assert hook["url"] == f"{base}/webhook"
                service.wait(lab.project, lambda s: s["job"] is None and s["phase"] == "cold_start")
                lab.label(2)
                # triggered by the webhook: the next sweep may be a minute away
                service.wait(lab.project, lambda s: s["labelled"] == 2, seconds=20)
                order = {"headers": {"Origin": f"https://localhost:{port}"}, "json": {}}
                asked = people.post(f"{base}/api/projects/{lab.project}/train", auth=AUTH, **order)
                assert asked.status_code == 202
                order["headers"] = {"Origin": "https://elsewhere.example"}
                asked = people.post(f"{base}/api/projects/{lab.project}/train", auth=AUTH, **order)
                assert asked.status_code == 403
                lab.wait_for_round(1, seconds=600)

                hook = people.build_request("POST", f"{base}/webhook", json={})
                assert {people.send(hook).status_code for _ in range(AT_ONCE)} == {401}
                assert guessed(people, hook) == {401, 429, 503}
                assert people.get(f"{base}/api/projects", auth=AUTH).status_code == 200  # right before, from here
                lab.close()
                people.close()
        finally:
            nginx.stop()


@pytest.fixture
def behind_nginx(folder: Path) -> Iterator[str]:
    """scanqueue below https://localhost:PORT/scanqueue, with our configuration of nginx."""
    store = Store(folder / "data")
    settings = Settings(data_dir=store.folder, user=AUTH[0], password=AUTH[1])
    app = api.create_api(settings, store, lambda *_: None, lambda *_: [])
    port, own = free_port(), free_port()
    server = uvicorn.Server(
        uvicorn.Config(app, port=own, log_level="error", forwarded_allow_ips=list(settings.trusted_proxies))
    )
    running = threading.Thread(target=server.run)
    running.start()
    nginx = proxy_to(f"http://127.0.0.1:{own}", own, folder, port)
    try:
        until = time.monotonic() + 20
        while True:
            try:
                httpx.get(f"https://localhost:{port}/scanqueue/health", verify=False, trust_env=False)
                break
            except httpx.HTTPError:
                assert time.monotonic() < until
                time.sleep(0.05)
        yield f"https://localhost:{port}/scanqueue"
    finally:
        nginx.stop()
        server.should_exit = True
        running.join()
        store.close()


@pytest.mark.server
def test_behind_nginx_each_sender_has_its_own_wait(behind_nginx: str) -> None:
    """A forged X-Forwarded-For does not help."""
    clients = {
        name: httpx.Client(
            transport=httpx.HTTPTransport(local_address=address, verify=False), base_url=behind_nginx, trust_env=False
        )
        for name, address in (("studio", "127.0.0.1"), ("guesser", "127.0.0.2"), ("newcomer", "127.0.0.3"))
    }
    assert clients["studio"].get("/versions", auth=AUTH).status_code == 200
    codes = [
        clients["guesser"]
        .get("/versions", auth=("lab", f"{n}"), headers={"X-Forwarded-For": f"10.1.1.{n}"})
        .status_code
        for n in range(40)
    ]
    assert codes[:FREE] == [401] * FREE
    assert codes.count(401) < FREE + 5
    assert 429 in codes
    assert clients["guesser"].get("/versions", auth=AUTH).status_code == 429
    for name in ("studio", "newcomer"):
        assert clients[name].get("/versions", auth=AUTH).status_code == 200
    for client in clients.values():
        client.close()
