"""Damaged files in the data folder: what can be made again is made again, and nothing is lost."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world import COLD, LOADED, PREDICTED, PROJECT, ROUND, World

from backend.facts import Stage
from backend.learning.segmenters import SPEC_FILE, WEIGHTS_FILE, Segmenter
from backend.loop import observing
from backend.records.maps import put_map, read_map
from backend.records.store import Store

pytestmark = pytest.mark.usefixtures("miniature")
ARRAYS = ("features", "labels", "maps", "masks", "pixels", "quick")
JUDGED = "judged.safetensors"
Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A project with every kind of artefact, whose second training is due."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observing, "SETTLE", 0.01)
        world = World(tmp_path_factory.mktemp("used") / "data", quick_model="on").cold_started()
        for count in (COLD - 1, 1):
            world.label(count)
            world.run()
        world.label(ROUND)
    assert world.status()["model"] == "scanqueue-r1"
    return world


@pytest.fixture
def world(used: World, tmp_path: Path) -> World:
    """A copy of that project."""
    shutil.copytree(used.folder, tmp_path / "data")
    world = copy.copy(used)
    world.folder, world.store = tmp_path / "data", Store(tmp_path / "data")
    world.studio, world.settings = copy.deepcopy(used.studio), replace(used.settings, data_dir=world.folder)
    LOADED.clear()
    PREDICTED.clear()
    return world


def damage(world: World, kind: str, how: Damage, name: str = "") -> None:
    files = [file for file in (world.folder / kind).rglob(name or "*") if file.is_file()]
    assert files
    for file in files:
        file.write_bytes(how(file.read_bytes()))


def relabelled(change: Callable[[dict[str, Any], list[str]], Any]) -> Damage:
    """A safetensors file whose header lies."""

    def how(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header, sorted(set(header) - {"__metadata__"}))
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return how


HALF: Damage = lambda data: data[: len(data) // 2]  # noqa: E731
LIES: dict[str, Damage] = {
    "half": HALF,
    "empty": lambda _: b"",
    "header of 4 EiB": lambda data: struct.pack("<Q", 2**62) + data[8:],
    "offsets beyond the end": relabelled(lambda header, names: header[names[0]].update(data_offsets=[0, 2**60])),
    "a shape of 2^80": relabelled(lambda header, names: header[names[0]].update(shape=[2**40, 2**40])),
    "overlapping tensors": relabelled(
        lambda header, names: header[names[1]].update(data_offsets=header[names[0]]["data_offsets"])
    ),
    "a missing tensor": relabelled(lambda header, names: header.pop(names[-1])),
}


@pytest.mark.parametrize("how", [HALF, lambda _: b"", lambda _: b"PK\3\4" + bytes(64)], ids=["half", "empty", "zeros"])
def test_damaged_arrays_are_made_again(how: Damage, world: World) -> None:
    for kind in ARRAYS:
        damage(world, kind, how)
    world.run()
    found = world.status()
    assert (found["model"], found["labelled"], found["problems"]) == ("scanqueue-r2", COLD + ROUND, [])
    assert len(world.store.models(PROJECT)[-1]["trained_on"]) == COLD + ROUND


@pytest.mark.parametrize("lie", LIES)
def test_a_damaged_model_is_kept_aside_and_trained_again(lie: str, world: World) -> None:
    name = world.store.fingerprint_of(PROJECT, "scanqueue-r1")
    damage(world, "models", LIES[lie], WEIGHTS_FILE)
    damage(world, "models", LIES[lie], JUDGED)
    world.run()
    found = world.status()
    assert found["phase"] == "active"
    assert found["model"] != "scanqueue-r1"
    assert len(world.store.models(PROJECT)[-1]["trained_on"]) == COLD + ROUND
    Segmenter.load(world.store.path("models", world.store.fingerprint_of(PROJECT, found["model"])))
    assert [path.name for path in (world.folder / "models").rglob("*.damaged")] in (
        [f"{name}.damaged"],
        [f"{JUDGED}.damaged"],
    )


def test_a_damaged_spec_costs_a_training(world: World) -> None:
    damage(world, "models", HALF, SPEC_FILE)
    world.run()
    assert world.status()["model"] not in (None, "scanqueue-r1")
    assert len(world.store.models(PROJECT)[-1]["trained_on"]) == COLD + ROUND


def test_a_model_of_another_version_is_left_where_it_is(world: World) -> None:
    damage(world, "models", lambda data: data.replace(b'"format": 1', b'"format": 9'), SPEC_FILE)
    with pytest.raises(Exception, match="another version of scanqueue"):
        world.run()
    assert world.status()["phase"] == "blocked"
    assert list((world.folder / "models").rglob("*.damaged")) == []


VECTORS: dict[str, Callable[[bytes], bytes]] = {
    "numbers that are none": lambda vector: np.full(len(vector) // 4, np.nan, "<f4").tobytes(),
    "one infinity": lambda vector: np.array([np.inf], "<f4").tobytes() + vector[4:],
    "half": HALF,
    "a byte less": lambda vector: vector[:-1],
    "nothing": lambda _: b"",
    "another type": lambda vector: np.frombuffer(vector, "<f4").astype("<f8").tobytes(),
}


@pytest.mark.parametrize("which", ["a new map", "a longer map"])
def test_damaged_embeddings_are_computed_again(which: str, world: World, caplog: pytest.LogCaptureFixture) -> None:
    if which == "a longer map":
        world.add_scans(50, len(VECTORS))
        world.reconciler().reconcile(PROJECT)
    last = [row["digest"] for row in world.store.scans(PROJECT)][-len(VECTORS) :]
    embedder = world.reconciler().learner.embedder().name
    before = world.store.embeddings(embedder, last)
    with closing(sqlite3.connect(world.folder / "records.sqlite")) as records, records:
        for digest, how in zip(last, VECTORS.values(), strict=True):
            ((vector,),) = records.execute("SELECT vector FROM embedding WHERE digest = ?", (digest,))
            records.execute("UPDATE embedding SET vector = ? WHERE digest = ?", (how(vector), digest))
        if which == "a longer map":
            marks = ", ".join("?" * len(last))
            records.execute(f"UPDATE scan SET stage = {int(Stage.EMBEDDED)} WHERE digest IN ({marks})", last)
    found = read_map(world.store, PROJECT, embedder)
    assert found is not None
    if which == "a new map":
        shutil.rmtree(world.folder / "maps")
    else:
        put_map(world.store, PROJECT, embedder, found._replace(digests=found.digests[:-6], xy=found.xy[:-6]))
    world.run()
    np.testing.assert_array_equal(world.store.embeddings(embedder, last), before)
    assert f"embeddings of {len(VECTORS)} scans" in caplog.text
    status = world.status()
    assert (status["problems"], status["trouble"], status["model"]) == ([], "", "scanqueue-r2")
    found = read_map(world.store, PROJECT, embedder)
    assert found is not None
    assert set(last) <= set(found.digests)


@pytest.mark.parametrize("wrong", [lambda xy: xy * np.nan, lambda xy: xy[1:], lambda xy: xy.astype(str)])
def test_a_map_with_wrong_numbers_is_laid_out_again(wrong: Callable[[Any], Any], world: World) -> None:
    embedder = world.reconciler().learner.embedder().name
    sound = read_map(world.store, PROJECT, embedder)
    assert sound is not None
    put_map(world.store, PROJECT, embedder, sound._replace(xy=wrong(sound.xy)))
    world.run()
    found = read_map(world.store, PROJECT, embedder)
    assert found is not None
    assert (found.xy.shape, found.xy.dtype) == (sound.xy.shape, sound.xy.dtype)
    assert np.isfinite(found.xy).all()
    assert world.status()["model"] == "scanqueue-r2"


def test_a_scan_whose_embedding_has_no_numbers_is_a_problem(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    tasks = world.add_scans(0, 8)
    process = world.reconciler()
    embed, calls = process.learner.embed_prepared, itertools.count()

    def embed_badly(prepared: Any) -> Any:
        vectors = embed(prepared)
        vectors[0] = np.nan if next(calls) == 0 else vectors[0]
        return vectors

    process.learner.embed_prepared = embed_badly  # type: ignore[method-assign]
    assert process.reconcile(PROJECT).steps == ()
    ((task, text),) = world.store.problems(PROJECT)
    assert "not numbers" in text
    assert sorted(world.order()) == sorted({*tasks} - {task})
