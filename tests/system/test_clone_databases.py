"""SQLite databases that are open across a restore: writable, and their locks hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from guests import SETUP, evaluate, interpreter, run
from roads import on_both_roads
from thawbox.host.databases import _replace_in_memory, find_databases, mend_identities
from thawbox.host.proc import pid_inside
from thawbox.node import Node
from thawbox.sandbox import Snapshot

pytestmark = on_both_roads

DATABASES = (
    SETUP
    + """
import sqlite3, subprocess
def opened(path): return sqlite3.connect(path, isolation_level=None, timeout=0)
def attempt(base, *statements):
    try:
        for statement in statements: base.execute(statement)
        return "done"
    except sqlite3.OperationalError as error: return str(error)
base = opened("/var/base.db")
base.execute(f"PRAGMA journal_mode={MODE}")
base.execute("CREATE TABLE seen (number INTEGER)")
OTHER = '''
import sqlite3, sys
base = sqlite3.connect("/var/base.db", isolation_level=None, timeout=0)
try: base.execute("BEGIN IMMEDIATE"); print("free")
except sqlite3.OperationalError as error: print(error)
'''
def other(): return subprocess.check_output([sys.executable, "-c", OTHER], text=True).strip()
padding = [os.urandom(1 << 20) for _ in range(20)]
"""
)


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
def test_an_open_database_can_be_written_and_its_locks_hold_after_any_number_of_restores(node: Node, mode: str) -> None:
    sandbox = interpreter(node, f"MODE = {mode!r}\n" + DATABASES)
    for number in range(3):
        assert evaluate(sandbox, "attempt(base, 'INSERT INTO seen VALUES (1)')") == "done"
        snapshot = sandbox.checkpoint()
        assert all(database["places"] for database in _databases(snapshot)), "a restore would have to search for it"
        clone = snapshot.clone()
        sandbox, _ = sandbox.checkpoint(stop=True).restore()
        for one in (clone, sandbox):
            assert evaluate(one, "attempt(base, 'INSERT INTO seen VALUES (1)', 'BEGIN IMMEDIATE')") == "done"
            # another connection of the same process, closed: POSIX drops the locks of both, SQLite knows better
            run(one, "second = opened('/var/base.db')\nattempt(second, 'SELECT * FROM seen')\nsecond.close()")
            assert evaluate(one, "other()") == "database is locked"
            assert evaluate(one, "attempt(base, 'COMMIT')") == "done"
            assert evaluate(one, "other()") == "free"
            assert evaluate(one, "base.execute('SELECT count(*) FROM seen').fetchone()[0]") == 2 * (number + 1)
            assert evaluate(one, "base.execute('PRAGMA integrity_check').fetchone()[0]") == "ok"
        clone.remove(force=True)


def _databases(snapshot: Snapshot) -> list[dict[str, Any]]:
    moment: dict[str, Any] = snapshot.stored.manifest.body["moment"]  # type: ignore[assignment]
    found: list[dict[str, Any]] = moment["databases"]
    assert found
    return found


def test_a_database_is_mended_by_searching_where_nobody_had_looked_for_its_places(node: Node) -> None:
    sandbox = interpreter(node, "MODE = 'DELETE'\n" + DATABASES)
    pids = node.context.cgroup(sandbox.id).pids()
    (database,) = find_databases(pids)
    sandbox.freeze()
    other = replace(database, inode=database.inode + 1)
    (pid,) = [pid for pid in pids if pid_inside(pid) == database.pid]
    assert _replace_in_memory(pid, {database.identity: other.identity}) > 0
    assert mend_identities(pids, [other]) > 0
    assert mend_identities(pids, [replace(other, places=())]) == 0
    sandbox.thaw()
    assert evaluate(sandbox, "attempt(base, 'INSERT INTO seen VALUES (1)')") == "done"


def test_databases_of_every_process_are_found_and_nothing_else_is(node: Node) -> None:
    setup = """
import sqlite3
notes = open("/var/notes", "w+"); notes.write("SQLite format 4" * 10); notes.flush()
empty = open("/var/empty.db", "w")
base = sqlite3.connect("/var/base.db"); base.execute("CREATE TABLE seen (number INTEGER)")
if os.fork() == 0:
    own = sqlite3.connect("/var/own.db"); own.execute("CREATE TABLE seen (number INTEGER)")
    time.sleep(1000)
while not os.path.exists("/var/own.db") or not os.stat("/var/own.db").st_size: time.sleep(0.001)
"""
    sandbox = interpreter(node, setup)
    pids = node.context.cgroup(sandbox.id).pids()
    found = find_databases(pids)
    assert len(found) == 3  # the child has its parent's open too
    assert len({one.pid for one in found}) == 2
    assert {one.inode for one in found} == {
        evaluate(sandbox, f"os.stat('/var/{name}.db').st_ino") for name in ("base", "own")
    }
    sandbox.freeze()
    assert mend_identities(pids, found) == 0, "nothing changed, so nothing is written"
    sandbox.thaw()
