"""Supervision: sandboxes that die or hang are brought back from their newest good snapshot."""

from thawbox.supervisor.jobs import Event
from thawbox.supervisor.supervisor import Status, Supervisor, ask_for_supervision
from thawbox.supervisor.watch import State

__all__ = ["Event", "State", "Status", "Supervisor", "ask_for_supervision"]
