"""Changes its memory and its files in every way that matters to a delta, and says what it has of both.

Answers on port 8000: `step SEED` changes, `state` tells. The nonce exists only in memory; what a page or a file ought
to hold is asked of the program itself, so what comes back is compared with what the same program said before.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import secrets
import socket
import stat
from pathlib import Path

import memory_churn as churn

HOME = Path("/var/churn")
NAMES = [b"a", b"b", b"c", b"\xff\xfe not text", b"d/a", b"d/b", b"d/e/f"]

nonce = secrets.token_hex(16)
regions = [churn.new_region(pages, churn.PRIVATE | churn.ANONYMOUS) for pages in (1, 50, 700)]
HOME.mkdir()
(HOME / "mapped").write_bytes(os.urandom(40 * churn.PAGE))
mapped = os.open(HOME / "mapped", os.O_RDWR)
memory_file = os.memfd_create("churn")
os.truncate(memory_file, 60 * churn.PAGE)
fixed = [
    churn.new_region(200, churn.SHARED | churn.ANONYMOUS),
    churn.new_region(60, churn.SHARED, fd=memory_file),
    churn.new_region(40, churn.SHARED, fd=mapped),
    churn.new_region(40, churn.PRIVATE, fd=mapped),
]
children: list[tuple[int, int]] = []


def child_loop(listen: int, answer: int) -> None:
    """A copy of the parent with a life of its own from here on."""
    while True:
        seed = int(os.read(listen, 100))
        if seed >= 0:
            churn.churn(regions, fixed[1:2], random.Random(seed))
        os.write(answer, memory_digest(regions).encode())


def fork_child() -> None:
    mine, to_child = os.pipe()
    from_child, theirs = os.pipe()
    if os.fork() == 0:
        # the connection that asked for this step must not live on in the child
        for fd in set(range(3, 64)) - {mine, theirs, mapped, memory_file}:
            with contextlib.suppress(OSError):
                os.close(fd)
        child_loop(mine, theirs)
    os.close(mine)
    os.close(theirs)
    children.append((to_child, from_child))


def ask_children(seed: int) -> list[str]:
    said = []
    for number, (to_child, from_child) in enumerate(children):
        os.write(to_child, str(seed if seed < 0 else seed * 100 + number).encode())
        said.append(os.read(from_child, 100).decode())
    return said


def memory_digest(of: list[churn.Region]) -> str:
    digest = hashlib.sha256()
    for address, length in of:
        digest.update(f"{address:x} {length:x}".encode())
        digest.update(churn.ctypes.string_at(address, length))
    return digest.hexdigest()


def change_files(rng: random.Random) -> None:
    for _ in range(6):
        path = os.fsencode(HOME) + b"/" + rng.choice(NAMES)
        other = os.fsencode(HOME) + b"/" + rng.choice(NAMES)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        what = rng.randrange(8)
        try:
            if what < 3:
                with open(path, rng.choice(["wb", "ab"])) as file:
                    file.write(rng.randbytes(rng.choice([0, 10, 5000])))
            elif what == 3:
                os.unlink(path)
            elif what == 4:
                os.rename(path, other)
            elif what == 5:
                os.link(path, other)
            elif what == 6:
                os.chmod(path, rng.choice([0o600, 0o644, 0o4755]))
            else:
                os.unlink(b"/etc/hosts.bak") if rng.random() < 0.5 else os.symlink(path, b"/etc/hosts.bak")
        except OSError:
            continue


def files_digest() -> str:
    digest = hashlib.sha256()
    for directory, names, files in os.walk(os.fsencode(HOME)):
        names.sort()
        for name in sorted(files):
            path = directory + b"/" + name
            found = os.lstat(path)
            digest.update(path + b" %o %d %d" % (found.st_mode, found.st_nlink, found.st_mtime_ns))
            if stat.S_ISREG(found.st_mode):
                digest.update(Path(os.fsdecode(path)).read_bytes())
    digest.update(b"%d" % os.path.lexists("/etc/hosts.bak"))
    return digest.hexdigest()


def step(seed: int) -> None:
    rng = random.Random(seed)
    churn.churn(regions, fixed, rng)
    change_files(rng)
    if seed % 4 == 1 and len(children) < 4:
        fork_child()
    ask_children(seed)


def state() -> str:
    return "\n".join([nonce, memory_digest(regions + fixed), files_digest(), *ask_children(-1)])


def main() -> None:
    listening = socket.create_server(("127.0.0.1", 8000))
    while True:
        connection, _ = listening.accept()
        with connection:
            words = connection.recv(100).decode().split()
            if not words:
                continue  # a readiness probe
            if words[0] == "step":
                step(int(words[1]))
            connection.sendall(state().encode())


if __name__ == "__main__":
    main()
