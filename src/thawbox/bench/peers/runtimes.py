# ruff: noqa: ARG002 - those that only start have no use for the verb
"""The container runtimes: runc, podman, gVisor's runsc, crun and bubblewrap, each as its own users call it.

Network namespaces and root directories are made before any clock starts. Those that freeze use CRIU of the same build
as thawbox (Debian's own fails on current kernels), but for gVisor, which has its own way.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

from thawbox.bench.peers.bundle import Bundle, run, run_detached
from thawbox.bench.peers.contender import CHECKPOINT, COLD, RESTORE, Measured
from thawbox.bench.peers.netns import NetworkNamespace
from thawbox.bench.peers.workloads import PORT, Workload, ask, read_beat
from thawbox.errors import ThawboxError, Unsupported
from thawbox.host.proc import start_program

_NOFILE = 1024
"""Podman raises limits by default, which needs CAP_SYS_RESOURCE; this one is below everybody's."""


class _Runtime:
    """What the runtimes share: a bundle, a network namespace, somewhere to write, and the way out."""

    def __init__(self, name: str, workload: Workload, scratch: Path) -> None:
        self.name = name
        self.nonce = ""
        self.workload = workload
        self.scratch = scratch / name.replace(" ", "-")
        self.scratch.mkdir()
        self.tag = f"thawbox-bench-{os.getpid()}-{name.split(maxsplit=1)[0]}"
        self.undo = ExitStack()
        self.undo.callback(shutil.rmtree, self.scratch, ignore_errors=True)
        self.bundle = Bundle(self.scratch, workload)
        self.log = self.scratch / "log"

    def make_network(self, name: str = "") -> NetworkNamespace:
        """A network namespace of its own. One that CRIU has locked for a frozen program serves no other."""
        network = NetworkNamespace(self.tag + name)
        self.undo.callback(network.close)
        return network

    def ask(self, network: NetworkNamespace) -> str:
        return ask(lambda: network.connect(PORT), self.workload.path)

    def close(self) -> None:
        self.undo.close()


class Runc(_Runtime):
    """`runc checkpoint` and `runc restore`."""

    def __init__(self, workload: Workload, scratch: Path, *, criu: Path) -> None:
        super().__init__("runc", workload, scratch)
        with ExitStack() as failed:
            failed.callback(self.close)
            self.network, self.fresh = self.make_network(), self.make_network("-cold")
            self._configure(self.network)
            self._words = ["runc", "--criu", str(criu), "--root", str(self.scratch / "state"), "--log", str(self.log)]
            self._start("golden")
            self.nonce = self.ask(self.network)
            self._checkpoint("golden", self.scratch / "images")
            self._delete("golden")
            failed.pop_all()

    @property
    def clocks(self) -> dict[str, str]:
        return {
            RESTORE: "`runc restore --detach` into a network namespace made before, until the program answered",
            CHECKPOINT: "`runc checkpoint --leave-running`, from the start of the command to its exit",
            COLD: "`runc run --detach`, until the program answered",
        }

    def measure(self, verb: str) -> Measured:
        self._configure(self.fresh if verb == COLD else self.network)
        begun = time.perf_counter()
        try:
            if verb == COLD:
                self._start("cold")
                nonce = self.ask(self.fresh)
                return Measured((time.perf_counter() - begun) * 1000, nonce)
            self._restore("again")
            nonce = self.ask(self.network)
            if verb == RESTORE:
                return Measured((time.perf_counter() - begun) * 1000, nonce)
            begun = time.perf_counter()
            self._checkpoint("again", self.scratch / "more", "--leave-running")
            return Measured((time.perf_counter() - begun) * 1000)
        finally:
            self._delete("cold" if verb == COLD else "again")
            shutil.rmtree(self.scratch / "more", ignore_errors=True)

    def _configure(self, network: NetworkNamespace) -> None:
        self.bundle.configure(workload=self.workload, network=network.path, cgroup=f"/{self.tag}")

    def _start(self, name: str) -> None:
        run_detached([*self._words, "run", "--detach", "--bundle", str(self.bundle.path), name], log=self.log)

    def _restore(self, name: str) -> None:
        places = ["--image-path", str(self.scratch / "images"), "--work-path", str(self.scratch / "work")]
        run_detached(
            [*self._words, "restore", "--detach", "--tcp-established", "--bundle", str(self.bundle.path), *places,
             name], log=self.log, criu_log=self.scratch / "work" / "restore.log",
        )  # fmt: skip

    def _checkpoint(self, name: str, images: Path, *options: str) -> None:
        places = ["--image-path", str(images), "--work-path", str(self.scratch / "work")]
        run_detached(
            [*self._words, "checkpoint", "--tcp-established", *options, *places, name],
            log=self.log, criu_log=self.scratch / "work" / "dump.log",
        )  # fmt: skip

    def _delete(self, name: str) -> None:
        with contextlib.suppress(ThawboxError):
            run([*self._words, "delete", "--force", name])


class Podman(_Runtime):
    """`podman container checkpoint` and `restore`, with runc beneath."""

    def __init__(self, workload: Workload, scratch: Path, *, criu: Path) -> None:
        super().__init__("podman", workload, scratch)
        with ExitStack() as failed:
            failed.callback(self.close)
            self.network, self.fresh = self.make_network(), self.make_network("-cold")
            programs = self.scratch / "bin"
            programs.mkdir()
            (programs / "criu").symlink_to(criu)
            self._env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
            self._words = [
                "podman", "--root", str(self.scratch / "root"), "--runroot", str(self.scratch / "run"), "--tmpdir",
                str(self.scratch / "tmp"), "--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend",
                "none", "--log-level", "error",
            ]  # fmt: skip
            self._start("golden", self.network)
            self.undo.callback(self._remove, "golden")
            self.nonce = self.ask(self.network)
            self._run("container", "checkpoint", "--keep", "golden")
            failed.pop_all()

    @property
    def clocks(self) -> dict[str, str]:
        return {
            RESTORE: "`podman container restore` of the same container, until the program answered",
            CHECKPOINT: "`podman container checkpoint --leave-running`, from the start of the command to its exit",
            COLD: "`podman run --detach --rootfs`, until the program answered",
        }

    def measure(self, verb: str) -> Measured:
        begun = time.perf_counter()
        if verb == COLD:
            try:
                self._start("cold", self.fresh)
                nonce = self.ask(self.fresh)
                return Measured((time.perf_counter() - begun) * 1000, nonce)
            finally:
                self._remove("cold")
        self._run("container", "restore", "--keep", "golden")
        nonce = self.ask(self.network)
        restored_ms = (time.perf_counter() - begun) * 1000
        begun = time.perf_counter()
        self._run("container", "checkpoint", "--keep", *(["--leave-running"] if verb == CHECKPOINT else []), "golden")
        dumped_ms = (time.perf_counter() - begun) * 1000
        if verb == CHECKPOINT:
            self._run("container", "checkpoint", "--keep", "golden")
            return Measured(dumped_ms)
        return Measured(restored_ms, nonce)

    def _start(self, name: str, network: NetworkNamespace) -> None:
        mounts = [f"{source}:{target}:{'ro' if fixed else 'rw'}" for source, target, fixed in self.bundle.binds]
        environment = [f"{key}={value}" for key, value in self.bundle.environment.items()]
        self._run(
            "run", "--detach", "--name", name, "--network", f"ns:{network.path}",
            "--ulimit", f"nofile={_NOFILE}:{_NOFILE}", "--ulimit", "nproc=4096:4096", "--log-driver", "none",
            "--security-opt", f"seccomp={self.bundle.seccomp}",
            *[word for mount in mounts for word in ("--volume", mount)],
            *[word for one in environment for word in ("--env", one)],
            "--workdir", self.workload.workdir, "--rootfs", str(self.bundle.root), *self.workload.command,
        )  # fmt: skip

    def _run(self, *words: str) -> None:
        run([*self._words, *words], env=self._env)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(ThawboxError):
            self._run("rm", "--force", "--time", "0", name)


class Runsc(_Runtime):
    """gVisor: `runsc checkpoint` and `restore`. Its network does not come up on this kind of kernel, so a beating heart
    stands for an answer."""

    def __init__(self, workload: Workload, scratch: Path, *, program: Path) -> None:
        if not workload.beats:
            raise Unsupported(f"{workload.name} writes no heartbeat, and gVisor's network does not come up here")
        super().__init__("gVisor runsc", workload, scratch)
        with ExitStack() as failed:
            failed.callback(self.close)
            self.bundle.configure(workload=workload, network=None, cgroup="")
            self._words = [
                str(program), "--root", str(self.scratch / "state"), "--network", "none", "--platform", "systrap",
                "--ignore-cgroups", "--log", str(self.log),
            ]  # fmt: skip
            self._start("golden")
            self.undo.callback(self._delete, "golden")
            self.nonce, _ = read_beat(self.bundle.beat)
            self._checkpoint("golden", self.scratch / "images")
            self._delete("golden")
            failed.pop_all()

    @property
    def clocks(self) -> dict[str, str]:
        return {
            RESTORE: "`runsc restore --detach`, until the program's heart beat on (a file that it writes every 2 ms)",
            CHECKPOINT: "`runsc checkpoint --leave-running`, from the start of the command to its exit",
            COLD: "`runsc run --detach`, until the program's heart beat",
        }

    def measure(self, verb: str) -> Measured:
        (self.bundle.beat / "beat").unlink(missing_ok=True)
        begun = time.perf_counter()
        try:
            if verb == COLD:
                self._start("cold")
                nonce, _ = read_beat(self.bundle.beat)
                return Measured((time.perf_counter() - begun) * 1000, nonce)
            (self.bundle.beat / "beat").touch()  # the file that the frozen program has open
            self._restore("again")
            nonce, _ = read_beat(self.bundle.beat)
            if verb == RESTORE:
                return Measured((time.perf_counter() - begun) * 1000, nonce)
            begun = time.perf_counter()
            self._checkpoint("again", self.scratch / "more", "--leave-running")
            return Measured((time.perf_counter() - begun) * 1000)
        finally:
            self._delete("cold" if verb == COLD else "again")
            shutil.rmtree(self.scratch / "more", ignore_errors=True)

    def _start(self, name: str) -> None:
        run_detached([*self._words, "run", "--detach", "--bundle", str(self.bundle.path), name], log=self.log)

    def _restore(self, name: str) -> None:
        images = str(self.scratch / "images")
        run_detached(
            [*self._words, "restore", "--detach", "--bundle", str(self.bundle.path), "--image-path", images, name],
            log=self.log,
        )

    def _checkpoint(self, name: str, images: Path, *options: str) -> None:
        images.mkdir()
        run_detached([*self._words, "checkpoint", *options, "--image-path", str(images), name], log=self.log)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(ThawboxError):
            run([*self._words, "delete", "--force", name])


class Bubblewrap(_Runtime):
    """bubblewrap makes sandboxes and freezes none."""

    def __init__(self, workload: Workload, scratch: Path) -> None:
        if shutil.which("bwrap") is None:
            raise Unsupported("bubblewrap is not on this host", remediation="run `scripts/setup-peers`")
        super().__init__("bubblewrap", workload, scratch)

    @property
    def clocks(self) -> dict[str, str]:
        return {COLD: "`bwrap --unshare-all`, until the program's heart beat (a file that it writes every 2 ms)"}

    def measure(self, verb: str) -> Measured:
        (self.bundle.beat / "beat").unlink(missing_ok=True)
        binds = [
            word for source, target, fixed in self.bundle.binds if target != "/usr"
            for word in ("--ro-bind" if fixed else "--bind", source, target)
        ]  # fmt: skip
        links = [word for name in ("bin", "lib", "lib64", "sbin") for word in ("--symlink", f"usr/{name}", f"/{name}")]
        environment = [word for one in self.bundle.environment.items() for word in ("--setenv", *one)]
        begun = time.perf_counter()
        running = start_program(
            ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr", *links, "--proc", "/proc",
             "--dev", "/dev", "--tmpfs", "/tmp", *binds, *environment, *self.workload.command]  # noqa: S108 - inside
        )  # fmt: skip
        try:
            nonce, _ = read_beat(self.bundle.beat)
            return Measured((time.perf_counter() - begun) * 1000, nonce)
        finally:
            running.kill()
            running.wait()


class Crun(_Runtime):
    """Debian 12's crun is built without CRIU and refuses this hybrid cgroup layout: where it runs, it only starts."""

    def __init__(self, workload: Workload, scratch: Path) -> None:
        super().__init__("crun", workload, scratch)
        with ExitStack() as failed:
            failed.callback(self.close)
            self.network = self.make_network()
            self.bundle.configure(workload=workload, network=self.network.path, cgroup=f"/{self.tag}")
            self._words = ["crun", "--root", str(self.scratch / "state"), "--log", f"file:{self.log}"]
            self.measure(COLD)  # says by failing why there is no row
            failed.pop_all()

    @property
    def clocks(self) -> dict[str, str]:
        return {COLD: "`crun run --detach`, until the program answered"}

    def measure(self, verb: str) -> Measured:
        begun = time.perf_counter()
        try:
            run_detached([*self._words, "run", "--detach", "--bundle", str(self.bundle.path), "cold"], log=self.log)
            nonce = self.ask(self.network)
            return Measured((time.perf_counter() - begun) * 1000, nonce)
        finally:
            with contextlib.suppress(ThawboxError):
                run([*self._words, "delete", "--force", "cold"])
