"""Damage is found, named, and never restored."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from thawbox.errors import BrokenChain, CorruptSnapshot, Incompatible, UntrustedSnapshot
from thawbox.model import SnapshotId, SnapshotKind
from thawbox.store import Compat, Draft, Keys, Record, Store, parent_link
from thawbox.store.manifest import decode_manifest, encode_manifest, snapshot_id

COMPAT = Compat(arch="x86_64", kernel="6.18.44", engine="criu 4.2.1")


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "store") as opened:
        yield opened


def put(store: Store, parent: SnapshotId | None = None) -> Record:
    with store.stage() as staging:
        (staging.images / "pages-1.img").write_bytes(bytes(range(256)) * 40)
        (staging.images / "core-1.img").write_bytes(b"core")
        if parent is not None:
            (staging.images / "parent").symlink_to(parent_link(parent))
        (staging.layer / "root" / "etc").mkdir(parents=True)
        (staging.layer / "root" / "etc" / "hosts").write_bytes(b"127.0.0.1")
        return store.put(staging, Draft(SnapshotKind.DELTA if parent else SnapshotKind.FULL, COMPAT, parent=parent))


def flip_a_bit(path: Path) -> None:
    """Change one bit without changing the size or, as far as a program can, the times."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)[0]
        file.seek(before.st_size // 2)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove])
@pytest.mark.parametrize("where", ["images/pages-1.img", "images/core-1.img", "manifest.json", "hosts", "index"])
def test_damage_is_named_by_verify_and_refused_by_fetch(
    store: Store, damage: Callable[[Path], None], where: str, deep: bool
) -> None:
    record = put(store)
    assert store.verify(deep=deep) == ()
    layer = store.layout.layer(record.manifest.layers["root"][0])
    inside = {"hosts": layer / "tree/etc/hosts", "index": layer / "index"}
    damage(inside.get(where, store.layout.snapshot(record.id) / where))
    (problem,) = store.verify(deep=deep)
    assert problem.snapshot == record.id
    assert problem.file.endswith(where)
    with Store(store.layout.root) as again, pytest.raises(CorruptSnapshot) as refused:
        again.fetch(record.id)
    assert where in refused.value.cause or "manifest.json" in refused.value.cause or "index" in refused.value.cause


def test_extra_files_are_found(store: Store) -> None:
    record = put(store)
    snapshot = store.layout.snapshot(record.id)
    (snapshot / "images" / "extra.img").write_bytes(b"x")
    (snapshot / "notes").write_bytes(b"x")
    (store.layout.tree(record.manifest.layers["root"][0]) / "etc" / "extra").write_bytes(b"x")
    files = {problem.file.rpartition("/")[2] for problem in store.verify()}
    assert files == {"extra.img", "notes", "extra"}
    with pytest.raises(CorruptSnapshot):
        store.fetch(record.id)


def test_a_changed_mode_or_owner_in_a_layer_is_damage(store: Store) -> None:
    record = put(store)
    hosts = store.layout.tree(record.manifest.layers["root"][0]) / "etc" / "hosts"
    hosts.chmod(0o4755)
    (problem,) = store.verify()
    assert "mode" in problem.cause


def test_a_deltas_link_must_lead_to_its_own_parent(store: Store) -> None:
    base, other = put(store), put(store)
    delta = put(store, parent=base.id)
    link = store.layout.images(delta.id) / "parent"
    link.unlink()
    link.symlink_to(parent_link(other.id))
    (problem,) = store.verify([delta.id])
    assert problem.file == "images/parent"
    with pytest.raises(CorruptSnapshot):
        store.fetch(delta.id)


def test_a_missing_parent_is_a_broken_chain(store: Store) -> None:
    base = put(store)
    delta = put(store, parent=base.id)
    store.layout.snapshot(base.id).rename(store.layout.root / "elsewhere")
    (problem,) = store.verify()
    assert (problem.snapshot, problem.file) == (delta.id, "parent")
    with pytest.raises(BrokenChain, match=base.id[:12]):
        store.fetch(delta.id)


def test_damage_in_a_parent_is_refused_when_its_child_is_fetched(store: Store) -> None:
    base = put(store)
    delta = put(store, parent=base.id)
    flip_a_bit(store.layout.images(base.id) / "pages-1.img")
    with pytest.raises(CorruptSnapshot, match=f"{base.id[:12]}: images/pages-1.img"):
        store.fetch(delta.id)


def test_a_snapshot_with_a_damaged_manifest_is_not_listed_and_its_layers_are_kept(store: Store) -> None:
    record = put(store)
    flip_a_bit(store.layout.snapshot(record.id) / "manifest.json")
    with Store(store.layout.root) as again:
        assert again.records() == ()
        assert again.gc().layers == ()
        assert again.catalog.layers_on_disk()
        assert again.remove(record.id) == (record.id,)


def test_verification_survives_the_process_and_is_forgotten_after_a_change(store: Store) -> None:
    record = put(store)
    directory = store.layout.snapshot(record.id)
    with Store(store.layout.root) as again:
        assert again.memory.recall(record.id, directory) is not None
        os.utime(directory / "images" / "core-1.img")
        assert again.memory.recall(record.id, directory) is None
        again.fetch(record.id)
        assert again.memory.recall(record.id, directory) is not None


def test_a_damaged_record_of_verification_is_no_record(store: Store) -> None:
    record = put(store)
    for content in (b"", b"\x93\x00", b"\xff" * 50):
        (store.layout.verified / record.id).write_bytes(content)
        with Store(store.layout.root) as again:
            assert again.memory.recall(record.id, store.layout.snapshot(record.id)) is None
            again.fetch(record.id)


def test_a_new_put_replaces_a_damaged_layer_that_nobody_runs_on(store: Store) -> None:
    def staged() -> Record:
        with store.stage() as staging:
            tree = staging.layer / "root"
            tree.mkdir()
            (tree / "file").write_bytes(b"content")
            for path in (tree / "file", tree):
                os.utime(path, ns=(1, 1))
            return store.put(staging, Draft(SnapshotKind.FULL, COMPAT))

    first = staged()
    flip_a_bit(store.layout.tree(first.manifest.layers["root"][0]) / "file")
    second = staged()
    assert store.verify(deep=True) == ()
    store.hold("sandbox:sb-1", layers=second.manifest.layers["root"])
    flip_a_bit(store.layout.tree(first.manifest.layers["root"][0]) / "file")
    with pytest.raises(CorruptSnapshot, match="in use"):
        staged()


def test_a_manifest_of_another_format_is_incompatible_not_corrupt(store: Store) -> None:
    record = put(store)
    content = encode_manifest(record.manifest).replace(b'"format":1', b'"format":2')
    with pytest.raises(Incompatible):
        decode_manifest(content, expected=snapshot_id(content))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format":1}', b"\xff", b'{"format":"1"}'])
def test_a_manifest_that_hashes_right_but_makes_no_sense_is_corrupt(content: bytes) -> None:
    with pytest.raises(CorruptSnapshot):
        decode_manifest(content, expected=snapshot_id(content))


def test_with_require_signed_only_signed_snapshots_are_fetched(tmp_path: Path) -> None:
    mine = Keys(signing=b"s" * 32)
    with Store(tmp_path / "store") as store:
        unsigned = put(store)
    with Store(tmp_path / "store", keys=mine) as store:
        base = put(store)
        delta = put(store, parent=base.id)
    strict = Keys(trusted=(mine.public,), require_signed=True)
    with Store(tmp_path / "store", keys=strict) as store:
        store.fetch(delta.id)
        with pytest.raises(UntrustedSnapshot, match="not signed"):
            store.fetch(unsigned.id)
        signature = store.layout.snapshot(base.id) / "signature.json"
        (store.layout.snapshot(unsigned.id) / "signature.json").write_bytes(signature.read_bytes())
        with pytest.raises(UntrustedSnapshot, match="not of this snapshot"):
            store.fetch(unsigned.id)
        signature.write_bytes(b"{}")
        with pytest.raises(UntrustedSnapshot, match="malformed"):
            store.fetch(base.id)
        assert store.verify() == ()
    stranger = Keys(signing=b"o" * 32, require_signed=True)
    with Store(tmp_path / "store", keys=stranger) as store, pytest.raises(UntrustedSnapshot, match="does not trust"):
        store.fetch(delta.id)


def test_keys_never_show_themselves() -> None:
    keys = Keys(sealing=b"secret-seal-key-of-32-bytes-long", signing=b"secret-sign-key-of-32-bytes-long")
    assert "secret" not in repr(keys) + str(keys)
