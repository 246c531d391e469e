"""Held by one at a time: a Lease object taken by compare-and-swap, judged by the watcher's own clock.

Whoever watches trusts no other machine's clock: a lease has run out when it has not *changed* for as long as it lasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from thawbox.cluster.crds import Json
from thawbox.cluster.kube import LEASES, Conflict, Exists, Kube
from thawbox.cluster.times import written
from thawbox.errors import NotFound


class Hold:
    """One lease, for one holder. `clock` is monotonic seconds, `now` the wall clock that is written down."""

    def __init__(
        self,
        kube: Kube,
        name: str,
        holder: str,
        *,
        seconds: float,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._kube = kube
        self.name = name
        self.holder = holder
        self.seconds = seconds
        self._clock = clock
        self._now = now
        self._seen: tuple[str, float] = ("", 0.0)
        self.renewed = float("-inf")
        """When it was last renewed by us, by the monotonic clock."""

    @property
    def is_held(self) -> bool:
        """Whether it is ours, and nobody can think otherwise yet."""
        return self._clock() - self.renewed < self.seconds

    async def take(
        self, *, labels: Json | None = None, annotations: Json | None = None, seconds: float | None = None
    ) -> bool:
        """Take or renew it, for other than its usual `seconds` if given; False while somebody else has it."""
        begun = self._clock()
        lasts = math.ceil(self.seconds if seconds is None else seconds)
        spec = {
            "holderIdentity": self.holder, "leaseDurationSeconds": max(1, lasts), "renewTime": written(self._now()),
        }  # fmt: skip
        meta: Json = {"name": self.name, "labels": labels or {}, "annotations": annotations or {}}
        try:
            found = await self._kube.get(LEASES, self.name)
        except NotFound:
            try:
                await self._kube.create(LEASES, {"metadata": meta, "spec": spec})
            except Exists:
                return False
            self.renewed = begun
            return True
        if found["spec"].get("holderIdentity") not in ("", None, self.holder) and not self._has_run_out(found):
            return False
        try:
            await self._kube.replace(LEASES, {**found, "metadata": {**found["metadata"], **meta}, "spec": spec})
        except Conflict:
            return False
        self.renewed = begun
        return True

    def _has_run_out(self, found: Json) -> bool:
        version, since = self._seen
        if found["metadata"]["resourceVersion"] != version:
            self._seen = (found["metadata"]["resourceVersion"], self._clock())
            return False
        return self._clock() - since > float(found["spec"].get("leaseDurationSeconds", self.seconds))
