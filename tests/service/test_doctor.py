"""Every known trap, provoked for real: Label Studio instances with other guards, and a real server of ours."""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from servers import RedisServer
from typer.testing import CliRunner

from backend import cli
from backend.app import make_reconciler, to_env
from backend.demo.child import Child, free_port
from backend.demo.label_studio import LabelStudio
from backend.doctor import Finding, examine, service
from backend.doctor import project as project_checks
from backend.facts import SECRET_HEADER
from backend.records.store import Store
from backend.settings import Settings

pytestmark = pytest.mark.label_studio

CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image"><Label value="Lung"/>'
    "</BrushLabels></View>"
)
CHOICES = (
    '<View><Image name="image" value="$image"/><Choices name="c" toName="image"><Choice value="a"/></Choices></View>'
)
USER, PASSWORD = "label-studio", "open-sesame-7531"


@dataclass
class Bench:
    """Our server with its records, connected to one project of `studio`; a worker runs only when needed."""

    studio: LabelStudio
    settings: Settings
    project: int
    alive: list[Finding]  # findings about the worker while it ran without recent activity

    @property
    def store(self) -> Store:
        return Store(self.settings.data_dir)

    def hook(self) -> dict[str, Any]:
        url = f"{self.settings.public_url}/webhook"
        return next(h for h in self.studio.webhooks(self.project) if h["url"] == url)

    def change_hook(self, **changes: Any) -> None:
        hook = self.hook()
        self.studio.patch(f"/api/webhooks/{hook['id']}/", {"actions": hook["actions"], **changes})


# the worker's own loop, with nothing to do: it takes the requested projects
IDLE_WORKER = """
import threading
from backend.settings import Settings
from backend.workers.worker import Queue
import os
Queue(Settings.from_env(os.environ), lambda project: False).run(threading.Event())
"""


def start(settings: Settings, log: Path, *arguments: str) -> Child:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SCANQUEUE_")}
    return Child("scanqueue", [sys.executable, *arguments], env=kept | to_env(settings), log=log)


@pytest.fixture(scope="module")
def bench(label_studio: LabelStudio, tmp_path_factory: pytest.TempPathFactory, phantom_folder: Path) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("doctor")
    port = free_port()
    settings = Settings(
        label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.personal_access_token(),
        public_url=f"http://127.0.0.1:{port}",
        port=port,
        data_dir=folder / "data",
        user=USER,
        password=PASSWORD,
        embedder="pixels",
        image_size=64,
    )
    server = start(settings, folder / "server.log", "-m", "backend.cli", "serve", "--no-worker")
    patch = pytest.MonkeyPatch()
    try:
        store = Store(settings.data_dir)
        reconciler = make_reconciler(settings, store, threading.Event())
        project = label_studio.create_project("doctor", CONFIG)
        label_studio.import_files(project, sorted((phantom_folder / "images").glob("*.png"))[:6])
        server.wait_healthy(f"{settings.public_url}/health", timeout=120)
        label_studio.connect_backend(project, settings.public_url, user=USER, password=PASSWORD)
        reconciler.reconcile(project)
        store.set_project(project, seen_at=0.0)
        worker = start(settings, folder / "worker.log", "-c", IDLE_WORKER)
        try:
            alive = list(project_checks.check_worker(settings, store, project))
        finally:
            worker.stop()
        store.set_project(project, seen_at=time.time())
        patch.setattr(project_checks, "PICKED_UP", 1.0)  # from here on, no worker runs
        yield Bench(label_studio, settings, project, alive)
    finally:
        patch.undo()
        server.stop()


class Answering:
    post_status = 0  # if set, the status with which the servers of `answering` reply to every POST


@contextmanager
def answering(status: int, body: str, kind: str = "text/html") -> Iterator[str]:
    """A web server that always gives the same answer; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response((self.command == "POST" and Answering.post_status) or status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    with _running(Handler) as url:
        yield url


@contextmanager
def stripping(target: str, header: str) -> Iterator[str]:
    """A proxy that forwards everything to `target` except one header."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kept = {k: v for k, v in self.headers.items() if k.lower() not in (header.lower(), "connection")}
            answer = httpx.request(self.command, target + self.path, headers=kept, content=body, trust_env=False)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers.get("content-type", ""))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    with _running(Handler) as url:
        yield url


@contextmanager
def _running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def of(findings: list[Finding], check: str) -> list[Finding]:
    return [f for f in findings if f.check == check]


def one(findings: list[Finding], check: str, level: str) -> Finding:
    """The only finding with this check and level."""
    found = [f for f in findings if f.check == check and f.level == level]
    assert len(found) == 1, findings
    assert level == "ok" or found[0].cure.endswith("."), found
    return found[0]


def bad(findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if f.level != "ok"]


# -- a healthy setup --------------------------------------------------------------------------


def test_a_healthy_setup_has_nothing_to_fix(bench: Bench) -> None:
    findings = examine(bench.settings, bench.project)
    assert bad(findings) == []
    assert one(findings, "token", "ok").what == "The personal access token of admin@example.com is accepted."
    assert one(findings, "queue", "ok").what == "Annotators are served scanqueue-r0 by ascending score."
    checks = [f.check for f in findings]
    assert checks == [
        "listening",
        "data-folder",
        "server",
        "embedder",
        "encoder",
        "label-studio",
        "token",
        "address",
        "project",
        "label-config",
        "backend",
        "records",
        "webhook",
        "queue",
        "worker",
    ]


def test_the_examination_changes_nothing_in_label_studio(bench: Bench) -> None:
    def state() -> Any:
        project = bench.studio.get(f"/api/projects/{bench.project}/")
        backends = bench.studio.get("/api/ml", project=bench.project)
        return project, [b["id"] for b in backends], bench.studio.webhooks(bench.project)

    before = state()
    examine(bench.settings, bench.project)
    assert state() == before


def test_no_finding_contains_a_secret(bench: Bench) -> None:
    row = bench.store.project(bench.project)
    assert row is not None
    secrets = [bench.settings.label_studio_api_key, PASSWORD, row["secret"]]
    for settings in (bench.settings, replace(bench.settings, label_studio_api_key="0123abcd" * 5)):
        text = json.dumps([f.to_dict() for f in examine(settings, bench.project)])
        assert not [s for s in [*secrets, settings.label_studio_api_key] if s in text]


def test_the_command_prints_findings_and_exits_with_1_on_errors(bench: Bench) -> None:
    environment: dict[str, str | None] = {**to_env(bench.settings)}
    done = CliRunner().invoke(cli.app, ["doctor", "--json"], env=environment)
    assert done.exit_code == 0, done.output
    assert {"check", "level", "what", "cure"} == set(json.loads(done.stdout)["checks"][0])
    environment["SCANQUEUE_LABEL_STUDIO_API_KEY"] = None
    done = CliRunner().invoke(cli.app, ["doctor"], env=environment)
    assert done.exit_code == 1
    assert "SCANQUEUE_LABEL_STUDIO_API_KEY" in done.output.replace("\n", "")


# -- our side ---------------------------------------------------------------------------------


def test_listening_beyond_this_machine_needs_credentials() -> None:
    found = one(list(service.check_listening(Settings(host="0.0.0.0"))), "listening", "error")
    assert "SCANQUEUE_USER" in found.cure


def test_the_data_folder_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/proc/scanqueue")):
        found = one(list(service.check_data_folder(Settings(data_dir=folder))), "data-folder", "error")
        assert "SCANQUEUE_DATA_DIR" in found.cure
    monkeypatch.setattr(service, "FREE_BYTES", 10**18)
    found = one(list(service.check_data_folder(Settings(data_dir=tmp_path / "new"))), "data-folder", "warning")
    assert "Free disk space" in found.cure
    assert not (tmp_path / "new").exists()


def test_an_unreachable_job_queue_is_reported(tmp_path: Path) -> None:
    assert list(service.check_job_queue(Settings())) == []
    with RedisServer(tmp_path / "redis", password="hush") as broker:
        settings = Settings(redis_url=broker.url)
        assert [f.level for f in service.check_job_queue(settings)] == ["ok"]
        broker.kill()
        (found,) = service.check_job_queue(settings)
    assert found.level == "error"
    assert f"127.0.0.1:{broker.port} does not answer" in found.what
    assert "hush" not in found.what + found.cure


def test_the_next_step_is_reported(tmp_path: Path) -> None:
    settings = Settings(user=USER, password=PASSWORD)
    (found,) = service.suggest_next_step(settings, None, "http://scanqueue.internal:9090")
    assert "Connect Model, http://scanqueue.internal:9090 with Basic Authentication" in found.what
    assert PASSWORD not in found.what
    store = Store(tmp_path)
    store.add_project(7)
    (found,) = service.suggest_next_step(settings, store, "http://scanqueue.internal:9090")
    assert found.what == "Connected projects: 7. To check one: scanqueue doctor --project 7"


def test_a_server_that_is_down_or_behind_a_proxy_is_reported(bench: Bench) -> None:
    settings = replace(bench.settings, public_url=f"http://127.0.0.1:{free_port()}")
    found = one(list(service.check_server(settings, settings.public_url)), "server", "error")
    assert found.what.endswith(f"The server does answer at http://127.0.0.1:{settings.port}.")
    assert "SCANQUEUE_PUBLIC_URL" in found.cure
    with answering(200, "<html>Sign in</html>") as url:
        found = one(list(service.check_server(settings, url)), "server", "error")
    assert "(200, text/html)" in found.what
    assert "proxy" in found.cure
    with stripping(bench.settings.public_url, "Authorization") as url:
        found = one(list(service.check_server(settings, url)), "server", "error")
    assert "SCANQUEUE_PASSWORD" in found.cure
    assert "Authorization" in found.cure


def test_the_fallback_to_pixels_is_reported_with_the_missing_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = one(list(service.check_embedder(Settings(weights_dir=tmp_path), None)), "embedder", "ok")
    assert "using the built-in efficientnet-lite0" in found.what
    monkeypatch.setattr("backend.learning.weights.find_spec", lambda name: None)
    found = one(list(service.check_embedder(Settings(weights_dir=tmp_path), None)), "embedder", "warning")
    assert f"{tmp_path / 'biomedclip'}/" in found.cure
    assert "open_clip_config.json and open_clip_model.safetensors" in found.cure
    assert "SCANQUEUE_WEIGHTS_DIR" in found.cure
    missing = Settings(weights_dir=tmp_path, embedder="timm:local-dir:chest")
    found = one(doctor_findings("embedder", missing), "embedder", "error")
    assert "model.safetensors" in found.cure
    found = one(doctor_findings("embedder", Settings(embedder="resnet")), "embedder", "error")
    assert "embedder: got 'resnet'" in found.what


def test_only_rounds_point_to_another_scanqueue(tmp_path: Path) -> None:
    store, page = Store(tmp_path), cast(Any, None)  # without rounds, the page is not looked at
    store.add_project(7)
    # a new backend's title is the project's model version, and imported masks have one too
    (found,) = project_checks.check_queue(store, 7, page, [], ["scanqueue", "imported-masks"])
    assert found.level == "ok"
    found = one(list(project_checks.check_queue(store, 7, page, [], ["scanqueue-r0"])), "queue", "warning")
    assert "predictions scanqueue-r0 that" in found.what


def test_encoder_weights_are_checked(tmp_path: Path) -> None:
    settings = Settings(encoder=f"resnet18@{tmp_path / 'encoder.pth'}", device="cpu")
    found = one(doctor_findings("encoder", settings), "encoder", "error")
    assert f"{tmp_path / 'encoder.pth'}" in found.what
    found = one(doctor_findings("encoder", Settings(encoder="resnet17", device="cpu")), "encoder", "error")
    assert "resnet17" in found.what


def doctor_findings(check: str, settings: Settings) -> list[Finding]:
    """The findings of one check on our side, with Label Studio unreachable."""
    away = replace(settings, label_studio_url="http://127.0.0.1:9", data_dir=Path("/proc/none"))
    return of(examine(away), check)


def test_dead_live_and_busy_workers_are_distinguished(bench: Bench) -> None:
    assert [f.level for f in bench.alive] == ["ok"]
    store = bench.store
    store.set_project(bench.project, seen_at=time.time() - 600)
    try:
        with store.lock(bench.project):
            found = list(project_checks.check_worker(bench.settings, bench.store, bench.project))
            assert one(found, "worker", "ok").what == "A worker is processing the project."
        gone = one(list(project_checks.check_worker(bench.settings, store, bench.project)), "worker", "error")
        assert "for 10 minutes" in gone.what
        assert "`scanqueue worker`" in gone.cure
    finally:
        store.set_project(bench.project, seen_at=time.time())


# -- Label Studio -----------------------------------------------------------------------------


def test_a_label_studio_that_does_not_answer_ends_the_examination() -> None:
    cases = [(502, "Bad Gateway", "server error 502"), (200, "<html></html>", "is not Label Studio: 200")]
    for status, body, words in cases:
        with answering(status, body) as url:
            findings = examine(Settings(label_studio_url=url, label_studio_api_key="x", embedder="pixels"), 1)
        found = one(findings, "label-studio", "error")
        assert words in found.what
        assert "SCANQUEUE_LABEL_STUDIO_URL" in found.cure
        assert not of(findings, "token")
    findings = examine(Settings(label_studio_url=f"http://127.0.0.1:{free_port()}", embedder="pixels"))
    assert "Nothing answers" in one(findings, "label-studio", "error").what


def test_another_version_is_a_warning() -> None:
    with answering(200, '{"release": "1.12.0"}', "application/json") as url:
        findings = examine(Settings(label_studio_url=url, embedder="pixels"))
    assert "1.12.0" in one(findings, "version", "warning").what
    assert "1.23.2" in one(findings, "version", "warning").cure


def jwt(**claims: Any) -> str:
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    texts = [base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts]
    return ".".join([*texts, "c2lnbmF0dXJl"])


def test_each_kind_of_wrong_token_has_its_own_advice(label_studio: LabelStudio, tmp_path: Path) -> None:
    def token(key: str, level: str = "error") -> Finding:
        settings = Settings(
            label_studio_url=label_studio.url, label_studio_api_key=key, data_dir=tmp_path, embedder="pixels"
        )
        findings = examine(settings)
        assert bool(of(findings, "address")) == (level == "ok")
        return one(findings, "token", level)

    pat = label_studio.personal_access_token()
    access = httpx.post(f"{label_studio.url}/api/token/refresh/", json={"refresh": pat}, trust_env=False).json()[
        "access"
    ]
    later = time.time() + 1e6
    cases = {
        "": "No Label Studio token",
        access: "is an access token, which expires after five minutes",
        jwt(token_type="refresh", exp=1_600_000_000): "expired on 2020-09-13",
        jwt(token_type="refresh", exp=later, jti="x"): "does not accept the personal access token",
        "0123456789abcdef" * 2 + "01234567": "does not know this legacy token",
        "correct horse": "neither a personal access token nor a legacy token",
        label_studio.legacy_token(): "this organization has disabled legacy tokens",
    }
    for key, words in cases.items():
        found = token(key)
        assert words in found.what
        assert "Account & Settings > Personal Access Token" in found.cure
        assert "SCANQUEUE_LABEL_STUDIO_API_KEY" in found.cure
    assert "Organization > API Tokens Settings > Legacy Tokens" in token(label_studio.legacy_token()).cure
    label_studio.legacy_tokens(True)
    try:
        assert token(label_studio.legacy_token(), "ok").what.startswith("The legacy token of admin@example.com")
    finally:
        label_studio.legacy_tokens(False)


def test_the_default_guards_are_reported(default_studio: LabelStudio, tmp_path: Path) -> None:
    findings = guarded(default_studio, tmp_path)
    assert "neither an ML backend nor a webhook" in one(findings, "address", "error").what
    assert "Settings > Model > Connect Model" in one(findings, "backend", "error").cure


def test_a_half_open_guard_is_reported(tmp_path: Path) -> None:
    with LabelStudio.start(tmp_path / "label-studio", guards="ml-only-off") as studio:
        findings = guarded(studio, tmp_path)
    assert "ML_BLOCK_LOCAL_IP=false disables only one of two checks" in one(findings, "address", "error").what
    assert one(findings, "backend", "ok")  # the row is still there, and Label Studio shows it as Connected


def guarded(studio: LabelStudio, folder: Path) -> list[Finding]:
    """The findings about a Label Studio that does not call this machine."""
    with _our_health() as url:
        settings = Settings(
            label_studio_url=studio.url,
            label_studio_api_key=studio.personal_access_token(),
            public_url=url,
            data_dir=folder / "data",
            embedder="pixels",
        )
        project = studio.create_project("guarded", CONFIG)
        with pytest.raises(Exception, match="reserved network address"):
            studio.connect_backend(project, url)
        Store(settings.data_dir).add_project(project)
        findings = examine(settings, project)
    address = one(findings, "address", "error")
    assert "127.0.0.0/8" in address.what
    for words in ("USE_DEFAULT_BANNED_SUBNETS=false", "169.254.0.0/16", "SSRF_PROTECTION_ENABLED=false"):
        assert words in address.cure
    assert "USE_DEFAULT_BANNED_SUBNETS=false" in one(findings, "webhook", "error").cure
    return findings


@contextmanager
def _our_health() -> Iterator[str]:
    with answering(200, '{"model_class": "scanqueue", "model_version": "scanqueue-r0"}', "application/json") as url:
        yield url


def test_an_address_that_label_studio_cannot_use_is_reported(bench: Bench) -> None:
    def address(url: str) -> list[Finding]:
        return of(examine(replace(bench.settings, public_url=url)), "address")

    dotless = [f for f in address("http://localbackend:9090") if "has no dot" in f.what]
    assert len(dotless) == 1
    assert "localbackend.internal" in dotless[0].cure
    assert "SCANQUEUE_PUBLIC_URL" in dotless[0].cure
    found = one(address("http://backend.example.invalid:9090"), "address", "error")
    assert "cannot look up the host" in found.what
    assert "SCANQUEUE_PUBLIC_URL" in found.cure


# -- one project ------------------------------------------------------------------------------


def test_a_missing_project_ends_the_examination(bench: Bench) -> None:
    findings = examine(bench.settings, 987654)
    assert "no such project" in one(findings, "project", "error").what
    assert findings[-1].check == "project"


def test_a_label_config_without_masks_is_explained(bench: Bench) -> None:
    project = bench.studio.create_project("choices", CHOICES)
    findings = examine(bench.settings, project)
    found = one(findings, "label-config", "error")
    assert "no tag that draws masks" in found.what
    assert "Settings > Labeling Interface" in found.cure
    assert "Settings > Model > Connect Model" in one(findings, "backend", "error").cure
    assert "--data-dir" in one(findings, "records", "error").cure


def test_webhooks_that_never_arrive_are_detected(bench: Bench) -> None:
    hook = bench.hook()
    right = {k: hook[k] for k in ("is_active", "send_payload", "send_for_all_actions", "headers", "actions")}

    def webhook(level: str, **changes: Any) -> list[Finding]:
        bench.change_hook(**changes)
        found = of(examine(bench.settings, bench.project), "webhook")
        bench.change_hook(**right)
        assert {f.level for f in found} == {level}
        return found

    findings = webhook("error", is_active=False, send_payload=False, send_for_all_actions=False, headers={})
    assert [f.cure.partition(" in ")[0] for f in findings[:3]] == [
        "Turn on Is Active",
        "Turn on Send payload",
        "Turn on Send for all actions",
    ]
    assert "for any action" in findings[2].what
    assert f"no {SECRET_HEADER}" in findings[3].what
    assert "Settings > Webhooks" in findings[0].cure
    assert "worker" in findings[3].cure
    some = webhook("warning", send_for_all_actions=False, actions=["ANNOTATION_CREATED"])
    assert "ANNOTATION_UPDATED" in some[0].what
    wrong = webhook("error", headers={SECRET_HEADER: "not ours"})
    assert f"a wrong {SECRET_HEADER}" in wrong[0].what

    elsewhere = {"project": bench.project, "url": "http://127.0.0.1:1/webhook", "headers": {SECRET_HEADER: "x"}}
    left = bench.studio.post("/api/webhooks/", elsewhere)
    try:
        found = of(examine(bench.settings, bench.project), "webhook")
        assert "http://127.0.0.1:1/webhook" in one(found, "webhook", "warning").what
        assert one(found, "webhook", "warning").cure == "Delete it in Settings > Webhooks."
        bench.studio.delete(f"/api/webhooks/{hook['id']}/")
        gone = one(examine(bench.settings, bench.project), "webhook", "error")
        assert f"no webhook to {bench.settings.public_url}/webhook" in gone.what
        assert "it goes to http://127.0.0.1:1/webhook" in gone.what
        assert "Settings > Webhooks > Add Webhook" in gone.cure
    finally:
        bench.studio.delete(f"/api/webhooks/{left['id']}/")
        bench.studio.post("/api/webhooks/", {"project": bench.project, "url": hook["url"], **right})


def test_a_proxy_that_drops_the_secret_header_is_detected(bench: Bench) -> None:
    row = bench.store.project(bench.project)
    assert row is not None
    with stripping(bench.settings.public_url, SECRET_HEADER) as url:
        hook = {"project": bench.project, "url": f"{url}/webhook", "headers": {SECRET_HEADER: row["secret"]}}
        made = bench.studio.post("/api/webhooks/", hook)
        try:
            findings = examine(replace(bench.settings, public_url=url), bench.project)
        finally:
            bench.studio.delete(f"/api/webhooks/{made['id']}/")
    assert one(findings, "webhook", "error").cure == f"Let the proxy forward the header {SECRET_HEADER}."
    assert "not to" in one(findings, "backend", "warning").what
    assert "set SCANQUEUE_PUBLIC_URL" in one(findings, "backend", "warning").cure


def test_a_queue_that_is_not_served_is_detected(bench: Bench) -> None:
    path = f"/api/projects/{bench.project}/"
    wrong = {"model_version": "scanqueue", "sampling": "Sequential sampling", "maximum_annotations": 2}
    right = {
        "model_version": "scanqueue-r0",
        "sampling": "Uncertainty sampling",
        "maximum_annotations": 1,
        "show_collab_predictions": True,
    }
    try:
        bench.studio.patch(path, wrong)
        findings = examine(bench.settings, bench.project)
        title, sampling = of(findings, "queue")
        assert {title.level, sampling.level} == {"error"}
        assert "by title" in title.what
        assert "Select scanqueue-r0 in Settings > Annotation" in title.cure
        assert "Settings > Annotation > Task Sampling > Uncertainty sampling" in sampling.cure
        assert "maximum_annotations to 1" in one(findings, "annotators", "warning").cure
        bench.studio.patch(path, {**right, "show_collab_predictions": False})
        found = one(examine(bench.settings, bench.project), "queue", "error")
        assert "Use predictions to prelabel tasks" in found.cure
    finally:
        bench.studio.patch(path, right)


def test_a_missing_queue_before_the_first_round_is_no_error(bench: Bench) -> None:
    project = bench.studio.create_project("empty", CONFIG)
    bench.studio.connect_backend(project, bench.settings.public_url, user=USER, password=PASSWORD)
    assert "first round sets" in one(examine(bench.settings, project), "queue", "ok").what


def test_foreign_and_unreachable_backends_are_detected(bench: Bench) -> None:
    with answering(200, "{}", "application/json") as other:
        project = bench.studio.create_project("two models", CONFIG)
        bench.studio.connect_backend(project, other, title="other")
        alone = one(examine(bench.settings, project), "backend", "error")
        assert f"connected to {other}, not to {bench.settings.public_url}" in alone.what
        assert "Settings > Model" in alone.cure
        body = {"user": USER, "password": PASSWORD, "extra_params": {"rounds": 3}}
        ours = bench.studio.connect_backend(project, bench.settings.public_url, **body)
        second, extra = (f for f in of(examine(bench.settings, project), "backend") if f.level == "error")
        assert f"uses only the first one, {other}" in second.what
        assert "Remove the others in Settings > Model" in second.cure
        assert "'rounds' is not a project setting" in extra.what
        assert "extra params in Settings > Model" in extra.cure
    path, body = f"/api/ml/{ours['id']}", {"project": project, "url": bench.settings.public_url}
    body |= {"auth_method": "BASIC_AUTH", "basic_auth_user": USER, "basic_auth_pass": PASSWORD}
    bench.studio.patch(path, body | {"is_interactive": True})
    prompts = [f for f in of(examine(bench.settings, project), "backend") if "Interactive preannotations" in f.what]
    assert [(f.level, "KeyPointLabels" in f.cure) for f in prompts] == [("warning", True)]
    label = '<Label value="Lung" alias="L"/>'
    smart = f'<KeyPointLabels name="click" toName="image" smart="true">{label}</KeyPointLabels></View>'
    for text, count in ((CONFIG, 1), (CONFIG.replace("<BrushLabels ", '<BrushLabels smart="false" '), 0)):
        bench.studio.patch(f"/api/projects/{project}/", {"label_config": text.replace("</View>", smart)})
        assert not [f for f in of(examine(bench.settings, project), "backend") if "labels that no mask has" in f.what]
        first = [f for f in of(examine(bench.settings, project), "backend") if "never asks for a mask" in f.what]
        assert [(f.level, 'smart="false"' in f.cure) for f in first] == [("warning", True)] * count
    bench.studio.patch(path, body | {"is_interactive": False})
    inside = bench.settings.public_url.replace("://", f"://{USER}:{PASSWORD}@")
    bench.studio.patch(f"/api/ml/{ours['id']}", {"project": project, "url": inside, "extra_params": None})
    findings = examine(bench.settings, project)
    found = one([f for f in findings if "password" in f.what], "backend", "warning")
    assert "Basic Authentication" in found.cure
    assert PASSWORD not in json.dumps([f.to_dict() for f in findings])


def test_credentials_that_were_set_after_the_connection_are_reported_as_missing(bench: Bench) -> None:
    project = bench.studio.create_project("connected early", CONFIG)
    health = '{"model_class": "scanqueue", "model_version": "scanqueue-r0"}'
    with answering(200, health, "application/json") as url:
        bench.studio.connect_backend(project, url)
        Answering.post_status = 401
        try:
            found = one(examine(replace(bench.settings, public_url=url), project), "backend", "error")
        finally:
            Answering.post_status = 0
    assert "calls us without credentials" in found.what
    assert "SCANQUEUE_PASSWORD in Settings > Model" in found.cure


def test_a_backend_that_label_studio_cannot_reach_is_detected(bench: Bench) -> None:
    project = bench.studio.create_project("unreached", CONFIG)
    with _our_health() as url:
        bench.studio.connect_backend(project, url)
    found = one(examine(replace(bench.settings, public_url=url, user="", password=""), project), "backend", "error")
    assert f"cannot reach {url}" in found.what
    assert "SCANQUEUE_PUBLIC_URL" in found.cure


def test_scans_that_cannot_be_read_are_listed(bench: Bench) -> None:
    store = bench.store
    task = store.scans(bench.project)[0]["task"]
    store.set_scans(bench.project, [{"task": task, "problem": "truncated."}])
    store.set_project(bench.project, trouble="The disk is full. Free disk space.")
    try:
        findings = examine(bench.settings, bench.project)
    finally:
        store.set_scans(bench.project, [{"task": task, "problem": ""}])
        store.set_project(bench.project, trouble="")
    assert f"task {task}: truncated." in one(findings, "scans", "warning").what
    assert "scanqueue status --project" in one(findings, "scans", "warning").cure
    assert one(findings, "scans", "error").cure == "Free disk space."
