"""A root directory and an OCI bundle for the peers: the host's `/usr` under a skeleton, as sandboxes see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from thawbox.bench.peers.workloads import HEARTBEAT, Workload
from thawbox.errors import Unsupported
from thawbox.host.proc import Outcome, run_program, start_program

_DIRECTORIES = ("usr", "proc", "sys", "dev", "tmp", "etc", "var", "run", "root", HEARTBEAT[1:])
_LINKS = ("bin", "lib", "lib64", "sbin")
PATH = "/usr/local/bin:/usr/bin:/bin"
_NO_IO_URING: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {"names": ["io_uring_setup", "io_uring_enter", "io_uring_register"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
    ],
}
"""CRIU cannot dump an io_uring; our sandboxes refuse it too, and programs fall back."""
TIMEOUT = 120.0
"""Seconds that a peer's command may take."""


class Bundle:
    """A directory with `rootfs` and `config.json`; `beat` is where the workload's heartbeat appears on the host."""

    def __init__(self, where: Path, workload: Workload) -> None:
        self.path = where / "bundle"
        self.root = self.path / "rootfs"
        self.beat = where / "beat"
        for directory in (self.root, self.beat, *(self.root / name for name in _DIRECTORIES)):
            directory.mkdir(parents=True)
        for name in _LINKS:
            (self.root / name).symlink_to(f"usr/{name}")
        self.environment = {"PATH": PATH, "HOME": "/root", **dict(workload.env)}
        self.seccomp = where / "seccomp.json"
        self.seccomp.write_text(json.dumps(_NO_IO_URING))
        self.binds = [("/usr", "/usr", True), (str(self.beat), HEARTBEAT, False)]
        self.binds += [(mount.source, mount.target, mount.read_only) for mount in workload.mounts]
        for _, target, _ in self.binds:
            if not target.startswith("/usr"):
                (self.root / target[1:]).mkdir(parents=True, exist_ok=True)

    def configure(self, *, workload: Workload, network: Path | None, cgroup: str) -> None:
        """Write `config.json`: what `runc spec` proposes, with this program, these mounts, this network namespace."""
        (self.path / "config.json").unlink(missing_ok=True)
        run(["runc", "spec", "--bundle", str(self.path)])
        config: dict[str, Any] = json.loads((self.path / "config.json").read_text())
        config["process"] |= {
            "cwd": workload.workdir,
            "terminal": False, "args": list(workload.command), "rlimits": [],
            "env": [f"{name}={value}" for name, value in self.environment.items()],
        }  # fmt: skip
        config["root"] = {"path": "rootfs", "readonly": False}
        config["mounts"] += [
            {"destination": target, "type": "bind", "source": source, "options": ["rbind", "ro" if fixed else "rw"]}
            for source, target, fixed in self.binds
        ]
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] == "network" and network is not None:
                namespace["path"] = str(network)
        config["linux"] |= {"cgroupsPath": cgroup, "seccomp": _NO_IO_URING}
        (self.path / "config.json").write_text(json.dumps(config))


def run(argv: list[str], *, env: dict[str, str] | None = None) -> Outcome:
    """Run a peer's command to its end, with nothing at its standard streams; raises Unsupported with its last words."""
    done = run_program(argv, timeout=TIMEOUT, env=env)
    if done.status:
        words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-3:]
        raise Unsupported(f"`{' '.join(argv[:1] + argv[-3:])}` failed: {' / '.join(words)}")
    return done


def run_detached(argv: list[str], *, log: Path, criu_log: Path | None = None) -> None:
    """Run a command that leaves a program behind, which inherits no pipe of ours: its words go to `log`, its own file.

    Raises Unsupported with the end of that log, and the errors in CRIU's where there is one.
    """
    status = start_program(argv).wait(timeout=TIMEOUT)
    if status:
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        if criu_log is not None and criu_log.exists():
            said = criu_log.read_text(errors="replace").splitlines()
            lines = [line for line in said if "Error" in line and "RLIMIT_NOFILE" not in line][:2] or lines
        raise Unsupported(f"`{' '.join(argv[:1] + argv[-3:])}` exited with {status}: {' / '.join(lines[-2:])}")
