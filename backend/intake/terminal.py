"""`scanqueue import` at the terminal: progress, Ctrl-C, and the final table.

Paths may name patients. They are shown at a terminal only. If stderr goes to a file or a pipe, which others may keep,
problems are listed as counts and reasons, unless paths are requested. Logs never contain paths.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from backend.intake.request import ImportRequest, Tally
from backend.intake.run import run
from backend.intake.slicing import Problem
from backend.label_studio.studio import Studio
from backend.settings import Settings
from backend.workers.process_pool import Workers

SUFFIXES = 5  # maximum number of suffixes in the table
MOST = 50  # maximum number of problems and warnings in the list


Rows = Sequence[tuple[str, int, str]]
MaskStep = Callable[[Studio, Tally, Callable[[], bool]], None]  # the last one: whether to stop


def import_scans(
    request: ImportRequest, settings: Settings, *, as_json: bool, show_paths: bool, masks: MaskStep | None = None
) -> int:
    """Run the import and print its results. Exit status: 0 complete, 1 unreadable files, 130 interrupted.

    masks  imports the masks afterwards and adds to the results; without scans in the request, it is all that is done
    """
    studio = Studio(settings.label_studio_url, settings.label_studio_api_key)
    console = Console(stderr=True, highlight=False)
    with Workers(request.jobs) as workers, _interruptible(workers), _Bars(console) as bars:
        tally = run(request, studio, workers, bars) if request.paths else Tally()
        if masks is not None and not workers.stopped:
            masks(studio, tally, lambda: workers.stopped)
            tally.interrupted = workers.stopped
    _list(console, tally, paths=show_paths or console.is_terminal)
    if as_json:
        print(json.dumps({"project": request.project, "dry_run": request.dry_run, **tally.to_dict()}, indent=1))
    else:
        Console(highlight=False).print(_table(request, tally))
    if tally.interrupted:
        console.print("Interrupted. Run the same command again to resume.")
        return 130
    return 1 if tally.problems else 0


@contextmanager
def _interruptible(workers: Workers) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) finishes the work in progress; the second ends immediately."""

    def end(number: int, frame: FrameType | None) -> None:
        if workers.stopped:
            raise KeyboardInterrupt
        workers.stop()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Bars:
    """Progress on a terminal; silent elsewhere."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[made]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._looking: TaskID | None = None
        self._reading: TaskID | None = None

    def __enter__(self) -> _Bars:
        self._progress.start()
        self._looking = self._progress.add_task("checking files", total=None, made="")
        return self

    def __exit__(self, *how: Any) -> None:
        self._progress.stop()

    def looked(self, files: int) -> None:
        if self._looking is not None:
            self._progress.update(self._looking, completed=files)

    def begin(self, total: int) -> None:
        if self._looking is not None:
            self._progress.remove_task(self._looking)
        self._reading = self._progress.add_task("files of scans", total=total, made="")

    def advance(self, files: int, made: int) -> None:
        if self._reading is not None:
            self._progress.update(self._reading, advance=files, made=f"{made} tasks")


def _list(console: Console, tally: Tally, *, paths: bool) -> None:
    """Print problems and warnings, one per line."""
    warnings: list[tuple[Path | None, str]] = []
    if paths:
        warnings = [(path, "text seems to be burnt into its pixels. Check it.") for path in tally.burnt_in]
        warnings += [(problem.path, problem.shown or problem.what) for problem in (*tally.problems, *tally.remarks)]
    else:
        counted = Counter((_subject(problem), problem.what) for problem in (*tally.problems, *tally.remarks))
        warnings = [(None, _sentence(subject, what, number)) for (subject, what), number in counted.items()]
    for path, what in warnings[:MOST]:
        console.print(escape(f"{path}: {what}" if path is not None else what), soft_wrap=True)
    if len(warnings) > MOST:
        console.print(f"... and {len(warnings) - MOST} more.")
    if not paths and warnings:
        console.print("To see the file names, run this in a terminal or with --show-paths.")


def _subject(problem: Problem) -> str:
    """What a problem is about; "" if not about a single file or folder."""
    if not problem.one:
        return ""
    return "folder" if problem.path.is_dir() else "file"


def _sentence(subject: str, what: str, number: int) -> str:
    if not subject:
        return what[:1].upper() + what[1:]
    return f"{number} {subject}{'s' if number > 1 else ''}: {what}"


def _others(tally: Tally) -> str:
    if not tally.others:
        return ""
    first = ", ".join(f"{number} {suffix}" for suffix, number in list(tally.suffixes.items())[:SUFFIXES])
    more = ", ..." if len(tally.suffixes) > SUFFIXES else ""
    return f"{tally.others} of them not images ({first}{more})"


def _table(request: ImportRequest, tally: Tally) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    made = "tasks that would be created" if request.dry_run else "tasks created"
    scans: Rows = (
        ("files", tally.files, _others(tally)),
        ("scans", tally.scans, f"and {tally.copies} copies" if tally.copies else ""),
        ("slices", tally.slices, ""),
        (made, tally.made, f"in {tally.seconds:.0f} s" if tally.seconds >= 1 else ""),
        ("existing tasks", tally.there, ""),
        ("scans skipped", tally.skipped, "text in their pixels" if tally.skipped else ""),
        (
            "burnt-in text",
            len(tally.burnt_in),
            "scans that seem to have text in their pixels" if tally.burnt_in else "",
        ),
        *((("duplicates", tally.doubles, "tasks for slices that have another task"),) if tally.doubles else ()),
    )
    about = "about files that were read" if all(remark.one for remark in tally.remarks) else ""
    results: Rows = (
        ("problems", len(tally.problems), ""),
        *((("remarks", len(tally.remarks), about),) if tally.remarks else ()),
    )
    rows = (*(scans if request.paths else ()), *_mask_rows(request, tally.masks), *results)
    for name, number, remark in rows:
        table.add_row(name, str(number), remark)
    table.columns[1].justify = "right"
    return table


def _mask_rows(request: ImportRequest, masks: Mapping[str, int] | None) -> Rows:
    if masks is None:
        return ()
    would = "would be " if request.dry_run else ""
    rows = (
        ("files with masks", "files", ""),
        ("scans with masks", "scans", ""),
        (f"slices {would}labelled", "made", ""),
        ("slices labelled before", "there", "kept as they are" if masks["there"] else ""),
        ("slices left unlabelled", "empty", "nothing is drawn on them" if masks["empty"] else ""),
        ("slices without a task", "absent", "something is drawn on them" if masks["absent"] else ""),
    )
    return tuple((name, masks[key], remark) for name, key, remark in rows)
