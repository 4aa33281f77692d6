"""`scanqueue import` into a real Label Studio: every slice exactly once, identical to its source, whatever happens."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import httpx
import nibabel
import numpy as np
import pytest
import SimpleITK
from made_scans import pixels, series_uid, write_nifti, write_series

from backend.demo.label_studio import LabelStudio
from backend.errors import BadIdentities, BadSetting, CannotDeliver, ProjectBusy, StudioRefused, StudioUnavailable
from backend.formats import Window, to_uint8
from backend.intake.existing_tasks import ExistingTasks
from backend.intake.identities import Identities
from backend.intake.plan import ImportOptions
from backend.intake.request import ImportRequest, Tally
from backend.intake.run import run
from backend.label_studio.studio import Studio
from backend.records.locks import Locks
from backend.workers.process_pool import Workers

pytestmark = pytest.mark.label_studio

CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="tag" toName="image"><Label value="Lung"/></BrushLabels></View>'
)


class Silent:
    def looked(self, files: int) -> None: ...

    def begin(self, total: int) -> None: ...

    def advance(self, files: int, made: int) -> None: ...


class Lab:
    """A Label Studio that serves local files, and a folder for each project's identities and spool."""

    def __init__(self, studio: LabelStudio, folder: Path, root: Path) -> None:
        self.studio = studio
        self.root = root
        self.data = folder / "scanqueue"
        self.client = Studio(studio.url, studio.personal_access_token())
        self.project = studio.create_project("import", CONFIG)

    def request(self, *paths: Path, **more: Any) -> ImportRequest:
        options = {k: more.pop(k) for k in list(more) if k in ImportOptions.__dataclass_fields__}
        given: dict[str, Any] = {
            "project": self.project,
            "paths": paths,
            "options": ImportOptions(**options),
            "identities": self.data / "identities.sqlite",
            "spool": self.data / "spool" / "import",
            "locks": self.data / "locks",
            "jobs": 2,
        }
        return ImportRequest(**given | more)

    def run(self, *paths: Path, client: Studio | None = None, **more: Any) -> Tally:
        request = self.request(*paths, **more)
        with Workers(request.jobs) as workers:
            return run(request, client or self.client, workers, Silent())

    def tasks(self) -> list[dict[str, Any]]:
        """The data of every task, in the order they were made."""
        rows = self.studio.get("/api/tasks", project=self.project, page_size=10_000)["tasks"]
        return [row["data"] for row in sorted(rows, key=lambda row: int(row["id"]))]

    def keys(self) -> Counter[tuple[str, str, int]]:
        return Counter((data["scan"], data["axis"], data["slice"]) for data in self.tasks())

    def picture(self, data: dict[str, Any]) -> np.ndarray[Any, Any]:
        pixels = cv2.imdecode(np.frombuffer(self.png(data), np.uint8), cv2.IMREAD_UNCHANGED)
        assert pixels is not None
        return pixels

    def png(self, data: dict[str, Any]) -> bytes:
        return bytes(self.studio.browser.get(data["image"]).raise_for_status().content)

    def uploads(self) -> list[str]:
        """Names of all uploads, without Label Studio's prefix."""
        rows = self.studio.get(f"/api/projects/{self.project}/file-uploads", all="true")
        return [row["file"].rsplit("/", 1)[-1].partition("-")[2] for row in rows]

    def environment(self, url: str = "") -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SCANQUEUE_")}
        return {
            **kept,
            "SCANQUEUE_LABEL_STUDIO_URL": url or self.studio.url,
            "SCANQUEUE_LABEL_STUDIO_API_KEY": self.studio.personal_access_token(),
            "SCANQUEUE_DATA_DIR": str(self.data),
        }

    def command(self, *arguments: object) -> subprocess.Popen[str]:
        """The command line in a separate process."""
        line = [sys.executable, "-m", "backend.cli", "import", "--project", str(self.project), *map(str, arguments)]
        return subprocess.Popen(
            line,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def lab(label_studio: LabelStudio, served_folder: Path, tmp_path: Path) -> Lab:
    return Lab(label_studio, tmp_path, served_folder / tmp_path.name)


# -- what arrives -----------------------------------------------------------------------------


def test_a_series_arrives_slice_for_slice_with_spacing_and_window_but_without_names(lab: Lab, tmp_path: Path) -> None:
    named = {"PatientID": "4711", "PatientName": "Roe^Jane", "InstitutionName": "St. Elsewhere"}
    write_series(tmp_path / "in" / "Roe, Jane", "one", range(5), **named)
    tally = lab.run(tmp_path / "in")
    assert (tally.files, tally.scans, tally.slices, tally.made, tally.there) == (5, 1, 5, 5, 0)
    with Identities(lab.data / "identities.sqlite", must_exist=True) as identities:
        scan, patient = identities.pseudonym("scan", ""), identities.pseudonym("patient", "id 4711")
        (record,) = identities.scans()
        assert scan != record.scan
        assert identities.value(record.patient) == "id 4711"
        assert record.patient == patient
        assert [path.name for path in record.source.files] == [f"{n:04d}.dcm" for n in range(5)]
        site = identities.pseudonym("site", "St. Elsewhere")
    for number, data in enumerate(lab.tasks()):
        image = data.pop("image")
        assert re.fullmatch(rf"/data/upload/{lab.project}/\w{{8}}-{record.scan}\.acquisition\.{number:04d}\.png", image)
        assert data == {
            "scan": record.scan,
            "axis": "acquisition",
            "slice": number,
            "slices": 5,
            "spacing_mm": [0.75, 0.5],
            "thickness_mm": 3.0,
            "modality": "MR",
            "site": site,
            "group": patient,
            "window": [500.0, 1000.0],
        }
        stored = pixels(sum(b"one") * 1000 + number, 40, 32)
        shown = to_uint8(stored, Window(500, 1000), inverted=False)
        assert np.array_equal(lab.picture({"image": image}), shown)
        kinds = re.findall(rb"IHDR|PLTE|IDAT|IEND|tEXt|zTXt|iTXt|eXIf|tIME|pHYs", lab.png({"image": image}))
        assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}
    assert not (lab.data / "spool" / "import").exists()


def test_a_nifti_volume_is_cut_as_requested_and_plain_pictures_are_imported_too(lab: Lab, tmp_path: Path) -> None:
    values = write_nifti(tmp_path / "in" / "v.nii.gz", 3)
    color = np.dstack([np.full((30, 20), n, np.uint8) for n in (10, 120, 250)])
    assert cv2.imwrite(str(tmp_path / "in" / "c.png"), color)
    wanted = {"axis": "coronal", "every": 2, "window": "400,800", "site": "Ward 3", "modality": "CT"}
    tally = lab.run(tmp_path / "in" / "v.nii.gz", **wanted)
    assert (tally.made, tally.there, len(tally.problems)) == (12, 0, 0)
    tasks = lab.tasks()
    assert [data["slice"] for data in tasks] == list(range(0, 24, 2))
    assert {data["slices"] for data in tasks} == {24}
    assert all(data["spacing_mm"] == pytest.approx([2.5, 0.8]) for data in tasks)
    assert {(data["site"], data["modality"]) for data in tasks} == {("Ward 3", "CT")}
    # head up, the patient's right on the left
    shown = to_uint8(values[::-1, 4, ::-1].T, Window(400, 800), inverted=False)
    assert np.array_equal(lab.picture(tasks[2]), shown)
    tally = lab.run(tmp_path / "in" / "c.png", group_by="folder")
    assert (tally.made, len(tally.problems)) == (1, 0)
    last = lab.tasks()[-1]
    assert np.array_equal(lab.picture(last), color)
    assert "window" not in last
    assert last["group"].startswith("P-")


def test_the_most_informative_slices_are_chosen_once(lab: Lab, tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "v.nii.gz", 3)
    assert lab.run(tmp_path / "in", best=3).made == 3
    assert lab.run(tmp_path / "in", best=3).made == 0
    again = lab.run(tmp_path / "in")
    assert (again.made, again.there) == (3, 3)


def test_unreadable_files_are_counted_and_the_rest_arrives(lab: Lab, tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in", "two", range(5))
    complete = paths[3].read_bytes()
    paths[3].write_bytes(complete[:-900])
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    paths[1].unlink()  # a gap
    done = lab.command(tmp_path / "in", "--json")
    out, err = done.communicate(timeout=120)
    assert done.returncode == 1, err
    found = json.loads(out)
    assert (found["files"], found["others"], found["scans"], found["made"]) == (6, 1, 1, 3)
    assert len(found["problems"]) == 2, found
    assert "0003.dcm" not in out + err
    assert "empty.png" not in out + err
    assert [data["slice"] for data in lab.tasks()] == [0, 1, 3]
    paths[3].write_bytes(complete)
    assert lab.run(tmp_path / "in").made == 1
    assert lab.tasks()[-1]["slice"] == 2
    stored = pixels(sum(b"two") * 1000 + 3, 40, 32)
    assert np.array_equal(lab.picture(lab.tasks()[-1]), to_uint8(stored, Window(500, 1000), inverted=False))


def test_archives_and_volumes_arrive_and_kinds_that_are_not_read_are_counted(lab: Lab, tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in", "packed", range(3))
    with zipfile.ZipFile(tmp_path / "in" / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, f"a/{path.name}")
            path.unlink()
    image = SimpleITK.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    SimpleITK.WriteImage(image, tmp_path / "in" / "v.mhd")  # and v.raw
    for name in ("a.mp4", "b.mp4", "c.czi", "notes.txt", "x.q5"):
        (tmp_path / "in" / name).write_bytes(b"not read")
    done = lab.command(tmp_path / "in", "--json")
    out, err = done.communicate(timeout=120)
    assert done.returncode == 1, err
    found = json.loads(out)
    assert (found["scans"], found["made"], found["others"]) == (2, 6, 5)
    assert found["others_by_suffix"] == {".mp4": 2, ".czi": 1, ".txt": 1, "other": 1}
    assert sorted(found["problems"]) == [
        "1 .czi file is not read; microscopy: export it as TIFF, for example with Fiji (Bio-Formats).",
        "2 .mp4 files are not read; film: export its frames as PNG or DICOM.",
    ]
    stored = pixels(sum(b"packed") * 1000 + 1, 40, 32)
    shown = next(data for data in lab.tasks() if data["slice"] == 1 and data["slices"] == 3 and "modality" in data)
    assert np.array_equal(lab.picture(shown), to_uint8(stored, Window(500, 1000), inverted=False))
    assert lab.run(tmp_path / "in").made == 0


def test_a_folder_without_scans_is_a_problem_not_a_success(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("text")
    (found,) = lab.run(tmp_path / "in").problems
    assert found.what.startswith("there is no scan among the files found (1 .txt).")


# -- no duplicates ----------------------------------------------------------------------------


def test_a_moved_or_renamed_scan_stays_the_same_for_any_number_of_processes(lab: Lab, tmp_path: Path) -> None:
    write_series(tmp_path / "in", "three", range(6))
    write_nifti(tmp_path / "in" / "v.nii.gz", 5)
    assert cv2.imwrite(str(tmp_path / "in" / "p.png"), pixels(1, 50, 40).astype(np.uint8))
    first = lab.run(tmp_path / "in")
    assert first.made == 6 + 6 + 1
    before = lab.keys()
    moved = tmp_path / "elsewhere" / "deep"
    moved.mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "in").iterdir(), reverse=True)):
        path.rename(moved / f"file{number}{''.join(path.suffixes)}")
    shutil.copy(moved / "file0.nii.gz", moved / "copy.nii.gz")
    again = lab.run(tmp_path / "elsewhere", jobs=1)
    assert (again.made, again.there, again.copies, again.scans) == (0, 13, 1, 3)
    assert lab.keys() == before
    with Identities(lab.data / "identities.sqlite") as identities:
        files = {path for record in identities.scans() for path in record.source.files}
    assert all(path.exists() for path in files)  # their current paths


def test_a_dry_run_reports_what_it_would_create_and_writes_nothing(lab: Lab, tmp_path: Path) -> None:
    write_series(tmp_path / "in", "four", range(4))
    tally = lab.run(tmp_path / "in", dry_run=True)
    assert (tally.scans, tally.slices, tally.made, tally.there) == (1, 4, 4, 0)
    assert lab.tasks() == []
    assert not (lab.data / "identities.sqlite").exists()
    lab.run(tmp_path / "in", every=2)
    existing = (lab.data / "identities.sqlite").read_bytes()
    tally = lab.run(tmp_path / "in", dry_run=True)
    assert (tally.made, tally.there) == (2, 2)
    assert (lab.data / "identities.sqlite").read_bytes() == existing


def test_slices_added_at_the_end_of_a_series_continue_its_numbering(lab: Lab, tmp_path: Path) -> None:
    write_series(tmp_path / "in", "five", range(4))
    lab.run(tmp_path / "in")
    write_series(tmp_path / "in", "five", range(4, 7))
    tally = lab.run(tmp_path / "in")
    assert (tally.scans, tally.made, tally.there) == (1, 3, 4)
    assert sorted((data["slice"], data["slices"]) for data in lab.tasks()) == [
        *((n, 4) for n in range(4)),
        *((n, 7) for n in range(4, 7)),
    ]
    for data in lab.tasks():
        stored = pixels(sum(b"five") * 1000 + data["slice"], 40, 32)
        assert np.array_equal(lab.picture(data), to_uint8(stored, Window(500, 1000), inverted=False))
    with Identities(lab.data / "identities.sqlite") as identities:
        (record,) = identities.scans()
        assert record.geometry.shape == (32, 40, 7)


def test_slices_added_in_between_become_a_separate_scan_and_renumber_nothing(lab: Lab, tmp_path: Path) -> None:
    write_series(tmp_path / "in", "six", [0, 2, 4], PatientID="1")
    lab.run(tmp_path / "in")
    before = lab.tasks()
    write_series(tmp_path / "in", "six", [1, 3], PatientID="1")
    tally = lab.run(tmp_path / "in")
    assert (tally.scans, tally.made, tally.there) == (2, 2, 3)
    assert lab.tasks()[:3] == before
    new = lab.tasks()[3:]
    assert [data["slice"] for data in new] == [0, 1]
    assert {data["scan"] for data in new}.isdisjoint({data["scan"] for data in before})
    assert {data["group"] for data in new} == {data["group"] for data in before}
    for number, data in zip((1, 3), new, strict=True):
        stored = pixels(sum(b"six") * 1000 + number, 40, 32)
        assert np.array_equal(lab.picture(data), to_uint8(stored, Window(500, 1000), inverted=False))
    again = lab.run(tmp_path / "in")
    assert (again.made, again.there) == (0, 5)
    # a subset of the files gives the same slices as all of them
    subset = lab.run(tmp_path / "in" / "0002.dcm", tmp_path / "in" / "0003.dcm")
    assert (subset.made, subset.there) == (0, 2)


def test_a_grown_series_is_not_cut_across_again(lab: Lab, tmp_path: Path) -> None:
    write_series(tmp_path / "in", "seven", range(4))
    assert lab.run(tmp_path / "in", axis="coronal", every=10).made == 4
    write_series(tmp_path / "in", "seven", range(4, 6))
    tally = lab.run(tmp_path / "in", axis="coronal", every=10)
    assert (tally.made, tally.there) == (0, 4)
    assert "grown by 2 slices" in tally.problems[0].what


def test_only_a_deleted_task_is_created_again(lab: Lab, tmp_path: Path) -> None:
    write_series(tmp_path / "in", "eight", range(4))
    lab.run(tmp_path / "in")
    task = lab.studio.task_ids(lab.project)[1]
    lab.studio.delete(f"/api/tasks/{task}/")
    tally = lab.run(tmp_path / "in")
    assert (tally.made, tally.there) == (1, 3)
    assert set(lab.keys().values()) == {1}
    last = lab.tasks()[-1]
    assert last["slice"] == 1
    stored = pixels(sum(b"eight") * 1000 + 1, 40, 32)
    assert np.array_equal(lab.picture(last), to_uint8(stored, Window(500, 1000), inverted=False))


def test_another_identities_file_is_detected(lab: Lab, tmp_path: Path) -> None:
    write_series(tmp_path / "in", "nine", range(2))
    lab.run(tmp_path / "in")
    with pytest.raises(BadIdentities, match="with another identities file"):
        lab.run(tmp_path / "in", identities=tmp_path / "new.sqlite")
    assert lab.run(tmp_path / "in", identities=tmp_path / "new.sqlite", foreign=True).made == 2


def test_two_imports_into_one_project_do_not_run_at_once(lab: Lab, tmp_path: Path) -> None:
    write_series(tmp_path / "in", "ten", range(2))
    with Locks(lab.data / "locks").held(f"import-{lab.project}") as mine:
        assert mine
        with pytest.raises(ProjectBusy):
            lab.run(tmp_path / "in")


# -- kills, interrupts, lost answers ----------------------------------------------------------


def _wait(ready: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not ready() and process.poll() is None:
        assert time.monotonic() < until, "it did not get so far"
        time.sleep(0.02)


def test_after_kills_at_any_point_a_rerun_imports_every_slice_exactly_once(lab: Lab, tmp_path: Path) -> None:
    for name in "abcdefg":
        write_series(tmp_path / "in" / name, name, range(48), size=(32, 32))
    stops: list[Callable[[], bool]] = [
        lambda: (lab.data / "identities.sqlite").exists() and any((lab.data / "spool").rglob("*.png")),
        lambda: len(lab.uploads()) > 0,
        lambda: len(lab.studio.task_ids(lab.project)) > 0,
    ]
    left = []
    for stop in stops:
        process = lab.command(tmp_path / "in")
        _wait(stop, process)
        assert process.poll() is None, process.communicate()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        until = time.monotonic() + 10
        while _group(process.pid) and time.monotonic() < until:
            time.sleep(0.1)
        left += _group(process.pid)
    assert left == []  # no worker outlives the command
    done = lab.command(tmp_path / "in")
    out, err = done.communicate(timeout=180)
    assert done.returncode == 0, out + err
    keys = lab.keys()
    assert set(keys.values()) == {1}
    assert len(keys) == 7 * 48
    assert Counter(Counter(scan for scan, _, _ in keys).values()) == {48: 7}
    assert max(Counter(lab.uploads()).values()) == 1  # what was uploaded before a kill was used


def _group(number: int) -> list[int]:
    """The running processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == number and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_ctrl_c_exits_cleanly_and_the_same_command_continues(lab: Lab, tmp_path: Path) -> None:
    for name in "hijk":
        write_series(tmp_path / "in" / name, name, range(60), size=(32, 32))
    process = lab.command(tmp_path / "in", "--json")
    _wait(lambda: len(lab.uploads()) > 0, process)
    os.killpg(process.pid, signal.SIGINT)  # to the whole group, as a terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert "Run the same command again to resume." in err
    found = json.loads(out)
    assert found["interrupted"]
    assert found["made"] == len(lab.studio.task_ids(lab.project)) < 240
    rest = lab.run(tmp_path / "in")
    assert rest.made == 240 - found["made"]
    assert set(lab.keys().values()) == {1}


class Deaf(ThreadingHTTPServer):
    """A proxy to Label Studio that closes the connection instead of answering the first `deaf` writes."""

    daemon_threads = True

    def __init__(self, url: str, deaf: int) -> None:
        super().__init__(("127.0.0.1", 0), _Ear)
        self.upstream = httpx.Client(base_url=url, trust_env=False, timeout=60)
        self.deaf = deaf
        self.guard = threading.Lock()


class _Ear(BaseHTTPRequestHandler):
    server: Deaf

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")}
        answer = self.server.upstream.request(self.command, self.path, content=body, headers=headers)
        with self.server.guard:
            drop = self.command == "POST" and "/import" in self.path and self.server.deaf > 0
            self.server.deaf -= drop
        if drop:
            self.connection.close()
            return
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers.get("content-type", ""))
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_DELETE = _pass

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize("deaf", [1, 2])
def test_lost_answers_duplicate_nothing(lab: Lab, tmp_path: Path, deaf: int) -> None:
    write_series(tmp_path / "in", "eleven", range(30))
    proxy = Deaf(lab.studio.url, deaf)
    threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
    try:
        client = Studio(f"http://127.0.0.1:{proxy.server_port}", lab.studio.personal_access_token())
        tally = lab.run(tmp_path / "in", client=client)
    finally:
        proxy.shutdown()
        proxy.server_close()
    assert proxy.deaf == 0
    assert (tally.made, tally.slices) == (30, 30)
    assert set(lab.keys().values()) == {1}
    assert len(lab.keys()) == 30
    assert len(lab.uploads()) == 30


def test_tasks_in_flight_from_a_killed_import_are_not_created_again(lab: Lab) -> None:
    rows = [{"image": "/data/x.png", "scan": "S-A", "axis": "axial", "slice": n, "slices": 5} for n in range(5)]
    existing = ExistingTasks(lab.client, lab.project)
    existing.refresh()
    lab.studio.import_tasks(lab.project, rows[:3])  # arrives only now
    assert existing.add(rows) == 2
    assert sorted(data["slice"] for data in lab.tasks()) == [0, 1, 2, 3, 4]
    # even if both arrive at the same moment, the second one of a pair is removed, unless somebody drew on it
    lab.studio.import_tasks(lab.project, rows[3:])
    late = lab.studio.task_ids(lab.project)[-1]
    lab.studio.post(f"/api/tasks/{late}/annotations/", {"result": [], "lead_time": 1.0})
    existing.refresh_if_changed()
    assert sorted(data["slice"] for data in lab.tasks()) == [0, 1, 2, 3, 4, 4]
    assert existing.doubles == 1


def test_waiting_for_a_silent_label_studio_ends_after_a_time(lab: Lab) -> None:
    existing = ExistingTasks(lab.client, lab.project)
    existing.refresh()
    existing = ExistingTasks(Studio("http://127.0.0.1:9", "0" * 40), lab.project, patience=0.0)
    with pytest.raises(StudioUnavailable):
        existing.refresh()


# -- local files ------------------------------------------------------------------------------


def test_pictures_in_a_folder_that_label_studio_serves_are_not_uploaded(lab: Lab, tmp_path: Path) -> None:
    write_series(tmp_path / "in", "twelve", range(4))
    tally = lab.run(tmp_path / "in", local=lab.root)
    assert tally.made == 4
    assert lab.uploads() == []
    (scan,) = {data["scan"] for data in lab.tasks()}
    for data in lab.tasks():
        relative = f"{lab.root.name}/project-{lab.project}/{scan}/{scan}.acquisition.{data['slice']:04d}.png"
        assert data["image"] == f"/data/local-files/?d={relative}"
        stored = pixels(sum(b"twelve") * 1000 + data["slice"], 40, 32)
        assert np.array_equal(lab.picture(data), to_uint8(stored, Window(500, 1000), inverted=False))
    (storage,) = lab.studio.get("/api/storages/localfiles/", project=lab.project)
    assert storage["path"] == str(lab.root)
    # "Sync" in Label Studio creates no tasks from the same pictures
    lab.studio.post(f"/api/storages/localfiles/{storage['id']}/sync")
    assert len(lab.tasks()) == 4
    write_series(tmp_path / "in", "thirteen", range(2))
    assert lab.run(tmp_path / "in", local=lab.root).made == 2
    assert len(lab.studio.get("/api/storages/localfiles/", project=lab.project)) == 1
    # our own output is not imported
    assert lab.run(lab.root, tmp_path / "in", local=lab.root).made == 0


def test_a_folder_that_label_studio_cannot_serve_is_refused_with_advice(
    lab: Lab, default_studio: LabelStudio, tmp_path: Path
) -> None:
    write_series(tmp_path / "in", "fourteen", range(2))
    with pytest.raises(CannotDeliver, match=r"is not below .*--local-root"):
        lab.run(tmp_path / "in", local=tmp_path / "nowhere")
    mounted = tmp_path / "mounted"
    with pytest.raises(CannotDeliver, match=r"Label Studio has no folder .*/set"):
        lab.run(tmp_path / "in", local=mounted / "set", root=mounted)
    deaf = Lab(default_studio, tmp_path, default_studio.folder)
    with pytest.raises(CannotDeliver, match="LOCAL_FILES_SERVING_ENABLED=true"):
        deaf.run(tmp_path / "in", local=default_studio.folder / "pictures")
    assert lab.tasks() == []


def test_another_folder_with_the_same_name_is_detected_before_tasks_are_created(lab: Lab, tmp_path: Path) -> None:
    write_series(tmp_path / "in", "fifteen", range(2))
    mounted = tmp_path / "mounted"
    (lab.root / f"project-{lab.project}").mkdir(parents=True)
    with pytest.raises(CannotDeliver, match="does not serve the files in"):
        lab.run(tmp_path / "in", local=mounted / lab.root.name, root=mounted)
    assert lab.tasks() == []


# -- real scans -------------------------------------------------------------------------------


def test_real_series_and_volumes_arrive(lab: Lab, shared: Path) -> None:
    data = shared / "data"
    volume = next((data / "brain_mri_volumes").rglob("*.nii*"))
    tally = lab.run(data / "brain_mri_volumes" / "PGBM-002_T1post", volume)
    assert not tally.problems
    tasks = lab.tasks()
    assert len(tasks) == tally.slices == 22 + np.asanyarray(nibabel.load(volume).dataobj).shape[2]
    assert set(lab.keys().values()) == {1}
    assert all(len(data["spacing_mm"]) == 2 for data in tasks)
    assert series_uid("x") != series_uid("y")


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ("$image.url", lambda data: data["image"]["url"]),
        ("$images[0]", lambda data: data["images"][0]),
        ("http://host/$file", None),
        ("$scan", None),
    ],
)
def test_images_are_written_where_the_image_tag_reads_them(
    value: str, where: Callable[[dict[str, Any]], str] | None, lab: Lab, tmp_path: Path
) -> None:
    lab.project = lab.studio.create_project("import", CONFIG.replace("$image", value))
    write_nifti(tmp_path / "a.nii.gz", 1)
    if where is None:
        with pytest.raises(BadSetting, match=r"no address of an uploaded image.*value=\"\$image\""):
            lab.run(tmp_path / "a.nii.gz")
        return
    assert lab.run(tmp_path / "a.nii.gz").made == 6
    assert [lab.picture({"image": where(data)}).shape for data in lab.tasks()] == [(24, 20)] * 6


def test_of_several_images_the_chosen_one_is_written_and_a_config_that_needs_more_data_is_refused(
    lab: Lab, tmp_path: Path
) -> None:
    write_nifti(tmp_path / "a.nii.gz", 1)
    both = CONFIG.replace("<View>", '<View><Image name="before" value="$before"/>')
    lab.project = lab.studio.create_project("import", both)
    with pytest.raises(BadSetting, match=r"also shows \$before, which imported tasks do not have"):
        lab.run(tmp_path / "a.nii.gz")
    with pytest.raises(StudioRefused, match="before"):  # as Label Studio refuses them
        lab.studio.post(f"/api/projects/{lab.project}/import", [{"data": {"image": "/a.png"}}])
    tag = '<BrushLabels name="other" toName="before"><Label value="Lung"/></BrushLabels></View>'
    lab.project = lab.studio.create_project("import", both.replace("$before", "$image").replace("</View>", tag))
    assert lab.run(tmp_path / "a.nii.gz", image="before").made == 6
