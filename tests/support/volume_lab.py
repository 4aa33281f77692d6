"""A lab that imports volumes into a real Label Studio, annotates the pictures, and exports the masks."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from backend import cli
from backend.demo.annotator import Annotator, Control, label_map_to_masks, to_result
from backend.demo.label_studio import LabelStudio
from backend.errors import ScanqueueError
from backend.intake.identities import Identities

LABELS = ("Anterior", "Posterior")
CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">'
    '<Label value="Anterior"/><Label value="Posterior"/></BrushLabels></View>'
)
CONTROL = Control("tag", "image", "brushlabels")
Mask = NDArray[np.uint8]
Draw = Callable[[Mapping[str, Any], Callable[[], Mask]], Mask]


class VolumeLab:
    """One project in a real Label Studio, one data folder, one annotator."""

    def __init__(self, studio: LabelStudio, folder: Path, config: str = CONFIG) -> None:
        self.studio = studio
        self.folder = folder
        self.project = studio.create_project("volumes", config)
        self.annotator = Annotator(studio.url, studio.email, studio.password)
        self.drawn: dict[tuple[str, str, int], Mask] = {}

    def run(self, command: str, *args: str | Path) -> tuple[int, str]:
        """Run `scanqueue COMMAND` as on the command line, but in this process: starting one takes seconds.

        Returns its exit code and its output.
        """
        settings = {
            "SCANQUEUE_LABEL_STUDIO_URL": self.studio.url,
            "SCANQUEUE_LABEL_STUDIO_API_KEY": self.studio.personal_access_token(),
            "SCANQUEUE_DATA_DIR": str(self.folder / "data"),
        }
        line = [command, "--project", str(self.project), *map(str, args)]
        with pytest.MonkeyPatch.context() as patch:
            for name in [n for n in os.environ if n.startswith("SCANQUEUE_")]:
                patch.delenv(name)
            for name, value in settings.items():
                patch.setenv(name, value)
            done = CliRunner().invoke(cli.app, line)
        if isinstance(done.exception, ScanqueueError):
            return 1, f"{done.output}{done.exception}"
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output

    def import_scans(self, *args: str | Path) -> None:
        code, said = self.run("import", "--jobs", "1", *args)
        assert code == 0, said

    def export(self, name: str, *args: str | Path, code: int = 0) -> Path:
        found, self.said = self.run("export", "--out", self.folder / name, *args)
        assert found == code, self.said
        return self.folder / name

    def tasks(self) -> list[dict[str, Any]]:
        reply = self.studio.get("/api/tasks", project=self.project, page_size=100_000, include="id,data")
        return [{**task, "project": self.project} for task in reply["tasks"]]

    def picture(self, task: Mapping[str, Any]) -> Mask:
        """The pixels that an annotator sees."""
        answer = self.studio.browser.get(task["data"]["image"])
        assert answer.status_code == 200
        return np.asarray(Image.open(io.BytesIO(answer.content)), np.uint8)

    def annotate(self, draw: Draw, tasks: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Draw and submit each task; `draw` gets its data and a function that returns its picture."""
        for task in self.tasks() if tasks is None else tasks:
            mask = draw(task["data"], lambda task=task: self.picture(task))  # type: ignore[misc]
            self.annotator.submit(task, to_result(label_map_to_masks(mask, LABELS), CONTROL))
            self.drawn[task["data"]["scan"], task["data"]["axis"], task["data"]["slice"]] = mask

    def identities(self) -> Identities:
        return Identities(self.folder / "data" / "identities.sqlite", must_exist=True)

    def sources(self) -> dict[str, Path]:
        """The first file of each scan, by pseudonym."""
        with self.identities() as known:
            return {record.scan: record.source.files[0] for record in known.scans()}

    def close(self) -> None:
        self.annotator.close()


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
