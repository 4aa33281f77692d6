"""What a project holds, slice by slice: which tasks show which slice of which scan, and which annotation counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from backend.errors import BadSetting
from backend.facts import LabelConfig
from backend.formats import AXES
from backend.label_studio.listing import Annotation, TaskRow

BATCH = 25  # plain pictures in one unit
NAMED = 5  # scans in a message

_SCAN = re.compile(r"S-[A-Z2-7]{12}")
_GROUP = re.compile(r"P-[A-Z2-7]{12}")


class Slice(NamedTuple):
    """One task. `scan`, `axis` and `n` (from 0) say which slice it shows; "", "" and 0: a picture not imported by us.

    group  pseudonym of the patient, or ""
    image  the task's reference to its picture
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
        """Of its picture and its mask. A plain picture's own name may be a patient's, its task's number is not."""
        return f"{self.scan}.{self.axis}.{self.n:04d}.png" if self.scan else f"task-{self.task}.png"

    @property
    def which(self) -> dict[str, Any]:
        """Its place in the manifest's and COCO's words."""
        return {"task": self.task, **({"scan": self.scan, "axis": self.axis, "slice": self.n} if self.scan else {})}


class Unit(NamedTuple):
    """Slices that are exported together: all of one scan along one axis, or a few plain pictures (scan "").

    alone  the scan is exported along no other axis
    """

    scan: str
    axis: str
    slices: tuple[Slice, ...]
    alone: bool

    @property
    def name(self) -> str:
        """What its volumes are called, without an ending."""
        return self.scan if self.alone else f"{self.scan}.{self.axis}"


def read_slice(row: TaskRow, config: LabelConfig) -> Slice:
    """What a task shows. Anybody may write task data: what `scanqueue import` would not have written is plain."""
    data: Mapping[str, Any] = row.data
    scan, axis, n, group = (data.get(key) for key in ("scan", "axis", "slice", "group"))
    image = data.get(config.image_key)
    reference = image if isinstance(image, str) else ""
    patient = group if isinstance(group, str) and _GROUP.fullmatch(group) else ""
    if not (isinstance(scan, str) and _SCAN.fullmatch(scan) and axis in AXES):
        return Slice("", "", 0, row.task, row.annotated > 0, reference, "")
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        return Slice("", "", 0, row.task, row.annotated > 0, reference, "")
    return Slice(scan, str(axis), n, row.task, row.annotated > 0, reference, patient)


def collect(rows: Iterable[TaskRow], config: LabelConfig, *, axis: str = "", scans: Sequence[str] = ()) -> list[Slice]:
    """The slices of a project in order: by scan, axis, slice and task; plain pictures last.

    axis, scans  only those slices; plain pictures then are none

    Raises BadSetting when a scan is asked for that no task shows.
    """
    wanted, seen = set(scans), set()
    found = []
    for row in rows:
        one = read_slice(row, config)
        seen.add(one.scan)
        if (not axis or one.axis == axis) and (not wanted or one.scan in wanted):
            found.append(one)
    if missing := sorted(wanted - (seen - {""})):
        known = ", ".join(sorted(seen - {""})[:NAMED]) or "none"
        raise BadSetting(
            f"--scan: no task of the project shows {', '.join(missing[:NAMED])}. It has {known}"
            f"{', ...' if len(seen - {''}) > NAMED else ''}."
        )
    found.sort(key=lambda s: (not s.scan, s.scan, AXES.index(s.axis) if s.axis else 0, s.n, s.task))
    return found


def units(slices: Sequence[Slice]) -> Iterator[Unit]:
    """Ordered slices, cut into what is exported together."""
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
    """Of the annotations of several tasks that show the same slice, the one that counts: as within one task."""
    return max(found, key=lambda a: (a.ground_truth, a.updated_at, a.id))
