"""The project's webhook to us and its ML backends, and why Label Studio would refuse their addresses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from backend.errors import StudioRefused
from backend.facts import SECRET_HEADER
from backend.label_studio.client import Client, error_detail
from backend.settings import is_loopback


def webhook_advice(url: str) -> str:
    """What to do if Label Studio refuses to send webhooks to `url`."""
    host = urlsplit(url).hostname or ""
    if "." not in host and host != "localhost" and ":" not in host:
        return (
            f"Label Studio rejects webhook URLs whose host name has no dot: give {host!r} an alias with a dot "
            f"(for example {host}.internal) and use it in SCANQUEUE_PUBLIC_URL."
        )
    return (
        "Label Studio blocks private addresses by default: start it with USE_DEFAULT_BANNED_SUBNETS=false and "
        "USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16 (or SSRF_PROTECTION_ENABLED=false)."
    )


def same_address(one: str, other: str) -> bool:
    """Whether two URLs lead to the same server and path. All names of this machine are equal; schemes do not matter."""
    return _place(one) == _place(other)


def _place(url: str) -> tuple[str, int | None, str]:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return url, None, ""
    return "localhost" if is_loopback(host) else host, None if port in (80, 443) else port, parts.path.rstrip("/")


def _is_our_webhook(hook: Mapping[str, Any], url: str, secret: str) -> bool:
    return (
        hook.get("url") == url
        and bool(hook.get("is_active"))
        and bool(hook.get("send_for_all_actions"))
        and bool(hook.get("send_payload"))  # without it the webhook does not even name its project
        and (hook.get("headers") or {}).get(SECRET_HEADER) == secret
    )


class Webhooks(Client):
    """Reads and sets up the connections from Label Studio to us."""

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        hooks = self._read("/api/webhooks/", list, {"project": project})
        return [hook for hook in hooks if hook.get("project") == project]

    def has_webhook(self, project: int, url: str, secret: str) -> bool:
        return any(_is_our_webhook(hook, url, secret) for hook in self.webhooks(project))

    def set_webhook(self, project: int, url: str, secret: str) -> None:
        """Create or fix the project's webhook to `url`: active, for every action, with our secret header.

        Label Studio creates one without credentials when a backend is connected; that one is updated in place.
        Raises StudioRefused with advice if Label Studio refuses the URL.
        """
        body: dict[str, Any] = {
            "send_payload": True,
            "send_for_all_actions": True,
            "is_active": True,
            "actions": [],
        }
        same = [hook for hook in self.webhooks(project) if hook.get("url") == url]
        try:
            if not same:
                headers = {SECRET_HEADER: secret}
                more = {"project": project, "url": url, "headers": headers}
                self._call("POST", "/api/webhooks/", body=body | more)
                return
            headers = {**(same[0].get("headers") or {}), SECRET_HEADER: secret}
            self._call("PATCH", f"/api/webhooks/{same[0]['id']}/", body=body | {"url": url, "headers": headers})
        except StudioRefused as error:
            raise StudioRefused(f"The webhook to {url} could not be set up: {error} {webhook_advice(url)}") from error

    def remove_webhooks(self, project: int, urls: Collection[str], secret: str) -> int:
        """Delete the project's webhooks to one of `urls` or with our secret; returns how many."""
        ours = [
            hook
            for hook in self.webhooks(project)
            if (hook.get("headers") or {}).get(SECRET_HEADER) == secret
            or any(same_address(hook.get("url") or "", url) for url in urls)
        ]
        for hook in ours:
            self._call("DELETE", f"/api/webhooks/{hook['id']}/")
        return len(ours)

    def backends(self, project: int) -> list[dict[str, Any]]:
        """The ML backends connected to the project. The request makes Label Studio call each of them."""
        return list(self._read("/api/ml", list, {"project": project}))

    def remove_backend(self, backend: int) -> None:
        """Disconnect an ML backend. Its webhook stays."""
        self._call("DELETE", f"/api/ml/{backend}")

    def webhook_objection(self, url: str) -> str:
        """Label Studio's reason for refusing a webhook to `url`; "" if it would accept it.

        Nothing is created: the request also contains an unknown action, so it is always refused.
        """
        return self._objection("/api/webhooks/", {"url": url, "actions": ["SCANQUEUE_DOCTOR"]}, "actions")

    def backend_objection(self, url: str) -> str:
        """Why Label Studio would refuse an ML backend at `url`; "" if not. Nothing is created or called."""
        return self._objection("/api/ml", {"url": url, "timeout": "none"}, "timeout")

    def _objection(self, path: str, body: Mapping[str, Any], wrong: str) -> str:
        status, answer = self._exchange("POST", path, body=body)
        faults = answer.get("validation_errors") if isinstance(answer, Mapping) else None
        if status == 401:
            raise self._refusal(status, answer, path)
        if not isinstance(faults, Mapping):
            return error_detail(answer)  # a blocked address, or a host name that does not resolve
        if wrong not in faults:
            raise StudioRefused(f"Label Studio accepted an invalid request to {path}; this version is not supported.")
        about = faults.get("url") or ()
        return str(about[0] if isinstance(about, list) and about else about or "")
