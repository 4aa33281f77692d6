"""The map and the learning curve as figures for papers: SVG with real text, or PNG.

The arguments are the objects that `GET /api/projects/ID/atlas` and `.../curve` return. Letters are 8 pt at the printed
size, a column of 89 mm or a page of 183 mm. Figures are readable without colour: every scan state and every curve has
its own marker, clusters are numbered. The palettes suit colour-blind readers (Okabe & Ito 2008; cividis: Nunez et al.
2018). Matplotlib is loaded only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from backend.errors import BadSetting
from backend.web.plots.curve import QUALITY, curve_panels, draw_curve, panels_height
from backend.web.plots.map import COLOURINGS, draw_map
from backend.web.plots.style import COLUMN, PAGE, rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("svg", "png")


def map_plot(atlas: Mapping[str, Any], *, kind: str = "svg", colour: str = "cluster") -> bytes:
    """The map of the pool: one point per scan, with a marker for its state and a colour by one of COLOURINGS.

    Raises BadSetting for an unknown kind ("svg" or "png") or colour.
    """
    _check(kind, colour)
    return rendered(lambda figure: draw_map(figure, atlas, colour), COLUMN, COLUMN * 1.16, kind)


def curve_plot(curve: Mapping[str, Any], *, kind: str = "svg") -> bytes:
    """Quality against the number of labels, with intervals, and the time per scan with and without a mask.

    Raises BadSetting for an unknown kind ("svg" or "png").
    """
    _check(kind)
    panels = curve_panels(curve)
    letter = "a" if len(panels) > 1 else ""
    return rendered(lambda figure: draw_curve(figure, curve, panels, letter), COLUMN, panels_height(panels), kind)


def both(atlas: Mapping[str, Any], curve: Mapping[str, Any], *, kind: str = "svg", colour: str = "cluster") -> bytes:
    """Map and curve on one page: the map beside the quality, everything else below. Raises BadSetting too."""
    _check(kind, colour)
    panels = curve_panels(curve)
    above = [panel for panel in panels if panel in QUALITY]
    below = [panel for panel in panels if panel not in above]
    heights = [max(COLUMN * 1.16, panels_height(above)), *([2.0] if below else [])]

    def draw(figure: Figure) -> None:
        rows = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        left, right = rows[0].subfigures(1, 2, squeeze=False)[0]
        draw_map(left, atlas, colour, "a")
        draw_curve(right, curve, above, "b")
        if below:
            sides = rows[1].subfigures(1, 2, squeeze=False)[0]
            for place, (side, panel) in enumerate(zip(sides, below, strict=False)):
                draw_curve(side, curve, [panel], chr(ord("b") + max(1, len(above)) + place))

    return rendered(draw, PAGE, sum(heights), kind)


def _check(kind: str, colour: str = "cluster") -> None:
    if kind not in KINDS:
        raise BadSetting(f"plot format: got {kind!r}, expected svg or png.")
    if colour not in COLOURINGS:
        raise BadSetting(f"map colour: got {colour!r}, expected one of {', '.join(COLOURINGS)}.")
