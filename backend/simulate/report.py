"""A report of a simulation for a physician: one HTML page that needs nothing else, and its figures as PNG."""

from __future__ import annotations

import base64
import math
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from backend.errors import StorageFull
from backend.simulate.figures import BANDS, differences_figure, labels_needed_figure, learning_curve_figure
from backend.simulate.method import method, test_scans, times
from backend.simulate.results import (
    ALL_LABELS,
    RANDOM,
    Row,
    arm_names,
    budgets,
    check_rows,
    data_sets,
    missing_models,
    of_data,
    seeds,
)
from backend.simulate.statistics import (
    ENOUGH,
    MINUS,
    RESAMPLES,
    Comparison,
    CurvePoint,
    Interval,
    LabelsNeeded,
    Verdict,
    compare_with_random,
    labels_needed,
    learning_curves,
    signed,
    verdict,
)
from backend.simulate.text import escaped, listed

DEFAULT = "default"  # the strategy that scanqueue uses unless told otherwise
KNOWN = ("title", "images", "masks", "command", "version", "date", "groups")  # the rest of `about` are settings
WORDS = {"better": "▲ better", "worse": "▼ worse", "open": "○ not shown", "too few": "? too few"}


def write_report(
    rows: Sequence[Row], folder: Path, *, about: Mapping[str, str], seed: int = 0, resamples: int = RESAMPLES
) -> Path:
    """Write `report.html`, `learning-curve.png`, `differences.png` and `labels-needed.png` into a folder.

    The page holds its figures, asks nobody for anything and needs no script. Each file appears whole or not at
    all, the page last. A figure that has nothing to show is not written, and one of an earlier report is removed.

    rows    of one simulation or of several data sets, complete or interrupted
    folder  made when it is missing
    about   plain text, shown as it is: `title`, `images`, `masks`, `command`, `version`, `date`; `groups` says how
            scans of one patient were kept together, "" when they were not; everything else is listed as a setting
    seed    same rows and seed, same report

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
    """Written aside, then renamed."""
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
    title = about.get("title") or "Which scans to label first"
    made = ", ".join(part for part in (about.get("date", ""), about.get("version", "")) if part)
    body = "\n".join(
        part
        for part in (
            f"<header><h1>{escaped(title)}</h1>"
            f"<p>Comparison of ways to choose which scans are labelled first. {escaped(made)}</p></header>",
            _in_short(rows, comparisons, needed),
            _missing(rows),
            _curve_section(rows, curves, figures["learning-curve.png"]),
            _against_random(comparisons, figures["differences.png"]),
            _labels_section(needed, figures["labels-needed.png"]),
            _distances(rows, curves, comparisons),
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


def _in_short(rows: Sequence[Row], comparisons: Sequence[Comparison], needed: Sequence[LabelsNeeded]) -> str:
    sentences = [_question(rows, comparisons), _answer(comparisons), _saving(comparisons, needed)]
    return f'<section class="short"><h2>In short</h2>{"".join(f"<p>{s}</p>" for s in sentences)}</section>'


def _question(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> str:
    data = data_sets(rows)
    many = len(comparisons)
    ways = f"{many} {'ways' if many != 1 else 'way'} of choosing scans" if many else "No way of choosing scans"
    where = f" on {len(data)} data sets" if len(data) > 1 else ""
    return (
        f"{ways} {'were' if many > 1 else 'was'} compared with choosing at random{where}: each chose "
        f"{listed([str(budget) for budget in budgets(rows)], 'or')} labelled scans, a model was trained on these, "
        f"and its masks were measured on {test_scans(rows)} test scans that it had never seen; "
        f"all of it {times(rows)}."
    )


def _answer(comparisons: Sequence[Comparison]) -> str:
    known = [one for one in comparisons if one.area is not None]
    if not known:
        return (
            "<strong>Nothing can be compared yet</strong>: no strategy shares a repeat and a budget with random choice."
        )
    leading = next((one for one in known if one.arm.strategy == DEFAULT), known[0])
    said = verdict(leading).sentence
    which = "scanqueue's own choice" if leading.arm.strategy == DEFAULT else "the best on average"
    text = f"<strong>{escaped(leading.name)}</strong> ({which}): {escaped(said)}."
    if len(comparisons) > 1:
        kinds = [verdict(one).kind for one in comparisons]
        counted = [
            f"{kinds.count(kind)} {word}"
            for kind, word in (
                ("better", "better than random"),
                ("worse", "worse"),
                ("open", "without a difference that could be shown"),
                ("too few", "with too few repeats to judge"),
            )
            if kind in kinds
        ]
        text += f" Of all {len(comparisons)}: {listed(counted, 'and')}."
    return text


def _saving(comparisons: Sequence[Comparison], needed: Sequence[LabelsNeeded]) -> str:
    if not needed:
        return "How many labels are saved cannot be said, as no model was trained on all labels for comparison."
    data = data_sets(needed)
    if len(data) > 1:
        return "How many labels are saved differs between the data sets; see the tables below."
    known = [one for one in comparisons if one.area is not None]
    leading = next((one.arm for one in known if one.arm.strategy == DEFAULT), known[0].arm if known else None)
    here = [one for one in needed if one.fraction == 0.95 and (one.arm == leading or one.arm.strategy == RANDOM)]
    if not here:
        return "How many labels are saved cannot be said yet."
    parts = [
        f"{escaped(one.name)} {_median_words(one)}" for one in sorted(here, key=lambda o: o.arm.strategy == RANDOM)
    ]
    return f"To reach 95 % of the Dice that all labels of the pool gave, {listed(parts, 'and')}."


def _median_words(one: LabelsNeeded) -> str:
    if not one.repeats:
        return "cannot be judged yet"
    if one.median is None:
        never = f"{one.repeats - one.reached} of {one.repeats} repeats" if one.repeats > 1 else "its only repeat"
        return f"did not get there with its largest budget in {never}"
    most = "at most " if one.at_most else ""
    often = f" (median; reached in {one.reached} of {one.repeats} repeats)" if one.repeats > 1 else ""
    return f"needed {most}{one.median:.0f} labels{often}"


def _missing(rows: Sequence[Row]) -> str:
    said = missing_models(rows)
    if not said:
        return ""
    items = "".join(f"<li>{escaped(sentence)}</li>" for sentence in said)
    return (
        '<section class="notice"><h2>This run is not complete</h2><p>Only repeats and budgets that both sides of a '
        f"comparison have are compared. What is missing:</p><ul>{items}</ul></section>"
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
        "<section><h2>What each label brings</h2>"
        + _figure(
            figure,
            f"Learning curves: mean Dice on test scans against the number of labels; {'; '.join(ends)}.",
            "Mean Dice on the test scans (1 is perfect agreement with your masks) against the number of labels the "
            "model learned from. Higher and further left is better."
            + (SHADED if shaded else "")
            + (" The black line is a model trained on all labels of the pool." if _whole(rows) else ""),
        )
        + "</section>"
    )


SHADED = (
    " Shaded: 95 % intervals over repeats. They hold the differences between splits too, so bands that overlap do not "
    "mean that two strategies are equal: for that see the next figure."
)


def _against_random(comparisons: Sequence[Comparison], figure: bytes | None) -> str:
    if not comparisons:
        return ""
    rows = []
    for one in comparisons:
        said = verdict(one)
        badge = f'<strong class="{said.kind.replace(" ", "-")}">{WORDS[said.kind]}</strong>'
        rows.append(
            [
                escaped(one.name),
                f"{badge}<br />{_sentence(one, said)}",
                str(one.area.n) if one.area else "0",
                _p(one.p),
                _p(one.p_holm),
            ]
        )
    alt = "; ".join(f"{one.name} {signed(one.area.mean)}" for one in comparisons if one.area)
    return (
        "<section><h2>Each strategy against random choice</h2>"
        + _figure(
            figure,
            f"Mean difference to random choice in Dice: {alt}.",
            "Difference to random choice in the mean height of the learning curve, in Dice. Right of zero is better. "
            "Lines: 95 % intervals; ticks: the single paired repeats. Filled: the interval excludes zero; "
            f"hollow: it does not; crosses: fewer than {ENOUGH} pairs, so neither interval nor verdict.",
        )
        + _table(
            "Verdicts, best on average first. Dice differences are strategy minus random. p: two-sided Wilcoxon "
            f"signed-rank test; corrected: by Holm for the number of strategies, {len(comparisons)}.",
            ["Strategy", "Verdict", "Pairs", "p", "p corrected"],
            rows,
            words=1,
        )
        + "</section>"
    )


def _sentence(one: Comparison, said: Verdict) -> str:
    text = said.sentence[0].upper() + said.sentence[1:] + "."
    if one.left_out:
        pairs = "pair lacks" if one.left_out == 1 else "pairs lack"
        text += f" {one.left_out} interrupted {pairs} some budgets and did not count."
    return escaped(text)


def _labels_section(needed: Sequence[LabelsNeeded], figure: bytes | None) -> str:
    heading = "<section><h2>Labels needed</h2>"
    if not needed:
        return f"{heading}<p>Cannot be said, as no model was trained on all labels for comparison.</p></section>"
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
            _table(
                f"{_of(data)}labels needed to reach a share of the Dice of all labels (median "
                "over repeats; in brackets how many repeats got there), and labels saved against random choice (median "
                f"over pairs; {MINUS}: more were needed; where mostly only one of a pair got there, it says which).",
                [
                    "Strategy",
                    *(f"{fraction:.0%}" for fraction in fractions),
                    *(f"Saved at {fraction:.0%}" for fraction in fractions),
                ],
                rows,
            )
        )
    drawn = _figure(
        figure,
        "Median labels needed by each strategy; the figures are in the table below.",
        "Labels needed to reach a share of what all labels give: median, and ticks for the single repeats. "
        "Further left is better.",
    )
    return heading + drawn + "".join(tables) + "</section>"


def _cell(one: LabelsNeeded) -> str:
    if not one.repeats:
        return "no figure"
    count = f" <small>({one.reached} of {one.repeats})</small>"
    if one.median is None:
        return f"not reached{count}"
    return f"{'≤ ' if one.at_most else ''}{one.median:.0f}{count}"


def _saved(one: LabelsNeeded) -> str:
    if one.arm.strategy == RANDOM:
        return "reference"
    if one.saved is None:
        return "no figure"
    count = f" <small>({one.saved_pairs} {'pairs' if one.saved_pairs != 1 else 'pair'})</small>"
    if math.isinf(one.saved):
        return ("only this one did" if one.saved > 0 else "only random did") + count
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
            tables.append(f"<p>{_of(data)}some distances are in mm and some in px, so they have no mean.</p>")
            continue
        last = max(p.budget for p in here)
        lines = []
        for point in (p for p in here if p.budget == last):
            gap = gaps[point.arm].hd95.get(last) if point.arm in gaps else None
            line = [escaped(names[point.arm]), _interval(point.hd95, 2), _interval(point.hd, 2), str(point.dice.n)]
            if alone:
                line.insert(2, "reference" if point.arm.strategy == RANDOM else _interval(gap, 2, sign=True))
            lines.append(line)
        heads = ["Strategy", f"HD95 ({unit})", f"HD ({unit})", "Repeats"]
        if alone:
            heads.insert(2, f"HD95 against random ({unit})")
        tables.append(
            _table(
                f"{_of(data)}distances between the model's outline and yours at {last} labels, "
                f"in {UNIT_WORDS[unit]}: mean and 95 % interval. Low is good"
                + (f"; against random, below zero ({MINUS}) is better." if alone else "."),
                heads,
                lines,
            )
        )
    return (
        "<section><h2>How far outlines are off (Hausdorff distance)</h2><p>HD is the largest distance between the two "
        "outlines of a scan, HD95 leaves out the farthest 5 %. A scan on which only one of the two has a mask counts "
        f"with the diagonal of the image.</p>{''.join(tables)}</section>"
    )


UNIT_WORDS = {"px": "pixels of the original image (px)", "mm": "millimetres (mm)"}


def _numbers(rows: Sequence[Row], curves: Sequence[CurvePoint], comparisons: Sequence[Comparison]) -> str:
    names = arm_names(rows)
    tables = []
    for data in data_sets(curves):
        here = {(p.arm, p.budget): p for p in of_data(curves, data)}
        asked = sorted({budget for _, budget in here})
        tables.append(
            _table(
                f"{_of(data)}mean Dice with its 95 % interval and, in brackets, the number of "
                f"repeats, at each budget of labels. Intervals of fewer than {ENOUGH} repeats are too narrow.",
                ["Strategy", *(f"{budget} labels" for budget in asked)],
                [
                    [
                        escaped(names[arm]),
                        *(_interval(p.dice if (p := here.get((arm, b))) else None, counted=True) for b in asked),
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
            _table(
                "Difference to random choice in Dice at each budget, over the paired repeats; above zero is better.",
                ["Strategy", *(f"{budget} labels" for budget in asked)],
                [
                    [escaped(one.name), *(_interval(one.dice.get(b), sign=True, counted=True) for b in asked)]
                    for one in known
                ],
            )
        )
    if known and unit:
        tables.append(
            _table(
                f"Difference to random choice in HD95, in {unit}, at each budget; below zero ({MINUS}) is better.",
                ["Strategy", *(f"{budget} labels" for budget in asked)],
                [
                    [escaped(one.name), *(_interval(one.hd95.get(b), 2, sign=True, counted=True) for b in asked)]
                    for one in known
                ],
            )
        )
    return f"<section><h2>All figures</h2>{''.join(tables)}</section>"


def _method(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    paragraphs = "".join(
        f"<p><strong>{escaped(heading)}.</strong> {escaped(text)}</p>"
        for heading, text in method(rows, about.get("groups", "").strip())
    )
    settings = [("Images", about.get("images", "")), ("Masks", about.get("masks", ""))]
    settings += [(key, value) for key, value in about.items() if key not in KNOWN]
    settings.append(("Seeds", ", ".join(str(seed) for seed in seeds(rows))))
    settings.append(("scanqueue", about.get("version", "")))
    terms = "".join(f"<dt>{escaped(key)}</dt><dd>{escaped(value)}</dd>" for key, value in settings if value)
    command = about.get("command", "")
    made = f"<h3>Made by</h3><pre><code>{escaped(command)}</code></pre>" if command else ""
    return f"<section><h2>Method and limits</h2>{paragraphs}<h3>Settings</h3><dl>{terms}</dl>{made}</section>"


# Pieces


def _of(data: str) -> str:
    """The data set that a caption speaks of, where it has a name."""
    return f"{escaped(data)}: " if data else ""


def _figure(data: bytes | None, alt: str, caption: str) -> str:
    if data is None:
        return ""
    source = base64.b64encode(data).decode()
    return (
        f'<figure><div class="wide" tabindex="0" role="group" aria-label="Figure">'
        f'<img src="data:image/png;base64,{source}" alt="{escaped(alt)}" /></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: int | None = None) -> str:
    """Heads and cells are HTML already; the first cell of a row is its heading, column `words` holds a sentence."""

    def cell(place: int, text: str) -> str:
        if place == 0:
            return f'<th scope="row">{text.replace("+", "+<wbr />")}</th>'
        return f'<td class="words">{text}</td>' if place == words else f"<td>{text}</td>"

    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "".join(f"<tr>{''.join(cell(k, text) for k, text in enumerate(row))}</tr>\n" for row in rows)
    caption = caption[0].upper() + caption[1:]
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="Table"><table>'
        f"<caption><span>{caption}</span></caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _interval(value: Interval | None, digits: int = 3, *, sign: bool = False, counted: bool = False) -> str:
    if value is None:
        return "no figure"
    count = f" <small>({value.n})</small>" if counted else ""

    def say(number: float) -> str:
        return signed(number, digits) if sign else f"{number:.{digits}f}"

    if value.low is None or value.high is None:
        return say(value.mean) + count
    return f'{say(value.mean)}{count} <small class="range">{say(value.low)} to {say(value.high)}</small>'


def _p(value: float | None) -> str:
    if value is None:
        return "none"
    return "&lt; 0.001" if value < 0.001 else f"{value:.3g}"


STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1a1a1a;
  font: 17px/1.5 system-ui, "Segoe UI", "Liberation Sans", sans-serif; }
main { max-width: 56rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.25rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; }
header p { margin: 0; color: #555; }
p { margin: .5rem 0; max-width: 44rem; }
.short, .notice { border-left: 4px solid #0072B2; background: #f1f6fa; padding: .75rem 1.1rem; margin: 1.25rem 0; }
.short p, .notice p { max-width: none; }
.short h2, .notice h2 { margin: 0 0 .25rem; font-size: 1.1rem; }
.notice { border-color: #B8860B; background: #fdf7e7; }
.notice ul { margin: .25rem 0; padding-left: 1.25rem; }
figure { margin: 1rem 0; }
.wide { overflow-x: auto; }
.wide:focus-visible { outline: 2px solid #0072B2; outline-offset: 2px; }
img { display: block; width: 100%; max-width: 43rem; height: auto; }
figcaption, caption { color: #444; font-size: .9rem; line-height: 1.4; text-align: left; max-width: 44rem; }
caption { padding: .25rem 0 .5rem; max-width: none; }
caption span { display: block; max-width: min(44rem, calc(100vw - 1.8rem)); position: sticky; left: 0; }
table { border-collapse: collapse; margin: 1rem 0 1.25rem; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 10rem; max-width: 15rem; overflow-wrap: anywhere; }
td { min-width: 4rem; }
td small { color: #555; font-size: .85em; white-space: nowrap; }
td small.range { display: block; }
td.words { min-width: 14rem; }
.better { color: #00568a; }
.worse { color: #a34600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; font-size: .95rem; }
dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
pre { background: #f5f5f5; padding: .75rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem; }
@media (max-width: 600px) {
  body { font-size: 16px; }
  main { padding: 1rem .9rem 2rem; }
  tbody th { min-width: 6.5rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media print {
  @page { margin: 15mm; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  .wide { overflow: visible; }
  img { max-width: 38rem; }
  table { font-size: 8.5pt; }
  tbody th { min-width: 6.5rem; }
  td.words { min-width: 9rem; }
  th, td { padding-right: .5rem; }
  figure, tr, .short, .notice { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
}
"""
