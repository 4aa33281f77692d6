"""Which scan to label next: arrays in, row numbers and reasons out."""

from sampling.acquisition import ALPHA, Ranking, rank
from sampling.clustering import Clustering, choose_clusters
from sampling.cold_start import Order, Reason, cold_start_order
from sampling.control import control_places, evenly_spread, with_controls
from sampling.farthest import farthest_first
from sampling.likeness import alike
from sampling.pool import Pool
from sampling.projection import EmbeddingMap, fit_map
from sampling.stopping import (
    Hint,
    Point,
    agreement,
    agreement_sample,
    expected_gain,
    fit_curve,
    labels_worth,
    stopping_hint,
)
from sampling.strategies import (
    BLIND,
    COLD_START,
    DEFAULT,
    EMBEDDED,
    EXTRA_SIGNALS,
    GROUPED,
    WITH_MODEL,
    ColdStart,
    WithModel,
    find_strategy,
    long_ranking,
    strategy_pair,
    whole_order,
)
from sampling.uncertainty import (
    AGGREGATIONS,
    class_entropy,
    disagreement,
    entropies,
    image_boundary_entropy,
    image_entropy,
    image_foreground_entropy,
    image_least_confidence,
    image_margin,
    image_top_entropy,
)

__all__ = [
    "AGGREGATIONS",
    "ALPHA",
    "BLIND",
    "COLD_START",
    "DEFAULT",
    "EMBEDDED",
    "EXTRA_SIGNALS",
    "GROUPED",
    "WITH_MODEL",
    "Clustering",
    "ColdStart",
    "EmbeddingMap",
    "Hint",
    "Order",
    "Point",
    "Pool",
    "Ranking",
    "Reason",
    "WithModel",
    "agreement",
    "agreement_sample",
    "alike",
    "choose_clusters",
    "class_entropy",
    "cold_start_order",
    "control_places",
    "disagreement",
    "entropies",
    "evenly_spread",
    "expected_gain",
    "farthest_first",
    "find_strategy",
    "fit_curve",
    "fit_map",
    "image_boundary_entropy",
    "image_entropy",
    "image_foreground_entropy",
    "image_least_confidence",
    "image_margin",
    "image_top_entropy",
    "labels_worth",
    "long_ranking",
    "rank",
    "stopping_hint",
    "strategy_pair",
    "whole_order",
    "with_controls",
]
