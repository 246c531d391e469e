#!/usr/bin/env python3
"""What the golden agent's sandbox is made of: `golden.py [--matrix DIRECTORY] [--name NAME]` prints its spec as JSON.

Nothing is built or installed: the sandbox sees the host's /usr, and of this checkout, read-only, the agent, the
packages of .venv, thawbox.guest and the Matrix.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fastapi
import msgspec

from thawbox import guest
from thawbox.model import Mount, Spec

HERE = Path(__file__).resolve().parent
PORT = 8000
MATRIX = HERE.parents[1] / ".cache" / "agent" / "matrix"
READY = f"http://127.0.0.1:{PORT}/internal/checkpoint-ready"


def golden_spec(matrix: Path = MATRIX, *, name: str = "") -> Spec:
    """The spec of a golden agent over a Matrix that is on the disk already."""
    seen = {
        "/opt/agent": HERE,
        "/opt/packages": Path(fastapi.__file__).parents[1],
        "/opt/thawbox/thawbox/guest": Path(guest.__file__).parent,
        "/opt/matrix": matrix.resolve(),
    }
    return Spec(
        ("python3", "-m", "app"),
        name=name,
        env={"PYTHONPATH": "/opt/agent:/opt/packages:/opt/thawbox", "PYTHONDONTWRITEBYTECODE": "1"},
        workdir="/opt/agent",
        mounts=tuple(Mount(str(source), target, read_only=True) for target, source in seen.items()),
        hooks="guest",
        ready=READY,
        ready_timeout=300,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrix", type=Path, default=MATRIX)
    parser.add_argument("--name", default="", help="of the sandbox")
    options = parser.parse_args()
    spec = golden_spec(options.matrix, name=options.name)
    print(msgspec.json.format(msgspec.json.encode(spec), indent=2).decode())


if __name__ == "__main__":
    main()
