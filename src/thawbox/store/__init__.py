"""Snapshots as bytes: put, fetched, verified, removed, moved. Knows digests and write order, and nothing of engines."""

from thawbox.store.compat import Compat, check_compat, differences
from thawbox.store.manifest import Draft, FileEntry, Manifest, parent_link
from thawbox.store.refs import Facts, Outcome
from thawbox.store.staging import Staging
from thawbox.store.store import Fetched, Record, Store
from thawbox.store.verify import Problem

__all__ = [
    "Compat",
    "Draft",
    "Facts",
    "Fetched",
    "FileEntry",
    "Manifest",
    "Outcome",
    "Problem",
    "Record",
    "Staging",
    "Store",
    "check_compat",
    "differences",
    "parent_link",
]
