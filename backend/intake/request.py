"""The request, progress and results of an import."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from backend.intake.plan import ImportOptions
from backend.intake.slicing import Problem


@dataclass(frozen=True)
class ImportRequest:
    """The arguments of `scanqueue import`.

    identities  the identities file
    spool       folder for pictures before the upload; emptied
    local       folder from which Label Studio serves local files; None: upload
    root        see LocalFiles
    image       the project's setting `image`: which of several images counts; "": the first
    masks       files and folders with masks, which are not imported as scans
    foreign     continue even if the project's scans were imported with another identities file
    """

    project: int
    paths: tuple[Path, ...]
    options: ImportOptions
    identities: Path
    spool: Path
    locks: Path
    jobs: int
    local: Path | None = None
    root: Path | None = None
    dry_run: bool = False
    foreign: bool = False
    image: str = ""
    masks: tuple[Path, ...] = ()


@dataclass
class Tally:
    """The results of an import. `problems`, `remarks` and `burnt_in` contain paths, which may name patients.

    files, others   files found, and those of them that are not images
    suffixes        the number of these by suffix
    scans           identified sources, without copies
    copies          files that are copies of others
    slices          selected slices
    made            those that became tasks (or would have, in a dry run)
    there           those that already had a task
    skipped         scans skipped because of text in their pixels
    doubles         tasks in Label Studio for slices that already have another task
    remarks         what a person should know about scans that were read
    masks           what became of masks, by name; None: none were to be imported
    """

    files: int = 0
    others: int = 0
    suffixes: dict[str, int] = field(default_factory=dict)
    scans: int = 0
    copies: int = 0
    slices: int = 0
    made: int = 0
    there: int = 0
    skipped: int = 0
    doubles: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    burnt_in: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)
    masks: dict[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON without paths, so that it may be stored."""
        numbers = ("files", "others", "scans", "copies", "slices", "made", "there", "skipped", "doubles")
        return {
            **{name: getattr(self, name) for name in numbers},
            "others_by_suffix": self.suffixes,
            "burnt_in": len(self.burnt_in),
            "problems": [problem.what for problem in self.problems],
            "remarks": [remark.what for remark in self.remarks],
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 1),
            **({} if self.masks is None else {"masks": self.masks}),
        }


class ProgressListener(Protocol):
    """Receives the progress of an import."""

    def looked(self, files: int) -> None:
        """`files` files were sniffed so far."""

    def begin(self, total: int) -> None:
        """`total` files will be read."""

    def advance(self, files: int, made: int) -> None:
        """Another `files` files are finished; `made` tasks were created so far."""
