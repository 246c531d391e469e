"""Pools of parked clones: a sandbox at once, and never two callers with one."""

from thawbox.pool.ledger import Statistics, Totals
from thawbox.pool.pool import Lease, Pool
from thawbox.pool.spec import PoolSpec

__all__ = ["Lease", "Pool", "PoolSpec", "Statistics", "Totals"]
