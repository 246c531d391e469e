"""One sandbox, from spec to snapshot and back: the verbs that node, pool and supervisor are made of."""

from thawbox.sandbox.checkpointing import CheckpointReport
from thawbox.sandbox.context import Context, Programs
from thawbox.sandbox.handle import Sandbox, Snapshot
from thawbox.sandbox.journal import Journal, Record
from thawbox.sandbox.reviving import RestoreTimes

__all__ = ["CheckpointReport", "Context", "Journal", "Programs", "Record", "RestoreTimes", "Sandbox", "Snapshot"]
