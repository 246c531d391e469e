"""A real API server out of KUBEBUILDER_ASSETS (kube-apiserver, etcd, kubectl), for the suites that hold ours to it."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("kube-apiserver", "etcd", "kubectl")
_TOKEN = "tests-only"


def why_not() -> str:
    """Why no real API server can be started here; empty when one can."""
    folder = os.environ.get("KUBEBUILDER_ASSETS", "")
    if not folder:
        return "KUBEBUILDER_ASSETS is not set: no folder with kube-apiserver, etcd and kubectl"
    missing = [name for name in PROGRAMS if not os.access(Path(folder) / name, os.X_OK)]
    return f"KUBEBUILDER_ASSETS={folder} lacks {', '.join(missing)}" if missing else ""


@contextmanager
def real_server(scratch: Path) -> Iterator[Path]:
    """A kubeconfig of a fresh cluster without nodes; it ends with the block."""
    folder = Path(os.environ["KUBEBUILDER_ASSETS"])
    etcd, peer, port = _ports(3)
    (scratch / "tokens.csv").write_text(f"{_TOKEN},admin,admin,system:masters\n")
    key = scratch / "accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    with ExitStack() as undo, (scratch / "log").open("wb") as log:

        def start(*argv: str) -> None:
            running = subprocess.Popen(argv, stdout=log, stderr=log)
            undo.callback(running.wait, 20)
            undo.callback(running.terminate)

        start(str(folder / "etcd"), f"--data-dir={scratch / 'etcd'}", f"--listen-client-urls=http://127.0.0.1:{etcd}",
              f"--advertise-client-urls=http://127.0.0.1:{etcd}", f"--listen-peer-urls=http://127.0.0.1:{peer}",
              "--unsafe-no-fsync")  # fmt: skip
        start(str(folder / "kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{etcd}", f"--secure-port={port}",
              f"--cert-dir={scratch / 'certs'}", f"--token-auth-file={scratch / 'tokens.csv'}",
              "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={key}",
              f"--service-account-signing-key-file={key}", "--authorization-mode=RBAC",
              "--disable-admission-plugins=ServiceAccount", "--service-cluster-ip-range=10.0.0.0/24")  # fmt: skip
        url = f"https://127.0.0.1:{port}"
        _wait_ready(url)
        config = scratch / "kubeconfig"
        config.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": {"server": url, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "tests", "user": {"token": _TOKEN}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        }))  # fmt: skip
        yield config


def _ports(count: int) -> list[int]:
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in opened]


def _wait_ready(url: str) -> None:
    trusting = ssl._create_unverified_context()
    request = urllib.request.Request(f"{url}/readyz", headers={"Authorization": f"Bearer {_TOKEN}"})
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, context=trusting, timeout=5) as answer:
                answer.read()
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
