"""Lives in a mount namespace of its own: changes a real overlay, captures it, and compares stacks of captures with it.

Reads one JSON list of operations a line, answers each with a JSON list of differences; the names of the rest are in
`Round`. Started by test_trees.py through `unshare --mount`.
"""

# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH115, PTH208, PTH211 — paths are what system calls take

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from thawbox.host.layer_stacks import merge_layers, stack_onto
from thawbox.host.lower_names import OverlayView
from thawbox.host.tree_copies import copy_attributes
from thawbox.host.trees import CLOCK_TICK_NS, Marks, copy_layer, shared_mappings

SECRET = b"what lies outside of the overlay"
OPTIONS = "volatile,index=on,nfs_export=on,redirect_dir=nofollow,metacopy=off"
CLOCK_REALTIME_COARSE = 5  # linux/time.h
libc = ctypes.CDLL(None, use_errno=True)

Seen = dict[str, tuple[object, ...]]


def mount(lowers: list[str], upper: str, work: str, target: str) -> None:
    options = f"lowerdir={':'.join(lowers)},upperdir={upper},workdir={work},{OPTIONS}"
    if libc.mount(b"overlay", target.encode(), b"overlay", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"mount {options}")


def unmount(target: str) -> None:
    if libc.umount2(target.encode(), 2) != 0:
        raise OSError(ctypes.get_errno(), "umount")


def take_over_root(lowers: list[str], upper: str) -> None:
    """An overlay's own directory shows the attributes of its writable layer, so a new one is given those beneath."""
    copy_attributes(lowers[-1], upper, os.lstat(lowers[-1]))


def look(root: str) -> Seen:
    """Everything a program can see of a tree: type, mode, owner, time, content, attributes, and which names are one."""
    seen: Seen = {}
    first: dict[tuple[int, int], str] = {}
    pending = [""]
    while pending:
        path = pending.pop()
        full = root + path
        found = os.lstat(full)
        kind = stat.S_IFMT(found.st_mode)
        content: object = None
        if kind == stat.S_IFDIR:
            pending += sorted(f"{path}/{name}" for name in os.listdir(full))
        elif kind == stat.S_IFREG:
            content = Path(full).read_bytes()
        elif kind == stat.S_IFLNK:
            content = os.readlink(full)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            content = found.st_rdev
        names = os.listxattr(full, follow_symlinks=False)
        attributes = {name: os.getxattr(full, name, follow_symlinks=False) for name in sorted(names)}
        one_with = "" if kind == stat.S_IFDIR else first.setdefault((found.st_dev, found.st_ino), path)
        seen[path] = (
            found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, content, tuple(attributes.items()), one_with,
        )  # fmt: skip
    # the first name of an inode depends on the order of the walk alone if both trees are walked alike
    return seen


def differences(wanted: Seen, found: Seen, what: str) -> list[str]:
    report = [f"{what}: {path!r} is missing" for path in sorted(wanted.keys() - found.keys())]
    report += [f"{what}: {path!r} should not be there" for path in sorted(found.keys() - wanted.keys())]
    for path in sorted(wanted.keys() & found.keys()):
        for name, one, other in zip(
            ("mode", "uid", "gid", "mtime", "content", "attributes", "link"), wanted[path], found[path], strict=True
        ):
            if one != other:
                report.append(f"{what}: {path!r} has {name} {str(other)[:80]} instead of {str(one)[:80]}")
    return report


class Round:
    """One overlay from its first operation to the comparison. Paths are relative to its mountpoint."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rootfs = str(root / "rootfs")
        self.frozen: list[str] = []  # base first: captures that became lower layers by a restore
        self.captured: list[str] = []
        self.seen: list[tuple[list[str], Seen]] = []
        self.marks: Marks = {}
        self.maps: list[mmap.mmap] = []
        self.number = 0
        self._make_rootfs()
        self._mount()

    def new_directory(self) -> str:
        self.number += 1
        path = self.root / str(self.number)
        path.mkdir()
        return str(path)

    def _make_rootfs(self) -> None:
        for name in ("low", "low/deep", "low/deep/er", "d", "gone"):
            (self.root / "rootfs" / name).mkdir(parents=True)
        for name in ("low/f", "low/g", "low/deep/f", "low/deep/er/x", "d/f", "gone/a", "gone/b", "f"):
            (self.root / "rootfs" / name).write_bytes(name.encode() * 1000)
        os.link(self.rootfs + "/low/f", self.rootfs + "/d/linked")
        os.link(self.rootfs + "/low/f", self.rootfs + "/low/deep/linked")
        os.symlink("f", self.rootfs + "/low/l")
        os.setxattr(self.rootfs + "/low/g", "user.low", b"1")
        os.setxattr(self.rootfs + "/low/deep", "user.low", b"1")

    def _mount(self) -> None:
        self.upper, self.work, self.live = self.new_directory(), self.new_directory(), self.new_directory()
        take_over_root([self.rootfs, *self.frozen], self.upper)
        mount([*reversed(self.frozen), self.rootfs], self.upper, self.work, self.live)
        self.view = OverlayView(self.live, (*reversed(self.frozen), self.rootfs), f"{self.work}/index")

    def path(self, name: str) -> str:
        return f"{self.live}/{name}"

    # --- what a program does

    def do_write(self, name: str, offset: int, length: int, fill: int) -> None:
        fd = os.open(self.path(name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.pwrite(fd, bytes([fill]) * length, offset)
        finally:
            os.close(fd)

    def do_truncate(self, name: str, size: int) -> None:
        if stat.S_ISREG(os.lstat(self.path(name)).st_mode):
            os.truncate(self.path(name), size)

    def do_unlink(self, name: str) -> None:
        os.unlink(self.path(name))

    def do_rename(self, name: str, other: str) -> None:
        os.rename(self.path(name), self.path(other))

    def do_exchange(self, name: str, other: str) -> None:
        if libc.renameat2(-100, os.fsencode(self.path(name)), -100, os.fsencode(self.path(other)), 2) != 0:
            raise OSError(ctypes.get_errno(), "exchange")

    def do_mkdir(self, name: str) -> None:
        os.mkdir(self.path(name))

    def do_rmdir(self, name: str) -> None:
        os.rmdir(self.path(name))

    def do_rmtree(self, name: str) -> None:
        if stat.S_ISDIR(os.lstat(self.path(name)).st_mode):
            shutil.rmtree(self.path(name))

    def do_chmod(self, name: str, mode: int) -> None:
        if not stat.S_ISLNK(os.lstat(self.path(name)).st_mode):
            os.chmod(self.path(name), mode)

    def do_chown(self, name: str, uid: int) -> None:
        os.chown(self.path(name), uid, uid + 1, follow_symlinks=False)

    def do_utime(self, name: str, seconds: int) -> None:
        os.utime(self.path(name), (seconds, seconds), follow_symlinks=False)

    def do_symlink(self, target: str, name: str) -> None:
        os.symlink(target, self.path(name))

    def do_link(self, name: str, other: str) -> None:
        os.link(self.path(name), self.path(other), follow_symlinks=False)

    def do_setxattr(self, name: str, key: str, value: int) -> None:
        os.setxattr(self.path(name), f"user.{key}", bytes([value]), follow_symlinks=False)

    def do_removexattr(self, name: str, key: str) -> None:
        os.removexattr(self.path(name), f"user.{key}", follow_symlinks=False)

    def do_mknod(self, name: str, kind: int) -> None:
        os.mknod(self.path(name), (stat.S_IFIFO, stat.S_IFCHR)[kind] | 0o600, os.makedev(1, 3))

    def do_map(self, name: str) -> None:
        """Map a file shared and dirty its page, so that what is written from now on changes no ctime."""
        fd = os.open(self.path(name), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_size:
                self.maps.append(mmap.mmap(fd, 1))
                self.maps[-1][0] = 0
        finally:
            os.close(fd)

    def do_poke(self, number: int, value: int) -> None:
        if self.maps:
            with contextlib.suppress(ValueError):
                self.maps[number % len(self.maps)][0] = value

    def do_unmap(self, number: int) -> None:
        if self.maps:
            self.maps.pop(number % len(self.maps)).close()

    def do_tick(self) -> None:
        """Let the clock of ctimes get far enough that what was changed before is trusted."""
        begun = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
        while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) - begun <= CLOCK_TICK_NS + 10_000_000:
            os.sched_yield()

    # --- what thawbox does

    def do_capture(self) -> None:
        self._finish(self._copy(live=False))

    def do_capture_ahead(self, operations: list[list[Any]]) -> None:
        """A copy ahead; then the program goes on, and the copy in the frozen moment is stacked onto the first."""
        ahead = self._copy(live=True)
        for operation in operations:
            self.apply(operation)
        late = self._copy(live=False)
        stack_onto(Path(late), Path(ahead))
        self._finish(ahead)

    def do_capture_amid_work(self, seed: int) -> None:
        """A copy ahead while a program works as fast as it can; it is stopped for the copy in the frozen moment."""
        worker = os.fork()
        if worker == 0:
            try:
                self._work_for_ever(random.Random(seed))
            finally:
                traceback.print_exc()
                os._exit(1)  # what stands above us on the stack is the parent's to clear away
        try:
            layers = [self._copy(live=True) for _ in range(2)]
        finally:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
        layers.append(self._copy(live=False))
        for layer in layers[1:]:
            stack_onto(Path(layer), Path(layers[0]))
        for directory, _, files in os.walk(layers[0]):
            for name in files:
                path = f"{directory}/{name}"
                if stat.S_ISREG(os.lstat(path).st_mode):
                    assert SECRET not in Path(path).read_bytes(), "the copy was led out of its layer"
        self._finish(layers[0])

    def _work_for_ever(self, rng: random.Random) -> None:
        """Files and directories that come, go and become others, and links that lead out of the overlay."""
        outside = str(self.root / f"outside-{os.getpid()}")
        os.mkdir(outside)
        for name in ("f", "x", "new"):
            Path(f"{outside}/{name}").write_bytes(SECRET)
        names = ["d/f", "d/new", "low/new", "new", "new/f", "new/x", "e", "e/f"]
        while True:
            name, other = rng.choice(names), rng.choice(names)
            self.apply(
                rng.choice(
                    [["write", name, rng.choice([0, 5000]), rng.randrange(1, 9000), rng.randrange(4)], ["unlink", name],
                     ["rename", name, other], ["mkdir", name], ["rmtree", name], ["symlink", outside, name],
                     ["link", name, other], ["chmod", name, 0o755], ["truncate", name, 1], ["mknod", name, 0]]
                )
            )  # fmt: skip

    def _copy(self, *, live: bool) -> str:
        target = self.new_directory()
        now, mapped = time.time_ns(), shared_mappings([os.getpid()])
        copied = copy_layer(
            self.upper, target, since=self.marks or None, mapped=mapped, now_ns=now, live=live, overlay=self.view
        )
        self.marks = copied.marks
        return target

    def _finish(self, layer: str) -> None:
        self.captured.append(layer)
        self.seen.append(([*self.frozen, *self.captured], look(self.live)))

    def do_restore(self) -> None:
        """Go on in a new writable layer over what was captured, as after a restore."""
        self.do_capture()
        self._close()
        self.frozen += self.captured
        self.captured, self.marks = [], {}
        self._mount()

    def _close(self) -> None:
        while self.maps:
            self.maps.pop().close()
        unmount(self.live)

    def apply(self, operation: list[Any]) -> None:
        name, *arguments = operation
        if name.startswith(("capture", "restore")):
            getattr(self, f"do_{name}")(*arguments)
            return
        with contextlib.suppress(OSError):
            getattr(self, f"do_{name}")(*arguments)

    # --- what must be equal

    def compare(self) -> list[str]:
        self.do_capture()
        self._close()
        found: list[str] = []
        for number, (layers, wanted) in enumerate(self.seen):
            found += differences(wanted, self._stacked(layers), f"capture {number}")
            merged = self.new_directory()
            merge_layers(map(Path, layers), Path(merged))
            found += differences(wanted, self._stacked([merged]), f"capture {number} merged")
            if len(layers) > 2:
                some = self.new_directory()
                merge_layers(map(Path, layers[: len(layers) // 2]), Path(some))
                rest = layers[len(layers) // 2 :]
                found += differences(wanted, self._stacked([some, *rest]), f"capture {number} half merged")
        return found

    def _stacked(self, layers: list[str]) -> Seen:
        target, upper = self.new_directory(), self.new_directory()
        take_over_root([self.rootfs, *layers], upper)
        mount([*reversed(layers), self.rootfs], upper, self.new_directory(), target)
        try:
            return look(target)
        finally:
            unmount(target)


def main() -> None:
    for line in sys.stdin:
        with tempfile.TemporaryDirectory(prefix="thawbox-trees-") as directory:
            one = Round(Path(directory))
            try:
                for operation in json.loads(line):
                    one.apply(operation)
                found = one.compare()
            finally:
                with contextlib.suppress(OSError):
                    one._close()
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
