"""A snapshot as a file that other people's tools read (`store/oci.py`)."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from thawbox.errors import InvalidRequest, SandboxNotFound
from thawbox.model import SnapshotId
from thawbox.sandbox.body import read_body
from thawbox.sandbox.context import Context
from thawbox.sandbox.uppers import overlay_path
from thawbox.store import Fetched
from thawbox.store.oci import CheckpointDescription, LayerTree, export_checkpoint


def export_for_tools(context: Context, snapshot: SnapshotId, path: Path) -> int:
    """Write a snapshot, its chain flattened, as a checkpoint archive into one new file, and return the file's bytes.

    Raises InvalidRequest if the file exists or has no directory, IntegrityError for a damaged snapshot.
    """
    if not path.parent.is_dir():
        raise InvalidRequest(f"{path.parent} is no directory", remediation="make it, or export elsewhere")
    with context.reading(snapshot) as fetched, ExitStack() as undo:
        images = fetched.images[-1]
        if len(fetched.images) > 1:
            flat = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
            images = Path(undo.enter_context(flat))
            context.engine.flatten(fetched.images, images)
        layers = {
            overlay_path(overlay): [
                LayerTree(tree, context.store.catalog.index(digest))
                for tree, digest in zip(trees, fetched.manifest.layers[overlay], strict=True)
            ]
            for overlay, trees in fetched.layers.items()
        }
        export_checkpoint(_describe(context, fetched), images, layers, path)
    return path.stat().st_size


def _describe(context: Context, fetched: Fetched) -> CheckpointDescription:
    manifest, body = fetched.manifest, read_body(fetched.manifest.body, snapshot=fetched.id)
    try:
        created_at = context.journal.find(body.sandbox).created_at
    except SandboxNotFound:
        created_at = manifest.created_at
    return CheckpointDescription(
        id=fetched.id, name=body.name, image=body.spec.rootfs, arch=manifest.compat.arch, engine=manifest.compat.engine,
        created_at=created_at, checkpointed_at=manifest.created_at, command=body.spec.command,
        env=tuple(f"{name}={value}" for name, value in body.spec.env.items()), workdir=body.spec.workdir or "/",
        hostname=body.hostname,
    )  # fmt: skip
