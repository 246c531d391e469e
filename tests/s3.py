"""An S3 server over real HTTP, and a proxy before it that can be slow or away: what a region's store is in tests."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
_SERVER = """
import signal, sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False)
server.start()
print("listening", flush=True)
signal.pause()
"""


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The address of an empty S3 server, for the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", _SERVER, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "listening\n"
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def make_bucket(server: str, bucket: str) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{server}/{bucket}", method="PUT")).close()


class Proxy:
    """Passes bytes between its own port and a server's; `hangs` keeps every byte back, `refuses` hangs up."""

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition("/")[2].partition(":")
        self._target = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.hangs = False
        self.refuses = False
        self.seen = 0
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def close(self) -> None:
        self._ending.set()
        self._listening.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._ending.is_set():
            if not select.select([self._listening], [], [], 0.1)[0]:
                continue
            with contextlib.suppress(OSError):
                caller, _ = self._listening.accept()
                self.seen += 1
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError), socket.create_connection(self._target) as server:
            ends = {caller: server, server: caller}
            while not self._ending.is_set():
                if self.refuses:
                    return
                for end in select.select(list(ends), [], [], 0.02 if self.hangs else 0.1)[0]:
                    if self.hangs:
                        break
                    content = end.recv(1 << 16)
                    if not content:
                        return
                    ends[end].sendall(content)
                if self.hangs:
                    self._ending.wait(0.02)
