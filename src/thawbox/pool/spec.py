"""What a pool is told when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from thawbox.errors import InvalidRequest
from thawbox.model import checked_name
from thawbox.pool.pool import LEASE_SECONDS, PARALLEL_RESTORES
from thawbox.pool_plan import Watermarks, check_watermarks

LONGEST_LEASE = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pool to be kept. `lease_ttl` is seconds; `parallel` is how many clones are restored at a time.

    A `drained` pool is empty and stays so.
    """

    name: str
    template: str
    low: int = 1
    high: int = 4
    limit: int = 16
    lease_ttl: float = LEASE_SECONDS
    parallel: int = PARALLEL_RESTORES
    drained: bool = False

    @property
    def marks(self) -> Watermarks:
        return Watermarks(self.low, self.high, self.limit)


def check_pool(spec: PoolSpec) -> PoolSpec:
    """Return `spec` unchanged if such a pool can be kept; raises InvalidRequest or InvalidSpec."""
    checked_name(spec.name, "pool name")
    check_watermarks(spec.marks)
    if not 0 < spec.lease_ttl <= LONGEST_LEASE or not 1 <= spec.parallel <= 64:
        raise InvalidRequest(
            f"lease_ttl={spec.lease_ttl:g} must be positive and at most a year, parallel={spec.parallel} from 1 to 64"
        )
    return spec
