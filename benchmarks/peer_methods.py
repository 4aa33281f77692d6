"""One selection by one library, for `benchmarks.peers`, which starts this file with the interpreter of that library.

`python peer_methods.py METHOD FILE PICKS SEED`: the file holds the embeddings (`numpy.save`), of which the last
`LABELLED` rows count as labelled; for `monai-epistemic` it is a folder in which a datastore is made. Prints one line of
JSON: rows, seconds, processor seconds, and the peak memory of the process and what it held before, in bytes.
Nothing but NumPy and the library is imported, as its environment has nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

LABELLED, CLASSES = 10, 12
Pick = Callable[[Any, int, int], list[int]]


def skactiveml(name: str, **more: Any) -> Pick:
    """A strategy of scikit-activeml with its own defaults."""

    def pick(rows: Any, picks: int, seed: int) -> list[int]:
        made = getattr(import_module("skactiveml.pool"), name)(random_state=seed, **more)
        labels = np.full(len(rows), np.nan)
        labels[-LABELLED:] = np.arange(LABELLED) % CLASSES
        found: list[int] = made.query(rows, labels, batch_size=picks).tolist()
        return found

    return pick


def small_text(rows: Any, picks: int, seed: int) -> list[int]:
    """small-text's k-centre with its own defaults."""
    made = import_module("small_text.query_strategies").GreedyCoreset(normalize=False)
    unlabelled = np.arange(len(rows) - LABELLED)
    labelled = np.arange(len(rows) - LABELLED, len(rows))
    found: list[int] = made.sample(None, None, unlabelled, labelled, None, picks, rows).tolist()
    return found


def ours(name: str) -> Pick:
    """A cold start by its name; the clusters that "probcover" needs are those that scikit-activeml makes for it."""

    def pick(rows: Any, picks: int, seed: int) -> list[int]:
        sampling = import_module("sampling")
        labels, medoids = np.zeros(len(rows), dtype=np.intp), np.zeros(1, dtype=np.intp)
        if name == "probcover":
            labels = import_module("sklearn.cluster").KMeans(CLASSES, random_state=seed).fit_predict(rows)
        pool = sampling.Pool(rows[:, :2], sampling.Clustering(labels.astype(np.intp), medoids, {}, 0), rows)
        chosen = np.arange(len(rows) - LABELLED, len(rows))
        strategy = sampling.find_strategy(sampling.COLD_START, name)
        found: list[int] = strategy(pool, picks, chosen=chosen, seed=seed).rows.tolist()
        return found

    return pick


def monai_epistemic(folder: Path, picks: int, seed: int, scans: int) -> Callable[[], list[int]]:
    """The next `picks` scans as MONAI Label's end point /activelearning/epistemic gives them, one by one.

    `k`, which does not change the scan, is set: by default it makes an integer of as many digits as there are scans and
    logs it, which Python refuses above 4,300.
    """
    local = import_module("monailabel.datastore.local")
    strategy = import_module("monailabel.tasks.activelearning.epistemic").Epistemic(k=picks)
    folder.mkdir(parents=True)
    entropy = np.random.default_rng(seed).random(scans)
    objects = {}
    for row in range(scans):
        (folder / f"{row}.png").touch()
        info = {"epistemic_entropy": float(entropy[row]), "epistemic_ts": 1}
        objects[str(row)] = local.ImageLabelModel(image=local.DataModel(ext=".png", info=info))
    model = local.LocalDatastoreModel(name="drawn", description="drawn", images_dir=".", objects=objects)
    (folder / "datastore_v2.json").write_text(model.model_dump_json())
    store = local.LocalDatastore(str(folder), extensions=("*.png",))

    def pick() -> list[int]:
        found = []
        for _ in range(picks):
            name = strategy({"strategy": "epistemic"}, store)["id"]
            served = {"epistemic": {"ts": int(time.time()), "client_id": "user"}}
            store.update_image_info(name, {"strategy": served})
            found.append(int(name))
        return found

    return pick


METHODS: dict[str, Pick] = {
    "kcenter scikit-activeml": skactiveml("CoreSet"),
    "kcenter small-text": small_text,
    "typiclust scikit-activeml": skactiveml("TypiClust"),
    "probcover scikit-activeml": skactiveml("ProbCover", n_classes=CLASSES),
    **{f"{name} ours": ours(name) for name in ("kcenter", "typiclust", "probcover", "medoids")},
}


def memory(name: str) -> int:
    """VmRSS or VmHWM (its peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024


def main() -> None:
    method, file, picks, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    if method == "monai-epistemic":
        call = monai_epistemic(file, picks, seed, int(sys.argv[5]))
    else:
        rows = np.load(file)
        METHODS[method](rows[:400], 5, seed)  # trigger lazy loading

        def call() -> list[int]:
            return METHODS[method](rows, picks, seed)

    Path("/proc/self/clear_refs").write_text("5")  # the peak so far does not count
    before = memory("VmRSS")
    began, processor = time.perf_counter(), time.process_time()
    found = call()
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    answer = {"rows": found, "seconds": seconds, "processor": processor, "before": before, "peak": memory("VmHWM")}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
