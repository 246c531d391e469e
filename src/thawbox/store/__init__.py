"""Snapshots as bytes: put, fetched, verified, removed, moved. Knows digests and write order, and nothing of engines."""

from thawbox.store.compat import Compat, check_compat, differences
from thawbox.store.listing import Record
from thawbox.store.manifest import Draft, FileEntry, Manifest, parent_link
from thawbox.store.refs import Facts, Outcome
from thawbox.store.removal import GcReport
from thawbox.store.seal import NO_KEYS, Keys, load_keys
from thawbox.store.staging import Staging
from thawbox.store.store import Fetched, Store
from thawbox.store.verify import Problem

__all__ = [
    "NO_KEYS",
    "Compat",
    "Draft",
    "Facts",
    "Fetched",
    "FileEntry",
    "GcReport",
    "Keys",
    "Manifest",
    "Outcome",
    "Problem",
    "Record",
    "Staging",
    "Store",
    "check_compat",
    "differences",
    "load_keys",
    "parent_link",
]
