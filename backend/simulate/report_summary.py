"""Start of the simulation report: a summary in a few sentences, and missing results."""

from __future__ import annotations

from collections.abc import Sequence

from backend.simulate.labels_needed import LabelsNeeded
from backend.simulate.method import test_scans, times
from backend.simulate.results import RANDOM, Row, budgets, data_sets, missing_models
from backend.simulate.statistics import Comparison, verdict
from backend.simulate.text import escaped, listed

DEFAULT = "default"  # default strategy of a project
SCREENED = "This is a screen: masks were drawn by ridge regression on frozen features, and no network was trained."


def summary_section(
    rows: Sequence[Row], comparisons: Sequence[Comparison], needed: Sequence[LabelsNeeded], *, screened: bool = False
) -> str:
    sentences = [_question(rows, comparisons), _answer(comparisons), _saving(comparisons, needed)]
    if screened:
        sentences.insert(1, SCREENED)
    return f'<section class="short"><h2>Summary</h2>{"".join(f"<p>{s}</p>" for s in sentences)}</section>'


def _question(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> str:
    data = data_sets(rows)
    many = len(comparisons)
    ways = f"{many} {'strategies' if many != 1 else 'strategy'}" if many else "No strategy"
    where = f" on {len(data)} data sets" if len(data) > 1 else ""
    return (
        f"{ways} {'were' if many > 1 else 'was'} compared with random choice{where}: each chose "
        f"{listed([str(budget) for budget in budgets(rows)], 'or')} scans, a model was trained on their labels "
        f"and evaluated on {test_scans(rows)} unseen test scans. The comparison was run {times(rows)}."
    )


def _answer(comparisons: Sequence[Comparison]) -> str:
    known = [one for one in comparisons if one.area is not None]
    if not known:
        return (
            "<strong>Nothing can be compared yet</strong>: no strategy shares a repeat and a budget with random choice."
        )
    leading = next((one for one in known if one.arm.strategy == DEFAULT), known[0])
    sentence = verdict(leading).sentence
    which = "scanqueue's default" if leading.arm.strategy == DEFAULT else "best on average"
    text = f"<strong>{escaped(leading.name)}</strong> ({which}): {escaped(sentence)}."
    if len(comparisons) > 1:
        kinds = [verdict(one).kind for one in comparisons]
        counted = [
            f"{kinds.count(kind)} {word}"
            for kind, word in (
                ("better", "better than random"),
                ("worse", "worse"),
                ("open", "without a proven difference"),
                ("too few", "with too few repeats to judge"),
            )
            if kind in kinds
        ]
        text += f" Of all {len(comparisons)} strategies: {listed(counted, 'and')}."
    return text


def _saving(comparisons: Sequence[Comparison], needed: Sequence[LabelsNeeded]) -> str:
    if not needed:
        return "The number of labels saved is unknown, because no model was trained on all labels for comparison."
    data = data_sets(needed)
    if len(data) > 1:
        return "The number of labels saved differs between the data sets; see the tables below."
    known = [one for one in comparisons if one.area is not None]
    leading = next((one.arm for one in known if one.arm.strategy == DEFAULT), known[0].arm if known else None)
    here = [one for one in needed if one.fraction == 0.95 and (one.arm == leading or one.arm.strategy == RANDOM)]
    if not here:
        return "The number of labels saved is not known yet."
    parts = [
        f"{escaped(one.name)} {_median_words(one)}" for one in sorted(here, key=lambda o: o.arm.strategy == RANDOM)
    ]
    return f"To reach 95 % of the Dice obtained with all labels of the pool, {listed(parts, 'and')}."


def _median_words(one: LabelsNeeded) -> str:
    if not one.repeats:
        return "cannot be judged yet"
    if one.median is None:
        never = f"{one.repeats - one.reached} of {one.repeats} repeats" if one.repeats > 1 else "its only repeat"
        return f"did not reach it with its largest budget in {never}"
    most = "at most " if one.at_most else ""
    often = f" (median; reached in {one.reached} of {one.repeats} repeats)" if one.repeats > 1 else ""
    return f"needed {most}{one.median:.0f} labels{often}"


def incomplete_section(rows: Sequence[Row]) -> str:
    missing = missing_models(rows)
    if not missing:
        return ""
    items = "".join(f"<li>{escaped(sentence)}</li>" for sentence in missing)
    return (
        '<section class="notice"><h2>This run is incomplete</h2><p>Comparisons use only the repeats and budgets '
        f"that both sides have. Missing results:</p><ul>{items}</ul></section>"
    )
