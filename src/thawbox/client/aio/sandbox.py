"""A sandbox, its commands, its files, and the code that runs in it; and snapshots, from which sandboxes are made."""

from __future__ import annotations

import base64
import codecs
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from thawbox.client.aio.terminal import AsyncTerminal, open_terminal
from thawbox.client.aio.transport import AsyncTransport
from thawbox.client.entering import entered
from thawbox.client.problems import error_of
from thawbox.client.results import JSON, CommandResult, Entry, Execution, command_of, encoded, given
from thawbox.client.sse import ServerEvent
from thawbox.errors import CommandInterrupted, NotFound

OnText = Callable[[str], object]
"""Hears what is printed, as it comes."""


class AsyncSandbox:
    """A sandbox of the node. As a context manager it is gone after the block: given back to its pool, or killed.

    `told` is what the service said of it when it was made or found.
    """

    def __init__(self, transport: AsyncTransport, told: Mapping[str, Any], *, lease: str = "") -> None:
        self._transport = transport
        self.id: str = told["id"]
        self.name: str = told.get("name", "")
        self.lease = lease
        self.told: Mapping[str, Any] = told
        self._path = f"/v1/sandboxes/{self.id}"
        self.commands = AsyncCommands(transport, self._path)
        self.files = AsyncFiles(transport, f"{self._path}/files")

    def __repr__(self) -> str:
        return f"<Sandbox {self.name} ({self.id})>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(NotFound):
            if self.lease:
                await self.release()
            else:
                await self.kill()

    async def run_code(
        self, code: str, *, context: str = "default", timeout: float | None = None, on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
    ) -> Execution:  # fmt: skip
        """Run Python code in an interpreter that stays in the sandbox with its variables, across snapshots.

        What the code raises is in `error`. After `timeout` seconds it is interrupted, and killed if that does not help.
        """
        body = given(code=code, context=context, timeout=timeout)
        if on_stdout is None and on_stderr is None:
            return Execution.of(await self._transport.ask("POST", f"{self._path}/code", body, once=True))
        printed = _Printed(on_stdout, on_stderr)
        async for event in self._transport.events("POST", f"{self._path}/code", body):
            if not printed.take(event):
                return Execution.of(event.content, stdout=printed.stdout, stderr=printed.stderr)
        raise CommandInterrupted("the service ended before the code did")

    async def end_context(self, context: str = "default") -> None:
        """End an interpreter with all it holds."""
        await self._transport.ask("DELETE", f"{self._path}/code/{quote(context, safe='')}")

    def terminal(
        self, command: str | Sequence[str] = ("/bin/sh",), *, rows: int = 24, cols: int = 80,
        env: Mapping[str, str] | None = None, user: str = "", workdir: str = "", tty: bool = True,
    ) -> contextlib.AbstractAsyncContextManager[AsyncTerminal]:  # fmt: skip
        """A command on a terminal, for the block; without `tty` on plain streams."""
        wish = given(
            argv=command_of(command if isinstance(command, str) else list(command)), env=dict(env or {}), user=user,
            workdir=workdir, tty={"rows": rows, "cols": cols} if tty else None,
        )  # fmt: skip
        return open_terminal(self._transport, f"{self._path}/terminal", wish)

    async def checkpoint(
        self, *, name: str | None = None, mode: str | None = None, stop: bool | None = None,
        skip_if_clean: bool | None = None, labels: Mapping[str, str] | None = None, ttl: float | None = None,
        pinned: bool | None = None, when_ready: bool | None = None,
    ) -> AsyncSnapshot:  # fmt: skip
        """Make a durable snapshot; with `stop` the sandbox does not run on. `ttl` is seconds."""
        body = given(
            name=name, mode=mode, stop=stop, skip_if_clean=skip_if_clean, labels=labels, ttl=ttl, pinned=pinned,
            when_ready=when_ready,
        )  # fmt: skip
        return AsyncSnapshot(self._transport, await self._transport.ask("POST", f"{self._path}/checkpoint", body))

    async def fork(self, count: int = 1, *, name: str | None = None, eager: bool | None = None) -> list[AsyncSandbox]:
        """Checkpoint and make `count` clones of it, which run beside the original."""
        body = given(count=count, name=name, eager=eager)
        answer = await self._transport.ask("POST", f"{self._path}/fork", body)
        return [AsyncSandbox(self._transport, one) for one in answer["sandboxes"]]

    async def freeze(self) -> None:
        """Stop every task until `thaw`: memory is held, no CPU is used."""
        await self._transport.ask("POST", f"{self._path}/freeze")

    async def thaw(self) -> None:
        """Let every task run again."""
        await self._transport.ask("POST", f"{self._path}/thaw")

    async def stop(self, *, timeout: float | None = None) -> None:
        """End the main program by SIGTERM, after `timeout` seconds by SIGKILL; its files stay."""
        await self._transport.ask("POST", f"{self._path}/stop", given(timeout=timeout))

    async def kill(self) -> None:
        """Remove the sandbox, processes and files. Its snapshots stay, but the supervisor's."""
        await self._transport.ask("DELETE", self._path, query={"force": True})

    async def release(self, *, reset: bool = False) -> None:
        """Give a sandbox of a pool back."""
        await self._transport.ask("DELETE", f"/v1/claims/{self.lease}", query={"reset": reset})

    async def renew(self, *, ttl: float | None = None) -> None:
        """Keep a sandbox of a pool for `ttl` seconds from now."""
        await self._transport.ask("PATCH", f"/v1/claims/{self.lease}", given(ttl=ttl), once=True)

    async def give(
        self, *, secrets: Mapping[str, bytes | str] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """Give its programs secrets and environment now; stored nowhere."""
        body = {"secrets": encoded(secrets), "environment": dict(environment or {})}
        await self._transport.ask("POST", f"{self._path}/give", body)

    async def supervise(self, **policy: Any) -> JSON:
        """Watch over it: `restart`, `health`, `checkpoint_every`, `checkpoint_on_pressure`, `checkpoint_on_drain`,
        `keep`, `spare`."""
        return await self._transport.ask("PUT", f"{self._path}/supervision", policy)

    async def unsupervise(self) -> None:
        """Watch over it no longer."""
        await self._transport.ask("DELETE", f"{self._path}/supervision")

    async def info(self) -> JSON:
        """Its spec, and all that is known of it now."""
        return await self._transport.ask("GET", self._path)

    async def state(self) -> str:
        """`running`, `frozen`, `suspended`, `exited`, `lost`, …"""
        return str((await self.info())["state"])

    async def stats(self) -> JSON:
        """Memory, CPU and tasks now."""
        return await self._transport.ask("GET", f"{self._path}/stats")

    async def preflight(self) -> JSON:
        """What in it cannot be frozen, or may not."""
        return await self._transport.ask("GET", f"{self._path}/preflight")

    async def logs(self, *, follow: bool = False, after: str | None = None) -> AsyncGenerator[JSON]:
        """What its main program printed, oldest first; with `follow` until it ends."""
        if follow:
            query = {"follow": True, "after": after}
            async for event in self._transport.events("GET", f"{self._path}/logs", query=query):
                if event.name == "log":
                    yield event.content
            return
        for record in (await self._transport.ask("GET", f"{self._path}/logs", query={"after": after}))["records"]:
            yield record


class AsyncCommands:
    """Commands in a sandbox: `sandbox.commands`."""

    def __init__(self, transport: AsyncTransport, path: str) -> None:
        self._transport = transport
        self._path = f"{path}/exec"

    async def run(
        self, command: str | Sequence[str], *, env: Mapping[str, str] | None = None, user: str = "", workdir: str = "",
        stdin: str | bytes | None = None, timeout: float | None = None, on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
    ) -> CommandResult:  # fmt: skip
        """Run a command to its end; text is for the shell. After `timeout` seconds it is killed, with what it started.

        A command that fails is an ordinary outcome: look at `exit_code`.
        """
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        body = given(
            argv=command_of(command if isinstance(command, str) else list(command)), env=dict(env or {}), user=user,
            workdir=workdir, timeout=timeout, stdin_base64=None if raw is None else base64.b64encode(raw).decode(),
        )  # fmt: skip
        if on_stdout is None and on_stderr is None:
            answer = await self._transport.ask("POST", self._path, body, once=True)
            return _ended(answer, answer["stdout"], answer["stderr"])
        printed = _Printed(on_stdout, on_stderr)
        async for event in self._transport.events("POST", self._path, body):
            if not printed.take(event):
                return _ended(event.content, printed.stdout, printed.stderr)
        raise CommandInterrupted("the service ended before the command did")

    async def start(
        self, command: str | Sequence[str], *, env: Mapping[str, str] | None = None, user: str = "", workdir: str = ""
    ) -> int:
        """Leave a command running in the sandbox, whose snapshots hold it; its output goes to the log."""
        argv = command_of(command if isinstance(command, str) else list(command))
        body = given(argv=argv, env=dict(env or {}), user=user, workdir=workdir, detach=True)
        return int((await self._transport.ask("POST", self._path, body, once=True))["session"])


class AsyncFiles:
    """Files of a sandbox: `sandbox.files`. Paths are absolute, and lead nowhere but into its own root."""

    def __init__(self, transport: AsyncTransport, path: str) -> None:
        self._transport = transport
        self._path = path

    async def read(self, path: str) -> bytes:
        """The content of a file."""
        async with self._transport.stream("GET", self._path, query={"path": path}) as response:
            return await response.aread()

    async def read_text(self, path: str, *, encoding: str = "utf-8") -> str:
        return (await self.read(path)).decode(encoding)

    async def stream(self, path: str, *, begin: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """The content of a file, piece by piece; from byte `begin` to before `end`."""
        headers: dict[str, str] = {}
        if begin or end is not None:
            headers["Range"] = f"bytes={begin}-" + ("" if end is None else str(end - 1))
        async with self._transport.stream("GET", self._path, query={"path": path}, headers=headers) as response:
            async for piece in response.aiter_bytes():
                yield piece

    async def write(
        self,
        path: str,
        content: str | bytes | AsyncIterator[bytes],
        *,
        mode: int | None = None,
        user: str | None = None,
    ) -> Entry:
        """Put a file there, whole or not at all, with the directories above it."""
        raw = content.encode() if isinstance(content, str) else content
        query = {"path": path, "mode": None if mode is None else f"{mode:03o}", "user": user}
        return Entry.of(await self._transport.put(self._path, raw, query=query))

    async def list(self, path: str = "/") -> list[Entry]:
        """What a directory holds, by name."""
        answer = await self._transport.ask("GET", f"{self._path}/list", query={"path": path})
        return [Entry.of(one) for one in answer["entries"]]

    async def stat(self, path: str) -> Entry:
        """What a path names; a link is described itself."""
        return Entry.of(await self._transport.ask("GET", f"{self._path}/stat", query={"path": path}))

    async def exists(self, path: str) -> bool:
        """Whether there is something at a path."""
        try:
            await self.stat(path)
        except NotFound as error:
            if error.code != "not_found.path":
                raise
            return False
        return True

    async def make_dir(self, path: str, *, mode: int = 0o755, user: str | None = None) -> Entry:
        """Make a directory and those above it."""
        body = given(path=path, mode=f"{mode:03o}", user=user)
        return Entry.of(await self._transport.ask("POST", f"{self._path}/mkdir", body))

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link, an empty directory, or with `recursive` a whole tree."""
        await self._transport.ask("DELETE", self._path, query={"path": path, "recursive": recursive})

    async def download(self, path: str, target: str | Path) -> None:
        """A file of the sandbox as a file here, whole or not at all."""
        place = Path(target)
        growing = place.with_name(f".{place.name}.part")
        try:
            with growing.open("wb") as file:
                async with self._transport.stream("GET", self._path, query={"path": path}) as response:
                    async for piece in response.aiter_bytes():
                        file.write(piece)
            growing.rename(place)
        finally:
            growing.unlink(missing_ok=True)

    async def upload(self, source: str | Path, path: str, *, mode: int | None = None, user: str | None = None) -> Entry:
        """A file from here as a file of the sandbox, whole or not at all."""
        return await self.write(path, _pieces_of(Path(source)), mode=mode, user=user)

    async def download_archive(self, path: str) -> AsyncGenerator[bytes]:
        """A tar stream of what a directory holds."""
        async with self._transport.stream("GET", f"{self._path}/archive", query={"path": path}) as response:
            async for piece in response.aiter_bytes():
                yield piece

    async def upload_archive(
        self, path: str, content: bytes | AsyncIterator[bytes], *, user: str | None = None
    ) -> JSON:
        """Unpack a tar into a directory: `{files, bytes, left_out}`."""
        return await self._transport.put(f"{self._path}/archive", content, query={"path": path, "user": user})


class AsyncSnapshot:
    """A snapshot of the node: immutable."""

    def __init__(self, transport: AsyncTransport, told: Mapping[str, Any]) -> None:
        self._transport = transport
        self.id: str = told["id"]
        self.told: Mapping[str, Any] = told
        self._path = f"/v1/snapshots/{self.id}"

    def __repr__(self) -> str:
        return f"<Snapshot {self.id[:12]}>"

    async def info(self) -> JSON:
        """All that is known of it."""
        return await self._transport.ask("GET", self._path)

    async def chain(self) -> JSON:
        """What it is made of, base first."""
        return await self._transport.ask("GET", f"{self._path}/chain")

    @entered
    async def clone(
        self, *, name: str | None = None, secrets: Mapping[str, bytes | str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> AsyncSandbox:  # fmt: skip
        """A new sandbox, with a new identity, that goes on from here."""
        return (await self.clones(1, name=name, secrets=secrets, environment=environment))[0]

    async def clones(
        self, count: int, *, name: str | None = None, eager: bool | None = None,
        secrets: Mapping[str, bytes | str] | None = None, environment: Mapping[str, str] | None = None,
    ) -> list[AsyncSandbox]:  # fmt: skip
        """So many at once; if one fails, none is left."""
        body = given(count=count, name=name, eager=eager, secrets=encoded(secrets), environment=dict(environment or {}))
        answer = await self._transport.ask("POST", f"{self._path}/clone", body)
        return [AsyncSandbox(self._transport, one) for one in answer["sandboxes"]]

    @entered
    async def restore(
        self, *, secrets: Mapping[str, bytes | str] | None = None, environment: Mapping[str, str] | None = None
    ) -> AsyncSandbox:
        """Bring the very sandbox back that it was made of."""
        body = {"secrets": encoded(secrets), "environment": dict(environment or {})}
        return AsyncSandbox(self._transport, await self._transport.ask("POST", f"{self._path}/restore", body))

    async def change(
        self, *, add_names: Sequence[str] | None = None, remove_names: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None, pinned: bool | None = None, ttl: float | None = None,
    ) -> JSON:  # fmt: skip
        """Change its names, labels, pin and expiry."""
        body = given(add_names=add_names, remove_names=remove_names, labels=labels, pinned=pinned, ttl=ttl)
        return await self._transport.ask("PATCH", self._path, body, once=True)

    async def verify(self, *, deep: bool = False) -> JSON:
        """Whether its bytes are what they were: `{ok, problems}`."""
        return await self._transport.ask("POST", f"{self._path}/verify", {"deep": deep})

    async def flatten(self, *, name: str | None = None) -> AsyncSnapshot:
        """A full snapshot equal to it."""
        answer = await self._transport.ask("POST", f"{self._path}/flatten", given(name=name))
        return AsyncSnapshot(self._transport, answer)

    async def remove(self, *, cascade: bool = False) -> None:
        """Remove it; with `cascade` also what was made on top of it."""
        await self._transport.ask("DELETE", self._path, query={"cascade": cascade})


class _Printed:
    """What a streamed command has printed, handed on as text as it comes."""

    def __init__(self, on_stdout: OnText | None, on_stderr: OnText | None) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")
        self._hearers = {"stdout": on_stdout, "stderr": on_stderr}
        self._decoders = {name: decoder("replace") for name in self._hearers}
        self._texts: dict[str, list[str]] = {name: [] for name in self._hearers}

    @property
    def stdout(self) -> str:
        return "".join(self._texts["stdout"])

    @property
    def stderr(self) -> str:
        return "".join(self._texts["stderr"])

    def take(self, event: ServerEvent) -> bool:
        """False for the event that says how it ended. Raises what went wrong instead."""
        if event.name == "interrupted":
            raise CommandInterrupted(f"the command was interrupted: {event.content.get('why', '')}")
        if event.name == "error":
            raise error_of(event.content, status=int(event.content.get("status", 500)))
        if event.name in self._hearers:
            self._hand_on(event.name, self._decoders[event.name].decode(base64.b64decode(event.content["data"])))
        elif event.name != "started":
            for name, decoder in self._decoders.items():
                self._hand_on(name, decoder.decode(b"", final=True))
            return False
        return True

    def _hand_on(self, name: str, text: str) -> None:
        self._texts[name].append(text)
        hearer = self._hearers[name]
        if hearer is not None and text:
            hearer(text)


def _ended(told: Mapping[str, Any], stdout: str, stderr: str) -> CommandResult:
    return CommandResult(
        stdout, stderr, told["exit_status"], told["signal"], told["timed_out"], bool(told.get("truncated")),
        told["duration_ms"],
    )  # fmt: skip


async def _pieces_of(path: Path) -> AsyncGenerator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(256 << 10):
            yield piece
