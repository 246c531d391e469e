"""Keeps memory in pages of 2 MiB, private and shared; writes scattered bytes of it for every line in the fifo `ask`."""

from __future__ import annotations

import mmap
import os
import random
import sys
from pathlib import Path

HUGETLB = 0x40000
SIZE = 4 << 20


def main(directory: Path) -> None:
    ask, answer = (os.open(directory / name, os.O_RDWR) for name in ("ask", "answer"))
    kinds = (mmap.MAP_PRIVATE, mmap.MAP_SHARED)
    regions = [mmap.mmap(-1, SIZE, flags=kind | mmap.MAP_ANONYMOUS | HUGETLB) for kind in kinds]
    for region in regions:
        for at in range(0, SIZE, 8192):
            region[at : at + 4096] = os.urandom(4096)
    os.write(answer, b"ready\n")
    while os.read(ask, 4096):
        for region in regions:
            for _ in range(30):
                region[random.randrange(SIZE)] = random.randrange(256)
        os.write(answer, b"done\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
