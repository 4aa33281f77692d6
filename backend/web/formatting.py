"""Values in the format of the page: numbers, times, states and settings. Pure.

Unknown values are None and are written as a dash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from backend.learning.comparison import MIN_SCANS, Difference
from backend.loop.judging import FIRST_SCANS, QUICK_MODEL
from backend.web import texts
from backend.web.problems import grouped
from backend.web.texts import text

NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Control:
    """The control for one setting of a project.

    kind     "share" (a slider and a number), "whole", "number", "text" or "choice"
    preview  whether the first places of the order depend on it
    """

    name: str
    kind: str
    low: float = 0
    high: float | None = None
    step: float = 1
    preview: bool = False

    @property
    def title(self) -> str:
        return text(f"setting.{self.name}")

    @property
    def sentence(self) -> str:
        return text(f"setting.{self.name}_help")


CONTROLS = (
    Control("strategy", "choice", preview=True),
    Control("uncertainty", "choice", preview=True),
    Control("alpha", "share", high=1, step=0.05, preview=True),
    Control("unit", "choice", preview=True),
    Control("one_per_patient", "choice", preview=True),
    Control("control_share", "share", high=0.5, step=0.05),
    Control("stratify_by", "text"),
    Control("round_size", "whole", low=1),
    Control("cold_start_size", "whole", low=1),
    Control("queue_depth", "whole"),
    Control("retrain", "choice"),
    Control("quick_model", "choice"),
    Control("least_dice", "share", high=1, step=0.05),
    Control("tolerance", "number", high=1, step=0.005),
    Control("seed", "whole"),
)


def number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def whole(value: int | None) -> str:
    """A whole number with grouped thousands: 12 345."""
    return NONE if value is None else f"{value:,}".replace(",", "\N{NO-BREAK SPACE}")


def plural(value: int, noun: str) -> str:
    """ "1 scan", "2 scans": a noun under "n." in the texts."""
    return texts.plural(value, noun, whole(value))


def dice(value: float | None) -> str:
    return number(value, 3)


def distance(value: float | None, unit: str | None) -> str:
    """A distance with its unit; distances in different units have no mean."""
    if value is None:
        return text("part.mixed_units") if unit == "mixed" else NONE
    return f"{value:.1f}\N{NO-BREAK SPACE}{unit or ''}".rstrip()


def share(rate: float | None, n: int | None) -> str:
    """ "2 of 3": a rate with the number of scans behind it."""
    return NONE if rate is None or not n else text("part.share", count=whole(round(rate * n)), n=whole(n))


def percent(value: float | None) -> str:
    """A share of the picture: "0.25 %"."""
    return NONE if value is None else f"{100 * value:.2g}\N{NO-BREAK SPACE}%"


def missed(found: Mapping[str, Any]) -> str:
    """ "1 of 9": of the labels in the true masks, those that were not drawn."""
    return _counted(found, "n", lambda one: None if one["sensitivity"] is None else 1 - one["sensitivity"])


def alarms(found: Mapping[str, Any]) -> str:
    """ "2 of 3": of the labels that are not in the true masks, those that were drawn."""
    return _counted(found, "n_without", lambda one: one["false_alarm_rate"])


def _counted(found: Mapping[str, Any], n: str, rate: Callable[[Mapping[str, Any]], float | None]) -> str:
    """The counts of all labels together; of the whole masks where older records have only these."""
    whole_masks = {"n": found.get("n"), "n_without": found.get("n_empty")}
    whole_masks |= {"false_alarm_rate": found.get("false_alarm_rate"), "sensitivity": _sensitivity(found)}
    each = [one for one in (found.get("per_label") or {"": whole_masks}).values() if one[n]]
    shares = [rate(one) for one in each]
    if not each or None in shares:
        return NONE
    total = sum(one[n] for one in each)
    return share(sum((s or 0.0) * one[n] for s, one in zip(shares, each, strict=True)) / total, total)


def _sensitivity(found: Mapping[str, Any]) -> float | None:
    return None if found.get("miss_rate") is None else 1 - found["miss_rate"]


def rates(found: Mapping[str, Any]) -> str:
    """What the mean hides, in a sentence or two: its worst label, misses and false alarms; "" for nothing."""
    told = []
    known = {name: one for name, one in (found.get("per_label") or {}).items() if one["dice"] is not None}
    if len(known) > 1:
        name, worst = min(known.items(), key=lambda item: item[1]["dice"])
        told.append(text("part.worst", label=name, dice=dice(worst["dice"]), scans=plural(worst["n"], "scan")))
    some = found.get("miss_rate") or found.get("false_alarm_rate") or found.get("n_empty")
    for key, counts in (("part.missed", missed(found)), ("part.false_alarms", alarms(found))):
        if some and counts != NONE:
            told.append(text(key, share=counts))
    return " ".join(told)


def against(difference: Mapping[str, Any], other: str = "") -> str:
    """Whether a new model is better than the `other`, from the fields of `comparison.Difference`."""
    found = Difference(**difference)
    scans = plural(found.scans, "scan_unseen")
    needed = FIRST_SCANS if other == QUICK_MODEL else MIN_SCANS
    if found.scans < needed:
        return text("models.few", scans=scans, needed=needed)
    clear = "better" if found.low > 0 else "worse" if found.high < 0 else "equal"
    mean, low, high = (f"{x:+.3f}" for x in (found.mean, found.low, found.high))
    return text(f"models.{clear}", mean=mean, low=low, high=high, scans=scans)


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """ "0.871 to 0.932", or "" when it is not known."""
    return "" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def duration(seconds: float | None) -> str:
    """A rounded duration: "45 s", "3 min 20 s", "2 h 5 min"."""
    if seconds is None:
        return NONE
    total = round(seconds)
    if total < 60:
        return f"{total}\N{NO-BREAK SPACE}s"
    if total < 3600:
        rest = f" {total % 60}\N{NO-BREAK SPACE}s" if total < 600 and total % 60 else ""
        return f"{total // 60}\N{NO-BREAK SPACE}min{rest}"
    rest = f" {total % 3600 // 60}\N{NO-BREAK SPACE}min" if total % 3600 >= 60 else ""
    return f"{total // 3600}\N{NO-BREAK SPACE}h{rest}"


def left(seconds: float | None) -> str:
    """The remaining time of a step, rounded to its precision."""
    if seconds is None:
        return ""
    if seconds < 15:
        return text("part.seconds_left")
    if seconds < 90:
        return text("part.about_seconds_left", seconds=round(seconds / 10) * 10)
    return text("part.about_left", time=duration(round(seconds / 60) * 60))


def ago(seconds: float | None) -> str:
    """How long ago, coarse enough not to change at every reload."""
    if seconds is None:
        return text("part.never")
    if seconds < 15:
        return text("part.just_now")
    if seconds < 60:
        return text("part.minute_ago")
    return text("part.ago", time=duration(seconds // 60 * 60 if seconds < 3600 else seconds // 3600 * 3600))


def moment(value: float | str | None) -> datetime | None:
    """Seconds since 1970 or ISO text as a time in UTC; None if it is neither."""
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
        return None if value is None else datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def iso(value: float | str | None) -> str:
    found = moment(value)
    return found.strftime("%Y-%m-%dT%H:%M:%SZ") if found else ""


def when(value: float | str | None) -> str:
    """ "24 Nov 2026, 14:05 UTC"; the page's script converts it to the reader's time zone."""
    found = moment(value)
    return found.strftime("%-d %b %Y, %H:%M UTC") if found else NONE


def phase(name: str) -> str:
    return texts.texts().get(f"phase.{name}", name)


def phase_help(name: str) -> str:
    return texts.texts().get(f"phase.{name}_help", "")


def advice(name: str) -> str:
    return texts.texts().get(f"advice.{name}", name)


def cure(problem: Mapping[str, Any]) -> tuple[str, str]:
    """A problem, split into its description and its fix."""
    what = str(problem.get("what", ""))
    if problem.get("cure"):
        return what, str(problem["cure"])
    first, stop, rest = what.partition(". ")
    return first + stop.strip(), rest


def value(given: Any) -> str:
    """The value of a setting in readable form."""
    if given is None or given == "":
        return text("part.unset")
    return f"{given:g}" if isinstance(given, float) else str(given)


def curve(found: Mapping[str, Any]) -> str:
    """The learning curve in a sentence, for readers who cannot see the plot."""
    models = [m for m in found["models"] if m["dice"] is not None]
    if not models:
        return text("curve.none")
    first, last = models[0], models[-1]
    labels = plural(last["labels"], "label")
    if len(models) == 1:
        return text("curve.one", dice=dice(first["dice"]), scans=plural(first["n"], "held_out"), labels=labels)
    rise = last["dice"] - first["dice"]
    way = "same" if abs(rise) < 0.0005 else "rise" if rise > 0 else "fall"
    before, start = dice(first["dice"]), whole(first["labels"])
    summary = text(f"curve.{way}", dice=dice(last["dice"]), labels=labels, before=before, first=start)
    if None in (first["hd95"], last["hd95"]):
        return summary
    unit, unit_now = first.get("unit") or found["unit"], last.get("unit") or found["unit"]
    now = distance(last["hd95"], unit_now)
    if unit != unit_now:
        return summary + text("curve.hd95_units", now=now, unit=unit)
    return summary + text("curve.hd95", before=distance(first["hd95"], unit), now=now)


def quick_model(found: Mapping[str, Any]) -> str:
    """What draws masks before the first training."""
    key = "now.quick_model_hidden" if found["hidden"] else "now.quick_model"
    return text(key, labels=plural(found["labels"], "label"), dice=dice(found["dice"]))


WIDTH, HEIGHT = 280, 84  # size of a training curve in SVG units


def training_curve(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The curves of a training: {width, height, lines: [{name, title, points, first, last}], steps, words}.

    The loss is scaled to its maximum, Dice to 0..1. None when there are too few values.
    """
    rows = [h for h in history if h.get("step") is not None]
    if len(rows) < 2:
        return None
    low, high = rows[0]["step"], rows[-1]["step"]
    lines = []
    for name in ("loss", "dice"):
        known = [(h["step"], h[name]) for h in rows if h.get(name) is not None]
        if len(known) < 2:
            continue
        top = 1.0 if name == "dice" else max(v for _, v in known) or 1.0
        points = " ".join(
            f"{(s - low) / max(high - low, 1) * WIDTH:.1f},{HEIGHT - min(max(v / top, 0), 1) * HEIGHT:.1f}"
            for s, v in known
        )
        title = text(f"models.{name}")
        lines.append({"name": name, "title": title, "points": points, "first": known[0][1], "last": known[-1][1]})
    words = [
        text("models.line", name=x["title"], first=number(x["first"], 3), last=number(x["last"], 3)) for x in lines
    ]
    drawn = {"width": WIDTH, "height": HEIGHT, "lines": lines, "steps": high, "words": ", ".join(words)}
    return drawn if lines else None


FILTERS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        *(
            number,
            whole,
            plural,
            dice,
            distance,
            share,
            percent,
            missed,
            alarms,
            rates,
            interval,
            against,
            duration,
            left,
            ago,
            iso,
            when,
        ),
        *(phase, phase_help, advice, cure, grouped, value, quick_model),
    )
}
