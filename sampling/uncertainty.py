"""Uncertainty of a model about an image, from the class probabilities of its pixels.

Common arguments:

probabilities  (C, H, W) for one image, (N, C, H, W) for several; C >= 2 classes that sum to 1 at each pixel.
               A model with one sigmoid output p has the two classes 1 - p and p
inside         (H, W) or (N, H, W) bool, True for pixels of the image, False for padding; default: all True

Each returns shape () for one image, (N,) for several, from 0 (certain everywhere) to 1 (uniform everywhere).
Inputs are not modified. Raises ValueError on a bad shape, and, with the image's row, on NaN, on
probabilities outside 0..1 or not summing to 1 (within 0.01, as float16 rounds), and on an empty `inside`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import FloatArray

TOLERANCE = 0.01
TOP_SHARE = 0.1
BAND = 2  # pixels on either side of an edge


def image_entropy(probabilities: FloatArray, inside: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Mean over the image's pixels of -sum p log p, divided by log C.

    Source: Shannon 1948.

    >>> import numpy as np
    >>> float(image_entropy(np.full((2, 4, 4), 0.5)))
    1.0
    """
    return _each_image(probabilities, inside, lambda p: float(_pixel_entropy(p).mean()))


def image_top_entropy(probabilities: FloatArray, inside: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Like `image_entropy`, over the most uncertain tenth of the pixels (at least one).

    A large, certain background does not hide a small lesion with an uncertain outline.

    >>> import numpy as np
    >>> p = np.zeros((2, 1, 20)); p[0] = 1; p[:, 0, :2] = 0.5
    >>> float(image_entropy(p)), float(image_top_entropy(p))
    (0.1, 1.0)
    """

    def top(p: NDArray[np.float64]) -> float:
        entropy = np.sort(_pixel_entropy(p))
        return float(entropy[-max(1, math.ceil(TOP_SHARE * len(entropy))) :].mean())

    return _each_image(probabilities, inside, top)


def image_foreground_entropy(probabilities: FloatArray, inside: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Like `image_entropy`, over the pixels whose likeliest class is not the background (class 0); 0 without any.

    A large, certain background does not dilute it.

    >>> import numpy as np
    >>> p = np.zeros((2, 1, 20)); p[0] = 1; p[:, 0, 0] = 0.4, 0.6; p[:, 0, 1] = 0, 1
    >>> float(image_foreground_entropy(p).round(3))
    0.485
    """

    def foreground(p: NDArray[np.float64]) -> float:
        own = p.argmax(axis=0) > 0
        return float(_pixel_entropy(p[:, own]).mean()) if own.any() else 0.0

    return _each_image(probabilities, inside, foreground)


def image_boundary_entropy(probabilities: FloatArray, inside: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Like `image_entropy`, over the pixels within 2 of an edge between predicted classes; 0 without an edge.

    Every outline is uncertain over a pixel or two; this measures how uncertain, not how long it is.

    >>> import numpy as np
    >>> p = np.zeros((2, 1, 20)); p[0, 0, :10] = 1; p[1, 0, 10:] = 1; p[:, 0, 9] = 0.5
    >>> float(image_boundary_entropy(p))
    0.25
    """
    given = np.asarray(probabilities)
    if given.ndim not in (3, 4):
        return image_entropy(probabilities, inside)  # raises the error
    images = given if given.ndim == 4 else given[None]
    bands = np.stack([_near_edges(image.argmax(axis=0)) for image in images])
    if inside is not None:
        bands &= inside
    found = np.zeros(len(images))
    image_entropy(given, inside)  # validates all pixels, not only the band
    edged = bands.any(axis=(1, 2))
    if edged.any():
        found[edged] = image_entropy(images[edged], bands[edged])
    return found.reshape(given.shape[:-3])


def class_entropy(probabilities: FloatArray, inside: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """(C - 1,) for one image, (N, C - 1) for several: `image_entropy` over the pixels of each foreground class.

    Pixels belong to their likeliest class; a class without pixels counts 0.
    """

    def each(p: NDArray[np.float64]) -> NDArray[np.float64]:
        likeliest, entropy = p.argmax(axis=0), _pixel_entropy(p)
        return np.array([entropy[likeliest == c].mean() if (likeliest == c).any() else 0.0 for c in range(1, len(p))])

    return _each_image(probabilities, inside, each)


def disagreement(maps: NDArray[np.integer], n_classes: int) -> float:
    """1 - mean Dice over all pairs of label maps of one image: 0 = identical, 1 = no overlap.

    maps       (M, H, W) class numbers from M models or M augmentations, M >= 2; not modified
    n_classes  background (0, never scored) included. A class absent from both maps of a pair is skipped; two
               empty maps agree

    Raises ValueError on another shape. Source: 2406.03323 (pairwise Dice of an ensemble).

    >>> import numpy as np
    >>> disagreement(np.array([[[1, 1, 0, 0]], [[1, 1, 0, 0]], [[0, 1, 1, 0]]]), 2)
    0.33333333333333337
    """
    found = np.asarray(maps)
    if found.ndim != 3 or len(found) < 2:
        raise ValueError(f"maps: got shape {found.shape}, wanted (M, H, W) with M >= 2 label maps of one image")
    pairs = []
    for i, first in enumerate(found):
        for second in found[i + 1 :]:
            dices = [
                2 * float(((first == c) & (second == c)).sum()) / both
                for c in range(1, n_classes)
                if (both := float((first == c).sum() + (second == c).sum()))
            ]
            pairs.append(float(np.mean(dices)) if dices else 1.0)
    return 1.0 - float(np.mean(pairs))


def image_least_confidence(probabilities: FloatArray, inside: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Mean over the image's pixels of (1 - max p) * C / (C - 1).

    Source: Lewis & Gale 1994.
    """
    return _each_image(probabilities, inside, lambda p: float((1.0 - p.max(axis=0)).mean()) * len(p) / (len(p) - 1))


def image_margin(probabilities: FloatArray, inside: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Mean over the image's pixels of 1 - (p of the likeliest class - p of the next).

    Source: Scheffer et al. 2001.
    """

    def margin(p: NDArray[np.float64]) -> float:
        ordered = np.sort(p, axis=0)
        return float((1.0 - (ordered[-1] - ordered[-2])).mean())

    return _each_image(probabilities, inside, margin)


def entropies(probabilities: FloatArray) -> dict[str, float]:
    """All of AGGREGATIONS of one image, (C, H, W), for little more than the cost of one of them."""
    given = np.asarray(probabilities)
    image_shape = given.shape[-2:]
    found: dict[str, float] = {}

    def each(p: NDArray[np.float64]) -> float:
        entropy, likeliest = _pixel_entropy(p), p.argmax(axis=0)
        near, own = _near_edges(likeliest.reshape(image_shape)).ravel(), likeliest > 0
        most = max(1, math.ceil(TOP_SHARE * len(entropy)))
        found["image"] = float(entropy.mean())
        found["foreground"] = float(entropy[own].mean()) if own.any() else 0.0
        found["boundary"] = float(entropy[near].mean()) if near.any() else 0.0
        found["top"] = float(np.partition(entropy, -most)[-most:].mean())
        return found["image"]

    if given.ndim != 3:
        raise ValueError(f"probabilities: got shape {given.shape}, wanted (C, H, W), those of one image")
    _each_image(given, None, each)
    return {name: min(1.0, max(0.0, found[name])) for name in AGGREGATIONS}


# Measures of a scan's uncertainty by name. The first is the paper's.
AGGREGATIONS: dict[str, Callable[..., NDArray[np.float64]]] = {
    "image": image_entropy,
    "foreground": image_foreground_entropy,
    "boundary": image_boundary_entropy,
    "top": image_top_entropy,
}


def _near_edges(likeliest: NDArray[np.intp]) -> NDArray[np.bool_]:
    """(H, W), True within `BAND` pixels (4-neighbour steps) of a pixel of another class."""
    edge = np.zeros(likeliest.shape, dtype=bool)
    across, down = likeliest[:, 1:] != likeliest[:, :-1], likeliest[1:] != likeliest[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    for _ in range(BAND - 1):
        wider = edge.copy()
        wider[:, 1:] |= edge[:, :-1]
        wider[:, :-1] |= edge[:, 1:]
        wider[1:] |= edge[:-1]
        wider[:-1] |= edge[1:]
        edge = wider
    return edge


def _pixel_entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C, P) probabilities -> (P,) entropies / log C; 0 log 0 counts 0."""
    from scipy.special import entr  # takes a quarter of a second to load

    entropy: NDArray[np.float64] = entr(p).sum(axis=0) / math.log(len(p))
    return entropy


def _each_image(
    probabilities: FloatArray,
    inside: NDArray[np.bool_] | None,
    measure: Callable[[NDArray[np.float64]], float | NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Apply `measure` to the (C, P) probabilities of each image's pixels, one image at a time."""
    given = np.asarray(probabilities)
    if given.ndim not in (3, 4) or given.shape[-3] < 2 or 0 in given.shape[-2:]:
        raise ValueError(
            f"probabilities: got shape {given.shape}, wanted (C, H, W) or (N, C, H, W) with C >= 2 classes. "
            "For one sigmoid output p, stack 1 - p and p"
        )
    images = given if given.ndim == 4 else given[None]
    mask = np.ones(images.shape[-2:], dtype=bool) if inside is None else np.asarray(inside)
    if mask.dtype != bool or mask.shape not in (images.shape[-2:], (len(images), *images.shape[-2:])):
        raise ValueError(
            f"inside: got {mask.dtype} of shape {mask.shape}, wanted bool of shape {images.shape[-2:]} or "
            f"{(len(images), *images.shape[-2:])}"
        )
    masks = np.broadcast_to(mask, (len(images), *images.shape[-2:]))
    measured = [
        measure(_distributions(image[:, own], row)) for row, (image, own) in enumerate(zip(images, masks, strict=True))
    ]
    found = np.clip(np.array(measured, dtype=np.float64), 0.0, 1.0)
    return found.reshape(given.shape[:-3] + found.shape[1:])


def _distributions(pixels: FloatArray, row: int) -> NDArray[np.float64]:
    p = pixels.astype(np.float64)
    if p.shape[1] == 0:
        raise ValueError(f"inside: row {row} has no True pixel, wanted at least one")
    if not np.isfinite(p).all():
        raise ValueError(f"probabilities: row {row} contains NaN or infinity. Predict that image again")
    if p.min() < -TOLERANCE or p.max() > 1 + TOLERANCE or np.abs(p.sum(axis=0) - 1).max() > TOLERANCE:
        raise ValueError(
            f"probabilities: row {row} is in {p.min():.4g}..{p.max():.4g} with sums over classes in "
            f"{p.sum(axis=0).min():.4g}..{p.sum(axis=0).max():.4g}, wanted 0..1 and sums of 1. "
            "Apply softmax first"
        )
    return np.clip(p, 0.0, 1.0)
