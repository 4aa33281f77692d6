"""For decoder processes: prepare images for the small network of these tests; a white one causes a failure."""

from __future__ import annotations

import os
import signal

import numpy as np
from numpy.typing import NDArray

from backend.errors import StorageFull
from backend.learning.preprocessing import Preprocessing

WANTED = Preprocessing((64, 96), (0.5,) * 3, (0.5,) * 3)


def crash_on_white(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.min() == 255:
        os.kill(os.getpid(), signal.SIGSEGV)
    return WANTED.resized(image)


def no_room_for_white(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.min() == 255:
        raise StorageFull("No space to write pixels.")
    return WANTED.resized(image)
