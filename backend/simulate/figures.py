"""The figures of a report, as PNG bytes: learning curves, differences from random choice, labels needed.

Readable without colour: every strategy also has its own marker and line style. The palette is safe for colour-blind
readers (Okabe & Ito 2008). Matplotlib is imported only for drawing.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backend.simulate.labels_needed import LabelsNeeded
from backend.simulate.results import RANDOM, Arm, data_sets, of_data
from backend.simulate.statistics import Comparison, CurvePoint, signed, verdict
from backend.simulate.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.8  # inches; small enough for legible text on a phone
DPI = 200
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8860B")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (5, 1, 1, 1)))
MARKERS = "osD^vPX<>*hd"
GREY = "#444444"
FAINT = "#999999"
BANDS = 4  # maximum number of arms with distinguishable intervals in one panel; more get a panel each

Styles = Mapping[Arm, dict[str, Any]]


def arm_styles(arms: Sequence[Arm]) -> Styles:
    """Colour, marker and line of each arm; random choice is always dark grey and dotted."""
    found: dict[Arm, dict[str, Any]] = {}
    place = 0
    for arm in arms:
        if arm.strategy == RANDOM:
            found[arm] = {"color": GREY, "marker": "x", "linestyle": (0, (1.5, 1.5))}
        else:
            line = LINES[place // len(COLOURS) % len(LINES)]
            found[arm] = {
                "color": COLOURS[place % len(COLOURS)],
                "marker": MARKERS[place % len(MARKERS)],
                "linestyle": line,
            }
            place += 1
    return found


def learning_curve_figure(
    points: Sequence[CurvePoint], names: Mapping[Arm, str], whole: Mapping[str, tuple[float, float]]
) -> bytes:
    """Dice against labels, a panel for each data set; with many arms of one data set, a panel for each arm.

    whole  data set to mean (labels, Dice) of the models trained on all labels, if any
    """
    styles = arm_styles(list(names))
    data = data_sets(points)
    if len(data) == 1 and len(names) > BANDS:
        return _png(
            lambda figure: _curves_apart(figure, points, names, styles, whole.get(data[0])), _rows(names) * 1.75 + 0.3
        )
    columns = min(2, len(data))
    rows = math.ceil(len(data) / columns)
    height = (3.6 if columns == 1 else 2.5 * rows) + 0.22 * math.ceil(len(names) / 3)

    def draw(figure: Figure) -> None:
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        handles: dict[Arm, Any] = {}
        for axes, name in zip(panels, data, strict=False):
            part = of_data(points, name)
            for arm in names:
                line = _curve(axes, [p for p in part if p.arm == arm], styles[arm], band=len(names) <= BANDS)
                handles.setdefault(arm, line)
            _all_labels(axes, whole.get(name))
            _labels_and_dice(axes)
            if name:
                axes.set_title(plain(name, 30), fontsize=9)
        for axes in panels[len(data) :]:
            axes.set_visible(False)
        _legend(figure, handles, names)

    return _png(draw, height)


def _rows(names: Mapping[Arm, str]) -> int:
    return math.ceil(sum(1 for arm in names if arm.strategy != RANDOM) / 3)


def _curves_apart(
    figure: Figure,
    points: Sequence[CurvePoint],
    names: Mapping[Arm, str],
    styles: Styles,
    whole: tuple[float, float] | None,
) -> None:
    """A panel for each arm, with random choice in every panel."""
    others = [arm for arm in names if arm.strategy == RANDOM]
    shown = [arm for arm in names if arm.strategy != RANDOM]
    panels = figure.subplots(_rows(names), 3, squeeze=False, sharex=True, sharey=True)
    handles: dict[Arm, Any] = {}
    for place, axes in enumerate(panels.flat):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        arm = shown[place]
        for other in others:
            handles[other] = _curve(axes, [p for p in points if p.arm == other], styles[other], band=False)
        _curve(axes, [p for p in points if p.arm == arm], styles[arm], band=True)
        _all_labels(axes, whole)
        _labels_and_dice(axes)
        axes.set_title(plain(names[arm], 22), fontsize=8.5, color=styles[arm]["color"], fontweight="bold")
        below = place + 3 < len(shown)
        axes.tick_params(labelbottom=not below)
        axes.set_xlabel("" if below else "labels", fontsize=8.5)
        axes.set_ylabel("mean Dice" if place % 3 == 0 else "", fontsize=8.5)
    _legend(figure, handles, names)


def _curve(axes: Axes, points: Sequence[CurvePoint], style: dict[str, Any], *, band: bool) -> Any:
    x = [p.labels for p in points]
    (line,) = axes.plot(x, [p.dice.mean for p in points], markersize=4, linewidth=1.4, **style)
    sure = [(p.labels, p.dice.low, p.dice.high) for p in points if p.dice.low is not None and p.dice.high is not None]
    at, low, high = ([entry[k] for entry in sure] for k in range(3))
    if band and len(sure) > 1:
        axes.fill_between(at, low, high, color=style["color"], alpha=0.13, linewidth=0)
    elif band:
        axes.vlines(at, low, high, color=style["color"], linewidth=1)
    return line


def _all_labels(axes: Axes, whole: tuple[float, float] | None) -> None:
    if whole is not None:
        labels, dice = whole
        axes.axhline(dice, color="black", linewidth=0.9)
        axes.annotate(
            f"all {labels:.0f} labels",
            (0.01, dice),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            fontsize=7,
            color="black",
        )


def _labels_and_dice(axes: Axes) -> None:
    axes.set_xlabel("labels", fontsize=8.5)
    axes.set_ylabel("mean Dice on test scans", fontsize=8.5)
    axes.grid(alpha=0.25)
    axes.margins(y=0.12)
    axes.locator_params(axis="x", integer=True)
    _tidy(axes, "top", "right")


def _tidy(axes: Axes, *sides: str) -> None:
    axes.tick_params(labelsize=8)
    for side in sides:
        axes.spines[side].set_visible(False)


def _legend(figure: Figure, handles: Mapping[Arm, Any], names: Mapping[Arm, str]) -> None:
    if handles:
        figure.legend(
            list(handles.values()),
            [plain(names[arm], 30) for arm in handles],
            loc="outside lower center",
            ncols=min(3, len(handles)),
            fontsize=8,
            frameon=False,
            handlelength=3.2,
        )


MARKS: dict[str, dict[str, Any]] = {  # verdict to marker of its mean
    "better": {"marker": "o", "color": "#0072B2", "markerfacecolor": "#0072B2"},
    "worse": {"marker": "s", "color": "#D55E00", "markerfacecolor": "#D55E00"},
    "open": {"marker": "o", "color": GREY, "markerfacecolor": "white"},
    "too few": {"marker": "x", "color": GREY, "markerfacecolor": GREY},
}


def differences_figure(comparisons: Sequence[Comparison]) -> bytes:
    """Forest plot: each arm's difference from random choice with its interval, and the individual pairs."""
    shown = [one for one in comparisons if one.area is not None]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, one in enumerate(shown):
            kind = verdict(one).kind
            mark = MARKS[kind]
            gap = one.area
            if gap is None:
                continue
            pairs = list(one.by_pair.values())
            axes.plot(pairs, [place + 0.22] * len(pairs), "|", color=FAINT, markersize=6, zorder=2)
            if kind != "too few" and gap.low is not None and gap.high is not None:
                axes.plot([gap.low, gap.high], [place, place], color=mark["color"], linewidth=1.8, zorder=3)
            axes.plot([gap.mean], [place], markersize=7, linestyle="none", zorder=4, **mark)
            axes.annotate(
                signed(gap.mean),
                (1.01, place),
                xycoords=("axes fraction", "data"),
                fontsize=8,
                va="center",
                color=mark["color"],
            )
        axes.axvline(0, color="black", linewidth=1, zorder=1)
        axes.set_yticks(range(len(shown)), [plain(one.name, 34) for one in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        reach = max((abs(edge) for edge in axes.get_xlim()), default=0.0)
        axes.set_xlim(min(axes.get_xlim()[0], -0.25 * reach), max(axes.get_xlim()[1], 0.25 * reach))
        axes.set_xlabel("worse  ←   difference from random choice (Dice)   →  better", fontsize=8.5)
        axes.grid(axis="x", alpha=0.25)
        _tidy(axes, "top", "right", "left")
        axes.tick_params(axis="y", length=0)

    return _png(draw, 1.0 + 0.42 * max(1, len(shown)))


def labels_needed_figure(needed: Sequence[LabelsNeeded]) -> bytes | None:
    """Median labels to reach each fraction, and the individual repeats; None when no repeat reached any."""
    data = [name for name in data_sets(needed) if any(one.reached for one in of_data(needed, name))]
    if not data:
        return None
    fractions = sorted({one.fraction for one in needed})
    most = max(len({one.arm for one in of_data(needed, name)}) for name in data)
    styles = arm_styles(list(dict.fromkeys(one.arm for one in needed)))

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(data), len(fractions), squeeze=False)
        for line, name in enumerate(data):
            ends = [each.labels for one in of_data(needed, name) for each in one.each if each.labels is not None]
            for place, fraction in enumerate(fractions):
                here = [one for one in of_data(needed, name) if one.fraction == fraction]
                axes = panels[line, place]
                _needed(axes, here, styles)
                share = f"{fraction * 100:.0f} %"
                axes.set_title(f"{plain(name, 14)}: {share}" if name else f"{share} of all labels", fontsize=8.5)
                axes.tick_params(labelleft=place == 0)
                axes.set_xlim(0, 1.22 * max(ends))
                axes.set_xlabel("labels needed", fontsize=8.5)

    return _png(draw, len(data) * (1.0 + 0.34 * most))


def _needed(axes: Axes, here: Sequence[LabelsNeeded], styles: Styles) -> None:
    for place, one in enumerate(here):
        style = {key: value for key, value in styles[one.arm].items() if key != "linestyle"}
        single = [each.labels for each in one.each if each.labels is not None]
        axes.plot(single, [place + 0.25] * len(single), "|", color=FAINT, markersize=6)
        if one.median is not None:
            axes.plot([one.median], [place], markersize=7, linestyle="none", **style)
            text = f" {'≤ ' if one.at_most else ''}{one.median:.0f}"
            axes.annotate(
                text, (one.median, place), xytext=(5, 0), textcoords="offset points", fontsize=7.5, va="center"
            )
        else:
            why = ("mostly not reached" if one.reached else "not reached") if one.repeats else "no value"
            axes.annotate(why, (0.04, place), xycoords=("axes fraction", "data"), fontsize=7.5, va="center")
    axes.set_yticks(range(len(here)), [plain(one.name, 26) for one in here])
    axes.set_ylim(len(here) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.25)
    axes.tick_params(axis="y", length=0)
    _tidy(axes, "top", "right", "left")


def plain(text: str, width: int) -> str:
    """A name for matplotlib: one line, no formulas, shortened in the middle to at most `width` characters."""
    line = " ".join(printable(text).split())
    if len(line) > width:
        tail = width * 2 // 5
        line = f"{line[: width - tail - 1]}…{line[-tail:]}"
    return line.replace("$", r"\$")


def _png(draw: Callable[[Figure], None], height: float) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the font may lack a script; the tables show these names
        figure.savefig(file, dpi=DPI, format="png", metadata={"Software": None})
    return file.getvalue()
