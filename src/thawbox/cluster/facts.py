"""What placement decides on: nodes, placeholders and wishes, as plain values."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from thawbox.store.compat import Compat, differences


class Reason(enum.StrEnum):
    """Why a claim is not bound: what whoever made it can go by."""

    NO_SUCH_POOL = "NoSuchPool"
    POOL_DRAINED = "PoolDrained"
    TEMPLATE_NOT_READY = "TemplateNotReady"
    POOL_EXHAUSTED = "PoolExhausted"
    """Every clone that the pool may own is leased."""
    TOO_MANY_WAITING = "TooManyWaiting"
    """Those that wait already would not leave it a clone in time."""
    NO_COMPATIBLE_NODE = "NoCompatibleNode"
    REGION_EMPTY = "RegionEmpty"
    """The region that it insists on has no node for it."""
    NONE_PARKED = "NoneParked"
    """Clones are being parked: it waits."""
    TIMED_OUT = "TimedOut"
    NO_SNAPSHOT = "NoSnapshot"
    """Its node is lost and no snapshot of it was replicated."""
    COLD_START = "ColdStart"
    """A pod that should have been restored was started anew."""
    NODE_REFUSED = "NodeRefused"
    """The node said no, in its own words."""


WAITS = frozenset({Reason.NONE_PARKED})
"""The reasons for which a claim stays in the queue; all others answer it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A claim that cannot be bound now; `retry_after` is seconds, None where a retry changes nothing."""

    reason: Reason
    message: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node: `machine` names its class (equal machines share one); `capacity` is clones that it can run at once."""

    name: str
    region: str
    machine: str
    capacity: int = 64


@dataclass(frozen=True, slots=True)
class Wish:
    """What a claim asks of placement. `region` is a preference unless it is `required`; empty: any.

    `machines` are the classes that the snapshot can be restored on.
    """

    pool: str
    machines: frozenset[str]
    region: str = ""
    required: bool = False


class Machines:
    """Classes of machines by name, and which of them can restore what another made; each pair is compared once."""

    def __init__(self) -> None:
        self._facts: dict[str, Compat] = {}
        self._fits: dict[tuple[str, str], bool] = {}

    def add(self, name: str, facts: Compat) -> None:
        if self._facts.get(name) != facts:
            self._facts[name] = facts
            self._fits.clear()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._facts)

    def fitting(self, snapshot: Compat) -> frozenset[str]:
        """The classes on which a snapshot made by such a machine can be restored."""
        key = repr(snapshot)
        return frozenset(name for name in self._facts if self._fit(key, snapshot, name))

    def _fit(self, key: str, snapshot: Compat, name: str) -> bool:
        if (key, name) not in self._fits:
            self._fits[key, name] = not differences(snapshot, self._facts[name])
        return self._fits[key, name]
