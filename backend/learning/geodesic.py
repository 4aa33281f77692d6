"""A mask from clicks, boxes and strokes by shortest paths: no weights, no training.

Two seed sets, inside and outside the finding, spread over the picture; a step costs the more, the more the brightness
changes. A pixel belongs to the set that reaches it at the lower cost (Protiere & Sapiro 2007; Bai & Sapiro 2009). A
mask that is there already seeds both sets away from its outline and from clicks that contradict it, and changes around
these clicks only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from backend.formats.pixels import Letterboxed

SIDE = 192  # pixels of the longer side on which paths are searched
CONTRAST = 2.0  # cost of a change by one standard deviation of the picture
LENGTH = 4.0  # cost of a path along the longer side of a picture without contrast
BAND = 0.8  # width of the undecided band around an outline, in half widths of that part of the mask
REACH = 3.0  # a click changes a mask up to so many times its own distance from the outline
WRONG = (0.5, 2.0)  # an error this wide, in half widths of the mask, says that all of it is wrong
NARROW = 3.0  # pixels: an error less wide shows nothing about the rest of a mask, as clicks are not more exact
MAIN = 0.5  # a part of a mask at least so large, compared with the largest one, is a main one
REPLAYED = 20  # clicks from blank that are taken one after the other; those before them are taken together
SOME = 20  # places on a stroke that may contradict the mask
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))

Mask = NDArray[np.bool_]
Point = tuple[float, float]  # (row, column) in pixels of the scan
Clicks = list[tuple[bool, Point]]  # whether it is inside, place
Window = tuple[slice, slice]


class Contradiction(NamedTuple):
    """A place that was clicked, or is on a stroke, and that the mask shows otherwise.

    distance  from the outline, in pixels
    error     width of the error that it shows, in half widths of the mask
    """

    at: tuple[int, int]
    distance: float
    error: float

    @property
    def far(self) -> bool:
        """Whether it shows that all of that part of the mask is wrong."""
        return self.distance >= NARROW and WRONG[0] <= self.error < WRONG[1]


@dataclass
class Seeds:
    """What people said about one finding, in pixels of the scan (H, W).

    inside, outside          clicks, in the order of time; see `click`
    sides                    of all clicks in the order of time, whether they are inside
    drawn_in, drawn_out      pixels that a stroke covered
    boxes                    masks of boxes: the finding is inside, and fills them roughly
    current                  the mask so far; None without one
    """

    inside: list[Point] = field(default_factory=list)
    outside: list[Point] = field(default_factory=list)
    drawn_in: list[Mask] = field(default_factory=list)
    drawn_out: list[Mask] = field(default_factory=list)
    boxes: list[Mask] = field(default_factory=list)
    current: Mask | None = None
    sides: list[bool] = field(default_factory=list)

    def click(self, at: Point, *, inside: bool) -> None:
        """Add a click, later than the others."""
        (self.inside if inside else self.outside).append(at)
        self.sides.append(inside)

    def clicks(self) -> Clicks:
        """(whether it is inside, place) in the order of time, as far as it is known."""
        rest = {True: deque(self.inside), False: deque(self.outside)}
        found = [(side, rest[side].popleft()) for side in self.sides if rest[side]]
        return found + [(side, at) for side in (True, False) for at in rest[side]]

    @property
    def given(self) -> bool:
        """Whether anything tells where the finding is."""
        current = self.current is not None and bool(self.current.any())
        return current or bool(self.inside or self.drawn_in or self.boxes)


class Tool(Protocol):
    """Draws masks of one scan."""

    height: int
    width: int

    def mask(self, seeds: Seeds) -> Mask:
        """(height, width): the finding. Every click inside is in it, and every click outside is not."""
        ...


class Geodesic:
    """The paths of one scan, ready for any number of prompts.

    scan  in a working square of SIDE pixels or more
    """

    def __init__(self, scan: Letterboxed) -> None:
        self.height, self.width = scan.original_height, scan.original_width
        scale = SIDE / max(self.height, self.width)
        self.shape = max(1, round(self.height * scale)), max(1, round(self.width * scale))
        picture = scan.pixels[scan.content].astype(np.float32)
        small = cv2.resize(picture, self.shape[::-1], interpolation=cv2.INTER_AREA)
        smooth = np.asarray(cv2.GaussianBlur(small, (0, 0), 1.0), np.float32).reshape(*self.shape, -1)
        self._last: tuple[Clicks, NDArray[np.uint8]] | None = None  # from blank: clicks, and the bits of the answer
        self._graph = _graph(np.asarray(smooth / (float(smooth.std()) + 1e-6), np.float32))

    def mask(self, seeds: Seeds, *, everywhere: bool = False) -> Mask:
        """(H, W): the finding. Every click inside is in it, and every click outside is not.

        Far from the clicks, a mask that is there stays as it is, but for parts that they show to be wrong as a whole.
        With boxes, nothing outside them is in the finding.

        everywhere  its whole outline moves to where the brightness changes
        """
        if not seeds.given:
            return np.zeros((self.height, self.width), bool)
        current = seeds.current if seeds.current is not None and seeds.current.any() else None
        if current is None and not (seeds.boxes or seeds.drawn_in or seeds.drawn_out):
            return self._from_blank(seeds.clicks())
        whole = self._whole(seeds)
        if not everywhere and not seeds.boxes and current is not None:
            whole = self.near_prompts(whole, current, seeds)
        return self._with_prompts(whole, seeds)

    def _from_blank(self, clicks: Clicks) -> Mask:
        """A later click changes the answer to the earlier ones around itself: else it might spoil all of it."""
        found: Mask = np.zeros((self.height, self.width), bool)
        first, before = max(1, len(clicks) - REPLAYED), self._last
        if first == 1 and before is not None and before[0] == clicks[:-1]:
            first = len(clicks)
            found = np.unpackbits(before[1], count=found.size).reshape(found.shape).astype(bool)
        for count in range(first, len(clicks) + 1):
            seeds, last = Seeds(), Seeds()
            for inside, at in clicks[:count]:
                seeds.click(at, inside=inside)
            last.click(clicks[count - 1][1], inside=clicks[count - 1][0])
            if seeds.given:
                whole = self._whole(seeds)
                found = self._with_prompts(self.near_prompts(whole, found, last) if found.any() else whole, seeds)
        if len(clicks) <= REPLAYED:
            self._last = clicks, np.packbits(found)
        return found

    def _whole(self, seeds: Seeds) -> Mask:
        """`mask` everywhere, but prompts that the grid is too coarse for."""
        inside, outside = self._sets(seeds)
        to_inside, to_outside = self._cost(inside), self._cost(outside)
        lead = np.asarray((to_outside - to_inside) / np.maximum(to_inside + to_outside, 1e-9), np.float32)
        return np.asarray(cv2.resize(lead, (self.width, self.height), interpolation=cv2.INTER_LINEAR) > 0)

    def _with_prompts(self, whole: Mask, seeds: Seeds) -> Mask:
        for masks, value in ((seeds.drawn_in, True), (seeds.drawn_out, False)):
            for one in masks:
                whole[one] = value
        for value, (row, column) in seeds.clicks():
            whole[self._place(row, self.height), self._place(column, self.width)] = value
        return whole

    def near_prompts(self, whole: Mask, current: Mask, seeds: Seeds) -> Mask:
        """`current` with those changes of `whole` that belong to a click or stroke.

        Clicks inside add, and clicks outside take away. Where a part of `current` is wrong as a whole, `whole` replaces
        it; other parts stay.
        """
        near = np.zeros_like(current)
        for one in self._contradictions(current, seeds):
            if whole[one.at] != current[one.at]:
                reach = max(3, round(REACH * one.distance))
                around = _around(one.at, reach)
                changed = (whole[around] != current[around]) & (current[around] == current[one.at])
                near[around] |= _part_around(changed, one.at, around, reach)
            if one.far:
                near |= _wrong_part(whole, current, one.at)
        return np.where(near, whole, current)

    def wrong(self, current: Mask, seeds: Seeds) -> bool:
        """Whether a click or stroke shows that a part of this mask, which is not empty, is wrong as a whole.

        It does where it contradicts the mask far from its outline; farther, it is about another finding. A click near
        an earlier one refines what that one changed, and says no more about the mask than that one.
        """
        return any(one.far for one in self._contradictions(current, seeds))

    def _contradictions(self, current: Mask, seeds: Seeds) -> Iterator[Contradiction]:
        half_width = float(_distances(current, _window(current, ())).max())
        for points, strokes, side in ((seeds.inside, seeds.drawn_in, False), (seeds.outside, seeds.drawn_out, True)):
            clicks = [[(self._place(row, self.height), self._place(column, self.width))] for row, column in points]
            prompts = [[at for at in some if current[at] == side] for some in [*clicks, *map(_some_of, strokes)]]
            if not any(prompts):
                continue
            window = _window(current, [at for some in prompts for at in some])
            distance = _distances(current if side else ~current, window)
            top, left = window[0].start, window[1].start
            earlier: list[Contradiction] = []
            for some in prompts:
                found = [_contradiction(at, distance[at[0] - top, at[1] - left], half_width, earlier) for at in some]
                earlier += found
                yield from found

    def within_boxes(self, whole: Mask, seeds: Seeds) -> Mask:
        """`whole` without what is outside the boxes, but with clicks and strokes there; `whole` without boxes."""
        if not seeds.boxes:
            return whole
        kept = np.logical_or.reduce([*seeds.boxes, *seeds.drawn_in])
        for row, column in seeds.inside:
            kept[self._place(row, self.height), self._place(column, self.width)] = True
        return np.asarray(whole & kept)

    @staticmethod
    def _place(position: float, size: int) -> int:
        return min(size - 1, max(0, int(position)))

    def _small(self, mask: Mask) -> Mask:
        """A mask on the grid of the paths; something thin is not lost."""
        shares = cv2.resize(mask.astype(np.float32), self.shape[::-1], interpolation=cv2.INTER_AREA)
        return np.asarray(shares >= 0.5 if (shares >= 0.5).any() else shares > 0)

    def _at(self, point: Point) -> tuple[int, int]:
        rows, columns = self.shape
        row, column = point[0] * rows / self.height, point[1] * columns / self.width
        return self._place(row, rows), self._place(column, columns)

    def _sets(self, seeds: Seeds) -> tuple[Mask, Mask]:
        """The seeds (inside, outside) on the grid; clicks and strokes win over all else, later ones over earlier."""
        inside: Mask = np.zeros(self.shape, bool)
        outside: Mask = np.zeros(self.shape, bool)
        within, without = [self._at(p) for p in seeds.inside], [self._at(p) for p in seeds.outside]
        strokes = [(self._small(one), True) for one in seeds.drawn_in]
        strokes += [(self._small(one), False) for one in seeds.drawn_out]
        if seeds.current is not None and seeds.current.any():
            said = {value: [at for one, v in strokes if v is value for at in _some_of(one)] for value in (True, False)}
            inside, outside = _core(self._small(seeds.current), [*within, *said[True]], [*without, *said[False]])
        for box in map(self._small, seeds.boxes):
            inside |= _core(box, [], [])[0]
            outside &= ~box
        if seeds.boxes:
            outside |= ~np.logical_or.reduce([self._small(box) for box in seeds.boxes])
        elif not outside.any():
            outside[[0, -1]], outside[:, [0, -1]] = True, True
        for stroke, value in strokes:
            inside[stroke], outside[stroke] = value, not value
        for value, point in seeds.clicks():
            at = self._at(point)
            inside[at], outside[at] = value, not value
        return inside, outside

    def _cost(self, seeds: Mask) -> NDArray[np.float64]:
        found = np.flatnonzero(seeds)
        if not len(found):  # farther than anything else
            return np.full(self.shape, 1e9)
        cost: NDArray[np.float64] = dijkstra(self._graph, indices=found, min_only=True)
        return cost.reshape(self.shape)


def _graph(picture: NDArray[np.float32]) -> csr_matrix:
    """The costs between neighbouring pixels of a picture (h, w, channels)."""
    rows, columns = picture.shape[:2]
    number = np.arange(rows * columns).reshape(rows, columns)
    starts, ends, costs = [], [], []
    for down, across in NEIGHBOURS:
        here = (slice(0, rows - down), slice(max(0, -across), columns - max(0, across)))
        there = (slice(down, rows), slice(max(0, across), columns + min(0, across)))
        change = np.abs(picture[here] - picture[there]).max(axis=-1)
        starts.append(number[here].ravel())
        ends.append(number[there].ravel())
        costs.append((np.hypot(down, across) * LENGTH / max(rows, columns) + CONTRAST * change).ravel())
    start, end, cost = map(np.concatenate, (starts, ends, costs))
    both = (np.concatenate([start, end]), np.concatenate([end, start]))
    return csr_matrix((np.concatenate([cost, cost]), both), shape=(number.size, number.size))


def _contradiction(
    at: tuple[int, int], distance: float, half_width: float, earlier: Iterable[Contradiction]
) -> Contradiction:
    near = (one.error for one in earlier if np.hypot(at[0] - one.at[0], at[1] - one.at[1]) <= REACH * one.distance)
    return Contradiction(at, float(distance), next(near, float(distance) / half_width))


def _wrong_part(whole: Mask, current: Mask, at: tuple[int, int]) -> Mask:
    """Where `whole` replaces `current`, as the error at this place shows.

    A click inside says that the parts are wrong that are one with what it adds; a click outside, the part that it is
    on, or all of them if that is a main one.
    """
    count, part = cv2.connectedComponents(current.astype(np.uint8))
    wrong = np.zeros(count, bool)
    if current[at]:
        sizes = np.bincount(part[current], minlength=count)
        wrong[part[at]] = True
        wrong |= sizes[part[at]] >= MAIN * sizes.max()
        return np.asarray(wrong[_nearest(current, part)])
    _, parts = cv2.connectedComponents(whole.astype(np.uint8))
    added = whole & (parts == parts[at])
    wrong[part[added & current]] = True
    return np.asarray(added | wrong[_nearest(current, part)])


def _nearest(mask: Mask, part: Any) -> NDArray[np.int32]:
    """(H, W): of each pixel, the nearest part of a mask; `part` numbers them from 1."""
    _, nearest = cv2.distanceTransformWithLabels(
        (~mask).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP
    )
    part_of = np.zeros(int(nearest.max()) + 1, np.int32)
    part_of[nearest[mask]] = part[mask]
    return np.asarray(part_of[nearest])


def _window(mask: Mask, places: Sequence[tuple[int, int]]) -> Window:
    """The rectangle around a mask and some places, one pixel wider. Distances to the outline are the same in it."""
    rows = [*np.flatnonzero(mask.any(axis=1))[[0, -1]], *(row for row, _ in places)]
    columns = [*np.flatnonzero(mask.any(axis=0))[[0, -1]], *(column for _, column in places)]
    return slice(max(0, min(rows) - 1), max(rows) + 2), slice(max(0, min(columns) - 1), max(columns) + 2)


def _distances(mask: Mask, window: Window) -> NDArray[np.float32]:
    """Of the pixels of a mask, in pixels, from the others."""
    return np.asarray(cv2.distanceTransform(mask[window].astype(np.uint8), cv2.DIST_L2, 5), np.float32)


def _around(at: tuple[int, int], reach: int) -> Window:
    row, column = (slice(max(0, place - reach), place + reach + 1) for place in at)
    return row, column


def _part_around(mask: Mask, at: tuple[int, int], around: Window, reach: int) -> Mask:
    """The connected part of a mask with this pixel, within a disc; the mask is that of the window around it."""
    centre = at[0] - around[0].start, at[1] - around[1].start
    disc = cv2.circle(np.zeros(mask.shape, np.uint8), centre[::-1], reach, 1, -1)
    _, part = cv2.connectedComponents(disc & mask.astype(np.uint8))
    return np.asarray(part == part[centre])


def _some_of(stroke: Mask) -> list[tuple[int, int]]:
    """Up to SOME places on a stroke."""
    places = np.argwhere(stroke)
    return [(int(row), int(column)) for row, column in places[:: max(1, len(places) // SOME)]]


def _core(mask: Mask, inside: Sequence[tuple[int, int]], outside: Sequence[tuple[int, int]]) -> tuple[Mask, Mask]:
    """The pixels that stay inside and outside a mask, but for a band, and for the surroundings of contradicting clicks.

    A click contradicts the mask as far as its outline.
    """
    count, part = cv2.connectedComponents(mask.astype(np.uint8))
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    height = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    half = np.maximum(0.1, maximum(depth, part, np.arange(count)))  # width of each part of the mask
    band = np.maximum(2.0, BAND * half)
    within = depth >= np.minimum(band, 0.999 * half)[part]
    without = height >= band[_nearest(mask, part)]
    down, across = np.mgrid[: mask.shape[0], : mask.shape[1]]
    kept_in, kept_out = np.ones(mask.shape, bool), np.ones(mask.shape, bool)
    for clicks, kept, distance in ((inside, kept_out, height), (outside, kept_in, depth)):
        for row, column in clicks:
            if distance[row, column] > 0:  # on the other side
                kept &= np.hypot(down - row, across - column) > distance[row, column] + 2
    if not inside and not (within & kept_in).any():  # clicks outside alone take no mask away as a whole
        within = depth >= 0.999 * (depth * kept_in).max()
    return within & kept_in & mask, without & kept_out & ~mask
