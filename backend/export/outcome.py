"""What an export reports: its manifest, and the problems and notes shown in the terminal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.export.manifest import Files, Sections
from backend.export.target import MANIFEST

SECTIONS = ("scans", "slices", "unlabelled", "problems", "files")
MAX_SHOWN = 20  # problems and notes kept for the terminal; the manifest lists all problems
ANNOTATIONS, MODEL = "annotations", "model"


@dataclass(frozen=True)
class Problem:
    """What could not be exported. `where` contains paths, for the person at the terminal only."""

    what: str
    where: str = ""


@dataclass(frozen=True)
class Summary:
    """What an export wrote.

    scans     number of scans with labelled slices
    slices    number of labelled slices
    files     number of files by format; masks of a model as "model/FORMAT"
    problems  the first MAX_SHOWN
    """

    folder: Path
    moved: Path | None
    scans: int
    slices: int
    unlabelled: int
    files: Counter[str]
    problem_count: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


class Outcome:
    """The manifest in `folder` and everything that is counted or reported while an export runs."""

    def __init__(self, folder: Path) -> None:
        self.manifest = Sections(folder / MANIFEST, SECTIONS)
        self.files = Files(folder, self.manifest)
        self.problems: list[Problem] = []
        self.notes: dict[str, None] = {}
        self.scans: set[str] = set()
        self.counts: Counter[str] = Counter()

    def note(self, text: str) -> None:
        if len(self.notes) < MAX_SHOWN:
            self.notes[text] = None

    def problem(self, what: str, where: str = "", /, **which: Any) -> None:
        """Report a problem. The manifest gets `what` and `which`, never `where`."""
        self.manifest.add("problems", {**which, "what": what})
        if len(self.problems) < MAX_SHOWN:
            self.problems.append(Problem(what, where))

    def summary(self, folder: Path, moved: Path | None) -> Summary:
        counts = self.manifest.counts
        return Summary(
            folder=folder,
            moved=moved,
            scans=len(self.scans),
            slices=counts["slices"],
            unlabelled=self.counts["unlabelled"],
            files=self.files.kinds,
            problem_count=counts["problems"],
            problems=tuple(self.problems),
            notes=tuple(self.notes),
        )
