"""The map of the pool as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backend.web.plots.style import (
    DARK,
    FAINT,
    GREY,
    PALETTE,
    SMALL,
    Numbers,
    letter_panel,
    numbers,
    show_sentence,
    whole,
)
from backend.web.texts import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    Canvas = Figure | SubFigure

VECTOR = 2_000  # points per state up to which an SVG draws them as vectors
NUMBERED = 40  # largest clusters that are labelled with their number

COLOURINGS = {
    "cluster": "cluster",
    "state": "state",
    "entropy": "entropy of the mask (0 to 1)",
    "score": "score S (0 to 1)",
    "distance": "distance to the nearest chosen scan (0 to 1)",
    "round": "round in which the scan was labelled",
    "rank": "place in the order",
}
"""What points can be coloured by, with the title of the colour scale."""

STATES: tuple[tuple[str, dict[str, Any]], ...] = (  # in the order of `map_view`'s numbers
    ("open", {"marker": "o", "linewidths": 0.2, "edgecolors": DARK}),
    ("labelled", {"marker": "s", "linewidths": 0.7, "edgecolors": DARK}),
    ("cannot be read", {"marker": "x", "linewidths": 0.8}),
    ("skipped", {"marker": "v", "linewidths": 0.7, "edgecolors": DARK}),
)
STATE_COLOURS = (PALETTE[4], PALETTE[1], PALETTE[5], PALETTE[2])


def draw_map(canvas: Canvas, atlas: Mapping[str, Any], colour: str, letter: str = "") -> None:
    axes = canvas.subplots()
    letter_panel(axes, letter)
    xy = np.stack([numbers(atlas.get("x")), numbers(atlas.get("y"))], axis=1)
    placed = np.isfinite(xy).all(axis=1)
    if not placed.any():
        show_sentence(axes, text("plot.no_map"))
        return
    values, colours, scale = _coloured(atlas, colour, len(xy))
    state = whole(atlas.get("state"), len(xy), 0)
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
            drawn["linewidths"] = 0.0  # otherwise, with this many points, only edges would be visible
        points = axes.scatter(xy[here, 0], xy[here, 1], c=colours[here], **drawn)
        points.set_gid(f"scans-{name.replace(' ', '-')}")
        fill = STATE_COLOURS[number] if colour == "state" else GREY if number == 2 else FAINT
        shown: dict[str, Any] = {**style, "c": fill} if number == 2 else {**style, "facecolors": fill}
        handles.append(axes.scatter([], [], s=max(area, 12), label=f"{name} ({here.sum():,})", **shown))
    served = placed & (whole(atlas.get("served"), len(xy), 0) == 1)
    if served.any():
        ring: dict[str, Any] = {"s": max(4 * size, 26), "facecolors": "none", "edgecolors": DARK, "linewidths": 0.8}
        axes.scatter(xy[served, 0], xy[served, 1], zorder=4, **ring).set_gid("scans-served")
        handles.append(axes.scatter([], [], label=text("plot.in_queue", count=f"{served.sum():,}"), **ring))
    if colour == "cluster":
        _number_clusters(axes, xy, np.where(placed, values, -1))
    elif scale is not None:
        bar = canvas.colorbar(scale, ax=axes, location="bottom", shrink=0.8, aspect=30, pad=0.02)
        bar.set_label(COLOURINGS[colour])
        bar.outline.set_linewidth(0.4)
        bar.ax.tick_params(length=2)
        if colour in ("round", "rank"):
            bar.ax.locator_params(axis="x", integer=True)
        if not np.isfinite(values[placed]).all():
            handles.append(axes.scatter([], [], s=12, c=FAINT, label=text("plot.no_value")))
    axes.set_xlabel(text("plot.first_axis"))
    axes.set_ylabel(text("plot.second_axis"))
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(length=2)
    axes.locator_params(nbins=6)
    canvas.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, handletextpad=0.3)


def _coloured(atlas: Mapping[str, Any], colour: str, count: int) -> tuple[Numbers, NDArray[Any], Any]:
    """Value (NaN for none) and colour (N, 4) of every point, and the scale for the colour bar."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize, to_rgba, to_rgba_array

    if colour in ("cluster", "state"):
        group = whole(atlas.get(colour), count, -1)
        palette = to_rgba_array(PALETTE if colour == "cluster" else STATE_COLOURS)
        colours = palette[group % len(palette)]
        colours[group < 0] = to_rgba(FAINT)
        return group.astype(np.float64), colours, None
    values = numbers(atlas.get(colour), count)
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


def _number_clusters(axes: Axes, xy: Numbers, groups: Numbers) -> None:
    """Label each cluster with its number, counted from 1 as in the queue, at its most central point."""
    found, counts = np.unique(groups[groups >= 0].astype(int), return_counts=True)
    for group in found[np.argsort(-counts, kind="stable")][:NUMBERED]:
        points = xy[groups == group]
        x, y = points[((points - np.median(points, axis=0)) ** 2).sum(axis=1).argmin()]
        box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        axes.text(x, y, str(group + 1), fontsize=SMALL, ha="center", va="center", zorder=5, bbox=box)
