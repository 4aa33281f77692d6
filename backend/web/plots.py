"""The map and the learning curve as figures for papers: SVG whose text stays text, or PNG.

The arguments are the objects that `GET /api/projects/ID/atlas` and `.../curve` answer with. Letters are 8 pt at the
printed size, a column of 89 mm or a page of 183 mm. Readable without colour: every state of a scan and every curve has
a marker of its own, groups are numbered. The palette keeps apart for colour-blind readers (Okabe & Ito 2008; cividis:
Nunez et al. 2018). Matplotlib is loaded only when something is drawn.
"""

from __future__ import annotations

import io
import math
import textwrap
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import BadSetting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    Canvas = Figure | SubFigure

COLUMN, PAGE = 89 / 25.4, 183 / 25.4  # inches
LETTERS, SMALL = 8, 7  # points
DPI = 300
VECTOR = 2_000  # points of one state; more are drawn as pixels, also in an SVG
NUMBERED = 40  # groups with their number on the map; of more, the largest
BARS = 40  # intervals that can be told apart; more become a band
STEP = 0.012  # of the axis of labels, between curves that have bars at the same place
LABELS = 6  # curves in the panel of single labels
KINDS = ("svg", "png")

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
DARK, GREY, FAINT = "#1a1a1a", "#8a8a8a", "#c8c8c8"
MARKERS = "os^DvP"

COLOURINGS = {
    "cluster": "group",
    "state": "state",
    "entropy": "entropy of the mask (0 to 1)",
    "score": "score S (0 to 1)",
    "distance": "distance to the nearest chosen scan (0 to 1)",
    "round": "round in which the scan was labelled",
    "rank": "place in the order",
}
"""What the points of a map can be coloured by, and what the scale is called."""

STATES: tuple[tuple[str, dict[str, Any]], ...] = (  # by their number in the atlas
    ("open", {"marker": "o", "linewidths": 0.2, "edgecolors": DARK}),
    ("labelled", {"marker": "s", "linewidths": 0.7, "edgecolors": DARK}),
    ("cannot be read", {"marker": "x", "linewidths": 0.8}),
    ("skipped", {"marker": "v", "linewidths": 0.7, "edgecolors": DARK}),
)
STATE_COLOURS = (PALETTE[4], PALETTE[1], PALETTE[5], PALETTE[2])

SETTINGS: Any = {  # of matplotlib
    "font.family": "sans-serif",
    "font.size": LETTERS,
    "axes.labelsize": LETTERS,
    "axes.titlesize": LETTERS,
    "legend.fontsize": SMALL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text, not outlines of letters
    "svg.hashsalt": "scanqueue",
    "text.parse_math": False,  # a label may have a $ in its name
}
_ONE = threading.Lock()  # matplotlib's settings are the process's, and its caches know no threads

Draw = Callable[["Figure"], None]
Panel = Callable[["Axes", Mapping[str, Any]], None]
Numbers = NDArray[np.float64]


def map_plot(atlas: Mapping[str, Any], *, kind: str = "svg", colour: str = "cluster") -> bytes:
    """The map of the pool: one point per scan, its marker by state, its colour by one of COLOURINGS.

    Raises BadSetting on another kind than "svg" and "png", or another colour.
    """
    _check(kind, colour)
    return _rendered(lambda figure: _map(figure, atlas, colour), COLUMN, COLUMN * 1.16, kind)


def curve_plot(curve: Mapping[str, Any], *, kind: str = "svg") -> bytes:
    """Quality against labels, with intervals, and the time that annotators take with and without a mask.

    Raises BadSetting on another kind than "svg" and "png".
    """
    _check(kind)
    panels = _panels(curve)
    letter = "a" if len(panels) > 1 else ""
    return _rendered(lambda figure: _curve(figure, curve, panels, letter), COLUMN, _height(panels), kind)


def both(atlas: Mapping[str, Any], curve: Mapping[str, Any], *, kind: str = "svg", colour: str = "cluster") -> bytes:
    """Map and curve on one page: the map beside the quality, everything else below. Raises BadSetting as they do."""
    _check(kind, colour)
    panels = _panels(curve)
    above = [panel for panel in panels if panel in (_dice, *FAR)]
    below = [panel for panel in panels if panel not in above]
    heights = [max(COLUMN * 1.16, _height(above)), *([2.0] if below else [])]

    def draw(figure: Figure) -> None:
        rows = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        left, right = rows[0].subfigures(1, 2, squeeze=False)[0]
        _map(left, atlas, colour, "a")
        _curve(right, curve, above, "b")
        if below:
            sides = rows[1].subfigures(1, 2, squeeze=False)[0]
            for place, (side, panel) in enumerate(zip(sides, below, strict=False)):
                _curve(side, curve, [panel], chr(ord("b") + max(1, len(above)) + place))

    return _rendered(draw, PAGE, sum(heights), kind)


def _check(kind: str, colour: str = "cluster") -> None:
    if kind not in KINDS:
        raise BadSetting(f"a plot is svg or png, not {kind!r}.")
    if colour not in COLOURINGS:
        raise BadSetting(f"a map is coloured by one of {', '.join(COLOURINGS)}; got {colour!r}.")


# -- the map ----------------------------------------------------------------------------------


def _map(canvas: Canvas, atlas: Mapping[str, Any], colour: str, letter: str = "") -> None:
    axes = canvas.subplots()
    _lettered(axes, letter)
    xy = np.stack([_numbers(atlas.get("x")), _numbers(atlas.get("y"))], axis=1)
    placed = np.isfinite(xy).all(axis=1)
    if not placed.any():
        _sentence(axes, "There is no map yet: no scan has been read.")
        return
    values, colours, scale = _coloured(atlas, colour, len(xy))
    state = _whole(atlas.get("state"), len(xy), 0)
    size = float(np.clip(9_000 / placed.sum(), 0.6, 16))
    handles: list[Any] = []
    for number, (name, style) in enumerate(STATES):
        here = placed & (state == number)
        if not here.any():
            continue
        raster = bool(here.sum() > VECTOR)
        area = size if number == 0 else max(2.2 * size, 9)
        drawn: dict[str, Any] = {"s": area, "zorder": 2 + (number > 0), "rasterized": raster} | style
        if number == 0 and raster:
            drawn["linewidths"] = 0.0  # of so many points only the edges would be seen
        points = axes.scatter(xy[here, 0], xy[here, 1], c=colours[here], **drawn)
        points.set_gid(f"scans-{name.replace(' ', '-')}")
        fill = STATE_COLOURS[number] if colour == "state" else GREY if number == 2 else FAINT
        shown: dict[str, Any] = {**style, "c": fill} if number == 2 else {**style, "facecolors": fill}
        handles.append(axes.scatter([], [], s=max(area, 12), label=f"{name} ({here.sum():,})", **shown))
    served = placed & (_whole(atlas.get("served"), len(xy), 0) == 1)
    if served.any():
        ring: dict[str, Any] = {"s": max(4 * size, 26), "facecolors": "none", "edgecolors": DARK, "linewidths": 0.8}
        axes.scatter(xy[served, 0], xy[served, 1], zorder=4, **ring).set_gid("scans-served")
        handles.append(axes.scatter([], [], label=f"in the queue now ({served.sum():,})", **ring))
    if colour == "cluster":
        _number_groups(axes, xy, np.where(placed, values, -1))
    elif scale is not None:
        bar = canvas.colorbar(scale, ax=axes, location="bottom", shrink=0.8, aspect=30, pad=0.02)
        bar.set_label(COLOURINGS[colour])
        bar.outline.set_linewidth(0.4)
        bar.ax.tick_params(length=2)
        if colour in ("round", "rank"):
            bar.ax.locator_params(axis="x", integer=True)
        if not np.isfinite(values[placed]).all():
            handles.append(axes.scatter([], [], s=12, c=FAINT, label="grey: no value yet"))
    axes.set_xlabel("t-SNE, first axis (no unit)")
    axes.set_ylabel("t-SNE, second axis (no unit)")
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(length=2)
    axes.locator_params(nbins=6)
    canvas.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, handletextpad=0.3)


def _coloured(atlas: Mapping[str, Any], colour: str, count: int) -> tuple[Numbers, NDArray[Any], Any]:
    """Value and colour (N, 4) of every point, and the scale for the bar beside it; NaN: no value."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize, to_rgba, to_rgba_array

    if colour in ("cluster", "state"):
        group = _whole(atlas.get(colour), count, -1)
        palette = to_rgba_array(PALETTE if colour == "cluster" else STATE_COLOURS)
        colours = palette[group % len(palette)]
        colours[group < 0] = to_rgba(FAINT)
        return group.astype(np.float64), colours, None
    values = _numbers(atlas.get(colour), count)
    if colour in ("round", "rank"):
        values[values < (1 if colour == "rank" else 0)] = np.nan
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if high == low:
        high = low + 1
    shades = ListedColormap(colormaps["cividis_r"](np.linspace(0.06, 1, 256)))  # high is dark; no yellow on white
    scale = ScalarMappable(Normalize(low, high), shades)
    colours = np.asarray(scale.to_rgba(np.nan_to_num(values, nan=low)))
    colours[~np.isfinite(values)] = to_rgba(FAINT)
    return values, colours, scale if len(known) else None


def _number_groups(axes: Axes, xy: Numbers, groups: Numbers) -> None:
    """The number of each group, counted from 1 as the queue does, at the point in its midst."""
    found, counts = np.unique(groups[groups >= 0].astype(int), return_counts=True)
    for group in found[np.argsort(-counts, kind="stable")][:NUMBERED]:
        points = xy[groups == group]
        x, y = points[((points - np.median(points, axis=0)) ** 2).sum(axis=1).argmin()]
        box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        axes.text(x, y, str(group + 1), fontsize=SMALL, ha="center", va="center", zorder=5, bbox=box)


# -- the curve --------------------------------------------------------------------------------


def _panels(curve: Mapping[str, Any]) -> list[Panel]:
    """What there is something to draw of."""
    found: list[Panel] = []
    rows = [*(curve.get("models") or ()), *(curve.get("shown") or ())]
    if any(_number(r.get("dice")) is not None for r in rows):
        found.append(_dice)
    units = {_unit(curve, r) for r in rows if _number(r.get("hd95")) is not None}
    far = [panel for unit, panel in (("mm", _hd95_mm), ("px", _hd95_px)) if unit in units]
    found += far or ([_hd95_mixed] if curve.get("unit") == "mixed" else [])
    names = {name for r in curve.get("models") or () for name in r.get("classes") or {}}
    if len(names) > 1:
        found.append(_single)
    times = curve.get("lead_time") or {}
    if any(_number((times.get(side) or {}).get("median")) is not None for side in ("with", "without")):
        found.append(_times)
    return found


def _height(panels: Sequence[Panel]) -> float:
    """Inches that a column of these panels needs."""
    legend = 0.9 if {_dice, *FAR} & set(panels) else 0.0
    return sum(1.05 if panel is _times else 1.75 for panel in panels) + legend if panels else COLUMN * 0.7


def _curve(canvas: Canvas, curve: Mapping[str, Any], panels: Sequence[Panel], letter: str) -> None:
    """The panels one below the other, lettered from `letter` on, with one legend."""
    if not panels:
        axes = canvas.subplots()
        _lettered(axes, letter)
        _sentence(axes, "There is no learning curve yet: no model has been judged on held-out scans.")
        return
    ratios = [0.42 if panel is _times else 1.0 for panel in panels]
    found = canvas.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
    handles: dict[str, Any] = {}
    for place, (panel, axes) in enumerate(zip(panels, found, strict=True)):
        _lettered(axes, letter and chr(ord(letter) + place))
        panel(axes, curve)
        if panel is not _times and axes.axison:
            axes.set_xlabel("labelled scans")
            axes.locator_params(axis="x", integer=True, nbins=7)
            axes.set_xlim(*_span(curve))
            axes.grid(alpha=0.25, linewidth=0.5)
        if panel in (_dice, *FAR):
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(name, handle)
    if handles:
        if any(str(drawn.get_gid()).startswith("intervals-") for axes in found for drawn in axes.collections):
            mark = {"color": GREY, "marker": "|", "markersize": 7, "markeredgewidth": 0.9, "linestyle": "none"}
            handles["95 % interval"] = found[0].plot([], [], **mark)[0]
        canvas.legend(
            list(handles.values()), list(handles), loc="outside lower center", frameon=False, handlelength=2.6
        )


def _span(curve: Mapping[str, Any]) -> tuple[float, float]:
    """Left and right end of the axis of labels, the same in all panels."""
    rows = [*(curve.get("models") or ()), *(curve.get("shown") or ()), *(curve.get("control") or ())]
    at = [float(r["labels"]) for r in rows if _number(r.get("labels")) is not None]
    low, high = min(at, default=0.0), max(at, default=1.0)
    pad = max(1.0, 0.06 * (high - low))
    return low - pad, high + pad


def _dice(axes: Axes, curve: Mapping[str, Any]) -> None:
    _quality(axes, curve, "dice", "dice")
    axes.set_ylabel("Dice (0 to 1)")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.0) if high > 1 else high)


def _hd95_mm(axes: Axes, curve: Mapping[str, Any]) -> None:
    _far(axes, curve, "mm")


def _hd95_px(axes: Axes, curve: Mapping[str, Any]) -> None:
    _far(axes, curve, "px")


def _hd95_mixed(axes: Axes, curve: Mapping[str, Any]) -> None:
    _sentence(axes, "HD95 has no mean: some scans are measured in mm, others in px.")


FAR: tuple[Panel, ...] = (_hd95_mm, _hd95_px, _hd95_mixed)


def _far(axes: Axes, curve: Mapping[str, Any], unit: str) -> None:
    """HD95 of what is measured in this unit: px and mm are never on one axis."""
    _quality(axes, curve, "hd95", "hd95" if curve.get("unit") != "mixed" else f"hd95-{unit}", unit)
    axes.set_ylabel(f"HD95 ({unit})")
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    rows = [r for r in [*(curve.get("models") or ()), *(curve.get("shown") or ())] if _unit(curve, r) == "mixed"]
    if lost := sum(1 for r in rows if _number(r.get("dice")) is not None):
        axes.set_title(f"{lost} without a mean: in mm and px", loc="right", fontsize=SMALL)


def _unit(curve: Mapping[str, Any], row: Mapping[str, Any] | None) -> str:
    """The unit of a row's distances."""
    return str((row or {}).get("unit") or curve.get("unit") or "px")


def _quality(axes: Axes, curve: Mapping[str, Any], name: str, gid: str, unit: str | None = None) -> None:
    """The models, the masks that were shown, and our order beside chance, in one measure; of those in that unit."""

    def fits(row: Mapping[str, Any] | None) -> bool:
        return unit is None or _unit(curve, row) == unit

    models = [m for m in curve.get("models") or () if _number(m.get(name)) is not None and fits(m)]
    taken = [m for m in models if m.get("accepted")]
    left = [m for m in models if not m.get("accepted")]
    blue, red = PALETTE[0], PALETTE[5]
    _line(axes, taken, name, f"{gid}-models", "model, on held-out scans", color=blue, marker="o", linestyle="-")
    _line(
        axes,
        left,
        name,
        f"{gid}-models-not-taken",
        "model that was not taken",
        color=blue,
        marker="o",
        markerfacecolor="white",
        linestyle="none",
    )
    shown = [
        s for s in curve.get("shown") or () if None not in (_number(s.get(name)), _number(s.get("labels"))) and fits(s)
    ]
    _line(
        axes,
        shown,
        name,
        f"{gid}-shown",
        "mask shown, against the one submitted",
        aside=STEP * (_span(curve)[1] - _span(curve)[0]),
        color=red,
        marker="s",
        linestyle=(0, (4, 1.5)),
    )
    pairs = [
        (c["labels"], _number((c.get("ours") or {}).get(name)), _number((c.get("control") or {}).get(name)))
        for c in curve.get("control") or ()
        if _number(c.get("labels")) is not None and fits(c.get("ours")) and fits(c.get("control"))
    ]
    whole = [(x, ours, chance) for x, ours, chance in pairs if ours is not None and chance is not None]
    if whole:
        x, ours, chance = (list(column) for column in zip(*whole, strict=True))
        axes.vlines(x, ours, chance, color=GREY, linewidth=0.6, linestyle=(0, (1, 1)), zorder=1)
        style: dict[str, Any] = {"linestyle": "none", "color": DARK, "markersize": 4.4, "zorder": 3}
        axes.plot(x, ours, marker="D", label="labels of our order", **style)
        axes.plot(x, chance, marker="D", markerfacecolor="white", label="as many labels drawn at random", **style)


def _single(axes: Axes, curve: Mapping[str, Any]) -> None:
    """Dice of every label, of the models that were taken."""
    models = [m for m in curve.get("models") or () if m.get("accepted")]
    there = {name for m in models for name in m.get("classes") or {}}
    names = [name for name in curve.get("labels") or () if name in there]
    names += sorted(there - set(names))
    for place, name in enumerate(names[:LABELS]):
        rows = [
            {"labels": m["labels"], "dice": one.get("dice"), "dice_low": one.get("low"), "dice_high": one.get("high")}
            for m in models
            for one in [(m.get("classes") or {}).get(name) or {}]
            if _number(one.get("dice")) is not None
        ]
        shift = place - (min(len(names), LABELS) - 1) / 2
        style = {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)]}
        aside = shift * STEP * (_span(curve)[1] - _span(curve)[0])
        _line(axes, rows, "dice", f"label-{place + 1}", _plain(name), aside=aside, linestyle="-", **style)
    if len(names) > LABELS:
        axes.set_title(f"the first {LABELS} of {len(names)} labels", loc="right", fontsize=SMALL)
    axes.set_ylabel("Dice per label (0 to 1)")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.0) if high > 1 else high)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, ncols=3, loc="lower right", handlelength=2.2, columnspacing=1.0)


def _line(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    name: str,
    gid: str,
    label: str,
    *,
    aside: float = 0.0,
    **style: Any,
) -> None:
    """Values with their intervals: bars, or a band when there are many. `aside`: moved to the right by so many labels,
    so that bars at the same number of labels do not hide each other."""
    if not rows:
        return
    rows = sorted(rows, key=lambda row: float(row["labels"]))
    many: dict[str, Any] = {"markersize": 2.2} if len(rows) > BARS else {}
    axes.plot(
        [float(row["labels"]) + aside for row in rows],
        [float(row[name]) for row in rows],
        label=label,
        zorder=3,
        clip_on=False,
        **many,
        **style,
    )
    sure = [
        (float(row["labels"]) + aside, low, high)
        for row in rows
        for low, high in [(_number(row.get(f"{name}_low")), _number(row.get(f"{name}_high")))]
        if low is not None and high is not None
    ]
    if not sure:
        return
    at, lows, highs = (list(column) for column in zip(*sure, strict=True))
    if len(sure) > BARS:
        bars: Any = axes.fill_between(at, lows, highs, color=style["color"], alpha=0.18, linewidth=0)
    else:
        bars = axes.vlines(at, lows, highs, color=style["color"], linewidth=0.9, zorder=2)
    bars.set_gid(f"intervals-{gid}")


def _times(axes: Axes, curve: Mapping[str, Any]) -> None:
    times = curve.get("lead_time") or {}
    rows = [("with", "mask shown", "o"), ("without", "no mask", "s")]
    names = []
    for place, (side, name, marker) in enumerate(rows):
        one = times.get(side) or {}
        median, low, high = (_number(one.get(key)) for key in ("median", "low", "high"))
        count = one.get("n") or 0
        names.append(f"{name}\n({count:,} scans)")
        if median is None:
            axes.annotate("no figure", (0.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL)
            continue
        if low is not None and high is not None:
            bar = axes.hlines([place], [low], [high], color=PALETTE[0], linewidth=0.9)
            bar.set_gid(f"intervals-time-{side}")
        axes.plot([median], [place], marker=marker, color=PALETTE[0], linestyle="none")
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("time per scan (s): median, 95 % interval")
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.25, linewidth=0.5)


# -- pieces -----------------------------------------------------------------------------------


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _numbers(values: Sequence[Any] | None, count: int | None = None) -> Numbers:
    """A column as an array, NaN where nothing is known; `count` NaN when the column is not there."""
    if not values:
        return np.full(count or 0, np.nan)
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _whole(values: Sequence[Any] | None, count: int, otherwise: int) -> NDArray[np.int64]:
    return np.nan_to_num(_numbers(values, count), nan=otherwise).astype(np.int64)


def _plain(text: str, width: int = 24) -> str:
    """A name on one line, without what an SVG may not hold, shortened when long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _lettered(axes: Axes, letter: str) -> None:
    if letter:
        axes.set_title(letter, loc="left", fontweight="bold")


def _sentence(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    lines = textwrap.fill(text, 40)
    axes.text(0.5, 0.5, lines, transform=axes.transAxes, ha="center", va="center", color="#444444")


def _rendered(draw: Draw, width: float, height: float, kind: str) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    file = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}  # the same plot, the same bytes
    with _ONE, matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the font lacks a script: a browser has another one
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(file, dpi=DPI, format=kind, metadata=metadata)
    return file.getvalue()
