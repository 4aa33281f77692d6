"""Which scan to label next: arrays in, row numbers and reasons out."""

from sampling.acquisition import ALPHA, Ranking, rank
from sampling.clustering import Clustering, choose_clusters
from sampling.cold_start import Order, Reason, cold_start_order
from sampling.farthest import farthest_first
from sampling.pool import Pool
from sampling.projection import EmbeddingMap, fit_map
from sampling.strategies import (
    BLIND,
    COLD_START,
    DEFAULT,
    EMBEDDED,
    EXTRA_SIGNALS,
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
    "WITH_MODEL",
    "Clustering",
    "ColdStart",
    "EmbeddingMap",
    "Order",
    "Pool",
    "Ranking",
    "Reason",
    "WithModel",
    "choose_clusters",
    "class_entropy",
    "cold_start_order",
    "disagreement",
    "farthest_first",
    "find_strategy",
    "fit_map",
    "image_boundary_entropy",
    "image_entropy",
    "image_foreground_entropy",
    "image_least_confidence",
    "image_margin",
    "image_top_entropy",
    "long_ranking",
    "rank",
    "strategy_pair",
    "whole_order",
]
