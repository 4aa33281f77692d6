"""Remarks about what a model could learn from its labelled scans."""

from __future__ import annotations

from collections.abc import Sequence

from backend.formats.fitting import smaller_than_a_pixel
from backend.learning.cases import Case

KNOWN = 5  # scans whose annotators could draw a label, below which its masks are remarked on


def learning_remarks(cases: Sequence[Case], labels: Sequence[str]) -> list[str]:
    """For people: labels that most annotators could not draw yet, and findings that the model can hardly see."""
    remarks = []
    for number, label in enumerate(labels, start=1):
        known = sum(number not in case.unknown for case in cases)
        if known < min(KNOWN, len(cases)):
            remarks.append(
                f"Only {known} of {len(cases)} labelled scans were annotated since the label config has {label!r}: do "
                f"not rely on its masks yet. Annotate {KNOWN - known} more, or submit older annotations again."
            )
    size = max((case.size for case in cases), default=0)
    tiny = [n for case in cases if (n := smaller_than_a_pixel(case.mask, size))]
    if tiny:
        findings, them = ("1 finding", "it") if sum(tiny) == 1 else (f"{sum(tiny):,} findings", "them")
        remarks.append(
            f"{findings} on {len(tiny)} of {len(cases)} labelled scans fill less than a pixel of the {size} x {size} "
            f"pixels that the model sees, so it may miss {them}. A larger SCANQUEUE_IMAGE_SIZE shows more."
        )
    return remarks
