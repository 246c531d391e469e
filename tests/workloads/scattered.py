"""A large area of memory of which each `grow` changes many pages, far apart and in no order."""

from __future__ import annotations

import hashlib
import os
import random

from answering import serve

PAGE, PAGES = 4096, 6000
memory = bytearray(os.urandom(PAGES * PAGE))


def kept() -> dict[str, object]:
    return {"digest": hashlib.sha256(memory).hexdigest()}


def grow() -> None:
    for page in random.sample(range(PAGES), PAGES // 6):
        memory[page * PAGE + 7] ^= 0xFF


serve(kept, dict, grow)
