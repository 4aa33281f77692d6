"""Whether a new model is accepted: it is compared with the active one on scans that neither has learnt from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from backend.facts import Lesson, Scan
from backend.learning.averages import Summary, of_scores
from backend.learning.comparison import MIN_SCANS, Difference, Pair, difference
from backend.learning.evaluation import Scores

QUICK_MODEL = "quick model"  # as the version of a verdict
FIRST_SCANS = 4  # of the first model; 20 labels hold out so many
WORST = 3  # number of labels that a remark names


@dataclass(frozen=True)
class Verdict:
    """The new model compared with the active one, `version`, on scans that neither was trained on.

    new, active  the summary of each (`averages`)
    first        `version` is the quick model, which learns after every label
    """

    version: str
    difference: Difference
    new: Summary
    active: Summary
    first: bool = False

    def accepts(self, tolerance: float) -> bool:
        """Whether the new model draws from now on; it does if there are too few scans to tell.

        The first one is refused if it is worse by more than `tolerance` on average: the quick model, which goes on
        then, is not the worse choice when nothing is certain.
        """
        if self.first:
            return not (self.enough and self.difference.mean < -tolerance)
        return not self.difference.worse(tolerance)

    @property
    def enough(self) -> bool:
        """Whether these are enough scans to tell."""
        return self.difference.scans >= (FIRST_SCANS if self.first else MIN_SCANS)

    def details(self) -> dict[str, Any]:
        """For the details of the new model."""
        return {"version": self.version, **self.active, "difference": asdict(self.difference)}


def judge(
    version: str, pairs: Sequence[tuple[Scores, Scores, str]], names: Sequence[str], *, first: bool = False
) -> Verdict:
    """Compare a new model with the active one, `version`.

    pairs  per scan that neither has learnt from: the scores of the new model, of the active one, and the scan's group
    names  of classes 1..
    """
    found = difference([Pair(new.labels, active.labels, group) for new, active, group in pairs])
    ours, theirs = [new for new, _, _ in pairs], [active for _, active, _ in pairs]
    return Verdict(version, found, of_scores(ours, names), of_scores(theirs, names), first)


def judged(model: Mapping[str, Any]) -> str:
    """The name of the weights that the held-out scans judge: those before the model learnt from these scans too.

    Models of older versions never learnt from them.
    """
    name: str = model["details"].get("judged") or model["fingerprint"]
    return name


def learnt(model: Mapping[str, Any], scans: Iterable[Scan], tasks: Mapping[int, int]) -> set[int | str]:
    """What the weights of `judged` have learnt from: tasks, digests of pixels, and patients or volumes.

    scans, tasks  the scans and the task of each annotation now: older versions recorded the annotations of a model
    """
    held_out = {one["task"] for one in model["details"].get("held_out", [])}
    by_task = {scan.task: scan for scan in scans}
    found: set[int | str] = set()
    for entry in model["trained_on"]:
        if isinstance(entry, str):
            task = tasks.get(int(entry.partition("@")[0]))
            if task not in by_task:
                continue
            entry = Lesson.of(by_task[task], "")
        if entry.task not in held_out:
            found |= {entry.task, entry.digest, entry.group}
    return found - {""}


def has_learnt(known: set[int | str], scan: Scan) -> bool:
    """Whether `learnt` contains this scan, its pixels, or its patient or volume."""
    return not known.isdisjoint({scan.task, scan.digest, scan.group})


def remark(verdict: Verdict | None, accepted: bool) -> str:
    """A remark for people about the decision; "" for none."""
    if verdict is None:
        return ""
    found = verdict.difference
    other = f"the {verdict.version}" if verdict.first else verdict.version
    if not verdict.enough:
        needed = FIRST_SCANS if verdict.first else MIN_SCANS
        return (
            f"Too few scans to tell whether it is better than {other}: {found.scans} that neither has learnt "
            f"from; {needed} are needed. The newer model draws the masks."
        )
    if accepted:
        return ""
    losses = sorted(
        _losses(name, one, verdict.active["per_label"][name]) for name, one in verdict.new["per_label"].items()
    )
    parts = [text for loss, text in losses[:WORST] if loss < 0]
    scans = f"{found.scans} scans that neither has learnt from" if verdict.first else f"{found.scans} held-out scans"
    after = "The quick model draws until a later model draws better" if verdict.first else f"{other} stays active"
    return (
        f"On {scans} it is worse{' than the quick model' if verdict.first else ''} by {-found.mean:.3f} (95 % interval "
        f"{-found.high:.3f} to {-found.low:.3f}): {'; '.join(parts)}. {after}."
    )


def _losses(name: str, new: Summary, active: Summary) -> tuple[float, str]:
    """The sum of the differences of a label, below 0 if the new model is worse, and both in words."""
    total, parts = 0.0, []
    if new["n"]:
        total += new["dice"] - active["dice"]
        parts.append(f"Dice {new['dice']:.3f} against {active['dice']:.3f} on {new['n']} scans with it")
    if new["n_without"] and new["false_alarm_rate"] != active["false_alarm_rate"]:
        total += active["false_alarm_rate"] - new["false_alarm_rate"]
        ours, theirs = (round(one["false_alarm_rate"] * one["n_without"]) for one in (new, active))
        parts.append(f"{ours} false alarms against {theirs} on {new['n_without']} scans without it")
    return total, f"{name}: {', '.join(parts)}"
