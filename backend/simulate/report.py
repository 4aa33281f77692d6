"""A simulation report for physicians: one self-contained HTML page, and its figures as PNG."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from backend.errors import StorageFull
from backend.simulate.figures import BANDS, differences_figure, labels_needed_figure, learning_curve_figure
from backend.simulate.labels_needed import LabelsNeeded, labels_needed
from backend.simulate.method import SCREEN, method
from backend.simulate.report_html import (
    STYLE,
    UNIT_WORDS,
    caption_prefix,
    figure_html,
    interval_text,
    p_value,
    table_html,
)
from backend.simulate.report_rates import rates_section
from backend.simulate.report_summary import incomplete_section, summary_section
from backend.simulate.results import (
    ALL_LABELS,
    RANDOM,
    Row,
    arm_names,
    budgets,
    check_rows,
    data_sets,
    of_data,
    seeds,
)
from backend.simulate.statistics import (
    ENOUGH,
    MINUS,
    RESAMPLES,
    Comparison,
    CurvePoint,
    Verdict,
    compare_with_random,
    learning_curves,
    signed,
    verdict,
)
from backend.simulate.text import escaped

KNOWN = (
    "title",
    "images",
    "masks",
    "command",
    "version",
    "date",
    "groups",
    "learner",
)  # the rest of `about` are settings
BADGES = {"better": "▲ better", "worse": "▼ worse", "open": "○ not shown", "too few": "? too few"}


def write_report(
    rows: Sequence[Row], folder: Path, *, about: Mapping[str, str], seed: int = 0, resamples: int = RESAMPLES
) -> Path:
    """Write `report.html`, `learning-curve.png`, `differences.png` and `labels-needed.png` into a folder.

    The page embeds its figures and loads nothing else, not even scripts. Files are replaced atomically, the page last.
    A figure without data is not written, and one of an earlier report is removed.

    rows    models of one or more data sets, complete or interrupted
    folder  created if missing
    about   plain text: `title`, `images`, `masks`, `command`, `version`, `date`; `groups` describes how scans of one
            patient were grouped, "" if they were not; all other keys are listed as settings
    seed    of the bootstrap; the same rows and seed give the same report

    Returns the path of the page. Raises BadResults when there is nothing to compare or a model appears twice, and
    StorageFull when a file cannot be written.
    """
    check_rows(rows)
    names = arm_names(rows)
    curves = learning_curves(rows, seed=seed, resamples=resamples)
    comparisons = compare_with_random(rows, seed=seed, resamples=resamples)
    needed = labels_needed(rows)
    figures = {
        "learning-curve.png": learning_curve_figure(curves, names, _whole(rows)),
        "differences.png": differences_figure(comparisons) if any(one.area for one in comparisons) else None,
        "labels-needed.png": labels_needed_figure(needed),
    }
    page = _page(rows, curves, comparisons, needed, figures, about)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in figures.items():
        if data is None:
            (folder / name).unlink(missing_ok=True)
        else:
            _put(folder / name, data)
    return _put(folder / "report.html", page.encode())


def _put(path: Path, data: bytes) -> Path:
    """Replace a file atomically."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise StorageFull(f"{path} cannot be written ({error.strerror})") from error
    finally:
        aside.unlink(missing_ok=True)
    return path


def _whole(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Data set to mean (labels, Dice) of the models trained on all labels."""
    found = {}
    for data in data_sets(rows):
        whole = [row for row in of_data(rows, data) if row.strategy == ALL_LABELS]
        if whole:
            found[data] = (float(np.mean([r.labels for r in whole])), float(np.mean([r.dice for r in whole])))
    return found


# The page, from top to bottom


def _page(
    rows: Sequence[Row],
    curves: Sequence[CurvePoint],
    comparisons: Sequence[Comparison],
    needed: Sequence[LabelsNeeded],
    figures: Mapping[str, bytes | None],
    about: Mapping[str, str],
) -> str:
    screened = about.get("learner") == SCREEN
    title = about.get("title") or "Which scans to label first"
    made = ", ".join(part for part in (about.get("date", ""), about.get("version", "")) if part)
    body = "\n".join(
        part
        for part in (
            f"<header><h1>{escaped(title)}</h1>"
            f"<p>Comparison of strategies for choosing which scans to label first. {escaped(made)}</p></header>",
            summary_section(rows, comparisons, needed, screened=screened),
            incomplete_section(rows),
            _curve_section(rows, curves, figures["learning-curve.png"]),
            _against_random(comparisons, figures["differences.png"]),
            _labels_section(needed, figures["labels-needed.png"]),
            "" if screened else _distances(rows, curves, comparisons),
            rates_section(rows),
            _numbers(rows, curves, comparisons),
            _method(rows, about),
        )
        if part
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'\" />\n"
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _curve_section(rows: Sequence[Row], curves: Sequence[CurvePoint], figure: bytes | None) -> str:
    names = arm_names(rows)
    ends = []
    for data in data_sets(curves):
        last = max(p.budget for p in of_data(curves, data))
        here = [p for p in of_data(curves, data) if p.budget == last]
        ends.append(
            f"{data + ': ' if data else ''}at {last} labels "
            + ", ".join(f"{names[p.arm]} {p.dice.mean:.3f}" for p in sorted(here, key=lambda p: -p.dice.mean))
        )
    shaded = (len(ends) == 1 or len(names) <= BANDS) and any(p.dice.low is not None for p in curves)
    return (
        "<section><h2>Learning curves</h2>"
        + figure_html(
            figure,
            f"Learning curves: mean Dice on test scans against the number of labels; {'; '.join(ends)}.",
            "Mean Dice on the test scans with foreground (1 is perfect agreement with your masks) against the number "
            "of training labels. Higher and further left is better."
            + (SHADED if shaded else "")
            + (" Black line: a model trained on all labels of the pool." if _whole(rows) else ""),
        )
        + "</section>"
    )


SHADED = (
    " Shaded: 95 % intervals over repeats. They include differences between splits, so overlapping bands do not mean "
    "that two strategies are equal; see the next figure."
)


def _against_random(comparisons: Sequence[Comparison], figure: bytes | None) -> str:
    if not comparisons:
        return ""
    rows = []
    for one in comparisons:
        found = verdict(one)
        badge = f'<strong class="{found.kind.replace(" ", "-")}">{BADGES[found.kind]}</strong>'
        rows.append(
            [
                escaped(one.name),
                f"{badge}<br />{_sentence(one, found)}",
                str(one.area.n) if one.area else "0",
                p_value(one.p),
                p_value(one.p_holm),
            ]
        )
    alt = "; ".join(f"{one.name} {signed(one.area.mean)}" for one in comparisons if one.area)
    return (
        "<section><h2>Strategies compared with random choice</h2>"
        + figure_html(
            figure,
            f"Mean difference from random choice in Dice: {alt}.",
            "Difference from random choice in the mean height of the learning curve, in Dice. Right of zero is better. "
            "Lines: 95 % intervals; ticks: individual paired repeats. Filled: the interval excludes zero; "
            f"hollow: it includes zero; crosses: fewer than {ENOUGH} pairs, so no interval or verdict.",
        )
        + table_html(
            "Verdicts, best on average first. Dice differences are strategy minus random. p: two-sided Wilcoxon "
            f"signed-rank test; corrected: Holm's method for {len(comparisons)} strategies.",
            ["Strategy", "Verdict", "Pairs", "p", "p corrected"],
            rows,
            words=1,
        )
        + "</section>"
    )


def _sentence(one: Comparison, found: Verdict) -> str:
    text = found.sentence[0].upper() + found.sentence[1:] + "."
    if one.left_out:
        pairs, verb = ("pair lacks", "was") if one.left_out == 1 else ("pairs lack", "were")
        text += f" {one.left_out} interrupted {pairs} some budgets and {verb} left out."
    return escaped(text)


def _labels_section(needed: Sequence[LabelsNeeded], figure: bytes | None) -> str:
    heading = "<section><h2>Labels needed</h2>"
    if not needed:
        return f"{heading}<p>Unknown, because no model was trained on all labels for comparison.</p></section>"
    fractions = sorted({one.fraction for one in needed})
    tables = []
    for data in data_sets(needed):
        here = of_data(needed, data)
        rows = []
        for arm in dict.fromkeys(one.arm for one in here):
            ours = {one.fraction: one for one in here if one.arm == arm}
            rows.append(
                [
                    escaped(ours[fractions[0]].name),
                    *(_cell(ours[fraction]) for fraction in fractions),
                    *(_saved(ours[fraction]) for fraction in fractions),
                ]
            )
        tables.append(
            table_html(
                f"{caption_prefix(data)}labels needed to reach a share of the all-labels Dice (median over "
                "repeats; in brackets the number of repeats that reached it), and labels saved against random choice "
                f"(median over pairs; {MINUS}: more were needed; or the one that reached it where mostly one did).",
                [
                    "Strategy",
                    *(f"{fraction:.0%}" for fraction in fractions),
                    *(f"Saved at {fraction:.0%}" for fraction in fractions),
                ],
                rows,
            )
        )
    drawn = figure_html(
        figure,
        "Median labels needed by each strategy; the table below has the values.",
        "Labels needed to reach a share of the all-labels Dice: median, and ticks for individual repeats. "
        "Further left is better.",
    )
    return heading + drawn + "".join(tables) + "</section>"


def _cell(one: LabelsNeeded) -> str:
    if not one.repeats:
        return "no value"
    count = f" <small>({one.reached} of {one.repeats})</small>"
    if one.median is None:
        return f"not reached{count}"
    return f"{'≤ ' if one.at_most else ''}{one.median:.0f}{count}"


def _saved(one: LabelsNeeded) -> str:
    if one.arm.strategy == RANDOM:
        return "reference"
    if one.saved is None:
        return "no value"
    count = f" <small>({one.saved_pairs} {'pairs' if one.saved_pairs != 1 else 'pair'})</small>"
    if math.isinf(one.saved):
        return ("only this strategy" if one.saved > 0 else "only random") + count
    return signed(one.saved, 0) + count


def _distances(rows: Sequence[Row], curves: Sequence[CurvePoint], comparisons: Sequence[Comparison]) -> str:
    names = arm_names(rows)
    gaps = {one.arm: one for one in comparisons}
    alone = len(data_sets(rows)) == 1
    tables = []
    for data in data_sets(curves):
        here = of_data(curves, data)
        unit = here[0].unit
        if unit is None:
            tables.append(f"<p>{caption_prefix(data)}distances are in both mm and px, so they cannot be averaged.</p>")
            continue
        last = max(p.budget for p in here)
        lines = []
        for point in (p for p in here if p.budget == last):
            gap = gaps[point.arm].hd95.get(last) if point.arm in gaps else None
            line = [
                escaped(names[point.arm]),
                interval_text(point.hd95, 2),
                interval_text(point.hd, 2),
                str(point.dice.n),
            ]
            if alone:
                line.insert(2, "reference" if point.arm.strategy == RANDOM else interval_text(gap, 2, sign=True))
            lines.append(line)
        heads = ["Strategy", f"HD95 ({unit})", f"HD ({unit})", "Repeats"]
        if alone:
            heads.insert(2, f"HD95 against random ({unit})")
        tables.append(
            table_html(
                f"{caption_prefix(data)}distances between the model's outline and yours at {last} labels, "
                f"in {UNIT_WORDS[unit]}: mean and 95 % interval. Lower is better"
                + (f"; against random, below zero ({MINUS}) is better." if alone else "."),
                heads,
                lines,
            )
        )
    return (
        "<section><h2>Outline errors (Hausdorff distance)</h2><p>HD is the largest distance between the two "
        "outlines of a scan, HD95 the 95th percentile of the distances. If only one of the two masks is empty, the "
        f"distance is the image diagonal.</p>{''.join(tables)}</section>"
    )


def _numbers(rows: Sequence[Row], curves: Sequence[CurvePoint], comparisons: Sequence[Comparison]) -> str:
    names = arm_names(rows)
    tables = []
    for data in data_sets(curves):
        here = {(p.arm, p.budget): p for p in of_data(curves, data)}
        asked = sorted({budget for _, budget in here})
        tables.append(
            table_html(
                f"{caption_prefix(data)}mean Dice with its 95 % interval and, in brackets, the number of "
                f"repeats, at each label budget. Intervals of fewer than {ENOUGH} repeats are too narrow.",
                ["Strategy", *(f"{budget} labels" for budget in asked)],
                [
                    [
                        escaped(names[arm]),
                        *(interval_text(p.dice if (p := here.get((arm, b))) else None, counted=True) for b in asked),
                    ]
                    for arm in dict.fromkeys(arm for arm, _ in here)
                ],
            )
        )
    asked = budgets(rows)
    known = [one for one in comparisons if one.area]
    unit = known[0].unit if known else None
    if known:
        tables.append(
            table_html(
                "Difference from random choice in Dice at each budget, over paired repeats; above zero is better.",
                ["Strategy", *(f"{budget} labels" for budget in asked)],
                [
                    [escaped(one.name), *(interval_text(one.dice.get(b), sign=True, counted=True) for b in asked)]
                    for one in known
                ],
            )
        )
    if known and unit:
        tables.append(
            table_html(
                f"Difference from random choice in HD95 ({unit}) at each budget; below zero ({MINUS}) is better.",
                ["Strategy", *(f"{budget} labels" for budget in asked)],
                [
                    [escaped(one.name), *(interval_text(one.hd95.get(b), 2, sign=True, counted=True) for b in asked)]
                    for one in known
                ],
            )
        )
    return f"<section><h2>All values</h2>{''.join(tables)}</section>"


def _method(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    paragraphs = "".join(
        f"<p><strong>{escaped(heading)}.</strong> {escaped(text)}</p>"
        for heading, text in method(rows, about.get("groups", "").strip(), about.get("learner", ""))
    )
    settings = [("Images", about.get("images", "")), ("Masks", about.get("masks", ""))]
    settings += [(key, value) for key, value in about.items() if key not in KNOWN]
    settings.append(("Seeds", ", ".join(str(seed) for seed in seeds(rows))))
    settings.append(("scanqueue", about.get("version", "")))
    terms = "".join(f"<dt>{escaped(key)}</dt><dd>{escaped(value)}</dd>" for key, value in settings if value)
    command = about.get("command", "")
    made = f"<h3>Command</h3><pre><code>{escaped(command)}</code></pre>" if command else ""
    return f"<section><h2>Method and limits</h2>{paragraphs}<h3>Settings</h3><dl>{terms}</dl>{made}</section>"
