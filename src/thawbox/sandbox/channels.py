"""How programs in a sandbox are told of checkpoints and restores: by thawbox.guest, by HTTP, or by a command.

Rule 1: when a call returns, no connection of ours to the sandbox is left: a dump would fail on it.
Rule 2: an answer counts only with the nonce of its question: one that was recorded, or guessed, does not.
Rule 3: whoever was attending when the memory was dumped must answer after it was restored.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import signal
import struct
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, cast

from thawbox.errors import HookFailed, InvalidRequest, NotFound
from thawbox.host.init_client import ExecSession, Exited, Interrupted, Output
from thawbox.host.init_wire import WINDOW, ExecRequest
from thawbox.host.reach import connect_abstract, connect_within, listeners
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record
from thawbox.sandbox.links import open_link

GUEST_PREFIX = "thawbox-guest/"
_LENGTH = struct.Struct("<I")
_ANSWER_LIMIT = 16 << 20
_SAID_LIMIT = 2000
READY_SECONDS = 5.0
_ENDING_SECONDS = 0.5
_ENDING_PAUSE = 0.002


@dataclass(frozen=True, slots=True)
class Told:
    """What a program is told. `what` is `checkpoint`, `restore`, `clone` or `given`; `slept` is seconds."""

    what: str
    slept: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    secrets: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


@dataclass(slots=True)
class Held:
    """What programs gave up for a dump; it is in our memory only until they get it back."""

    secrets: dict[str, bytes] = field(default_factory=dict[str, bytes])
    environment: dict[str, str] = field(default_factory=dict[str, str])

    def __repr__(self) -> str:
        return f"<Held, {len(self.secrets)} secrets, {len(self.environment)} variables>"


class Channel(Protocol):
    """One way of telling. Every call raises HookFailed when the program fails, hangs, or answers wrongly.

    `after` raises InvalidRequest when the program takes no secrets.
    """

    def missing(self, *, timeout: float) -> tuple[str, ...]:
        """What the program still waits for before it may be checkpointed; empty when it is ready.

        `timeout` is seconds.
        """
        ...

    def before(self, held: Held) -> None:
        """Tell that a dump is about to begin; `held` takes what the program gives up for it."""
        ...

    def after(self, told: Told) -> None:
        """Tell what happened."""
        ...


@dataclass(frozen=True, slots=True)
class GuestChannel:
    """Processes that import thawbox.guest; each listens under its own name in the sandbox's network namespace."""

    record: Record
    names: tuple[str, ...]

    def missing(self, *, timeout: float) -> tuple[str, ...]:
        deadline = time.monotonic() + timeout
        waiting: list[str] = []
        for name in self.names:
            answer, _ = self._ask(name, "ready", timeout=max(deadline - time.monotonic(), 0.001))
            if not answer.get("ready"):
                waiting += _words(answer.get("missing")) or (f"guest.ready() of {name}",)
        return tuple(waiting)

    def before(self, held: Held) -> None:
        for name in self.names:
            self._ask_if_there(name, "before_checkpoint")
        for name in self.names:
            given_up = self._ask_if_there(name, "hold", extra={"limit": self.record.spec.hook_timeout})
            held.secrets.update(given_up.secrets)
            held.environment.update(given_up.environment)

    def after(self, told: Told) -> None:
        verb = {"checkpoint": "after_checkpoint", "given": "given"}.get(told.what, "after_restore")
        # hooks may talk to each other's processes: with several, none is held while they run
        verbs = ["release", verb] if len(self.names) > 1 and told.what != "given" else [verb]
        if told.what in ("clone", "restore"):
            for step in verbs:
                for name in self.names:
                    self._ask(name, step, told=told if step == verb else None)
            return
        failures: list[HookFailed] = []
        for step in verbs:
            for name in self.names:
                try:  # the original runs on: whatever one process does, the others get their secrets back
                    self._ask_if_there(name, step, told=told if step == verb else None)
                except HookFailed as failed:
                    failures.append(failed)
        if failures:
            raise failures[0]

    def _ask_if_there(
        self, name: str, verb: str, *, told: Told | None = None, extra: Mapping[str, object] | None = None
    ) -> Held:
        """The same for processes that may end at any time; of one that did there is nothing to ask."""
        try:
            return self._ask(name, verb, told=told, extra=extra)[1]
        except HookFailed:
            if not self._goes(name):
                raise
            return Held()

    def _goes(self, name: str) -> bool:
        """Whether the process of that name has ended, or does within a moment: its connections close one by one."""
        deadline = time.monotonic() + _ENDING_SECONDS
        while name in guest_names(self.record):
            if time.monotonic() > deadline:
                return False
            time.sleep(_ENDING_PAUSE)
        return True

    def _ask(
        self, name: str, verb: str, *, told: Told | None = None, extra: Mapping[str, object] | None = None,
        timeout: float | None = None,
    ) -> tuple[dict[str, Any], Held]:  # fmt: skip
        who = f"{self.record.name}: {name}: {verb}"
        seconds = self.record.spec.hook_timeout if timeout is None else timeout
        request = {"verb": verb, **_question(self.record, told), **(extra or {})}
        values = {"secrets": dict(told.secrets), "environment": _as_bytes(told.environment)} if told else {}
        request |= {what: [[key, len(value)] for key, value in held.items()] for what, held in values.items()}
        blobs = [value for held in values.values() for value in held.values()]
        text = json.dumps(request).encode()
        try:
            with connect_abstract(self.record.keeper_pid, name, timeout=seconds) as link, link.makefile("rb") as stream:
                link.sendall(_LENGTH.pack(len(text)) + text + b"".join(blobs))
                answer = _read_answer(stream.read(_ANSWER_LIMIT), who)
        except TimeoutError:
            raise HookFailed(f"{who} did not answer within {seconds:g} s") from None
        except (OSError, NotFound) as error:
            raise HookFailed(f"{who} could not be asked: {error}") from error
        _check_answer(answer[0], request, who)
        return answer


@dataclass(frozen=True, slots=True)
class HttpChannel:
    """A server on the sandbox's loopback with `/internal/checkpoint-ready`, `before-checkpoint`, `after-restore`.

    What it answers to `before-checkpoint` as `environment` it is told again after it. A server that answers
    `checkpoint-ready` with `"secrets": false` is sent none.
    `POST /internal/after-checkpoint` tells the original that it runs on; a server need not have it (404, 405).
    """

    record: Record

    def missing(self, *, timeout: float) -> tuple[str, ...]:
        status, answer = self._ask("GET", "checkpoint-ready", None, timeout=timeout)
        if status == 200:
            return ()
        return _words(answer.get("missing")) or (f"checkpoint-ready answers {status}",)

    def before(self, held: Held) -> None:
        given_up = self._post("before-checkpoint", None).get("environment")
        if isinstance(given_up, dict):
            variables = cast("dict[str, object]", given_up)
            held.environment.update({name: value for name, value in variables.items() if isinstance(value, str)})

    def after(self, told: Told) -> None:
        if told.secrets:
            self._check_takes_secrets()
        if told.what == "checkpoint":
            self._post("after-checkpoint", told, optional=True)
        else:
            self._post("given" if told.what == "given" else "after-restore", told)

    def _check_takes_secrets(self) -> None:
        """Raise InvalidRequest where the server cannot keep them out of snapshots: what it is sent is in its memory."""
        _, answer = self._ask("GET", "checkpoint-ready", None, timeout=READY_SECONDS)
        if answer.get("secrets") is False:
            raise InvalidRequest(
                f"{self.record.name} takes no secrets by HTTP: copies of the request would be in its snapshots",
                remediation="run it with --hooks auto: thawbox.guest takes secrets without leaving a copy",
            )

    def _post(self, path: str, told: Told | None, *, optional: bool = False) -> dict[str, Any]:
        question = _question(self.record, told)
        if told is not None:
            question["secrets"] = _encoded(told.secrets)
        status, answer = self._ask("POST", path, question, timeout=self.record.spec.hook_timeout)
        if optional and status in (404, 405):
            return {}
        who = f"{self.record.name}: POST /internal/{path}"
        if status != 200:
            raise HookFailed(f"{who} answered {status}: {str(answer.get('error', ''))[:200]}")
        _check_answer({"ok": True, **answer}, question, who)
        return answer

    def _ask(
        self, method: str, path: str, body: Mapping[str, object] | None, *, timeout: float
    ) -> tuple[int, dict[str, Any]]:
        import http.client
        from urllib.parse import urlsplit

        port = urlsplit(self.record.spec.hooks).port or 80
        who = f"{self.record.name}: {method} /internal/{path}"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        try:
            connection.sock = connect_within(self.record.keeper_pid, port, timeout=timeout)
            text = None if body is None else json.dumps(body)
            connection.request(
                method, f"/internal/{path}", text, {"Connection": "close", "Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            raw = answer.read(_ANSWER_LIMIT)
        except TimeoutError:
            raise HookFailed(f"{who} did not answer within {timeout:g} s") from None
        except (OSError, NotFound, http.client.HTTPException) as error:
            raise HookFailed(f"{who} could not be asked: {error}") from error
        finally:
            connection.close()
        return answer.status, _json_object(raw)


@dataclass(frozen=True, slots=True)
class CommandChannel:
    """A shell command of the sandbox, run with one more argument: `checkpoint-ready`, `before-checkpoint`, ….

    What the other channels send is on its standard input as JSON; its exit status is the answer (for
    `checkpoint-ready` only 0 means ready). It runs as root, and in the sandbox.
    """

    context: Context
    record: Record

    def missing(self, *, timeout: float) -> tuple[str, ...]:
        status, said = self._run("checkpoint-ready", {}, timeout=timeout)
        return () if status == 0 else (said or f"checkpoint-ready ended with {status}",)

    def before(self, held: Held) -> None:  # noqa: ARG002 - it keeps its own
        self._tell("before-checkpoint", None)

    def after(self, told: Told) -> None:
        self._tell({"checkpoint": "after-checkpoint", "given": "given"}.get(told.what, "after-restore"), told)

    def _tell(self, verb: str, told: Told | None) -> None:
        question = _question(self.record, told)
        if told is not None:
            question["secrets"] = _encoded(told.secrets)
        status, said = self._run(verb, question, timeout=self.record.spec.hook_timeout)
        if status:
            raise HookFailed(f"{self.record.name}: hook command {verb} ended with {status}: {said[:200]}")

    def _run(self, verb: str, question: Mapping[str, object], *, timeout: float) -> tuple[int, str]:
        command = self.record.spec.hooks.removeprefix("cmd:")
        request = ExecRequest(("/bin/sh", "-c", f'{command} "$0"', verb), stdin=True)
        deadline = time.monotonic() + timeout
        with open_link(self.context, self.record, timeout=timeout) as link:
            session = link.exec(request)
            if not isinstance(session, ExecSession):
                raise HookFailed(f"{self.record.name}: hook command {verb} could not be started")
            with session:
                outcome, said = _run_to_end(session, json.dumps(question).encode(), deadline)
                if outcome is None:
                    session.signal(signal.SIGKILL)
        if not isinstance(outcome, Exited):
            why = "was interrupted" if outcome else f"took more than {timeout:g} s"
            raise HookFailed(f"{self.record.name}: hook command {verb} {why}")
        return outcome.exit_status, said.decode(errors="replace").strip()


def guest_names(record: Record) -> tuple[str, ...]:
    """Under which names processes of the sandbox listen for us: one read of a file in /proc."""
    return listeners(record.keeper_pid, GUEST_PREFIX)


def _run_to_end(session: ExecSession, stdin: bytes, deadline: float) -> tuple[Exited | Interrupted | None, bytes]:
    """How the command ended, None if it runs on after `deadline`, and the last of what it printed."""
    rest, said = memoryview(stdin), b""
    while (left := deadline - time.monotonic()) > 0:
        rest = rest[session.offer_stdin(bytes(rest[:WINDOW])) :]
        if not rest:
            session.close_stdin()
        for event in session.poll(left):
            if not isinstance(event, Output):
                return event, said
            said = (said + event.content)[-_SAID_LIMIT:]
    return None, said


def _question(record: Record, told: Told | None) -> dict[str, Any]:
    identity = {
        "id": record.id, "name": record.name, "hostname": record.hostname, "machine_id": record.machine_id,
        "address": record.address,
    }  # fmt: skip
    question: dict[str, Any] = {"nonce": secrets.token_hex(16), "identity": identity}
    if told is not None:
        question |= {key: value for key, value in asdict(told).items() if key != "secrets"}
    return question


def _as_bytes(environment: Mapping[str, str]) -> dict[str, bytes]:
    return {name: value.encode(errors="surrogateescape") for name, value in environment.items()}


def _encoded(values: Mapping[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(value).decode() for name, value in values.items()}


def _check_answer(answer: Mapping[str, Any], question: Mapping[str, Any], who: str) -> None:
    if not answer.get("ok"):
        raise HookFailed(f"{who} failed: {str(answer.get('error', 'it does not say why'))[:500]}")
    if answer.get("nonce") != question["nonce"]:
        raise HookFailed(f"{who} answered without the nonce of the question: it did not do what it says")
    if "sandbox" in answer and answer["sandbox"] != question["identity"]["id"]:
        raise HookFailed(f"{who} answered for another sandbox")


def _json_object(raw: bytes) -> dict[str, Any]:
    """What a program sent, if it is a JSON object, else an empty one."""
    with contextlib.suppress(ValueError):
        found: Any = json.loads(raw)
        if isinstance(found, dict):
            return cast("dict[str, Any]", found)
    return {}


def _words(found: object) -> tuple[str, ...]:
    return tuple(str(word)[:200] for word in cast("list[object]", found)) if isinstance(found, list) else ()


def _read_answer(raw: bytes, who: str) -> tuple[dict[str, Any], Held]:
    try:
        (length,) = _LENGTH.unpack_from(raw)
        answer = json.loads(raw[_LENGTH.size : _LENGTH.size + length])
        at = _LENGTH.size + length
        values: dict[str, dict[str, bytes]] = {"secrets": {}, "environment": {}}
        for what, taken in values.items():
            for name, size in answer.get(what, ()):
                taken[name] = raw[at : at + size]
                at += size
    except (struct.error, ValueError, TypeError, AttributeError):
        raise HookFailed(f"{who} gave no answer that can be read") from None
    if at > len(raw):
        raise HookFailed(f"{who} gave up more than it sent, or more than {_ANSWER_LIMIT >> 20} MiB")
    environment = {name: value.decode(errors="surrogateescape") for name, value in values["environment"].items()}
    return answer, Held(values["secrets"], environment)
