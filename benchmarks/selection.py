"""Does the order save labels? Tables of `scanqueue simulate` on two public data sets, compared with random choice.

Montgomery chest radiographs (138, lungs) and BUSI breast ultrasound (647, lesions; near-duplicates never separated),
with the embedders `pixels` and MobileNetV2 trained on ImageNet, for the cold start alone (every budget chosen in one
step) and for the full loop (5 scans from the cold start, then each model chooses for the next). The network is
small and works on 64 x 64 pixels, so that hundreds of training runs take only an hour or two on two cores: the
benchmark compares strategies, not the best possible models.

Writes the tables into `benchmarks/selection.md`. Trained models are cached in `--out` and not trained again.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from backend.simulate.labels_needed import LabelsNeeded, labels_needed
from backend.simulate.plan import Comparison
from backend.simulate.report import write_report
from backend.simulate.results import ALL_LABELS, RANDOM, Arm, Repeat, Row, read_rows
from backend.simulate.runs import run
from backend.simulate.statistics import Interval, compare_with_random, learning_curves, mean_interval, signed, verdict
from benchmarks import screening
from benchmarks.measure import report as print_report
from benchmarks.measure import rounded, summary
from sampling import DEFAULT

SHARED = Path(__file__).resolve().parents[2] / "shared"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100"
PAGE = Path(__file__).with_name("selection.md")
DATA = {"montgomery_cxr": "Montgomery", "busi_ultrasound": "BUSI"}
EMBEDDERS = {"mobilenetv2": f"timm:local-dir:{WEIGHTS}", "pixels": "pixels"}
COMMAND = "python -m benchmarks.selection"
BUDGETS: tuple[int, ...] = (5, 10, 20, 40)
SIDE = 64
STEPS = 200


@dataclass(frozen=True)
class Moment:
    """One set of runs: `strategies` with every embedder, `more` with only the first one."""

    title: str
    cold_start_only: bool
    strategies: tuple[str, ...]
    more: tuple[str, ...] = ()
    exploring: bool = False


# The default was chosen on the exploring repeats and is judged on previously unseen repeats.
EXPLORING, JUDGING = range(3), range(3, 8)
MOMENTS = (
    Moment("Full loop", False, ("random", "default"), ("paper", "facility+paper")),
    Moment("Cold start", True, ("random", "default"), ("paper",)),
    Moment("Exploring, cold start", True, (), ("random", "paper", "facility", "typiclust", "alps"), True),
)


def comparison(data: str, folder: Path, moment: Moment, embedder: str, seeds: Sequence[int]) -> Comparison:
    """One run of simulate."""
    root = SHARED / "data" / data
    groups = (f"{root / 'near_duplicates.csv'}:name_a,name_b",) if data == "busi_ultrasound" else ()
    spacing = f"{spacing_table(root, folder)}:row_mm,column_mm" if data == "montgomery_cxr" else ""
    first = embedder == next(iter(EMBEDDERS))
    return Comparison(
        root / "images",
        root / "masks",
        moment.strategies + (moment.more if first else ()),
        BUDGETS,
        tuple(seeds),
        embedder=EMBEDDERS[embedder],
        cold_start_only=moment.cold_start_only,
        groups=groups,
        spacing=spacing,
        encoder=f"tu-mobilenetv2_100@{WEIGHTS / 'model.safetensors'}",
        image_size=SIDE,
        training_steps=STEPS,
    )


def spacing_table(root: Path, folder: Path) -> Path:
    """Pixel size of the delivered images in mm; where the orientation is unknown, the mean of the two sizes."""
    with open(root / "meta.csv", newline="") as opened:
        rows = list(csv.DictReader(opened))
    sizes = {float(r[f"inferred_spacing_{axis}_mm"]) for r in rows for axis in "xy" if r[f"inferred_spacing_{axis}_mm"]}
    middle = sum(sizes) / len(sizes)
    file = folder / "spacing.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(("name", "row_mm", "column_mm"))
        for r in rows:
            writer.writerow((r["name"], r["inferred_spacing_y_mm"] or middle, r["inferred_spacing_x_mm"] or middle))
    return file


def measure(
    folder: Path, moments: Sequence[Moment], data_sets: Sequence[str], seeds: Sequence[int], jobs: int
) -> dict[str, list[Row]]:
    """Title of each moment to the rows of all its runs, with short names of data sets and embedders."""
    found: dict[str, list[Row]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for moment in moments:
            for data in data_sets:
                for embedder in EMBEDDERS:
                    first = embedder == next(iter(EMBEDDERS))
                    if not moment.strategies and not first:
                        continue
                    task = bar.add_task(f"{moment.title}, {DATA[data]}, {embedder}", total=None, left="")

                    def progress(done: int, total: int, left: float, task=task) -> None:  # type: ignore[no-untyped-def]
                        text = f"{left / 60:.0f} min left" if left == left else ""
                        bar.update(task, completed=done, total=total, left=text)

                    here = folder / f"{data}-{_short(moment.title)}-{embedder}"
                    asked = comparison(data, folder, moment, embedder, EXPLORING if moment.exploring else seeds)
                    run(asked, here, processes=jobs, cells=folder / "cells", progress=progress)
                    rows = [
                        replace(r, data=DATA[data], embedder=embedder if r.embedder else "")
                        for r in read_rows(here / "results.csv")
                    ]
                    # random and all labels do not use embeddings: the same models for every embedder
                    rows = [r for r in rows if first or r.strategy not in (RANDOM, ALL_LABELS)]
                    found.setdefault(moment.title, []).extend(rows)
    return found


def _short(title: str) -> str:
    return title.replace(",", "").replace(" ", "-").lower()


# -- the page ---------------------------------------------------------------------------------


def over_embedders(rows: Sequence[Row], strategy: str) -> Interval | None:
    """Area difference from random, averaged over the embedders of each repeat and then over the data sets."""
    by_repeat: dict[Repeat, list[float]] = {}
    for one in compare_with_random(rows):
        if one.arm.strategy == strategy:
            for repeat, difference in one.by_pair.items():
                by_repeat.setdefault(repeat, []).append(difference)
    groups: dict[str, list[float]] = {}
    for repeat, values in by_repeat.items():
        groups.setdefault(repeat.data, []).append(sum(values) / len(values))
    return mean_interval(groups) if groups else None


def interval(found: Interval | None, digits: int = 3) -> str:
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return signed(found.mean, digits)
    return f"{signed(found.mean, digits)} ({signed(found.low, digits)} .. {signed(found.high, digits)})"


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown for one moment: learning curves, differences, labels needed."""
    curves = {(p.data, p.arm, p.budget): p for p in learning_curves(rows)}
    arms = sorted({p.arm for p in curves.values()}, key=lambda arm: (arm.strategy != RANDOM, arm))
    for data in dict.fromkeys(p.data for p in curves.values()):
        unit = next(p.unit for p in curves.values() if p.data == data)
        yield f"**{data}**, mean over the repeats: Dice / HD / HD95 in {unit} on the test scans\n"
        yield "| strategy | embedder | " + " | ".join(f"{b} labels" for b in BUDGETS) + " |"
        yield "|---|---|" + "---|" * len(BUDGETS)
        for arm in arms:
            points = [curves.get((data, arm, b)) for b in BUDGETS]
            cells = [
                f"{p.dice.mean:.3f} / {p.hd.mean:.1f} / {p.hd95.mean:.1f}" if p and p.hd and p.hd95 else "-"
                for p in points
            ]
            if arm.strategy != ALL_LABELS:
                yield f"| {arm.strategy} | {arm.embedder if arm.strategy != RANDOM else 'any'} | {' | '.join(cells)} |"
        whole = [p for (d, arm, _), p in curves.items() if d == data and arm.strategy == ALL_LABELS]
        yield from (f"| all labels ({p.labels:.0f}) | | {p.dice.mean:.3f} | | | |" for p in whole)
        yield ""
    yield "Compared with random, paired: area under the learning curve (mean Dice over 5 to 40 labels), 95 % interval\n"
    data_sets = list(dict.fromkeys(r.data for r in rows))
    yield "| strategy | embedder | both data sets | " + " | ".join(data_sets) + " | p (Holm) | read |"
    yield "|---|---|---|" + "---|" * (len(data_sets) + 2)
    each = {d: {c.arm: c for c in compare_with_random([r for r in rows if r.data == d])} for d in data_sets}
    for one in compare_with_random([r for r in rows if r.strategy != ALL_LABELS]):
        parts = [interval(each[d][one.arm].area) if one.arm in each[d] else "-" for d in data_sets]
        p = f"{one.p_holm:.2g}" if one.p_holm is not None else "-"
        yield (
            f"| {one.arm.strategy} | {one.arm.embedder} | {interval(one.area)} | {' | '.join(parts)} | {p} | "
            f"{verdict(one).kind} |"
        )
    yield ""


def saved(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown: labels needed to reach 90, 95 and 98 % of the all-labels Dice."""
    yield "Labels needed to reach a fraction of the all-labels Dice: median over repeats (repeats that reached it)\n"
    found = [n for n in labels_needed(rows) if n.arm.strategy != ALL_LABELS]
    fractions = sorted({n.fraction for n in found})
    yield "| data | strategy | embedder | " + " | ".join(f"{f:.0%}" for f in fractions) + " |"
    yield "|---|---|---|" + "---|" * len(fractions)
    by_arm: dict[tuple[str, Arm], list[LabelsNeeded]] = {}
    for n in found:
        by_arm.setdefault((n.data, n.arm), []).append(n)
    for (data, arm), each in by_arm.items():
        cells = [
            f"{'at most ' if n.at_most else ''}{n.median:.0f} ({n.reached} of {n.repeats})"
            if n.median is not None
            else f"more than {BUDGETS[-1]} ({n.reached} of {n.repeats})"
            for n in sorted(each, key=lambda n: n.fraction)
        ]
        yield f"| {data} | {arm.strategy} | {arm.embedder if arm.strategy != RANDOM else 'any'} | {' | '.join(cells)} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Strategies compared with random choice on two data sets.")
    parser.add_argument("--screen", action="store_true", help="stage A: five kinds of pools without trainings")
    parser.add_argument("--quick", action="store_true", help="two repeats of barely trained models; writes no page")
    parser.add_argument("--seeds", type=int, default=len(JUDGING), help="paired repeats to judge on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel training runs")
    parser.add_argument("--out", type=Path, default=Path("selection-data"), help="cache of trained models")
    given = parser.parse_args()
    if given.screen:
        screening.main(given.out, quick=given.quick, jobs=given.jobs)
        return
    seeds: Sequence[int] = range(JUDGING.start, JUDGING.start + given.seeds)
    moments: Sequence[Moment] = MOMENTS
    data_sets, out = list(DATA), given.out
    if given.quick:
        global BUDGETS, STEPS, EMBEDDERS
        BUDGETS, STEPS, EMBEDDERS = (5, 10), 10, {"pixels": "pixels"}
        seeds, moments, data_sets, out = (
            seeds[:2],
            (Moment("Cold start", True, ("random", "default")),),
            data_sets[:1],
            out / "quick",
        )
    found = measure(out, moments, data_sets, seeds, given.jobs)
    judged = [moment.title for moment in moments if not moment.exploring]
    results = {title: over_embedders(found[title], "default") for title in judged}
    if not given.quick:
        for title, rows in found.items():
            about = {
                "title": f"{title}: strategies on two public data sets",
                "command": "python -m benchmarks.selection",
            }
            write_report(rows, out / _short(title), about=about)
        write_page(found, results, len(seeds))
    title, best = list(results.items())[-1]
    assert best is not None
    low, high = (best.mean if end is None else end for end in (best.low, best.high))
    figures = {"ratio": rounded(best.mean), "low": rounded(low), "high": rounded(high)}
    print_report(
        f"{len(data_sets)} data sets, {len(seeds)} paired repeats",
        ["moment", "default against random, area under the curve"],
        [[name, interval(one)] for name, one in results.items()],
        summary(
            figures,
            unit="Dice, difference of areas under the learning curve",
            compared=f"default ({DEFAULT}) - random, {title.lower()}, mean over data sets and embedders",
            sizes={"repeats": len(seeds), "budgets": list(BUDGETS), "image_size": SIDE, "steps": STEPS},
            limit=0.0,
            met=figures["low"] > 0,
        )
        | {"interval": "95 % bootstrap over paired repeats within data sets"},
    )


def write_page(found: Mapping[str, Sequence[Row]], results: Mapping[str, Interval | None], seeds: int) -> None:
    """Replace the tables between the two markers in `selection.md`; the text around them is kept."""
    begin, end = "<!-- tables: written by benchmarks.selection -->", "<!-- end of tables -->"
    lines = [
        f"`default` is `{DEFAULT}`. {seeds} paired repeats ({len(EXPLORING)} to explore), {date.today().isoformat()}.\n"
    ]
    for title, rows in found.items():
        lines += [f"### {title}\n", *tables(rows), *saved(rows)]
    lines.append("### Default against random, mean over data sets and embedders\n")
    lines += [
        f"- {title}: {interval(one)} Dice (area under the curve, 95 % interval)" for title, one in results.items()
    ]
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
