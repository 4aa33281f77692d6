"""Hostile tasks, hosts and files have no effect. Real servers on the loopback address."""

from __future__ import annotations

import gzip
import io
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from backend.errors import UnreadableScan
from backend.formats.pixels import decode_image
from backend.label_studio import scan_source
from backend.label_studio.scan_source import _is_public
from backend.label_studio.studio import Studio


class Hostile:
    """Answers `/bomb`, `/zstd`, `/large`, `/drip`, `/away`, and records the requests."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append((self.path, dict(self.headers)))
                if self.path == "/away":
                    self.send_response(302)
                    self.send_header("Location", f"http://pacs.invalid:{outer.port}/inside")
                    self.end_headers()
                    return
                self.send_response(200)
                if self.path in ("/bomb", "/zstd"):
                    self.send_header("Content-Encoding", "gzip" if self.path == "/bomb" else "zstd")
                self.end_headers()
                try:
                    if self.path == "/bomb":
                        self.wfile.write(gzip.compress(bytes(2**24)))
                    elif self.path == "/large":
                        self.wfile.write(bytes(2**22))
                    elif self.path == "/drip":
                        for _ in range(100):
                            self.wfile.write(b"x")
                            time.sleep(0.1)
                    else:
                        self.wfile.write(b"pixels")
                except OSError:
                    pass  # we closed the connection, as intended

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    server = Hostile()
    yield server
    server.close()


def ours(*hosts: str) -> Studio:
    return Studio("http://label-studio.invalid", "0" * 40, image_hosts=hosts)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pacs.invalid` is a name of this machine."""
    real = socket.getaddrinfo

    def found(host: str, *args: object, **kwargs: object) -> object:
        return real("127.0.0.1" if host == "pacs.invalid" else host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", found)


@pytest.mark.usefixtures("names")
def test_a_listed_name_that_resolves_to_the_local_network_gets_no_request(hostile: Hostile) -> None:
    with pytest.raises(UnreadableScan, match=r"local network.*pacs\.invalid!"):
        ours("pacs.invalid").image(f"http://pacs.invalid:{hostile.port}/scan.png")
    assert hostile.seen == []


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("entry", ["pacs.invalid!", "pacs.invalid:{}!"])
def test_a_marked_name_gets_requests_without_our_token(hostile: Hostile, entry: str) -> None:
    host = entry.format(hostile.port)
    assert ours(host).image(f"http://pacs.invalid:{hostile.port}/scan.png") == b"pixels"
    assert "Authorization" not in hostile.seen[0][1]


@pytest.mark.usefixtures("names")
def test_every_hop_of_a_redirect_is_checked(hostile: Hostile) -> None:
    with pytest.raises(UnreadableScan, match="local network"):
        ours("127.0.0.1", "pacs.invalid").image(f"http://127.0.0.1:{hostile.port}/away")
    assert [path for path, _ in hostile.seen] == ["/away"]


def test_we_connect_to_the_address_that_was_checked(hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the check is replaced, so that a loopback server can represent one on the internet."""
    monkeypatch.setattr(scan_source, "_is_public", lambda _: True)
    asked: list[str] = []
    real = socket.getaddrinfo

    def once(host: str, *args: object, **kwargs: object) -> object:
        asked.append(str(host))
        return real("127.0.0.1" if host == "images.invalid" else host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", once)
    assert ours("images.invalid").image(f"http://images.invalid:{hostile.port}/scan.png") == b"pixels"
    assert asked.count("images.invalid") == 1
    assert hostile.seen[0][1]["Host"] == f"images.invalid:{hostile.port}"


@pytest.mark.parametrize("name", ["127.0.0.1", "u:p@127.0.0.1", "label-studio.invalid@127.0.0.1"])
def test_an_address_with_a_user_name_gets_no_request(hostile: Hostile, name: str) -> None:
    address = f"http://{name}:{hostile.port}/scan.png"
    if "@" not in name:
        assert ours("127.0.0.1").image(address) == b"pixels"
        return
    with pytest.raises(UnreadableScan):
        ours("127.0.0.1").image(address)
    assert hostile.seen == []


def test_a_name_that_is_resolved_to_another_address_later_is_checked_at_every_hop(
    hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public address at the first question and a local one at the second, as its owner's name server may answer."""
    answers = iter(["93.184.216.34", "127.0.0.1", "::1", "::ffff:10.0.0.1", "192.0.0.192"])
    real = socket.getaddrinfo
    connected: list[str] = []

    def turning(host: str, *args: object, **kwargs: object) -> object:
        return real(next(answers) if host == "turns.invalid" else host, *args, **kwargs)  # type: ignore[arg-type]

    def nowhere(address: tuple[str, int], *_: object, **__: object) -> socket.socket:
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", turning)
    with monkeypatch.context() as offline:
        offline.setattr(socket, "create_connection", nowhere)
        with pytest.raises(UnreadableScan, match="does not answer"):
            ours("turns.invalid").image(f"http://turns.invalid:{hostile.port}/scan.png")
    assert connected == ["93.184.216.34"]
    for _ in range(4):
        with pytest.raises(UnreadableScan, match="local network"):
            ours("turns.invalid").image(f"http://turns.invalid:{hostile.port}/scan.png")
    assert hostile.seen == []


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("name", ["0", "0.0.0.0", "127.1", "2130706433", "0x7f000001", "017700000001"])
def test_another_spelling_of_this_machine_gets_no_request(hostile: Hostile, name: str, listed: bool) -> None:
    """Unlisted it is another host than any listed one; a listed name is checked by the address that it means."""
    hosts = (name,) if listed and name != "0.0.0.0" else ("127.0.0.1",)
    with pytest.raises(UnreadableScan):
        ours(*hosts).image(f"http://{name}:{hostile.port}/scan.png")
    assert hostile.seen == []


@pytest.mark.parametrize(
    "name",
    [
        *(
            "127.0.0.1.",
            "localhost.",
            "[::ffff:127.0.0.1]",
            "[::]",
            "0177.0.0.1",
            "127\u30020\u30020\u30021",
            "\uff4cocalhost",
        ),
        *("127.0.0.1%00.x", "127.0.0.1\\@x", "x#@127.0.0.1", "x?@127.0.0.1", "127.0.0.1\t", "\r\n127.0.0.1"),
    ],
)
def test_an_ambiguous_host_gets_no_request(hostile: Hostile, name: str) -> None:
    with pytest.raises(UnreadableScan):
        ours("pacs.lab").image(f"http://{name}:{hostile.port}/scan.png")
    assert hostile.seen == []


def test_compressed_too_large_or_too_slow_answers_are_aborted(
    hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_source, "IMAGE_BYTES", 2**20)
    monkeypatch.setattr(scan_source, "IMAGE_SECONDS", 0.5)
    faults = {"/bomb": "not requested", "/zstd": "not requested", "/large": "larger than 1 MiB", "/drip": "too slowly"}
    for path, words in faults.items():
        began = time.monotonic()
        with pytest.raises(UnreadableScan, match=words):
            ours("127.0.0.1").image(f"http://127.0.0.1:{hostile.port}{path}")
        assert time.monotonic() - began < 5


def test_an_image_is_in_memory_once_and_the_largest_decodable_one_fits(
    hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 128 * 2**20 < scan_source.IMAGE_BYTES <= 160 * 2**20  # 64 million pixels of 16 bits are 122 MiB
    tracemalloc.start()
    try:
        assert len(ours("127.0.0.1").image(f"http://127.0.0.1:{hostile.port}/large")) == 2**22
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 2**22  # what the server sends, what was read, and a buffer that grows by an eighth


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "::"),
        *("fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "ff02::1"),
        *("192.0.0.192", "198.18.0.1", "255.255.255.255", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b:1::7f00:1"),
        *("fec0::1", "5f00::1", "2001:db8::1", "fd00:ec2::254", "::ffff:169.254.169.254", "127.1", "2130706433", ""),
    ],
)
def test_non_public_addresses_are_recognized(address: str) -> None:
    assert not _is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_public_addresses_are_recognized(address: str) -> None:
    assert _is_public(address)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PCX", "TGA", "ICO", "SGI"])
def test_formats_that_no_browser_shows_are_not_decoded(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, kind)
    with pytest.raises(UnreadableScan, match="not an image"):
        decode_image(file.getvalue())
