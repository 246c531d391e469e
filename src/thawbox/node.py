"""The composition root: the only place that builds the parts of a node and joins them."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from thawbox.config import Settings, load_settings
from thawbox.engines import Engine
from thawbox.errors import InvalidRequest, SnapshotNotFound, Unsupported
from thawbox.host import network
from thawbox.host.cgroup import remove_node_group
from thawbox.host.cgroup_layout import Layout, detect_layout
from thawbox.host.files import private_directory, remove_tree
from thawbox.host.machine_memory import available_memory
from thawbox.host.seccomp import capability_mask, compile_filter
from thawbox.model import SnapshotId, Spec
from thawbox.sandbox import Context, Journal, Programs, Sandbox, Snapshot
from thawbox.sandbox.adoption import Adoption, adopt
from thawbox.sandbox.handle import wait_for_snapshot
from thawbox.sandbox.starting import start
from thawbox.sandbox.templates import Template, all_templates, create_template, find_template, rebuild_template, wanted
from thawbox.store import Keys, Store, load_keys
from thawbox.store.listing import looks_like_id
from thawbox.telemetry import NOBODY, Telemetry

if TYPE_CHECKING:
    from thawbox.engines.criu import CriuEngine
    from thawbox.pool import Pool, PoolSpec
    from thawbox.store.backends import Backend
    from thawbox.store.mirror import Mirror

_SOURCE_PROGRAMS = Path(__file__).parents[2] / "native" / "build" / "bin"
INSTALLED_PROGRAMS = Path("/usr/local/libexec/thawbox")
_REPLICA_PATIENCE, _REPLICA_TIMEOUT = 1.0, 30.0
"""Seconds: where there are several replicas it is better to give one up, and ask it later, than to wait for it."""
_TMPFS_CANDIDATES = (Path("/run"), Path("/dev/shm"))  # noqa: S108 - root-only directories are made in the first tmpfs


class Node:
    """One node: the sandboxes and snapshots below one home directory. Several may live side by side.

    Opening adopts the sandboxes that run and cleans up after those that died; closing leaves them running.
    Raises Unsupported without root or without our programs (`make setup` builds them).
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        engine: Engine | None = None,
        layout: Layout | None = None,
        telemetry: Telemetry = NOBODY,
        now: Callable[[], float] = time.time,
        available_memory: Callable[[], int] = available_memory,
    ) -> None:
        self.settings = settings or load_settings()
        if os.geteuid() != 0:
            raise Unsupported("thawbox needs root: it makes namespaces, mounts and cgroups", remediation="use sudo")
        home = private_directory(self.settings.home)
        programs = find_programs(self.settings)
        with ExitStack() as undo:
            journal = Journal(home / "journal.db")
            undo.callback(journal.close)
            store = Store(home / "store", now=now, lock_timeout=self.settings.lock_timeout, keys=_keys(self.settings))
            undo.callback(store.close)
            self.context = Context(
                settings=self.settings,
                journal=journal,
                store=store,
                make_engine=lambda: engine or make_criu_engine(self.settings, telemetry),
                layout=layout or detect_layout(),
                programs=programs,
                capabilities=capability_mask(),
                seccomp_filter=compile_filter(private_directory(home / "seccomp")),
                tag=node_tag(home),
                boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
                now=now,
                available_memory=available_memory,
                telemetry=telemetry,
                open_replicas=[partial(_open_replica, address) for address in _listed(self.settings.replicas)],
            )
            undo.callback(self.context.close_engine)
            undo.callback(self.context.reserve.close)
            undo.callback(self.context.threads.close)
            undo.callback(self.context.warmth.close)
            self.adoption: Adoption = adopt(self.context)
            self._undo = undo.pop_all()

    def __repr__(self) -> str:
        return f"<Node {self.settings.home}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the node; its sandboxes run on."""
        self._undo.close()

    def run(self, spec: Spec) -> Sandbox:
        """Start a sandbox and return it once it is ready. Raises InvalidSpec, StartFailed."""
        return self.run_timed(spec)[0]

    def run_timed(self, spec: Spec) -> tuple[Sandbox, float]:
        """The same, with the milliseconds until its program was started."""
        record, create_ms = start(self.context, spec)
        return Sandbox(self.context, record), create_ms

    def sandbox(self, reference: str) -> Sandbox:
        """The sandbox of this name, id or unambiguous beginning of an id; raises SandboxNotFound."""
        return Sandbox(self.context, self.context.journal.find(reference))

    def sandboxes(self) -> list[Sandbox]:
        """Every sandbox of this node, the ended ones too, oldest first."""
        return [Sandbox(self.context, record) for record in self.context.journal.all()]

    def snapshot(self, reference: str) -> Snapshot:
        """The snapshot of this id, unambiguous beginning of an id, or name; raises SnapshotNotFound.

        One that is not here, but in a replica, is brought (by its id: names are each node's own).
        """
        try:
            return Snapshot(self.context, self.context.store.resolve(reference))
        except SnapshotNotFound:
            if not self.context.replicas or not looks_like_id(reference):
                raise
        return Snapshot(self.context, self.context.replicas.bring(reference))

    def wait(self, token: str, *, timeout: float | None = None) -> Snapshot:
        """The snapshot that an unfinished one has become, once it is whole; `timeout` is seconds.

        Raises LockTimeout, DumpFailed when it could not be made, SnapshotNotFound when its process died.
        """
        return wait_for_snapshot(self.context, token, timeout=timeout)

    def snapshots(self) -> list[Snapshot]:
        """Every snapshot of this node, oldest first."""
        return [Snapshot(self.context, SnapshotId(stored.id)) for stored in self.context.store.records()]

    def mirroring(self) -> AbstractContextManager[Mirror]:
        """A block during which new snapshots are copied to every replica, as the setting `mirror` says.

        Raises InvalidRequest for a rule or an address that is none.
        """
        from thawbox.store.mirror import Mirror
        from thawbox.store.mirror_rules import read_rules

        rules = read_rules(self.settings.mirror)
        if rules and not self.context.replicas:
            raise InvalidRequest(
                f"THAWBOX_MIRROR={self.settings.mirror!r} and there are no replicas",
                remediation="name stores in THAWBOX_REPLICAS",
            )
        return Mirror(self.context.store, self.context.replicas, rules)

    def create_template(self, name: str, spec: Spec, *, check: Callable[[], None] = wanted) -> Template:
        """Boot a spec until it is ready and keep it to make clones from. Raises InvalidRequest, StartFailed.

        `check` raises where nobody wants it any more: nothing is left then.
        """
        return create_template(self.context, name, spec, check=check)

    def rebuild_template(self, name: str, *, check: Callable[[], None] = wanted) -> Template:
        """Boot a template's spec anew; pools replace their parked clones. Raises NotFound, StartFailed.

        `check` raises where nobody wants it any more: the old one stays then.
        """
        return rebuild_template(self.context, name, check=check)

    def template(self, name: str) -> Template:
        """The template of this name; raises NotFound."""
        return find_template(self.context, name)

    def templates(self) -> list[Template]:
        """Every template of this node, by name."""
        return all_templates(self.context)

    def remove_template(self, name: str) -> None:
        """Remove a template and its golden snapshot; raises InvalidRequest while a pool is made from it."""
        from thawbox.pool import kept

        kept.remove_unused_template(self.context, name)

    def create_pool(self, spec: PoolSpec) -> PoolSpec:
        """Tell the node of a new pool; it is filled once it is opened. Raises InvalidRequest, NotFound."""
        from thawbox.pool import kept

        return kept.create_pool(self.context, spec)

    def open_pool(self, name: str, *, share_memory: bool = True) -> Pool:
        """Keep a pool filled from now on, in this process; the caller closes or drains it. Raises Unavailable.

        `share_memory` loads the golden snapshot once, for its clones to share: not worth it for a single acquire.
        """
        from thawbox.pool import kept

        return kept.open_pool(self.context, name, share_memory=share_memory)

    def pool(self, name: str) -> PoolSpec:
        """What was said of this pool when it was made; raises NotFound."""
        from thawbox.pool import kept

        return kept.find_pool(self.context, name)

    def drain_pool(self, pool: Pool, *, timeout: float | None, check: Callable[[], None] = wanted) -> None:
        """Drain an open pool for good; leases are ended after `timeout` seconds. A crash does not end the drain.

        `check` is asked as by `Pool.drain`; what it raises ends this one, and the drain where it is forgotten.
        """
        from thawbox.pool import kept

        kept.drain_pool(
            self.context, pool, until=None if timeout is None else self.context.now() + timeout, check=check
        )

    def forget_drain(self, name: str) -> None:
        """Have a pool whose drain was given up open as any other."""
        from thawbox.pool import kept

        kept.forget_drain(self.context, name)

    def drains(self) -> dict[str, float | None]:
        """The pools whose drain has begun and not ended, and after how many seconds their leases are to be ended."""
        from thawbox.pool import kept

        now = self.context.now()
        found = kept.drains(self.context)
        return {name: None if until is None else max(0.0, until - now) for name, until in found.items()}

    def pools(self) -> list[PoolSpec]:
        """Every pool of this node, by name, open or not."""
        from thawbox.pool import kept

        return kept.all_pools(self.context)

    def remove_pool(self, name: str, *, force: bool = False) -> None:
        """Destroy and forget a pool that is not open; raises InvalidRequest while it has leases, unless `force`."""
        from thawbox.pool import kept

        kept.remove_pool(self.context, name, force=force)

    def tidy(self) -> None:
        """Remove what an empty node keeps in the kernel and in tmpfs: cgroups, firewall table, CRIU's feature cache."""
        remove_node_group(self.context.layout, self.context.tag)
        if shutil.which("nft"):
            network.remove_node_rules(self.context.tag)
        remove_tree(cache_directory(self.settings.home))


def _keys(settings: Settings) -> Keys:
    """The keys that the settings name; raises InvalidRequest naming the one that cannot be read, never its content."""
    return load_keys(
        sealing=settings.sealing_key,
        signing=settings.signing_key,
        trusted=_listed(settings.trusted_keys),
        require_signed=settings.require_signed,
    )


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _open_replica(address: str) -> Backend:
    from thawbox.store.backends import open_backend

    return open_backend(address, patience=_REPLICA_PATIENCE, timeout=_REPLICA_TIMEOUT)


def node_tag(home: Path) -> str:
    """Eight hex digits that tell this node's cgroups and devices from another node's on the same machine."""
    return hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:8]


def locate_programs(settings: Settings) -> Programs:
    """Where our built programs belong, there or not: `THAWBOX_NATIVE`, this source checkout, or an installation.

    `THAWBOX_CRIU` replaces the criu alone.
    """
    candidates = [Path(settings.native)] if settings.native else [_SOURCE_PROGRAMS, INSTALLED_PROGRAMS]
    directory = next((path for path in candidates if path.is_dir()), candidates[0])
    return Programs(
        init=directory / "thawbox-init",
        launcher=directory / "thawbox-launch",
        criu=Path(settings.criu) if settings.criu else directory / "criu",
    )


def find_programs(settings: Settings) -> Programs:
    """Our built programs; raises Unsupported, naming the first that is missing."""
    programs = locate_programs(settings)
    for program in (programs.init, programs.launcher, programs.criu):
        if not os.access(program, os.X_OK):
            raise Unsupported(
                f"the program {program} is missing",
                remediation="build it with `make setup`, or name its directory in THAWBOX_NATIVE",
            )
    return programs


def cache_directory(home: Path) -> Path:
    """A root-only directory on tmpfs, where CRIU honours its kernel-feature cache; it need not exist yet.

    CRIU's logs lie there too while it works: a busy disk would hold them, and the frozen sandbox, up.
    """
    for candidate in _TMPFS_CANDIDATES:
        if _is_tmpfs(candidate):
            return candidate / f"thawbox-{node_tag(home)}"
    return home / "run"  # works, 40 ms slower per operation: `thawbox doctor` says so


def _is_tmpfs(path: Path) -> bool:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(path):
            return fields[fields.index("-") + 1] == "tmpfs"
    return False


def make_criu_engine(settings: Settings, telemetry: Telemetry = NOBODY) -> CriuEngine:
    """The engine of a node with these settings; whoever makes it closes it. Raises Unsupported without our programs."""
    from thawbox.engines.criu import CriuEngine, CriuProgram
    from thawbox.engines.criu_template import TemplateServers

    programs = find_programs(settings)
    cache = cache_directory(settings.home)
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.stat().st_uid != 0:
        raise Unsupported(f"{cache} belongs to another user", remediation=f"remove {cache}")
    program = CriuProgram(programs.criu, cache, programs.launcher)
    return CriuEngine(
        program, private_directory(cache / "work"), timeout=settings.engine_timeout, telemetry=telemetry,
        templates=TemplateServers(telemetry=telemetry),
    )  # fmt: skip
