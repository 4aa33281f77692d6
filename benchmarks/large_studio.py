"""What the size of a project costs in a real Label Studio: each of our requests, and those that people wait for.

Projects of 1,000, 10,000 and 100,000 tasks in one Label Studio, whose scans are embedded already. Measured for each:
the import; a full listing, as when a project is connected; a look that finds nothing to do; one after a label; ranking
all scans again and publishing the round. Of Label Studio itself: "next task" for an annotator, the data manager's first
page and its last one. The ratio compares a look of the largest project with one of the smallest.

`--database postgresql://user:password@host:port/name` is for Label Studio, as in the hospital; default: its SQLite.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import numpy as np

from backend.demo.annotator import Annotator
from backend.demo.label_studio import LabelStudio
from backend.demo.phantoms import phantom
from backend.label_studio.studio import Studio
from backend.learning.learner import Learner
from backend.loop.driver import Reconciler
from backend.records.store import Store
from backend.settings import Settings
from benchmarks.measure import report, rounded, summary, timed
from benchmarks.publish import SIDE, Pool
from benchmarks.servers import annotate, backend

SIZES = (1_000, 10_000, 100_000)
QUICK_SIZES = (200, 1_000)
REPETITIONS = 5
PAGE = 30  # tasks on a page of the data manager
LIMIT = 2.0  # a look at the largest project / a look at the smallest


def of_database(address: str) -> dict[str, str]:
    """The environment variables with which Label Studio uses this PostgreSQL database; none for SQLite."""
    if not address:
        return {}
    found = urlsplit(address)
    values = {"NAME": found.path.strip("/"), "USER": found.username, "PASSWORD": found.password, "HOST": found.hostname}
    named = {f"POSTGRE_{name}": str(value) for name, value in values.items()}
    return named | {"POSTGRE_PORT": str(found.port or 5432), "DJANGO_DB": "default"}


def repeated(call: Callable[[], object]) -> float:
    """Median seconds of some calls."""
    return float(np.median([timed(call) for _ in range(REPETITIONS)]))


def costs(studio: LabelStudio, url: str, folder: Path, count: int) -> dict[str, float]:
    """Seconds of each request and step in a project with `count` tasks."""
    settings = Settings(label_studio_url=studio.url, data_dir=folder, embedder="pixels")
    store = Store(folder)
    reconciler = Reconciler(Studio(studio.url, studio.personal_access_token()), store, Learner(settings), settings)
    masks = [phantom(seed, (SIDE, SIDE))[1]["Lung"].astype(np.uint8) for seed in range(3)]
    pool = Pool(studio, reconciler, count, masks, url)
    email = f"reader-of-{count}@example.com"
    studio.invite(email, "reading-room")
    annotator = Annotator(studio.url, email, "reading-room")
    project = pool.project

    def page(number: int) -> object:
        return studio.get("/api/tasks", project=project, page=number, page_size=PAGE)

    def label_and_look() -> float:
        latest = store.latest_round(project)
        assert latest is not None
        task = next(p.task for p in latest["picks"] if p.task not in labelled)
        labelled.add(task)
        annotate(studio, project, task, masks[0] > 0)
        return timed(lambda: reconciler.reconcile(project))

    labelled: set[int] = set()
    found = {
        "import": pool.imported,
        "listing": repeated(lambda: sum(1 for _ in reconciler.studio.each_task(project))),
        "publish": float(np.median([pool.publish() for _ in range(3)])),
        "look": repeated(lambda: reconciler.reconcile(project)),
        "label": float(np.median([label_and_look() for _ in range(REPETITIONS)])),
        "next": repeated(lambda: annotator.next_task(project)),
        "first page": repeated(lambda: page(1)),
        "last page": repeated(lambda: page(count // PAGE)),
    }
    annotator.close()
    return found


WHAT = {
    "import": "import of all tasks (Label Studio)",
    "listing": "full listing",
    "publish": f"all scans ranked again, round with masks of {SIDE} pixels published",
    "look": "look that finds nothing to do",
    "label": "look after a label",
    "next": "next task for an annotator (Label Studio)",
    "first page": "first page of the data manager (Label Studio)",
    "last page": "last page of the data manager (Label Studio)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 and 1,000 tasks")
    parser.add_argument("--database", default="", help="PostgreSQL database of Label Studio; default: SQLite")
    given = parser.parse_args()
    sizes = QUICK_SIZES if given.quick else SIZES
    found: dict[int, Mapping[str, float]] = {}
    with TemporaryDirectory(prefix="scanqueue-benchmark-") as scratch, backend() as url:
        folder = Path(scratch)
        environment = of_database(given.database)
        with LabelStudio.start(folder / "label-studio", extra_env=environment, timeout=1200) as studio:
            for count in sizes:
                found[count] = costs(studio, url, folder / str(count), count)
    small, large = found[sizes[0]], found[sizes[-1]]
    ratio = large["look"] / small["look"]
    report(
        f"Seconds in projects of a real Label Studio, {'PostgreSQL' if given.database else 'SQLite'}",
        ["", *(f"{count:,} tasks" for count in sizes)],
        [[text, *(found[count][name] for count in sizes)] for name, text in WHAT.items()],
        summary(
            dict.fromkeys(("ratio", "low", "high"), rounded(ratio)),
            unit=f"seconds of a look that finds nothing to do, {sizes[-1]} / {sizes[0]} tasks",
            compared=f"a project of {sizes[0]} tasks in the same Label Studio",
            sizes={"scans": list(sizes), "repetitions": REPETITIONS},
            limit=LIMIT,
            met=ratio <= LIMIT,
            seconds={str(count): {name: rounded(value) for name, value in found[count].items()} for count in sizes},
        )
        | {"interval": "none: medians of a few calls"},
    )
    if ratio > LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
