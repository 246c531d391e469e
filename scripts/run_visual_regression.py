#!/usr/bin/env python3
"""The golden agent moves between three regions in the middle of a talk, and looks the same to the last pixel.

Run as root: `scripts/run_visual_regression.py [--out docs/regions] [--rows 100000] [--json]`.

Three regions on this machine: each has a network namespace, a data directory, a node, and an S3 store over HTTP that
the others reach through a bridge. The agent talks in the first; it is captured and mirrored; its node is rebooted
(every process killed, its mounts and tmpfs gone). It comes back on other nodes from other regions' stores while stores
are down, hang, or hold a corrupted copy. Each time its identity, conversation, Matrix digest, in-memory nonce and
listening socket, and a photograph of its page outside the clock, are compared with those from before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "agent"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import msgspec
from regions import Region, Regions
from regions_page import Photographer, differing_pixels

from app.matrix.files import read_manifest
from build_matrix import ROWS, build
from golden import MATRIX, golden_spec

ROOT = Path(__file__).resolve().parents[1]
TALK = ("What did I ask you before?", "What is the airspeed of an unladen swallow?")


class Different(AssertionError):
    """Something that must be as it was is not."""


@dataclass
class Report:
    """What was done and seen: checks by scenario, and the pictures."""

    scenarios: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)

    def add(self, scenario: str, region: str, checks: dict[str, str], faults: list[str]) -> None:
        self.scenarios.append({"scenario": scenario, "restored_in": region, "equal": checks, "faults": faults})


def seen_of(region: Region, name: str) -> dict[str, Any]:
    """All of the agent that must survive: as its own routes, and the kernel inside its sandbox, tell it."""
    ready = region.talk(name, "GET", "/internal/checkpoint-ready")
    state = region.talk(name, "GET", "/state")
    inspected = region.thawbox("inspect", name)
    return {
        "identity": {**state["identity"], "id": inspected["id"]},
        "conversation": state["turns"],
        "DNA": ready["dna"],
        "Matrix": ready["matrix"],
        "nonce": state["nonce"],
        "listening": region.listening(name),
    }


def compare(before: dict[str, Any], after: dict[str, Any], pixels: dict[str, int]) -> dict[str, str]:
    """What was compared, in words; raises Different for anything that differs."""
    for what, was in before.items():
        if after[what] != was:
            raise Different(f"{what}: {was} became {after[what]}")
    for scheme, count in pixels.items():
        if count:
            raise Different(f"{count} pixels of the page differ ({scheme})")
    identity = after["identity"]
    return {
        "identity": f"{identity['sandbox']}, {identity['id']}, machine id {identity['machine_id'][:12]}",
        "conversation": f"{len(after['conversation'])} turns",
        "DNA": f"{after['DNA']['name']} {after['DNA']['version']}, {after['DNA']['digest'][:12]}",
        "Matrix": f"{after['Matrix']['rows']:,} rows, {after['Matrix']['digest'][:12]}",
        "nonce": after["nonce"][:12],
        "listening": ", ".join(f"{one['address']} as descriptor {one['fd']}" for one in after["listening"]),
        "page": f"0 pixels differ outside the clock ({', '.join(pixels)})",
    }


class Journey:
    """The agent's way through the regions."""

    def __init__(self, regions: Regions, photographer: Photographer, out: Path) -> None:
        self.regions = regions
        self.photographer = photographer
        self.out = out
        self.report = Report()

    def begin(self, spec: Path, questions: list[str]) -> None:
        """Start the agent in the first region, talk to it, photograph it, capture it, and lose its node."""
        home = self.regions.all[0]
        home.serve(mirror="all")
        home.thawbox("run", "--name", "golden", "--spec", str(spec))
        for question in questions:
            home.talk("golden", "POST", "/ask", {"question": question})
        self.before = seen_of(home, "golden")
        self.pictures = self._photograph(home, "before")
        self.snapshot = home.thawbox("checkpoint", "golden", "--when-ready")["id"]
        home.wait_mirrored(self.snapshot)
        self.check_the_eye(home)
        home.reboot()

    def come_back(self, scenario: str, region: Region, *, faults: set[str]) -> None:
        """Restore in a region, compare everything, and leave nothing there; `faults` are what must be reported."""
        region.thawbox("restore", self.snapshot)
        seen = seen_of(region, "golden")
        slug = scenario.replace(" ", "-")
        pictures = self._photograph(region, slug)
        pixels = {scheme: differing_pixels(self.pictures[scheme], pictures[scheme]) for scheme in pictures}
        checks = compare(self.before, seen, pixels)
        told = region.faults()
        if set(told) != faults:
            raise Different(f"{scenario}: {sorted(faults)} must be reported, and {sorted(told)} were")
        self.report.add(scenario, region.name, checks, told)
        region.thawbox("rm", "--force", "golden")

    def check_the_eye(self, region: Region) -> None:
        """A page with one more turn must not look the same: else the comparison sees nothing."""
        region.talk("golden", "POST", "/ask", {"question": "Are you still there?"})
        path = self.out / "control.png"
        self.photographer.take(lambda: region.connect("golden"), path, scheme="light")
        if not differing_pixels(self.pictures["light"], path):
            raise Different("a page with one more turn looks the same: the comparison sees nothing")
        path.unlink()

    def _photograph(self, region: Region, name: str) -> dict[str, Path]:
        pictures: dict[str, Path] = {}
        for scheme in ("light", "dark"):
            path = self.out / f"{name}-{scheme}.png"
            self.photographer.take(lambda: region.connect("golden"), path, scheme=scheme)
            pictures[scheme] = path
        return pictures

    def keep_two(self, last: str) -> list[str]:
        """Of pictures that are all the same, keep those from before and from after the `last` scenario."""
        kept: list[str] = []
        for scheme in ("light", "dark"):
            (self.out / f"{last}-{scheme}.png").rename(self.out / f"after-{scheme}.png")
            kept += [f"before-{scheme}.png", f"after-{scheme}.png"]
        for path in self.out.glob("*.png"):
            if path.name not in kept:
                path.unlink()
        return kept


def journey(regions: Regions, photographer: Photographer, out: Path, spec: Path, questions: list[str]) -> Report:
    """Everything, in order; raises Different at the first thing that is not as it was."""
    north, east, south = regions.all
    whole = Journey(regions, photographer, out)
    whole.begin(spec, [*questions, *TALK])

    north.stop_store()  # the whole first region is gone, and stays so
    whole.come_back("another region", east, faults=set())

    south.stop_store()
    whole.come_back("store down", south, faults={"unreachable"})

    south.forget_everything()
    south.start_store()
    whole.come_back("store empty", south, faults={"missing", "unreachable"})
    south.wait_whole(whole.snapshot)  # what a restore found missing it has put there

    south.forget_everything()
    south.hang_store()
    whole.come_back("store slow", south, faults={"slow", "unreachable"})
    south.wake_store()

    south.forget_everything()
    south.corrupt_store()
    whole.come_back("store corrupted", south, faults={"damaged", "unreachable"})
    south.wait_whole(whole.snapshot)
    whole.report.pictures = whole.keep_two("store-corrupted")
    return whole.report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "regions", help="directory of pictures and report")
    parser.add_argument("--rows", type=int, default=ROWS, help="of the agent's Matrix")
    parser.add_argument("--matrix", type=Path, help="directory of the Matrix; made if it is not there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    matrix: Path = options.matrix or (MATRIX if options.rows == ROWS else MATRIX.with_name(f"matrix-{options.rows}"))
    build(matrix, rows=options.rows)
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with ExitStack() as undo:
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="thawbox-regions-")))
        spec = scratch / "spec.json"
        spec.write_bytes(msgspec.json.encode(golden_spec(matrix)))
        regions = undo.enter_context(Regions(scratch, ("north", "east", "south")))
        photographer = undo.enter_context(Photographer())
        questions = [probe.question for probe in read_manifest(matrix).probes[:3]]
        report = journey(regions, photographer, options.out, spec, questions)
    said = {"ok": True, "seconds": round(time.monotonic() - begun, 1), "scenarios": report.scenarios,
            "pictures": sorted(set(report.pictures))}  # fmt: skip
    (options.out / "report.json").write_text(json.dumps(said, indent=2) + "\n")
    print(json.dumps(said, indent=2) if options.json else in_words(report))


def in_words(report: Report) -> str:
    lines = []
    for one in report.scenarios:
        told = ", ".join(one["faults"]) or "nothing"
        lines.append(f"{one['scenario']}: restored in {one['restored_in']}; reported: {told}")
        lines += [f"  {what} is as it was: {seen}" for what, seen in one["equal"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    if os.geteuid() != 0 or not shutil.which("ip"):
        sys.exit("this needs root, and the program ip (Debian: iproute2)")
    main()
