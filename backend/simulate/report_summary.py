"""The opening of the simulation report: the answer in a few sentences, and what the run lacks."""

from __future__ import annotations

from collections.abc import Sequence

from backend.simulate.labels_needed import LabelsNeeded
from backend.simulate.method import test_scans, times
from backend.simulate.results import (
    RANDOM,
    Row,
    budgets,
    data_sets,
    missing_models,
)
from backend.simulate.statistics import (
    Comparison,
    verdict,
)
from backend.simulate.text import escaped, listed

DEFAULT = "default"  # the strategy that scanqueue uses unless told otherwise


def summary_section(rows: Sequence[Row], comparisons: Sequence[Comparison], needed: Sequence[LabelsNeeded]) -> str:
    sentences = [_question(rows, comparisons), _answer(comparisons), _saving(comparisons, needed)]
    return f'<section class="short"><h2>In short</h2>{"".join(f"<p>{s}</p>" for s in sentences)}</section>'


def _question(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> str:
    data = data_sets(rows)
    many = len(comparisons)
    ways = f"{many} {'ways' if many != 1 else 'way'} of choosing scans" if many else "No way of choosing scans"
    where = f" on {len(data)} data sets" if len(data) > 1 else ""
    return (
        f"{ways} {'were' if many > 1 else 'was'} compared with choosing at random{where}: each chose "
        f"{listed([str(budget) for budget in budgets(rows)], 'or')} labelled scans, a model was trained on these, "
        f"and its masks were measured on {test_scans(rows)} test scans that it had never seen; "
        f"all of it {times(rows)}."
    )


def _answer(comparisons: Sequence[Comparison]) -> str:
    known = [one for one in comparisons if one.area is not None]
    if not known:
        return (
            "<strong>Nothing can be compared yet</strong>: no strategy shares a repeat and a budget with random choice."
        )
    leading = next((one for one in known if one.arm.strategy == DEFAULT), known[0])
    said = verdict(leading).sentence
    which = "scanqueue's own choice" if leading.arm.strategy == DEFAULT else "the best on average"
    text = f"<strong>{escaped(leading.name)}</strong> ({which}): {escaped(said)}."
    if len(comparisons) > 1:
        kinds = [verdict(one).kind for one in comparisons]
        counted = [
            f"{kinds.count(kind)} {word}"
            for kind, word in (
                ("better", "better than random"),
                ("worse", "worse"),
                ("open", "without a difference that could be shown"),
                ("too few", "with too few repeats to judge"),
            )
            if kind in kinds
        ]
        text += f" Of all {len(comparisons)}: {listed(counted, 'and')}."
    return text


def _saving(comparisons: Sequence[Comparison], needed: Sequence[LabelsNeeded]) -> str:
    if not needed:
        return "How many labels are saved cannot be said, as no model was trained on all labels for comparison."
    data = data_sets(needed)
    if len(data) > 1:
        return "How many labels are saved differs between the data sets; see the tables below."
    known = [one for one in comparisons if one.area is not None]
    leading = next((one.arm for one in known if one.arm.strategy == DEFAULT), known[0].arm if known else None)
    here = [one for one in needed if one.fraction == 0.95 and (one.arm == leading or one.arm.strategy == RANDOM)]
    if not here:
        return "How many labels are saved cannot be said yet."
    parts = [
        f"{escaped(one.name)} {_median_words(one)}" for one in sorted(here, key=lambda o: o.arm.strategy == RANDOM)
    ]
    return f"To reach 95 % of the Dice that all labels of the pool gave, {listed(parts, 'and')}."


def _median_words(one: LabelsNeeded) -> str:
    if not one.repeats:
        return "cannot be judged yet"
    if one.median is None:
        never = f"{one.repeats - one.reached} of {one.repeats} repeats" if one.repeats > 1 else "its only repeat"
        return f"did not get there with its largest budget in {never}"
    most = "at most " if one.at_most else ""
    often = f" (median; reached in {one.reached} of {one.repeats} repeats)" if one.repeats > 1 else ""
    return f"needed {most}{one.median:.0f} labels{often}"


def incomplete_section(rows: Sequence[Row]) -> str:
    said = missing_models(rows)
    if not said:
        return ""
    items = "".join(f"<li>{escaped(sentence)}</li>" for sentence in said)
    return (
        '<section class="notice"><h2>This run is not complete</h2><p>Only repeats and budgets that both sides of a '
        f"comparison have are compared. What is missing:</p><ul>{items}</ul></section>"
    )
