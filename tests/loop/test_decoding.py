"""Reading scans in threads and in processes: the same records, whatever individual files do."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crasher
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from weight_files import timm_folder

from backend.errors import StorageFull, UnreadableScan
from backend.learning.learner import Learner
from backend.learning.vision_network import Network
from backend.loop.batch import CRASHED, BatchProcessor, cached_pixels
from backend.records.scans import scan_of
from backend.records.store import Store
from backend.settings import Settings
from backend.workers.process_pool import Workers

PROJECT = 1
COUNT = 45  # several batches and a partial one
GONE, BROKEN, COLOUR, BLANK, NEARLY = 7, 20, 33, 40, 41


class Files:
    """The files that Label Studio would serve."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.pictures = [generator.integers(0, 250, (40 + n, 60), dtype=np.uint8) for n in range(COUNT)]
        self.pictures[COLOUR] = generator.integers(0, 250, (50, 40, 3), dtype=np.uint8)
        self.pictures[BLANK] = np.full((30, 40, 3), (200, 20, 20), np.uint8)
        self.pictures[NEARLY] = np.zeros((30, 40), np.uint8)
        self.pictures[NEARLY][-1, -1] = 1

    def image(self, reference: str) -> bytes:
        number = int(reference)
        if number == GONE:
            raise UnreadableScan("Label Studio has no such file.")
        data = png(self.pictures[number])
        return data[: len(data) // 2] if number == BROKEN else data


def png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


class Lab:
    def __init__(self, folder: Path) -> None:
        self.weights = timm_folder(folder / "tiny")
        settings = Settings(
            data_dir=folder, device="cpu", embedder=f"timm:local-dir:{self.weights}", encoder="resnet18", image_size=64
        )
        self.files = Files()
        self.store = Store(folder / "data")
        self.store.add_project(PROJECT)
        listed = {"updated_at": "", "annotated": 0, "skipped": 0}
        self.store.put_tasks(PROJECT, [{"task": n + 1, "image": str(n), **listed} for n in range(COUNT)], "")
        self.learner = Learner(settings)
        self.processor = BatchProcessor(self.files, self.store, self.learner)  # type: ignore[arg-type]

    def read(self) -> list[dict[str, Any]]:
        self.processor.read(PROJECT, self.processor.scans(PROJECT, range(1, COUNT + 1)))
        rows = [self.store.scan(PROJECT, n + 1) for n in range(COUNT)]
        return [{k: row[k] for k in ("task", "digest", "height", "width", "blank", "problem")} for row in rows if row]

    def vectors(self, rows: list[dict[str, Any]]) -> NDArray[np.float32]:
        name = self.learner.embedder().name
        return self.store.embeddings(name, [row["digest"] for row in rows if row["digest"]])


@pytest.fixture
def threads(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "threads")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Lab]:
    """As on a GPU, but with the network on the CPU."""
    lab = Lab(tmp_path / "processes")
    with Workers(2, "backend.loop.decoding") as workers:
        lab.learner._decoders = workers
        yield lab


def test_processes_read_the_same_as_threads(threads: Lab, processes: Lab) -> None:
    rows, others = threads.read(), processes.read()
    assert rows == others
    assert [row["task"] - 1 for row in rows if row["problem"]] == [GONE, BROKEN]
    assert [row["task"] - 1 for row in rows if row["blank"]] == [BLANK]
    assert "no such file" in rows[GONE]["problem"]
    assert "truncated or damaged" in rows[BROKEN]["problem"]
    assert (rows[COLOUR]["height"], rows[COLOUR]["width"]) == (50, 40)
    np.testing.assert_array_equal(threads.vectors(rows), processes.vectors(others))
    for row in rows:
        if row["digest"]:
            one, other = (cached_pixels(lab.store, row["digest"], 64) for lab in (threads, processes))
            assert one is not None
            assert other is not None
            np.testing.assert_array_equal(one.pixels, other.pixels)
    network = threads.learner.embedder().embedder
    assert isinstance(network, Network)
    alone = network.embed([threads.files.pictures[COLOUR]])
    scan = threads.store.embeddings(threads.learner.embedder().name, [rows[COLOUR]["digest"]])
    np.testing.assert_allclose(scan, alone, rtol=1e-4, atol=1e-5)


def test_a_scan_that_crashes_its_decoder_is_a_problem_of_that_scan_only(
    processes: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes.files.pictures[12] = np.full((30, 30), 255, np.uint8)
    monkeypatch.setattr(processes.learner, "prepare_elsewhere", lambda: crasher.crash_on_white)
    rows = processes.read()
    assert {row["task"] - 1: row["problem"] for row in rows if row["problem"]}.keys() == {GONE, BROKEN, 12}
    assert rows[12]["problem"] == CRASHED
    assert processes.learner.decoders() is not None
    assert scan_of(processes.store.scan(PROJECT, 12) or {}).digest  # its neighbour in the same batch


def test_a_full_disk_stops_reading_and_loses_nothing(processes: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    processes.files.pictures[30] = np.full((30, 30), 255, np.uint8)
    monkeypatch.setattr(processes.learner, "prepare_elsewhere", lambda: crasher.no_room_for_white)
    with pytest.raises(StorageFull, match="No space to write pixels"):
        processes.read()
    monkeypatch.undo()
    assert [row["task"] - 1 for row in processes.read() if row["problem"]] == [GONE, BROKEN]
