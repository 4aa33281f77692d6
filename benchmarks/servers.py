"""The real servers that benchmarks use: Label Studio, and `scanqueue serve` with its worker."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import httpx
import numpy as np

from backend.demo.annotator import Control, Mask, Result, to_brush
from backend.demo.child import Child, free_port
from backend.demo.label_studio import LabelStudio
from backend.demo.phantoms import phantom

CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="tag" toName="image"><Label value="Lung"/></BrushLabels></View>'
)
CONTROL = Control("tag", "image", "brushlabels")
USER, PASSWORD = "scanqueue", "benchmark"


class Service:
    """A running `scanqueue serve` connected to `studio`, with a user name and password as in a lab."""

    def __init__(
        self, studio: LabelStudio, folder: Path, settings: Mapping[str, str], *, threads: int | None = None
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=120, auth=(USER, PASSWORD))
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("SCANQUEUE_")}
        self.environment = {
            **inherited,
            "PYTHONUNBUFFERED": "1",
            "SCANQUEUE_LABEL_STUDIO_URL": studio.url,
            "SCANQUEUE_LABEL_STUDIO_API_KEY": studio.personal_access_token(),
            "SCANQUEUE_PUBLIC_URL": self.url,
            "SCANQUEUE_DATA_DIR": str(folder),
            "SCANQUEUE_PORT": str(port),
            "SCANQUEUE_USER": USER,
            "SCANQUEUE_PASSWORD": PASSWORD,
            "SCANQUEUE_EMBEDDER": "pixels",
            **settings,
        }
        if threads is not None:
            self.environment["OMP_NUM_THREADS"] = str(threads)
        self._child = Child(
            "scanqueue", [sys.executable, "-m", "backend.cli", "serve"], env=self.environment, log=folder / "serve.log"
        )
        self._child.wait_healthy(f"{self.url}/health", timeout=180)

    @property
    def pid(self) -> int:
        return self._child.pid

    def connect(self, studio: LabelStudio, project: int, **extra_params: Any) -> None:
        studio.connect_backend(project, self.url, user=USER, password=PASSWORD, extra_params=extra_params)

    def status(self, project: int) -> dict[str, Any]:
        response = self.http.get(f"/api/projects/{project}")
        return dict(response.json()) if response.status_code == 200 else {}

    def wait(self, project: int, ready: Callable[[dict[str, Any]], bool], *, seconds: float = 600) -> dict[str, Any]:
        """Poll the status until `ready`; raises TimeoutError with the last status and the end of the log."""
        until = time.monotonic() + seconds
        while True:
            seen = self.status(project)
            if seen and ready(seen):
                return seen
            if time.monotonic() > until:
                raise TimeoutError(f"not ready within {seconds:.0f} s: {seen}\n{self._child.tail()}")
            time.sleep(0.3)

    def stop(self) -> None:
        self.http.close()
        self._child.stop(grace=40)


@contextmanager
def backend() -> Iterator[str]:
    """The URL of a server that says yes to everything, for a loop that runs in this process instead of behind it."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"status": "UP", "model_version": ""}')

        do_GET = do_POST = _answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def label_studio() -> Iterator[tuple[LabelStudio, Path]]:
    """A new Label Studio and a scratch folder; both are removed afterwards."""
    with TemporaryDirectory(prefix="scanqueue-benchmark-") as scratch:
        folder = Path(scratch)
        with LabelStudio.start(folder / "label-studio") as studio:
            yield studio, folder


@contextmanager
def servers(*, threads: int | None = None, **settings: str) -> Iterator[tuple[LabelStudio, Service, Path]]:
    """Label Studio, and the service with these settings (`IMAGE_SIZE="256"` is SCANQUEUE_IMAGE_SIZE).

    threads  torch threads of the server and of its worker; default: torch's default, one per core
    """
    with label_studio() as (studio, folder):
        given = {f"SCANQUEUE_{k}": v for k, v in settings.items()}
        service = Service(studio, folder / "scanqueue", given, threads=threads)
        try:
            yield studio, service, folder
        finally:
            service.stop()


def write_scans(folder: Path, count: int, side: int) -> dict[Path, Mask]:
    """`count` synthetic radiographs of side x side pixels as PNG files, each with the mask of its lungs."""
    folder.mkdir(parents=True)
    found = {}
    for seed in range(count):
        image, masks = phantom(seed, (side, side))
        path = folder / f"scan-{seed:04d}.png"
        if not cv2.imwrite(str(path), image):
            raise OSError(f"cannot write {path}")
        found[path] = masks["Lung"]
    return found


def annotate(studio: LabelStudio, project: int, task: int, mask: Mask) -> Result:
    """Submit a mask for a task and return the regions sent."""
    result = to_brush({"Lung": np.asarray(mask, dtype=bool)}, CONTROL)
    studio.post(f"/api/tasks/{task}/annotations/?project={project}", {"result": result, "lead_time": 5.0})
    return result
