"""Programs with thawbox.guest in sandboxes, and how tests make them do things (tests/workloads/interpreter.py)."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import thawbox
from thawbox.model import Mount, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox

GUEST = Mount(str(Path(thawbox.__file__).parent / "guest"), "/opt/thawbox/thawbox/guest", read_only=True)
PACKAGES = next(Path(path) for path in sys.path if path.endswith("site-packages"))
"""What this Python has installed: the sandboxes' Python is of the same version."""
WORKLOADS = Mount(str(Path(__file__).parent / "workloads"), "/workloads", read_only=True)

SETUP = """
@guest.before_checkpoint
def before(): events.append(["before"])
@guest.after_checkpoint
def resumed(event): events.append([event.what, event.identity.name])
@guest.after_restore
def restored(event): events.append([event.what, event.identity.name, event.identity.id, event.identity.machine_id])
guest.ready()
"""


def interpreter_spec(setup: str = SETUP, **spec: Any) -> Spec:
    """A Python interpreter that runs what `run` sends it; `setup` runs first."""
    env = {"PYTHONDONTWRITEBYTECODE": "1", **spec.pop("env", {})}
    options: dict[str, Any] = {"ready": "tcp:8000", **spec}
    mounts = (GUEST, WORKLOADS, *options.pop("mounts", ()))
    return Spec(("python3", "/workloads/interpreter.py", setup), mounts=mounts, env=env, **options)


def interpreter(node: Node, setup: str = SETUP, **spec: Any) -> Sandbox:
    """A sandbox that runs it."""
    return node.run(interpreter_spec(setup, **spec))


def run(sandbox: Sandbox, source: str, *, timeout: float = 60) -> Any:
    """Run statements in the sandbox's interpreter; the result is what they assigned to `answer`."""
    with sandbox.connect(8000, timeout=timeout) as connection:
        connection.sendall(source.encode())
        connection.shutdown(socket.SHUT_WR)
        raw = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    said = json.loads(raw)
    assert "error" not in said, said["error"]
    return said["answer"]


def files_with(node: Node, *contents: bytes) -> list[Path]:
    """The files of a node's store that hold any of this: images and layers of every snapshot."""
    files = [path for path in (node.settings.home / "store").rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if any(content in path.read_bytes() for content in contents)]


def evaluate(sandbox: Sandbox, expression: str) -> Any:
    """The value of an expression in the sandbox's interpreter."""
    return run(sandbox, f"answer = {expression}")
