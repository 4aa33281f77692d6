"""scanqueue as a `LabelStudioMLBase` class, for labs that already host backends with label-studio-ml.

Most labs do not need it: Label Studio connects to `scanqueue serve` directly. If every ML backend has to run inside
a label-studio-ml server, host `ScanqueueBackend` there. It is a thin adapter without a model: it forwards each
request over HTTP to a running `scanqueue serve`, whose worker does the work. It imports only the standard library
and label-studio-ml, because label-studio-ml 1.0.9 pins versions of Flask and Werkzeug that conflict with our own
dependencies.

    from backend.plugin import ScanqueueBackend
    from label_studio_ml.api import init_app
    app = init_app(ScanqueueBackend, model_dir="scanqueue-plugin")    # 1.0.9
    app = init_app(ScanqueueBackend)                                  # 2.x

Settings, from the environment: SCANQUEUE_PUBLIC_URL, or SCANQUEUE_HOST and SCANQUEUE_PORT, is the address of
`scanqueue serve`; SCANQUEUE_USER and SCANQUEUE_PASSWORD (or SCANQUEUE_PASSWORD_FILE) are its credentials.

A plugin cannot change two things in 1.0.9: it answers /setup with the version "INITIAL" (predictions contain the true
version, which the queue uses), and it starts a process for every webhook, after writing a file with the payload,
including the project's token; the plugin removes that file.

If `scanqueue serve` does not answer, the plugin raises an error: Label Studio then shows the task without a prediction
and stores nothing, whereas an empty prediction would be stored permanently.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from flask import has_request_context, request
from label_studio_ml.model import LabelStudioMLBase

from backend.errors import ScanqueueError
from backend.settings import Settings

log = logging.getLogger("scanqueue.plugin")

# Label Studio itself waits 3 s for /setup, 100 s for /predict and 1 s for /webhook
SETUP_SECONDS = 2.5
PREDICT_SECONDS = 95.0
WEBHOOK_SECONDS = 10.0


class NotAnswering(ScanqueueError):
    """`scanqueue serve` is unreachable or rejects a request."""


class ScanqueueBackend(LabelStudioMLBase):  # type: ignore[misc]
    """Forwards setup, predictions and events to `scanqueue serve`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.settings = Settings.from_env(os.environ)
        super().__init__(*args, **kwargs)
        if not hasattr(LabelStudioMLBase, "setup"):  # 2.x calls it itself
            self.setup()

    def setup(self) -> None:
        """Register the project and its extra params when Label Studio connects or checks the backend.

        The class is instantiated for every request; only /setup is forwarded.
        """
        if not (has_request_context() and request.path.rstrip("/").endswith("/setup")):
            return
        given = request.get_json(silent=True) or {}
        wanted = {key: given.get(key) for key in ("project", "schema", "extra_params")}
        answer = self._post("/setup", wanted, SETUP_SECONDS)
        if hasattr(self, "set"):  # 2.x answers /setup with the value stored here
            self.set("model_version", str(answer.get("model_version") or ""))

    def set_extra_params(self, extra_params: Any) -> None:
        """2.x stores them in a cache for text; as a JSON object they would make /setup fail."""
        super().set_extra_params(extra_params if isinstance(extra_params, str) else json.dumps(extra_params))

    def predict(self, tasks: Sequence[Mapping[str, Any]], context: Any = None, **kwargs: Any) -> list[dict[str, Any]]:
        """One item {model_version, score, result} per task, in the order of `tasks`; never null."""
        if not tasks:
            return []
        body = {
            "tasks": list(tasks),
            "project": self._project(tasks),
            "label_config": self._given().get("label_config"),
            "params": {"context": context},
        }
        items = self._post("/predict", body, PREDICT_SECONDS).get("results")
        if not isinstance(items, list) or len(items) != len(tasks):
            raise NotAnswering(
                f"{self.url} did not return {len(tasks)} predictions. Is it `scanqueue serve` of this version?"
            )
        return [item if isinstance(item, dict) and "result" in item else {"result": [], "score": 1.0} for item in items]

    def fit(self, event: str, data: Any = None, **kwargs: Any) -> None:
        """Forward a project's event: `event` and `data` as Label Studio sent them."""
        if not isinstance(event, str) or not isinstance(data, Mapping):
            raise NotAnswering(
                "Training by the old /train request is not supported; use Start Training in Settings > Model, or the "
                "webhook, of Label Studio 1.5 or later."
            )
        project = data.get("project")
        if isinstance(project, Mapping):  # the rest contains tokens and is not needed
            project = {"id": project.get("id")}
        self._post("/webhook", {"action": event, "project": project}, WEBHOOK_SECONDS)

    def process_event(self, event: str, data: Any, job_id: Any, additional_params: Mapping[str, Any]) -> None:
        """Version 1.0.9, in its own process: forward every event. It would ignore START_TRAINING itself."""
        try:
            self.fit(event, data)
        except NotAnswering as error:
            log.error("%s was not handed on: %s A worker finds the change within a minute.", event, error)
        finally:
            shutil.rmtree(additional_params.get("workdir") or "", ignore_errors=True)

    @property
    def url(self) -> str:
        """Address of `scanqueue serve`."""
        if self.settings.public_url:
            return self.settings.public_url
        host = self.settings.host
        host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.settings.port}"

    @staticmethod
    def _given() -> dict[str, Any]:
        """The body of the request."""
        return (request.get_json(silent=True) if has_request_context() else None) or {}

    def _project(self, tasks: Sequence[Mapping[str, Any]]) -> str:
        """The project ID from the request, else from the tasks."""
        found = self._given().get("project") or getattr(self, "project_id", None) or tasks[0].get("project")
        return str(found)

    def _post(self, path: str, body: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self.settings.user:
            pair = f"{self.settings.user}:{self.settings.password}".encode()
            headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        call = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers, method="POST")
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(call, timeout=seconds) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            cure = "Check SCANQUEUE_USER and SCANQUEUE_PASSWORD." if error.code == 401 else "Its log says why."
            raise NotAnswering(f"scanqueue at {self.url} answered {error.code} to {path}. {cure}") from error
        except (OSError, ValueError) as error:
            raise NotAnswering(
                f"scanqueue does not answer at {self.url} ({type(error).__name__}). Start `scanqueue serve`, and set "
                "SCANQUEUE_PUBLIC_URL (or SCANQUEUE_HOST and SCANQUEUE_PORT) for this plugin to its address."
            ) from error
        return found if isinstance(found, dict) else {}
