"""Files over HTTP: bytes as they are, whole or not at all, inside the sandbox alone (races: test_sandbox_files.py)."""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service import Served, wait_for
from thawbox.client import Client
from thawbox.client.sync.sandbox import Sandbox
from thawbox.errors import InvalidPath, InvalidRequest, InvalidTransition, NotFound, PathNotFound

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def raw(served: Served) -> Iterator[httpx.Client]:
    """Requests as they are written."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(served.socket)), base_url="http://x", timeout=60) as raw:
        yield raw


def test_files_come_and_go_as_they_are(box: Sandbox, tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "here").write_bytes(content)
    entry = box.files.upload(tmp_path / "here", "/srv/a b/ä/file", mode=0o600, user="nobody")
    assert (entry.size, entry.mode, entry.uid, entry.type) == (len(content), 0o600, 65534, "file")
    assert box.files.read("/srv/a b/ä/file") == content
    assert b"".join(box.files.stream("/srv/a b/ä/file", begin=10, end=20)) == content[10:20]
    box.files.download("/srv/a b/ä/file", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert box.commands.run("sha256sum < '/srv/a b/ä/file'").ok
    box.files.write("/srv/text", "schön")
    assert box.files.read_text("/srv/text") == "schön"
    assert [one.name for one in box.files.list("/srv")] == ["a b", "text"]
    assert box.files.make_dir("/srv/x/y", mode=0o700).mode == 0o700
    assert box.files.exists("/srv/x/y")
    with pytest.raises(InvalidPath):
        box.files.remove("/srv/x")
    box.files.remove("/srv/x", recursive=True)
    assert not box.files.exists("/srv/x")
    with pytest.raises(PathNotFound):
        box.files.read("/srv/x")
    assert box.files.read("/dev/../etc/hostname") == box.commands.run("cat /etc/hostname").stdout.encode()


def test_one_range_is_honoured(box: Sandbox, raw: httpx.Client) -> None:
    box.files.write("/srv/f", bytes(range(100)))
    path = f"/v1/sandboxes/{box.id}/files?path=/srv/f"

    def ask(header: str) -> httpx.Response:
        return raw.get(path, headers={"Range": header})

    assert (ask("bytes=0-0").content, ask("bytes=0-0").headers["content-range"]) == (b"\0", "bytes 0-0/100")
    assert ask("bytes=90-").content == bytes(range(90, 100))
    assert ask("bytes=-3").content == bytes([97, 98, 99])
    assert ask("bytes=50-1000").content == bytes(range(50, 100))
    for beyond in ("bytes=100-", "bytes=5-4", "bytes=-0"):
        refused = ask(beyond)
        assert (refused.status_code, refused.headers["content-range"]) == (416, "bytes */100")
    for unheard in ("bytes=0-1,3-4", "lines=1-2", "bytes=x", "bytes=-"):
        assert (ask(unheard).status_code, len(ask(unheard).content)) == (200, 100)


def test_what_a_sandbox_wrote_never_runs_as_a_page_of_the_service(box: Sandbox, raw: httpx.Client) -> None:
    box.files.write("/srv/page.html", "<script>alert(1)</script>")
    answer = raw.get(f"/v1/sandboxes/{box.id}/files?path=/srv/page.html")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_archive_goes_both_ways(box: Sandbox) -> None:
    box.files.write("/srv/tree/sub/a", b"one")
    stream = b"".join(box.files.download_archive("/srv/tree"))
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        assert sorted(tar.getnames()) == ["sub", "sub/a"]
    assert box.files.upload_archive("/srv/copy", stream)["files"] == 1
    assert box.files.read("/srv/copy/sub/a") == b"one"
    with pytest.raises(InvalidRequest):
        box.files.upload_archive("/srv/copy", b"no tar" * 1000)


HOSTILE = [
    "", "relative", "/a\0b", "/" + "x" * 300, "/" + "y/" * 2040, "/" + "z" * 10_000, "/proc/self/root/etc/passwd",
    "/proc/1/root/etc/passwd", "/dev/null", "/sys/kernel", "/..", "/../..", "/\ufffe", "/..%2f..", "/~root", "//", ".",
]  # fmt: skip


def test_no_path_is_a_failure_of_the_service(box: Sandbox, raw: httpx.Client) -> None:
    base = f"/v1/sandboxes/{box.id}/files"
    for path in HOSTILE:
        query = {"path": path}
        answers = [
            raw.get(base, params=query), raw.put(base, params=query, content=b"x"),
            raw.delete(base, params={**query, "recursive": "true"} if path not in ("/~root", "/\ufffe") else query),
            raw.get(f"{base}/list", params=query), raw.get(f"{base}/stat", params=query),
            raw.get(f"{base}/archive", params={"path": path + "/nothing"}),
            raw.put(f"{base}/archive", params=query, content=b"x"), raw.post(f"{base}/mkdir", json={"path": path}),
        ]  # fmt: skip
        for answer in answers:
            assert answer.status_code < 500, (path, answer.request.method, answer.text)
    assert raw.post(f"{base}/mkdir", json={"path": "/a", "mode": "999"}).status_code == 400
    assert raw.put(base, params={"path": "/a", "mode": "rwx"}, content=b"x").status_code == 400
    assert box.commands.run("true").ok, "and the sandbox lives"


def test_an_upload_that_breaks_off_changes_nothing(box: Sandbox, served: Served) -> None:
    box.files.write("/srv/f", b"old")
    before = len(served.links())

    def breaking() -> Iterator[bytes]:
        yield bytes(2_000_000)
        raise KeyError

    with pytest.raises(KeyError):
        box.files.write("/srv/f", breaking())
    wait_for(lambda: len(served.links()) <= before, "what was gathered is dropped")
    assert box.files.read("/srv/f") == b"old"
    assert [one.name for one in box.files.list("/srv")] == ["f"]


def test_a_download_that_is_left_leaves_no_descriptor(box: Sandbox, served: Served) -> None:
    box.commands.run("truncate -s 20G /srv/huge")
    with Client(served.url) as other:
        pieces = other.sandbox("box").files.stream("/srv/huge")
        next(pieces)
        assert sum(link.endswith("/srv/huge") for link in served.links()) == 1
        pieces.close()
    wait_for(lambda: not any(link.endswith("/srv/huge") for link in served.links()), "the file is closed")


def test_an_upload_that_is_too_long_by_its_own_word_is_refused_before_it_comes(box: Sandbox, served: Served) -> None:
    asking = http.client.HTTPConnection("x")
    with socket.socket(socket.AF_UNIX) as asking.sock:
        asking.sock.connect(str(served.socket))
        asking.putrequest("PUT", f"/v1/sandboxes/{box.id}/files?path=/srv/f")
        asking.putheader("Content-Length", str(1 << 50))
        asking.endheaders()
        refused = asking.getresponse()
        assert refused.status == 400
        assert "THAWBOX_UPLOAD_LIMIT" in json.loads(refused.read())["remediation"]


def test_an_ended_sandbox_says_so(box: Sandbox) -> None:
    box.stop(timeout=0)
    for attempt in (
        lambda: box.files.read("/etc/passwd"),
        lambda: box.files.write("/x", b"y" * 10),
        lambda: box.files.list("/"),
    ):
        with pytest.raises(InvalidTransition):
            attempt()
    box.kill()
    with pytest.raises(NotFound):
        box.files.list("/")
