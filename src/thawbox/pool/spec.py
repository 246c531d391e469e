"""What a node was told about its pools: kept in the journal, so that they are there again after a restart."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from thawbox.errors import InvalidRequest
from thawbox.model import checked_name
from thawbox.pool.pool import LEASE_SECONDS, PARALLEL_RESTORES
from thawbox.pool_plan import Watermarks, check_watermarks
from thawbox.sandbox import Journal

_KIND = "pool"


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pool to be kept. `lease_ttl` is seconds; `parallel` is how many clones are restored at a time."""

    name: str
    template: str
    low: int = 1
    high: int = 4
    limit: int = 16
    lease_ttl: float = LEASE_SECONDS
    parallel: int = PARALLEL_RESTORES

    @property
    def marks(self) -> Watermarks:
        return Watermarks(self.low, self.high, self.limit)


def check_pool(spec: PoolSpec) -> PoolSpec:
    """Return `spec` unchanged if such a pool can be kept; raises InvalidRequest or InvalidSpec."""
    checked_name(spec.name, "pool name")
    check_watermarks(spec.marks)
    if spec.lease_ttl <= 0 or not 1 <= spec.parallel <= 64:
        raise InvalidRequest(f"lease_ttl={spec.lease_ttl:g} must be positive, parallel={spec.parallel} from 1 to 64")
    return spec


def add_pool(journal: Journal, spec: PoolSpec) -> None:
    """Keep a new pool's spec; raises InvalidRequest when its name is taken."""
    journal.write_entry(_KIND, spec.name, msgspec.json.encode(check_pool(spec)), is_new=True)


def find_pool(journal: Journal, name: str) -> PoolSpec:
    """The spec of this pool; raises NotFound."""
    return msgspec.json.decode(journal.entry(_KIND, name), type=PoolSpec)


def all_pools(journal: Journal) -> list[PoolSpec]:
    """The specs of every pool, by name."""
    return [msgspec.json.decode(content, type=PoolSpec) for content in journal.entries(_KIND).values()]


def drop_pool(journal: Journal, name: str) -> None:
    journal.remove_entry(_KIND, name)
