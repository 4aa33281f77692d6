"""What is removed after a time, and what never is."""

from __future__ import annotations

import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from world import PROJECT, ROUND, World

from backend.app import to_env
from backend.errors import BadSetting
from backend.records.retention import DAY, EVERY, Retention
from backend.records.store import Store, activate_model
from backend.settings import Settings
from backend.web import status

pytestmark = pytest.mark.usefixtures("miniature")

NOW = 2_000_000_000.0  # seconds since 1970


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").new_database(f"retention-{secrets.token_hex(6)}")
    return Store(tmp_path / "data", url)


def retention(store: Store, keep: int = 2, days: int = 90) -> Retention:
    return Retention(store, keep, days, threading.Event())


def model(store: Store, project: int, n: int, name: str, *, active: bool = False) -> None:
    store.add_project(project)
    store.put_folder("models", name, lambda folder: (folder / "model.json").write_text("{}") and None)
    store.put_uncertainty(name, {"digest": {"image": 0.5, "top": 0.75}})
    version = f"scanqueue-r{n}"
    row = {"version": version, "fingerprint": name, "labels": ["Lung"], "trained_on": [], "accepted": 1}
    before = store.project(project)
    assert before is not None
    store.put_model(
        project,
        row | {"validation": {}, "details": {}},
        active=version if active else "",
        instead_of=before["active"],
        training_requests=0,
    )


def opened(store: Store, project: int, n: int, version: str) -> None:
    store.put_round(project, n=n, key="k", model=version, picks=[], carried=[], size=0, labels=0)


def kept(store: Store, project: int) -> list[str]:
    return [m["version"] for m in status.model_list(store, project) if m["kept"]]


def aged(path: Path, days: float, now: float = NOW) -> Path:
    os.utime(path, (now - days * DAY, now - days * DAY))
    return path


def mask(store: Store, name: str, days: float, kind: str = "masks") -> Path:
    store.put_arrays(kind, name, mask=np.eye(3, dtype=np.uint8))
    return aged(store.path(kind, name), days)


def swept(store: Store, ago: float, now: float = NOW) -> None:
    mark = store.folder / "caches.seen"
    mark.touch()
    os.utime(mark, (now - ago, now - ago))


# -- checkpoints -------------------------------------------------------------------------------


def test_the_newest_the_active_one_and_that_of_the_latest_round_are_kept(store: Store) -> None:
    for n in range(1, 8):
        model(store, 1, n, f"m{n}", active=n == 2)
    opened(store, 1, 6, "scanqueue-r1")
    opened(store, 1, 7, "scanqueue-r3")
    assert retention(store).remove_checkpoints(1) == ["m1", "m4", "m5"]
    assert kept(store, 1) == [f"scanqueue-r{n}" for n in (2, 3, 6, 7)]
    assert len(store.models(1)) == 7  # the records stay
    for said in (store.image_entropies, store.uncertainty):
        assert [bool(said(f"m{n}")) for n in range(1, 8)] == [False, True, True, False, False, True, True]
    assert retention(store).remove_checkpoints(1) == []
    assert not list(store.folder.rglob(".new-*"))


def test_zero_keeps_all_checkpoints(store: Store) -> None:
    for n in range(1, 5):
        model(store, 1, n, f"m{n}")
    assert retention(store, keep=0).remove_checkpoints(1) == []
    assert len(kept(store, 1)) == 4


def test_a_checkpoint_that_another_project_keeps_is_not_removed(store: Store) -> None:
    for n in range(1, 4):
        model(store, 1, n, f"m{n}")
    model(store, 2, 1, "m1", active=True)
    assert retention(store, keep=1).remove_checkpoints(1) == ["m2"]
    assert kept(store, 2) == ["scanqueue-r1"]
    assert store.image_entropies("m1")


def test_a_locked_project_is_left_for_the_next_sweep(store: Store) -> None:
    for n in range(1, 4):
        model(store, 1, n, f"m{n}")
    with Store(store.folder, store.database_url).lock(1):
        assert retention(store, keep=1).remove_checkpoints(1) == []
        assert store.image_entropies("m1")
    assert retention(store, keep=1).remove_checkpoints(1) == ["m1", "m2"]


def test_scores_left_behind_by_a_killed_worker_are_removed_too(store: Store) -> None:
    for n in range(1, 4):
        model(store, 1, n, f"m{n}")
    store.remove_folder("models", "m1")
    retention(store, keep=2).remove_checkpoints(1)
    assert not store.image_entropies("m1")


def test_a_model_without_its_checkpoint_cannot_be_activated(store: Store) -> None:
    for n in range(1, 4):
        model(store, 1, n, f"m{n}", active=n == 3)
    retention(store).remove_checkpoints(1)
    with pytest.raises(BadSetting) as refused:
        activate_model(store, 1, "scanqueue-r1")
    assert str(refused.value) == (
        "project 1: the checkpoint of scanqueue-r1 was removed, so it cannot be activated. SCANQUEUE_KEEP_MODELS "
        "sets how many of the newest are kept (0: all). Available: scanqueue-r2, scanqueue-r3."
    )
    row = store.project(1)
    assert row is not None
    assert row["active"] == "scanqueue-r3"


def test_a_model_activated_during_removal_is_either_refused_or_kept(store: Store) -> None:
    for n in range(1, 31):
        model(store, 1, n, f"m{n}", active=n == 30)

    def activate(n: int) -> bool:
        try:
            activate_model(Store(store.folder, store.database_url), 1, f"scanqueue-r{n}")
        except BadSetting:
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(activate, 7), pool.submit(retention(store, keep=1).remove_checkpoints, 1)]
        taken = done[0].result()
        done[1].result()
    row = store.project(1)
    assert row is not None
    assert row["active"] == ("scanqueue-r7" if taken else "scanqueue-r30")
    assert row["active"] in kept(store, 1)


def test_removing_an_old_checkpoint_repeats_no_training_and_no_publishing(tmp_path: Path) -> None:
    world = World(tmp_path / "data", tolerance=1.0).in_round_1()  # the next model is accepted
    world.label(ROUND)
    world.run()
    assert retention(world.store, keep=1).remove_checkpoints(PROJECT) != []
    assert kept(world.store, PROJECT) == ["scanqueue-r2"]
    writes = list(world.studio.writes)
    world.run()
    assert world.studio.writes == writes
    assert [m["version"] for m in world.store.models(PROJECT)] == ["scanqueue-r1", "scanqueue-r2"]
    assert [r["n"] for r in world.store.rounds(PROJECT)] == [0, 1, 2]
    assert [r["validation"]["n"] > 0 for r in status.round_list(world.store, PROJECT)] == [False, True, True]


def test_a_mask_of_a_removed_checkpoint_is_still_compared_with_the_submitted_one(tmp_path: Path) -> None:
    world = World(tmp_path / "data", tolerance=1.0).in_round_1()  # the next model is accepted
    late = world.studio.next_task()
    assert late is not None
    shown = world.studio.prediction_of(late, "scanqueue-r1")
    others = [t for t in world.order() if t != late][:ROUND]
    for task in others:
        world.submit(task)
    world.run()
    assert retention(world.store, keep=1).remove_checkpoints(PROJECT) != []
    world.studio.annotate(late, world.truth(late), shown=shown)
    world.run()
    assert (late, "scanqueue-r1") in {(s["task"], s["version"]) for s in world.store.shown(PROJECT)}


# -- cached files ------------------------------------------------------------------------------


def test_unused_cached_files_are_removed_and_labels_and_maps_stay(store: Store) -> None:
    swept(store, EVERY)
    old = [mask(store, "old1", 92), mask(store, "old2", 92, "pixels")]
    young = [mask(store, "young1", 80), mask(store, "young2", 80, "pixels")]
    forever = [mask(store, "label", 400, "labels"), mask(store, "map", 400, "maps")]
    assert retention(store).remove_files(NOW) == 2
    assert [p.exists() for p in (*old, *young, *forever)] == [False] * 2 + [True] * 4


def test_zero_days_keep_cached_files_forever(store: Store) -> None:
    swept(store, EVERY)
    old = mask(store, "old1", 4000)
    assert retention(store, days=0).remove_files(NOW) == 0
    assert old.exists()


def test_used_files_stay(store: Store) -> None:
    now = time.time()
    swept(store, EVERY, now)
    paths = [mask(store, name, 0) for name in ("read", "asked", "idle")]
    for path in paths:
        aged(path, 200, now)
    store.arrays("masks", "read")
    assert store.has("masks", "asked")
    assert retention(store).remove_files(now) == 1
    assert [p.exists() for p in paths] == [True, True, False]


def test_the_use_of_a_file_is_recorded_at_most_once_a_day(store: Store) -> None:
    now = time.time()
    path = aged(mask(store, "mask", 0), 0.9, now)
    before = path.stat().st_mtime
    store.arrays("masks", "mask")
    assert path.stat().st_mtime == before
    aged(path, 1.1, now)
    store.arrays("masks", "mask")
    assert path.stat().st_mtime >= now
    label = aged(mask(store, "label", 0, "labels"), 50, now)
    before = label.stat().st_mtime
    store.arrays("labels", "label")
    assert label.stat().st_mtime == before


def test_setting_the_clock_a_year_ahead_and_back_removes_nothing(store: Store) -> None:
    path = mask(store, "mask", 10)
    for now in (NOW, NOW + EVERY):
        swept(store, EVERY, now)
        assert retention(store).remove_files(now) == 0
    ahead = NOW + 2 * EVERY + 365 * DAY
    for now in (ahead, ahead + EVERY, NOW + 3 * EVERY, NOW + 4 * EVERY):
        assert retention(store).remove_files(now) == 0
    assert path.stat().st_mtime <= NOW + 3 * EVERY  # no longer in the future, so that it ages again


def test_time_in_which_no_worker_ran_does_not_count(store: Store) -> None:
    path = mask(store, "mask", 60)
    swept(store, 40 * DAY)
    assert retention(store).remove_files(NOW) == 0
    assert NOW - path.stat().st_mtime == pytest.approx(20 * DAY)
    swept(store, EVERY)
    aged(path, 92)
    assert retention(store).remove_files(NOW) == 1


def test_the_very_first_sweep_only_records_the_time(store: Store) -> None:
    path = mask(store, "mask", 4000)
    assert retention(store).remove_files(NOW) == 0
    assert path.exists()


def test_an_interrupted_sweep_makes_files_younger_than_they_are_and_never_older(store: Store) -> None:
    path = mask(store, "mask", 60)
    swept(store, 40 * DAY)
    stopped = retention(store)
    stopped.stopping.set()
    for _ in range(3):
        assert stopped.remove_files(NOW) == 0
    assert path.stat().st_mtime <= NOW


def test_folders_of_killed_writers_are_removed_after_a_day(store: Store) -> None:
    swept(store, EVERY)
    folders = []
    for kind in ("pixels", "masks", "labels", "models", "maps", "arms"):
        for days in (0.5, 1.5):
            folder = store.folder / kind / "ab" / f".new-{days}"
            (folder / "half").mkdir(parents=True)
            folders.append(aged(folder, days))
    assert retention(store, days=0).remove_files(NOW) == 6
    assert [f.exists() for f in folders] == [True, False] * 6


def test_models_of_an_interrupted_comparison_are_removed_after_a_day(store: Store) -> None:
    swept(store, EVERY)
    store.add_project(1)
    for kind, name in (("arms", "aa1"), ("arms", "aa2"), ("models", "aa1")):
        store.put_folder(kind, name, lambda folder: (folder / "model.json").write_text("{}") and None)
        aged(store.path(kind, name), 0.5 if name == "aa2" else 1.5)
    assert retention(store).remove_files(NOW) == 1
    there = [store.has(kind, name) for kind, name in (("arms", "aa1"), ("arms", "aa2"), ("models", "aa1"))]
    assert there == [False, True, True]


def test_one_worker_at_a_time_sweeps_the_caches(store: Store) -> None:
    swept(store, EVERY)
    path = mask(store, "mask", 200)
    with Store(store.folder, store.database_url).cache_slot() as mine:
        assert mine
        assert retention(store).remove_files(NOW) == 0
        assert path.exists()
    assert retention(store).remove_files(NOW) == 1


def test_the_sweep_starts_soon_and_ends_with_the_worker(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.records.retention.FIRST", 0.01)
    for n in range(1, 4):
        model(store, 1, n, f"m{n}")
    one = retention(store)
    thread = threading.Thread(target=one.run)
    thread.start()
    until = time.monotonic() + 20
    while "scanqueue-r1" in kept(store, 1) and time.monotonic() < until:
        time.sleep(0.02)
    one.stopping.set()
    thread.join(10)
    assert not thread.is_alive()
    assert kept(store, 1) == ["scanqueue-r2", "scanqueue-r3"]


# -- settings ----------------------------------------------------------------------------------


def test_the_settings_are_read_checked_and_passed_on_to_the_worker() -> None:
    settings = Settings.from_env({"SCANQUEUE_KEEP_MODELS": "0", "SCANQUEUE_CACHE_DAYS": "7"})
    assert (settings.keep_models, settings.cache_days) == (0, 7)
    assert Settings.from_env(to_env(settings)) == settings
    for name, words in (
        ("KEEP_MODELS", "use 0 to keep every checkpoint"),
        ("CACHE_DAYS", "use 0 to keep cached files forever"),
    ):
        with pytest.raises(BadSetting, match=rf"SCANQUEUE_{name}=-1 is negative; {words}\."):
            Settings.from_env({f"SCANQUEUE_{name}": "-1"})
