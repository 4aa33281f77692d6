"""The loop in one process: an in-memory Label Studio, a real but small Reconciler, Store and Learner, and people."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from memory_studio import MemoryStudio
from numpy.typing import NDArray

from backend.demo.annotator import Control, to_result
from backend.demo.phantoms import phantom
from backend.fingerprints import fingerprint
from backend.formats.pixels import Letterboxed
from backend.learning.cases import Case
from backend.learning.learner import Learner
from backend.learning.segmenters import Segmenter
from backend.loop.driver import Reconciler
from backend.records.rounds import Pick
from backend.records.store import Store
from backend.settings import Settings
from backend.web import status

PROJECT = 1
CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="tag" toName="image"><Label value="Lung"/></BrushLabels></View>'
)
LARGER = CONFIG.replace('<Label value="Lung"/>', '<Label value="Lung"/><Label value="Heart"/>')
NO_MASKS = (
    '<View><Image name="image" value="$image"/>'
    '<Choices name="seen" toName="image"><Choice value="yes"/></Choices></View>'
)
CONTROL = Control("tag", "image", "brushlabels")
COLD, ROUND, DEPTH = 6, 3, 4
PARAMS = {"cold_start_size": COLD, "round_size": ROUND, "queue_depth": DEPTH, "quick_model": "off"}
SIZE = 64

TRAINED: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {}
LOADED: dict[str, Segmenter] = {}
PREDICTED: dict[tuple[str, str], NDArray[np.float32]] = {}


def kept_name(model: Path) -> str:
    """The name of a model, whose weights may be a file in its folder, in any data folder."""
    return "/".join(model.parts[-2:])


class KeptLearner(Learner):
    """A Learner that caches models and predictions in this process, across data folders."""

    def train(
        self,
        cases: Sequence[Case],
        validation: Sequence[Case],
        labels: Sequence[str],
        *,
        seed: int,
        on_step: Callable[[int, int], None],
    ) -> tuple[Callable[[Path], None], dict[str, Any]]:
        both = (*cases, *validation)
        content = [[digest(c.scan.pixels.tobytes() + c.mask.tobytes()), sorted(c.unknown)] for c in both]
        key = fingerprint(content, len(cases), list(labels), self.describe_training(seed))
        on_step(0, 1)
        if key not in TRAINED:
            TRAINED[key] = super().train(cases, validation, labels, seed=seed, on_step=lambda *_: None)
        on_step(1, 1)
        return TRAINED[key]

    def _model(self, folder: Path) -> Segmenter:
        assert folder.exists(), f"{folder} is not there"
        if (name := kept_name(folder)) not in LOADED:
            LOADED[name] = super()._model(folder)
        return LOADED[name]

    def probabilities(self, folder: Path, scans: Sequence[Letterboxed]) -> list[NDArray[np.float32]]:
        self._model(folder)
        names = [(kept_name(folder), digest(s.pixels.tobytes())) for s in scans]
        todo = [(n, s) for n, s in zip(names, scans, strict=True) if n not in PREDICTED]
        found = super().probabilities(folder, [s for _, s in todo]) if todo else []
        PREDICTED.update({n: p for (n, _), p in zip(todo, found, strict=True)})
        return [PREDICTED[n] for n in names]


class World:
    """An in-memory Label Studio, our data folder, and the annotators."""

    def __init__(self, folder: Path, *, steps: int = 3, **params: Any) -> None:
        self.folder = folder
        self.studio = MemoryStudio(CONFIG)
        self.settings = Settings(
            data_dir=folder,
            embedder="pixels",
            image_size=32,
            training_steps=steps,
            device="cpu",
            encoder="tu-test_resnet",  # the smallest one: these tests check what is trained, not how well
        )
        self.masks: dict[int, Mapping[str, NDArray[np.bool_]]] = {}
        self.annotations: dict[int, int] = {}
        self.store = Store(folder)
        self.store.add_project(PROJECT)
        extra = json.dumps(PARAMS | params)
        self.store.set_project(PROJECT, extra_params=extra, backend_url="http://127.0.0.1:9090")

    def reconciler(self) -> Reconciler:
        """The reconciler of a new process."""
        return Reconciler(self.studio, Store(self.folder), KeptLearner(self.settings), self.settings)  # type: ignore[arg-type]

    def run(self) -> None:
        """One reconciliation by a new process; it must leave nothing to do."""
        plan = self.reconciler().reconcile(PROJECT)
        assert plan.steps == ()

    def set(self, **params: Any) -> None:
        """Change the project's settings and reconcile once."""
        self.store.set_project(PROJECT, extra_params=json.dumps(PARAMS | params))
        self.run()

    def add_scans(self, first: int, count: int) -> list[int]:
        tasks = []
        for seed in range(first, first + count):
            image, masks = phantom(seed, (SIZE, SIZE))
            tasks += self.studio.add_scans([png(image)])
            self.masks[tasks[-1]] = masks
        return tasks

    def truth(self, task: int, *labels: str) -> list[dict[str, Any]]:
        return list(to_result({label: self.masks[task][label] for label in labels or ("Lung",)}, CONTROL))

    def label(self, count: int) -> list[int]:
        """Press "Label All Tasks" and submit the true mask, `count` times; returns the tasks."""
        served = []
        for _ in range(count):
            task = self.studio.next_task()
            assert task is not None
            self.submit(task)
            served.append(task)
        return served

    def submit(self, task: int, *labels: str) -> None:
        studio = self.studio
        shown = studio.prediction_of(task, studio.model_version) if task in self.published() else None
        self.annotations[task] = studio.annotate(task, self.truth(task, *labels), shown=shown)

    def published(self, version: str = "") -> dict[int, int]:
        return self.studio.published(PROJECT, version or self.studio.model_version)

    def picks(self) -> list[Pick]:
        latest = self.store.latest_round(PROJECT)
        return list(latest["picks"]) if latest else []

    def order(self) -> list[int]:
        return [p.task for p in self.picks()]

    def status(self) -> dict[str, Any]:
        found = status.describe(self.store, PROJECT)
        assert found is not None
        return found

    def cold_started(self) -> World:
        self.add_scans(0, 12)
        self.run()
        return self

    def in_round_1(self) -> World:
        self.cold_started().label(COLD)
        self.run()
        assert self.studio.model_version == "scanqueue-r1"
        return self

    def end_state(self) -> dict[str, Any]:
        """Everything that must not depend on what happened on the way."""
        studio, store = self.studio, Store(self.folder)
        row = store.project(PROJECT)
        assert row is not None
        files = [p.relative_to(self.folder) for p in self.folder.rglob("*") if p.is_file()]
        return {
            "served": (studio.model_version, studio.sampling, studio.show_predictions),
            "tabs": studio.views,
            "webhooks": [hook["url"] for hook in studio.hooks],
            "predictions": sorted(
                (p["model_version"], p["task"], p["score"], digest(json.dumps(p["result"]).encode()))
                for p in studio.predictions
            ),
            "project": (
                row["active"],
                row["training_requests"],
                row["trouble"],
                row["phase"],
                row["sending"],
                row["cursor"],
            ),
            "rounds": [
                [r[k] for k in ("n", "key", "model", "picks", "carried", "size", "labels")]
                for r in store.rounds(PROJECT)
            ],
            "shown to annotators": [r["published_at"] is not None for r in store.rounds(PROJECT)],
            "models": [
                [m[k] for k in ("version", "fingerprint", "accepted", "remark", "validation", "trained_on")]
                for m in store.models(PROJECT)
            ],
            "scans": [
                [s[k] for k in ("task", "image", "annotated", "skipped", "digest", "problem")]
                for s in store.scans(PROJECT)
            ],
            "labels": [
                [r[k] for k in ("task", "key", "mask", "read_at", "shown_version", "problem", "remark")]
                for r in store.labels(PROJECT)
            ],
            "shown": sorted((s["task"], s["version"], s["dice"]) for s in store.shown(PROJECT)),
            "job": store.progress(PROJECT),
            "files": sorted(str(f) for f in files if f.parts[0] != "locks" and f.suffix[:7] != ".sqlite"),
        }


class Ready(World):
    """A world whose start is copied from a cached run, unless it was used or configured differently."""

    def __init__(self, folder: Path, **params: Any) -> None:
        super().__init__(folder, **params)
        self._params = params

    def cold_started(self) -> World:
        return self._copied("cold_started")

    def in_round_1(self) -> World:
        return self._copied("in_round_1")

    def _copied(self, stage: str) -> World:
        row = self.store.project(PROJECT)
        assert row is not None
        if (
            self.studio.task_ids(PROJECT)
            or row["overrides"]
            or json.loads(row["extra_params"]) != PARAMS | self._params
        ):
            return World.cold_started(self) if stage == "cold_started" else World.in_round_1(self)
        key = (stage, json.dumps(self._params, sort_keys=True))
        if key not in CACHED:
            place = TemporaryDirectory(prefix="scanqueue-world-")
            world = World(Path(place.name) / "data", **self._params)
            getattr(world, stage)()
            world.store.close()
            CACHED[key] = place, world
        source = CACHED[key][1]
        self.store.close()
        shutil.rmtree(self.folder)
        shutil.copytree(source.folder, self.folder)
        self.store = Store(self.folder)
        self.studio = copy.deepcopy(source.studio)
        self.masks, self.annotations = dict(source.masks), dict(source.annotations)
        return self


CACHED: dict[tuple[str, str], tuple[TemporaryDirectory[str], World]] = {}


def png(image: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".png", image)
    assert done
    return data.tobytes()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
