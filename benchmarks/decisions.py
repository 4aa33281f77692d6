"""Are the loop's decisions right: which of two models draws, and when more labels are no longer worth it?

200 simulated projects for each question, built from the scores of `benchmarks/curves.csv` (real trainings): the
held-out scans of a project are a random part of a model's test scans, and all test scans tell the truth. In a
*screening* project one scan in ten has a finding.

Which model draws: the rule of `backend.learning.comparison` against the former one (a lower Dice on the scans with
foreground, or on all scans, where an empty scan counts 1 unless something was drawn). The models are successive ones.
In a tenth of the projects the new training failed and draws nothing, in a third of the screening projects the active
one does.

When to stop: `sampling.stopping_hint` after each model of a project until its first "stop", against the former rule,
whose gain was that of a round. Both are told that successive models agree, so the learning curve alone decides. The
true gain is that of a power law fitted to the mean of all recorded models with the same number of labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.learning.comparison import Pair, difference
from backend.learning.evaluation import LabelScore
from benchmarks.curves import Floats, Model, read_models
from benchmarks.measure import report, rounded, summary
from sampling import Hint, Point, expected_gain, fit_curve, stopping_hint
from sampling.stopping import WORTH, Curve, step_after

PROJECTS = 200
TOLERANCE = 0.01  # the default of the setting, and the margin within which a decision counts as right
POSITIVE = 0.1  # share of the scans of a screening project that have a finding
ROUNDS = (10, 20, 40)  # labels
HELD_OUT = 0.2
ALARM = 0.1  # drawn share of a half picture from which it counts as a false alarm
RESAMPLES = 1000


# -- which of two models draws ----------------------------------------------------------------


@dataclass(frozen=True)
class Duel:
    """An active and a new model: their scores on the held-out scans, and how good they truly are.

    dice   (active, new) on the same scans with foreground
    area   (active, new) drawn share on the same scans without
    truth  (active, new) merit over all test scans, 0..1
    """

    dice: tuple[Floats, Floats]
    area: tuple[Floats, Floats]
    truth: tuple[float, float]


def duels(models: Sequence[Model], screening: bool, count: int, random: np.random.Generator) -> Iterator[Duel]:
    """Successive models of a repeat, compared on a fifth of the labels of the new one."""
    usable = [m for m in models if len(m.area) or not screening]
    per = round(1 / POSITIVE) if screening else 1  # labels for one with a finding
    found = 0
    while found < count:
        new = usable[random.integers(len(usable))]
        before = new.labels - int(_any(random, ROUNDS))
        active = next((m for m in usable if (m.data, m.seed, m.labels) == (new.data, new.seed, before)), None)
        if active is None:
            continue
        scores = [(active.dice, active.area), (new.dice, new.area)]
        nothing = (np.zeros_like(new.dice), np.zeros_like(new.area))
        if found % 10 == 9:
            scores[1] = nothing
        elif screening and found % 3 == 0:
            scores[0] = nothing
        found += 1
        fair = max(1, round(HELD_OUT * new.labels))
        if screening:
            fair = min(fair, len(new.area) // (per - 1))
        with_ = random.permutation(len(new.dice))[:fair]
        without = random.permutation(len(new.area))[: fair * (per - 1)]
        yield Duel(
            (scores[0][0][with_], scores[1][0][with_]),
            (scores[0][1][without], scores[1][1][without]) if screening else (np.empty(0), np.empty(0)),
            (_merit(*scores[0], screening), _merit(*scores[1], screening)),
        )


def _merit(dice: Floats, area: Floats, screening: bool) -> float:
    """Mean Dice of the findings; in a screening project the mean of that and of the share without a false alarm."""
    found = float(dice.mean())
    return (found + float((area < ALARM).mean())) / 2 if screening else found


def new_rule(duel: Duel) -> bool:
    """Whether the new model draws from now on."""
    pairs = [
        *(Pair(_score(True, new), _score(True, active)) for active, new in zip(*duel.dice, strict=True)),
        *(Pair(_score(False, new), _score(False, active)) for active, new in zip(*duel.area, strict=True)),
    ]
    return not difference(pairs).worse(TOLERANCE)


def _score(present: bool, value: float) -> dict[int, LabelScore]:
    return {1: LabelScore(present, value > 0 if present else value >= ALARM, value, value if present else None)}


def former_rule(duel: Duel) -> bool:
    """Neither its mean Dice over the scans with foreground, nor that over all scans, is lower by more than 0.01."""
    (active, new), (old_area, new_area) = duel.dice, duel.area
    everything = [
        float(np.concatenate([dice, area < ALARM]).mean()) for dice, area in ((active, old_area), (new, new_area))
    ]
    lower = [everything[0] - everything[1], *([float(active.mean() - new.mean())] if len(active) else [])]
    return max(lower) <= TOLERANCE


def judged(found: Sequence[Duel], rule: Callable[[Duel], bool]) -> Floats:
    """(N,) merit given up by keeping the worse model; 0 where the better one was kept."""
    return np.array([max(duel.truth) - duel.truth[rule(duel)] for duel in found])


# -- when to stop -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """A project after a training: what it can know, and what is true.

    size   labels between two trainings
    true   true gain of a step more labels, see `sampling.stopping.step_after`
    then   recorded gain of the next recorded model over this one, and their distance in labels; None for the last
    """

    points: list[Point]
    size: int
    true: float
    then: tuple[float, int] | None


def projects(models: Sequence[Model], screening: bool, count: int, random: np.random.Generator) -> list[list[Moment]]:
    """Projects with at least three models, each judged on a fifth of its labels."""
    curves = {data: true_curve(models, data) for data in sorted({m.data for m in models})}
    per = round(1 / POSITIVE) if screening else 1  # labels for one with a finding
    found: list[list[Moment]] = []
    while len(found) < count:
        one = models[int(random.integers(len(models)))]
        size = int(_any(random, ROUNDS))
        mine = [m for m in models if (m.data, m.seed) == (one.data, one.seed)]
        used = [m for m in mine if m.labels % size == 0]
        if len(used) < 3:
            continue
        order = random.permutation(len(one.dice))
        points: list[Point] = []
        moments: list[Moment] = []
        for model in used:
            seen = order[: max(1, round(HELD_OUT * model.labels))]
            points.append(Point(model.labels * per, float(model.dice[seen].mean()), len(seen)))
            true = curves[model.data].gain(model.labels, step_after(model.labels * per) / per)
            later = next((m for m in mine if m.labels == model.labels + 20), None)
            then = (float(later.dice.mean() - model.dice.mean()), 20 * per) if later else None
            moments.append(Moment(list(points), size * per, true, then))
        found.append(moments)
    return found


def true_curve(models: Sequence[Model], data: str) -> Curve:
    """The power law of the mean of all recorded models."""
    by_labels: dict[int, list[float]] = {}
    for model in models:
        if model.data == data:
            by_labels.setdefault(model.labels, []).append(float(model.dice.mean()))
    return fit_curve([Point(labels, float(np.mean(dice)), 1000) for labels, dice in by_labels.items()])


def stops_former(moment: Moment, hint: Hint) -> bool:
    """Four models; the next round is expected to gain less than 0.005, and with 97.5 % probability less than 0.01."""
    if len(moment.points) < 4:
        return False
    gain, _, high = _interval(moment, moment.size, hint)
    return gain < WORTH and high < 2 * WORTH


def _interval(moment: Moment, more: int, hint: Hint) -> tuple[float, float, float]:
    """The gain of `more` labels with its interval; that of the hint where it speaks of as many."""
    if more != hint.step:
        return expected_gain(moment.points, more)
    assert hint.gain is not None
    assert hint.low is not None
    assert hint.high is not None
    return hint.gain, hint.low, hint.high


def _any(random: np.random.Generator, things: Sequence[Any]) -> Any:
    return things[int(random.integers(len(things)))]


# -- the table --------------------------------------------------------------------------------


Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Found:
    """The table, {figure: {"new": 0..1, "former": 0..1}}, and the merit that each rule gave up in each duel, (N, 2)."""

    table: Figures
    lost: Floats


def measure(models: Sequence[Model], count: int, seed: int = 0) -> Found:
    """Both questions, for projects in which every scan has a finding and for screening projects."""
    table: Figures = {}
    lost = []
    for kind, screening in (("", False), (", screening", True)):
        random = np.random.default_rng([seed, int(screening)])
        pairs = list(duels(models, screening, count, random))
        made = projects(models, screening, count, random)
        lost.append(np.stack([judged(pairs, new_rule), judged(pairs, former_rule)], axis=1))
        for column, name in enumerate(("new", "former")):
            for what, value in _duel_figures(pairs, lost[-1][:, column]).items():
                table.setdefault(what + kind, {})[name] = value
        table |= {what + kind: values for what, values in _stop_figures(made).items()}
    return Found(table, np.concatenate(lost))


def _duel_figures(pairs: Sequence[Duel], lost: Floats) -> dict[str, float]:
    newer = np.array([duel.truth[1] >= duel.truth[0] for duel in pairs])
    right = lost <= TOLERANCE
    return {
        "better of two models kept": float(right.mean()),
        "... where the new one is better": float(right[newer].mean()),
        "... where the active one is better": float(right[~newer].mean()),
        "merit given up": float(lost.mean()),
    }


def _stop_figures(made: Sequence[Sequence[Moment]]) -> Figures:
    """Figures of both rules, and how often the interval contains the gain.

    The true gain is that of the fitted curve; that of the next recorded training has its own noise.
    """
    stops: dict[str, list[float]] = {"new": [], "former": []}
    true, then = [], []
    for project in made:
        told = {"new": False, "former": False}
        for moment in project[1:]:
            hint = stopping_hint(moment.points, left=1000, agreement=1.0)
            _, low, high = _interval(moment, hint.step, hint)
            true.append(low <= moment.true <= high)
            if moment.then is not None:
                gain, labels = moment.then
                _, low, high = _interval(moment, labels, hint)
                then.append(low <= gain <= high)
            for name in told:
                if not told[name] and (hint.advice == "stop" if name == "new" else stops_former(moment, hint)):
                    told[name] = True
                    stops[name].append(moment.true)
    return {
        "projects told to stop": {name: len(found) / len(made) for name, found in stops.items()},
        "... rightly: a step more gains less than 0.01": {
            name: float(np.mean(np.array(found) < 2 * WORTH)) if found else 1.0 for name, found in stops.items()
        },
        "interval contains the true gain": {"new": float(np.mean(true))},
        "... the next training's": {"new": float(np.mean(then))},
    }


def ratio(lost: Floats, random: np.random.Generator) -> dict[str, float]:
    """Merit given up by the new rule, as a share of the former one's; bootstrap percentiles 10 and 90."""
    drawn = lost[random.integers(len(lost), size=(RESAMPLES, len(lost)))].sum(axis=1)
    new, former = lost.sum(axis=0)
    low, high = np.percentile(drawn[:, 0] / np.maximum(drawn[:, 1], 1e-9), [10, 90])
    return {"ratio": rounded(new / former), "low": rounded(low), "high": rounded(high)}


def main() -> int:
    parser = argparse.ArgumentParser(description="The better model, and when to stop: our rules and the former ones.")
    parser.add_argument("--quick", action="store_true", help="30 projects instead of 200")
    count = 30 if parser.parse_args().quick else PROJECTS
    found = measure(read_models(), count)
    figures = ratio(found.lost, np.random.default_rng(0))
    report(
        f"{count} simulated projects for each question",
        ["", "new", "former"],
        [[what, values["new"], values.get("former", "")] for what, values in found.table.items()],
        summary(
            figures,
            unit="merit given up, share of the former rule's",
            compared="comparison.difference / lower Dice on the scans with foreground, or on all",
            sizes={"projects": count},
            met=figures["ratio"] <= 1,
        ),
    )
    return int(figures["ratio"] > 1)


if __name__ == "__main__":
    raise SystemExit(main())
