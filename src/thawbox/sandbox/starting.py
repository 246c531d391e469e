"""Starting a new sandbox from a spec."""

from __future__ import annotations

import errno
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from thawbox.errors import InvalidSpec
from thawbox.host import network
from thawbox.host.files import remove_tree
from thawbox.host.rootfs import resolve
from thawbox.lifecycle import Verb, next_phase
from thawbox.model import Phase, Publish, Spec, check_spec
from thawbox.sandbox.context import Context
from thawbox.sandbox.identity import new_identity
from thawbox.sandbox.journal import Record
from thawbox.sandbox.readiness import wait_ready
from thawbox.sandbox.reviving import add_record
from thawbox.sandbox.shells import raise_shell, remove_remains
from thawbox.sandbox.uppers import overlay_name

_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)


def _check_path(path: str) -> None:
    """Raise InvalidSpec for what is not there on this host, or cannot be a path at all."""
    try:
        is_there = Path(path).exists()
    except OSError as error:
        if error.errno not in _NO_PATH:
            raise
        is_there = False
    if not is_there:
        raise InvalidSpec(f"the path {path[:400]} does not exist on this host", remediation="give an existing path")


def start(context: Context, spec: Spec) -> tuple[Record, float]:
    """Run a new sandbox and return its record and the milliseconds until its program was started.

    Returns once it is ready. Raises InvalidSpec, StartFailed, Unsupported; nothing is left of it then.
    """
    with context.telemetry.step("run") as step:
        record, create_ms = _start(context, spec)
        step.note(sandbox=record.id, create_ms=create_ms)
    return record, create_ms


def _start(context: Context, spec: Spec) -> tuple[Record, float]:
    begun = time.perf_counter()
    check_spec(spec)
    for path in (*(mount.source for mount in spec.mounts), *((spec.rootfs,) if spec.rootfs.startswith("/") else ())):
        _check_path(path)
    rootfs = resolve(spec.rootfs, context.rootfs_cache)
    command = spec.command or (*rootfs.defaults.entrypoint, *rootfs.defaults.command)
    if not command:
        raise InvalidSpec(f"neither spec nor {spec.rootfs} names a command", remediation="give the program after `--`")
    identity = new_identity(spec.name)
    record = Record(
        id=identity.id, name=identity.name,
        spec=replace(spec, name=identity.name, command=command, publish=_with_ports(spec.publish)),
        phase=Phase.CREATING, created_at=context.now(), hostname=identity.hostname, machine_id=identity.machine_id,
        rootfs_kind=rootfs.kind, rootfs_digest=rootfs.digest, boot_id=context.boot_id,
        layers={overlay_name(overlay.mountpoint): () for overlay in rootfs.overlays},
    )  # fmt: skip
    with context.exclusive(record.id), ExitStack() as undo:
        undo.callback(context.remove_locks, record.id)
        undo.callback(remove_tree, context.directory(record.id))
        record = add_record(context, record)
        undo.callback(context.journal.remove, record.id)
        with context.telemetry.step("shell", sandbox=record.id):
            shell = raise_shell(context, record, rootfs, start_init=True)
        record = replace(
            record, keeper_pid=shell.keeper, keeper_started=shell.started,
            phase=next_phase(record.phase, Verb.STARTED, who=record.name),
        )  # fmt: skip
        undo.callback(remove_remains, context, record)
        context.journal.update(record)
        create_ms = (time.perf_counter() - begun) * 1000
        with context.telemetry.step("ready", sandbox=record.id):
            wait_ready(context, record)
        undo.pop_all()
    return record, create_ms


def _with_ports(published: tuple[Publish, ...]) -> tuple[Publish, ...]:
    """The same ports, with a free one of the host where the spec leaves the choice to us.

    Raises Unavailable for one on which a program of the host listens: it would hear nothing any more.
    """
    chosen: list[Publish] = []
    for publish in published:
        if publish.host_port:
            network.check_port(publish)
        taken = [other.host_port for other in (*published, *chosen)]
        port = publish.host_port or network.choose_port(publish.host_address, taken=taken)
        chosen.append(replace(publish, host_port=port))
    return tuple(chosen)
