"""thawbox: snapshot, restore and clone running agent sandboxes on any Linux machine.

with thawbox.Node() as node, node.run(Spec(("python3", "agent.py"))) as sandbox:
    snapshot = sandbox.checkpoint()
    clone = snapshot.clone()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thawbox.errors import ThawboxError
from thawbox.model import Mount, Net, Phase, Publish, SandboxId, SnapshotId, Spec

if TYPE_CHECKING:
    from thawbox.client import AsyncClient, Client
    from thawbox.node import Node
    from thawbox.sandbox import Sandbox, Snapshot

__all__ = [
    "AsyncClient", "Client", "Mount", "Net", "Node", "Phase", "Publish", "Sandbox", "SandboxId", "Snapshot",
    "SnapshotId", "Spec", "ThawboxError",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """What brings engines and libraries along is imported on first use."""
    if name == "Node":
        from thawbox.node import Node

        return Node
    if name in {"AsyncClient", "Client"}:
        from thawbox import client

        return getattr(client, name)
    if name in {"Sandbox", "Snapshot"}:
        from thawbox import sandbox

        return getattr(sandbox, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
