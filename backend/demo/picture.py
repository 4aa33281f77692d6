"""One picture of a finished demonstration: the map with the picks in order, and the results of each round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from backend.demo.simulation import Round


def draw(path: Path, scans: Sequence[dict[str, Any]], rounds: Sequence[dict[str, Any]], seen: Sequence[Round]) -> Path:
    """Write a PNG.

    scans   from GET /api/projects/ID/map: task, x, y, cluster
    rounds  from GET /api/projects/ID/rounds: round, labels, validation
    seen    recorded by the simulated annotators
    """
    figure = Figure(figsize=(15, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _map(left, scans, seen)
    _curve(right, rounds, seen)
    figure.savefig(path, dpi=110)
    return path


def _map(axes: Axes, scans: Sequence[dict[str, Any]], seen: Sequence[Round]) -> None:
    place = {scan["task"]: (scan["x"], scan["y"]) for scan in scans}
    axes.scatter(
        [scan["x"] for scan in scans],
        [scan["y"] for scan in scans],
        c=[scan["cluster"] if scan["cluster"] is not None else -1 for scan in scans],
        cmap="tab20",
        s=34,
        alpha=0.45,
        linewidths=0,
    )
    order = 0
    shades = ("#222222", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2")
    for this in seen:
        colour = shades[this.number % len(shades)]
        picked = [label.task for label in this.labels if label.task in place]
        axes.scatter(
            [place[task][0] for task in picked],
            [place[task][1] for task in picked],
            s=95,
            facecolors="none",
            edgecolors=colour,
            linewidths=1.6,
            label=f"round {this.number}: {len(picked)} labelled" if picked else None,
        )
        for task in picked:
            order += 1
            axes.annotate(
                str(order),
                place[task],
                textcoords="offset points",
                xytext=(5, 4),
                fontsize=8,
                color=colour,
            )
    axes.set_title("The map: colour = cluster, number = order of labelling")
    axes.set_xticks([])
    axes.set_yticks([])
    if order:
        axes.legend(loc="best", fontsize=8)


def _curve(axes: Axes, rounds: Sequence[dict[str, Any]], seen: Sequence[Round]) -> None:
    held_out = [
        (entry["labels"], entry["validation"]["dice"])
        for entry in rounds
        if (entry.get("validation") or {}).get("dice") is not None
    ]
    shown = [(this.labels_before, score) for this in seen if (score := this.mean("dice")) is not None]
    for points, others, name, style in (
        (held_out, dict(shown), "held-out validation scans", "s--"),
        (shown, dict(held_out), "masks shown to the annotators", "o-"),
    ):
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name)
            for labels, score in points:
                axes.annotate(
                    f"{score:.3f}",
                    (labels, score),
                    textcoords="offset points",
                    xytext=(0, 8 if score >= others.get(labels, 0) else -14),  # the upper one's above, else below
                    ha="center",
                    fontsize=8,
                )
    axes.set_title("Quality of each round's model")
    axes.set_xlabel("labels when the round was opened")
    axes.set_ylabel("mean Dice")
    if points := held_out + shown:
        axes.set_xticks(sorted({labels for labels, _ in points}))
        axes.set_ylim(max(0.0, min(score for _, score in points) - 0.05), 1.0)
    axes.margins(x=0.1)
    axes.grid(alpha=0.3)
    if held_out or shown:
        axes.legend(loc="lower right")
