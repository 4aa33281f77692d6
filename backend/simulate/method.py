"""Methods and limits of a simulation in plain words: the last part of the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backend.simulate.results import ALL_LABELS, Row, data_sets, of_data
from backend.simulate.statistics import ENOUGH, smallest_p
from backend.simulate.text import listed

REPEATS = """
The comparison was run {times}. Each repeat splits the scans at random into a pool to choose from and {test} test
scans.{pool} Within a repeat all strategies share the split, the initial weights and the training; only the chosen scans
differ. Differences are therefore calculated within repeats (pairs)."""

SCREEN = "screen"  # learner of a comparison without trainings

SCREENED = """
Nothing was trained. Ridge regression on frozen features of 32 x 32 patches takes the place of the networks. It learns
in milliseconds and has no random start, so that many more repeats are possible. The comparison was run {times}. Each
repeat splits the scans at random into a pool to choose from and test scans ({test} of them are used).{pool} Random
choice is the mean of several random orders. Differences are calculated within repeats (pairs). The order of strategies
need not be the same with trained networks: confirm a difference with scanqueue simulate without --screen."""

SCREEN_MEASURES = """
Dice on a grid of 64 x 64 cells, the mean over the test scans whose mask has the label. Distances, and false alarms on
scans without foreground, are not measured."""

MEASURES = """
Dice, HD and HD95 are means over the test scans whose mask has foreground. A test scan without foreground has nothing to
compare: it shows only whether the model drew something there, which is reported as a false alarm."""

BY_PATIENT = """
All scans of a patient are in the same part of the split ({groups}), so no model is tested on a patient it was trained
on."""

BY_SCAN = """
Scans were split individually. If a patient has several, some may be in the pool and others in the test set; every Dice
is then too high, equally for all strategies."""

AREA = """
The mean height of the learning curve: the area under it (trapezoidal rule, linear label axis) divided by the range of
labels, so its unit is Dice. With one budget it is the Dice at that budget. It spans the budgets of the most complete
pair; pairs without all of these budgets are left out."""

DATA_SETS = """
Every data set has the same weight, whatever its number of repeats; resampling draws repeats within each."""

INTERVAL = """
The uncertainty of the mean difference over random splits of these scans: a percentile bootstrap over repeats, widened
for small samples (Efron and Tibshirani 1993; Hesterberg 2015). In simulations its coverage was about 93 % with five
repeats and 95 % with ten. With fewer than {enough} repeats coverage is lower, so no verdict is given."""

TEST = """
Wilcoxon's signed-rank test (1945), exact for few pairs. With many strategies, some differ by chance, so p values are
corrected by Holm's method (1979). Few pairs cannot give a small p, however large the difference: the minimum is {five}
with five pairs, {six} with six and {eight} with eight. So p > 0.05 with five pairs is no evidence of equality."""

LABELS = """
Where the curve of a repeat first reaches the given share of the Dice of a model trained on all labels of its pool,
interpolated linearly between budgets. "≤" means that the smallest budget was already enough. A repeat that did not
reach the target counts as needing more labels than any budget."""

LIMITS = """
All repeats use the same scans, so the results may not generalise to other hospitals or devices. The best of many
strategies looks better than it is. The labels already existed: annotation time and the effect of suggested masks on
annotators were not measured."""


def method(rows: Sequence[Row], groups: str, learner: str = "") -> list[tuple[str, str]]:
    """Headings and paragraphs, as plain text.

    learner  SCREEN, or "" for trained networks
    groups   how scans of one patient were grouped; "" if they were not
    """
    sizes = [
        f"{np.mean([row.labels for row in of_data(rows, data) if row.strategy == ALL_LABELS]):.0f}"
        for data in data_sets(rows)
        if any(row.strategy == ALL_LABELS for row in of_data(rows, data))
    ]
    pool = f" The pool contained {listed(sizes, 'and')} labelled scans." if sizes else ""
    said = [
        (
            "Repeats",
            (SCREENED if learner == SCREEN else REPEATS).format(times=times(rows), test=test_scans(rows), pool=pool),
        ),
        ("Patients", BY_PATIENT.format(groups=groups) if groups else BY_SCAN),
        ("What is measured", SCREEN_MEASURES if learner == SCREEN else MEASURES),
        ("What is compared", AREA),
        ("The 95 % interval", INTERVAL.format(enough=ENOUGH)),
        ("The test", TEST.format(**{name: f"{smallest_p(n):.3g}" for name, n in NUMBERS.items()})),
        ("Labels needed", LABELS),
        ("Limits", LIMITS),
    ]
    if len(data_sets(rows)) > 1:
        said.insert(4, ("Several data sets", DATA_SETS))
    return [(heading, " ".join(text.split())) for heading, text in said]


NUMBERS = {"five": 5, "six": 6, "eight": 8}


def times(rows: Sequence[Row]) -> str:
    """How many times the comparison was run."""
    repeats = len({row.repeat for row in rows})
    return "once" if repeats == 1 else f"{repeats} times, each with a different split of the scans"


def test_scans(rows: Sequence[Row]) -> str:
    """Number of test scans of each model."""
    sizes = sorted({row.n_test for row in rows})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
