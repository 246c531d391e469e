"""A checkpoint archive is what checkpointctl, Podman and CRI-O look for, and an OCI image at the same time."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest
import zstandard

from thawbox.errors import InvalidRequest
from thawbox.store.layers import scan_tree
from thawbox.store.oci import CheckpointDescription, LayerTree, export_checkpoint

ABOUT = CheckpointDescription(
    id="a" * 64, name="Agent", image="SYSTEM", arch="x86_64", engine="criu 4.2.1", created_at=1.7e9,
    checkpointed_at=1.7e9 + 60, command=("python3", "-m", "agent"), env=("A=b",), hostname="agent",
)  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    directory.mkdir()
    (directory / "pages-1.img").write_bytes(os.urandom(10_000))
    (directory / "stats-dump").write_bytes(b"stats")
    return directory


def layer(root: Path) -> LayerTree:
    return LayerTree(root, scan_tree(root).index)


def stack(tmp_path: Path) -> list[LayerTree]:
    beneath, above = tmp_path / "beneath", tmp_path / "above"
    (beneath / "etc" / "old").mkdir(parents=True)
    (beneath / "etc" / "old" / "file").write_bytes(b"old")
    (beneath / "etc" / "hosts").write_bytes(b"first")
    (beneath / "replaced").mkdir()
    (beneath / "replaced" / "inner").write_bytes(b"gone")
    (above / "etc" / "old").mkdir(parents=True)
    os.setxattr(above / "etc" / "old", "trusted.overlay.opaque", b"y")
    (above / "etc" / "old" / "new").write_bytes(b"new")
    (above / "etc" / "hosts").write_bytes(b"second")
    (above / "etc" / "hard").hardlink_to(above / "etc" / "hosts")
    (above / "replaced").write_bytes(b"a file now")
    (above / "link").symlink_to("/etc/hosts")
    os.mknod(above / "removed", stat.S_IFCHR, os.makedev(0, 0))
    return [layer(beneath), layer(above)]


def members(archive: tarfile.TarFile) -> dict[str, bytes]:
    files = (member for member in archive.getmembers() if member.isreg())
    return {member.name: archive.extractfile(member).read() for member in files}  # type: ignore[union-attr]


def export(tmp_path: Path, images: Path) -> dict[str, bytes]:
    export_checkpoint(ABOUT, images, {"": stack(tmp_path)}, tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as archive:
        return members(archive)


def test_checkpointctl_finds_its_files(tmp_path: Path, images: Path) -> None:
    found = export(tmp_path, images)
    config, spec = json.loads(found["config.dump"]), json.loads(found["spec.dump"])
    assert (config["name"], config["id"], config["createdTime"]) == ("Agent", "a" * 64, "2023-11-14T22:13:20Z")
    assert spec["annotations"]["io.kubernetes.cri.container-name"] == "Agent"
    assert spec["process"]["args"] == ["python3", "-m", "agent"]
    assert found["checkpoint/pages-1.img"] == (images / "pages-1.img").read_bytes()
    assert found["stats-dump"] == b"stats"


def test_the_rootfs_difference_is_all_layers_merged(tmp_path: Path, images: Path) -> None:
    found = export(tmp_path, images)
    with tarfile.open(fileobj=io.BytesIO(found["rootfs-diff.tar"])) as diff:
        names = {member.name for member in diff.getmembers()}
        content = members(diff)
        assert diff.getmember("link").linkname == "/etc/hosts"
    assert names == {"etc", "etc/old", "etc/old/new", "etc/hosts", "etc/hard", "replaced", "link"}
    assert content["etc/hosts"] == content["etc/hard"] == b"second"
    assert json.loads(found["deleted.files"]) == ["/removed"]


def test_the_image_layout_is_whole_and_annotated_for_every_runtime(tmp_path: Path, images: Path) -> None:
    found = export(tmp_path, images)
    assert json.loads(found["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(found["index.json"])
    manifest = json.loads(blob(found, index["manifests"][0]))
    config = json.loads(blob(found, manifest["config"]))
    for annotated in (index, manifest):
        assert annotated["annotations"]["io.kubernetes.cri-o.annotations.checkpoint.name"] == "Agent"
        assert annotated["annotations"]["org.criu.checkpoint.container.name"] == "Agent"
        assert annotated["annotations"]["io.podman.annotations.checkpoint.name"] == "Agent"
    (packed,) = manifest["layers"]
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(blob(found, packed))
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(plain).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(plain)) as inner:
        inside = members(inner)
    assert inside == {name: found[name] for name in inside}
    assert {"config.dump", "spec.dump", "checkpoint/pages-1.img", "rootfs-diff.tar"} <= set(inside)


def blob(found: dict[str, bytes], descriptor: dict[str, object]) -> bytes:
    """The content a descriptor names, after checking that it is that."""
    content = found[str(descriptor["digest"]).replace("sha256:", "blobs/sha256/")]
    assert descriptor["size"] == len(content)
    assert descriptor["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    return content


def test_a_delta_and_an_existing_file_are_refused_and_nothing_is_left(tmp_path: Path, images: Path) -> None:
    (tmp_path / "there").write_bytes(b"")
    with pytest.raises(InvalidRequest, match="exists"):
        export_checkpoint(ABOUT, images, {}, tmp_path / "there")
    (images / "parent").symlink_to("../../x/images")
    with pytest.raises(InvalidRequest, match="delta"):
        export_checkpoint(ABOUT, images, {}, tmp_path / "out.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "there"]
