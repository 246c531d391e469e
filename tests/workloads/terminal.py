"""A bash on a pseudo-terminal that this program holds by Python's own pty module."""

from __future__ import annotations

import os
import pty
import secrets
import time

from answering import serve

nonce = secrets.token_hex(8)
bash, terminal = pty.fork()
if bash == 0:
    os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])


def is_waiting() -> bool:
    """Whether bash sleeps with no signal blocked: while it moves its terminal between jobs it blocks some."""
    with open(f"/proc/{bash}/status") as file:
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    return status["State"].startswith("S") and int(status["SigBlk"], 16) == 0


def ask(line: str) -> str:
    """What bash prints for a command, between two words that the echo of the command does not hold."""
    first, last = secrets.token_hex(8), secrets.token_hex(8)
    quoted = [f"{word[:8]}''{word[8:]}" for word in (first, last)]
    os.write(terminal, f"echo {quoted[0]}; {line}; echo {quoted[1]}\n".encode())
    seen = b""
    while b"# " not in seen.partition(last.encode())[2]:  # its next prompt
        seen += os.read(terminal, 65536)
    while not is_waiting():
        time.sleep(0.001)
    return seen.decode().partition(first)[2].partition(last)[0].strip()


ask(f"stty -echo; nonce={nonce}; count=0; sleep 1000 & true")
serve(
    lambda: {"answer": ask("echo $nonce $count $$ $(tty) $(stty size) $(jobs -r)"), "pid": bash},
    lambda: {"monotonic": time.monotonic_ns()},
    lambda: ask("count=$((count + 1))") and None,
)
