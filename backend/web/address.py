"""Whether the server can listen on its address, before it says that it does."""

from __future__ import annotations

import errno
import socket

from backend.errors import BadSetting
from backend.settings import PREFIX


def check_address(host: str, port: int) -> None:
    """Raise BadSetting if no name or network of this machine is `host`, or if its port is taken or not permitted."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # the latter for what no name can be
        why = error.strerror if isinstance(error, OSError) else "it is not a name"
        raise BadSetting(_no_host(host, str(why))) from error
    faults = [fault for family, _, _, _, address in found if (fault := _bind(family, address)) is not None]
    taken = next((fault for fault in faults if fault.errno == errno.EADDRINUSE), None)
    if taken is not None:
        raise BadSetting(
            f"Port {port} of {host} is in use by another program, perhaps another scanqueue. Stop that program, or set "
            f"{PREFIX}PORT to a free port."
        ) from taken
    if len(faults) == len(found):  # one address may lack, such as ::1 of localhost
        if faults[0].errno == errno.EACCES:
            raise BadSetting(f"This user may not listen on port {port}. Set {PREFIX}PORT to 1024 or more.") from faults[
                0
            ]
        raise BadSetting(_no_host(host, str(faults[0].strerror))) from faults[0]


def _no_host(host: str, why: str) -> str:
    shown = repr(host) if len(host) <= 100 else f"{host[:100]!r}..."
    return (
        f"{PREFIX}HOST={shown} cannot be listened on: {why}. Set it to an address of this machine, such as 127.0.0.1, "
        "or to 0.0.0.0 for all of them."
    )


def _bind(family: int, address: tuple[object, ...]) -> OSError | None:
    """The error of binding the address, as the server does it; None without one."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None
