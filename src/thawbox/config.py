"""Settings, each with its unit, default and reason. The only reader of the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path

from thawbox.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Settings:
    """How this node behaves. Every field is read from `THAWBOX_<FIELD>` where that is set, else from its "also"."""

    home: Path = field(default=Path("/var/lib/thawbox"), metadata={"doc": "all state of this node lives below it"})
    criu: str = field(default="", metadata={"doc": "path of the criu to use; empty: the best one found"})
    native: str = field(default="", metadata={"doc": "directory of our built programs; empty: found by itself"})
    engine_timeout: float = field(
        default=120.0, metadata={"doc": "seconds a dump or restore may take; CRIU's own timeout misses some hangs"}
    )
    lock_timeout: float = field(default=30.0, metadata={"doc": "seconds to wait for another command on one sandbox"})
    stop_timeout: float = field(default=10.0, metadata={"doc": "seconds between SIGTERM and SIGKILL when stopping"})
    short_freezes: bool = field(
        default=True,
        metadata={"doc": "false: memory is read while the sandbox is frozen, not from copies of its tasks"},
    )
    max_chain_length: int = field(default=8, metadata={"doc": "links after which the next snapshot is a full one"})
    disk_budget: int = field(default=0, metadata={"doc": "bytes of snapshots before gc evicts leaves; 0: no budget"})
    log_level: str = field(default="info", metadata={"doc": "of `serve`: debug, info, warning or error"})
    log_format: str = field(default="console", metadata={"doc": "of `serve`: console, or json, one object a line"})
    otlp_endpoint: str = field(
        default="",
        metadata={
            "doc": "`serve` sends traces there by OTLP over HTTP; empty: none are made",
            "also": "OTEL_EXPORTER_OTLP_ENDPOINT",
        },
    )
    golden_secrets: str = field(
        default="refuse", metadata={"doc": "what looks like a secret before a template is made: refuse, warn or off"}
    )
    verify_every: float = field(
        default=60.0, metadata={"doc": "seconds after which `serve` reads another snapshot's bytes again; 0: never"}
    )
    sealing_key: str = field(
        default="",
        repr=False,
        metadata={"doc": "32 bytes in hex or base64, or a file of them: what leaves this node is encrypted"},
    )
    signing_key: str = field(
        default="", repr=False, metadata={"doc": "Ed25519 private key, given likewise: snapshots made here are signed"}
    )
    trusted_keys: str = field(
        default="", metadata={"doc": "Ed25519 public keys, given likewise, comma-separated: whose signatures count"}
    )
    require_signed: bool = field(
        default=False, metadata={"doc": "true: a snapshot that no trusted key signed never reaches the engine"}
    )
    replicas: str = field(
        default="",
        metadata={"doc": "stores that hold copies of snapshots, nearest first, comma-separated"},
    )
    replica_patience: float = field(
        default=2.0, metadata={"doc": "seconds after which the next replica is asked beside one that has not answered"}
    )
    mirror: str = field(
        default="",
        metadata={"doc": "what `serve` copies there: all, name:GLOB, label:KEY=VALUE, template:GLOB, sandbox:GLOB"},
    )
    subnet: str = field(default="10.231.0.0/16", metadata={"doc": "addresses given to sandboxes with --net nat"})
    upload_limit: int = field(
        default=8 << 30,
        metadata={"doc": "bytes of one upload into a sandbox; it is gathered on this node's disk first"},
    )
    url: str = field(
        default="", metadata={"doc": "where `thawbox.Client` finds the service; empty: this node's own socket"}
    )
    token: str = field(default="", repr=False, metadata={"doc": "what `thawbox.Client` shows to a service over TCP"})


_WORDS = {
    "golden_secrets": ("refuse", "warn", "off"),
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("console", "json"),
}


def notify_socket() -> str:
    """Where systemd wants to hear that a service is ready; empty where it does not. Ours alone: no child sees it."""
    return os.environ.pop("NOTIFY_SOCKET", "")


_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}


def load_settings(environ: dict[str, str] | None = None, **overrides: object) -> Settings:
    """Settings from the environment (`THAWBOX_HOME=…`), overridden by keyword; raises InvalidRequest by name."""
    source = dict(os.environ) if environ is None else environ
    values: dict[str, object] = {}
    for setting in fields(Settings):
        raw = source.get(f"THAWBOX_{setting.name.upper()}", source.get(setting.metadata.get("also", "")))
        if raw is not None:
            values[setting.name] = _parse(setting.name, raw, setting.default)
    values.update({key: value for key, value in overrides.items() if value is not None})
    settings = Settings(**values)  # type: ignore[arg-type]  # each value was parsed to its default's own type
    if not settings.home.is_absolute():
        raise InvalidRequest(f"THAWBOX_HOME={settings.home} is not absolute", remediation="give an absolute path")
    for name, words in _WORDS.items():
        if (given := getattr(settings, name)) not in words:
            raise InvalidRequest(f"THAWBOX_{name.upper()}={given!r} is not {', '.join(words[:-1])} or {words[-1]}")
    if settings.otlp_endpoint and not settings.otlp_endpoint.startswith(("http://", "https://")):
        raise InvalidRequest(f"THAWBOX_OTLP_ENDPOINT={settings.otlp_endpoint!r} is not an http:// or https:// address")
    return settings


def _parse(name: str, raw: str, default: object) -> object:
    if isinstance(default, bool):
        if raw.lower() in _TRUTHS:
            return _TRUTHS[raw.lower()]
        raise InvalidRequest(f"THAWBOX_{name.upper()}={raw!r} is neither true nor false")
    try:
        return type(default)(raw) if not isinstance(default, Path) else Path(raw)  # type: ignore[call-arg]
    except ValueError:
        wanted = type(default).__name__
        raise InvalidRequest(f"THAWBOX_{name.upper()}={raw!r} is not a {wanted}") from None
