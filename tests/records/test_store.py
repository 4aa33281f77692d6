"""Records and artefacts on a real database and a real folder."""

from __future__ import annotations

import secrets
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import PostgresServer
from sqlalchemy import create_engine, select, text

import backend.records.store
from backend.errors import BadSetting, LostEmbeddings, StorageFull, StoreUnavailable
from backend.facts import Lesson
from backend.records import migrate
from backend.records.database import PATIENCE
from backend.records.models import numbers_text, ranges
from backend.records.rounds import Pick
from backend.records.store import Store, activate_model
from backend.records.tables import lesson_table

MODEL: dict[str, Any] = {
    "version": "scanqueue-r1",
    "fingerprint": "f",
    "labels": ["Lung"],
    "trained_on": [],
    "accepted": 1,
    "validation": {},
    "details": {},
}


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").new_database(f"store-{secrets.token_hex(6)}")
    store = Store(tmp_path / "data", url)
    store.add_project(1)
    return store


def reopened(store: Store) -> Store:
    """The same records and files, as another process opens them."""
    return Store(store.folder, store.database_url)


def task(number: int, **changes: object) -> dict[str, object]:
    row = {"task": number, "image": f"/data/{number}.png", "updated_at": "t1", "annotated": 0, "skipped": 0}
    return row | changes


def test_a_project_is_added_once_and_keeps_its_secret(store: Store) -> None:
    secret = store.project(1)["secret"]
    assert not store.add_project(1)
    assert store.project(1)["secret"] == secret
    assert len(secret) > 30
    assert store.projects() == [1]


def test_a_task_keeps_its_scan_data_until_its_image_changes(store: Store) -> None:
    store.put_tasks(1, [task(1), task(2)], "t1")
    read = {"digest": "d", "height": 5, "width": 6, "blank": 1, "problem": ""}
    store.set_scans(1, [{"task": 1, **read}, {"task": 2, **read}])
    assert not store.has_labels()
    store.put_tasks(1, [task(1, updated_at="t2", annotated=1), task(2, image="/data/other.png")], "t2")
    assert store.has_labels()
    one, two = store.scans(1)
    assert (one["digest"], one["height"], one["blank"], one["annotated"]) == ("d", 5, 1, 1)
    assert (two["digest"], two["height"], two["blank"]) == ("", 0, 0)
    assert store.project(1)["cursor"] == "t2"


def test_annotation_data_is_forgotten_with_its_scan(store: Store) -> None:
    tasks = [1, 2, 3, 4]
    store.put_tasks(1, [task(n, annotated=1) for n in tasks], "t1")
    read = {"height": 5, "width": 6, "problem": ""}
    store.set_scans(1, [{"task": n, "digest": "d", **read} for n in tasks])
    for n in tasks:
        store.put_label(1, {"task": n, "annotation": n, "key": str(n), "mask": "m", "read_at": "t1", "config": "c"})
    store.set_scans(1, [{"task": 1, "digest": "d", **read}, {"task": 2, "digest": "other", **read}])
    store.set_scans(1, [{"task": 3, "problem": "gone"}, {"task": 4, "problem": "gone"}])
    assert [r["task"] for r in store.labels(1)] == [1, 3, 4]
    store.retry(1, 1)  # has no problem
    store.retry(1, 3)
    assert [r["task"] for r in store.labels(1)] == [1, 4]


def test_a_problem_is_forgotten_when_its_task_changes(store: Store) -> None:
    store.put_tasks(1, [task(1)], "t1")
    store.set_scans(1, [{"task": 1, "problem": "truncated"}])
    store.put_tasks(1, [task(1, skipped=1)], "t1")
    assert store.scans(1)[0]["problem"] == "truncated"
    store.put_tasks(1, [task(1, updated_at="t2")], "t2")
    assert store.scans(1)[0]["problem"] == ""


def test_deleted_tasks_are_forgotten_and_others_kept(store: Store) -> None:
    store.put_tasks(1, [task(n) for n in range(1, 2001)], "t1")
    assert store.tasks_between(1, 1499, 1501) == {1500, 1501}
    assert store.tasks_between(1, 1998, None) == {1999, 2000}
    store.forget_tasks(1, [1, *range(1500, 2001)])
    assert [s["task"] for s in store.scans(1)] == list(range(2, 1500))


def test_embeddings_are_returned_in_the_requested_order(store: Store) -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    store.put_embeddings("pixels", ["a", "b", "c"], vectors)
    assert np.array_equal(store.embeddings("pixels", ["c", "a", "c"]), vectors[[2, 0, 2]])
    assert store.embedded("pixels") == {"a", "b", "c"}
    assert store.embedded("other") == set()


def test_signals_that_were_not_requested_again_stay(store: Store) -> None:
    """Otherwise two projects with one model and different strategies would score the same scans forever."""
    store.put_uncertainty("m", {"d": {"image": 0.5, "top": 0.75, "classes": [0.25, 0.5]}})
    store.put_uncertainty("m", {"d": {"image": 0.5, "top": 0.75, "disagreement": 0.125}, "e": {"image": 0.25}})
    assert store.uncertainty("m") == {
        "d": {"image": 0.5, "top": 0.75, "classes": [0.25, 0.5], "disagreement": 0.125},
        "e": {"image": 0.25},
    }
    assert store.image_entropies("m") == {"d": 0.5, "e": 0.25}
    store.put_uncertainty("m", {"d": {"image": 0.625}})
    assert store.uncertainty("m")["d"]["top"] == 0.75
    assert store.forget_uncertainty(["m"]) == 2
    assert store.uncertainty("m") == {}


def test_two_writers_of_the_same_rows_in_different_order_do_not_deadlock(store: Store) -> None:
    names = [f"{n:03d}" for n in range(200)]
    vectors = np.zeros((200, 4), np.float32)
    orders = [names, names[::-1]] * 10
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda order: store.put_embeddings("pixels", order, vectors), orders))
    assert store.embedded("pixels") == set(names)


def test_arrays_are_complete_or_absent(store: Store) -> None:
    store.put_arrays("masks", "abcd", mask=np.eye(3, dtype=np.uint8))
    assert np.array_equal(store.arrays("masks", "abcd")["mask"], np.eye(3))

    def fails(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.put_folder("models", "efgh", fails)
    assert not store.has("models", "efgh")
    assert list(store.path("models", "efgh").parent.iterdir()) == []


def test_a_full_disk_is_explained_and_leaves_nothing_half_written(store: Store, tmp_path: Path) -> None:
    """A file-size limit makes the write really fail, in a separate process."""
    program = f"""
import resource, sys
import numpy as np
from pathlib import Path
from backend.errors import StorageFull
from backend.records.store import Store
store = Store(Path({str(store.folder)!r}))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    store.put_arrays("models", "abcd", weights=np.random.default_rng(0).random(100_000))
except StorageFull as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"No space to write models to {store.folder}: ")
    assert "Free disk space" in said
    assert not store.has("models", "abcd")
    assert list(store.path("models", "abcd").parent.iterdir()) == []


def test_trouble_that_the_records_cannot_store_is_noted_beside_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(project: int, **values: Any) -> None:
        raise StorageFull("The disk that holds the database is full.")

    store.add_project(1)
    store.set_trouble(1, "Label Studio does not answer.")
    assert store.trouble(1) == "Label Studio does not answer."
    monkeypatch.setattr(store, "set_project", full)
    with pytest.raises(StorageFull):
        store.set_trouble(1, "The disk that holds the database is full. Free disk space.")
    assert store.trouble(1) == "The disk that holds the database is full. Free disk space."
    monkeypatch.undo()
    store.set_trouble(1, "")
    assert store.trouble(1) == ""


def test_locked_or_unopenable_records_count_as_unavailable_not_as_an_unexpected_failure(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "data")
    store.add_project(1)
    file = store.folder / "records.sqlite"
    impatient = Store(store.folder)
    impatient._engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": 0.1})
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match=rf"{store.folder} cannot be used now: .*locked.* It is tried again"):
            impatient.set_project(1, title="mine")
    impatient._engine = create_engine(f"sqlite:///{store.folder / 'gone' / 'records.sqlite'}")
    with pytest.raises(StoreUnavailable, match="unable to open"):
        impatient.projects()


def test_while_another_process_locks_the_records_work_waits_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself waits for 30 seconds; here for a moment."""
    folder = tmp_path / "data"
    Store(folder).add_project(1)
    program = (
        "import sqlite3, sys\n"
        "held = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "held.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    real = create_engine

    def impatient(url: Any, **how: Any) -> Any:
        return real(url, **how | {"connect_args": {"timeout": 0.1}})

    monkeypatch.setattr(backend.records.database, "create_engine", impatient)
    store = Store(folder)
    command = [sys.executable, "-c", program, str(folder / "records.sqlite")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="locked"):
                store.request_training(1)
        with pytest.raises(StoreUnavailable, match="locked"):
            store.set_trouble(1, "The records are locked.")
        other.kill()
    store.request_training(1)
    row = store.project(1)
    assert row is not None
    assert row["training_requests"] == 1
    assert store.trouble(1) == "The records are locked."  # from the file beside the records
    store.set_trouble(1, "")


def test_a_hanging_database_delays_a_few_requests_and_is_reported_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is frozen with open connections, which no network timeout ends."""
    monkeypatch.setattr(backend.records.database, "POOL_WAIT", 0.5)
    monkeypatch.setattr(backend.records.database, "PATIENCE", PATIENCE | {"connect_timeout": 2})
    with PostgresServer() as server:
        store = Store(tmp_path, server.new_database("records"))
        store.add_project(1)
        done: list[str] = []

        def ask() -> None:
            try:
                done.append(str(store.projects()))
            except StoreUnavailable as error:
                done.append(str(error))

        threads = [threading.Thread(target=ask) for _ in range(40)]
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(lambda _: store.projects(), range(50)))  # some connections are open
        with server.frozen():
            for thread in threads:
                thread.start()
            until = time.monotonic() + 20
            while len(done) < 25:
                assert time.monotonic() < until, done
                time.sleep(0.1)
            assert all("does not answer" in said for said in done)
            assert all("only-for-tests" not in said for said in done)
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert store.projects() == [1]


def test_an_endless_statement_times_out_but_a_migration_waits_for_others(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.records.database, "PATIENCE", PATIENCE | {"options": "-c statement_timeout=500"})
    url = postgres.new_database(f"patience-{secrets.token_hex(6)}")
    with psycopg.connect(url) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (migrate.KEY,))
        threading.Timer(2.0, other.execute, ("SELECT pg_advisory_unlock_all()",)).start()
        store = Store(tmp_path, url)
    with pytest.raises(StoreUnavailable, match="statement timeout"):
        store.rows(text("SELECT pg_sleep(20)"))
    unhurried = Store(tmp_path, f"{url}?options=-c%20statement_timeout%3D0&connect_timeout=7")
    assert len(unhurried.rows(text("SELECT pg_sleep(1)"))) == 1


def test_a_clock_jump_does_not_change_the_estimated_time_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr("backend.records.progress.time.time", lambda: now[0])
    for done, seconds in enumerate((0.0, 10.0, 3 * 86_400.0, 10.0, -5 * 86_400.0, 10.0)):
        now[0] += seconds
        store.report(1, "reading", done, 10)
    job = store.progress(1)
    assert job is not None
    assert job["seconds_left"] == 30.0  # 5 of 10 done in 30 seconds


def test_too_little_disk_space_is_reported_before_the_work(store: Store) -> None:
    with pytest.raises(StorageFull, match="MiB are free"):
        store.check_room(2**60)
    store.check_room(1)


def test_the_order_of_a_round_is_read_back_unchanged(store: Store) -> None:
    picks = [Pick(5, "paper", 0.9, 1.0, 0.8), Pick(3, "medoid", cluster=2)]
    store.put_round(1, n=0, key="k", model="", picks=picks, carried=[7], size=2, labels=0)
    (found,) = store.rounds(1)
    assert found["picks"] == picks
    assert found["carried"] == [7]
    store.put_round(1, n=1, key="k2", model="m", picks=picks[:1], carried=[], size=1, labels=3)
    assert [r["picks"] for r in store.rounds(1, picks=False)] == [[], []]


def test_one_process_at_a_time_works_on_a_project(store: Store) -> None:
    other = reopened(store)
    with store.lock(1) as first, other.lock(1) as second, other.lock(2) as elsewhere:
        assert (bool(first), bool(second), bool(elsewhere)) == (True, False, True)
    with other.lock(1) as again:
        assert again


def test_the_lock_of_a_killed_process_is_released(store: Store) -> None:
    program = f"""
import os, signal
from pathlib import Path
from backend.records.store import Store
with Store(Path({str(store.folder)!r}), {store.database_url!r}).lock(1) as mine:
    assert mine
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    with store.lock(1) as mine:
        assert mine


def test_a_training_request_during_a_training_is_kept(store: Store) -> None:
    store.request_training(1)
    store.request_training(1)
    store.put_model(1, MODEL, active="scanqueue-r1", training_requests=1)
    assert (store.project(1)["training_requests"], store.project(1)["active"]) == (1, "scanqueue-r1")
    with pytest.raises(BadSetting, match="has no model 'nope'; available: scanqueue-r1"):
        activate_model(store, 1, "nope")


def test_progress_shows_the_time_left_and_is_forgotten_when_finished(store: Store) -> None:
    assert store.progress(1) is None
    store.report(1, "training", 0, 10)
    store.report(1, "training", 5, 10)
    seen = store.progress(1)
    assert (seen["step"], seen["done"], seen["total"]) == ("training", 5, 10)
    assert seen["seconds_left"] >= 0
    store.finish(1)
    store.report(1, "listing tasks", 900, 1000, 90.0)  # other work came between
    assert store.progress(1)["seconds_left"] == pytest.approx(10.0, abs=0.2)
    store.finish(1)
    assert store.progress(1) is None


def test_an_unreachable_database_is_reported_without_its_password_and_used_again_later(tmp_path: Path) -> None:
    with PostgresServer(password="must-stay-secret") as server:
        store = Store(tmp_path, server.new_database("records"))
        store.add_project(1)
        server.kill()
        until = time.monotonic() + 10  # its processes may answer for a moment
        while time.monotonic() < until:
            with suppress(StoreUnavailable):
                store.project(1)
                time.sleep(0.05)
                continue
            break
        for ask in (lambda: store.project(1), lambda: store.request_training(1)):
            with pytest.raises(StoreUnavailable, match=r"does not answer.*tried again") as raised:
                ask()
            assert "must-stay-secret" not in str(raised.value)
        server.start()
        store.request_training(1)
        assert store.project(1)["training_requests"] == 1


@pytest.mark.parametrize(
    "url",
    [
        "the database in the cellar",
        "mysql://lab/scanqueue",
        "postgresql+cellar://lab/scanqueue",
        "postgresql://lab:port/scanqueue",
        "postgresql://",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_an_invalid_address_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"SCANQUEUE_DATABASE_URL is not an address"):
        Store(tmp_path, url)


@pytest.mark.parametrize("query", ["cellar=1", "connect_timeout=long"])
def test_an_invalid_option_in_the_address_is_refused_without_repeating_it(query: str, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"has an option after the `\?`") as refused:
        Store(tmp_path, f"postgresql://127.0.0.1:1/scanqueue?{query}")
    assert query.strip("=1") not in str(refused.value)


def test_of_a_superseded_order_only_what_was_labelled_or_may_be_open_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add_project(1)
    row = {"image": "", "updated_at": "", "skipped": 0}
    store.put_tasks(1, [{"task": t, "annotated": int(t == 3), **row} for t in range(5)], "")
    picks = [Pick(task, "medoid", cluster=task % 2) for task in range(5)]
    for n, model in enumerate(("", "", "m", "m", "m")):
        carried = [1] if n == 4 else []
        store.put_round(1, n=n, key=f"k{n}", model=model, picks=picks, carried=carried, size=5, labels=0)
        served = store.latest_round(1, served=True)
        assert served is None or len(served["picks"]) == 5
        store.mark_published(1, n)
    assert [len(r["picks"]) for r in store.rounds(1)] == [1, 5, 1, 2, 5]
    assert [p.task for p in store.rounds(1)[3]["picks"]] == [1, 3]
    assert [r["size"] for r in store.rounds(1)] == [5] * 5
    assert store.clusters(1) == {task: task % 2 for task in range(5)}
    assert [r["n"] for r in store.rounds(1, newest=2)] == [3, 4]
    assert store.count_rounds(1) == 5


@given(st.sets(st.integers(1, 300)))
def test_numbers_are_written_as_ranges(numbers: set[int]) -> None:
    written = numbers_text(numbers)
    assert [n for one in ranges(written) for n in one] == sorted(numbers)
    assert len(written.split()) == len(numbers - {n + 1 for n in numbers})


def test_models_that_learn_from_the_same_scans_share_their_records(store: Store) -> None:
    lessons = [Lesson(t, f"{t:064}", f"{t:064}", "P1", (2,) if t % 2 else ()) for t in range(1, 501)]
    changed = lessons[3]._replace(mask="corrected")
    held_out = [{"task": 1, "dice": 0.5}]
    for n in range(1, 51):
        known = lessons[: 10 * n] if n < 50 else [changed if one is lessons[3] else one for one in lessons]
        model = MODEL | {"version": f"scanqueue-r{n}", "trained_on": known, "details": {"held_out": held_out}}
        store.put_model(1, model, active="", training_requests=0)
        assert store.model(1, f"scanqueue-r{n}")["details"] == {"held_out": held_out}
        assert set(store.model(1, f"scanqueue-r{n}")["trained_on"]) == set(known)
    assert set(store.models(1)[2]["trained_on"]) == set(lessons[:30])
    assert len(store.rows(select(lesson_table))) == 501
    summaries = store.model_summaries(1)
    assert [one["learnt"] for one in summaries] == [10 * n for n in range(1, 51)]
    assert all(not {"trained_on", "held_out"} & (one.keys() | one["details"].keys()) for one in summaries)
    assert store.model_summary(1, "scanqueue-r3")["labels"] == ["Lung"]
    store.set_project(1, active="scanqueue-r7")
    assert [one["version"] for one in store.model_summaries(1, 2)] == [f"scanqueue-r{n}" for n in (7, 49, 50)]
    assert store.model_summary(1, "scanqueue-r99") is None is store.model(1, "scanqueue-r99")


def test_the_quality_of_all_models_is_read_without_the_course_of_their_trainings(store: Store) -> None:
    history = [{"step": 50, "loss": 0.5}]
    today = {"dice": 0.5, "per_label": {}}
    for n, (validation, details) in enumerate(
        [
            (today, {"history": history}),
            (today, {"history": history, "arms": {"labels": 7}}),
            ({"dice": 0.5}, {"held_out_by_an_older_version": 1}),
            (today, {"history": history}),
            (today, {"agreement": {"dice": 0.9}}),
        ],
        start=8,  # from 10 on, texts would sort otherwise
    ):
        given = {"version": f"scanqueue-r{n}", "trained_on": [Lesson(n, "d", "m", "")], "validation": validation}
        store.put_model(1, MODEL | given | {"details": details}, active="", training_requests=0)
    summaries, found = store.model_summaries(1), store.model_qualities(1)
    assert [one["details"] for one in found] == [
        {},
        {"history": history, "arms": {"labels": 7}},
        {"held_out_by_an_older_version": 1},
        {},
        {"agreement": {"dice": 0.9}},
    ]
    for one, whole in zip(found, summaries, strict=True):
        assert one == {name: whole[name] for name in one} | {"details": one["details"]}
    assert [one["version"] for one in found] == [f"scanqueue-r{n}" for n in range(8, 13)]
    assert store.model_labels(1) == [tuple(MODEL["labels"])]


def test_a_long_order_is_read_as_it_was_written(store: Store) -> None:
    picks = [Pick(t, "medoid" if t % 2 else "farthest", score=t / 7, cluster=t % 5) for t in range(2500, 0, -1)]
    for n, some in enumerate((picks, picks[:1], [])):
        store.put_round(1, n=n, key="k", model="", picks=some, carried=(), size=len(some), labels=0)
    assert [list(order) for order in store.orders(1)] == [picks, picks[:1], []]
    assert [r["picks"] for r in store.rounds(1)] == [picks, picks[:1], []]
    assert list(store.orders(2)) == []


def test_embeddings_are_in_the_order_that_was_asked_for(store: Store) -> None:
    vectors = np.random.default_rng(0).random((1200, 3), dtype=np.float32)
    names = [f"{n:064}" for n in range(1200)]
    store.put_embeddings("e", names, vectors)
    rows = [*range(1199, -1, -1), 7, 7]
    np.testing.assert_array_equal(store.embeddings("e", [names[row] for row in rows]), vectors[rows])
    assert store.embedded("e") == set(names)
    with pytest.raises(LostEmbeddings, match="lost"):
        store.embeddings("e", [names[0], "lost"])


def test_attempts_at_parts_of_many_scans_are_counted_for_each_scan(store: Store) -> None:
    keys = [f"{2**40 + number}:{'f' * 8}" for number in range(16)]
    store.begin_attempt(1, "read-part", keys, 0, first=True)
    assert store.attempts(1) == {("read-part", key): (1, 0) for key in keys}
    store.cancel_attempt(1, "read-part", keys[:15])
    assert [times for times, _ in store.attempts(1).values()].count(0) == 15
    store.suspect(1, "read", keys[15:])
    assert store.attempts(1) == {("read", keys[15]): (1, 0)}
