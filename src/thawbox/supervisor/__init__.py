"""Supervision: sandboxes that die or hang are brought back from their newest good snapshot."""

from thawbox.supervisor.jobs import Event
from thawbox.supervisor.supervisor import Status, Supervisor
from thawbox.supervisor.watch import State

__all__ = ["Event", "State", "Status", "Supervisor"]
