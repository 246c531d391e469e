"""Three regions on one machine, for `run_visual_regression.py`: networks, stores and nodes that can be broken.

A region is a network namespace with an address on a bridge, a data directory, a node (the thawbox command, run inside
that network) and an S3 server over HTTP. Leaving the block leaves nothing: no process, namespace, device, cgroup.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from thawbox.config import load_settings
from thawbox.host.files import remove_tree
from thawbox.host.proc import send_signal, wait_gone
from thawbox.host.reach import connect_within, run_within
from thawbox.node import Node, cache_directory

_PORT = 8000
_STORE_PORT = 9000
_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
_PATIENCE, _SHORT_PATIENCE = 120, 1
_STORE = """
import signal, sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address=sys.argv[1], port=int(sys.argv[2]), verbose=False)
server.start()
print("listening", flush=True)
signal.pause()
"""
_CORRUPT = """
import sys
import obstore
from obstore.store import S3Store
bucket, endpoint, region = sys.argv[1:]
store = S3Store(bucket, endpoint=endpoint, region=region, client_options={"allow_http": True})
names = [found["path"] for batch in obstore.list(store, "snapshots/chunks") for found in batch]
for name in names:
    content = bytes(obstore.get(store, name).bytes())
    obstore.put(store, name, content[:-4] + bytes([content[-4] ^ 1]) + content[-3:], use_multipart=False)
print(len(names))
"""
_LISTENING = """
import json, os
rows = [line.split() for line in open("/proc/net/tcp").read().splitlines()[1:]]
wanted = {row[9]: row[1] for row in rows if row[3] == "0A"}
found = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        continue
    for fd in fds:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if target.startswith("socket:[") and target[8:-1] in wanted:
            address, port = wanted[target[8:-1]].split(":")
            ip = ".".join(str(byte) for byte in reversed(bytes.fromhex(address)))
            found.append({"pid": int(pid), "fd": int(fd), "address": f"{ip}:{int(port, 16)}"})
print(json.dumps(sorted(found, key=lambda one: (one["pid"], one["fd"]))))
"""
"""Run inside a sandbox: every listening socket, with the process and the descriptor that hold it."""


def wait_until(question: Callable[[], bool], what: str, *, timeout: float = 120) -> None:
    """Ask again and again until it is so; raises TimeoutError."""
    deadline = time.monotonic() + timeout
    while not question():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} within {timeout:g} s")
        time.sleep(0.05)


class Region:
    """One region. Its node asks the stores in the order of `order`, its own first."""

    def __init__(self, name: str, number: int, place: Path, network: str) -> None:
        self.name = name
        self.network = network
        self.address = f"10.83.7.{number}"
        self.home = place / name / "home"
        self.home.mkdir(mode=0o700, parents=True)
        self.order: Sequence[Region] = (self,)
        self.patience = _PATIENCE
        self._store: subprocess.Popen[str] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._told: list[str] = []
        self._pids: dict[str, int] = {}
        (place / "rootfs").mkdir(mode=0o700, exist_ok=True)  # the host's /usr, prepared once for all nodes
        (self.home / "rootfs").symlink_to(place / "rootfs")

    # --- the store --------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}:{_STORE_PORT}"

    @property
    def replica(self) -> str:
        return f"s3://{self.name}/snapshots?endpoint={self.endpoint}&region={self.name}"

    def start_store(self) -> None:
        """Start the region's store, empty."""
        command = [*self._inside(), sys.executable, "-c", _STORE, self.address, str(_STORE_PORT)]
        self._store = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._store.stdout is not None
        assert self._store.stdout.readline() == "listening\n"

        def make_bucket() -> None:
            request = urllib.request.Request(f"{self.endpoint}/{self.name}", method="PUT")
            urllib.request.urlopen(request, timeout=60).close()

        run_within(self._store.pid, make_bucket)

    def stop_store(self) -> None:
        """The store dies, with all it held."""
        if self._store is not None:
            self._store.kill()
            self._store.wait()
            assert self._store.stdout is not None
            self._store.stdout.close()
            self._store = None

    def hang_store(self) -> None:
        """The store accepts connections, by its kernel, and never answers."""
        self.patience = _SHORT_PATIENCE
        self._signal_store(signal.SIGSTOP)

    def wake_store(self) -> None:
        self._signal_store(signal.SIGCONT)
        self.patience = _PATIENCE

    def _signal_store(self, number: int) -> None:
        assert self._store is not None
        self._store.send_signal(number)

    def corrupt_store(self) -> None:
        """Change one byte in every chunk that the store holds."""
        command = [*self._inside(), sys.executable, "-c", _CORRUPT, self.name, self.endpoint, self.name]
        changed = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=True).stdout
        assert int(changed) > 0, "the store holds nothing that could be damaged"

    # --- the node ---------------------------------------------------------------------------------------------

    def _inside(self) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.network}", "--"]

    def _environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("THAWBOX_", "AWS_"))}
        ours = {
            "THAWBOX_HOME": str(self.home), "THAWBOX_REPLICAS": ", ".join(one.replica for one in self.order),
            "THAWBOX_REPLICA_PATIENCE": str(self.patience),
        }  # fmt: skip
        return {**kept, **_CREDENTIALS, **ours, **more}

    def thawbox(self, *words: str) -> Any:
        """Run a thawbox command on this region's node; the object that it prints."""
        command = [*self._inside(), sys.executable, "-m", "thawbox.cli", *words, "--json"]
        if words[0] in ("run", "restore", "rm"):
            self._pids.clear()
        if words[0] in ("run", "restore", "rm"):
            self._pids.clear()
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
        self._told += [line for line in done.stderr.splitlines() if line.startswith("replica.")]
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: thawbox {' '.join(words)}: {done.stderr}")
        return json.loads(done.stdout)

    def faults(self) -> list[str]:
        """The kinds of fault that this node has reported of replicas since it was last asked."""
        told = [word.partition("=")[2] for line in self._told if line.startswith("replica.fault")
                for word in line.split() if word.startswith("kind=")]  # fmt: skip
        self._told = []
        return sorted(set(told))

    def serve(self, *, mirror: str) -> None:
        """Run `thawbox serve`, which mirrors new snapshots, until the node is rebooted."""
        command = [*self._inside(), sys.executable, "-m", "thawbox.cli", "serve"]
        log = (self.home.parent / "serve.log").open("wb")
        with log:
            self._server = subprocess.Popen(
                command, env=self._environment(THAWBOX_MIRROR=mirror), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        wait_until((self.home / "serve.sock").exists, "the node is served")

    def wait_mirrored(self, snapshot: str) -> None:
        """Wait until every replica has a snapshot."""

        def is_everywhere() -> bool:
            (found,) = self.thawbox("snapshots", "where", snapshot)["snapshots"]
            return all(one["has"] for one in found["replicas"])

        wait_until(is_everywhere, f"{snapshot[:12]} is mirrored")

    def wait_whole(self, snapshot: str) -> None:
        """Wait until the region's own store holds a snapshot with every byte right, as its node reads it."""
        address = f"s3://{self.name}/snapshots"

        def is_whole() -> bool:
            command = [*self._inside(), sys.executable, "-m", "thawbox.cli"]
            words = ["snapshots", "verify", "--remote", snapshot, "--json"]
            done = subprocess.run(
                [*command, *words], env=self._environment(), capture_output=True, text=True, check=False
            )
            found = json.loads(done.stdout)["replicas"]
            return any(one["where"] == address and not one["faults"] for one in found)

        wait_until(is_whole, f"the store of {self.name} is whole")

    def reboot(self) -> None:
        """What a reboot takes: every process at once, and with them their mounts and networks; what is on tmpfs."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None
        with Node(load_settings(home=self.home)) as node:
            for record in [sandbox.record for sandbox in node.sandboxes()]:
                send_signal(record.keeper_pid, signal.SIGKILL, started=record.keeper_started)
                wait_gone(record.keeper_pid, started=record.keeper_started, timeout=60)
        remove_tree(cache_directory(self.home))

    def forget_everything(self) -> None:
        """The node becomes a new machine: nothing of its state is left on its disk."""
        self.close()
        self.home.mkdir(mode=0o700)
        (self.home / "rootfs").symlink_to(self.home.parents[1] / "rootfs")

    def close(self) -> None:
        """Leave nothing of the node, in the kernel or on the disk."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait()
            self._server = None
        with Node(load_settings(home=self.home)) as node:
            for sandbox in node.sandboxes():
                sandbox.remove(force=True)
            node.tidy()
        remove_tree(self.home)

    # --- the agent --------------------------------------------------------------------------------------------

    def connect(self, name: str) -> socket.socket:
        """A connection to the agent in a sandbox of this node."""
        if name not in self._pids:
            self._pids[name] = self.thawbox("inspect", name)["pid"]
        return connect_within(self._pids[name], _PORT, timeout=60)

    def talk(self, name: str, method: str, path: str, body: object = None) -> Any:
        """One request to the agent; the JSON of its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", _PORT)
        with contextlib.closing(connection):
            connection.sock = self.connect(name)
            connection.request(
                method, path, None if body is None else json.dumps(body), {"content-type": "application/json"}
            )
            answer = connection.getresponse()
            said = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{self.name}: {method} {path} was answered with {answer.status}: {said!r}")
        return json.loads(said)

    def listening(self, name: str) -> list[dict[str, object]]:
        """Every listening socket of a sandbox: process, descriptor, address."""
        with Node(load_settings(home=self.home)) as node:
            done = node.sandbox(name).run("python3", "-c", _LISTENING)
        found: list[dict[str, object]] = json.loads(done.stdout)  # type: ignore[union-attr]
        if not found:
            raise RuntimeError(f"{self.name}: nothing listens in {name}")
        return found


class Regions:
    """Regions whose stores reach each other over a bridge; a context manager."""

    def __init__(self, place: Path, names: Sequence[str]) -> None:
        self._prefix = f"tbr{os.getpid()}"
        with ExitStack() as undo:
            self._bridge = f"{self._prefix}-wan"
            self._network(self._bridge, undo)
            self._ip("-n", self._bridge, "link", "add", "br0", "type", "bridge")
            self._ip("-n", self._bridge, "link", "set", "br0", "up")
            self.all = [self._region(name, number, place, undo) for number, name in enumerate(names, 1)]
            for region in self.all:  # its own first, then the others by distance
                at = self.all.index(region)
                region.order = self.all[at:] + self.all[:at]
                undo.callback(region.stop_store)
                region.start_store()
            self._undo = undo.pop_all()

    def _region(self, name: str, number: int, place: Path, undo: ExitStack) -> Region:
        network = f"{self._prefix}-{name}"
        self._network(network, undo)
        inner = ("peer", "name", "eth0", "netns", network)
        self._ip("-n", self._bridge, "link", "add", f"v{number}", "type", "veth", *inner)
        self._ip("-n", self._bridge, "link", "set", f"v{number}", "master", "br0", "up")
        region = Region(name, number, place, network)
        undo.callback(region.close)
        self._ip("-n", network, "addr", "add", f"{region.address}/24", "dev", "eth0")
        self._ip("-n", network, "link", "set", "eth0", "up")
        return region

    def _network(self, name: str, undo: ExitStack) -> None:
        self._ip("netns", "add", name)
        undo.callback(self._ip, "netns", "del", name)
        self._ip("-n", name, "link", "set", "lo", "up")

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def __iter__(self) -> Iterator[Region]:
        return iter(self.all)
