"""How a simulation was made and what it cannot say, in plain words: the last part of the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backend.simulate.results import ALL_LABELS, Row, data_sets, of_data
from backend.simulate.statistics import ENOUGH, smallest_p
from backend.simulate.text import listed

REPEATS = """
All was done {times}. For each repeat the scans were split by chance into a pool to choose from and {test} test
scans.{pool} Within a repeat all strategies share the split, the initial weights and the training; only the scans chosen
differ. So differences are taken within repeats (pairs)."""

BY_PATIENT = """
The split keeps all scans of a patient on one side ({groups}), so no model is tested on a patient whose scans it learned
from."""

BY_SCAN = """
Scans were split one by one. If a patient has several, some may be in the pool and others in the test; then every Dice
here is too good, for all strategies alike."""

AREA = """
The mean height of the learning curve: the area under it by trapezoids, with labels on a linear axis as time is, divided
by the range of labels; so it is in units of Dice. With one budget it is the Dice there. It spans the budgets that the
most complete pair has; pairs that were interrupted before do not count."""

DATA_SETS = """
They count equally in every difference, whatever their number of repeats; resampling draws repeats within each of
them."""

INTERVAL = """
What the mean difference might be, had other splits of these same scans been drawn: a percentile bootstrap over repeats,
widened for their small number (Efron and Tibshirani 1993; Hesterberg 2015). In simulations it holds the truth about 93
times in 100 with five repeats, and 95 with ten. With fewer than {enough} it holds it less often, so no verdict is
given."""

TEST = """
Wilcoxon's signed-rank test (1945), exact for few pairs. Many strategies give many chances of a lucky result, so its p
is corrected by Holm's method (1979). Few pairs cannot give a small p, however large the difference: not below {five}
with five, {six} with six, {eight} with eight. So a p above 0.05 from five pairs is no evidence that nothing differs."""

LABELS = """
Read off the curve of each repeat, on straight lines between budgets, where it first reaches the given share of the Dice
of a model trained on all labels of that repeat's pool. "≤" means that the smallest budget was enough already. A repeat
that did not get there counts as later than any budget."""

LIMITS = """
Repeats share the same scans, so they speak for scans like these, not for other hospitals or devices. The best of many
strategies looks better than it is. The labels existed before: how long a scan takes to label, and what an annotator
does with a mask that is shown, is no part of this."""


def method(rows: Sequence[Row], groups: str) -> list[tuple[str, str]]:
    """Headings and paragraphs, as plain text.

    groups  how scans of one patient were kept together; "" when they were not
    """
    sizes = [
        f"{np.mean([row.labels for row in of_data(rows, data) if row.strategy == ALL_LABELS]):.0f}"
        for data in data_sets(rows)
        if any(row.strategy == ALL_LABELS for row in of_data(rows, data))
    ]
    pool = f" The pool held {listed(sizes, 'and')} labelled scans." if sizes else ""
    said = [
        ("Repeats", REPEATS.format(times=times(rows), test=test_scans(rows), pool=pool)),
        ("Patients", BY_PATIENT.format(groups=groups) if groups else BY_SCAN),
        ("What is compared", AREA),
        ("The 95 % interval", INTERVAL.format(enough=ENOUGH)),
        ("The test", TEST.format(**{name: f"{smallest_p(n):.3g}" for name, n in NUMBERS.items()})),
        ("Labels needed", LABELS),
        ("What this cannot say", LIMITS),
    ]
    if len(data_sets(rows)) > 1:
        said.insert(3, ("Several data sets", DATA_SETS))
    return [(heading, " ".join(text.split())) for heading, text in said]


NUMBERS = {"five": 5, "six": 6, "eight": 8}


def times(rows: Sequence[Row]) -> str:
    """How often all was done."""
    repeats = len({row.repeat for row in rows})
    return "once" if repeats == 1 else f"{repeats} times, each with another split of the scans"


def test_scans(rows: Sequence[Row]) -> str:
    """How many scans each model was tested on."""
    sizes = sorted({row.n_test for row in rows})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
