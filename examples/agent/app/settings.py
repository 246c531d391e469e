"""What the agent is told from outside: read once, when it starts. Secrets are not settings, see `credentials`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Settings:
    """Read from `AGENT_<FIELD>`. `cache` is local or vertex; `cache_ttl` is seconds."""

    dna: Path = HERE / "dna" / "almanac.yaml"
    matrix: Path = Path("/opt/matrix")
    host: str = "0.0.0.0"  # noqa: S104 - the sandbox's own network
    port: int = 8000
    cache: str = "local"
    cache_ttl: float = 3600.0
    model: str = "gemini-2.5-flash"
    project: str = ""
    location: str = "us-central1"
    endpoint: str = ""
    """Where Vertex AI answers; empty: Google's own address. Tests name a server of theirs."""


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this environment; raises ValueError naming the variable that cannot be read."""
    found: dict[str, object] = {}
    for name, default in vars(Settings()).items():
        raw = environment.get(f"AGENT_{name.upper()}")
        if raw is None:
            continue
        try:
            found[name] = type(default)(raw) if not isinstance(default, Path) else Path(raw)
        except ValueError:
            raise ValueError(f"AGENT_{name.upper()}={raw!r} is not a {type(default).__name__}") from None
    settings = Settings(**found)  # type: ignore[arg-type]  # each was read as its default's own type
    if settings.cache not in ("local", "vertex"):
        raise ValueError(f"AGENT_CACHE={settings.cache!r} is neither local nor vertex")
    return settings
