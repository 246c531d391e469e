"""Backends: where objects are kept by name outside this node. Buckets and directories here, an archive in `archive`.

Rule 1: a backend knows names and bytes; it knows nothing of snapshots, chunks or keys.
Rule 2: an object is never changed once written; `write` of a name that exists writes the same meaning again.
Rule 3: whatever the other side does wrong becomes BackendUnavailable; what it does not have is None or False.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from thawbox.errors import BackendUnavailable, CorruptSnapshot, InvalidRequest
from thawbox.host.files import sync_filesystem

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az", "file", "memory")
_CONNECT_SECONDS = 10.0
_REQUEST_SECONDS = 120.0
_IN_AN_ADDRESS = frozenset({"endpoint", "region", "virtual_hosted_style_request"})
"""Settings that an address may carry: never credentials, for addresses are shown."""


class Backend(Protocol):
    """Objects by name. Names are relative paths of plain characters. Safe to use from several threads."""

    @property
    def where(self) -> str:
        """The place in words for messages, without credentials."""
        ...

    def read(self, name: str, *, limit: int) -> bytes | None:
        """The object's bytes, None if there is none; raises CorruptSnapshot for one of more than `limit` bytes."""
        ...

    def exists(self, name: str) -> bool: ...

    def write(self, name: str, content: bytes) -> None:
        """Write an object; whoever reads it sees it whole or not at all."""
        ...

    def write_once(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one; says whether it was written. When it returns, all is durable."""
        ...

    def names(self, prefix: str) -> Iterator[str]:
        """Names below `prefix`, which ends in a slash."""
        ...


class ObjectBackend:
    """A bucket, or a directory that is used like one, through obstore."""

    def __init__(self, store: ObjectStore, where: str, *, directory: Path | None = None) -> None:
        self._store = store
        self._where = where
        self._directory = directory

    @property
    def where(self) -> str:
        return self._where

    def read(self, name: str, *, limit: int) -> bytes | None:
        import obstore

        with self._told(name):
            try:
                found = obstore.get(self._store, name)
            except FileNotFoundError:
                return None
            if found.meta["size"] > limit:
                raise CorruptSnapshot(f"{self._where}: {name} has {found.meta['size']} bytes, more than it can have")
            return bytes(found.bytes())

    def exists(self, name: str) -> bool:
        import obstore

        with self._told(name):
            try:
                obstore.head(self._store, name)
            except FileNotFoundError:
                return False
            return True

    def write(self, name: str, content: bytes) -> None:
        import obstore

        with self._told(name):
            obstore.put(self._store, name, content, use_multipart=False)

    def write_once(self, name: str, content: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        if self._directory is not None:
            sync_filesystem(self._directory)  # what this object names was written without a flush
        with self._told(name):
            try:
                obstore.put(self._store, name, content, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            except NotSupportedError:  # an S3 look-alike without conditional writes: the content is the same anyway
                if self.exists(name):
                    return False
                self.write(name, content)
        if self._directory is not None:
            sync_filesystem(self._directory)
        return True

    def names(self, prefix: str) -> Iterator[str]:
        import obstore

        with self._told(prefix):
            listing = cast("Any", obstore).list(self._store, prefix.rstrip("/"))
            for batch in listing:
                yield from (str(found["path"]) for found in batch)

    @contextlib.contextmanager
    def _told(self, name: str) -> Generator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise BackendUnavailable(
                f"{self._where}: {name}: {type(error).__name__}: {reason}",
                remediation="check the address, the credentials and the network, then retry; what was sent stays sent",
            ) from error


def open_backend(
    url: str, *, options: Mapping[str, str] | None = None, patience: float = 60.0, timeout: float = _REQUEST_SECONDS
) -> ObjectBackend:
    """The backend at `s3://bucket/path[?endpoint=…&region=…]`, `gs://…`, `az://…`, `file:///directory`, `memory:///`.

    `options` are the object store library's own settings (`endpoint`, `region`, `access_key_id`, …); what is missing
    it takes from the environment as each provider's tools do. `patience` is how many seconds a request that fails for
    the server's or network's sake is retried, `timeout` how long each try may take. Raises InvalidRequest for any
    other address.
    """
    from obstore.store import LocalStore, MemoryStore, from_url

    parts = urlsplit(url)
    where = urlunsplit((parts.scheme, parts.hostname or "", parts.path, "", ""))
    if parts.scheme not in SCHEMES:
        raise InvalidRequest(f"{where[:200]!r} is no store address", remediation="use s3://, gs://, az:// or file://")
    if parts.scheme == "memory":
        return ObjectBackend(MemoryStore(), where)
    if parts.scheme == "file":
        if parts.hostname or not parts.path.startswith("/"):
            raise InvalidRequest(f"{where[:200]!r} is not absolute", remediation="write file:///directory")
        directory = Path(parts.path)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return ObjectBackend(LocalStore(directory), where, directory=directory)
    config = {**_options_in(parts.query, where), **(options or {})}
    limits = {
        "connect_timeout": timedelta(seconds=min(timeout, _CONNECT_SECONDS)), "timeout": timedelta(seconds=timeout),
    }  # fmt: skip
    try:
        store = cast("Any", from_url)(  # its overloads want each provider's own literal settings
            urlunsplit(parts._replace(query="")),
            config=config,
            client_options={**limits, **_plain_http(config)},
            retry_config={"max_retries": _retries(patience), "retry_timeout": timedelta(seconds=patience)},
        )
    except Exception as error:  # the library raises its own and ValueError, by setting
        raise InvalidRequest(f"{where[:200]!r} cannot be opened: {str(error).partition(chr(10))[0]}") from error
    return ObjectBackend(store, where)


def _retries(patience: float) -> int:
    """The library waits 0.1 s, then twice as long each time: as many retries as fit, five at most."""
    return min(5, int(math.log2(1 + 10 * patience)))


def _options_in(query: str, where: str) -> dict[str, str]:
    """The settings that an address carries; raises InvalidRequest for any that it may not."""
    found = dict(parse_qsl(query, keep_blank_values=True))
    for key in found:
        if key not in _IN_AN_ADDRESS:
            raise InvalidRequest(
                f"{where[:200]}: an address carries no setting {key[:40]!r}",
                remediation=f"only {', '.join(sorted(_IN_AN_ADDRESS))}; credentials belong into the environment",
            )
    return found


def _plain_http(options: Mapping[str, str]) -> dict[str, bool]:
    """An operator who names an http:// endpoint means it (a store on the same machine or network)."""
    named = [value for key, value in options.items() if "endpoint" in key.lower()]
    return {"allow_http": True} if any(value.startswith("http://") for value in named) else {}
