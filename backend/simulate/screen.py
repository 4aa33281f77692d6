"""The screen: strategies compared in minutes, with heads that learn in milliseconds instead of trainings.

A head is ridge regression on frozen features (`ridge_head`). It has no random start. The only luck left is that of the
split and that of random choice, whose Dice is the mean of `DRAWS` orders. Many splits then show differences that a few
trainings cannot. A difference seen here is a candidate, to be confirmed with trainings on other splits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import BadSetting
from backend.learning.ridge_head import Head, PatchPool
from backend.simulate.plan import Split
from backend.simulate.results import ALL_LABELS, LABEL_COLUMN, RANDOM
from sampling import (
    ALPHA,
    BLIND,
    COLD_START,
    EXTRA_SIGNALS,
    WITH_MODEL,
    Clustering,
    Pool,
    choose_clusters,
    find_strategy,
    fit_map,
    strategy_pair,
)

DRAWS = 10  # random orders for each split
TESTED = 120  # test scans for each split
SEEDS = 30  # splits, unless told otherwise
MAPPED = frozenset({"paper", "probcover"})  # with those on the map, the strategies that need it

Found = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # rows of results.csv, rows of picks.csv


def check_strategies(strategies: Sequence[str], budgets: Sequence[int], cold_start: int) -> None:
    """Raises BadSetting for a strategy that needs what only trained models tell."""
    for name in strategies:
        ranked = strategy_pair(name)[1]
        if budgets[-1] > cold_start and len(budgets) > 1 and EXTRA_SIGNALS.get(ranked):
            raise BadSetting(f"the strategy {ranked!r} needs trained models. Compare it without --screen.")


@dataclass(frozen=True)
class Screen:
    """What all splits of a comparison share.

    scans       the patches and masks of N scans
    names       of the scans
    embeddings  (N, D)
    embedder    its name
    groups      (N,) equal for scans of one patient or volume
    strata      (N,), or None
    labels      names
    cold_start  budgets up to this number of labels are chosen in one step, without a model; the others in rounds
    """

    scans: PatchPool
    names: Sequence[str]
    embeddings: NDArray[np.float32]
    embedder: str
    groups: NDArray[np.intp]
    strata: NDArray[np.intp] | None
    labels: Sequence[str]
    strategies: Sequence[str]
    budgets: Sequence[int]
    cold_start: int
    alpha: float = ALPHA

    def run(self, part: Split, seed: int) -> Found:
        """Compare the strategies on one split. Raises BadSetting if its test scans show none of the labels."""
        shown = part.test[self.scans.has[part.test].any(axis=1)]
        if not len(shown):
            raise BadSetting(f"seed {seed}: none of the test scans has foreground, so no Dice can be measured.")
        test = np.sort(np.random.default_rng([seed, len(part.test)]).permutation(shown)[:TESTED])
        pool = self.pool(part, seed)
        rows: list[tuple[str, int, list[Head]]] = [(ALL_LABELS, len(part.pool), [self.scans.fit(part.pool)])]
        picks: list[dict[str, Any]] = []
        orders = [np.random.default_rng([seed, draw]).permutation(part.pool) for draw in range(DRAWS)]
        rows += [(RANDOM, b, [self.scans.fit(order[:b]) for order in orders]) for b in self.budgets]
        for name in self.strategies:
            if name == RANDOM:
                continue
            for budget, chosen, reasons, head in self._choices(name, pool, part, seed):
                rows.append((name, budget, [head]))
                place = {"strategy": name, "embedder": self.embedder, "seed": seed, "budget": budget}
                picks += [
                    place | {"place": i, "name": self.names[part.pool[row]], "reason": why}
                    for i, (row, why) in enumerate(zip(chosen, reasons, strict=True), start=1)
                ]
        dice = self.scans.dice([head for _, _, heads in rows for head in heads], test)
        counted = np.maximum(1, (~np.isnan(dice)).sum(axis=1))
        means: NDArray[Any] = np.where(
            np.isnan(dice).all(axis=1), np.nan, np.nansum(dice, axis=1) / counted
        )  # (heads, labels)
        found, at = [], 0
        for name, budget, heads in rows:
            per_label = means[at : at + len(heads)].mean(axis=0)
            found.append(self._row(name, seed, budget, per_label, len(test)))
            at += len(heads)
        return found, picks

    def _row(self, name: str, seed: int, budget: int, per_label: NDArray[Any], tests: int) -> dict[str, Any]:
        known = {label: {"dice": float(d)} for label, d in zip(self.labels, per_label, strict=True) if np.isfinite(d)}
        row = {"strategy": name, "embedder": "" if name == ALL_LABELS else self.embedder, "seed": seed}
        row |= {"budget": budget, "labels": budget, "dice": float(np.mean([one["dice"] for one in known.values()]))}
        return row | {"hd": "", "hd95": "", "unit": "mixed", "n_test": tests, LABEL_COLUMN: json.dumps(known)}

    def pool(self, part: Split, seed: int) -> Pool:
        """The pool of a split as the strategies see it."""
        vectors = self.embeddings[part.pool]
        n = len(vectors)
        xy: NDArray[np.float64] = np.zeros((n, 2))
        clusters = Clustering(np.zeros(n, np.intp), np.zeros(1, np.intp), {}, 0)
        halves = {half for name in self.strategies for half in strategy_pair(name)}
        if any(half in MAPPED or half.endswith("-map") for half in halves):
            xy = fit_map(vectors, seed=seed).xy
            clusters = choose_clusters(xy, seed=seed)
        strata = None if self.strata is None else self.strata[part.pool]
        return Pool(xy, clusters, vectors, strata, groups=self.groups[part.pool])

    def _choices(
        self, name: str, pool: Pool, part: Split, seed: int
    ) -> list[tuple[int, NDArray[np.intp], list[str], Head]]:
        """(budget, pool rows, reason of each, head) for each budget."""
        cold, ranked = strategy_pair(name)
        found: list[tuple[int, NDArray[np.intp], list[str], Head]] = []
        for budget in self.budgets:
            if not found or budget <= self.cold_start:
                order = find_strategy(COLD_START, cold)(pool, budget, seed=seed)
                chosen, reasons = order.rows, [str(reason) for reason in order.reasons]
            else:
                _, before, why, head = found[-1]
                signals = self._signals(ranked, head, part)
                asked = replace(pool, signals=signals)
                strategy: Callable[..., Any] = find_strategy(WITH_MODEL, ranked)
                ranking = strategy(asked, budget - len(before), chosen=before, alpha=self.alpha, seed=seed)
                chosen = np.concatenate([before, ranking.rows])
                reasons = why + [ranked] * len(ranking.rows)
            found.append((budget, chosen, reasons, self.scans.fit(part.pool[chosen])))
        return found

    def _signals(self, ranked: str, head: Head, part: Split) -> dict[str, NDArray[np.float64]]:
        if ranked in BLIND:
            return {}
        return {"entropy": self.scans.entropy(head, part.pool)}
