"""Lists the slices of a project: which task shows which slice, and which annotation counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from backend.errors import BadSetting
from backend.formats import AXES
from backend.image_value import reference
from backend.label_config import LabelConfig
from backend.label_studio.listing import Annotation, TaskRow

BATCH = 25  # plain images per unit
NAMED = 5  # maximum number of scans named in a message

_SCAN = re.compile(r"S-[A-Z2-7]{12}")
_GROUP = re.compile(r"P-[A-Z2-7]{12}")


class Slice(NamedTuple):
    """One task. It shows slice `n` (from 0) of `scan` along `axis`; "", 0 for images not imported by scanqueue.

    group  pseudonym of the patient, or ""
    image  the task's reference to its image
    """

    scan: str
    axis: str
    n: int
    task: int
    annotated: bool
    image: str
    group: str

    @property
    def name(self) -> str:
        """File name of its image and mask. Plain images are named by task, as their own name may identify a patient."""
        return f"{self.scan}.{self.axis}.{self.n:04d}.png" if self.scan else f"task-{self.task}.png"

    @property
    def which(self) -> dict[str, Any]:
        """Its task and slice, as in the manifest and the COCO file."""
        return {"task": self.task, **({"scan": self.scan, "axis": self.axis, "slice": self.n} if self.scan else {})}


class Unit(NamedTuple):
    """Slices that are exported together: all of one scan along one axis, or a few plain images (scan "").

    alone  the scan is exported along this axis only
    """

    scan: str
    axis: str
    slices: tuple[Slice, ...]
    alone: bool

    @property
    def name(self) -> str:
        """File name of its volumes, without suffix."""
        return self.scan if self.alone else f"{self.scan}.{self.axis}"


def read_slice(row: TaskRow, config: LabelConfig, project: int) -> Slice:
    """The slice that a task shows. Task data that `scanqueue import` would not write makes it a plain image."""
    data: Mapping[str, Any] = row.data
    scan, axis, n, group = (data.get(key) for key in ("scan", "axis", "slice", "group"))
    image = reference(config.image_value, data, project, row.task)
    patient = group if isinstance(group, str) and _GROUP.fullmatch(group) else ""
    if not (isinstance(scan, str) and _SCAN.fullmatch(scan) and axis in AXES):
        return Slice("", "", 0, row.task, row.annotated > 0, image, "")
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        return Slice("", "", 0, row.task, row.annotated > 0, image, "")
    return Slice(scan, str(axis), n, row.task, row.annotated > 0, image, patient)


def collect(
    rows: Iterable[TaskRow], config: LabelConfig, project: int, *, axis: str = "", scans: Sequence[str] = ()
) -> list[Slice]:
    """The slices of a project, sorted by scan, axis, slice and task; plain images last.

    axis, scans  return only these slices, and no plain images

    Raises BadSetting if no task shows one of `scans`.
    """
    wanted, seen = set(scans), set()
    found = []
    for row in rows:
        one = read_slice(row, config, project)
        seen.add(one.scan)
        if (not axis or one.axis == axis) and (not wanted or one.scan in wanted):
            found.append(one)
    if missing := sorted(wanted - (seen - {""})):
        known = ", ".join(sorted(seen - {""})[:NAMED]) or "none"
        raise BadSetting(
            f"--scan: no task of the project shows {', '.join(missing[:NAMED])}. Its scans: {known}"
            f"{', ...' if len(seen - {''}) > NAMED else ''}."
        )
    found.sort(key=lambda s: (not s.scan, s.scan, AXES.index(s.axis) if s.axis else 0, s.n, s.task))
    return found


def units(slices: Sequence[Slice]) -> Iterator[Unit]:
    """Group sorted slices into units."""
    for scan, of_scan in groupby(slices, key=lambda s: s.scan):
        if not scan:
            plain = list(of_scan)
            for start in range(0, len(plain), BATCH):
                yield Unit("", "", tuple(plain[start : start + BATCH]), True)
            continue
        by_axis = [(axis, tuple(group)) for axis, group in groupby(of_scan, key=lambda s: s.axis)]
        for axis, group in by_axis:
            yield Unit(scan, axis, group, len(by_axis) == 1)


def best(found: Sequence[Annotation]) -> Annotation:
    """The annotation that counts among those of several tasks for one slice, by the same rule as within one task."""
    return max(found, key=lambda a: (a.ground_truth, not (a.unseen or a.copied), a.updated_at, a.id))
