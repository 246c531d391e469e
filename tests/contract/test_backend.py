"""What every backend promises, asked of a directory, of memory, of an S3 server over real HTTP, and of an archive."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import uuid
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from thawbox.errors import BackendUnavailable, CorruptSnapshot, InvalidRequest
from thawbox.store.archive import ZipBackend
from thawbox.store.backends import Backend, ObjectBackend, open_backend


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of a moto server, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()
    server.stdout.close()


_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False)
server.start()
print("listening", flush=True)
import signal; signal.pause()
"""


def s3_options(server: str) -> dict[str, str]:
    return {"endpoint": server, "region": "us-east-1", "access_key_id": "key", "secret_access_key": "secret"}


@pytest.fixture(params=["directory", "memory", "s3", "archive"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    if request.param == "directory":
        yield open_backend(f"file://{tmp_path}/objects")
    elif request.param == "memory":
        yield open_backend("memory:///")
    elif request.param == "s3":
        yield s3_bucket(request.getfixturevalue("s3_server"))
    else:
        with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
            yield ZipBackend(archive, tmp_path / "archive")


def s3_bucket(server: str) -> ObjectBackend:
    import urllib.request

    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{server}/{bucket}", method="PUT")).close()
    return open_backend(f"s3://{bucket}/some/prefix", options=s3_options(server))


def test_what_was_written_is_read_whole(backend: Backend) -> None:
    content = os.urandom(300_000)
    backend.write("chunks/ab/abcd", content)
    assert backend.read("chunks/ab/abcd", limit=300_000) == content
    assert backend.exists("chunks/ab/abcd")


def test_what_is_not_there_is_none(backend: Backend) -> None:
    assert backend.read("chunks/ab/none", limit=10) is None
    assert not backend.exists("chunks/ab/none")


def test_an_empty_object_is_an_object(backend: Backend) -> None:
    backend.write("a", b"")
    assert backend.read("a", limit=0) == b""
    assert backend.exists("a")


def test_only_the_first_of_many_writes_once(backend: Backend) -> None:
    barrier = threading.Barrier(4)

    def write(number: int) -> bool:
        barrier.wait()
        return backend.write_once("snapshots/one", b"%d" % number)

    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(write, range(4)))
    assert written.count(True) == 1
    assert backend.read("snapshots/one", limit=1) == b"%d" % written.index(True)


def test_an_object_bigger_than_expected_is_refused(backend: Backend) -> None:
    backend.write("big", b"x" * 1001)
    with pytest.raises(CorruptSnapshot):
        backend.read("big", limit=1000)


def test_names_are_listed_below_their_prefix(backend: Backend) -> None:
    for name in ("snapshots/a", "snapshots/b", "layers/c", "snapshots2/d"):
        backend.write(name, b"1")
    assert sorted(backend.names("snapshots/")) == ["snapshots/a", "snapshots/b"]
    assert list(backend.names("nothing/")) == []


def test_many_threads_may_use_one_backend(backend: Backend) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: backend.write(f"n/{number}", b"%d" % number), range(40)))
        read = list(pool.map(lambda number: backend.read(f"n/{number}", limit=9), range(40)))
    assert read == [b"%d" % number for number in range(40)]


def test_a_server_that_is_not_there_is_unavailable_and_the_message_has_no_secret() -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        options = s3_options(f"http://127.0.0.1:{taken.getsockname()[1]}")
        backend = open_backend("s3://bucket/x", options=options, patience=0.0)
        with pytest.raises(BackendUnavailable) as refused:
            backend.read("a", limit=1)
    assert refused.value.retryable
    assert "secret" not in str(refused.value)


def test_a_wrong_bucket_is_unavailable(s3_server: str) -> None:
    backend = open_backend("s3://no-such-bucket-here/x", options=s3_options(s3_server))
    with pytest.raises(BackendUnavailable):
        backend.write("a", b"1")


@pytest.mark.parametrize("url", ["ftp://host/x", "nonsense", "", "file://relative/path", "http://host/x"])
def test_an_address_of_no_known_kind_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        open_backend(url)
