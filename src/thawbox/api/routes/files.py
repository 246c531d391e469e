"""Files of a sandbox that has processes, inside its own root alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from email.utils import formatdate
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from thawbox import views
from thawbox.api import shown
from thawbox.api.access import User
from thawbox.api.answers import Answer, Body, Media, Reference, resource
from thawbox.api.following import Followed, Source, Threads
from thawbox.api.problems import out_of_range
from thawbox.api.service import Service
from thawbox.errors import InvalidRequest
from thawbox.host.inside_archives import Unpacked
from thawbox.host.inside_files import Entry
from thawbox.sandbox.files import Files, Reading, Upload

_T = TypeVar("_T")
Place = Annotated[str, Query(max_length=4096, description="an absolute path inside the sandbox")]
Mode = Annotated[str, Query(pattern="^[0-7]{3,4}$", description="permission bits, octal")]
_UNTRUSTED = {
    "Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox",
}  # fmt: skip
"""What a sandbox wrote must never run as a page of ours."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class MakeDirectory(Body):
    path: Annotated[str, Field(max_length=4096)]
    mode: Annotated[str, Field(pattern="^[0-7]{3,4}$")] = "755"
    user: str = ""


def router(service: Service) -> APIRouter:
    routes = resource("/v1/sandboxes/{ref}/files", "files")
    threads = Threads(service.ending)

    def of(ref: str) -> Files:
        return service.sandbox(ref).files

    @routes.get("")
    async def read_file(ref: Reference, path: Place, request: Request, _: User) -> (
        Annotated[Response, Media("application/octet-stream", statuses=(200, 206))]
    ):  # fmt: skip
        """The bytes of a regular file; one `Range` of bytes is honoured."""
        reading = await threads.do(lambda: of(ref).open(path))
        try:
            span = _span(request.headers.get("range"), reading.size)
        except InvalidRequest:
            reading.close()
            return out_of_range(reading.size)
        begin, end = span or (0, reading.size)
        headers = {
            **_UNTRUSTED, "Accept-Ranges": "bytes", "content-length": str(end - begin),
            "Last-Modified": formatdate(max(0.0, reading.mtime), usegmt=True),
            **({"Content-Range": f"bytes {begin}-{end - 1}/{reading.size}"} if span else {}),
        }  # fmt: skip
        source = Source(_pieces(reading, begin, end), end=reading.close)
        return Followed(
            threads, source, media_type="application/octet-stream", status_code=206 if span else 200, headers=headers
        )

    @routes.put("", status_code=200)
    async def write_file(
        ref: Reference, path: Place, request: Request, _: User, mode: Mode | None = None, user: str = ""
    ) -> Answer[shown.File]:
        """Put the body there as a file, in one step once it has come whole, with the directories above it."""
        bits = None if mode is None else int(mode, 8)
        entry = await _received(
            threads, of, ref, request, lambda files, upload: files.write(path, upload, mode=bits, user=user)
        )  # fmt: skip
        return Answer(_shown(entry))

    @routes.delete("", status_code=204)
    async def remove_file(ref: Reference, path: Place, _: User, *, recursive: bool = False) -> Response:
        """Remove a file, a link, an empty directory, or with `recursive` a whole tree."""
        await threads.do(lambda: of(ref).remove(path, recursive=recursive))
        return Response(status_code=204)

    @routes.get("/list")
    async def list_directory(ref: Reference, path: Place, _: User) -> Answer[shown.Directory]:
        """What a directory holds, by name."""
        entries = await threads.do(lambda: of(ref).list(path))
        return Answer({"path": path, "entries": [_shown(entry) for entry in entries]})

    @routes.get("/stat")
    async def show_file(ref: Reference, path: Place, _: User) -> Answer[shown.File]:
        """What a path names; a link is described itself."""
        return Answer(_shown(await threads.do(lambda: of(ref).stat(path))))

    @routes.post("/mkdir", status_code=201)
    async def make_directory(ref: Reference, wish: MakeDirectory, _: User) -> Answer[shown.File]:
        """Make a directory and those above it; one that is there stays as it is."""
        mode = int(wish.mode, 8)
        made = await threads.do(lambda: of(ref).make_directory(wish.path, mode=mode, user=wish.user))
        return Answer(_shown(made), status_code=201)

    @routes.get("/archive")
    async def read_archive(ref: Reference, path: Place, _: User) -> Annotated[Response, Media("application/x-tar")]:
        """A tar stream of a file, or of what a directory holds."""
        stream = await threads.do(lambda: of(ref).archive(path))
        return Followed(threads, Source(stream), media_type="application/x-tar", headers=_UNTRUSTED)

    @routes.put("/archive")
    async def write_archive(ref: Reference, path: Place, request: Request, _: User, user: str = "") -> (
        Answer[Unpacked]
    ):  # fmt: skip
        """Unpack the body, a tar, into a directory; each file appears whole."""
        done = await _received(threads, of, ref, request, lambda files, upload: files.unpack(path, upload, user=user))
        return Answer(done)

    return routes


def _pieces(reading: Reading, begin: int, end: int) -> Generator[bytes]:
    with reading:
        yield from reading.pieces(begin, end)


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """The bytes that a Range header asks for; None for all. Raises InvalidRequest where there are none such."""
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None or found.groups() == ("", ""):
        return None  # RFC 9110 14.2: what is not understood is not heard
    first, last = found.groups()
    begin = max(0, size - int(last)) if not first else int(first)
    end = size if not first or not last else min(size, int(last) + 1)
    if begin >= size or (first and last and int(last) < begin):
        raise InvalidRequest(f"the file has {size} bytes")
    return begin, end


def _shown(entry: Entry) -> shown.File:
    return {
        "name": entry.name, "path": entry.path, "type": entry.type, "size": entry.size, "mode": f"{entry.mode:04o}",
        "mtime": views.timestamp(entry.mtime), "target": entry.target, "uid": entry.uid, "gid": entry.gid,
    }  # fmt: skip


async def _received(
    threads: Threads, of: Callable[[str], Files], ref: str, request: Request, act: Callable[[Files, Upload], _T]
) -> _T:
    """Gather the body, then put it where it is to be; a caller that goes before that has changed nothing."""
    files = await threads.do(partial(_living, of, ref))
    with threads.admitted():
        upload = await threads.do(files.upload)
        try:
            declared = request.headers.get("content-length", "")
            if declared.isdigit():
                upload.expect(int(declared))
            async for piece in request.stream():
                if piece:
                    await threads.do(partial(upload.add, piece))
            return await threads.do(lambda: act(files, upload))
        except ClientDisconnect:
            raise InvalidRequest("the caller went away before the body was whole") from None
        finally:
            await threads.do(upload.close)


def _living(of: Callable[[str], Files], ref: str) -> Files:
    files = of(ref)
    files.stat("/")  # raises for a sandbox without processes, before a body is taken
    return files
