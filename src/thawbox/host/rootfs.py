"""What a sandbox sees as `/`: the host's own programs, a directory, or an unpacked OCI image.

Everything here is read-only for sandboxes: each gets its own writable layer over it.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from thawbox.errors import InvalidSpec

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class RootfsKind(enum.Enum):
    SYSTEM = "system"
    """The host's `/usr`, read-only, under a skeleton of our own: nothing personal of the host."""
    DIRECTORY = "directory"
    OCI = "oci"


@dataclass(frozen=True, slots=True)
class Overlay:
    """One overlay to mount at `mountpoint` ("/" or "/usr") of the sandbox; `lowers` are topmost first."""

    mountpoint: str
    lowers: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What an OCI image says about how to run it; what the spec says wins."""

    env: dict[str, str] = field(default_factory=lambda: {"PATH": DEFAULT_PATH})
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    workdir: str = "/"
    user: str = "root"


@dataclass(frozen=True, slots=True)
class Rootfs:
    """A rootfs ready to be mounted: its overlays, the one at "/" first.

    `digest` names the content for SYSTEM (skeleton, not `/usr`) and OCI, and the place for DIRECTORY, whose content
    the caller answers for. CRIU itself compares every mapped file at restore.
    """

    kind: RootfsKind
    overlays: tuple[Overlay, ...]
    digest: str
    defaults: Defaults = field(default_factory=Defaults)

    @property
    def root_lowers(self) -> tuple[Path, ...]:
        """The lower directories of the overlay at "/"."""
        return self.overlays[0].lowers


def resolve(rootfs: str, cache: Path) -> Rootfs:
    """The rootfs that a spec names: `SYSTEM`, a directory, or an OCI layout or archive (`PATH` or `PATH:TAG`).

    Skeletons and unpacked images are kept below `cache`, by digest; the first use of one takes its time.
    Raises InvalidSpec when there is no such thing, Unsupported when this host cannot use it.
    """
    if rootfs == "SYSTEM":
        from thawbox.host import system_rootfs

        lowers, digest = system_rootfs.prepare(cache / "system")
        return _system(lowers, digest)
    path, tag = _split_tag(rootfs)
    if path.is_dir() and not (path / "oci-layout").is_file():
        return _directory(path)
    from thawbox.host import oci

    image = oci.unpack(path, cache / "oci", tag=tag)
    return Rootfs(RootfsKind.OCI, (Overlay("/", (image.root,)),), image.digest, image.defaults)


def reopen(kind: RootfsKind, digest: str, cache: Path) -> Rootfs | None:
    """The rootfs of this digest if `cache` still has it: what a snapshot made over an older skeleton or image needs.

    None for directories, which are not kept here, and for what is not there.
    """
    if kind is RootfsKind.SYSTEM:
        from thawbox.host import system_rootfs

        lowers = system_rootfs.find(cache / "system", digest)
        return _system(lowers, digest) if lowers else None
    if kind is not RootfsKind.OCI:
        return None
    from thawbox.host import oci

    image = oci.find(cache / "oci", digest)
    return Rootfs(kind, (Overlay("/", (image.root,)),), image.digest, image.defaults) if image else None


def _system(lowers: tuple[tuple[Path, ...], tuple[Path, ...]], digest: str) -> Rootfs:
    root, usr = lowers
    return Rootfs(RootfsKind.SYSTEM, (Overlay("/", root), Overlay("/usr", usr)), digest)


def _directory(path: Path) -> Rootfs:
    path = path.resolve()
    if path == Path("/"):
        raise InvalidSpec("the host's own root as rootfs shows all its secrets", remediation="use --rootfs SYSTEM")
    digest = hashlib.sha256(b"directory\0" + str(path).encode()).hexdigest()
    return Rootfs(RootfsKind.DIRECTORY, (Overlay("/", (path,)),), digest)


def _split_tag(rootfs: str) -> tuple[Path, str]:
    """The path and the tag (or "") that a rootfs text names; a path that exists as written has no tag."""
    whole = Path(rootfs)
    if whole.exists():
        return whole, ""
    path, colon, tag = rootfs.rpartition(":")
    if colon and "/" not in tag and Path(path).exists():
        return Path(path), tag
    raise InvalidSpec(
        f"the rootfs {rootfs} does not exist",
        remediation="give SYSTEM, a directory, or the path of an OCI layout or image archive",
    )
