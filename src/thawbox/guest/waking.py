"""What happens in a program that woke up, whichever way it was told: randomness, environment, secrets, then hooks."""

from __future__ import annotations

from typing import Any

from .environment import environment
from .registry import Event, Identity, Registry
from .reseeding import reseed_all
from .secrets import Secret, secrets


def wake(told: dict[str, Any], variables: dict[str, bytes], given: dict[str, Secret], registry: Registry) -> None:
    """Take over what the host tells (see channel.py) and run the hooks; raises HookFailed."""
    if told["what"] in ("clone", "restore"):
        reseed_all()  # once more where it was done at the end of a hold: a sandbox that was frozen had none
    laid = environment.put_back(variables) if told["what"] == "checkpoint" else environment.lay(variables)
    if told["what"] in ("clone", "restore"):
        secrets.replace(given)
    else:
        secrets.add(given)  # a checkpoint that failed early has taken none away
    registry.run_after(Event(told["what"], Identity(**told["identity"]), told["slept"], laid, secrets))
