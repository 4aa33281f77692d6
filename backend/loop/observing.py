"""Observe a project in Label Studio: record what changed there, and return what it contains now."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from backend.errors import BadSetting, NotSegmentable
from backend.facts import Label, Live, annotators, round_of, version_name
from backend.label_config import LabelConfig, Renames, unknown_classes
from backend.label_studio.listing import ProjectPage
from backend.loop.attention import Attention
from backend.loop.context import LoopContext
from backend.loop.listing import TaskListing, recorded_value
from backend.loop.project_settings import row_settings
from backend.loop.publication import first_scans
from backend.loop.steps import Seen
from backend.settings import Settings

SETTLE = 10.0  # seconds to wait for an import whose answer was lost


class Observer:
    """Observes projects and remembers how far each has been listed."""

    def __init__(self, context: LoopContext) -> None:
        self._context = context
        self._listing = TaskListing(context)
        self._attention = Attention(context)

    def observe(self, project: int, live: Live | None = None) -> Seen:
        """Record what changed in Label Studio, and return what it contains now.

        live  what was seen of the queue a moment ago, if nothing was written since; it is not asked for again
        """
        context, store = self._context, self._context.store
        row = context.row(project)
        page = context.studio.project(project)
        try:
            settings = row_settings(row)
            config = page.masks_config(project, settings.image)
        except (NotSegmentable, BadSetting) as error:
            # how many scans and labels there are is known all the same
            self._listing.update(project, row, page, recorded_value(row), row["stratify_by"], first=None)
            store.set_project(project, title=page.title)
            where = "" if isinstance(error, NotSegmentable) else f"project {project}: "
            return Seen(project, None, (), (), Live(), f"{where}{error}")
        renames = self._renames(project, row, config)
        store.put_renames(project, renames, instead_of=row["label_renames"])
        stratify_by = settings.stratify_by if settings.moments[0] == "stratified" else ""
        if not row["cursor"] and row["config"] != config.to_json():
            # before its first tasks, so that after a kill these are known to be read with it
            store.set_project(project, config=config.to_json())
        first = None if settings.unit == "scan" else first_scans(settings)
        listed = self._listing.update(project, row, page, config.image_value, stratify_by, first=first)
        store.set_project(project, title=page.title, config=config.to_json(), overlap=page.maximum_annotations)

        read, key = store.labels(project), config.reading_key(renames)
        labels = self._labels(project, read, config, renames)
        outdated = frozenset(r["task"] for r in read if r["config"] != key)
        people = annotators((r["annotation"], r["completed_by"]) for r in read)
        scans, counts = self._attention.look(project, row, settings, people)
        live = self._live(project, row, page) if live is None else live
        live = replace(
            live,
            model_version=page.model_version,
            sampling=page.sampling,
            show_predictions=page.show_predictions,
            ignores_skipped=page.ignores_skipped,
        )
        lost = store.lost_labels(project, renames)
        return Seen(
            project,
            config,
            scans,
            labels,
            live,
            people=people,
            counts=counts,
            renames=renames,
            lost=lost,
            outdated=outdated,
            unlisted=listed.unlisted,
            unlisted_labels=listed.labels,
            listed_to=listed.after,
        )

    def list_more(self, project: int) -> None:
        """Go on with the listing of all tasks that is under way."""
        self._listing.advance(project)

    def forget_deleted(self, project: int, tasks: Sequence[int]) -> bool:
        """Forget those of `tasks` that no longer exist. Returns whether any was recorded."""
        return self._listing.forget_deleted(project, tasks)

    def _labels(self, project: int, read: Any, config: LabelConfig, renames: Renames) -> tuple[Label, ...]:
        """The labels read with this config from annotations that have not changed since."""
        current, key = self._context.store.annotated(project), config.reading_key(renames)

        @cache
        def unknown(known: str) -> tuple[int, ...]:
            return tuple(sorted(unknown_classes(known, config.labels, renames)))

        return tuple(
            Label(r["task"], r["key"], r["problem"], r["annotation"], r["mask"], unknown(r["known"]))
            for r in read
            if current.get(r["task"]) == r["read_at"] and r["config"] == key
        )

    def _renames(self, project: int, row: Any, config: LabelConfig) -> Renames:
        """What is known of the config's labels, with those of today."""
        renames = Renames.from_json(row["label_renames"])
        if not renames.seen:  # older records: the labels of the last config and of the models
            before = LabelConfig.from_json(row["config"])
            known = [label for labels in self._context.store.model_labels(project) for label in labels]
            renames = replace(renames, seen=(*(before.labels if before else ()), *known))
        now = {old: new for old, new in renames.now.items() if old not in config.labels}
        now |= {old: new for old, new in config.aliases.items() if old in renames.seen and old not in config.labels}
        return Renames(tuple(dict.fromkeys((*renames.seen, *config.labels))), now)

    def _live(self, project: int, row: Any, page: ProjectPage) -> Live:
        studio, store = self._context.studio, self._context.store
        newest = store.latest_round(project)
        published: dict[int, int] = {}
        if newest and row["sending"]:
            # Label Studio may still be working on an import whose answer was lost. The recorded time is unusable here,
            # because clocks jump.
            time.sleep(SETTLE)
            store.set_project(project, sending=0.0)
        versions = studio.model_versions(project)
        if newest:
            latest = version_name(newest["n"])
            published = studio.published(project, latest, versions)
            if page.model_version == latest and newest["published_at"] is None:
                store.mark_published(project, newest["n"])  # here, as a process may die right after `show_round`
        first = first_free(versions, newest, published)
        if first > row["first_round"]:
            store.set_project(project, first_round=first)
        url = webhook_url(self._context.settings, row["backend_url"])
        return Live(
            published=published,
            webhook=not url or studio.has_webhook(project, url, row["secret"]),
            view=studio.has_view(project),
        )


def first_free(versions: Iterable[str], latest: Mapping[str, Any] | None, published: Mapping[int, int]) -> int:
    """The lowest number of a new round, if Label Studio has predictions that these records do not know; else 0.

    They come from records that were lost or restored, from another scanqueue, or with a project that was copied. Their
    names must not be used again: Label Studio would show their masks under our scores.

    versions   model versions in Label Studio
    latest     the latest round of the records; None before the first
    published  the tasks that have predictions of it
    """
    found = max((n for version in versions if (n := round_of(version)) is not None), default=-1)
    if latest is None:
        return found + 1
    if found > latest["n"]:
        return found + 1
    foreign = published.keys() - latest["picks"].members - set(latest["carried"])
    return int(latest["n"]) + 1 if foreign else 0


def webhook_url(settings: Settings, backend_url: str) -> str:
    """Where Label Studio reaches our webhook: PUBLIC_URL, else the address it used to connect."""
    base = settings.public_url or backend_url
    return f"{base.rstrip('/')}/webhook" if base else ""
