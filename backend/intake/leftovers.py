"""The files of an import that are not images, counted by suffix: what they are and what to do with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from backend.formats import kinds
from backend.intake.slicing import Problem

_SHOWN = 8  # suffixes in a message


class Leftovers:
    """Files that sniffing did not recognize."""

    def __init__(self) -> None:
        self._paths: set[Path] = set()

    def add(self, path: Path) -> None:
        self._paths.add(path)

    def claim(self, paths: Iterable[Path]) -> None:
        """Forget files that belong to an image: the voxels of a detached header."""
        self._paths.difference_update(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def by_suffix(self) -> dict[str, int]:
        """The number of files by suffix, the most frequent first; suffixes of no known kind are "other"."""
        counted = Counter(kinds.public(kinds.suffix(path.name)) for path in self._paths)
        return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))

    def problems(self, *, nothing: bool) -> list[Problem]:
        """One problem for each kind of scan files that are not read; if there is `nothing` else, one for that."""
        found = []
        first: dict[str, Path] = {}
        for path in sorted(self._paths):
            first.setdefault(kinds.suffix(path.name), path)
        counted = Counter(kinds.suffix(path.name) for path in self._paths)
        for suffix, path in first.items():
            if advice := kinds.ADVICE.get(suffix):
                found.append(Problem(path, f"{_files(counted[suffix], suffix)} not read; {advice}.", one=False))
        if nothing and not found and self._paths:
            what = ", ".join(f"{number} {suffix}" for suffix, number in list(self.by_suffix().items())[:_SHOWN])
            found.append(
                Problem(
                    min(self._paths),
                    f"there is no scan among the files found ({what}). Name a folder with DICOM, NIfTI, NRRD "
                    "or pictures, or convert these files to one of them.",
                    one=False,
                )
            )
        return found


def _files(number: int, suffix: str) -> str:
    return f"{number} {suffix} file{'s are' if number > 1 else ' is'}"
