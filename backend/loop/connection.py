"""Whether Label Studio is connected to us: asked before every write, and now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from backend.facts import round_of, version_name
from backend.label_studio.client import redact_url
from backend.label_studio.studio import Studio
from backend.label_studio.webhooks import same_address
from backend.loop.context import LoopContext, Replan
from backend.records.projects import CALL_EXPECTED, CONNECTED
from backend.records.store import Store
from backend.settings import Settings

ASK_EVERY = 120.0  # seconds between requests for the ML backends, as each makes Label Studio call all of them
GRACE = 5.0  # seconds for which Label Studio may call a new backend before it lists it
POLL = 0.5

Backend = Mapping[str, Any]


def addresses(settings: Settings, row: Any) -> list[str]:
    """Our addresses as Label Studio may know them: PUBLIC_URL, and the one at which it last called us."""
    return [url for url in (settings.public_url, row["backend_url"]) if url]


def our_backends(studio: Studio, store: Store, settings: Settings, project: int) -> tuple[list[Backend], list[Backend]]:
    """(ours, all) of the project's ML backends.

    Ours are known by their URL. Behind a proxy, Label Studio may use a URL that we never see: then we are connected
    if Label Studio calls us while it answers, as it calls every backend that it lists.
    """
    found: list[Backend] = list(studio.backends(project))
    row = store.project(project)  # read now: Label Studio has just called us, and told us the address it uses
    if row is None:
        return [], found
    ours = [b for b in found if any(same_address(str(b.get("url") or ""), url) for url in addresses(settings, row))]
    if found and not ours:
        store.set_project(project, connected=CALL_EXPECTED)
        found = list(studio.backends(project))
        after = store.project(project)
        if after is not None and after["connected"] == CONNECTED:
            ours = found[:1]
        else:
            store.set_project(project, connected=row["connected"])
    return ours, found


class Connections:
    """Which projects Label Studio still lets us manage, as far as this process knows."""

    def __init__(self, context: LoopContext) -> None:
        self._context = context
        self._answers: dict[int, tuple[float, str, list[str]]] = {}  # when asked, the objection, all titles
        self._never: set[int] = set()  # projects that Label Studio named to us, but did not connect in time

    def objection(self, project: int) -> str:
        """Why nothing may be written to the project; "" while it is connected. May be ASK_EVERY seconds old."""
        at, why, _ = self._answers.get(project, (float("-inf"), "", []))
        if why or time.monotonic() - at > ASK_EVERY:
            why = self._ask(project)
        return why

    def require(self, project: int) -> None:
        """Called before a write. Raises Replan if the project is no longer connected."""
        until = time.monotonic() + GRACE
        while not (why := self._ask(project)) and not self._context.row(project)["connected"]:
            if time.monotonic() > until:
                self._never.add(project)
            else:
                self._context.alive()
                time.sleep(POLL)
        if why:
            raise Replan

    def remark(self, project: int) -> str:
        """A sentence about other backends that are connected besides ours; "" without any."""
        _, _, titles = self._answers.get(project, (0.0, "", []))
        if not titles:
            return ""
        return (
            f"{len(titles)} ML backends are connected ({', '.join(titles)}), and Label Studio uses only the first. "
            "Remove the others in Settings > Model."
        )

    def _ask(self, project: int) -> str:
        context = self._context
        ours, found = our_backends(context.studio, context.store, context.settings, project)
        row = context.row(project)
        why = ""
        if ours:
            self._never.discard(project)
            if row["connected"] != CONNECTED:
                context.store.set_project(project, connected=CONNECTED)
            why = self._rival(project, ours, found)
        elif found or row["connected"] or project in self._never:
            why = _objection(project, found, bool(row["connected"]))
        others = bool(ours) and not why and len(found) > len(ours)  # Label Studio itself may connect a backend twice
        listed = bool(found) or bool(row["connected"])  # otherwise, ask again at the next opportunity
        titles = [str(b.get("title") or redact_url(str(b.get("url")))) for b in found] if others else []
        self._answers[project] = (time.monotonic() if listed else float("-inf"), why, titles)
        return why

    def _rival(self, project: int, ours: Sequence[Backend], found: Sequence[Backend]) -> str:
        """Why another scanqueue has the project; "" if it is ours. Two would publish rounds against each other."""
        first = min(found, key=lambda backend: int(backend["id"]))
        if first in ours:
            return ""
        served = self._context.studio.project(project).model_version
        known = (version_name(n) for (n,) in self._context.store.round_columns(project, "n"))
        if round_of(served) is None or served in known:
            return ""
        return (
            f"Another scanqueue manages the project: {redact_url(str(first.get('url')))} is connected before this one, "
            f"and annotators get its round {served}. So this one leaves the queue as it is. Remove one of the two in "
            "Settings > Model."
        )


def _objection(project: int, found: Sequence[Backend], was: bool) -> str:
    back = (
        f"To restore what scanqueue set there, run `scanqueue disconnect --project {project}`; with --forget, the "
        "project leaves this list."
    )
    if found:
        urls = ", ".join(redact_url(str(b.get("url"))) for b in found)
        return (
            f"Another ML backend is connected to the project ({urls}), so its queue stays as it is. Connect scanqueue "
            f"again in Settings > Model to continue, or set SCANQUEUE_PUBLIC_URL if this is scanqueue's address. {back}"
        )
    if not was:
        return "No ML backend is connected to the project. Connect scanqueue in Settings > Model."
    return (
        "No ML backend is connected to the project any more, so its queue stays as it is. "
        f"Connect scanqueue again in Settings > Model to continue. {back}"
    )
