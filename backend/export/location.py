"""Where a scan's masks belong: its geometry, its source files, and the volume formats that suit it."""

from __future__ import annotations

from backend.errors import CannotCut, LostSource
from backend.export.collect import Unit
from backend.export.outcome import Outcome
from backend.export.sources import Sources
from backend.export.volumes import NIFTI, RTSTRUCT, SEG, Place
from backend.formats import cut
from backend.intake.identities import Identities, ScanRecord

VOLUMES = {NIFTI: "NIfTI", SEG: "DICOM SEG", RTSTRUCT: "RTSTRUCT"}


class Locator:
    """Finds the Place of each scan and reports why a volume is not written.

    formats     formats to write
    explicit    the user named the formats, so a format that does not suit a scan is a problem, not a note
    identities  of the scans; None: no volumes
    model       a model's masks are exported too, so unlabelled scans need their sources
    """

    def __init__(
        self,
        formats: frozenset[str],
        identities: Identities | None,
        sources: Sources,
        outcome: Outcome,
        *,
        explicit: bool,
        model: bool,
    ) -> None:
        self._wanted = formats & VOLUMES.keys()
        self._identities, self._sources, self._outcome = identities, sources, outcome
        self._explicit, self._model = explicit, model

    def place(self, unit: Unit) -> Place | None:
        """Where the scan belongs; None for images whose origin is unknown.

        A scan of which nothing is exported, as it has no label, has no problem either.
        """
        needed = self._model or any(s.annotated for s in unit.slices)
        record = self._record(unit, needed=needed)
        if record is None:
            return None
        try:
            made = cut(record.geometry, unit.axis)
        except CannotCut as error:
            if needed:
                self._outcome.problem(f"{unit.scan}: {error}", scan=unit.scan, axis=unit.axis)
            return None
        if not needed:
            return Place(record, made)
        kind, regular = record.source.kind, record.geometry.regular
        fits = frozenset(f for f in self._wanted if self._fits(f, kind, regular, unit.scan))
        if not fits:
            return Place(record, made)
        try:
            return Place(record, made, self._sources.find(record), fits)
        except LostSource as error:
            self._outcome.problem(str(error), error.where, scan=unit.scan, axis=unit.axis)
            return Place(record, made)

    def _record(self, unit: Unit, *, needed: bool) -> ScanRecord | None:
        if not unit.scan:
            if needed and self._wanted and self._explicit:
                self._outcome.note(
                    "Images that `scanqueue import` did not create have no volume. They are exported as PNG and COCO "
                    "only."
                )
            return None
        if self._identities is None:
            if needed and self._wanted:
                self._outcome.note(
                    "NIfTI and DICOM SEG were not written. They need the identities file of `scanqueue import`, which "
                    "records the source files of each scan. Use --identities."
                )
            return None
        record = self._identities.scan(unit.scan)
        if record is None and needed and self._wanted:
            self._outcome.problem(
                f"{unit.scan} is not in the identities file, so no volume was written. Use the file that the scan was "
                "imported with.",
                scan=unit.scan,
            )
        return record

    def _fits(self, form: str, kind: str, regular: bool, scan: str) -> bool:
        why = ""
        if form in (SEG, RTSTRUCT) and kind != "dicom":
            why = f"{VOLUMES[form]} refers to DICOM instances, which this scan does not have"
        elif form == NIFTI and not regular:
            why = "its slices are not evenly spaced, which NIfTI cannot represent"
        if not why:
            return form != NIFTI or kind != "image" or self._explicit
        if self._explicit:
            self._outcome.problem(f"{scan} was not written as {VOLUMES[form]}: {why}.", scan=scan)
        elif form == NIFTI:
            self._outcome.note(f"{scan} was not written as {VOLUMES[form]}: {why}.")
        return False
