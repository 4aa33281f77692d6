"""One import from beginning to end."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from backend.errors import BadIdentities, ProjectBusy, ScanqueueError, StorageFull
from backend.facts import LabelConfig
from backend.formats import FileFacts, Geometry, Source, geometry_of, group
from backend.intake.deliver import Delivery, LocalFiles, Uploads
from backend.intake.files import walk
from backend.intake.holdings import Holdings
from backend.intake.identities import Identities
from backend.intake.plan import Scan, Wanted, plan
from backend.intake.work import Asked, Found, Job, Made, Trouble, identify, look, make
from backend.label_studio.studio import Studio
from backend.records.locks import Locks
from backend.workers.process_pool import Crashed, Workers

log = logging.getLogger("scanqueue.intake")
Thing = TypeVar("Thing")

FILES = 32  # looked at by a process at once
SLICES = 24  # made by a process at once, where scans are small
LOT = 200  # tasks made at once, at least; else a quarter of the files that are left, at most what the delivery takes
CRASHED = "its decoder crashed the process that read it."


@dataclass(frozen=True)
class Request:
    """What `scanqueue import` was asked for.

    identities  the file
    spool       folder for pictures that are to be uploaded; emptied
    local       folder that Label Studio serves local files from, instead of uploads
    root        see LocalFiles
    foreign     go on where the project's scans were imported with another file of identities
    """

    project: int
    paths: tuple[Path, ...]
    wanted: Wanted
    identities: Path
    spool: Path
    locks: Path
    jobs: int
    local: Path | None = None
    root: Path | None = None
    dry_run: bool = False
    foreign: bool = False


@dataclass
class Tally:
    """What became of it all. `troubles` and `burnt_in` have paths, which may name patients.

    files, others   files seen, and those of them that are no pictures
    scans           sources that could be identified, copies of one another counted once
    copies          files that are copies of others
    slices          that were meant; of them
    made            became tasks (or would have, in a dry run)
    there           had a task already
    skipped         scans left out because of text in their pixels
    doubles         tasks found in Label Studio that show a slice another one shows
    """

    files: int = 0
    others: int = 0
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
    troubles: list[Trouble] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Without paths: it may be kept."""
        numbers = ("files", "others", "scans", "copies", "slices", "made", "there", "skipped", "doubles")
        return {
            **{name: getattr(self, name) for name in numbers},
            "burnt_in": len(self.burnt_in),
            "problems": [trouble.what for trouble in self.troubles],
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 1),
        }


class Show(Protocol):
    """Progress for whoever waits."""

    def looked(self, files: int) -> None:
        """So many files were looked at, in all."""

    def begin(self, total: int) -> None:
        """So many files are to be read."""

    def advance(self, files: int, made: int) -> None:
        """Another `files` are done; tasks made in all."""


def run(request: Request, studio: Studio, workers: Workers, show: Show) -> Tally:
    """Import what is asked for; `workers.stop()` ends it early, with all that was begun in order.

    Raises a ScanqueueError where nothing can be done or gone on with; what was made until then stays, and is not made
    again by the same command.
    """
    for noisy in ("pydicom", "nibabel", "nibabel.global"):  # they quote what they do not like
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        if not stack.enter_context(Locks(request.locks).held(f"import-{request.project}")):
            raise ProjectBusy(f"Another import into project {request.project} is running. Wait until it has ended.")
        files = walk(request.paths, spare=[request.spool, *([request.local] if request.local is not None else [])])
        first = next(files, None)  # a path that does not exist is said before anything else is done
        held = Holdings(studio, request.project)
        file = request.identities
        if request.dry_run and not file.exists():
            file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / file.name
        identities = stack.enter_context(Identities(file))
        intake = _Intake(request, studio, workers, identities, held, show)
        began = time.monotonic()
        try:
            intake.run(path for path in (first, *files) if path is not None)
        finally:
            intake.close()
        held.look_again()
        tally = intake.tally
        tally.doubles = held.doubles
        tally.interrupted = workers.stopped
        tally.seconds = time.monotonic() - began
        return tally


def _same_file(identities: Identities, held: Holdings, request: Request) -> None:
    """Raise BadIdentities where the project was filled with another file: every scan would be imported again."""
    scans = [scan for scan in held.scans() if scan.startswith("S-")]
    if scans and not request.foreign and not any(identities.scan(scan) for scan in scans):
        raise BadIdentities(
            f"The {len(scans)} scans that project {request.project} holds were imported with another file of "
            f"identities than {request.identities}; with this one they would be imported again under other names. "
            "Give that file with --identities, or, if these are other scans, --other-identities."
        )


def _delivery(request: Request, studio: Studio, held: Holdings) -> Delivery:
    if request.local is not None:
        return LocalFiles(studio, request.project, request.local, request.root)
    return Uploads(studio, request.project, request.spool, held)


class _Intake:
    def __init__(
        self,
        request: Request,
        studio: Studio,
        workers: Workers,
        identities: Identities,
        held: Holdings,
        show: Show,
    ) -> None:
        self.request = request
        self.studio = studio
        self.workers = workers
        self.identities = identities
        self.held = held
        self.show = show
        self.tally = Tally()
        self._delivery: Delivery | None = None
        self._image_key = ""
        self._ready: list[tuple[Path, dict[str, Any]]] = []
        self._left = 0  # files to be read
        self._seen: set[str] = set()

    def _prepare(self) -> None:
        """All that Label Studio is asked before the first scan."""
        page = self.studio.project(self.request.project)
        self._image_key = LabelConfig.from_parsed(page.parsed_config, self.request.project).image_key
        self.held.look()
        _same_file(self.identities, self.held, self.request)
        if not self.request.dry_run:
            self._delivery = _delivery(self.request, self.studio, self.held)

    def close(self) -> None:
        if self._delivery is not None:
            self._delivery.close()

    def run(self, files: Iterable[Path]) -> None:
        with ThreadPoolExecutor(1) as beside:  # while files are looked at
            prepared = beside.submit(self._prepare)
            sources = deque(self._sources(files, prepared))
            prepared.result()
        self._left = sum(len(asked.source.files) for asked in sources)
        self.show.begin(self._left)
        if self._delivery is None:
            for scan in self._scans(sources):
                self._would(scan)
            return
        ahead = 2 * self.workers.jobs
        for lot, made in self.workers.each_lot(make, self._jobs(sources), lambda one: one[1], ahead=ahead):
            for (scan, job), one in zip(lot, made, strict=True):
                self._take(scan, Made(trouble=_crashed(job.source)) if isinstance(one, Crashed) else one)
            self._send(all=False)
        self._send(all=True)

    # -- what there is ----------------------------------------------------------------------

    def _sources(self, files: Iterable[Path], prepared: Future[None]) -> list[Asked]:
        facts: list[FileFacts] = []
        lots = _in_lots(files, FILES)
        for paths, found in self.workers.each_lot(look, lots, lambda path: path, ahead=4 * self.workers.jobs):
            for path, one in zip(paths, found, strict=True):
                if isinstance(one, Crashed):
                    self.tally.troubles.append(Trouble(path, CRASHED))
                elif isinstance(one, Trouble):
                    self.tally.troubles.append(one)
                elif one is None:
                    self.tally.others += 1
                else:
                    facts.append(one)
            if prepared.done():
                prepared.result()  # what is wrong is said now
            self.tally.files += len(paths)
            self.show.looked(self.tally.files)
        known = {one.path: one for one in facts}
        wanted = self.request.wanted
        return [Asked(source, wanted.time, wanted.axis, _geometry(source, known)) for source in group(facts)]

    def _scans(self, sources: deque[Asked]) -> Iterator[Scan]:
        """Every scan, remembered; what cannot be had is counted."""
        size = max(1, min(FILES, len(sources) // (4 * self.workers.jobs)))
        lots = _in_lots(_each_once(sources), size)
        for lot, answers in self.workers.each_lot(identify, lots, lambda asked: asked, ahead=2 * self.workers.jobs):
            pairs = zip(lot, answers, strict=True)
            found = [_crashed(asked.source) if isinstance(one, Crashed) else one for asked, one in pairs]
            scans: list[Scan] = []
            if self.request.dry_run:
                for one in found:
                    scans += self._planned(one)
            else:
                with self.identities.together():
                    for one in found:
                        scans += self._planned(one)
            yield from scans

    def _planned(self, found: Found | Trouble) -> list[Scan]:
        if isinstance(found, Trouble):
            self._give_up(found)
            return []
        path = found.source.files[0]
        if found.header.burnt_in == "YES":
            self.tally.burnt_in.append(path)
            if self.request.wanted.careful:
                self.tally.scans += 1
                self.tally.skipped += 1
                self._advance(len(found.source.files))
                return []
        remember = not self.request.dry_run
        scans = []
        try:
            for scan in plan(found, self.request.wanted, self.identities, self.held, remember=remember):
                if isinstance(scan, Trouble):
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
            self._give_up(Trouble(path, getattr(error, "what", str(error))))
        return scans

    def _give_up(self, trouble: Trouble) -> None:
        self.tally.troubles.append(trouble)
        self._advance(1)

    def _advance(self, files: int) -> None:
        self._left -= files
        self.show.advance(files, self.tally.made)

    # -- what is to be done -----------------------------------------------------------------

    def _jobs(self, sources: deque[Asked]) -> Iterator[list[tuple[Scan, Job]]]:
        """Scans that miss slices, small ones together."""
        lot: list[tuple[Scan, Job]] = []
        weight = 0
        assert self._delivery is not None
        for scan in self._scans(sources):
            self.tally.scans += 1
            if scan.whole:
                self._whole(scan)
                continue
            lot.append((scan, scan.job(self.request.wanted, self.held, self._delivery.folder(scan.record.scan))))
            weight += len(scan.missing) or scan.best
            if weight >= SLICES:
                yield lot
                lot, weight = [], 0
        if lot:
            yield lot

    def _whole(self, scan: Scan) -> None:
        self.tally.slices += len(scan.chosen)
        self.tally.there += len(scan.chosen)
        self._advance(len(scan.source.files))

    def _would(self, scan: Scan) -> None:
        self.tally.scans += 1
        if scan.whole:
            self._whole(scan)
            return
        chosen = len(scan.chosen) or min(scan.best, len(scan.numbering) or scan.slices.count)
        missing = len(scan.missing) or chosen - len(self.held.numbers(scan.record.scan, scan.slices.axis))
        self.tally.slices += chosen
        self.tally.made += missing
        self.tally.there += chosen - missing
        self._advance(len(scan.source.files))

    # -- what was done ----------------------------------------------------------------------

    def _take(self, scan: Scan, made: Made) -> None:
        if made.full:
            raise StorageFull(made.full)
        path = scan.source.files[0]
        if made.trouble is not None:
            self._give_up(made.trouble)
            return
        if made.text and path not in self.tally.burnt_in:
            self.tally.burnt_in.append(path)
        if made.text and self.request.wanted.careful:
            self.tally.skipped += 1
            self._advance(len(scan.source.files))
            return
        self.tally.troubles += made.broken
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
            addresses = self._delivery.addresses([file for file, _ in lot])
            rows: list[Mapping[str, Any]] = [
                {self._image_key: address, **row} for address, (_, row) in zip(addresses, lot, strict=True)
            ]
            made = self.held.add(rows)
            self.tally.made += made
            self.tally.there += len(rows) - made
            del self._ready[: len(lot)]
            self.show.advance(0, self.tally.made)


def _each_once(things: deque[Thing]) -> Iterator[Thing]:
    """Let go of each thing that was given."""
    while things:
        yield things.popleft()


def _geometry(source: Source, known: Mapping[Path, FileFacts]) -> Geometry | None:
    """Of slices that are a file each; others must be read."""
    files = [known[path] for path in source.files]
    single = source.kind == "dicom" and source.volumes == 1 and all(facts.frames == 1 for facts in files)
    return geometry_of(files) if single else None


def _crashed(source: Source) -> Trouble:
    return Trouble(source.files[0], CRASHED)


def _in_lots(things: Iterable[Thing], size: int) -> Iterator[list[Thing]]:
    lot: list[Thing] = []
    for thing in things:
        lot.append(thing)
        if len(lot) == size:
            yield lot
            lot = []
    if lot:
        yield lot
