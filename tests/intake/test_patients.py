"""No patient data leak: text planted in every field of DICOM, NIfTI and picture files is only in the identities file.

`World.places` are searched; tests of the page, the loop or the export add their places and call `hunt` again.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from planted import DATES, MARKS, TIME, UIDS, WORD, hunt, plant

from backend.demo.label_studio import LabelStudio, default_executable

pytestmark = pytest.mark.label_studio

CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="tag" toName="image"><Label value="Lung"/></BrushLabels></View>'
)


@dataclass
class World:
    """A Label Studio with imported scans. `places`: folders, files and texts that must not contain patient data."""

    studio: LabelStudio
    project: int
    sources: Path
    data: Path
    planted: int
    places: list[Path | bytes | str] = field(default_factory=list)

    @property
    def identities(self) -> Path:
        return self.data.parent / "kept" / "identities.sqlite"

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SCANQUEUE_")}
        return {
            **kept,
            "SCANQUEUE_LABEL_STUDIO_URL": self.studio.url,
            "SCANQUEUE_LABEL_STUDIO_API_KEY": self.studio.personal_access_token(),
            "SCANQUEUE_DATA_DIR": str(self.data),
            "SCANQUEUE_LOG_FORMAT": "json",
        }

    def command(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run scanqueue; its output is added to the places."""
        line = [sys.executable, "-m", "backend.cli", *map(str, arguments)]
        done = subprocess.run(line, env=self.environment(), capture_output=True, text=True, timeout=300)
        self.places += [done.stdout, done.stderr]
        return done

    def imported(self, *more: object) -> dict[str, object]:
        done = self.command(
            *("import", "--project", self.project, self.sources, "--identities", self.identities, "--json", *more)
        )
        assert done.returncode == 1, done.stderr  # one file is broken
        return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """All planted files, imported twice: as uploads, and as local files into another project."""
    if not default_executable().exists():
        pytest.skip(f"Label Studio is not installed at {default_executable()}; run `make setup`")
    folder = tmp_path_factory.mktemp("patients")
    planted = plant(folder / "sources")
    (folder / "served").mkdir()
    with LabelStudio.start(folder / "label-studio", local_files=folder / "served") as studio:
        made = World(studio, studio.create_project("uploads", CONFIG), folder / "sources", folder / "data", planted)
        made.places = [studio.folder, made.data, folder / "served"]
        first = made.imported("--group-by", "folder")
        assert first["made"] == 3 + 1 + 4 + 4, first
        again = made.imported()
        assert (again["made"], again["there"]) == (0, 12), again
        made.project = studio.create_project("local files", CONFIG)
        assert made.imported("--local-files", folder / "served" / "set", "--axis", "acquisition")["made"] == 12
        yield made


def test_the_search_finds_the_planted_texts_in_the_sources(world: World) -> None:
    assert world.planted > 3000
    found = hunt([world.sources])
    word = WORD.lower()
    for mark in (word.encode(), word.encode("utf-16-le"), UIDS.encode(), TIME.encode(), DATES[40].encode()):
        assert mark in MARKS
        assert any(repr(mark) in line for line in found), mark
    assert any(": 4093" in line for line in found)
    words = {path: path.read_bytes().lower().count(WORD.lower().encode()) for path in world.sources.rglob("*.dcm")}
    assert max(words.values()) > 1500  # in one file


def test_the_identities_file_maps_pseudonyms_to_patients(world: World) -> None:
    assert hunt([world.identities])
    assert world.identities.stat().st_mode & 0o077 == 0
    with sqlite3.connect(world.identities) as database:
        values = [row[0] for row in database.execute("SELECT value FROM pseudonym WHERE kind = 'patient'")]
    assert any(value.startswith(f"id {WORD}") for value in values)


def test_nothing_planted_is_in_label_studio_our_data_logs_or_pictures(world: World) -> None:
    assert (world.studio.folder / "data" / "label_studio.sqlite3").stat().st_size > 100_000
    pictures = [path for path in world.studio.folder.rglob("*.png") if "upload" in path.parts]
    assert len(pictures) == 12
    assert len(list((world.data.parent / "served").rglob("*.png"))) == 12
    assert hunt(world.places) == []


def test_tasks_have_pseudonyms_and_numbers_only(world: World) -> None:
    allowed = {"image", "scan", "axis", "slice", "slices", "spacing_mm", "thickness_mm", "modality", "site", "group"}
    rows = world.studio.get("/api/tasks", project=world.project, page_size=100)["tasks"]
    assert len(rows) == 12
    for data in (row["data"] for row in rows):
        assert set(data) <= allowed | {"window"}
        assert data.get("modality", "MR") == "MR"  # the planted value was rejected
        assert hunt([json.dumps(data)]) == []
