"""Damaged files in the data folder: what can be made again is made again, and nothing is lost."""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from world import COLD, LOADED, PREDICTED, PROJECT, ROUND, World

from backend.learning.segmenters import SPEC_FILE, WEIGHTS_FILE, Segmenter
from backend.loop import observing
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
