"""Which scan to label next: arrays in, row numbers and reasons out."""

from sampling.acquisition import Ranking, rank
from sampling.clustering import Clustering, choose_clusters
from sampling.cold_start import Order, Reason, cold_start_order
from sampling.farthest import farthest_first
from sampling.projection import EmbeddingMap, fit_map
from sampling.strategies import COLD_START, WITH_MODEL, ColdStart, WithModel, find_strategy
from sampling.uncertainty import image_entropy, image_least_confidence, image_margin, image_top_entropy

__all__ = [
    "COLD_START",
    "WITH_MODEL",
    "Clustering",
    "ColdStart",
    "EmbeddingMap",
    "Order",
    "Ranking",
    "Reason",
    "WithModel",
    "choose_clusters",
    "cold_start_order",
    "farthest_first",
    "find_strategy",
    "fit_map",
    "image_entropy",
    "image_least_confidence",
    "image_margin",
    "image_top_entropy",
    "rank",
]
