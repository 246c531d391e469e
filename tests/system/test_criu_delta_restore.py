"""Real processes, real CRIU: every link of a chain restores to the memory that was frozen, byte for byte."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import pytest

from thawbox.engines.criu_delta import DeltaReport, flatten, is_clean, make_delta, make_full
from thawbox.engines.criu_images import join_records, read_dump_stats, read_inventory, read_tasks, split_records
from thawbox.engines.criu_pagemap import IN_PARENT, read_pagemap
from thawbox.engines.criu_pages import memories

ROOT = Path(__file__).parents[2]
CRIU = Path(os.environ.get("THAWBOX_CRIU", ROOT / "native" / "build" / "bin" / "criu"))
CHURN = ROOT / "tests" / "workloads" / "memory_churn.py"
HUGE = ROOT / "tests" / "workloads" / "huge_pages.py"
FIRST_PID = 3000
NOT_MEMORY = ("[vvar", "[vdso]", "[vsyscall]", "[uprobes]")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="CRIU needs root"),
    pytest.mark.skipif(not CRIU.exists(), reason=f"no CRIU at {CRIU}: run `make setup`"),
]

Snapshot = dict[tuple[int, str], bytes]
"""For each task (inner pid) and mapping (address range) its bytes."""


@dataclass(frozen=True, slots=True)
class Shell:
    """A pid and mount namespace of its own, in which a restored tree's pids are free; pid 1 does nothing."""

    keeper: int

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", "-t", str(self.keeper), "-p", "-m", "--", *argv]

    def criu(self, verb: str, images: Path, *options: str) -> None:
        done = self.try_criu(verb, images, *options)
        assert done.returncode == 0, done.stderr

    def try_criu(self, verb: str, images: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
        argv = self.command(str(CRIU), verb, "-D", str(images), "-o", "criu.log", "-v2", *options)
        return subprocess.run(argv, capture_output=True, timeout=60)

    def tasks(self) -> dict[int, int]:
        """Outer pid by inner pid of everything in here but pid 1."""
        own, found = Path(f"/proc/{self.keeper}/ns/pid").readlink(), dict[int, int]()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(entry.name)
                if (entry / "ns" / "pid").readlink() == own and pid != self.keeper:
                    status = (entry / "status").read_text()
                    found[int(status.split("NSpid:")[1].splitlines()[0].split()[-1])] = pid
        return found


@contextlib.contextmanager
def shell() -> Iterator[Shell]:
    argv = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child", "sh", "-c", "echo ready; exec sleep infinity"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as unshare:
        try:
            assert unshare.stdout is not None
            assert unshare.stdout.readline() == b"ready\n"
            children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text()
            yield Shell(int(children))
        finally:
            unshare.kill()


def ask(directory: Path, question: str) -> str:
    with (directory / "ask").open("w") as fifo:
        fifo.write(question + "\n")
    return listen(directory)


def listen(directory: Path) -> str:
    fd = os.open(directory / "answer", os.O_RDWR)
    try:
        ready, _, _ = select.select([fd], [], [], 30)
        assert ready, (directory / "output").read_text()
        return os.read(fd, 4096).decode().strip()
    finally:
        os.close(fd)


def start(inside: Shell, directory: Path, program: Path) -> None:
    for name in ("ask", "answer"):
        os.mkfifo(directory / name)
    (directory / "mapped").write_bytes(os.urandom(100 * 4096))
    # The kernel writes the processor's number into registered rseq areas whenever it likes.
    settings = "GLIBC_TUNABLES=glibc.pthread.rseq=0"
    launch = f"""
        echo {FIRST_PID} > /proc/sys/kernel/ns_last_pid
        {settings} setsid --fork {sys.executable} {program} {directory} < /dev/null > {directory}/output 2>&1
    """
    subprocess.run(inside.command("sh", "-c", launch), check=True)
    assert listen(directory) == "ready", (directory / "output").read_text()


def stop_all(inside: Shell) -> dict[int, int]:
    tasks = inside.tasks()
    for pid in tasks.values():
        os.kill(pid, signal.SIGSTOP)
    for pid in tasks.values():
        while "State:\tT" not in Path(f"/proc/{pid}/status").read_text():
            os.sched_yield()
    return tasks


def memory(tasks: dict[int, int]) -> Snapshot:
    """Every byte of every mapping that a snapshot holds; all tasks are stopped. Adjacent mappings count as one: after
    a restore the kernel merges some that it had kept apart."""
    found: Snapshot = {}
    for inner, pid in tasks.items():
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as mem:
            for low, high in areas(pid):
                mem.seek(low)
                found[inner, f"{low:#x}-{high:#x}"] = read_exactly(mem, high - low)
    return found


def read_exactly(mem: FileIO, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        content += mem.read(size - len(content)) or bytes(4096)
    return bytes(content)


def areas(pid: int) -> list[tuple[int, int]]:
    found = list[tuple[int, int]]()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith(NOT_MEMORY):
            continue
        low, high = (int(part, 16) for part in fields[0].split("-"))
        if found and found[-1][1] == low:
            low, _ = found.pop()
        found.append((low, high))
    return found


def differences(one: Snapshot, two: Snapshot) -> list[str]:
    """What is not the same in both, in words that name the page."""
    found = list[str]()
    for pid, where in sorted(one.keys() | two.keys()):
        ours, theirs = one.get((pid, where)), two.get((pid, where))
        if ours is None or theirs is None:
            found.append(f"{pid}: {where} is only in the {'restored' if ours is None else 'frozen'} tree")
        elif ours != theirs:
            pages = [n for n in range(0, len(ours), 4096) if ours[n : n + 4096] != theirs[n : n + 4096]]
            found.append(
                f"{pid}: {where} differs in {len(pages)} pages, first at +{pages[0]:#x}" if pages else "length"
            )
    return found


def freeze(inside: Shell, images: Path) -> Snapshot:
    """Dump the running tree in full, leave it running, and return the memory it had."""
    images.mkdir()
    tasks = stop_all(inside)
    before = memory(tasks)
    inside.criu("dump", images, "-t", str(min(tasks)), "--leave-running", "--ghost-limit", "64M")
    go_on(tasks)
    return before


def wait_until_all_sleep(inside: Shell) -> None:
    for pid in inside.tasks().values():
        while "State:\tS" not in Path(f"/proc/{pid}/status").read_text():
            os.sched_yield()


def go_on(tasks: dict[int, int]) -> None:
    for pid in tasks.values():
        os.kill(pid, signal.SIGCONT)


def restored(images: Path, directory: Path, *options: str) -> tuple[Snapshot, str]:
    """The memory of the tree restored from `images`, still stopped, and then its answer when it is asked."""
    with shell() as fresh:
        fresh.criu("restore", images, "-d", *options)
        tasks = fresh.tasks()
        found = memory(stop_all(fresh))
        go_on(tasks)
        return found, ask(directory, "nonce")


def shrink(links: list[Path]) -> DeltaReport:
    *parents, images = links
    return make_delta(images, parents, parent_link=f"../{parents[-1].name}") if parents else make_full(images)


def record_chain(
    directory: Path, steps: int, *, program: Path = CHURN
) -> tuple[list[Path], list[Snapshot], list[DeltaReport], str]:
    """A chain of a churning tree: its images dirs, the memory frozen in each, what each delta saved, the nonce."""
    links, frozen, reports = list[Path](), list[Snapshot](), list[DeltaReport]()
    with shell() as first:
        start(first, directory, program)
        nonce = ask(directory, "nonce")
        for step in range(steps):
            ask(directory, f"step {step}")
            links.append(directory / f"link{step}")
            frozen.append(freeze(first, links[-1]))
            reports.append(shrink(links))
    return links, frozen, reports, nonce


def test_every_link_and_its_flattened_equal_restore_byte_for_byte(tmp_path: Path) -> None:
    links, frozen, reports, nonce = record_chain(tmp_path, 6)
    assert all(report.zero and report.changed for report in reports)
    assert all(report.in_parent > report.present for report in reports[1:])
    for number, before in enumerate(frozen):
        flat = tmp_path / f"flat{number}"
        flat.mkdir()
        flatten(links[: number + 1], flat)
        for images in (links[number], flat):
            after, answer = restored(images, tmp_path)
            assert "\n".join(differences(before, after)) == ""
            assert answer == nonce


def test_a_chain_restores_lazily_to_the_same_memory(tmp_path: Path) -> None:
    links, frozen, _, _ = record_chain(tmp_path, 3)
    flat = tmp_path / "flat"
    flat.mkdir()
    flatten(links, flat)
    for images in (links[-1], flat):
        with shell() as fresh:
            restore_lazily(fresh, images)
            assert "\n".join(differences(frozen[-1], memory(stop_all(fresh)))) == ""


def test_a_page_map_of_another_version_restores_and_one_that_is_cut_off_does_not(tmp_path: Path) -> None:
    """CRIU reads them itself where it knows every field, and by protobuf where it does not."""
    links, frozen, _, nonce = record_chain(tmp_path, 2)
    path = max(links[-1].glob("pagemap-*.img"), key=lambda image: image.stat().st_size)
    whole = path.read_bytes()
    head, *entries = split_records(whole, whole[:8], name=str(path))
    newer = [entry + b"\x30\x01" if number % 2 else b"\x3a\x02xx" + entry for number, entry in enumerate(entries)]
    assert len(newer) > 8
    path.write_bytes(join_records(whole[:8], [head, *newer]))
    after, answer = restored(links[-1], tmp_path)
    assert "\n".join(differences(frozen[-1], after)) == ""
    assert answer == nonce
    for damaged in (whole[:-1], whole[:-3] + b"\xff\xff\xff", whole + b"\x01"):
        path.write_bytes(damaged)
        with shell() as fresh:
            assert fresh.try_criu("restore", links[-1], "-d").returncode != 0


def restore_lazily(inside: Shell, images: Path) -> None:
    """Restore with a page server beside it, and return when that has brought every page in."""
    work = images.with_name(f"{images.name}-lazy")
    work.mkdir()
    ready, report = os.pipe()
    dirs = ["-D", str(images), "-W", str(work)]
    argv = inside.command(str(CRIU), "lazy-pages", *dirs, "-o", "lazy.log", "-v4", "--status-fd", str(report))
    with subprocess.Popen(argv, pass_fds=[report]) as server:
        try:
            os.close(report)
            assert os.read(ready, 1) == b"\0", (work / "lazy.log").read_text()
            inside.criu("restore", images, "-W", str(work), "-d", "--lazy-pages")
            assert server.wait(30) == 0
        finally:
            os.close(ready)
            server.kill()
    assert re.search(r"UFFD transferred pages: \(([1-9]\d*)/\1\)", (work / "lazy.log").read_text())


def test_a_tree_restored_from_a_delta_is_the_parent_of_further_deltas(tmp_path: Path) -> None:
    links, _, _, nonce = record_chain(tmp_path, 2)
    with shell() as second:
        second.criu("restore", links[-1], "-d")
        go_on(second.tasks())
        ask(tmp_path, "step 7")
        links.append(tmp_path / "link2")
        before = freeze(second, links[-1])
        report = shrink(links)
    assert report.in_parent > report.present
    for shared in (memory for memory in memories(links[-1]) if memory.shared):
        assert read_pagemap(links[-1] / shared.pagemap_name).total(IN_PARENT), "another inode number, the same memory"
    after, answer = restored(links[-1], tmp_path)
    assert "\n".join(differences(before, after)) == ""
    assert answer == nonce


@pytest.fixture
def huge_pages() -> Iterator[None]:
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = int(setting.read_text())
    try:
        setting.write_text(str(before + 16))
        if int(setting.read_text()) < before + 16:
            pytest.skip("this machine has no 32 MiB left in one piece for huge pages")
        yield
    finally:
        setting.write_text(str(before))


@pytest.mark.usefixtures("huge_pages")
def test_huge_pages_restore_byte_for_byte_although_criu_never_reads_them_from_a_parent(tmp_path: Path) -> None:
    links, frozen, reports, _ = record_chain(tmp_path, 3, program=HUGE)
    assert reports[-1].in_parent, "the rest of the task is a delta"
    for images, before in zip(links, frozen, strict=True):
        after, _ = restored(images, tmp_path)
        assert "\n".join(differences(before, after)) == ""


def test_an_idle_tree_costs_nothing_and_is_clean_until_it_runs(tmp_path: Path) -> None:
    links = list[Path]()
    with shell() as first:
        start(first, tmp_path, CHURN)
        ask(tmp_path, "step 1")
        wait_until_all_sleep(first)
        for number in (1, 2, 3):
            links.append(tmp_path / f"link{number}")
            freeze(first, links[-1])
            report = shrink(links)
            wait_until_all_sleep(first)
        assert report.present + report.changed + report.gone == 0
        assert is_clean(report), report
        ask(tmp_path, "nonce")
        links.append(tmp_path / "link4")
        freeze(first, links[-1])
        assert not is_clean(shrink(links))


def test_the_facts_of_a_dump_are_read_from_its_images(tmp_path: Path) -> None:
    links, frozen, reports, _ = record_chain(tmp_path, 1)
    tasks = read_tasks(links[0])
    assert {task.pid for task in tasks} == {pid for pid, _ in frozen[0]}
    assert tasks[0].pid == min(task.pid for task in tasks)
    assert all(task.ppid == tasks[0].pid for task in tasks[1:])
    stats = read_dump_stats(links[0])
    assert 0 < stats.memwrite_us <= stats.frozen_us
    dumped = (stats.pages_written + stats.shared_pages_written) * 4096
    assert dumped == reports[0].present + reports[0].zero
    assert read_inventory(links[0]).img_version == 2
