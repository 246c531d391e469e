"""What systemd is told of a service (sd_notify): a datagram to the socket that it named."""

from __future__ import annotations

import contextlib
import socket


def notify(address: str, *facts: str) -> None:
    """Tell `READY=1`, `STOPPING=1`, `STATUS=…` to the socket at `address`; nothing happens when that is empty.

    A supervisor that does not listen is no reason to fail: what it is told is told once.
    """
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address  # an abstract socket
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
        telling.connect(name)
        telling.sendall("\n".join(facts).encode())
