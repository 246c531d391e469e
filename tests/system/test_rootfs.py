"""The SYSTEM skeleton on this host, and OCI images made here."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import stat
import tarfile
from pathlib import Path

import pytest
import zstandard

from thawbox.errors import CorruptSnapshot, InvalidSpec, Unsupported
from thawbox.host.layers import Layers
from thawbox.host.rootfs import RootfsKind, reopen, resolve

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def test_the_system_rootfs_shows_nothing_personal(tmp_path: Path) -> None:
    root, usr = resolve("SYSTEM", tmp_path).overlays
    assert (root.mountpoint, usr.mountpoint, usr.lowers[-1]) == ("/", "/usr", Path("/usr"))
    layers = Layers(root.lowers)
    for secret in ("shadow", "gshadow", "ssh", "environment", "npmrc", "pip.conf", "ssl/private", "gitconfig"):
        assert layers.find(f"/etc/{secret}").status is None
    passwd = (layers.read("/etc/passwd") or b"").decode().splitlines()
    assert [row.split(":")[0] for row in passwd] == ["root", "user", "nobody"]
    assert list((root.lowers[0] / "root").iterdir()) == []
    shown = [path for path in root.lowers[0].rglob("*") if path.is_file() and not path.is_symlink()]
    assert all(path.stat().st_mode & stat.S_IROTH for path in shown)


def test_what_others_may_not_read_in_usr_is_hidden(tmp_path: Path) -> None:
    layers = Layers(resolve("SYSTEM", tmp_path).overlays[1].lowers)
    for name in ("etc", "local/etc"):
        assert layers.find(name).status is None
    status = layers.find("/bin/env").status
    assert status is not None and status.st_mode & stat.S_IXOTH


def test_programs_and_certificates_are_found_through_the_skeleton(tmp_path: Path) -> None:
    root = resolve("SYSTEM", tmp_path).root_lowers[0]
    assert (root / "bin").readlink() == Path("usr/bin")
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE((root / "root").stat().st_mode) == 0o700
    if Path("/etc/ssl/certs/ca-certificates.crt").exists():
        assert (root / "etc/ssl/certs/ca-certificates.crt").read_bytes().startswith(b"-----BEGIN CERT")


def test_a_skeleton_is_made_once_and_found_again(tmp_path: Path) -> None:
    first = resolve("SYSTEM", tmp_path)
    inode = first.root_lowers[0].stat().st_ino
    again = resolve("SYSTEM", tmp_path)
    assert again == first and again.root_lowers[0].stat().st_ino == inode
    assert reopen(RootfsKind.SYSTEM, first.digest, tmp_path) == first
    assert reopen(RootfsKind.SYSTEM, "0" * 64, tmp_path) is None
    shutil.rmtree(tmp_path / "system" / first.digest)
    assert resolve("SYSTEM", tmp_path) == first


def test_a_directory_is_taken_as_it_is_and_the_host_root_is_not(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    rootfs = resolve(str(tmp_path / "mine"), tmp_path / "cache")
    assert rootfs.kind is RootfsKind.DIRECTORY
    assert rootfs.root_lowers == (tmp_path / "mine",)
    with pytest.raises(InvalidSpec, match="secrets"):
        resolve("/", tmp_path)
    with pytest.raises(InvalidSpec, match="does not exist"):
        resolve(str(tmp_path / "absent"), tmp_path)


def layer(files: dict[str, str]) -> bytes:
    """An uncompressed layer; "-> x" makes a link, "=> x" a hard link, "" a whiteout or empty file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            if text[:3] in ("-> ", "=> "):
                member.type = tarfile.SYMTYPE if text.startswith("-") else tarfile.LNKTYPE
                member.linkname = text[3:]
                tar.addfile(member)
                continue
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


PACKERS = {"": lambda raw: raw, "+gzip": lambda raw: gzip.compress(raw, mtime=0), "+zstd": zstandard.compress}


class ImageOnDisk:
    """An OCI layout under construction."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs/sha256").mkdir(parents=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.manifests: list[dict[str, object]] = []

    def put(self, content: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (self.root / "blobs/sha256" / digest).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    def add(self, layers: list[bytes], *, tag: str = "latest", packing: str = "+gzip", arch: str = ARCH) -> None:
        run = {"Env": ["PATH=/bin", "A=b=c"], "Entrypoint": ["/run"], "Cmd": ["x"], "WorkingDir": "/w", "User": "1:2"}
        diff_ids = ["sha256:" + hashlib.sha256(raw).hexdigest() for raw in layers]
        config = {
            "architecture": arch, "os": "linux", "config": run, "rootfs": {"type": "layers", "diff_ids": diff_ids}
        }  # fmt: skip
        manifest = {
            "schemaVersion": 2,
            "config": self.put(json.dumps(config).encode(), "config.v1+json"),
            "layers": [self.put(PACKERS[packing](raw), f"layer.v1.tar{packing}") for raw in layers],
        }
        written = self.put(json.dumps(manifest).encode(), "manifest.v1+json")
        self.manifests.append({**written, "annotations": {"org.opencontainers.image.ref.name": tag}})
        (self.root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.manifests}))

    def archive(self, path: Path) -> Path:
        with tarfile.open(path, "w") as tar:
            tar.add(self.root, arcname=".")
        return path


LAYERS = [
    layer({"etc/passwd": "root:x:0:0::/root:\n", "gone": "old", "dir/a": "a", "hard": "=> dir/a"}),
    layer({".wh.gone": "", "dir/b": "b", "link": "-> /etc/passwd"}),
]


@pytest.mark.parametrize("packing", list(PACKERS))
@pytest.mark.parametrize("shape", ["layout", "archive"])
def test_an_image_is_unpacked_layer_on_layer(tmp_path: Path, packing: str, shape: str) -> None:
    image = ImageOnDisk(tmp_path / "image")
    image.add(LAYERS, packing=packing)
    path = image.root if shape == "layout" else image.archive(tmp_path / "image.tar")
    rootfs = resolve(str(path), tmp_path / "cache:with colon")
    root = rootfs.root_lowers[0]
    assert sorted(p.name for p in root.iterdir()) == ["dir", "etc", "hard", "link"]
    assert sorted(p.name for p in (root / "dir").iterdir()) == ["a", "b"]
    assert (root / "hard").stat().st_ino == (root / "dir/a").stat().st_ino
    assert rootfs.defaults.env == {"PATH": "/bin", "A": "b=c"}
    assert (rootfs.defaults.entrypoint, rootfs.defaults.command) == (("/run",), ("x",))
    assert (rootfs.defaults.workdir, rootfs.defaults.user) == ("/w", "1:2")
    assert resolve(str(path), tmp_path / "cache:with colon") == rootfs
    assert reopen(RootfsKind.OCI, rootfs.digest, tmp_path / "cache:with colon") == rootfs


def test_a_docker_archive_gives_the_same_rootfs_as_the_layout(tmp_path: Path) -> None:
    image = ImageOnDisk(tmp_path / "image")
    image.add(LAYERS)
    index = json.loads((image.root / "index.json").read_text())
    blobs = image.root / "blobs/sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    members = {"config.json": (blobs / manifest["config"]["digest"][7:]).read_bytes(), "a/layer.tar": LAYERS[0]}
    members |= {"b/layer.tar": LAYERS[1]}
    members["manifest.json"] = json.dumps(
        [{"Config": "config.json", "RepoTags": ["me/it:v1"], "Layers": ["a/layer.tar", "b/layer.tar"]}]
    ).encode()
    with tarfile.open(tmp_path / "saved.tar", "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    saved = resolve(f"{tmp_path}/saved.tar:v1", tmp_path / "cache")
    assert saved == resolve(str(image.root), tmp_path / "cache")
    with pytest.raises(InvalidSpec, match="0 images tagged v2"):
        resolve(f"{tmp_path}/saved.tar:v2", tmp_path / "cache")


def test_no_layer_writes_outside_its_root(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    hostile = [
        layer({f"../../../..{victim}/one": "x", f"{victim}/two": "x", "out": f"-> {victim}", "out/three": "x"}),
        layer({"out/four": "x", "up": "-> ../../../../../../../.." + str(victim), "up/five": "x"}),
    ]
    image = ImageOnDisk(tmp_path / "image")
    image.add(hostile)
    resolve(str(image.root), tmp_path / "cache")
    assert list(victim.iterdir()) == []


def test_several_images_need_a_tag_and_other_architectures_are_refused(tmp_path: Path) -> None:
    image = ImageOnDisk(tmp_path / "image")
    image.add(LAYERS, tag="one")
    image.add(LAYERS[:1], tag="two")
    image.add(LAYERS, tag="alien", arch="mips")
    with pytest.raises(InvalidSpec, match="alien, one, two"):
        resolve(str(image.root), tmp_path / "cache")
    assert resolve(f"{image.root}:two", tmp_path / "cache").root_lowers[0].joinpath("gone").exists()
    with pytest.raises(Unsupported, match="mips"):
        resolve(f"{image.root}:alien", tmp_path / "cache")
    with pytest.raises(InvalidSpec, match="tagged none"):
        resolve(f"{image.root}:none", tmp_path / "cache")


def damage(image: ImageOnDisk, how: str) -> None:
    blobs = sorted((image.root / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    if how == "flipped byte":
        for blob in blobs:
            content = bytearray(blob.read_bytes())
            content[len(content) // 2] ^= 1
            blob.write_bytes(content)
    elif how == "missing blobs":
        for blob in blobs:
            blob.unlink()
    elif how == "not JSON":
        (image.root / "index.json").write_bytes(b"\xff{")
    elif how == "wrong shape":
        (image.root / "index.json").write_text('{"manifests": 3}')
    elif how == "path for a digest":
        (image.root / "index.json").write_text('{"manifests": [{"digest": "sha256:../../../../etc/shadow"}]}')
    elif how == "layers that lie":
        for blob in blobs:
            if blob.read_bytes()[:2] == b"\x1f\x8b":
                blob.write_bytes(gzip.compress(layer({"evil": "x"})))


@pytest.mark.parametrize(
    "how", ["flipped byte", "missing blobs", "not JSON", "wrong shape", "path for a digest", "layers that lie"]
)
def test_a_damaged_image_is_refused_and_leaves_nothing(tmp_path: Path, how: str) -> None:
    image = ImageOnDisk(tmp_path / "image")
    image.add(LAYERS)
    damage(image, how)
    with pytest.raises((InvalidSpec, CorruptSnapshot)):
        resolve(str(image.root), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache/oci").iterdir()] in ([], ["lock"])


@pytest.mark.parametrize("content", [b"", b"not a tar", b"\0" * 10240])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InvalidSpec):
        resolve(str(tmp_path / "file"), tmp_path / "cache")
