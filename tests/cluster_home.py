"""A cluster on this machine: a simulated API server, real nodes on homes of their own, and a stand-in for the kubelet
and the scheduler, which gives placeholder pods to nodes and starts real placeholders for them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kube.server import Server
from kube.storage import Storage, merge
from placeholders import Placeholder, a_placeholder
from thawbox.cluster.crds import POOL_LABEL, crds

THAWBOX = Path(sys.executable).parent / "thawbox"
NAMESPACE = "thawbox"
Json = dict[str, Any]


@dataclass
class Running:
    """A process of ours that says one JSON line when it is ready."""

    process: subprocess.Popen[str]
    said: Json

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class ClusterNode:
    name: str
    home: Path
    processes: list[Running] = field(default_factory=list)


class Cluster:
    """What a test does to it: objects by `apply`, waiting by `until`, nodes by name."""

    def __init__(self, server: Server, scratch: Path, rootfs: Path, undo: ExitStack) -> None:
        self.server = server
        self._scratch = scratch
        self._rootfs = rootfs
        self._undo = undo
        self.nodes: dict[str, ClusterNode] = {}
        self.placeholders: dict[str, Placeholder] = {}
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
        log = (self._scratch / f"{'-'.join(arguments[:2])}-{len(list(self._scratch.iterdir()))}.log").open("w")
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
        assert line, Path(log.name).read_text()
        return Running(process, json.loads(line))

    def add_node(self, name: str, *, region: str = "a", lease: float = 4.0) -> ClusterNode:
        """A node: `thawbox serve` and its agent."""
        home = self._scratch / name
        home.mkdir(mode=0o700, exist_ok=True)
        if not (home / "rootfs").exists():
            (home / "rootfs").symlink_to(self._rootfs)
        node = self.nodes[name] = ClusterNode(name, home)
        node.processes.append(self.start("serve", home=home))
        url = f"unix://{home / 'serve.sock'}"
        node.processes.append(self.start(
            "cluster", "node-agent", "--server", self.server.url, "--node", name, "--url", url, "--region", region,
            "--lease-seconds", str(lease), "--look-every", "0.2", home=home,
        ))  # fmt: skip
        return node

    def kill_node(self, name: str) -> None:
        """Power off: its processes, its placeholders, and nobody says goodbye."""
        node = self.nodes.pop(name)
        for one in reversed(node.processes):
            one.kill()
        for pod in self.objects("pods"):
            if pod["spec"].get("nodeName") == name and pod["metadata"]["uid"] in self._stacks:
                self._stacks.pop(pod["metadata"]["uid"]).close()
                self.placeholders.pop(pod["metadata"]["uid"])

    def dispatcher(self, *more: str) -> Running:
        return self.start(
            "cluster", "dispatch", "--server", self.server.url, "--listen", "127.0.0.1:0", "--lead-seconds", "3", *more
        )

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
        self.server.call(lambda storage: storage.delete(
            storage.resource("thawbox.dev", "v1alpha1", plural), NAMESPACE, name, {}
        ))  # fmt: skip

    def until(self, condition: Callable[[], Any], what: str, *, timeout: float = 90) -> Any:
        """What `condition` gives once that is true; it is asked after each change of any object."""
        changed: queue.SimpleQueue[None] = queue.SimpleQueue()
        wake = lambda: changed.put(None)  # noqa: E731
        self.server.call(lambda storage: storage.watchers.append(wake))
        try:
            import time

            deadline = time.monotonic() + timeout
            while not (found := condition()):
                try:
                    changed.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    raise AssertionError(f"{what} did not come to be: {self.summary()}") from None
            return found
        finally:
            self.server.call(lambda storage: storage.watchers.remove(wake))

    def summary(self) -> str:
        kinds = ("templates", "pools", "claims", "pods", "leases")
        rows = [(one["kind"], one["metadata"], one.get("status")) for plural in kinds for one in self.objects(plural)]
        logs = [f"{path.name}: {path.read_text()[-6000:]}" for path in self._scratch.glob("*.log")]
        return "\n".join(map(str, [*rows, *logs]))

    # --- the kubelet and the scheduler ------------------------------------------------------------------------

    def _tend_pods(self) -> None:
        while not self._ended.is_set():
            self._bell.wait()
            self._bell.clear()
            for pod in self.objects("pods"):
                if self._ended.is_set():
                    return
                self._tend_pod(pod)

    def _tend_pod(self, pod: Json) -> None:
        meta, node = pod["metadata"], pod["spec"].get("nodeName", "")
        uid = meta["uid"]
        if "deletionTimestamp" in meta and node in (*self.nodes, ""):
            if uid in self._stacks:
                self.placeholders.pop(uid)
                self._stacks.pop(uid).close()
            self._change(lambda storage, of: storage.delete(of, NAMESPACE, meta["name"], {"gracePeriodSeconds": 0}))
        elif not node and self.nodes and POOL_LABEL in meta.get("labels", {}):
            load = {name: 0 for name in self.nodes}
            for other in self.objects("pods"):
                if other["spec"].get("nodeName") in load:
                    load[other["spec"]["nodeName"]] += 1
            chosen = min(load, key=lambda name: (load[name], name))
            self._patch(meta["name"], {"spec": {"nodeName": chosen}}, "")
        elif node in self.nodes and uid not in self._stacks and "deletionTimestamp" not in meta:
            stack = self._stacks[uid] = ExitStack()
            self.placeholders[uid] = stack.enter_context(a_placeholder(meta["name"], uid=uid))
            started = {"name": "placeholder", "ready": True, "restartCount": 0, "image": "", "imageID": "",
                       "containerID": f"standin://placeholder-{uid}", "state": {"running": {}}}  # fmt: skip
            self._patch(meta["name"], {"status": {"phase": "Running", "podIP": "127.0.0.1",
                                                  "containerStatuses": [started]}}, "status")  # fmt: skip
        elif uid in self._stacks and node not in self.nodes:
            return

    def _patch(self, name: str, patch: Json, sub: str) -> None:
        def change(storage: Storage, of: Any) -> None:
            old = storage.get(of, NAMESPACE, name)
            storage.update(of, NAMESPACE, name, merge(old, patch), sub)

        self._change(change)

    def _change(self, act: Callable[[Storage, Any], Any]) -> None:
        from kube.storage import Refusal

        def tried(storage: Storage) -> None:
            try:
                act(storage, storage.resource("", "v1", "pods"))
            except Refusal as gone:
                if gone.code != 404:
                    raise

        self.server.call(tried)


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
def a_cluster(scratch: Path, rootfs: Path) -> Iterator[Cluster]:
    """A cluster without nodes, with our kinds; nothing of it is left after the block."""
    with Server() as server, ExitStack() as undo:

        def define(storage: Storage) -> None:
            of = storage.resource("apiextensions.k8s.io", "v1", "customresourcedefinitions")
            for one in crds():
                storage.create(of, "", one)

        server.call(define)
        yield Cluster(server, scratch, rootfs, undo)
