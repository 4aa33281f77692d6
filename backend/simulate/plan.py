"""Plan of a comparison: its settings, jobs, and splits into pool and test scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.errors import BadSetting
from backend.settings import Settings
from backend.simulate.labelled import Labelled, read_groups, read_labelled, read_spacing, read_strata
from sampling import AGGREGATIONS, ALPHA, strategy_pair

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Comparison:
    """Settings of a comparison.

    strategies       values of the project setting `strategy`: "default", "random", "COLD+MODEL", ...
    budgets          numbers of labelled scans, ascending
    seeds            one for each repeat
    cold_start_only  choose each budget in one step, without a model. Otherwise as in the service: the first budget is
                     the cold start, and each model ranks the pool for the next
    groups, strata, spacing  tables, see `labelled`
    alpha, uncertainty       as in the project settings
    test_share       share of the scans, in whole groups, that are reserved for testing
    """

    images: Path
    masks: Path
    strategies: tuple[str, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    embedder: str = "auto"
    weights_dir: Path | None = None
    cold_start_only: bool = False
    groups: tuple[str, ...] = ()
    strata: str = ""
    spacing: str = ""
    test_share: float = 0.4
    alpha: float = ALPHA
    uncertainty: str = "image"
    encoder: str = "auto"
    image_size: int = 0
    training_steps: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.strategies or not self.budgets or not self.seeds:
            raise BadSetting("a comparison needs at least one strategy, one budget and one seed")
        for name in self.strategies:
            try:
                strategy_pair(name)
            except ValueError as error:
                raise BadSetting(str(error)) from None
        if list(self.budgets) != sorted(set(self.budgets)) or self.budgets[0] < 1:
            raise BadSetting(f"budgets: got {list(self.budgets)}, wanted whole numbers from 1, ascending")
        if len(set(self.strategies)) < len(self.strategies) or len(set(self.seeds)) < len(self.seeds):
            raise BadSetting("strategies and seeds: each may be given only once")
        if self.uncertainty not in AGGREGATIONS:
            raise BadSetting(f"uncertainty: got {self.uncertainty!r}, wanted one of {', '.join(AGGREGATIONS)}")
        if not 0 <= self.alpha <= 1:
            raise BadSetting(f"alpha: got {self.alpha}, wanted 0 to 1")
        if "stratified" in {strategy_pair(name)[0] for name in self.strategies} and not self.strata:
            raise BadSetting('the strategy "stratified" needs strata: give --strata FILE.csv:COLUMN')
        if not 0 < self.test_share < 1:
            raise BadSetting(f"test share: got {self.test_share}, wanted more than 0 and less than 1")

    def settings(self) -> Settings:
        """Settings of the learner. One thread each, so that results do not depend on the number of processes."""
        return Settings(
            embedder=self.embedder,
            weights_dir=self.weights_dir,
            encoder=self.encoder,
            image_size=self.image_size,
            training_steps=self.training_steps,
            device=self.device,
            threads=1,
        )


@dataclass(frozen=True)
class Job:
    """Unit of work of one process. The strategy ALL_LABELS trains on the whole pool."""

    strategy: str
    seed: int
    budgets: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """Scan rows of one repeat: `pool` may be labelled, `test` is for testing. No group is in both."""

    pool: NDArray[np.intp]
    test: NDArray[np.intp]


def split(groups: NDArray[np.intp], share: float, seed: int) -> Split:
    """Fill the test part with random whole groups up to `share` of the scans."""
    random = np.random.default_rng([seed, len(groups)])
    sizes = np.bincount(groups)
    test: list[int] = []
    filled = 0
    for group in random.permutation(len(sizes)):
        if filled + sizes[group] <= max(1, round(share * len(groups))):
            test.append(int(group))
            filled += sizes[group]
    held = np.isin(groups, test)
    return Split(np.flatnonzero(~held), np.flatnonzero(held))


def checked_split(comparison: Comparison, groups: NDArray[np.intp], seed: int) -> Split:
    """`split`. Raises BadSetting when the pool is smaller than the largest budget, or the test part is empty."""
    found = split(groups, comparison.test_share, seed)
    if len(found.pool) < comparison.budgets[-1] or not len(found.test):
        raise BadSetting(
            f"{len(groups)} scans in {len(np.unique(groups))} groups give {len(found.pool)} pool scans "
            f"and {len(found.test)} test scans; that is too few for a budget of {comparison.budgets[-1]}. "
            "Lower the budgets or the test share."
        )
    return found


def group_names(groups: NDArray[np.intp], names: Sequence[str]) -> list[str]:
    """(N,) name of each scan's group: the first scan name in it; "" for groups of one scan."""
    sizes = np.bincount(groups)
    first: dict[int, str] = {}
    for group, name in sorted(zip(groups.tolist(), names, strict=True), key=lambda one: one[1]):
        first.setdefault(group, name)
    return [first[group] if sizes[group] > 1 else "" for group in groups.tolist()]


def read(
    comparison: Comparison,
) -> tuple[Labelled, NDArray[np.intp], NDArray[np.intp] | None, list[tuple[float, float]] | None]:
    """(scans, groups, strata, spacing), each checked."""
    scans = read_labelled(comparison.images, comparison.masks)
    strata = read_strata(comparison.strata, scans.names) if comparison.strata else None
    groups = read_groups(comparison.groups, scans.names)
    return scans, groups, strata, read_spacing(comparison.spacing, scans.names)
