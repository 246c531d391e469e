"""The SYSTEM rootfs: a skeleton of our own, with the host's `/usr` over it.

Rule 1: a file of the host enters only if the list below names it and everybody on the host may read it.
Rule 2: `/usr` is shown as it is, except what others may not read and the administrator's own configuration.
Rule 3: a skeleton never changes: another content is another digest, and the old one stays for its snapshots.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from thawbox.errors import Unavailable, Unsupported
from thawbox.host.files import locked, private_directory, remove_tree, write_durably
from thawbox.host.proc import run_program

FROM_ETC = (
    "alternatives", "bash.bashrc", "ca-certificates", "crypto-policies", "debian_version", "fonts", "gai.conf",
    "groff", "host.conf", "inputrc", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "locale.alias", "locale.conf",
    "localtime", "lsb-release", "magic", "magic.mime", "mime.types", "netconfig", "os-release", "perl",
    "pki/ca-trust/extracted", "pki/tls/cert.pem", "pki/tls/certs", "pki/tls/openssl.cnf", "profile", "protocols",
    "redhat-release", "rpc", "services", "shells", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone",
)  # fmt: skip
"""What programs look up in /etc, none of it personal or secret. Not here on purpose: passwd, shadow, ssh, environment,
gitconfig, npmrc, pip.conf, wgetrc, profile.d, apt, systemd, ssl/private."""

FROM_ETC_GLOBS = ("ld-musl-*", "python3*", "java-*-openjdk")

OWN_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "user:x:1000:1000:user:/home/user:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/hostname": "sandbox\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
    "etc/resolv.conf": "",
    "etc/machine-id": "",
}
DIRECTORIES = {
    ".thawbox": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "home/user": 0o755, "mnt": 0o755, "opt": 0o755,
    "proc": 0o555, "root": 0o700, "run": 0o755, "run/lock": 0o1777, "srv": 0o755, "sys": 0o555, "tmp": 0o1777,
    "usr": 0o755, "var": 0o755, "var/cache": 0o755, "var/lib": 0o755, "var/log": 0o755, "var/tmp": 0o1777,
}  # fmt: skip
OWN_LINKS = {"var/run": "/run", "var/lock": "/run/lock", "etc/mtab": "/proc/self/mounts"}
_MANUAL = (".1.gz", ".3.gz", ".5.gz", ".7.gz", ".8.gz")
"""Half of /etc/alternatives are manual pages, which nobody reads in a sandbox."""
OWNERS = {"home/user": 1000}

HIDDEN_USR = ("etc", "local/etc")
"""The administrator's own configuration: npm, for one, keeps registry tokens in /usr/local/etc."""
_SCAN_TIMEOUT = 120.0
_PACKAGE_STATUS = ("/var/lib/dpkg/status", "/var/lib/rpm", "/usr/lib/sysimage/rpm", "/lib/apk/db/installed")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One path of the skeleton: a directory, a file with `content`, or a link to `target`."""

    path: str
    mode: int
    content: bytes | None = None
    target: str | None = None


def prepare(store: Path) -> tuple[tuple[tuple[Path, ...], tuple[Path, ...]], str]:
    """The lower directories for "/" and for "/usr", and the skeleton's digest; made below `store` if missing.

    Raises Unsupported where the host's /bin and /lib are not links into /usr.
    """
    private_directory(store)
    current = store / "current.json"
    if (known := _read_current(current)) and (lowers := find(store, known)):
        return lowers, known
    with locked(store / "lock", timeout=_SCAN_TIMEOUT, what="the SYSTEM rootfs"):
        watched = _watched()  # seen before the content is read: a change in between makes the next call look again
        digest = _build(store)
        write_durably(current, json.dumps({"digest": digest, "watched": watched}).encode())
    lowers = find(store, digest)
    if lowers is None:
        raise Unavailable(f"the skeleton {digest} was removed from {store} while it was being made")
    return lowers, digest


def find(store: Path, digest: str) -> tuple[tuple[Path, ...], tuple[Path, ...]] | None:
    """The lower directories of an existing skeleton; None if there is none of this digest."""
    home = store / digest
    if not (home / "root").is_dir():
        return None
    usr = (home / "usr-mask", Path("/usr")) if (home / "usr-mask").is_dir() else (Path("/usr"),)
    return (home / "root",), usr


def _read_current(current: Path) -> str | None:
    """The digest of the skeleton made last, if nothing it was made from has changed since."""
    try:
        known = json.loads(current.read_bytes())
    except FileNotFoundError:
        return None
    fresh = all(_inode(path) == inode for path, inode in known["watched"].items())
    return known["digest"] if fresh else None


def _watched() -> dict[str, list[int] | None]:
    """Everything whose change means another skeleton, and its inode now; for `/usr`, the package database."""
    also = (*_PACKAGE_STATUS, "/usr/local", __file__)
    inner = [str(path) for source in _sources() for path in _walk(source) if not path.is_symlink()]
    return {path: _inode(path) for path in (*inner, *also)}


def _inode(path: str) -> list[int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return [status.st_ino, status.st_size, status.st_ctime_ns]


def _sources() -> list[Path]:
    etc = Path("/etc")
    found = [etc / name for name in FROM_ETC]
    for pattern in FROM_ETC_GLOBS:
        found += sorted(etc.glob(pattern))
    return found


def _walk(path: Path) -> Iterator[Path]:
    """`path` and, where it is a directory, everything below it, in a stable order."""
    yield path
    if path.is_dir() and not path.is_symlink():
        for directory, names, files in os.walk(path):
            names.sort()
            yield from (Path(directory) / name for name in sorted((*names, *files)) if not name.endswith(_MANUAL))


def _build(store: Path) -> str:
    entries = _entries()
    hidden = _hidden()
    digest = _digest(entries, hidden)
    if find(store, digest):
        return digest
    with ExitStack() as undo:
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=store))
        undo.callback(remove_tree, staging)
        staging.chmod(0o755)
        _write_entries(staging / "root", entries)
        if hidden:
            _write_mask(staging / "usr-mask", hidden)
        # The rename commits: what it names must be on the disk before it.
        run_program(["sync", "-f", str(staging)], timeout=_SCAN_TIMEOUT)
        staging.rename(store / digest)
        undo.pop_all()
    return digest


def _digest(entries: list[_Entry], hidden: list[str]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        content = hashlib.sha256(entry.content or b"").hexdigest()
        digest.update(f"{entry.path}\0{entry.mode:o}\0{entry.target}\0{content}\n".encode())
    digest.update("\n".join(hidden).encode())
    return digest.hexdigest()


def _entries() -> list[_Entry]:
    """Every path of the skeleton, parents first."""
    found = {name: _Entry(name, stat.S_IFDIR | mode) for name, mode in DIRECTORIES.items()}
    found |= {name: _Entry(name, stat.S_IFLNK | 0o777, target=target) for name, target in OWN_LINKS.items()}
    for name, target in _merged_usr_links():
        found[name] = _Entry(name, stat.S_IFLNK | 0o777, target=target)
    for source in _sources():
        for path in _walk(source):
            entry = _copied(path)
            if entry:
                for parent in Path(entry.path).parents:
                    found.setdefault(str(parent), _Entry(str(parent), stat.S_IFDIR | 0o755))
                found[entry.path] = entry
    for name, text in OWN_FILES.items():
        found[name] = _Entry(name, stat.S_IFREG | 0o644, content=text.encode())
    found.pop(".", None)
    return [found[name] for name in sorted(found)]


def _copied(path: Path) -> _Entry | None:
    """What the skeleton gets for a path of the host; None for what others may not read and for special files."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    name = str(path.relative_to("/"))
    if stat.S_ISLNK(status.st_mode):
        return _Entry(name, stat.S_IFLNK | 0o777, target=str(path.readlink()))
    if not status.st_mode & stat.S_IROTH:
        return None
    if stat.S_ISDIR(status.st_mode):
        return _Entry(name, stat.S_IFDIR | 0o755)
    return _Entry(name, stat.S_IFREG | 0o644, content=path.read_bytes()) if stat.S_ISREG(status.st_mode) else None


def _merged_usr_links() -> list[tuple[str, str]]:
    """`/bin`, `/lib` and the like as this host links them into /usr."""
    found: list[tuple[str, str]] = []
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            found.append((name, f"usr/{path.resolve().relative_to('/usr')}"))
        elif path.is_dir():
            raise Unsupported(
                f"/{name} of this host is a directory of its own, not a link into /usr",
                remediation="use an OCI image or a directory as --rootfs",
            )
    return found


def _hidden() -> list[str]:
    """Paths below /usr to hide: our list, and all that others may not read (a program they may run is no secret)."""
    unreadable = ["(", "-type", "f", "!", "-perm", "/005", "-o", "-type", "d", "!", "-perm", "-005", ")"]
    done = run_program(["find", "/usr", "-xdev", *unreadable, "-prune", "-print0"], timeout=_SCAN_TIMEOUT)
    if done.status != 0 and b"No such file" not in done.stderr:  # a file may go while we look
        raise Unsupported(f"/usr could not be searched for what to hide: {done.stderr.decode(errors='replace')}")
    found = {os.fsdecode(name).removeprefix("/usr/") for name in done.stdout.split(b"\0") if name}
    found |= {name for name in HIDDEN_USR if Path("/usr", name).exists()}
    return sorted(name for name in found if found.isdisjoint(map(str, Path(name).parents)))


def _write_entries(root: Path, entries: list[_Entry]) -> None:
    root.mkdir(mode=0o755)
    for entry in entries:
        path = root / entry.path
        if entry.target is not None:
            path.symlink_to(entry.target)
            continue
        if entry.content is None:
            path.mkdir()
        else:
            path.write_bytes(entry.content)
        path.chmod(stat.S_IMODE(entry.mode))  # not by mkdir: the umask would take its share
        owner = OWNERS.get(entry.path, 0)
        os.chown(path, owner, owner)
    root.chmod(0o755)


def _write_mask(mask: Path, hidden: list[str]) -> None:
    """A layer over /usr that holds only whiteouts, with directories on the way as /usr has them."""
    for name in hidden:
        path = mask / name
        for parent in reversed(Path(name).parents):
            made = mask / parent
            if not made.exists():
                real = Path("/usr", parent).stat()
                made.mkdir()
                made.chmod(stat.S_IMODE(real.st_mode))
                os.chown(made, real.st_uid, real.st_gid)
        os.mknod(path, stat.S_IFCHR, 0)
