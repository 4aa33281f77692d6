"""Slows down the guessing of passwords: after a few wrong ones, an address waits longer and longer for the next try.

While an address waits, its credentials are not even compared, so an answer says nothing about them, however many
requests it sends at once. Two kinds of credentials are answered at any time, as their sender knows the answer: those
that were right from this address before (Label Studio, a browser that is logged in), and those that were wrong (a Label
Studio with an old password, which so never has to wait once its password is corrected).
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger("scanqueue.api")

FREE = 10  # different wrong credentials before an address has to wait
LONGEST = 60.0  # seconds to wait at most; the first wait is one second, and each further wrong password doubles it
FORGOTTEN = 3600.0  # seconds without a wrong password after which an address starts afresh
ADDRESSES = 10_000  # that are remembered, the least recent ones forgotten first: at most 10 MB
KEPT = 8  # digests of right and of wrong credentials per address


@dataclass
class _Address:
    wrong_ones: int = 0
    latest: float = 0.0  # when the latest wrong credentials came
    until: float = 0.0
    right: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    wrong: OrderedDict[bytes, None] = field(default_factory=OrderedDict)


class Guesses:
    """The wrong credentials by address, in this process. Not for threads: one event loop calls it.

    clock  monotonic seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._addresses: OrderedDict[str, _Address] = OrderedDict()

    def right(self, address: str, credentials: str, compare: Callable[[], bool]) -> bool:
        """Whether the credentials are right. Raises TooManyGuesses while the address has to wait.

        compare  compares them with the right ones, in constant time
        """
        place = network_of(address)
        known = self._addresses.get(place)
        if known is None:
            known = self._addresses[place] = _Address()
            while len(self._addresses) > ADDRESSES:
                self._addresses.popitem(last=False)
        self._addresses.move_to_end(place)
        digest, now = hashlib.blake2b(credentials.encode(), key=self._key, digest_size=16).digest(), self._clock()
        for answer, digests in ((True, known.right), (False, known.wrong)):
            if digest in digests:
                digests.move_to_end(digest)
                return answer
        if now < known.until:
            raise TooManyGuesses(math.ceil(known.until - now))
        found = compare()
        _keep(known.right if found else known.wrong, digest)
        if not found:
            self._count(place, known, now)
        return found

    @staticmethod
    def _count(place: str, known: _Address, now: float) -> None:
        known.wrong_ones = 1 + (known.wrong_ones if now - known.latest < FORGOTTEN else 0)
        known.latest = now
        if known.wrong_ones >= FREE:
            known.until = now + min(LONGEST, 2.0 ** min(known.wrong_ones - FREE, 30))
        if known.wrong_ones == FREE:
            log.warning("%d different wrong passwords came from %s; it has to wait between further ones", FREE, place)


class TooManyGuesses(Exception):
    """The address has to wait `seconds` before its credentials are compared again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"Too many wrong passwords came from your address. Try again in {seconds} s.")
        self.seconds = seconds


def network_of(address: str) -> str:
    """What one sender can choose its address from: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def _keep(digests: OrderedDict[bytes, None], digest: bytes) -> None:
    digests[digest] = None
    while len(digests) > KEPT:
        digests.popitem(last=False)
