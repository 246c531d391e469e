"""Layers read as overlayfs shows them; links in them lead nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from thawbox.errors import InvalidSpec
from thawbox.host.identity import Identity, User, lookup_user, write_identity
from thawbox.host.layers import Layers

PASSWD = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n"
GROUP = "root:x:0:\nann:x:1001:\nwheel:x:10:ann,root\nvideo:x:44:bob,ann\n"
IDENTITY = Identity(hostname="box", machine_id="0123456789abcdef" * 2, address="10.0.0.7", nameservers=("10.0.0.1",))


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text[3:])
        else:
            path.write_text(text)
    root.mkdir(exist_ok=True)
    return root


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../../../../../../../etc/passwd", "/proc/self/environ"])
def test_a_link_out_of_the_rootfs_is_read_inside_it(tmp_path: Path, target: str) -> None:
    layers = Layers((tree(tmp_path / "a", {"data": f"-> {target}"}),))
    assert layers.read("/data") is None


def test_links_are_followed_inside(tmp_path: Path) -> None:
    files = {"etc": "-> usr/etc", "usr/etc/x": "-> /var/x", "var/x": "-> ./y/../z", "var/z": "found", "var/y/k": ""}
    assert Layers((tree(tmp_path / "a", files),)).read("/etc/x") == b"found"


def test_the_top_layer_wins_and_directories_merge(tmp_path: Path) -> None:
    top = tree(tmp_path / "top", {"d/a": "top"})
    low = tree(tmp_path / "low", {"d/a": "low", "d/b": "low"})
    layers = Layers((top, low))
    assert (layers.read("/d/a"), layers.read("/d/b")) == (b"top", b"low")


def test_a_file_hides_a_directory_below_it(tmp_path: Path) -> None:
    top, low = tree(tmp_path / "top", {"d": "file"}), tree(tmp_path / "low", {"d/a": "low"})
    assert Layers((top, low)).read("/d/a") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts and overlay attributes need root")
def test_deleted_and_replaced_directories_show_nothing_from_below(tmp_path: Path) -> None:
    top, low = tree(tmp_path / "top", {"new/b": "b"}), tree(tmp_path / "low", {"old/a": "a", "new/a": "a"})
    os.mknod(top / "old", 0o020000)
    os.setxattr(top / "new", "trusted.overlay.opaque", b"y")
    layers = Layers((top, low))
    assert [layers.read(path) for path in ("/old/a", "/new/a", "/new/b")] == [None, None, b"b"]


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="loop"):
        Layers((tree(tmp_path / "a", {"x": "-> y", "y": "-> x"}),)).read("/x")


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("root", User(0, 0, (10,), "/root")),
        ("", User(0, 0, (10,), "/root")),
        ("ann", User(1000, 1001, (10, 44), "/home/ann")),
        ("1000", User(1000, 1001, (10, 44), "/home/ann")),
        ("ann:video", User(1000, 44, (), "/home/ann")),
        ("ann:7", User(1000, 7, (), "/home/ann")),
        ("4242", User(4242, 0, (), "/")),
        ("4242:4243", User(4242, 4243, (), "/")),
    ],
)
def test_users_are_looked_up_as_docker_does(tmp_path: Path, user: str, expected: User) -> None:
    root = tree(tmp_path / "a", {"etc/passwd": PASSWD, "etc/group": GROUP})
    assert lookup_user((root,), user) == expected


@pytest.mark.parametrize("user", ["bob", "ann:nobody", "-1", "99999999999", "ann:99999999999", "²"])
def test_unknown_users_are_refused(tmp_path: Path, user: str) -> None:
    root = tree(tmp_path / "a", {"etc/passwd": PASSWD, "etc/group": GROUP})
    with pytest.raises(InvalidSpec):
        lookup_user((root,), user)


def test_a_rootfs_without_passwd_has_root_and_numbers(tmp_path: Path) -> None:
    assert lookup_user((tree(tmp_path / "a", {}),), "root").uid == 0
    assert lookup_user((tree(tmp_path / "b", {}),), "5:6") == User(5, 6, (), "/")


@pytest.mark.parametrize("rows", ["x\n:::\nann:x:abc:1::/h:\n", "ann:x:1:1\n", "\xff\xfe:x:1:1:::\n"])
def test_a_malformed_passwd_names_nobody(tmp_path: Path, rows: str) -> None:
    with pytest.raises(InvalidSpec):
        lookup_user((tree(tmp_path / "a", {"etc/passwd": rows}),), "ann")


def test_identity_is_written_over_links_and_files(tmp_path: Path) -> None:
    low = tree(tmp_path / "low", {"etc/resolv.conf": "-> ../run/resolv.conf", "etc/hostname": "old", "etc/other": "o"})
    (low / "etc").chmod(0o711)
    upper = tree(tmp_path / "upper", {})
    write_identity(upper, (low,), IDENTITY)
    assert (upper / "etc/hostname").read_text() == "box\n"
    assert "10.0.0.7 box\n" in (upper / "etc/hosts").read_text()
    assert (upper / "etc/machine-id").read_text() == IDENTITY.machine_id + "\n"
    resolv = upper / "etc/resolv.conf"
    assert not resolv.is_symlink() and resolv.read_text() == "nameserver 10.0.0.1\n"
    assert (upper / "etc").stat().st_mode & 0o777 == 0o711
    assert sorted(path.name for path in (upper / "etc").iterdir()) == ["hostname", "hosts", "machine-id", "resolv.conf"]
    assert (low / "etc/hostname").read_text() == "old"


@pytest.mark.parametrize("where", ["upper", "low"])
@pytest.mark.parametrize("link", ["absolute", "relative"])
def test_an_etc_that_is_a_link_leads_nowhere_outside(tmp_path: Path, where: str, link: str) -> None:
    outside = tree(tmp_path / "outside", {})
    target = str(outside) if link == "absolute" else "../outside"
    layers = {"upper": tree(tmp_path / "upper", {}), "low": tree(tmp_path / "low", {})}
    tree(layers[where], {"etc": f"-> {target}"})
    write_identity(layers["upper"], (layers["low"],), IDENTITY)
    assert list(outside.iterdir()) == []
    assert Layers((layers["upper"], layers["low"])).read("/etc/hostname") == b"box\n"


def test_links_in_place_of_the_files_are_replaced_not_followed(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", {"victim": "untouched"})
    upper = tree(tmp_path / "upper", {"etc/hosts": f"-> {outside}/victim", "etc/machine-id": f"-> {outside}/new"})
    write_identity(upper, (), IDENTITY)
    assert (outside / "victim").read_text() == "untouched"
    assert not (outside / "new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts need root")
def test_a_deleted_etc_does_not_come_back(tmp_path: Path) -> None:
    upper, low = tree(tmp_path / "upper", {}), tree(tmp_path / "low", {"etc/secret": "deleted inside"})
    os.mknod(upper / "etc", 0o020000)
    write_identity(upper, (low,), IDENTITY)
    layers = Layers((upper, low))
    assert layers.read("/etc/secret") is None
    assert layers.read("/etc/hostname") == b"box\n"


def test_what_cannot_be_replaced_is_refused_and_leaves_no_scrap(tmp_path: Path) -> None:
    upper = tree(tmp_path / "upper", {"etc/hostname/deep": "x"})
    with pytest.raises(InvalidSpec):
        write_identity(upper, (), IDENTITY)
    assert [path.name for path in (upper / "etc").iterdir()] == ["hostname"]
    with pytest.raises(InvalidSpec):
        write_identity(tree(tmp_path / "b", {"etc": "file"}), (), IDENTITY)
    with pytest.raises(InvalidSpec):
        write_identity(upper, (), Identity("h", "not hex"))
