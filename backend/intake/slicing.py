"""The work of the worker processes: sniff files, identify sources, write pictures of slices.

Everything here takes and returns plain, picklable values, uses neither network nor database, and raises nothing: an
error in one file is returned as a Problem.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.errors import ScanqueueError, StorageFull, UnreadableFile
from backend.formats import (
    FileFacts,
    Geometry,
    Header,
    Source,
    Volume,
    Window,
    choose_window,
    cut,
    informative,
    packed,
    read,
    read_geometry,
    read_header,
    sniff,
    to_uint8,
)
from backend.intake.burnt_in import has_text

# Pictures are written once and fetched many times. zlib level 1 with run-length strategy and the best filter per row
# makes them 3 to 11 % smaller than OpenCV's defaults (CT, MR, radiographs), which are 1.5 to 2 ms faster for 512 x 512
# pixels. Other zlib settings make them larger or take many times as long.
PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
CHECKED = 3  # slices per volume that are searched for text

cv2.setNumThreads(1)  # one process per core


@dataclass(frozen=True)
class Problem:
    """Something that cannot be read. `path` and `shown` may name a patient: show them at the terminal only.

    one    it is about this file or folder alone; False: `path` is an example, or where the files are
    shown  `what` with names from the header; "" without any
    """

    path: Path
    what: str
    one: bool = True
    shown: str = ""


@dataclass(frozen=True)
class SourceToIdentify:
    """A source to identify, for a cut along `axis`; `geometry` if sniffing its files has determined it."""

    source: Source
    time: int | None
    axis: str
    geometry: Geometry | None = None


@dataclass(frozen=True)
class IdentifiedSource:
    """A source before its pixels are read. `header` is private.

    digest  SHA-256 of the content; for a DICOM series, of its SOPInstanceUIDs in order
    time    number of the selected volume; None if there is only one
    """

    source: Source
    digest: str
    geometry: Geometry
    header: Header
    time: int | None


@dataclass(frozen=True)
class SliceJob:
    """Slices of one scan to write as PNG files.

    source     the files to read: of the whole scan, or of the wanted slices
    numbering  slice number of each position along the cut of `source`; () if they are equal
    wanted     slice numbers; () with `best`
    best       number of slices to select by content; 0: write the wanted ones
    existing   slice numbers that already have a task
    window     see `choose_window`
    shown      (center, width) of the scan's earlier slices, or None
    folder     destination of the files
    by_file    whether each slice has its own file, so that a broken one can be skipped
    careful    skip the scan if it seems to have text in its pixels
    """

    scan: str
    source: Source
    time: int | None
    axis: str
    numbering: tuple[int, ...]
    wanted: tuple[int, ...]
    best: int
    existing: frozenset[int]
    window: Window | str | None
    shown: tuple[float, float] | None
    folder: Path
    by_file: bool
    careful: bool


@dataclass(frozen=True)
class JobResult:
    """The result of a job.

    pictures  number and file of each slice written
    chosen    number of selected slices, including those that already have a task
    window    (center, width), or None: colour, or no window
    text      whether text seems to be burnt into the pixels
    broken    files that were skipped
    problem   why nothing was written, or None
    full      why no picture can be written to the folder, which ends the import, or ""
    """

    pictures: tuple[tuple[int, Path], ...] = ()
    chosen: int = 0
    window: tuple[float, float] | None = None
    text: bool = False
    broken: tuple[Problem, ...] = ()
    problem: Problem | None = None
    full: str = ""


def sniff_files(paths: Sequence[Path]) -> list[FileFacts | Problem | None]:
    """For each file its facts, None if it is not an image, or its problem."""
    shared: dict[Any, Any] = {}
    return [_slim(one, shared) if isinstance(one, FileFacts) else one for one in map(_sniff_file, paths)]


def _slim(facts: FileFacts, shared: dict[Any, Any]) -> FileFacts:
    """The same facts; values that files share become one object, so that the main process receives it once."""
    common = ("kind", "series", "frame", "orientation", "spacing", "marks", "stack", "whole", "owner")
    return replace(facts, **{name: shared.setdefault(v, v) for name in common for v in [getattr(facts, name)]})


def _sniff_file(path: Path) -> FileFacts | Problem | None:
    try:
        if path.is_dir():
            return Problem(path, "the folder cannot be opened. Check its permissions.")
        return sniff(path)
    except Exception as error:
        return _problem(path, error)


def identify_sources(asked: Sequence[SourceToIdentify]) -> list[IdentifiedSource | Problem]:
    """Each source's digest, geometry and header."""
    return [_identify(one) for one in asked]


def _identify(asked: SourceToIdentify) -> IdentifiedSource | Problem:
    source = asked.source
    try:
        geometry, time = (asked.geometry, None) if asked.geometry is not None else _geometry(source, asked.time)
        cut(geometry, asked.axis)
        return IdentifiedSource(source, digest(source), geometry, read_header(source), time)
    except Exception as error:
        return _problem(source.files[0], error)


def _geometry(source: Source, time: int | None) -> tuple[Geometry, int | None]:
    """Geometry, and `time` if it applies: sources with one volume are imported whatever --time is."""
    if source.volumes > 1 or time is None:
        return read_geometry(source, time=time), time
    try:
        return read_geometry(source), None
    except UnreadableFile:
        return read_geometry(source, time=time), time


def digest(source: Source) -> str:
    """See IdentifiedSource.digest."""
    found = hashlib.sha256()
    if source.uid and all(source.instances):
        found.update("\n".join(source.instances).encode())
        return found.hexdigest()
    for path in source.files:
        with packed.stored(path) as file:
            content: Any = file
            found.update(hashlib.file_digest(content, "sha256").digest())
    return found.hexdigest()


def write_pictures(jobs: Sequence[SliceJob]) -> list[JobResult]:
    """Write the pictures of each job. A job that fails leaves no file that the import would use."""
    return [_write_pictures(job) for job in jobs]


def _write_pictures(job: SliceJob) -> JobResult:
    try:
        return _pictures(job)
    except StorageFull as error:
        return JobResult(full=str(error))
    except Exception as error:
        return JobResult(problem=_problem(job.source.files[0], error))


def _pictures(job: SliceJob) -> JobResult:
    broken: tuple[Problem, ...] = ()
    try:
        volume = read(job.source, time=job.time)
    except UnreadableFile:
        if not job.by_file:
            raise
        job, broken = _without_broken(job)
        volume = read(job.source, time=job.time)
    slices = cut(volume.geometry, job.axis)
    numbering = job.numbering or range(slices.count)
    places = {number: place for place, number in enumerate(numbering)}
    wanted = [numbering[place] for place in informative(volume, slices, job.best)] if job.best else list(job.wanted)
    missing = [number for number in wanted if number not in job.existing]
    window = None if volume.values.ndim == 4 else _window(volume, job)

    def picture(number: int) -> NDArray[np.uint8]:
        taken = slices.take(volume.values, places[number])
        return taken if window is None else to_uint8(taken, window, inverted=volume.inverted)

    steps = np.linspace(0, len(missing) - 1, min(CHECKED, len(missing))).astype(int)
    text = any(has_text(picture(missing[step])) for step in dict.fromkeys(steps.tolist()))
    shown = (window.center, window.width) if window is not None and window.lut is None else None
    if text and job.careful:
        return JobResult(chosen=len(wanted), window=shown, text=True, broken=broken)
    _make_folder(job.folder)
    files = []
    for number in missing:
        file = job.folder / f"{job.scan}.{job.axis}.{number:04d}.png"
        write_png(file, picture(number))
        files.append((number, file))
    return JobResult(tuple(files), len(wanted), shown, text, broken)


def _without_broken(job: SliceJob) -> tuple[SliceJob, tuple[Problem, ...]]:
    """The job without its unreadable files, and their problems. Raises UnreadableFile if none is readable."""
    source, broken = job.source, []
    numbering = job.numbering or tuple(range(len(source.files)))
    kept = []
    for place in range(len(source.files)):
        try:
            read(subset(source, (place,)), time=job.time)
        except UnreadableFile as error:
            broken.append(Problem(error.path, error.what))
        else:
            kept.append(place)
    if not kept:
        raise UnreadableFile(broken[0].path, broken[0].what)
    numbers = tuple(numbering[place] for place in kept)
    wanted = tuple(number for number in job.wanted if number in numbers)
    return replace(job, source=subset(source, kept), numbering=numbers, wanted=wanted), tuple(broken)


def subset(source: Source, places: Sequence[int]) -> Source:
    """The files of a series at these positions."""
    files = tuple(source.files[place] for place in places)
    return replace(source, files=files, instances=tuple(source.instances[place] for place in places))


def _window(volume: Volume, job: SliceJob) -> Window:
    """The requested window; without a request, that of the slices already imported."""
    window = choose_window(volume, job.window)
    if job.window is None and job.shown is not None and job.shown != (window.center, window.width):
        return Window(*job.shown)
    return window


def write_png(file: Path, picture: NDArray[np.uint8]) -> None:
    """Write gray or RGB pixels as a PNG without text chunks, atomically."""
    pixels = np.ascontiguousarray(picture if picture.ndim == 2 else picture[..., ::-1])
    done, data = cv2.imencode(".png", pixels, PNG)
    if not done:
        raise UnreadableFile(file, "the picture could not be encoded.")
    partial = f"{file.parent}/.{file.name}.part"
    try:
        with open(partial, "wb", buffering=0) as out:
            if out.write(data.data) != data.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.replace(partial, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise _cannot_write(file.parent, error) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> StorageFull:
    return StorageFull(
        f"Cannot write pictures into {folder}: {error.strerror}. Free some space or fix its permissions, then run the "
        "same command again; everything imported so far is kept."
    )


def _problem(path: Path, error: Exception) -> Problem:
    """A problem without header values: the errors of other libraries quote them."""
    if isinstance(error, UnreadableFile):
        return Problem(error.path, error.what, shown=error.shown)
    if isinstance(error, ScanqueueError):
        return Problem(path, str(error), shown=getattr(error, "shown", ""))
    if isinstance(error, MemoryError):
        return Problem(path, "it does not fit into memory. Use fewer --jobs.")
    if isinstance(error, OSError) and error.strerror:
        return Problem(path, f"{error.strerror}.")
    return Problem(path, f"it cannot be read ({type(error).__name__}).")
