"""Read annotations into masks, and compare each with the mask that the annotator was shown."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnknownLabels, UnreadableMask
from backend.facts import IMPORTED_MASKS, Scan, round_of
from backend.fingerprints import fingerprint
from backend.formats.pixels import classes_in, translate
from backend.label_config import LabelConfig, unknown_classes
from backend.label_studio.listing import Annotation
from backend.label_studio.masks import could_draw, read_annotation, read_mask
from backend.learning.averages import as_row
from backend.learning.clicks import dice
from backend.loop.context import LoopContext
from backend.loop.steps import FEW, ReadMasks, Seen
from backend.records.quick_masks import PROJECT_ROW
from backend.records.scans import scan_of

log = logging.getLogger("scanqueue.reconcile")


class AnnotationReader:
    """Reads annotations and records them as labels."""

    def __init__(self, context: LoopContext) -> None:
        self._context = context

    def read(self, project: int, seen: Seen, step: ReadMasks, between: Callable[[int], None] | None = None) -> None:
        """Do a `ReadMasks` step. An annotation that cannot be read becomes a problem of its task.

        between  called with the project after each annotation but the last, where other projects may also have a turn
        """
        assert seen.config is not None
        store = self._context.store
        rows = {s["task"]: s for s in store.scans_of(project, step.tasks)}
        known = store.could_draw(project)
        total = len(step.tasks)
        for number, found in enumerate(self._context.studio.annotations(project, step.tasks), start=1):
            if isinstance(found, int):
                store.drop_label(project, found, rows[found]["updated_at"])
            else:
                self._read(project, seen, rows[found.task], found, known)
            if total > FEW:  # else it would only replace what is reported of a training
                self._context.report(project, "reading annotations", number, total)
            if between is not None and number < total:
                between(project)
                self._context.give_way(project)

    def _read(
        self, project: int, seen: Seen, scan: Any, found: Annotation, known_before: Mapping[tuple[int, str], str]
    ) -> None:
        """Record what one annotation contains.

        known_before  by task and key, the labels that the config had when this version of the annotation was first
                      read: an annotator could not draw those that were added later
        """
        config, store = seen.config, self._context.store
        assert config is not None
        key = found.key
        known = known_before.get((found.task, key), json.dumps(could_draw(found, config)))
        name, problem, empty = "", "", -1
        remarks: list[str] = []
        unknown: tuple[str, ...] = ()
        try:
            mask, remarks = read_annotation(found, config, scan["height"], scan["width"], seen.renames)
            empty = int(not mask.any())
            content = hashlib.sha256(mask.tobytes()).hexdigest()[:24]
            name = fingerprint(
                content, mask.shape
            )  # without the labels' names: a renamed label is nothing new to learn
            if not store.has("labels", name):
                store.put_arrays("labels", name, mask=mask)
            missing = unknown_classes(known, config.labels, seen.renames)
            if drawn := missing.intersection(classes_in(mask)):  # a label that was lost then, and is there again
                known = json.dumps([*json.loads(known), *(config.labels[n - 1] for n in sorted(drawn))])
                missing -= drawn
            shown = self._compare_shown(project, scan, found, mask, config, key, missing)
            self._compare_correction(project, found.task, shown, mask, config, missing)
        except UnreadableMask as error:
            problem = f"annotation {found.id}: {error}"
            unknown = error.labels if isinstance(error, UnknownLabels) else ()
            log.warning("project %s, task %s: %s", project, found.task, problem)
        store.put_label(
            project,
            {
                "task": found.task,
                "annotation": found.id,
                "key": key,
                "mask": name,
                "empty": empty,
                "read_at": scan["updated_at"],
                "config": config.reading_key(seen.renames),
                "shown_version": found.shown_version,
                "lead_time": found.lead_time,
                "completed_by": found.completed_by,
                "problem": problem,
                "unknown": json.dumps(unknown) if unknown else "",
                "known": known,
                "remark": " ".join(f"annotation {found.id}: {r}" for r in remarks),
            },
        )

    def _compare_shown(
        self,
        project: int,
        scan: Any,
        found: Annotation,
        mask: NDArray[np.uint8],
        config: LabelConfig,
        key: str,
        missing: frozenset[int],
    ) -> NDArray[np.uint8] | None:
        """Record the agreement between the mask shown and the mask submitted.

        Returns the mask shown, with the classes of the config; None if there was none, or if it is not known.
        """
        context, store = self._context, self._context.store
        shown_in = round_of(found.shown_version)
        model = context.model_summary(project, "" if shown_in is None else store.model_of_round(project, shown_in))
        here = scan_of(scan)
        if model is None:
            shown = self._shown_first(project, found, config, (mask.shape[0], mask.shape[1]))
            return self._record_shown(project, found, shown, config.labels, mask, config, key, missing, here)
        # Drawn again if it is not stored: /predict shows masks of scans that were never published.
        kept = store.has("masks", fingerprint(model["fingerprint"], here.digest))
        if not kept and not store.has("models", model["fingerprint"]):
            return None
        context.processor.draw(project, model["fingerprint"], [here])
        shown = context.processor.mask(model["fingerprint"], here)
        return self._record_shown(project, found, shown, model["labels"], mask, config, key, missing, here)

    def _shown_first(
        self, project: int, found: Annotation, config: LabelConfig, shape: tuple[int, int]
    ) -> NDArray[np.uint8] | None:
        """The mask of the quick model that an annotator was shown before the first training.

        As Label Studio has it: our records may be behind it, as after a kill. None for a blank task, an imported mask,
        or regions that do not fit the label config any more.
        """
        context = self._context
        if not found.shown_version or context.store.quick_mask(project, PROJECT_ROW) is None:
            return None
        shown = found.predicted.get(found.shown_version)
        if not shown or found.predicted.get(IMPORTED_MASKS):
            return None
        try:
            return read_mask(shown, config, *shape, context.store.renames(project))[0]
        except UnreadableMask:
            return None

    def _record_shown(
        self,
        project: int,
        found: Annotation,
        shown: NDArray[np.uint8] | None,
        names: Sequence[str],
        mask: NDArray[np.uint8],
        config: LabelConfig,
        key: str,
        missing: frozenset[int],
        here: Scan,
    ) -> NDArray[np.uint8] | None:
        """`names` are those of the classes of `shown`. Returns the mask with the classes of the config."""
        context, store = self._context, self._context.store
        if shown is None or shown.shape != mask.shape:
            return None
        shown = translate(shown, names, config.labels)
        scores = context.learner.compare(shown, mask, len(config.labels) + 1, here.spacing, missing)
        row = {"task": found.task, "version": found.shown_version, "label": key}
        means = {name: getattr(scores, name) or 0.0 for name in ("dice", "hd", "hd95")}  # no mean if label_empty is 1
        empty = {"shown_empty": int(scores.drawn_empty), "label_empty": int(scores.truth_empty)}
        per_label = json.dumps(as_row(scores, config.labels)["per_label"])
        store.put_shown(project, row | means | empty | {"unit": scores.unit, "per_label": per_label})
        return shown

    def _compare_correction(
        self,
        project: int,
        task: int,
        shown: NDArray[np.uint8] | None,
        mask: NDArray[np.uint8],
        config: LabelConfig,
        missing: frozenset[int],
    ) -> None:
        """Record how well the newest answers of smart tools, and the mask before them, agree with the submitted mask.

        Only labels that were corrected and submitted count.
        """
        answered = self._context.store.correction(project, task)
        if answered is None or answered[1].shape != mask.shape:
            return
        names, masks = answered
        pairs = [(names.index(name) + 1, config.labels.index(name) + 1) for name in names if name in config.labels]
        pairs = [(ours, number) for ours, number in pairs if number not in missing and (mask == number).any()]
        if not pairs:
            return
        after = [dice(masks == ours, mask == number) for ours, number in pairs]
        before = None if shown is None else [dice(shown == number, mask == number) for _, number in pairs]
        mean = None if before is None else float(np.mean(before))
        self._context.store.judge_correction(project, task, mean, float(np.mean(after)))
