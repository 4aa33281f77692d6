"""Every text of the page, in one place to be read in one sitting and translated later."""

from __future__ import annotations

from typing import Any

TEXTS = {
    "error.unknown_project": (
        "Project {project} is not known here. Connect scanqueue in its Settings > Model in Label Studio."
    ),
    # -- figures
    "plot.no_map": "There is no map yet: no scan has been read.",
    "plot.no_curve": "There is no learning curve yet: no model has been evaluated on held-out scans.",
    "plot.in_queue": "in the queue now ({count})",
    "plot.no_value": "grey: no value yet",
    "plot.first_axis": "t-SNE, first axis (no unit)",
    "plot.second_axis": "t-SNE, second axis (no unit)",
    "plot.labelled_scans": "labelled scans",
    "plot.interval": "95 % interval",
    "plot.mixed_units": "HD95 has no mean: some scans are measured in mm, others in px.",
    "plot.without_mean": "{count} without a mean: in mm and px",
    "plot.model": "model, on held-out scans",
    "plot.not_accepted": "model that was not accepted",
    "plot.shown": "mask shown, against the submitted mask",
    "plot.ours": "scans chosen by the strategy",
    "plot.control": "same number of random scans",
    "plot.first_labels": "the first {shown} of {count} labels",
    "plot.mask_shown": "mask shown",
    "plot.no_mask": "no mask",
    "plot.scans": "{name}\n({count} scans)",
    "plot.no_data": "no data",
    "plot.time": "time per scan (s): median, 95 % interval",
}


def text(key: str, **values: Any) -> str:
    """The text under this key, with its {fields} filled in. Plain text: whoever writes HTML escapes it."""
    return TEXTS[key].format(**values)
