"""The journal: what this node owns, in SQLite (WAL). The next start adopts from it and cleans up after the dead.

Rule 1: a record is written before the thing it names is made, and removed after the thing is gone.
Rule 2: a process is named by pid, start time and boot: a pid alone is reused.
"""

from __future__ import annotations

import contextlib
import ipaddress
import sqlite3
import threading
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from thawbox.errors import InvalidRequest, LockTimeout, NotFound, SandboxNotFound, Unavailable
from thawbox.host.rootfs import RootfsKind
from thawbox.host.sqlite import disk_errors, transaction
from thawbox.model import Phase, SandboxId, SnapshotId, Spec

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sandboxes (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    address TEXT UNIQUE,
    record BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS entries (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    content BLOB NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;
"""
_BUSY_SECONDS = 10.0
_LAST_ADDRESS = "last-address"
_CHOOSE_ANOTHER = "choose another, or `thawbox rm` that sandbox"
_WRITES_KEPT = 300
"""Changes after which the log is moved into the database: at some three pages each, what SQLite does by itself."""


@dataclass(frozen=True, slots=True)
class Record:
    """Everything about one sandbox that must outlive the process that made it.

    `keeper_pid`, `keeper_started` (clock ticks after boot) and `boot_id` name pid 1 of its namespaces. `generation`
    is the directory of the present writable layer; `layers` are the digests of the frozen ones beneath it, per
    overlay, base first. `machine_id` and `hostname` are its identity: kept by a restore, new in a clone.
    `owner` is who else decides about it (`pool:NAME`); `lease` says that its owner gave it away, until `lease_until`.
    `placeholder` is the host pid of the process in whose namespaces it was made, where it was made in a pod's.
    `given` says that its programs hold secrets or environment, which only they can take out before a snapshot is made.
    """

    id: SandboxId
    name: str
    spec: Spec
    phase: Phase
    created_at: float
    hostname: str
    machine_id: str
    generation: int = 0
    keeper_pid: int = 0
    keeper_started: int = 0
    boot_id: str = ""
    address: str = ""
    rootfs_kind: RootfsKind = RootfsKind.SYSTEM
    rootfs_digest: str = ""
    parent_snapshot: SnapshotId | None = None
    layers: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    ended_at: float | None = None
    ended_why: str = ""
    owner: str = ""
    lease: str = ""
    lease_until: float = 0.0
    placeholder: int = 0
    given: bool = False


class Journal:
    """Records of the sandboxes of one node. Safe to use from several threads and processes.

    What the disk refuses is raised as an OSError by every method, and changes nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with disk_errors(path):
            self._open(path)
        self._writes = 0

    def _open(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        # A killed process loses nothing; after a power cut, when no sandbox runs any more, the last moments may be
        # missing here, and what is in a snapshot is in the snapshot.
        self._db.execute("PRAGMA synchronous=NORMAL")
        # Moving the log into the database waits for the disk, and whoever acquires must not: `remove` does it instead.
        self._db.execute("PRAGMA wal_autocheckpoint=0")
        self._db.executescript(_SCHEMA)
        # Kept open: sqlite keeps the descriptor of a closed second connection anyway, for as long as the first lives.
        self._log_lock = threading.Lock()
        self._log_db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._log_db.execute("SELECT 1 FROM sandboxes LIMIT 1").fetchall()  # opens the log too

    def close(self) -> None:
        self._log_db.close()
        self._db.close()

    def add(self, record: Record, *, remedy: str = _CHOOSE_ANOTHER) -> None:
        """Write a new record; raises InvalidRequest, with the remedy, when its name or address is taken."""
        with self._transaction():
            self._insert(record, remedy=remedy)

    def add_with_address(self, record: Record, subnet: str) -> Record:
        """Write a new record under a free address of `subnet`, and return it; raises Unavailable when none is left.

        Addresses go round: that of a removed sandbox, which a restore may want back, is given away last.
        """
        with self._transaction():
            taken = {row[0] for row in self._db.execute("SELECT address FROM sandboxes WHERE address IS NOT NULL")}
            last = self._db.execute("SELECT content FROM entries WHERE kind = ?", (_LAST_ADDRESS,)).fetchone()
            record = replace(record, address=_free_address(subnet, taken, after=last[0].decode() if last else ""))
            self._db.execute(
                "INSERT OR REPLACE INTO entries (kind, name, content) VALUES (?, '', ?)",
                (_LAST_ADDRESS, record.address.encode()),
            )
            self._insert(record)
        return record

    def update(self, record: Record) -> None:
        """Replace the record of the same id; raises SandboxNotFound when it was removed meanwhile."""
        with self._transaction():
            changed = self._db.execute(
                "UPDATE sandboxes SET name = ?, address = ?, record = ? WHERE id = ?",
                (record.name, record.address or None, msgspec.json.encode(record), record.id),
            )
            if not changed.rowcount:
                raise SandboxNotFound(f"sandbox {record.id} is not in the journal")
        if self._writes >= 10 * _WRITES_KEPT:  # nothing was removed for long: a pool at work never comes here
            self._shorten_log()

    def remove(self, sandbox: SandboxId) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM sandboxes WHERE id = ?", (sandbox,))
        if self._writes >= _WRITES_KEPT:
            self._shorten_log()

    def find(self, reference: str) -> Record:
        """The record with this name, id, or unambiguous beginning of an id; raises SandboxNotFound."""
        with self._reading():
            rows = self._db.execute(
                "SELECT record FROM sandboxes WHERE name = ?1 OR id = ?1 LIMIT 1", (reference,)
            ).fetchall() or (
                self._db.execute(
                    "SELECT record FROM sandboxes WHERE substr(id, 1, length(?1)) = ?1 LIMIT 2", (reference,)
                ).fetchall()
                if len(reference) >= 6 and "\0" not in reference
                else []
            )
        if len(rows) > 1:
            raise InvalidRequest(
                f"{reference!r} is the beginning of several sandbox ids", remediation="give more of it"
            )
        if not rows:
            raise SandboxNotFound(f"there is no sandbox {reference[:80]!r} on this node")
        return msgspec.json.decode(rows[0][0], type=Record)

    def all(self) -> list[Record]:
        """Every record, oldest first."""
        with self._reading():
            rows = self._db.execute("SELECT record FROM sandboxes").fetchall()
        return sorted((msgspec.json.decode(row[0], type=Record) for row in rows), key=lambda record: record.created_at)

    def version(self) -> tuple[int, int]:
        """Differs from what it was whenever anybody, here or in another process, changed the journal meanwhile."""
        with self._reading():
            ((elsewhere,),) = self._db.execute("PRAGMA data_version").fetchall()
            return elsewhere, self._db.total_changes

    # What the node was told to keep, beside sandboxes: templates, pools. Durable when these return.

    def write_entry(self, kind: str, name: str, content: bytes, *, is_new: bool = False) -> None:
        """Keep `content` under this kind and name; with `is_new`, raises InvalidRequest when the name is taken."""
        verb = "INSERT" if is_new else "INSERT OR REPLACE"
        with self._transaction(durable=True):
            try:
                self._db.execute(f"{verb} INTO entries (kind, name, content) VALUES (?, ?, ?)", (kind, name, content))
            except sqlite3.IntegrityError:
                raise InvalidRequest(
                    f"there is a {kind} {name!r} already", remediation=f"choose another name, or remove that {kind}"
                ) from None

    def remove_entry(self, kind: str, name: str) -> None:
        with self._transaction(durable=True):
            self._db.execute("DELETE FROM entries WHERE kind = ? AND name = ?", (kind, name))

    def entry(self, kind: str, name: str) -> bytes:
        """What is kept under this kind and name; raises NotFound."""
        with self._reading():
            rows = self._db.execute("SELECT content FROM entries WHERE kind = ? AND name = ?", (kind, name)).fetchall()
        if not rows:
            raise NotFound(f"there is no {kind} {name[:80]!r} on this node", remediation=f"see `thawbox {kind} ls`")
        return bytes(rows[0][0])

    def entries(self, kind: str) -> dict[str, bytes]:
        """Everything of this kind, by name, sorted."""
        with self._reading():
            rows = self._db.execute("SELECT name, content FROM entries WHERE kind = ? ORDER BY name", (kind,))
            return {str(name): bytes(content) for name, content in rows}

    def _insert(self, record: Record, *, remedy: str = _CHOOSE_ANOTHER) -> None:
        try:
            self._db.execute(
                "INSERT INTO sandboxes (id, name, address, record) VALUES (?, ?, ?, ?)",
                (record.id, record.name, record.address or None, msgspec.json.encode(record)),
            )
        except sqlite3.IntegrityError as error:
            what = f"address {record.address}" if "address" in str(error) else f"name {record.name!r}"
            raise InvalidRequest(f"the {what} is taken by another sandbox", remediation=remedy) from None

    def _shorten_log(self) -> None:
        """Move the log into the database, by a connection of its own: readers and writers go on meanwhile.

        Where that fails, the log is as good: it is tried again some changes later.
        """
        self._writes = 0
        with contextlib.suppress(OSError, LockTimeout), self._log_lock, disk_errors(self._path):
            self._log_db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    @contextlib.contextmanager
    def _reading(self) -> Generator[None]:
        with self._lock, disk_errors(self._path):
            yield

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = False) -> Generator[None]:
        with self._lock, disk_errors(self._path):
            if durable:
                self._db.execute("PRAGMA synchronous=FULL")
            try:
                with transaction(self._db):
                    yield
                self._writes += 1
            finally:
                if durable:
                    self._db.execute("PRAGMA synchronous=NORMAL")


def _free_address(subnet: str, taken: set[str], *, after: str) -> str:
    """The first free address behind `after`, or from the start of the subnet on."""
    network = ipaddress.ip_network(subnet)
    first = int(network.network_address) + 2  # behind the node's own end
    count = max(int(network.broadcast_address) - first, 0)
    begin = int(ipaddress.ip_address(after)) + 1 - first if after else 0
    for number in range(begin, begin + count):
        address = str(ipaddress.ip_address(first + number % count))
        if address not in taken:
            return address
    raise Unavailable(f"every address of {subnet} is in use", remediation="remove sandboxes or set THAWBOX_SUBNET")
