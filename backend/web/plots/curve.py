"""The learning curve as a figure: one panel per measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backend.web.plots.style import (
    COLUMN,
    DARK,
    GREY,
    PALETTE,
    SMALL,
    letter_panel,
    number,
    plain,
    show_sentence,
)
from backend.web.texts import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    Canvas = Figure | SubFigure

BARS = 40  # intervals drawn as bars; more become a band
STEP = 0.012  # offset between curves with bars at the same place, as a share of the axis of labels
LABELS = 6  # maximum number of curves in the panel of single labels
MARKERS = "os^DvP"
BELOW_AXIS = 4.4  # from an axis to a legend below its title, in font sizes

Panel = Callable[["Axes", Mapping[str, Any]], None]


def curve_panels(curve: Mapping[str, Any]) -> list[Panel]:
    """The panels that have data."""
    found: list[Panel] = []
    rows = _rows(curve)
    if any(number(r.get("dice")) is not None for r in rows):
        found.append(dice_panel)
    units = {_unit(curve, r) for r in rows if number(r.get("hd95")) is not None}
    far = [panel for unit, panel in (("mm", _millimetres), ("px", _pixels)) if unit in units]
    found += far or ([_mixed_units] if curve.get("unit") == "mixed" else [])
    if any(r.get("n_empty") or r.get("miss_rate") for r in curve.get("models") or ()):
        found.append(rates_panel)
    names = {name for r in curve.get("models") or () for name in r.get("classes") or {}}
    if len(names) > 1:
        found.append(_single)
    times = curve.get("lead_time") or {}
    if any(number((times.get(side) or {}).get("median")) is not None for side in ("with", "without")):
        found.append(_times)
    return found


def panel_names(curve: Mapping[str, Any]) -> str:
    """What the lettered panels show, for the caption; "" for a single panel."""
    panels = curve_panels(curve)
    names = [text(f"plot.panel_{panel.__name__.strip('_')}") for panel in panels]
    return "; ".join(f"{chr(ord('a') + place)}, {name}" for place, name in enumerate(names)) if len(panels) > 1 else ""


def _rows(curve: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of models and of masks shown."""
    return [row for part in ("models", "shown", "quick") for row in curve.get(part) or ()]


def panels_height(panels: Sequence[Panel]) -> float:
    """Height in inches of a column of these panels."""
    legend = (1.05 if rates_panel in panels else 0.9) if set(QUALITY) & set(panels) else 0.0
    legend += 0.35 if _single in panels else 0.0
    return sum(1.05 if panel is _times else 1.75 for panel in panels) + legend if panels else COLUMN * 0.7


def draw_curve(canvas: Canvas, curve: Mapping[str, Any], panels: Sequence[Panel], letter: str) -> None:
    """The panels one below the other with one legend, lettered from `letter` on."""
    if not panels:
        axes = canvas.subplots()
        letter_panel(axes, letter)
        show_sentence(axes, text("plot.no_curve"))
        return
    ratios = [0.42 if panel is _times else 1.0 for panel in panels]
    found = canvas.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
    handles: dict[str, Any] = {}
    for place, (panel, axes) in enumerate(zip(panels, found, strict=True)):
        letter_panel(axes, letter and chr(ord(letter) + place))
        panel(axes, curve)
        if panel is not _times and axes.axison:
            axes.set_xlabel(text("plot.labelled_scans"))
            axes.locator_params(axis="x", integer=True, nbins=7)
            axes.set_xlim(*_span(curve))
            axes.grid(alpha=0.25, linewidth=0.5)
        if panel in QUALITY:
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(name, handle)
    if handles:
        if any(str(drawn.get_gid()).startswith("intervals-") for axes in found for drawn in axes.collections):
            mark = {"color": GREY, "marker": "|", "markersize": 7, "markeredgewidth": 0.9, "linestyle": "none"}
            handles[text("plot.interval")] = found[0].plot([], [], **mark)[0]
        canvas.legend(
            list(handles.values()), list(handles), loc="outside lower center", frameon=False, handlelength=2.6
        )


def _span(curve: Mapping[str, Any]) -> tuple[float, float]:
    """Range of the axis of labels, the same in all panels."""
    rows = [*_rows(curve), *(curve.get("control") or ())]
    at = [float(r["labels"]) for r in rows if number(r.get("labels")) is not None]
    low, high = min(at, default=0.0), max(at, default=1.0)
    pad = max(1.0, 0.06 * (high - low))
    return low - pad, high + pad


def dice_panel(axes: Axes, curve: Mapping[str, Any]) -> None:
    _quality(axes, curve, "dice", "dice")
    axes.set_ylabel("Dice (0 to 1)")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.0) if high > 1 else high)


def _millimetres(axes: Axes, curve: Mapping[str, Any]) -> None:
    _distance(axes, curve, "mm")


def _pixels(axes: Axes, curve: Mapping[str, Any]) -> None:
    _distance(axes, curve, "px")


def _mixed_units(axes: Axes, curve: Mapping[str, Any]) -> None:
    show_sentence(axes, text("plot.mixed_units"))


def rates_panel(axes: Axes, curve: Mapping[str, Any]) -> None:
    """What the accepted models miss, and their false alarms, each as a share of the scans that it can happen on."""
    models = [m for m in curve.get("models") or () if m.get("accepted")]
    for name, colour, marker, line in (
        ("miss_rate", PALETTE[3], "v", "-"),
        ("false_alarm_rate", PALETTE[2], "^", "--"),
    ):
        rows = [m for m in models if number(m.get(name)) is not None]
        _line(axes, rows, name, name, text(f"plot.{name}"), color=colour, marker=marker, linestyle=line)
    axes.set_ylabel(text("plot.rates"))
    axes.set_ylim(-0.04, 1.04)


DISTANCE_PANELS: tuple[Panel, ...] = (_millimetres, _pixels, _mixed_units)
QUALITY: tuple[Panel, ...] = (dice_panel, *DISTANCE_PANELS, rates_panel)  # they share one legend


def _distance(axes: Axes, curve: Mapping[str, Any], unit: str) -> None:
    """HD95 of the rows in this unit: px and mm never share an axis."""
    _quality(axes, curve, "hd95", "hd95" if curve.get("unit") != "mixed" else f"hd95-{unit}", unit)
    axes.set_ylabel(f"HD95 ({unit})")
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    rows = [r for r in _rows(curve) if _unit(curve, r) == "mixed"]
    if lost := sum(1 for r in rows if number(r.get("dice")) is not None):
        axes.set_title(text("plot.without_mean", count=lost), loc="right", fontsize=SMALL)


def _unit(curve: Mapping[str, Any], row: Mapping[str, Any] | None) -> str:
    """Unit of a row's distances."""
    return str((row or {}).get("unit") or curve.get("unit") or "px")


def _quality(axes: Axes, curve: Mapping[str, Any], name: str, gid: str, unit: str | None = None) -> None:
    """One measure of the models, of the masks shown, and of the control trials; only rows in this unit."""

    def fits(row: Mapping[str, Any] | None) -> bool:
        return unit is None or _unit(curve, row) == unit

    models = [m for m in curve.get("models") or () if number(m.get(name)) is not None and fits(m)]
    accepted = [m for m in models if m.get("accepted")]
    rejected = [m for m in models if not m.get("accepted")]
    blue, red = PALETTE[0], PALETTE[5]
    _line(axes, accepted, name, f"{gid}-models", text("plot.model"), color=blue, marker="o", linestyle="-")
    _line(
        axes,
        rejected,
        name,
        f"{gid}-models-not-taken",
        text("plot.not_accepted"),
        color=blue,
        marker="o",
        markerfacecolor="white",
        linestyle="none",
    )
    shown = [
        s for s in curve.get("shown") or () if None not in (number(s.get(name)), number(s.get("labels"))) and fits(s)
    ]
    _line(
        axes,
        shown,
        name,
        f"{gid}-shown",
        text("plot.shown"),
        aside=STEP * (_span(curve)[1] - _span(curve)[0]),
        color=red,
        marker="s",
        linestyle=(0, (4, 1.5)),
    )
    quick = [row for row in curve.get("quick") or () if number(row.get(name)) is not None and fits(row)]
    _line(axes, quick, name, f"{gid}-quick", text("plot.quick"), color=PALETTE[1], marker="^", linestyle=(0, (1, 1)))
    pairs = [
        (c["labels"], number((c.get("ours") or {}).get(name)), number((c.get("control") or {}).get(name)))
        for c in curve.get("control") or ()
        if number(c.get("labels")) is not None and fits(c.get("ours")) and fits(c.get("control"))
    ]
    whole = [(x, ours, chance) for x, ours, chance in pairs if ours is not None and chance is not None]
    if whole:
        x, ours, chance = (list(column) for column in zip(*whole, strict=True))
        axes.vlines(x, ours, chance, color=GREY, linewidth=0.6, linestyle=(0, (1, 1)), zorder=1)
        style: dict[str, Any] = {"linestyle": "none", "color": DARK, "markersize": 4.4, "zorder": 3}
        axes.plot(x, ours, marker="D", label=text("plot.ours"), **style)
        axes.plot(x, chance, marker="D", markerfacecolor="white", label=text("plot.control"), **style)


def _single(axes: Axes, curve: Mapping[str, Any]) -> None:
    """Dice per label of the accepted models, in the colours of the label config."""
    models = [m for m in curve.get("models") or () if m.get("accepted")]
    there = {name for m in models for name in m.get("classes") or {}}
    names = [name for name in curve.get("labels") or () if name in there]
    names += sorted(there - set(names))
    for place, name in enumerate(names[:LABELS]):
        rows = [
            {"labels": m["labels"], "dice": one.get("dice"), "dice_low": one.get("low"), "dice_high": one.get("high")}
            for m in models
            for one in [(m.get("classes") or {}).get(name) or {}]
            if number(one.get("dice")) is not None
        ]
        shift = place - (min(len(names), LABELS) - 1) / 2
        colour = (curve.get("colours") or {}).get(name) or PALETTE[place % len(PALETTE)]
        style = {"color": colour, "marker": MARKERS[place % len(MARKERS)]}
        style |= {"markeredgecolor": DARK, "markeredgewidth": 0.5}  # also in a pale colour on white
        aside = shift * STEP * (_span(curve)[1] - _span(curve)[0])
        _line(axes, rows, "dice", f"label-{place + 1}", plain(name), aside=aside, linestyle="-", **style)
    if len(names) > LABELS:
        axes.set_title(text("plot.first_labels", shown=LABELS, count=len(names)), loc="right", fontsize=SMALL)
    axes.set_ylabel("Dice per label (0 to 1)")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.0) if high > 1 else high)
    if axes.get_legend_handles_labels()[0]:  # below the axis: inside, "best" does not see the bars
        below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": BELOW_AXIS}
        axes.legend(frameon=False, ncols=3, handlelength=2.2, columnspacing=1.0, **below)


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
    """Values with their intervals: bars, or a band when there are many.

    aside  offset to the right, in labels, so that bars at the same number of labels do not overlap
    """
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
        for low, high in [(number(row.get(f"{name}_low")), number(row.get(f"{name}_high")))]
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
    rows = [("with", text("plot.mask_shown"), "o"), ("without", text("plot.no_mask"), "s")]
    names = []
    for place, (side, name, marker) in enumerate(rows):
        one = times.get(side) or {}
        median, low, high = (number(one.get(key)) for key in ("median", "low", "high"))
        count = one.get("n") or 0
        names.append(text("plot.scans", name=name, count=f"{count:,}"))
        if median is None:
            axes.annotate(
                text("plot.no_data"), (0.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL
            )
            continue
        if low is not None and high is not None:
            bar = axes.hlines([place], [low], [high], color=PALETTE[0], linewidth=0.9)
            bar.set_gid(f"intervals-time-{side}")
        axes.plot([median], [place], marker=marker, color=PALETTE[0], linestyle="none")
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(text("plot.time"))
    axes.set_xlim(0, 1.05 * axes.get_xlim()[1])
    axes.grid(axis="x", alpha=0.25, linewidth=0.5)
