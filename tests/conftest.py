"""Fixtures for every test: a real Label Studio, scans with true masks, a free port."""

from __future__ import annotations

import gc
import os
import sqlite3

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it, before torch is loaded
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2
import pytest
from chromium import find_chromium
from hypothesis import HealthCheck, settings
from servers import PostgresServer, RedisServer
from sqlalchemy import Connection

from backend.demo import child
from backend.demo.label_studio import LabelStudio, default_executable
from backend.demo.phantoms import write_phantoms
from backend.loop import control_trial, observing, suspects, tending
from backend.records import migrate
from backend.records.store import Store

if "CI" not in os.environ:  # in CI, Hypothesis does the same by itself: a slow example is not a failure
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")

ScanPairs = list[tuple[Path, Path]]

LONGEST = (  # files that wait for servers, minutes each: they start first, so that none runs alone at the end
    *("test_intake", "test_driver", "test_loop", "test_simulate_runs", "test_disk", "test_studio", "test_browser"),
    *("test_doctor", "test_docs", "test_lab_projects", "test_bad_input", "test_page_browser", "test_states"),
    *(
        "test_plugin",
        "test_round_trip",
        "test_masks_in",
        "test_region_types",
        "test_in_the_editor",
        "test_figures",
        "test_openapi",
        "test_disconnect",
    ),
    *("test_faults", "test_many_workers", "test_clock", "test_proxy", "test_page_loop", "test_benchmarks"),
    *(
        "test_cloud_storage",
        "test_image_values",
        "test_problems",
        "test_patients",
        "test_demo_parts",
        "test_fuzz",
        "test_backup",
        "test_embedders",
        "test_api",
        "test_export",
    ),
)
SLOW = (
    "test_driver",
    "test_whole_scans",
    "test_training",
    "test_outcomes",
    "test_screen",
)  # minutes of training or screening: in `make test`, not in `make check`
SERVERS = {"label_studio", "default_studio", "postgres", "redis_server", "chromium"}  # fixtures that start one
STARTS_SERVERS = (
    "test_openapi",
    "test_disk",
    "test_simulate_runs",
    "test_fuzz",
    "test_compose",
    "test_supervisor",
)  # their own


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))
    for item in items:
        used = set(getattr(item, "fixturenames", ()))
        call = getattr(item, "callspec", None)
        if (
            used & SERVERS
            or item.path.stem in STARTS_SERVERS
            or any(item.get_closest_marker(name) for name in ("label_studio", "browser"))
            or (call is not None and "postgresql" in call.id.split("-"))
        ):
            item.add_marker("server")
        if item.path.stem in SLOW:
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    gc.freeze()  # modules and items live until the end: no collection needs to visit them


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures that tests recorded (`record_property`)."""
    for report in terminalreporter.getreports("passed"):
        if report.when == "call" and report.user_properties:
            found = ", ".join(f"{what}: {value}" for what, value in report.user_properties)
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {found}")


def pytest_unconfigure() -> None:
    gc.unfreeze()  # otherwise some libraries report leaks at exit


@pytest.fixture(scope="session")
def _empty_records(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The SQLite statements that create the records' tables as they are after all migrations."""
    folder = tmp_path_factory.mktemp("records")
    Store(folder).close()
    with closing(sqlite3.connect(folder / "records.sqlite")) as connection:
        return list(connection.iterdump())[1:-1]  # without BEGIN and COMMIT


@pytest.fixture(scope="module", autouse=True)
def _migrated_once(request: pytest.FixtureRequest, _empty_records: list[str]) -> Iterator[None]:
    """Give the stores of this process their tables at once: each migration takes 0.13 s and leaves 1 MB behind."""
    upgrade = migrate.upgrade

    def quick(connection: Connection) -> None:
        if connection.dialect.name != "sqlite" or connection.exec_driver_sql("SELECT 1 FROM sqlite_master").first():
            upgrade(connection)
            return
        for statement in _empty_records:
            connection.exec_driver_sql(statement)

    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem not in ("test_migrations", "test_store"):
            patch.setattr(migrate, "upgrade", quick)
        yield


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    """Close what the tests of a file opened and dropped (mainly databases) before the next file begins."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which `label_studio` serves local files. Each test creates its own folders in it."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory, served_folder: Path) -> Iterator[LabelStudio]:
    """One Label Studio for the whole run. Each test creates its own projects and leaves the others alone."""
    if not default_executable().exists():
        pytest.skip(f"Label Studio is not installed at {default_executable()}; run `make setup`")
    with LabelStudio.start(tmp_path_factory.mktemp("label-studio"), local_files=served_folder) as studio:
        yield studio


@pytest.fixture(scope="session")
def default_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudio]:
    """A Label Studio as it is without settings: it serves no local files and calls no private addresses."""
    if not default_executable().exists():
        pytest.skip(f"Label Studio is not installed at {default_executable()}; run `make setup`")
    with LabelStudio.start(tmp_path_factory.mktemp("default-studio"), guards="default") as studio:
        yield studio


@pytest.fixture(scope="session")
def shared() -> Path:
    """The optional folder of data sets beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no folder ../shared with data sets beside this checkout")
    return folder


@pytest.fixture(scope="session")
def cases(shared: Path) -> Path:
    """Small inputs that were read wrong once; the README beside them says what is right."""
    if not (shared / "cases").is_dir():
        pytest.skip("no folder ../shared/cases")
    return shared / "cases"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for the whole run; tests may empty it, but not stop it."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run; tests create their own databases and do not stop it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's executable."""
    found = find_chromium()
    if found is None:
        pytest.skip("no Chromium on this machine; on Debian, `apt-get install chromium`")
    return found


@pytest.fixture
def free_port() -> int:
    return child.free_port()


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 synthetic radiographs: images/, masks/ (0 background, 1 Lung, 2 Heart), labels.txt."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 60, seed=1)
    return folder


@pytest.fixture(scope="session")
def scans60(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ScanPairs:
    """60 chest radiographs, each with the mask of its lungs (0 or 255), 256 x 256 pixels.

    They are real if ../shared has them, otherwise synthetic.
    """
    real = Path(__file__).resolve().parents[2] / "shared" / "data" / "montgomery_cxr"
    source = real if real.is_dir() else request.getfixturevalue("phantom_folder")
    folder = tmp_path_factory.mktemp("scans60")
    pairs = []
    for image in sorted((source / "images").glob("*.png"))[:60]:
        pixels = cv2.imread(str(image), cv2.IMREAD_GRAYSCALE)
        mask = cv2.imread(str(source / "masks" / image.name), cv2.IMREAD_GRAYSCALE)
        assert pixels is not None
        assert mask is not None
        lung = (mask > 127) if source == real else (mask == 1)
        small = cv2.resize(pixels, (256, 256), interpolation=cv2.INTER_AREA)
        small_mask = cv2.resize(lung.astype("uint8") * 255, (256, 256), interpolation=cv2.INTER_NEAREST)
        pair = (folder / image.name, folder / f"{image.stem}.mask.png")
        assert cv2.imwrite(str(pair[0]), small)
        assert cv2.imwrite(str(pair[1]), small_mask)
        pairs.append(pair)
    return pairs


@pytest.fixture(scope="module")
def miniature() -> Iterator[None]:
    """For the loop in one process (`world`): no waiting for late imports, one check of the queue during the steps of
    a process, however slow they are, and parts so small that a few scans make several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observing, "SETTLE", 0.01)
        patch.setattr(tending, "TEND_EVERY", 60.0)
        patch.setattr(control_trial, "YIELD_EVERY", 60.0)
        patch.setattr(suspects, "AT_ONCE", 4)
        yield
