"""Checks of Label Studio: version, token, and whether it can reach us."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from backend.doctor.finding import (
    NEW_TOKEN,
    Finding,
    explained,
)
from backend.errors import ScanqueueError
from backend.label_studio.client import read_token, redact_url
from backend.label_studio.studio import Studio
from backend.label_studio.webhooks import webhook_advice
from backend.settings import Settings, is_loopback

TESTED = ("1.18.0", "1.23.2")  # the oldest and the newest Label Studio on which the whole loop was run
EXPIRY_NOTICE = 14 * 86400.0
BOTH_GUARDS_OFF = (
    "Start Label Studio with USE_DEFAULT_BANNED_SUBNETS=false and USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16 "
    "(or with both ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false)."
)


def check_reachable(studio: Studio) -> Iterator[Finding]:
    try:
        version = studio.version()
    except ScanqueueError as error:
        cure = (
            "Start Label Studio, and set SCANQUEUE_LABEL_STUDIO_URL to its address as seen from this machine, "
            "including any sub-path."
        )
        yield Finding("label-studio", "error", str(error), cure)
        return
    yield Finding("label-studio", "ok", f"Label Studio {version} answers at {studio.url}.")
    oldest, newest = TESTED
    if not _numbers(oldest) <= _numbers(version) <= _numbers(newest):
        what = f"Label Studio {version} is untested; scanqueue was tested with {oldest} and {newest}."
        cure = f"Install label-studio=={newest}, or watch the first round closely."
        yield Finding("version", "warning", what, cure)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (1, 23, 2) for "1.23.2.post0"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(n) for n in found[0].split(".")) if found else ()


def check_token(settings: Settings, studio: Studio) -> Iterator[Finding]:
    key = settings.label_studio_api_key
    token = read_token(key)
    now = time.time()
    if token.kind == "none":
        yield Finding("token", "error", "No Label Studio token is set.", NEW_TOKEN)
        return
    if token.kind == "access":
        what = "The token is an access token, which expires after five minutes; expected a personal access token."
        yield Finding("token", "error", what, NEW_TOKEN)
        return
    if token.expires is not None and token.expires < now:
        day = time.strftime("%Y-%m-%d", time.gmtime(token.expires))
        yield Finding("token", "error", f"The personal access token expired on {day}.", NEW_TOKEN)
        return
    try:
        user = studio.whoami()
    except ScanqueueError as error:
        yield _refused_token(token.kind, key, error)
        return
    name = "personal access token" if token.kind == "personal" else "legacy token"
    yield Finding("token", "ok", f"The {name} of {user} is accepted.")
    if token.expires is not None and token.expires < now + EXPIRY_NOTICE:
        days = (token.expires - now) / 86400
        yield Finding("token", "warning", f"The personal access token expires in {days:.0f} days.", NEW_TOKEN)


def _refused_token(kind: str, key: str, error: ScanqueueError) -> Finding:
    if "legacy token authentication has been disabled" in str(error):
        what = (
            "The token is a legacy token, and this organization has disabled legacy tokens "
            "(the access_token that Label Studio sends to ML backends is one of them)."
        )
        cure = f"{NEW_TOKEN.removesuffix('.')}; or turn on Organization > API Tokens Settings > Legacy Tokens."
        return Finding("token", "error", what, cure)
    if "refuses the token" not in str(error) and "not usable" not in str(error):
        return explained("token", error)
    if kind == "personal":
        what = "Label Studio does not accept the personal access token: it was revoked or is from elsewhere."
    elif len(key) == 40:
        what = "Label Studio does not know this legacy token."
    else:
        what = "The token is neither a personal access token nor a legacy token of this Label Studio."
    return Finding("token", "error", what, NEW_TOKEN)


def check_address(settings: Settings, address: str, studio: Studio) -> Iterator[Finding]:
    """Whether Label Studio would call `address` as a backend and send webhooks to it. Two separate checks decide."""
    shown = redact_url(address)
    host = urlsplit(address).hostname or ""
    webhook = studio.webhook_objection(f"{address}/webhook")
    backend = studio.backend_objection(address)
    if is_loopback(host) and not is_loopback(urlsplit(studio.url).hostname or ""):
        what = f"Label Studio runs at {studio.url}. There, {shown} refers to Label Studio's own machine."
        cure = "Set SCANQUEUE_PUBLIC_URL to the address of this machine as seen from Label Studio."
        yield Finding("address", "warning", what, cure)
    if "valid URL" in webhook:
        what = f"Label Studio connects to {shown} but creates no webhook for it: the host {host!r} has no dot."
        yield Finding("address", "error", what, webhook_advice(address))
        webhook = ""
    unknown = next((text for text in (backend, webhook) if "resolve hostname" in text), "")
    if unknown:
        what = f"Label Studio cannot look up the host of {shown}: {unknown}"
        cure = "Set SCANQUEUE_PUBLIC_URL to a name or address that Label Studio's machine knows."
        yield Finding("address", "error", what, cure)
    elif webhook and backend:
        what = f"Label Studio accepts neither an ML backend nor a webhook at {shown}: {webhook}"
        yield Finding("address", "error", what, BOTH_GUARDS_OFF)
    elif webhook:
        what = (
            f"Label Studio accepts {shown} as an ML backend but sends it no webhooks: {webhook} "
            "ML_BLOCK_LOCAL_IP=false disables only one of two checks."
        )
        yield Finding("address", "error", what, BOTH_GUARDS_OFF)
    elif backend:
        what = f"Label Studio sends webhooks to {shown} but accepts no ML backend there: {backend}"
        yield Finding("address", "error", what, BOTH_GUARDS_OFF)
    elif "." in host or host == "localhost" or ":" in host:
        yield Finding("address", "ok", f"Label Studio can call {shown} and send webhooks to it.")
