"""The trainings behind a comparison: reading, splitting, pairing, and restarting after a kill."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.demo.phantoms import write_phantoms
from backend.errors import BadSetting, ScanqueueError
from backend.facts import validation_rows
from backend.learning.cases import Case
from backend.simulate.bench import Bench
from backend.simulate.labelled import read_groups, read_labelled, read_spacing, read_strata
from backend.simulate.plan import Comparison, Job, split
from backend.simulate.results import read_rows
from backend.simulate.runs import run
from sampling import COLD_START, WITH_MODEL, Pool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("phantoms")
    write_phantoms(where, 24, seed=3, size=(96, 96))
    return where


def comparison(folder: Path, **changes: object) -> Comparison:
    usual = {
        "strategies": ("paper", "random"),
        "budgets": (3, 6),
        "seeds": (0,),
        "embedder": "pixels",
        "image_size": 32,
        "training_steps": 4,
    }
    return Comparison(folder / "images", folder / "masks", **(usual | changes))  # type: ignore[arg-type]


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def write(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines) + "\n")
    return file


# -- what is read -----------------------------------------------------------------------------


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(values).save(path)


def test_unusable_scans_are_left_out_with_a_reason(tmp_path: Path) -> None:
    gray, mask = np.full((8, 6), 9, np.uint8), np.zeros((8, 6), np.uint8)
    mask[2:4] = 255
    for name in ("a", "b", "c", "d"):
        save(tmp_path / "images" / f"{name}.png", gray)
    save(tmp_path / "masks" / "a.png", mask)
    save(tmp_path / "masks" / "b.png", mask.T)
    (tmp_path / "masks" / "d.png").write_bytes(b"no picture")
    (tmp_path / "images" / "e.png").write_bytes(b"no picture")
    save(tmp_path / "masks" / "e.png", mask)
    found = read_labelled(tmp_path / "images", tmp_path / "masks")
    assert found.names == ("a",)
    assert found.classes == 2
    np.testing.assert_array_equal(found.masks[0], mask // 255)
    assert "8 x 6 pixels, the image 6 x 8" in found.left_out["b.png"]
    assert "contains no mask of that name" in found.left_out["c.png"]
    assert "cannot be read" in found.left_out["d.png"]
    assert "not an image" in found.left_out["e.png"]


def test_class_numbers_are_kept_and_smooth_edges_refused(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.uint8).reshape(2, 2)
    save(tmp_path / "images" / "a.png", values)
    save(tmp_path / "masks" / "a.png", values)
    found = read_labelled(tmp_path / "images", tmp_path / "masks")
    assert found.classes == 4
    np.testing.assert_array_equal(found.masks[0], values)
    save(tmp_path / "masks" / "a.png", values * 80)
    with pytest.raises(ScanqueueError, match=r"contain 3 values besides 0, up to 240; wanted class numbers.*smoothing"):
        read_labelled(tmp_path / "images", tmp_path / "masks")


def test_folders_without_scans_raise_an_error(tmp_path: Path) -> None:
    with pytest.raises(ScanqueueError, match=r"^IMAGES: .* is not a folder"):
        read_labelled(tmp_path / "nowhere", tmp_path)
    with pytest.raises(ScanqueueError, match=r"no scan with a mask can be read"):
        read_labelled(tmp_path, tmp_path)


def test_groups_are_united_over_columns_and_pairs(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    patients = write(tmp_path / "p.csv", "name,patient", "a.png,1", "b,1", "c,2", "d,", "elsewhere,1")
    pairs = write(tmp_path / "q.csv", "one,other,how", "c,e,0.9", "e,f,0.8", "a,elsewhere,1")
    found = read_groups([f"{patients}:patient", f"{pairs}:one,other"], names)
    united = {frozenset(n for n, g in zip(names, found, strict=True) if g == group) for group in found}
    assert united == {frozenset("ab"), frozenset("cef"), frozenset("d")}
    assert len(set(read_groups([], names))) == 6


def test_unusable_tables_raise_an_error_with_the_reason(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", "name,mm,site", "a,0.5,x", "b,,y", "c,-1,x")
    for given, words in (
        ("t.csv", "wanted FILE.csv:COLUMN"),
        (f"{tmp_path / 'none.csv'}:mm", "cannot be read as a table"),
        (f"{file}:depth", "no column 'depth'; found name, mm, site"),
    ):
        with pytest.raises(ScanqueueError, match=words):
            read_groups([given], ["a"])
    assert read_spacing(f"{file}:mm", ["a"]) == [(0.5, 0.5)]
    assert read_spacing("", ["a"]) is None
    for name in ("b", "c", "d"):
        with pytest.raises(ScanqueueError, match=f"scan '{name}' has no valid spacing"):
            read_spacing(f"{file}:mm", ["a", name])
    assert read_strata(f"{file}:site", ["a", "b", "c", "d"]).tolist() == [1, 2, 1, 0]
    both = write(tmp_path / "u.csv", "name,r,c", "a,2,3")
    assert read_spacing(f"{both}:r,c", ["a"]) == [(2.0, 3.0)]


# -- how it is split --------------------------------------------------------------------------


def test_no_group_is_in_both_parts_and_the_share_is_kept() -> None:
    groups = np.random.default_rng(0).integers(0, 30, 100)
    groups = np.unique(groups, return_inverse=True)[1]
    for seed in range(20):
        found = split(groups, 0.3, seed)
        assert not set(groups[found.pool]) & set(groups[found.test])
        assert sorted([*found.pool, *found.test]) == list(range(100))
        assert 20 <= len(found.test) <= 30
    assert split(groups, 0.3, 1).test.tolist() != split(groups, 0.3, 2).test.tolist()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategies": ("luck",)}, "strategy: got 'luck'"),
        ({"strategies": ("random", "random")}, "each may be given only once"),
        ({"strategies": ()}, "at least one strategy"),
        ({"budgets": (6, 3)}, "ascending"),
        ({"budgets": (0, 3)}, "from 1, ascending"),
        ({"test_share": 1.0}, "test share"),
        ({"alpha": 2.0}, "alpha"),
        ({"uncertainty": "mood"}, "wanted one of image, foreground"),
        ({"strategies": ("stratified+random",)}, "give --strata"),
    ],
)
def test_what_cannot_be_compared_is_refused(folder: Path, changes: dict, words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        comparison(folder, **changes)


def test_a_budget_beyond_the_pool_is_refused_with_the_numbers(folder: Path, tmp_path: Path) -> None:
    bench = Bench(comparison(folder, budgets=(3, 23)), tmp_path)
    with pytest.raises(BadSetting, match=r"24 scans in 24 groups give 14 pool scans and 10 test scans"):
        bench.split(0)


# -- what is trained --------------------------------------------------------------------------


def test_rows_are_paired_complete_and_use_the_strategies_of_the_service(folder: Path, tmp_path: Path) -> None:
    asked = comparison(folder, strategies=("facility+entropy", "random"))
    seen: list[tuple[int, int]] = []
    rows = run(asked, tmp_path / "out", processes=2, progress=lambda done, total, left: seen.append((done, total)))
    assert sorted(seen) == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [(r["strategy"], r["budget"], r["labels"]) for r in rows] == [
        ("all labels", 14, 14),
        ("facility+entropy", 3, 3),
        ("facility+entropy", 6, 6),
        ("random", 3, 3),
        ("random", 6, 6),
    ]
    assert {r["n_test"] for r in rows} == {10}
    assert all(0 <= r["dice"] <= 1 and r["hd"] >= r["hd95"] >= 0 and r["unit"] == "px" for r in rows)
    assert [r["dice"] for r in rows] == [float(r["dice"]) for r in table(tmp_path / "out" / "results.csv")]

    bench = Bench(asked, tmp_path / "out" / "cells")
    part = bench.split(0)
    pool = bench.pool(0, part)
    picks = table(tmp_path / "out" / "picks.csv")

    def chosen(strategy: str, budget: int) -> list[str]:
        return [p["name"] for p in picks if (p["strategy"], p["budget"]) == (strategy, str(budget))]

    first = COLD_START["facility"](pool, 3, seed=0).rows
    assert chosen("facility+entropy", 3) == [bench.scans.names[part.pool[r]] for r in first]
    signals = bench._signals(0, part, first, "")
    ranked = WITH_MODEL["entropy"](Pool(pool.xy, pool.clustering, signals=signals), 3, chosen=first)
    assert chosen("facility+entropy", 6)[3:] == [bench.scans.names[part.pool[r]] for r in ranked.rows]
    whole = COLD_START["random"](pool, 6, seed=0).rows
    assert chosen("random", 6) == [bench.scans.names[part.pool[r]] for r in whole]

    # rows lost in a kill are computed again, with the same results
    for lost in sorted((tmp_path / "out" / "cells").glob("*.json"))[::2]:
        lost.unlink()
    (tmp_path / "out" / "results.csv").unlink()
    assert run(asked, tmp_path / "out", processes=1, progress=lambda *_: None) == rows
    assert table(tmp_path / "out" / "picks.csv") == picks


def test_a_selection_that_two_strategies_share_is_trained_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(comparison(folder), tmp_path)
    trained: list[int] = []
    train = bench.learner.train

    def counted(learn: Sequence[Case], watch: Sequence[Case], *rest: Any, **more: Any) -> Any:
        trained.append(len(learn) + len(watch))
        return train(learn, watch, *rest, **more)

    monkeypatch.setattr(bench.learner, "train", counted)
    first = bench.run(Job("random+entropy", 0, (3, 6)))
    assert trained == [3, 6]
    assert bench.run(Job("random+random", 0, (3,)))[0] == [first[0][0] | {"strategy": "random+random"}]
    assert trained == [3, 6]


def test_cold_starts_alone_never_use_a_model(folder: Path, tmp_path: Path) -> None:
    rows = run(
        comparison(folder, strategies=("alps", "random"), cold_start_only=True),
        tmp_path / "out",
        processes=2,
        progress=lambda *_: None,
    )
    assert [(r["strategy"], r["budget"]) for r in rows] == [
        ("all labels", 14),
        *((s, b) for s in ("alps", "random") for b in (3, 6)),
    ]
    assert {p["reason"] for p in table(tmp_path / "out" / "picks.csv")} == {"central", "random"}


def test_distances_are_in_millimetres_where_the_spacing_is_known(folder: Path, tmp_path: Path) -> None:
    bench = Bench(comparison(folder), tmp_path / "cells")
    px = bench.run(Job("random", 0, (3,)))[0][0]
    lines = [f"{name},0.25" for name in bench.scans.names]
    file = write(tmp_path / "mm.csv", "name,mm", *lines)
    mm = Bench(comparison(folder, spacing=f"{file}:mm"), tmp_path / "cells").run(Job("random", 0, (3,)))[0][0]
    assert (px["unit"], mm["unit"]) == ("px", "mm")
    assert mm["hd95"] == pytest.approx(px["hd95"] / 4)
    assert mm["dice"] == px["dice"]


def test_a_training_holds_out_the_same_scans_as_the_service(folder: Path, tmp_path: Path) -> None:
    bench = Bench(comparison(folder), tmp_path)
    part = bench.split(0)
    seen: list[tuple[int, int]] = []
    bench.learner.train = lambda learn, watch, *a, **k: (seen.append((len(learn), len(watch))), (None, {}))[1]  # type: ignore[method-assign,assignment]
    chosen = np.arange(10)
    bench._train(0, part, chosen)
    held = validation_rows(sorted(bench.scans.digests[r] for r in part.pool[chosen]))
    assert seen == [(10 - len(held), len(held))]


def test_a_training_never_splits_the_scans_of_a_patient(folder: Path, tmp_path: Path) -> None:
    names = [path.stem for path in sorted((folder / "images").iterdir())]
    file = write(tmp_path / "patients.csv", "name,patient", *(f"{name},{i // 3}" for i, name in enumerate(names[:21])))
    bench = Bench(comparison(folder, groups=(f"{file}:patient",), test_share=0.2), tmp_path / "cells")
    part = bench.split(0)
    trained_on: list[tuple[list[Case], list[Case]]] = []
    bench.learner.train = lambda learn, watch, *a, **k: (trained_on.append((learn, watch)), (None, {}))[1]  # type: ignore[method-assign,assignment,func-returns-value]
    bench._train(0, part, np.arange(len(part.pool)))
    patients = {bench.scans.masks[i].tobytes(): min(i // 3, 7) + (i if i > 20 else 0) for i in range(24)}
    learn, watch = ({patients[c.mask.tobytes()] for c in cases} for cases in trained_on[0])
    assert learn
    assert watch
    assert not watch & learn
    assert len(trained_on[0][1]) >= 3  # all scans of a patient
    plain = Bench(comparison(folder, test_share=0.2), tmp_path / "cells")
    few = np.arange(6)
    assert bench._recipe(0, part, few) != plain._recipe(0, part, few)


def test_output_folder_of_another_comparison_is_refused(folder: Path, tmp_path: Path) -> None:
    run(comparison(folder, budgets=(3,), strategies=("random",)), tmp_path, processes=1, progress=lambda *_: None)
    with pytest.raises(ScanqueueError, match=r"contains another comparison \(budgets: \[3\], now \[3, 6\]\)"):
        run(comparison(folder, strategies=("random",)), tmp_path, processes=1, progress=lambda *_: None)


# -- the command ------------------------------------------------------------------------------


def command(folder: Path, out: Path, *more: str) -> list[str]:
    given = f"--strategies default,random --budgets 3,6 --seeds 2 --embedder pixels --out {out}"
    small = "--image-size 32 --training-steps 10 --jobs 2"
    images = [str(folder / "images"), str(folder / "masks")]
    return [sys.executable, "-m", "backend.cli", "simulate", *images, *given.split(), *small.split(), *more]


@pytest.mark.long
@pytest.mark.parametrize("damage", ["cut", "text", "deep"])
def test_damaged_caches_are_computed_again_and_damaged_settings_are_a_sentence(
    damage: str, folder: Path, tmp_path: Path
) -> None:
    asked, job = comparison(folder), Job("paper", 0, (3,))
    before = Bench(asked, tmp_path / "cells").run(job)
    cells = sorted(p for p in (tmp_path / "cells").iterdir() if p.is_file())
    assert {p.suffix for p in cells} >= {".npz", ".npy", ".json"}
    for cell in cells:
        whole = cell.read_bytes()
        cell.write_bytes({"cut": whole[: len(whole) // 2], "text": b"no result", "deep": b"[" * 100_000}[damage])
    assert Bench(asked, tmp_path / "cells").run(job) == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.json").write_bytes(b"[" * 100_000 if damage == "deep" else b"{")
    with pytest.raises(ScanqueueError, match=r"comparison.json is damaged"):
        run(asked, tmp_path / "out", processes=1, progress=lambda *_: None)


def test_restart_after_a_kill_gives_the_same_table_and_report(folder: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SCANQUEUE_")}
    subprocess.run(command(folder, tmp_path / "whole"), check=True, env=environment, cwd=ROOT, capture_output=True)
    out = tmp_path / "killed"
    process = subprocess.Popen(
        command(folder, out), env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while len(list(out.glob("cells/*.json"))) < 3 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(out.glob("cells/*.json"))) >= 3
    done = subprocess.run(command(folder, out), check=True, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (out / "results.csv").read_text() == (tmp_path / "whole" / "results.csv").read_text()
    assert (out / "picks.csv").read_text() == (tmp_path / "whole" / "picks.csv").read_text()
    assert len(table(out / "results.csv")) == 2 * (1 + 2 * 2)
    assert "report:" in done.stdout
    page = (out / "report.html").read_text()
    assert "power-entropy" in page
    assert "scanqueue simulate" in page


def test_worker_processes_end_when_the_parent_is_killed(folder: Path, tmp_path: Path) -> None:
    slow = command(folder, tmp_path / "out")
    slow[slow.index("--training-steps") + 1] = "100000"
    process = subprocess.Popen(slow, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not list(tmp_path.glob("out/cells/model-*")) and time.monotonic() < until:
            time.sleep(0.1)
        pids = children(process.pid)
        assert len(pids) >= 2
    finally:
        process.kill()
        process.wait()
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def children(process: int) -> list[int]:
    """Child process ids."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(stat.parent.name))
    return found


def test_invalid_options_are_explained_without_a_traceback(folder: Path, tmp_path: Path) -> None:
    bad = command(folder, tmp_path / "out", "--groups", "nowhere.csv:patient")
    found = subprocess.run(bad, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1
    assert "nowhere.csv: cannot be read as a table" in found.stderr
    assert "Traceback" not in found.stderr + found.stdout


# -- scans without foreground ---------------------------------------------------------------------


def blanked(folder: Path, where: Path, keep: int) -> Path:
    """The scans of `folder`, with the masks of all but the first `keep` emptied."""
    where.mkdir()
    shutil.copytree(folder / "images", where / "images")
    for place, path in enumerate(sorted((folder / "masks").iterdir())):
        with Image.open(path) as mask:
            save(where / "masks" / path.name, np.asarray(mask) * np.uint8(place < keep))
    return where


def test_test_scans_without_foreground_are_in_no_mean_but_told_as_false_alarms(folder: Path, tmp_path: Path) -> None:
    asked = comparison(blanked(folder, tmp_path / "scans", 16), strategies=("random",), budgets=(3,))
    (whole, chance) = run(asked, tmp_path / "out", processes=1, progress=lambda *_: None)
    bench = Bench(asked, tmp_path / "out" / "cells")
    part = bench.split(0)
    empty = [row for row in part.test if not bench.scans.masks[row].any()]
    assert 0 < len(empty) < len(part.test) == 10
    for row in (whole, chance):
        assert (row["n_test"], row["n_empty"]) == (10, len(empty))
        assert 0 <= row["false_alarm_rate"] <= 1
        assert 0 <= row["miss_rate"] <= 1
    (read,) = [r for r in read_rows(tmp_path / "out" / "results.csv") if r.strategy == "random"]
    assert (read.n_empty, read.dice, read.false_alarm_rate) == (len(empty), chance["dice"], chance["false_alarm_rate"])

    # a result of an older version, which counted a scan without foreground as Dice 1, is not used again
    for cell in (tmp_path / "out" / "cells").glob("*.json"):
        cell.write_text(json.dumps({"test": {"dice": 1.0, "hd": 0.0, "hd95": 0.0, "unit": "px", "n": 10}}))
    again = run(asked, tmp_path / "out", processes=1, progress=lambda *_: None)
    assert [r["dice"] for r in again] == [whole["dice"], chance["dice"]]


def test_without_foreground_in_the_test_scans_nothing_is_trained(folder: Path, tmp_path: Path) -> None:
    asked = comparison(blanked(folder, tmp_path / "scans", 1), budgets=(3,), seeds=(0, 1, 2))
    with pytest.raises(BadSetting, match=r"seed \d: none of the test scans has foreground, so no Dice can be measured"):
        run(asked, tmp_path / "out", processes=1, progress=lambda *_: None)
