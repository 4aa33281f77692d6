"""TODO: what this module promises."""

from __future__ import annotations

import io
import ipaddress
import posixpath
import re
import socket
import time
from typing import Any
from urllib.parse import parse_qs, unquote, urljoin, urlsplit

import httpx
from label_studio_sdk.core.api_error import ApiError

from backend.errors import StudioUnavailable, UnreadableScan
from backend.label_studio.client import Client

IMAGE_BYTES = 160 * 2**20  # 64 million pixels of 16 bits are 122 MiB, unpacked
IMAGE_SECONDS = 300.0  # for one image in all; `timeout` is for each of its pieces
FILE_PATHS = r"/(data|storage-data)/.|/(tasks|projects)/\d+/(resolve|presign)/?$"
REDIRECTS = 5
NOT_THE_SCANS_FAULT = (401, 429, 502, 503, 504)


def _is_file(path: str, root: str) -> bool:
    """Whether a path of Label Studio, below the sub-path `root`, is one that files are served from.

    Whoever may import a task chooses the path, and our token opens all of Label Studio's API.
    """
    plain = path
    while unquote(plain) != plain:
        plain = unquote(plain)
    if "\\" in plain or posixpath.normpath(plain).rstrip("/") != plain.rstrip("/") or not plain.startswith(root):
        return False
    return re.match(FILE_PATHS, "/" + plain.removeprefix(root)) is not None


def _as_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_public(address: str) -> bool:
    """Whether an IP address is one of the internet; IPv4 inside IPv6 counts as what it stands for."""
    ip = _as_ip(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = inner or ip
    return ip is not None and ip.is_global and not ip.is_multicast


def _joined(base: str, reference: str) -> str:
    """`reference` as an absolute address; UnreadableScan when it is none that could be asked for."""
    try:
        url = urljoin(base, reference)
        _ = urlsplit(url).port, httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise UnreadableScan(
            f"its image has the address {reference[:100]!r}, which is not a valid one ({error}). "
            "Correct it, or delete the task and import the image again."
        ) from error
    return url


def _name(reference: str) -> str:
    """What an image is called in messages: the query may hold a signature, or the path of a local file."""
    parts = urlsplit(reference)
    return parse_qs(parts.query).get("d", [parts.path])[0].rsplit("/", 1)[-1][:80]


def _forbidden(url: str, reference: str) -> str:
    """Why Label Studio answers 403 to a file, which it never does for a wrong token."""
    what = f"its image {_name(reference)!r} may not be read: the server answered 403. "
    if urlsplit(url).path.rstrip("/").endswith("/data/local-files"):
        return (
            what + "Label Studio does not serve local files: start it with LOCAL_FILES_SERVING_ENABLED=true, "
            "or import the image again as an upload."
        )
    return (
        what + "The owner of our token does not see it, perhaps because it belongs to another organization. "
        "Import the image again in this one, or set SCANQUEUE_LABEL_STUDIO_API_KEY to a token of somebody who sees it."
    )


def _body(response: httpx.Response, reference: str) -> bytes:
    name = _name(reference)
    if response.status_code >= 400:
        raise UnreadableScan(
            f"its image {name!r} cannot be had: the server answered {response.status_code}. "
            "Restore the file, or delete the task and import the image again."
        )
    if response.headers.get("content-encoding", "").lower() not in ("", "identity"):
        raise UnreadableScan(
            f"its image {name!r} comes compressed, which was not asked for. Have its host send it as it is."
        )
    body, until = io.BytesIO(), time.monotonic() + IMAGE_SECONDS  # one buffer, which `getvalue` does not copy
    for piece in response.iter_raw():
        if time.monotonic() > until:
            raise UnreadableScan(f"its image {name!r} came too slowly: not whole after {IMAGE_SECONDS:.0f} seconds.")
        if body.tell() + len(piece) > IMAGE_BYTES:
            raise UnreadableScan(f"its image {name!r} is larger than {IMAGE_BYTES >> 20} MiB. Make it smaller.")
        body.write(piece)
    return body.getvalue()


class ScanSource(Client):
    """TODO"""

    def image(self, reference: str) -> bytes:
        """The bytes behind a task's image value: upload, local file, or a URL on an allowed host.

        Raises UnreadableScan when this scan cannot be had, StudioUnavailable when nothing can.
        """
        if not isinstance(reference, str) or not reference:
            raise UnreadableScan("the task has no image under the key that the label config names; re-import it.")
        url = _joined(self.url, reference)
        own = urlsplit(self.url)
        if reference.startswith("/") and own.path.rstrip("/") and not reference.startswith(own.path):
            url = self.url + reference.lstrip("/")
        renewed = False
        with httpx.Client(timeout=self._timeout, verify=self._certificates) as client:
            for _ in range(REDIRECTS):
                ours = self._allowed(url)
                self.requests += 1
                began = time.monotonic()
                try:
                    authorization = {"Authorization": self._authorization()} if ours else {}
                    address, name, extensions = (url, {}, {}) if ours else self._pinned(url)
                    asked = {"Accept-Encoding": "identity", **authorization, **name}
                    with client.stream("GET", address, headers=asked, extensions=extensions) as response:
                        if response.is_redirect:
                            url = _joined(url, response.headers.get("location", ""))
                            continue
                        if ours and response.status_code == 401 and not renewed and self._with_new_token():
                            renewed = True
                            continue
                        if ours and response.status_code in NOT_THE_SCANS_FAULT:
                            raise self.refusal(response.status_code, response.reason_phrase, "an image")
                        if ours and response.status_code == 403:
                            raise UnreadableScan(_forbidden(url, reference))
                        body = _body(response, reference)
                        if ours:
                            self._count("studio", "GET image", time.monotonic() - began)
                        return body
                except (httpx.HTTPError, ValueError) as error:  # ValueError: a token answer that is not JSON
                    if ours:
                        self._count("studio_error", "no answer")
                        raise StudioUnavailable(
                            f"Label Studio at {self.url} does not answer ({type(error).__name__})."
                        ) from error
                    raise UnreadableScan(
                        f"{urlsplit(url).netloc} does not answer ({type(error).__name__}); it is asked again later."
                    ) from error
                except ApiError as error:
                    raise self.refusal(error.status_code or 0, error.body, "/api/token/refresh/") from error
        raise UnreadableScan(f"more than {REDIRECTS} redirects; give the image's final address.")

    def _authorization(self) -> str:
        return str(self._client()._client_wrapper.get_headers()["Authorization"])

    def _allowed(self, url: str) -> bool:
        """True for Label Studio's own host, False for an allowed one; UnreadableScan for any other."""
        parts, own = urlsplit(url), urlsplit(self.url)
        loopback = ("localhost", "127.0.0.1", "::1")
        if "@" in parts.netloc or httpx.URL(url).host != (parts.hostname or "").lower():  # two readings of one address
            raise UnreadableScan(
                f"its image has the address {parts.path[:100]!r} with a user name or an odd host in it. "
                "Correct it, or import the image again."
            )
        if parts.scheme in ("http", "https"):
            same = parts.hostname == own.hostname or (parts.hostname in loopback and own.hostname in loopback)
            if same and parts.port == own.port and parts.scheme == own.scheme:
                if not _is_file(parts.path, own.path):
                    raise UnreadableScan(
                        f"its image has the address {parts.path[:100]!r}, which is not that of a file in Label Studio. "
                        "Import the image again."
                    )
                return True
            if (parts.hostname or "").lower() in self._image_hosts or parts.netloc.lower() in self._image_hosts:
                return False
        raise UnreadableScan(
            f"its image lies on {parts.netloc or parts.scheme!r}, which is neither Label Studio nor listed. "
            "If that host is to be trusted, add it to SCANQUEUE_IMAGE_HOSTS."
        )

    def _pinned(self, url: str) -> tuple[str, dict[str, str], dict[str, Any]]:
        """Address, headers and extensions that ask an allowed host at an IP address that was looked at.

        Whoever runs a name's DNS must not turn our requests on the local network, now or a moment later. An entry
        that is an IP address, or a name marked with "!", is taken as it is.
        """
        parts = urlsplit(url)
        host = parts.hostname or ""
        if _as_ip(host) or host in self._local_hosts or parts.netloc.lower() in self._local_hosts:
            return url, {}, {}
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            found = sorted(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))  # IPv4 first
        except (OSError, UnicodeError) as error:
            raise UnreadableScan(f"the host {host!r} is not found ({error}); it is asked again later.") from error
        addresses = [str(sockaddr[0]) for *_, sockaddr in found]
        local = [address for address in addresses if not _is_public(address)]
        if local:
            raise UnreadableScan(
                f"its image lies on {host!r}, whose address {local[0]} is one of the local network. If that is meant, "
                f"write {host + '!'!r} in SCANQUEUE_IMAGE_HOSTS."
            )
        target = httpx.URL(url).copy_with(host=addresses[0])
        return str(target), {"Host": parts.netloc}, {"sni_hostname": host}
