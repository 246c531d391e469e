"""Holds the master of a pty on which `dash -i` runs, as init does for `exec -it`; answers through a FIFO.

argv: the FIFO. Writes "ready" to it once; then, at each SIGUSR1, the next answer of the shell. The FIFO is open only
while it is written, so nothing leads out of the process tree when it is dumped.
"""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import sys
import termios
from pathlib import Path


def start_shell(slave: int) -> None:
    if os.fork() == 0:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for fd in range(3):
            os.dup2(slave, fd)
        os.closerange(3, 64)
        os.execv("/bin/dash", ["dash", "-i"])
    os.close(slave)


def ask(master: int, question: bytes, mark: bytes) -> bytes:
    os.write(master, question)
    seen = b""
    while mark not in seen:
        seen += os.read(master, 4096)
    return seen


def main(fifo: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    master, slave = pty.openpty()
    start_shell(slave)
    # Split quotes: the terminal echoes the question, which must not look like its answer.
    ask(master, b"nonce=held; echo rea''dy\n", b"ready")
    fifo.write_text("ready\n")
    answers = 0
    while True:
        signal.sigwait([signal.SIGUSR1])
        answers += 1
        ask(master, b"echo $nonce-an''swer-%d-on-$(tty)\n" % answers, b"held-answer-%d-on-/dev/pts/" % answers)
        fifo.write_text(f"held-answer-{answers}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
