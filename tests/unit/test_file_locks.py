"""Locks on shared files: seen as they are held, and asked for as whoever wants them back will."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from pathlib import Path

from thawbox.host.file_locks import find_shared_locks, is_held
from thawbox.model import Mount


def test_a_lock_is_found_by_its_descriptor_and_held_for_whoever_cannot_share_it(tmp_path: Path) -> None:
    mounts = (Mount(str(tmp_path), str(tmp_path)),)
    with (tmp_path / "file").open("w") as file:
        assert find_shared_locks([os.getpid()], mounts) == ()
        fcntl.flock(file, fcntl.LOCK_SH)
        (lock,) = find_shared_locks([os.getpid()], mounts)
        assert (lock.fd, lock.path, lock.exclusive, lock.whole) == (file.fileno(), file.name, False, True)
        assert not is_held(lock, mounts)
        assert is_held(replace(lock, exclusive=True), mounts)
    assert not is_held(replace(lock, exclusive=True), mounts)


def test_a_range_is_held_where_it_meets_another(tmp_path: Path) -> None:
    mounts = (Mount(str(tmp_path), str(tmp_path)),)
    with (tmp_path / "file").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)
        (lock,) = find_shared_locks([os.getpid()], mounts)
        assert (lock.exclusive, lock.whole, lock.start, lock.length) == (True, False, 5, 10)
        assert not is_held(replace(lock, start=15), mounts)
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)  # whoever closes a descriptor of the file loses it
        assert is_held(replace(lock, start=14), mounts)


def test_only_files_of_mounts_count_and_no_link_that_a_sandbox_planted_leads_out(tmp_path: Path) -> None:
    (shown := tmp_path / "shown").mkdir()
    mounts = (Mount(str(shown), str(shown)),)
    with (tmp_path / "other").open("w") as other, (shown / "file").open("w") as file:
        for one in (other, file):
            fcntl.flock(one, fcntl.LOCK_EX)
        (lock,) = find_shared_locks([os.getpid()], mounts)
        (shown / "file").unlink()
        assert not is_held(lock, mounts)
        (shown / "file").symlink_to(other.name)
        assert not is_held(lock, mounts)
