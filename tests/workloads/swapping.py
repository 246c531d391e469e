"""Exchanges a directory for links that lead elsewhere, as fast as it can, while somebody walks it: argv names the place
and what the links name. Prints a line when it has begun, and counts its rounds in PLACE.rounds.
"""

import ctypes
import os
import sys

RENAME_EXCHANGE = 2
AT_FDCWD = -100

place, targets = sys.argv[1], sys.argv[2:]
libc = ctypes.CDLL(None, use_errno=True)
os.makedirs(place, exist_ok=True)
with open(f"{place}/file", "w") as file:
    file.write("inside")
for number, target in enumerate(targets):
    if not os.path.lexists(f"{place}.{number}"):
        os.symlink(target, f"{place}.{number}")
print("swapping", flush=True)
rounds = 0
while True:
    other = f"{place}.{rounds % len(targets)}".encode()
    libc.renameat2(AT_FDCWD, place.encode(), AT_FDCWD, other, RENAME_EXCHANGE)
    libc.renameat2(AT_FDCWD, place.encode(), AT_FDCWD, other, RENAME_EXCHANGE)
    os.makedirs(place, exist_ok=True)  # it may have been removed
    rounds += 1
    if rounds % 100 == 0:
        with open(f"{place}.new", "w") as file:
            file.write(str(rounds))
        os.rename(f"{place}.new", f"{place}.rounds")
