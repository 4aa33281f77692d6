"""Which slices of a volume are worth looking at."""

from __future__ import annotations

from backend.formats.geometry import Cut
from backend.formats.volume import Volume


def informative(volume: Volume, cut: Cut, k: int) -> list[int]:
    """The k most informative slices of a cut, spread over the volume, in slice order.

    A slice's information is the entropy of its histogram (64 bins over the window that the volume is shown with), less
    that of the emptiest slice. The volume is divided into k stretches of equal information, and from each the slice
    with the most is taken: air around the head is passed over, and neighbours that say the same are not taken together.

    k  how many; all slices when there are fewer

    Returns distinct slice numbers, ascending. Raises ValueError when k < 1.
    """
    raise NotImplementedError
