"""Which labels a picture or plot shows, and in which colours."""

from __future__ import annotations

from collections.abc import Sequence

from backend.label_config import LabelConfig
from backend.records.store import Store
from backend.web.colours import label_colours


def label_names(store: Store, project: int, *versions: str) -> tuple[str, ...]:
    """The labels of the label config, then further labels of these models; unknown versions have none."""
    config = _config(store, project)
    models = [model for v in versions if (model := store.model_summary(project, v)) is not None]
    return united(config.labels if config else (), *(m["labels"] for m in models))


def legend(store: Store, project: int, names: Sequence[str]) -> dict[str, str]:
    """The colour of each of these labels, the same in every view."""
    config = _config(store, project)
    known = config.labels if config else ()
    others = store.model_labels(project) if set(names) - set(known) else []
    colours = label_colours(united(known, *others, names), config.colors if config else {})
    return {name: colours[name] for name in names}


def united(*labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label for some in labels for label in some))


def _config(store: Store, project: int) -> LabelConfig | None:
    row = store.project(project)
    return LabelConfig.from_json(row["config"]) if row is not None else None
