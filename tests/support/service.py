"""A real `scanqueue serve` with its worker, in separate processes, for the end-to-end tests."""

from __future__ import annotations

import abc
import contextlib
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import httpx

from backend.demo.administrator import Administrator
from backend.demo.annotator import Annotator, Control, to_result
from backend.demo.child import Child, free_port
from backend.demo.label_studio import LabelStudio
from backend.demo.phantoms import write_phantoms
from backend.facts import PENDING
from backend.records.store import Store

BRUSH = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="tag" toName="image"><Label value="Lung"/></BrushLabels></View>'
)
CONTROL = Control("tag", "image", "brushlabels")

QUICK = {
    "SCANQUEUE_EMBEDDER": "pixels",
    "SCANQUEUE_ENCODER": "tu-test_resnet",  # learns phantoms and lungs in a quarter of the time of the default
    "SCANQUEUE_IMAGE_SIZE": "64",
    "SCANQUEUE_TRAINING_STEPS": "40",
}
LENGTHY = {"SCANQUEUE_TRAINING_STEPS": "120"}  # for tests that do something during a training


def phantom_scans(folder: Path, count: int, *, seed: int, side: int = 256) -> list[tuple[Path, Path]]:
    """Synthetic radiographs in `folder`, each with the mask of its lungs (0 or 255)."""
    write_phantoms(folder, count, seed=seed, size=(side, side))
    pairs = []
    for image in sorted((folder / "images").glob("*.png")):
        path = folder / "masks" / image.name
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        assert cv2.imwrite(str(path), (mask == 1).astype("uint8") * 255)
        pairs.append((image, path))
    return pairs


class Remote(abc.ABC):
    """A running scanqueue, seen from outside. `credentials`: the required user name and password, or None."""

    http: httpx.Client
    public_url: str
    credentials: tuple[str, str] | None = None

    @abc.abstractmethod
    def log(self) -> str:
        """Everything its processes have logged."""

    def get(self, path: str) -> Any:
        response = self.http.get(path)
        assert response.status_code == 200, f"{path}: {response.status_code} {response.text[:300]}"
        return response.json()

    def status(self, project: int) -> dict[str, Any]:
        return dict(self.get(f"/api/projects/{project}"))

    def wait(self, project: int, ready: Callable[[dict[str, Any]], bool], *, seconds: float = 240) -> dict[str, Any]:
        """Poll the status until `ready`; fails with the last status and the end of the log."""
        until = time.monotonic() + seconds
        seen: dict[str, Any] = {}
        while time.monotonic() < until:
            with contextlib.suppress(httpx.TransportError):
                response = self.http.get(f"/api/projects/{project}")
                if response.status_code == 200:
                    seen = response.json()
                    if ready(seen):
                        return seen
            time.sleep(0.3)
        raise AssertionError(f"not within {seconds:.0f} s; last status: {seen}\n{self.log()[-3000:]}")


class Service(Remote):
    """scanqueue connected to `studio`; can be stopped, killed and restarted on the same folder."""

    def __init__(
        self,
        studio: LabelStudio,
        folder: Path,
        *,
        public_port: int = 0,
        env: Mapping[str, str] | None = None,
        workers: int | None = None,
    ) -> None:
        """workers: number of `scanqueue worker` beside `serve --no-worker`; default: the one that serve starts."""
        self.port = free_port()
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.public_url = f"http://127.0.0.1:{public_port or self.port}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SCANQUEUE_")}
        self._env = {
            **kept,
            **QUICK,
            "PYTHONUNBUFFERED": "1",
            "SCANQUEUE_LABEL_STUDIO_URL": studio.url,
            "SCANQUEUE_LABEL_STUDIO_API_KEY": studio.personal_access_token(),
            "SCANQUEUE_PUBLIC_URL": self.public_url,
            "SCANQUEUE_DATA_DIR": str(folder),
            "SCANQUEUE_PORT": str(self.port),
            **(env or {}),
        }
        user = self._env.get("SCANQUEUE_USER")
        self.credentials = (user, self._env["SCANQUEUE_PASSWORD"]) if user else None
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=30, auth=self.credentials)
        self._child: Child | None = None
        self._number = workers
        self.workers: list[Child] = []

    def start_worker(self) -> Child:
        number = len(self.workers)
        command = [sys.executable, "-m", "backend.cli", "worker"]
        log = self.folder.with_suffix(f".worker-{number}.log")
        self.workers.append(Child(f"worker {number}", command, env=self._env, log=log))
        return self.workers[-1]

    def start(self) -> Service:
        for _ in range(self._number or 0):
            self.start_worker()
        self.start_server()
        return self

    def start_server(self) -> None:
        command = [sys.executable, "-m", "backend.cli", "serve"]
        if self._number is not None:
            command.append("--no-worker")
        self._child = Child("scanqueue", command, env=self._env, log=self.folder.with_suffix(".log"))
        self._child.wait_healthy(f"{self.url}/health", timeout=180)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of its processes, for other commands."""
        return dict(self._env)

    @property
    def pid(self) -> int:
        """Process id of the server."""
        assert self._child is not None
        return self._child.pid

    def kill_server(self) -> None:
        """SIGKILL the server; workers that were started beside it survive."""
        assert self._number is not None
        self._kill()

    def kill(self) -> None:
        """SIGKILL server and worker at the same time."""
        self._kill()

    def _kill(self) -> None:
        assert self._child is not None
        os.killpg(self._child.pid, signal.SIGKILL)
        self._child.stop()
        self._child = None

    def stop(self) -> None:
        for child in [*self.workers, *([self._child] if self._child else [])]:
            child.stop(grace=40)
        self.workers, self._child = [], None

    def __enter__(self) -> Service:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.http.close()

    def log(self) -> str:
        logs = [self.folder.with_suffix(".log"), *sorted(self.folder.parent.glob(f"{self.folder.name}.worker-*.log"))]
        return "".join(log.read_text() for log in logs if log.exists())


class Lab:
    """A project with scans and their true masks, and annotators who label through Label Studio only."""

    def __init__(
        self,
        studio: Administrator,
        scans: Sequence[tuple[Path, Path]],
        *,
        annotators: int = 2,
        config: str = BRUSH,
        extra_params: Mapping[str, Any] | None = None,
    ) -> None:
        self.studio = studio
        # the small network of QUICK may draw worse than the quick model; it takes over all the same
        self.extra_params = {"tolerance": 1.0, **(extra_params or {})}
        self.project = studio.create_project("chest radiographs", config)
        tasks = studio.import_files(self.project, [image for image, _ in scans])
        self.names = {task: image.name for task, (image, _) in zip(tasks, scans, strict=True)}
        self._masks = {task: mask for task, (_, mask) in zip(tasks, scans, strict=True)}
        self.annotators = []
        for number in range(1, annotators + 1):
            email = f"reader{number}-of-{self.project}@example.com"
            studio.invite(email, "reading-room")
            self.annotators.append(Annotator(studio.url, email, "reading-room"))
        self.labelled: list[int] = []

    def connect(self, service: Remote) -> None:
        user, password = service.credentials or (None, None)
        self.studio.connect_backend(
            self.project, service.public_url, user=user, password=password, extra_params=self.extra_params
        )

    def truth(self, task: int) -> list[dict[str, Any]]:
        mask = cv2.imread(str(self._masks[task]), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        return list(to_result({"Lung": mask > 127}, CONTROL))

    def label(self, count: int) -> list[dict[str, Any]]:
        """The annotators take turns: both request a task, then both submit the true mask. Returns the served tasks."""
        served: list[dict[str, Any]] = []
        while len(served) < count:
            held = []
            for annotator in self.annotators[: count - len(served)]:
                task = annotator.next_task(self.project)
                assert task is not None, f"the queue ran dry after {len(self.labelled)} labels"
                held.append(task)
            assert len({task["id"] for task in held}) == len(held), "two annotators hold the same task"
            for annotator, task in zip(self.annotators, held, strict=False):
                annotator.submit(task, self.truth(task["id"]))
                self.labelled.append(task["id"])
            served += held
        return served

    def served_version(self) -> str:
        return str(self.studio.get(f"/api/projects/{self.project}/")["model_version"])

    def wait_for_round(self, n: int, *, seconds: float = 600) -> None:
        """Wait until Label Studio serves round n; queries only Label Studio."""
        until = time.monotonic() + seconds
        while self.served_version() != f"scanqueue-r{n}":
            assert time.monotonic() < until, f"round {n} was not served; it is {self.served_version()!r}"
            time.sleep(0.5)

    def predictions(self) -> list[dict[str, Any]]:
        """All predictions, without their age, which changes every minute."""
        rows = self.studio.get("/api/predictions/", project=self.project)
        return [{key: value for key, value in row.items() if key != "created_ago"} for row in rows]

    def check_complete(self, store: Store, rounds: int) -> None:
        """Check that nothing was lost or duplicated: every label learnt from, each round trained and published once."""
        versions = [f"scanqueue-r{n}" for n in range(1, rounds + 1)]
        models = store.models(self.project)
        assert [m["version"] for m in models] == versions
        assert len(models[-1]["trained_on"]) == len(self.labelled)
        assert {r["task"] for r in store.labels(self.project) if r["mask"] and not r["problem"]} == set(self.labelled)
        scans = store.scans(self.project)
        assert {s["task"] for s in scans} == set(self.names)
        assert {s["task"] for s in scans if s["annotated"]} == set(self.labelled)
        assert all(s["digest"] and not s["problem"] for s in scans)
        counts = Counter((p["task"], p["model_version"]) for p in self.predictions())
        assert set(counts.values()) == {1}
        # an annotator who requests a task before the first round gets one without a round
        assert {version for _, version in counts} - {PENDING} == {"scanqueue-r0", *versions}

    def close(self) -> None:
        for annotator in self.annotators:
            annotator.close()


class Forwarder:
    """Forwards requests to `target` and records their paths; on demand, it answers wrongly, late, or not at all."""

    def __init__(self, target: str = "") -> None:
        self.target = target
        self.paths: list[str] = []
        self.status = 0  # returned instead of forwarding
        self.delay = 0.0  # seconds before forwarding
        self.hangs_up = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.paths.append(self.path)
                time.sleep(outer.delay)
                if outer.hangs_up:
                    self.close_connection = True
                    return
                if outer.status:
                    self._answer(outer.status, "application/json", b'{"detail": "no luck"}')
                    return
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                headers["Host"] = self.headers["Host"]
                answer = httpx.request(
                    self.command, outer.target + self.path, content=body, headers=headers, timeout=100, trust_env=False
                )
                self._answer(answer.status_code, answer.headers.get("content-type", ""), answer.content)

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PATCH = do_DELETE = _pass

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.delay, self.hangs_up, self.status = 0.0, False, 0
        self._server.shutdown()
        self._server.server_close()
