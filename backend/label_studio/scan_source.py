"""Images of scans over HTTP, from Label Studio and from allowed hosts only (protection against SSRF).

A task's image address is chosen by anyone who may import tasks, and our token opens all of Label Studio's API. So
an address must be a file of Label Studio, or on a listed host whose IP address is checked before the request.
"""

from __future__ import annotations

import base64
import contextlib
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

from backend.errors import StudioRefused, StudioUnavailable, UnreadableScan
from backend.image_value import decode_data_uri, is_unchanged, parse_inline, resolve
from backend.label_studio.client import one_host
from backend.label_studio.listing import Listing, filters
from backend.label_studio.slow_answers import limited, too_slow

IMAGE_BYTES = 160 * 2**20  # 64 million uncompressed 16-bit pixels are 122 MiB
IMAGE_SECONDS = 300.0  # for a whole image; `timeout` applies to each chunk
FILE_PATHS = r"/(data|storage-data)/.|/(tasks|projects)/\d+/(resolve|presign)/?$"
CLOUDS = ("s3", "s3s", "gs", "azure-blob", "azure-spi")  # addresses that Label Studio's storages resolve
STORED = r"/(tasks|projects)/\d+/resolve/\?(.*&)?fileuri="
PORTS = {"http": 80, "https": 443}
REDIRECTS = 5
NAT64 = ipaddress.ip_network("64:ff9b::/96")
UNICAST = ipaddress.ip_network("2000::/3")  # all public addresses of IPv6
PROTOCOLS = ipaddress.ip_network("192.0.0.0/24")  # of IETF protocols; a cloud's metadata service is in it
SERVER_FAULTS = (401, 429, 502, 503, 504)  # statuses that are not the scan's fault


def _is_file(path: str, root: str) -> bool:
    """Whether a path on Label Studio's host, below the sub-path `root`, is one at which it serves files."""
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
    """Whether an IP address is public; IPv4 embedded in IPv6 is judged as IPv4.

    `is_global` alone depends on the version of Python: it may call networks public that only a site routes.
    """
    ip = _as_ip(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is None and ip not in UNICAST:
            return False
        ip = inner or ip
    return ip is not None and ip.is_global and not ip.is_multicast and ip not in PROTOCOLS


def _unsupported(reference: str) -> str:
    """Why an address is not one of http, and what to do; "" if it is."""
    scheme, colon, rest = reference.partition(":")
    if re.match(r"[a-z]:[\\/]|\\\\|file:", reference, re.IGNORECASE):
        return (
            "its image is a file on a computer or a network drive, which Label Studio cannot show. Upload the file, or "
            "import it with `scanqueue import`."
        )
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) or scheme.lower() in ("http", "https"):
        return ""
    if scheme.lower() in CLOUDS:
        return (
            f"its image is in the bucket {rest.lstrip('/').partition('/')[0][:80]!r} ({scheme}), and no cloud storage "
            "of the project provides it. Add the bucket in Label Studio, Settings > Cloud Storage > Add Source Storage."
        )
    return (
        f"its image has an address that begins with {scheme[:20] + ':'!r}, which browsers do not show. Use an address "
        "of http or https, or upload the image."
    )


def _joined(base: str, reference: str) -> str:
    """`reference` as an absolute URL of http or https; raises UnreadableScan if that is invalid."""
    if why := _unsupported(reference):
        raise UnreadableScan(why)
    try:
        url = urljoin(base, reference)
        _ = urlsplit(url).port, httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise UnreadableScan(
            f"its image has the invalid address {reference[:100]!r} ({error}). "
            "Correct it, or delete the task and import the image again."
        ) from error
    return url


def _name(reference: str) -> str:
    """An image's file name for messages: the query may contain a signature, or the path of a local file."""
    parts = urlsplit(reference)
    query = parse_qs(parts.query)
    path = query.get("d", [parts.path])[0]
    if re.search(STORED, reference):
        with contextlib.suppress(ValueError):
            path = base64.urlsafe_b64decode(query["fileuri"][0]).decode()
    return path.rsplit("/", 1)[-1][:80]


def _forbidden(url: str, reference: str) -> str:
    """Why Label Studio answers 403 for a file, which it never does for an invalid token."""
    what = f"its image {_name(reference)!r} may not be read: the server answered 403. "
    if urlsplit(url).path.rstrip("/").endswith("/data/local-files"):
        return (
            what + "Label Studio does not serve local files: start it with LOCAL_FILES_SERVING_ENABLED=true, "
            "or import the image again as an upload."
        )
    return (
        what + "The owner of our token has no access to it, perhaps because it belongs to another organization. "
        "Import the image again in this one, or set SCANQUEUE_LABEL_STUDIO_API_KEY to a token of a user with access."
    )


def _slow(url: str, reference: str, how: str) -> str:
    return (
        f"its image {_name(reference)!r} arrived too slowly from {urlsplit(url).netloc}: {how}. Check how busy that "
        "server is, and the network and proxies on the way to it; scanqueue retries later."
    )


def _body(response: httpx.Response, reference: str, url: str) -> bytes:
    """The image in a response, within the limits on its size and time. Raises UnreadableScan."""
    name = _name(reference)
    if response.status_code >= 400 and re.search(STORED, reference):
        raise UnreadableScan(
            f"its image {name!r} is not available: Label Studio's cloud storage answered {response.status_code}. "
            "Check the file, and the storage's credentials in Settings > Cloud Storage."
        )
    if response.status_code >= 400:
        raise UnreadableScan(
            f"its image {name!r} is not available: the server answered {response.status_code}. "
            "Restore the file, or delete the task and import the image again."
        )
    if response.headers.get("content-encoding", "").lower() not in ("", "identity"):
        raise UnreadableScan(
            f"its image {name!r} arrived compressed, although that was not requested. Turn compression off on its host."
        )
    body, until = io.BytesIO(), time.monotonic() + IMAGE_SECONDS  # one buffer, which `getvalue` does not copy
    for piece in response.iter_raw():
        if time.monotonic() > until:
            raise UnreadableScan(_slow(url, reference, f"incomplete after {IMAGE_SECONDS:.0f} seconds"))
        if body.tell() + len(piece) > IMAGE_BYTES:
            raise UnreadableScan(f"its image {name!r} is larger than {IMAGE_BYTES >> 20} MiB. Make it smaller.")
        body.write(piece)
    return body.getvalue()


class ScanSource(Listing):
    """Fetches the images that tasks refer to."""

    def image(self, reference: str) -> bytes:
        """The bytes of a task's image: an upload, a local file, a URL on an allowed host, or a `data:` URI.

        Raises UnreadableScan if this scan is not available, StudioUnavailable if Label Studio is not.
        """
        if not isinstance(reference, str) or not reference:
            raise UnreadableScan("the task has no image under the key in the label config; import it again.")
        if parse_inline(reference) or reference[:5].lower() == "data:":
            return self._inline(reference)
        url = _joined(self.url, reference)
        own = urlsplit(self.url)
        if reference.startswith("/") and own.path.rstrip("/") and not reference.startswith(own.path):
            url = self.url + reference.lstrip("/")
        elif found := re.search(STORED, url):  # Label Studio writes its public address there, which may not be ours
            url = self.url.rstrip("/") + url[found.start() :]
        renewed, ours = False, False
        with limited(httpx.Client(timeout=self._timeout, verify=self._certificates)) as client:
            for _ in range(REDIRECTS):
                ours = self._allowed(url, redirected=ours)
                self.requests += 1
                started = time.monotonic()
                try:
                    authorization = {"Authorization": self._authorization()} if ours else {}
                    address, name, extensions = (url, {}, {}) if ours else self._pinned(url)
                    headers = {"Accept-Encoding": "identity", **authorization, **name}
                    with client.stream("GET", address, headers=headers, extensions=extensions) as response:
                        if response.is_redirect:
                            url = _joined(url, response.headers.get("location", ""))
                            continue
                        if ours and response.status_code == 401 and not renewed and self._with_new_token():
                            renewed = True
                            continue
                        fault = response.status_code in SERVER_FAULTS
                        if ours and (fault or (response.status_code >= 500 and not self._is_well())):
                            raise self._refusal(response.status_code, response.reason_phrase, "an image")
                        if ours and response.status_code == 403:
                            raise UnreadableScan(_forbidden(url, reference))
                        body = _body(response, reference, url)
                        if ours:
                            self._count("studio", "GET image", time.monotonic() - started)
                        return body
                except httpx.RemoteProtocolError as error:
                    if not re.search(STORED, url):
                        raise self._silent(url, error, ours) from error
                    raise UnreadableScan(
                        f"its image {_name(reference)!r} arrived incomplete from the cloud storage. Raise "
                        'RESOLVER_PROXY_TIMEOUT of Label Studio, or turn "Use pre-signed URLs" on in the settings '
                        "of the storage."
                    ) from error
                except (httpx.HTTPError, ValueError) as error:  # ValueError: the token response is not JSON
                    if slow := too_slow(error):
                        raise UnreadableScan(_slow(url, reference, slow)) from error
                    raise self._silent(url, error, ours) from error
                except ApiError as error:
                    raise self._refusal(error.status_code or 0, error.body, "/api/token/refresh/") from error
        raise UnreadableScan(f"its image has more than {REDIRECTS} redirects; use its final address.")

    def _is_well(self) -> bool:
        """Whether Label Studio answers something else: an error of its server may be about one file, or everything."""
        try:
            self.version()
        except (StudioUnavailable, StudioRefused):
            return False
        return True

    def _silent(self, url: str, error: Exception, ours: bool) -> StudioUnavailable | UnreadableScan:
        """The error to raise when a server does not answer."""
        if ours:
            self._count("studio_error", "no answer")
            return StudioUnavailable(f"Label Studio at {self.url} does not answer ({type(error).__name__}).")
        return UnreadableScan(
            f"{urlsplit(url).netloc} does not answer ({type(error).__name__}); scanqueue retries later."
        )

    def _inline(self, kept: str) -> bytes:
        """The image of a `data:` URI, which may be that of a task (`image_value.reference`)."""
        uri, digest = kept, ""
        if found := parse_inline(kept):
            project, task, digest, value = found
            query = filters(("id", "in_list", "List", [task]))
            rows = [row.get("data") or {} for row in self._task_rows(project, "id,data", query)]
            uri = resolve(value, rows[0]) if rows else ""
        data = decode_data_uri(uri)
        if data is None or (digest and not is_unchanged(uri, digest)):
            what = "was changed; scanqueue reads it again" if data is not None else "is invalid; import the image again"
            raise UnreadableScan(f"its image is a data: URI that {what}.")
        if len(data) > IMAGE_BYTES:
            raise UnreadableScan(f"its image is larger than {IMAGE_BYTES >> 20} MiB. Make it smaller.")
        return data

    def _authorization(self) -> str:
        return str(self._client()._client_wrapper.get_headers()["Authorization"])

    def _allowed(self, url: str, redirected: bool) -> bool:
        """True for a file of Label Studio, False for an allowed host; raises UnreadableScan for any other URL."""
        parts, own = urlsplit(url), urlsplit(self.url)
        host = one_host(parts.hostname or "")
        if "@" in parts.netloc or httpx.URL(url).host != (parts.hostname or "").lower():  # ambiguous
            raise UnreadableScan(
                f"its image has the address {parts.path[:100]!r} with a user name or an ambiguous host. "
                "Correct it, or import the image again."
            )
        ports = [one.port or PORTS.get(one.scheme) for one in (parts, own)]
        if host == one_host(own.hostname or "") and ports[0] == ports[1] and parts.scheme == own.scheme:
            if not _is_file(parts.path, own.path):
                raise UnreadableScan(
                    f"its image has the address {parts.path[:100]!r}, which is not a file in Label Studio. "
                    "Import the image again."
                )
            return True
        if host in self._image_hosts or one_host(parts.netloc) in self._image_hosts:
            return False
        if redirected and host == one_host(own.hostname or "") and _is_file(parts.path, own.path):
            raise UnreadableScan(
                f"Label Studio redirects its image to {parts.scheme}://{parts.netloc}. "
                "Set SCANQUEUE_LABEL_STUDIO_URL to that address and restart scanqueue."
            )
        if redirected:
            raise UnreadableScan(
                f"its image is in a cloud storage, whose host {parts.netloc!r} scanqueue may not contact. Add the host "
                'to SCANQUEUE_IMAGE_HOSTS and restart scanqueue, or turn "Use pre-signed URLs" off in the storage\'s '
                "settings in Label Studio."
            )
        raise UnreadableScan(
            f"its image is on {parts.netloc!r}, which is neither Label Studio nor an allowed host. "
            "If you trust that host, add it to SCANQUEUE_IMAGE_HOSTS and restart scanqueue."
        )

    def _pinned(self, url: str) -> tuple[str, dict[str, str], dict[str, Any]]:
        """URL, headers and extensions for a request to an allowed host at an IP address that was checked.

        The owner of a DNS name must not be able to redirect our requests into the local network, not even between
        check and request (DNS rebinding). Entries that are IP addresses, or names marked with "!", are not checked.
        """
        parts = urlsplit(url)
        host = parts.hostname or ""
        if _as_ip(one_host(host)) or self._local_hosts & {one_host(host), one_host(parts.netloc)}:
            return url, {}, {}
        try:
            port = parts.port or PORTS[parts.scheme]
            found = sorted(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))  # IPv4 first
        except (OSError, UnicodeError) as error:
            raise UnreadableScan(f"the host {host!r} was not found ({error}); scanqueue retries later.") from error
        addresses = [str(sockaddr[0]) for *_, sockaddr in found]
        local = [address for address in addresses if not _is_public(address)]
        if local:
            raise UnreadableScan(
                f"its image is on {host!r}, whose address {local[0]} is in the local network. If that is intended, "
                f"write {host + '!'!r} in SCANQUEUE_IMAGE_HOSTS."
            )
        target = httpx.URL(url).copy_with(host=addresses[0])
        return str(target), {"Host": parts.netloc}, {"sni_hostname": host}
