"""One import from start to finish."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from backend.errors import BadIdentities, BadSetting, ProjectBusy, ScanqueueError, StorageFull
from backend.formats import FileFacts, Geometry, Source, geometry_of, group
from backend.image_value import data_with, template
from backend.intake.delivery import Delivery, LocalFiles, Uploads
from backend.intake.existing_tasks import ExistingTasks
from backend.intake.files import walk
from backend.intake.identities import Identities
from backend.intake.leftovers import Leftovers
from backend.intake.plan import Scan, plan
from backend.intake.request import ImportRequest, ProgressListener, Tally
from backend.intake.slicing import (
    IdentifiedSource,
    JobResult,
    Problem,
    SliceJob,
    SourceToIdentify,
    identify_sources,
    sniff_files,
    write_pictures,
)
from backend.label_config import data_keys
from backend.label_studio.studio import Studio
from backend.records.locks import Locks
from backend.workers.process_pool import Crashed, Workers

log = logging.getLogger("scanqueue.intake")
Thing = TypeVar("Thing")

FILES = 32  # files per sniffing job
SLICES = 24  # slices per job, for small scans
LOT = 200  # minimum number of tasks per request; else a quarter of the remaining files, up to the delivery's batch
OTHER_KEYS = {  # of the data of an imported task besides its image
    *("scan", "axis", "slice", "slices", "window", "spacing_mm", "thickness_mm", "modality", "site", "group"),
}
CRASHED = "its decoder crashed. Convert the file, or exclude it."


def run(request: ImportRequest, studio: Studio, workers: Workers, progress: ProgressListener) -> Tally:
    """Run an import. `workers.stop()` ends it early, after the work in progress.

    Raises a ScanqueueError if the import cannot start or continue. The tasks created so far stay, and the same command
    does not create them again.
    """
    for noisy in ("pydicom", "nibabel", "nibabel.global"):  # their log lines quote header values
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        if not stack.enter_context(Locks(request.locks).held(f"import-{request.project}")):
            raise ProjectBusy(f"Another import into project {request.project} is running. Wait until it has finished.")
        files = walk(request.paths, spare=[request.spool, *request.masks, *([request.local] if request.local else [])])
        first = next(files, None)  # report a path that does not exist before anything else
        existing = ExistingTasks(studio, request.project)
        file = request.identities
        if request.dry_run and not file.exists():
            file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / file.name
        identities = stack.enter_context(Identities(file))
        intake = _Import(request, studio, workers, identities, existing, progress)
        started = time.monotonic()
        try:
            intake.run(path for path in (first, *files) if path is not None)
        finally:
            intake.close()
        existing.refresh_if_changed()
        tally = intake.tally
        tally.doubles = existing.doubles
        tally.interrupted = workers.stopped
        tally.seconds = time.monotonic() - started
        return tally


def _check_identities(identities: Identities, existing: ExistingTasks, request: ImportRequest) -> None:
    """Raise BadIdentities if the project was filled with another file: every scan would be imported again."""
    scans = [scan for scan in existing.scans() if scan.startswith("S-")]
    if scans and not request.foreign and not any(identities.scan(scan) for scan in scans):
        raise BadIdentities(
            f"The {len(scans)} scans in project {request.project} were imported with another identities file than "
            f"{request.identities}; with this one they would be imported again under new names. "
            "Pass the original file with --identities, or --other-identities if these are other scans."
        )


def _delivery(request: ImportRequest, studio: Studio, existing: ExistingTasks) -> Delivery:
    if request.local is not None:
        return LocalFiles(studio, request.project, request.local, request.root)
    return Uploads(studio, request.project, request.spool, existing)


class _Import:
    def __init__(
        self,
        request: ImportRequest,
        studio: Studio,
        workers: Workers,
        identities: Identities,
        existing: ExistingTasks,
        progress: ProgressListener,
    ) -> None:
        self.request = request
        self.studio = studio
        self.workers = workers
        self.identities = identities
        self.existing = existing
        self.progress = progress
        self.tally = Tally()
        self._delivery: Delivery | None = None
        self._image_value = ""
        self._ready: list[tuple[Path, dict[str, Any]]] = []
        self._left = 0  # files still to read
        self._seen: set[str] = set()

    def _prepare(self) -> None:
        """All requests to Label Studio before the first scan."""
        page = self.studio.project(self.request.project)
        self._image_value = page.masks_config(self.request.project, self.request.image).image_value
        made = data_with(self._image_value, "/x")
        if made is None or made.keys() & OTHER_KEYS:
            raise BadSetting(
                f"The Image tag of the label config has value={template(self._image_value)!r}, which no address of "
                'an uploaded image fits. Change it to value="$image" in Settings > Labeling Interface > Code.'
            )
        if others := data_keys(page.label_config) - made.keys() - OTHER_KEYS:
            raise BadSetting(
                f"The label config also shows ${', $'.join(sorted(others))}, which imported tasks do not have, so that "
                "Label Studio would refuse them. Import into a project without these tags."
            )
        self.existing.refresh()
        _check_identities(self.identities, self.existing, self.request)
        if not self.request.dry_run:
            self._delivery = _delivery(self.request, self.studio, self.existing)

    def close(self) -> None:
        if self._delivery is not None:
            self._delivery.close()

    def run(self, files: Iterable[Path]) -> None:
        with ThreadPoolExecutor(1) as executor:  # while files are sniffed
            prepared = executor.submit(self._prepare)
            sources = deque(self._sources(files, prepared))
            prepared.result()
        self._left = sum(len(asked.source.files) for asked in sources)
        self.progress.begin(self._left)
        if self._delivery is None:
            for scan in self._scans(sources):
                self._count_dry_run(scan)
            return
        ahead = 2 * self.workers.jobs
        for lot, made in self.workers.each_lot(write_pictures, self._jobs(sources), lambda one: one[1], ahead=ahead):
            for (scan, job), one in zip(lot, made, strict=True):
                self._record(scan, JobResult(problem=_crashed(job.source)) if isinstance(one, Crashed) else one)
            self._send(all=False)
        self._send(all=True)

    # -- finding scans ----------------------------------------------------------------------

    def _sources(self, files: Iterable[Path], prepared: Future[None]) -> list[SourceToIdentify]:
        facts: list[FileFacts] = []
        leftovers = Leftovers()
        lots = _in_lots(files, FILES)
        for paths, found in self.workers.each_lot(sniff_files, lots, lambda path: path, ahead=4 * self.workers.jobs):
            for path, one in zip(paths, found, strict=True):
                if isinstance(one, Crashed):
                    self.tally.problems.append(Problem(path, CRASHED))
                elif isinstance(one, Problem):
                    self.tally.problems.append(one)
                elif one is None:
                    leftovers.add(path)
                else:
                    facts.append(one)
            if prepared.done():
                prepared.result()  # report errors now
            self.tally.files += len(paths)
            self.progress.looked(self.tally.files)
        known = {one.path: one for one in facts}
        options = self.request.options
        sources = group(facts)
        leftovers.claim(path for source in sources for path in source.files[1:])
        self.tally.others, self.tally.suffixes = len(leftovers), leftovers.by_suffix()
        self.tally.problems += leftovers.problems(nothing=not sources and not self.tally.problems)
        self.tally.copies += len(known.keys() - {path for source in sources for path in source.files})
        return [
            SourceToIdentify(source, options.time, options.axis, _geometry(source, known))
            for source in self._at_time(sources)
        ]

    def _at_time(self, sources: list[Source]) -> Iterator[Source]:
        """The sources without those volumes of a series that --time does not select."""
        time = self.request.options.time
        for source in sources:
            turn, count = source.turn
            if time is None or count == 1 or turn == time:
                yield source
            elif turn == 0 and time >= count:
                what = f"its series has {count} volumes over time, 0 to {count - 1}; there is no volume {time}."
                self.tally.problems.append(Problem(source.files[0], what))

    def _scans(self, sources: deque[SourceToIdentify]) -> Iterator[Scan]:
        """Every scan, recorded in the identities; problems are counted."""
        size = max(1, min(FILES, len(sources) // (4 * self.workers.jobs)))
        lots = _in_lots(_each_once(sources), size)
        for lot, answers in self.workers.each_lot(
            identify_sources, lots, lambda asked: asked, ahead=2 * self.workers.jobs
        ):
            pairs = zip(lot, answers, strict=True)
            found = [_crashed(asked.source) if isinstance(one, Crashed) else one for asked, one in pairs]
            scans: list[Scan] = []
            if self.request.dry_run:
                for one in found:
                    scans += self._planned(one)
            else:
                with self.identities.transaction():
                    for one in found:
                        scans += self._planned(one)
            yield from scans

    def _planned(self, found: IdentifiedSource | Problem) -> list[Scan]:
        if isinstance(found, Problem):
            self._give_up(found)
            return []
        path = found.source.files[0]
        self.tally.remarks += [Problem(path, remark) for remark in found.source.remarks]
        if found.header.burnt_in == "YES":
            self.tally.burnt_in.append(path)
            if self.request.options.careful:
                self.tally.scans += 1
                self.tally.skipped += 1
                self._advance(len(found.source.files))
                return []
        remember = not self.request.dry_run
        scans = []
        try:
            for scan in plan(found, self.request.options, self.identities, self.existing, remember=remember):
                if isinstance(scan, Problem):
                    self._give_up(scan)
                elif scan.record.scan in self._seen:
                    self.tally.copies += 1
                    self._advance(len(scan.source.files))
                else:
                    self._seen.add(scan.record.scan)
                    scans.append(scan)
                    if remember:
                        self.identities.put_scan(scan.record)
        except BadIdentities:
            raise
        except ScanqueueError as error:
            self._give_up(Problem(path, getattr(error, "what", str(error)), shown=getattr(error, "shown", "")))
        return scans

    def _give_up(self, problem: Problem) -> None:
        self.tally.problems.append(problem)
        self._advance(1)

    def _advance(self, files: int) -> None:
        self._left -= files
        self.progress.advance(files, self.tally.made)

    # -- choosing the work ------------------------------------------------------------------

    def _jobs(self, sources: deque[SourceToIdentify]) -> Iterator[list[tuple[Scan, SliceJob]]]:
        """Jobs for scans with missing slices; small scans share a lot."""
        lot: list[tuple[Scan, SliceJob]] = []
        weight = 0
        assert self._delivery is not None
        for scan in self._scans(sources):
            self.tally.scans += 1
            if scan.complete:
                self._count_complete(scan)
                continue
            lot.append((scan, scan.job(self.request.options, self.existing, self._delivery.folder(scan.record.scan))))
            weight += len(scan.missing) or scan.best
            if weight >= SLICES:
                yield lot
                lot, weight = [], 0
        if lot:
            yield lot

    def _count_complete(self, scan: Scan) -> None:
        self.tally.slices += len(scan.chosen)
        self.tally.there += len(scan.chosen)
        self._advance(len(scan.source.files))

    def _count_dry_run(self, scan: Scan) -> None:
        self.tally.scans += 1
        if scan.complete:
            self._count_complete(scan)
            return
        chosen = len(scan.chosen) or min(scan.best, len(scan.numbering) or scan.slices.count)
        missing = len(scan.missing) or chosen - len(self.existing.numbers(scan.record.scan, scan.slices.axis))
        self.tally.slices += chosen
        self.tally.made += missing
        self.tally.there += chosen - missing
        self._advance(len(scan.source.files))

    # -- creating tasks ---------------------------------------------------------------------

    def _record(self, scan: Scan, made: JobResult) -> None:
        if made.full:
            raise StorageFull(made.full)
        path = scan.source.files[0]
        if made.problem is not None:
            self._give_up(made.problem)
            return
        if made.text and path not in self.tally.burnt_in:
            self.tally.burnt_in.append(path)
        if made.text and self.request.options.careful:
            self.tally.skipped += 1
            self._advance(len(scan.source.files))
            return
        self.tally.problems += made.broken
        chosen = made.chosen if scan.best else len(scan.chosen) - len(made.broken)
        self.tally.slices += chosen
        self.tally.there += chosen - len(made.pictures)
        for number, file in made.pictures:
            row = {**scan.data, "slice": number}
            if made.window is not None:
                row["window"] = list(made.window)
            self._ready.append((file, row))
        self._advance(len(scan.source.files))

    def _send(self, *, all: bool) -> None:
        assert self._delivery is not None
        batch = self._delivery.batch
        number = min(batch.files, max(LOT, self._left // 4))
        while self._ready and (all or len(self._ready) >= number):
            lot: list[tuple[Path, dict[str, Any]]] = []
            size = 0
            for file, row in self._ready[:number]:
                size += file.stat().st_size
                if lot and size > batch.size:
                    break
                lot.append((file, row))
            addresses = self._delivery.deliver([file for file, _ in lot])
            rows: list[Mapping[str, Any]] = [
                {**(data_with(self._image_value, address) or {}), **row}
                for address, (_, row) in zip(addresses, lot, strict=True)
            ]
            made = self.existing.add(rows)
            self.tally.made += made
            self.tally.there += len(rows) - made
            del self._ready[: len(lot)]
            self.progress.advance(0, self.tally.made)


def _each_once(things: deque[Thing]) -> Iterator[Thing]:
    """Yield each thing without keeping a reference to it."""
    while things:
        yield things.popleft()


def _geometry(source: Source, known: Mapping[Path, FileFacts]) -> Geometry | None:
    """Geometry of slices that have one file each; other files must be read."""
    if source.kind != "dicom":  # may have files that were not sniffed: the voxels of a header
        return None
    files = [known[path] for path in source.files]
    single = source.volumes == 1 and all(facts.frames == 1 for facts in files)
    return geometry_of(files) if single else None


def _crashed(source: Source) -> Problem:
    return Problem(source.files[0], CRASHED)


def _in_lots(things: Iterable[Thing], size: int) -> Iterator[list[Thing]]:
    lot: list[Thing] = []
    for thing in things:
        lot.append(thing)
        if len(lot) == size:
            yield lot
            lot = []
    if lot:
        yield lot
