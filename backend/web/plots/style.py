"""Shared by all plots: sizes, colours, matplotlib settings, and figures as bytes."""

from __future__ import annotations

import io
import math
import textwrap
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    Canvas = Figure | SubFigure

COLUMN, PAGE = 89 / 25.4, 183 / 25.4  # inches
LETTERS, SMALL = 8, 7  # points
DPI = 300

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
DARK, GREY, FAINT = "#1a1a1a", "#8a8a8a", "#c8c8c8"

SETTINGS: Any = {  # matplotlib's
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
    "text.parse_math": False,  # label names may contain a $
}
_ONE = threading.Lock()  # matplotlib's settings and caches are shared by all threads

Draw = Callable[["Figure"], None]
Numbers = NDArray[np.float64]


def number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def numbers(values: Sequence[Any] | None, count: int | None = None) -> Numbers:
    """A column as an array with NaN for unknown values; `count` NaN when the column is missing."""
    if not values:
        return np.full(count or 0, np.nan)
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def whole(values: Sequence[Any] | None, count: int, otherwise: int) -> NDArray[np.int64]:
    return np.nan_to_num(numbers(values, count), nan=otherwise).astype(np.int64)


def plain(text: str, width: int = 24) -> str:
    """A name on one line, without characters that SVG forbids, shortened if long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def letter_panel(axes: Axes, letter: str) -> None:
    if letter:
        axes.set_title(letter, loc="left", fontweight="bold")


def show_sentence(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    lines = textwrap.fill(text, 40)
    axes.text(0.5, 0.5, lines, transform=axes.transAxes, ha="center", va="center", color="#444444")


def rendered(draw: Draw, width: float, height: float, kind: str) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    file = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}  # equal plots give equal bytes
    with _ONE, matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # missing glyphs: browsers use another font
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(file, dpi=DPI, format=kind, metadata=metadata)
    return file.getvalue()
