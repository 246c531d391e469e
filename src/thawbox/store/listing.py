"""Listing: every snapshot with what is said about it, and what a reference means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from thawbox.chain import Link
from thawbox.errors import InvalidRequest, SnapshotNotFound
from thawbox.model import SnapshotId
from thawbox.store.catalog import Catalog
from thawbox.store.manifest import DIGEST_PATTERN, Manifest
from thawbox.store.refs import Facts, Refs

MIN_PREFIX = 6
"""Hex digits from which a prefix of an id is taken for one."""


def looks_like_id(ref: str) -> bool:
    """Whether a reference can be an id or the beginning of one."""
    return MIN_PREFIX <= len(ref) <= 64 and all(char in "0123456789abcdef" for char in ref)


@dataclass(frozen=True, slots=True)
class Record:
    """A committed snapshot: what it is, and what is said about it.

    `bytes` is what it added: its images, and the content of the layers that came with it.
    """

    id: SnapshotId
    manifest: Manifest
    facts: Facts
    bytes: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Answers from manifests and refs together."""

    catalog: Catalog
    refs: Refs

    def resolve(self, ref: str) -> SnapshotId:
        """See `Store.resolve`. A full id comes before a name, a name before a prefix."""
        if DIGEST_PATTERN.fullmatch(ref) and self.catalog.exists(SnapshotId(ref)):
            return SnapshotId(ref)
        for snapshot in self.refs.named(ref):
            if self.catalog.exists(snapshot):
                return snapshot
        found: list[SnapshotId] = []
        if looks_like_id(ref):
            found = sorted(snapshot for snapshot in self.catalog.ids() if snapshot.startswith(ref))
        if len(found) > 1:
            shown = ", ".join(snapshot[: len(ref) + 6] for snapshot in found[:4])
            raise InvalidRequest(f"{ref!r} is ambiguous: {shown}", remediation="give more digits of the id")
        if not found:
            raise SnapshotNotFound(f"no snapshot has the name or id {ref[:80]!r}")
        return found[0]

    def record(self, snapshot: SnapshotId) -> Record:
        manifest = self.catalog.manifest(snapshot)
        return self._record(snapshot, manifest, self.refs.facts(snapshot).get(snapshot, Facts()), self._names())

    def records(self) -> tuple[Record, ...]:
        readable, _ = self.catalog.manifests()
        facts, names = self.refs.facts(), self._names()
        found = [self._record(one, manifest, facts.get(one, Facts()), names) for one, manifest in readable.items()]
        return tuple(sorted(found, key=lambda record: (record.manifest.created_at, record.id)))

    def _record(
        self, snapshot: SnapshotId, manifest: Manifest, facts: Facts, names: Mapping[SnapshotId, tuple[str, ...]]
    ) -> Record:
        size = manifest.images_bytes + sum(self.catalog.layer_bytes(digest) for digest in set(manifest.own_layers))
        return Record(snapshot, manifest, replace(facts, names=names.get(snapshot, ())), size)

    def _names(self) -> dict[SnapshotId, tuple[str, ...]]:
        """Names by snapshot. A name belongs to the newest snapshot it was given to that exists."""
        found: dict[SnapshotId, tuple[str, ...]] = {}
        for name, targets in sorted(self.refs.names().items()):
            owner = next((one for one in targets if self.catalog.exists(one)), None)
            if owner is not None:
                found[owner] = (*found.get(owner, ()), name)
        return found

    def links(self) -> list[Link]:
        readable, _ = self.catalog.manifests()
        facts, holders = self.refs.facts(), self.refs.holds("snapshot")
        return [
            Link(
                id=snapshot,
                parent=manifest.parent,
                own_bytes=manifest.images_bytes,
                layers=frozenset(digest for digests in manifest.layers.values() for digest in digests),
                used_at=facts.get(snapshot, Facts()).used_at or manifest.created_at,
                expires_at=facts.get(snapshot, Facts()).expires_at,
                pinned=facts.get(snapshot, Facts()).pinned,
                kept_by=", ".join(holders.get(snapshot, ())),
            )
            for snapshot, manifest in readable.items()
        ]
