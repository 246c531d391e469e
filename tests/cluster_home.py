"""A cluster on this machine: a simulated API server, real nodes on homes of their own, and a stand-in for the kubelet
and the scheduler, which gives placeholder pods to nodes and starts real placeholders for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kube.server import Server
from kube.storage import Refusal, Storage, merge
from placeholders import Placeholder, a_placeholder
from thawbox.cluster.crds import POOL_LABEL, crds

THAWBOX = Path(sys.executable).parent / "thawbox"
NAMESPACE = "thawbox"
LOG_LINES = 40
LEASE_SECONDS = 10.0
"""As long as the agent may get no CPU on a busy machine."""
Json = dict[str, Any]


@dataclass
class Running:
    """A process of ours that says one JSON line when it is ready."""

    process: subprocess.Popen[str]
    said: Json
    log: Path

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Secrets:
    """Files: the token of all nodes, and the certificate of all with its key, made as docs/kubernetes.md says."""

    token: Path
    certificate: Path
    key: Path

    @classmethod
    def made(cls, directory: Path) -> Secrets:
        found = cls(directory / "token", directory / "tls.crt", directory / "tls.key")
        found.token.write_text(os.urandom(32).hex() + "\n")
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=thawbox-node "
            "-addext subjectAltName=DNS:thawbox-node"
        )
        files = ("-keyout", str(found.key), "-out", str(found.certificate))
        subprocess.run([*command.split(), *files], check=True, capture_output=True)
        return found


@dataclass
class ClusterNode:
    name: str
    home: Path
    processes: list[Running] = field(default_factory=list)


class Cluster:
    """What a test does to it: objects by `apply`, waiting by `until`, nodes by name."""

    def __init__(
        self, server: Server, scratch: Path, rootfs: Path, undo: ExitStack, secrets: Secrets | None = None
    ) -> None:  # fmt: skip
        self.server = server
        self._secrets = secrets
        self._scratch = scratch
        self._rootfs = rootfs
        self._undo = undo
        self.nodes: dict[str, ClusterNode] = {}
        self.placeholders: dict[str, Placeholder] = {}
        self._started: list[Running] = []
        self._lock = threading.Lock()
        """Placeholders and nodes: the kubelet's thread and the test's both start and end them."""
        self._failure: BaseException | None = None
        self._stacks: dict[str, ExitStack] = {}
        self._kubelet = threading.Thread(target=self._tend_pods, name="kubelet")
        self._ended = threading.Event()
        self._bell = threading.Event()
        server.call(lambda storage: storage.watchers.append(self._bell.set))
        self._kubelet.start()
        undo.callback(self._end)

    def _end(self) -> None:
        self._ended.set()
        self._bell.set()
        self._kubelet.join()
        for stack in list(self._stacks.values()):
            stack.close()

    # --- processes --------------------------------------------------------------------------------------------

    def start(self, *arguments: str, home: Path | None = None) -> Running:
        """`thawbox ARGUMENTS --json`, ready."""
        environment = {**os.environ, **({"THAWBOX_HOME": str(home)} if home else {})}
        path = self._scratch / f"{len(self._started)}-{'-'.join(one for one in arguments[:2] if one[:2] != '--')}.log"
        log = path.open("w")
        process = subprocess.Popen(
            [str(THAWBOX), *arguments, "--json", "--verbose"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        self._undo.callback(_end_process, process, log)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, path.read_text()
        self._started.append(Running(process, json.loads(line), path))
        return self._started[-1]

    def add_node(self, name: str, *, region: str = "a", lease: float = LEASE_SECONDS) -> ClusterNode:
        """A node: `thawbox serve` and its agent; one that was killed comes back to the home that it had.

        The dispatcher reaches it over TCP with TLS where the cluster has secrets, else over its socket.
        """
        home = self._scratch / name
        home.mkdir(mode=0o700, exist_ok=True)
        if not (home / "rootfs").exists():
            (home / "rootfs").symlink_to(self._rootfs)
        node = ClusterNode(name, home)
        own, outside = self._secrets, list[str]()
        if own is not None:
            outside = ["--port", "0", "--token-file", str(own.token), "--tls-cert", str(own.certificate),
                       "--tls-key", str(own.key)]  # fmt: skip
        node.processes.append(self.start("serve", *outside, home=home))
        node.processes.append(self.agent(node, region=region, lease=lease))
        self.nodes[name] = node
        self._bell.set()
        return node

    def agent(self, node: ClusterNode, *, region: str = "a", lease: float = LEASE_SECONDS) -> Running:
        """An agent beside a node's service."""
        url = node.processes[0].said["url"] or f"unix://{node.home / 'serve.sock'}"
        return self.start(
            "cluster", "node-agent", "--server", self.server.url, "--node", node.name, "--url", url, "--region", region,
            "--lease-seconds", str(lease), "--look-every", "0.2", home=node.home,
        )  # fmt: skip

    def kill_node(self, name: str) -> None:
        """Power off: its processes, its placeholders, and nobody says goodbye."""
        with self._lock:
            node = self.nodes.pop(name)
            for one in reversed(node.processes):
                one.kill()
            for pod in self.objects("pods"):
                if pod["spec"].get("nodeName") == name:
                    self._end_placeholder(pod["metadata"]["uid"])

    def dispatcher(self, *more: str) -> Running:
        own, shown = self._secrets, list[str]()
        if own is not None:
            shown = ["--node-token-file", str(own.token), "--node-ca", str(own.certificate)]
        return self.start(
            "cluster", "dispatch", "--server", self.server.url, "--listen", "127.0.0.1:0", "--lead-seconds", "3",
            *shown, *more,
        )  # fmt: skip

    # --- objects ----------------------------------------------------------------------------------------------

    def apply(self, plural: str, name: str, spec: Json) -> Json:
        group = "" if plural == "pods" else "thawbox.dev"
        version = "v1" if plural == "pods" else "v1alpha1"

        def create(storage: Storage) -> Json:
            of = storage.resource(group, version, plural)
            return storage.create(of, NAMESPACE, {"metadata": {"name": name}, "spec": spec})

        made: Json = self.server.call(create)
        return made

    def objects(self, plural: str) -> list[Json]:
        def found(storage: Storage) -> list[Json]:
            return [one for (_, name), of in storage.resources.items() if name == plural for one in of.objects.values()]

        there: list[Json] = self.server.call(found)
        return there

    def get(self, plural: str, name: str) -> Json:
        return next((one for one in self.objects(plural) if one["metadata"]["name"] == name), {})

    def delete(self, plural: str, name: str) -> None:
        group, version = ("", "v1") if plural == "pods" else ("thawbox.dev", "v1alpha1")
        self._change(lambda storage: storage.delete(storage.resource(group, version, plural), NAMESPACE, name, {}))

    def until(self, condition: Callable[[], Any], what: str, *, timeout: float = 90) -> Any:
        """What `condition` gives once that is true; it is asked after changes of any object."""
        changed = threading.Event()
        self.server.call(lambda storage: storage.watchers.append(changed.set))
        try:
            deadline = time.monotonic() + timeout
            while not (found := condition()):
                if self._failure is not None:
                    raise AssertionError(f"{what} cannot come to be: the kubelet failed") from self._failure
                assert changed.wait(deadline - time.monotonic()), f"{what} did not come to be in {timeout:g} s"
                changed.clear()
            return found
        finally:
            self.server.call(lambda storage: storage.watchers.remove(changed.set))

    def summary(self) -> str:
        """What there is now, an object a line, and the last words of every process: told of each test that fails."""
        told = [f"{self.server.watches} watches"]
        for plural in ("templates", "pools", "claims", "pods", "leases"):
            told += [_as_row(one) for one in self.objects(plural)]
        for one in self._started:
            status = one.process.poll()
            told.append(f"--- {one.log.name}: {'runs' if status is None else f'ended with {status}'}")
            told += one.log.read_text().splitlines()[-LOG_LINES:]
        return "\n".join(told)

    # --- the kubelet and the scheduler ------------------------------------------------------------------------

    def _tend_pods(self) -> None:
        try:
            while not self._ended.is_set():
                self._bell.wait()
                self._bell.clear()
                pods = self.objects("pods")
                with self._lock:
                    for uid in self._stacks.keys() - {pod["metadata"]["uid"] for pod in pods}:
                        self._end_placeholder(uid)  # deleted by force
                for pod in pods:
                    with self._lock:
                        if self._ended.is_set():
                            return
                        self._tend_pod(pod)
        except BaseException as failure:
            self._failure = failure
            raise

    def _end_placeholder(self, uid: str) -> None:
        stack = self._stacks.pop(uid, None)
        if stack is not None:
            self.placeholders.pop(uid)
            stack.close()

    def _tend_pod(self, pod: Json) -> None:
        meta, node = pod["metadata"], pod["spec"].get("nodeName", "")
        uid = meta["uid"]
        if "deletionTimestamp" in meta and node in (*self.nodes, ""):
            self._end_placeholder(uid)
            at_once = {"gracePeriodSeconds": 0}
            self._change(
                lambda storage: storage.delete(storage.resource("", "v1", "pods"), NAMESPACE, meta["name"], at_once)
            )
        elif not node and self.nodes and POOL_LABEL in meta.get("labels", {}):
            load = {name: 0 for name in self.nodes}
            for other in self.objects("pods"):
                if other["spec"].get("nodeName") in load:
                    load[other["spec"]["nodeName"]] += 1
            chosen = min(load, key=lambda name: (load[name], name))
            self._patch(meta["name"], {"spec": {"nodeName": chosen}}, "")
        elif node in self.nodes and uid not in self._stacks and "deletionTimestamp" not in meta:
            stack = ExitStack()
            self.placeholders[uid] = stack.enter_context(a_placeholder(meta["name"], uid=uid))
            self._stacks[uid] = stack
            started = {"name": "placeholder", "ready": True, "restartCount": 0, "image": "", "imageID": "",
                       "containerID": f"standin://placeholder-{uid}", "state": {"running": {}}}  # fmt: skip
            self._patch(meta["name"], {"status": {"phase": "Running", "podIP": "127.0.0.1",
                                                  "containerStatuses": [started]}}, "status")  # fmt: skip

    def _patch(self, name: str, patch: Json, sub: str) -> None:
        def change(storage: Storage) -> None:
            of = storage.resource("", "v1", "pods")
            old = storage.get(of, NAMESPACE, name)
            storage.update(of, NAMESPACE, name, merge(old, patch), sub)

        self._change(change)

    def _change(self, act: Callable[[Storage], Any]) -> None:
        """Do it, unless what it is about has gone."""

        def tried(storage: Storage) -> None:
            try:
                act(storage)
            except Refusal as gone:
                if gone.code != 404:
                    raise

        self.server.call(tried)


def _as_row(one: Json) -> str:
    meta, status = one["metadata"], one.get("status", {})
    labels = {name.partition("/")[2]: text for name, text in meta.get("labels", {}).items() if "thawbox" in name}
    notes = {name.partition("/")[2]: text for name, text in (meta.get("annotations") or {}).items()
             if "machine" not in name and "kopf" not in name}  # fmt: skip
    shown = {name: value for name, value in status.items() if name not in ("machine", "history", "containerStatuses")}
    shown["conditions"] = [f"{each['type']}={each['status']}" for each in status.get("conditions", [])]
    going = " GOING" if "deletionTimestamp" in meta else ""
    return f"{one['kind']} {meta['name']}{going} on {one.get('spec', {}).get('nodeName', '-')} {labels} {notes} {shown}"


def _end_process(process: subprocess.Popen[str], log: Any) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
    log.close()


@contextmanager
def a_cluster(scratch: Path, rootfs: Path, secrets: Secrets | None = None) -> Iterator[Cluster]:
    """A cluster without nodes, with our kinds; nothing of it is left after the block."""
    with Server() as server, ExitStack() as undo:

        def define(storage: Storage) -> None:
            of = storage.resource("apiextensions.k8s.io", "v1", "customresourcedefinitions")
            for one in crds():
                storage.create(of, "", one)

        server.call(define)
        yield Cluster(server, scratch, rootfs, undo, secrets)
