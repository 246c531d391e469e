"""The host's way in: a unix socket in the abstract namespace, which belongs to the sandbox's network namespace.

One request per connection, `u32 length` and JSON, then the bytes of secrets, then those of environment; one answer,
framed alike; then we close.

| verb | what is done | answer besides `ok` |
|---|---|---|
| ready | nothing | `ready`, `missing` |
| before_checkpoint | hooks run | |
| hold | answers, wipes secrets and environment, lets no other thread run until the host comes back | both, to keep |
| release | nothing: generators were seeded anew when the hold ended | |
| after_checkpoint, after_restore, given | environment, secrets, hooks | `hooks`: how many ran |

Rule 1: only a peer without a pid in our namespace is the host; a process of the sandbox always has one.
Rule 2: every end of a hold reseeds, whoever ended it: the memory cannot know whether it is a clone.
Rule 3: every answer repeats the nonce and the sandbox id of its request.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
from typing import Any

from .environment import environment
from .registry import HookFailed, Registry
from .reseeding import hold_until_readable
from .secrets import Secret, secrets
from .waking import wake

PREFIX = "\0thawbox-guest/"
MESSAGE_LIMIT = 1 << 20
_PEER_SECONDS = 30.0
_LENGTH = struct.Struct("<I")
_UCRED = struct.Struct("3i")

_listening: list[socket.socket] = []


def listen(registry: Registry) -> None:
    """Listen under this process's pid, in a daemon thread. Where that is impossible (no Linux), nobody can call."""
    if sys.platform != "linux":
        return
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{PREFIX}{os.getpid()}")
    listener.listen(8)
    _listening.append(listener)
    threading.Thread(target=_serve, args=(listener, registry), name="thawbox-guest", daemon=True).start()


def listen_in_child(registry: Registry) -> None:
    """A forked child has the same hooks and generators, and none of the threads: it listens for itself."""
    while _listening:
        _listening.pop().close()
    listen(registry)


def _serve(listener: socket.socket, registry: Registry) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return  # closed: the interpreter ends
        held = 0.0
        with peer:
            if _is_host(peer):
                peer.settimeout(_PEER_SECONDS)
                try:
                    held = _answer(peer, registry)
                except (OSError, ValueError, KeyError, TypeError):
                    held = 0.0  # the host went away or spoke nonsense: it knows
        if held:
            hold_until_readable(listener.fileno(), held)


def _is_host(peer: socket.socket) -> bool:
    pid, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return (pid, uid) == (0, 0)


def _answer(peer: socket.socket, registry: Registry) -> float:
    """Do what one request asks and answer it; the result is for how many seconds to hold."""
    request = _receive_request(peer)
    given = {name: Secret(_receive(peer, length)) for name, length in _announced(request, "secrets")}
    variables = {name: _as_bytes(_receive(peer, length)) for name, length in _announced(request, "environment")}
    answer: dict[str, Any] = {"ok": True, "nonce": request["nonce"], "sandbox": request["identity"]["id"],
                              "verb": request["verb"], "pid": os.getpid()}  # fmt: skip
    hold, blobs = 0.0, []
    try:
        if request["verb"] == "ready":
            answer |= {"ready": registry.is_ready, "missing": list(registry.missing)}
        elif request["verb"] == "before_checkpoint":
            registry.run_before()
        elif request["verb"] == "hold":
            hold = float(request["limit"])
            variables = environment.held()
            answer["secrets"] = [[name, len(secret)] for name, secret in secrets.items()]
            answer["environment"] = [[name, len(value)] for name, value in variables.items()]
            blobs = [secret.view() for secret in secrets.values()]
            blobs += [memoryview(value) for value in variables.values()]
            variables.clear()  # values that somebody else has too are not overwritten
        elif request["verb"] in ("after_checkpoint", "after_restore", "given"):
            wake(request, variables, given, registry)
            answer["hooks"] = len(registry.hooks_after(request["what"]))
        elif request["verb"] != "release":
            answer |= {"ok": False, "error": f"unknown verb {request['verb']!r}"}
    except HookFailed as failed:
        answer |= {"ok": False, "error": str(failed)}
    _send(peer, answer, blobs)
    if hold:
        secrets.wipe()
        environment.give_up()
    return hold


def _send(peer: socket.socket, answer: dict[str, Any], blobs: list[memoryview]) -> None:
    text = json.dumps(answer).encode()
    peer.sendall(_LENGTH.pack(len(text)) + text)
    for blob in blobs:
        peer.sendall(blob)
        blob.release()


def _receive_request(peer: socket.socket) -> dict[str, Any]:
    (length,) = _LENGTH.unpack(_receive(peer, _LENGTH.size))
    if length > MESSAGE_LIMIT:
        raise ValueError("a request of this length is no request")
    request: dict[str, Any] = json.loads(_receive(peer, length))
    return request


def _announced(request: dict[str, Any], what: str) -> list[tuple[str, int]]:
    """Names and lengths of the values that follow a request."""
    found = [(name, length) for name, length in request.get(what, ())]
    if any(length > MESSAGE_LIMIT for _, length in found):
        raise ValueError("a value of this length is no value")
    return found


def _as_bytes(value: bytearray) -> bytes:
    """The only copy that is left of it."""
    copy = bytes(value)
    Secret(value).wipe()
    return copy


def _receive(peer: socket.socket, length: int) -> bytearray:
    """Exactly so many bytes, straight into the buffer that is returned: no copy is left behind."""
    buffer = bytearray(length)
    view = memoryview(buffer)
    while view:
        got = peer.recv_into(view)
        if not got:
            raise ValueError("the host hung up")
        view = view[got:]
    return buffer
