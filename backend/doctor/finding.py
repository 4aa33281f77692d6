"""What every check returns, and how checks call our own server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import httpx

from backend.errors import ScanqueueError
from backend.settings import Settings

NEW_TOKEN = (
    "Create one in Label Studio, Account & Settings > Personal Access Token, and set SCANQUEUE_LABEL_STUDIO_API_KEY "
    "to the complete token, which is shown only once, or write it to the file that SCANQUEUE_LABEL_STUDIO_API_KEY_FILE "
    "names. Then restart scanqueue and its workers."
)
Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    check  name of the check; several findings may share it
    cure   one sentence that names the setting or menu; "" if nothing needs fixing
    """

    check: str
    level: Level
    what: str
    cure: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def explained(check: str, error: ScanqueueError) -> Finding:
    """Split an error message: its first sentence describes the problem, the rest the fix."""
    what, _, cure = str(error).partition(". ")
    cure = cure or "See the log of scanqueue."
    return Finding(check, "error", what.rstrip(".") + ".", cure.rstrip(".") + ".")


def local_address(settings: Settings) -> str:
    """Address of this server on this machine."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def ask_us(url: str, **more: Any) -> tuple[httpx.Response | None, str]:
    """The response of our own server, or the reason for its absence."""
    try:
        with httpx.Client(timeout=5, trust_env=False, verify=httpx.create_ssl_context()) as client:  # SSL_CERT_FILE
            return client.request(more.pop("method", "GET"), url, **more), ""
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return None, "its certificate is not trusted"
        return None, type(error).__name__


def is_ours(answer: httpx.Response | None) -> bool:
    return _health(answer).get("model_class") == "scanqueue"


def may_host_our_plugin(answer: httpx.Response | None) -> bool:
    """Whether this is a label-studio-ml server. Version 2.x names the class it hosts, 1.0.9 does not."""
    health = _health(answer)
    return health.get("model_class") == "ScanqueueBackend" or ("model_dir" in health and "v2" in health)


def _health(answer: httpx.Response | None) -> dict[str, Any]:
    try:
        found = answer.json() if answer is not None else None
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def ask_outside(url: str) -> httpx.Response | None:
    try:
        return httpx.head(url, timeout=3)
    except (httpx.HTTPError, OSError, ValueError):
        return None


def looks_like_ours(hook: Mapping[str, Any]) -> bool:
    """Whether the URL ends the way Label Studio names an ML backend's webhook."""
    return str(hook.get("url") or "").rstrip("/").endswith("/webhook")
