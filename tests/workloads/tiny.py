"""The smallest thing to clone: a nonce made only in memory, told to whoever connects, beside the machine's name."""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path

nonce = secrets.token_hex(16)
listening = socket.create_server(("127.0.0.1", 8000), backlog=64)
while True:
    connection, _ = listening.accept()
    with connection, contextlib.suppress(OSError):  # who asked may be gone, and is after a restore
        connection.sendall(f"{nonce} {socket.gethostname()} {Path('/etc/machine-id').read_text()}".encode())
