"""How fast a delta is found: GiB/s of compared memory, beside what numpy and memcpy reach on the same bytes.

Run as `python bench/delta.py [--mib 64] [--rounds 30] [--changed 1280] [--depth 1] [--json]`.
Interleaved in one run, on images in the page cache:
`make_delta`  reading, comparing, deciding and rewriting, of a dump with `--changed` scattered pages changed
`compare`     its first half alone: comparing, and writing what stays
`array_equal` numpy comparing the same two memories in memory of its own: the ceiling of comparing
`copy`        numpy copying one of them onto another array: the ceiling of touching
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from thawbox.engines import criu_delta
from thawbox.engines.criu_images import MM, VmaStatus, write_entries
from thawbox.engines.criu_pagemap import PAGE, PRESENT, collapse, write_pagemap
from thawbox.engines.criu_pages import Memory
from thawbox.engines.proto import mm_pb2, vma_pb2

TASK = Memory(shared=False, number=2)
FIRST = 0x7F0000000
_MM = ("start_code", "end_code", "start_data", "end_data", "start_stack", "start_brk", "brk", "arg_start", "arg_end",
       "env_start", "env_end")  # fmt: skip


def write_dump(images: Path, content: np.ndarray) -> None:
    images.mkdir()
    count = len(content)
    pages = FIRST + np.arange(count, dtype=np.int64)
    write_pagemap(images / TASK.pagemap_name, collapse(1, pages, np.full(count, PRESENT, np.uint8)))
    content.tofile(images / "pages-1.img")
    vma = vma_pb2.vma_entry(
        start=FIRST * PAGE, end=(FIRST + count) * PAGE, pgoff=0, shmid=0, prot=3, flags=0x22, fd=-1,
        status=int(VmaStatus.REGULAR | VmaStatus.ANON_PRIVATE),
    )  # fmt: skip
    write_entries(images / "mm-2.img", MM, [mm_pb2.mm_entry(**{f"mm_{n}": 0 for n in _MM}, exe_file_id=1, vmas=[vma])])


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--changed", type=int, default=1280, help="pages that differ from the parent in each link")
    parser.add_argument("--depth", type=int, default=1, help="links in the parent chain")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-delta-") as scratch:
        report = measure(Path(scratch), options)
    print(json.dumps(report) if options.json else table(report))


def measure(root: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(1)
    content = rng.integers(0, 1 << 63, (options.mib * 256, PAGE // 8), dtype=np.uint64)
    links: list[Path] = []
    for depth in range(options.depth):
        links.append(root / f"link{depth}")
        write_dump(links[-1], content)
        if depth:
            criu_delta.make_delta(links[-1], links[:-1], parent_link=f"../link{depth - 1}")
        content[rng.choice(len(content), options.changed, replace=False), 7] += 1
    fresh, copy, other = root / "fresh", content.copy(), np.empty_like(content)
    seconds: dict[str, list[float]] = {"make_delta": [], "compare": [], "array_equal": [], "copy": []}
    for _ in range(options.rounds):
        write_dump(fresh, content)
        seconds["compare"].append(timed(lambda: criu_delta._judge(fresh, links, TASK, TASK, copy=None)))
        for kept in fresh.glob("*.new"):
            kept.unlink()
        seconds["array_equal"].append(timed(lambda: np.array_equal(content, copy)))
        seconds["make_delta"].append(timed(lambda: criu_delta.make_delta(fresh, links, parent_link="../link0")))
        seconds["copy"].append(timed(lambda: np.copyto(other, content)))
        shutil.rmtree(fresh)
    return {name: figures(taken, content.nbytes) for name, taken in seconds.items()}


def figures(seconds: list[float], size: int) -> dict[str, float]:
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
    return {
        "n": len(seconds),
        "p50_ms": p50 * 1e3,
        "p95_ms": p95 * 1e3,
        "p99_ms": p99 * 1e3,
        "gib_s": size / p50 / 2**30,
    }


def table(report: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':12}{'n':>5}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}{'GiB/s':>8}"]
    for name, row in report.items():
        lines.append(
            f"{name:12}{row['n']:5.0f}{row['p50_ms']:10.2f}{row['p95_ms']:10.2f}{row['p99_ms']:10.2f}{row['gib_s']:8.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
