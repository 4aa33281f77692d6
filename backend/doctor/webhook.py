"""Checks of one project's webhook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from backend.doctor.finding import (
    Finding,
    ask_us,
    looks_like_ours,
)
from backend.facts import SECRET_HEADER
from backend.label_studio.client import redact_url
from backend.label_studio.studio import Studio
from backend.label_studio.webhooks import same_address, webhook_advice
from backend.settings import Settings

WANTED_ACTIONS = (
    "ANNOTATION_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATIONS_DELETED",
    "TASKS_CREATED",
    "TASKS_DELETED",
    "PROJECT_UPDATED",
)


def check_webhook(settings: Settings, studio: Studio, project: int, address: str, row: Any) -> Iterator[Finding]:
    url = f"{address}/webhook"
    shown = redact_url(url)
    hooks = studio.webhooks(project)
    same = [hook for hook in hooks if same_address(hook.get("url") or "", url)]
    old = [h for h in hooks if h not in same and ((h.get("headers") or {}).get(SECRET_HEADER) or looks_like_ours(h))]
    itself = "a running worker fixes it within a minute"
    if not same:
        objection = studio.webhook_objection(url)
        elsewhere = f"; it goes to {', '.join(redact_url(h['url']) for h in old)}" if old else ""
        what = f"Project {project} has no webhook to {shown}{elsewhere}."
        cure = webhook_advice(url) if objection else f"Add it in Settings > Webhooks > Add Webhook; {itself}, too."
        yield Finding("webhook", "error", what, cure)
        return
    if old:
        there = ", ".join(redact_url(h["url"]) for h in old)
        what = f"A webhook to another address remains, {there}. Every Submit waits for it."
        yield Finding("webhook", "warning", what, "Delete it in Settings > Webhooks.")
    found = list(_hook_faults(settings, same, row["secret"], shown, itself))
    yield from found
    if found:
        return
    if settings.user:
        body = {"action": "DOCTOR", "project": {"id": project}}
        answer, _ = ask_us(url, method="POST", json=body, headers={SECRET_HEADER: row["secret"]})
        if answer is not None and answer.status_code == 401:
            what = f"{shown} does not receive the header {SECRET_HEADER} of the webhook."
            yield Finding("webhook", "error", what, f"Let the proxy forward the header {SECRET_HEADER}.")
            return
    yield Finding("webhook", "ok", f"Label Studio reports changes to {shown}.")


def _hook_faults(
    settings: Settings, hooks: list[dict[str, Any]], secret: str, shown: str, itself: str
) -> Iterator[Finding]:
    """The faults of the webhook to us that has the fewest."""
    faults = [list(_faults_of(settings, hook, secret, shown, itself)) for hook in hooks]
    yield from min(faults, key=len)


def _faults_of(settings: Settings, hook: dict[str, Any], secret: str, shown: str, itself: str) -> Iterator[Finding]:
    where = f"in Settings > Webhooks at {shown}"
    if not hook.get("is_active"):
        cure = f"Turn on Is Active {where}; {itself}."
        yield Finding("webhook", "error", f"The webhook to {shown} is not active.", cure)
    if not hook.get("send_payload"):
        what = f"The webhook to {shown} has no payload, so it does not name its project."
        yield Finding("webhook", "error", what, f"Turn on Send payload {where}; {itself}.")
    if not hook.get("send_for_all_actions"):
        actions = hook.get("actions") or []
        missing = [a for a in WANTED_ACTIONS if a not in actions]
        cure = f"Turn on Send for all actions {where}; {itself}."
        if not actions:
            what = f"The webhook to {shown} is not sent for any action."
            yield Finding("webhook", "error", what, cure)
        elif missing:
            what = f"The webhook to {shown} is not sent for {', '.join(missing)}."
            yield Finding("webhook", "warning", what, cure)
    carried = (hook.get("headers") or {}).get(SECRET_HEADER)
    if settings.user and carried != secret and "@" not in urlsplit(hook.get("url") or "").netloc:
        wrong = "a wrong" if carried else "no"
        what = f"The webhook to {shown} has {wrong} {SECRET_HEADER}, so it is rejected (SCANQUEUE_USER is set)."
        cure = (
            f"Start a worker. It sets the webhook's header {SECRET_HEADER} within a minute: Label Studio "
            "does not send the Basic Authentication of Settings > Model with webhooks."
        )
        yield Finding("webhook", "error", what, cure)
