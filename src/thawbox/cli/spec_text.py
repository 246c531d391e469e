"""Specs as text: sizes, mounts, published ports, environment, and whole spec files in JSON or TOML."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thawbox.errors import InvalidSpec

if TYPE_CHECKING:
    from thawbox.model import Health, Mount, Publish, Spec

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE | re.ASCII)
_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def read_size(text: str) -> int:
    """Bytes from `512M`, `1.5G`, `4096`; the units are powers of 1024. Raises InvalidSpec."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise InvalidSpec(f"{text!r} is not a size", remediation="give bytes, or a number with K, M, G or T: 512M")
    return int(float(found[1]) * (1 << _SHIFTS[(found[2] or "").lower()]))


def read_span(text: str) -> float:
    """Seconds from `90`, `90s`, `15m`, `2h`, `7d`; raises InvalidSpec."""
    found = _SPAN.fullmatch(text.strip())
    if not found:
        raise InvalidSpec(f"{text!r} is not a span of time", remediation="give seconds, or 90s, 15m, 2h, 7d")
    return float(found[1]) * _SECONDS[found[2] or "s"]


def read_mount(text: str) -> Mount:
    """A mount from `SOURCE:TARGET[:ro|:rw]`; a relative source counts from here. Raises InvalidSpec."""
    from thawbox.model import Mount

    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not source or not target or mode not in {"", "ro", "rw"}:
        raise InvalidSpec(f"{text!r} is not a mount", remediation="give SOURCE:TARGET or SOURCE:TARGET:ro")
    return Mount(str(Path(source).absolute()), target, read_only=mode == "ro")


def read_publish(text: str) -> Publish:
    """A published port from `PORT`, `HOST_PORT:PORT` or `ADDRESS:HOST_PORT:PORT`; raises InvalidSpec."""
    from thawbox.model import Publish

    *before, port = text.split(":")
    host_port = before.pop() if before else "0"
    address = ":".join(before) or "127.0.0.1"
    if not ((port + host_port).isascii() and port.isdecimal() and host_port.isdecimal()):
        raise InvalidSpec(f"{text!r} is not a published port", remediation="give [[ADDRESS:]HOST_PORT:]PORT: 8080:80")
    return Publish(int(host_port), int(port), address)


def read_pairs(texts: Iterable[str], what: str, *, form: str = "KEY=VALUE") -> dict[str, str]:
    """`KEY=VALUE` texts as a mapping; raises InvalidSpec, which says the form."""
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidSpec(f"the {what} {text!r} is not {form}", remediation=f"write it as {form}")
        pairs[key] = value
    return pairs


def read_mounts(texts: Iterable[str]) -> tuple[Mount, ...]:
    """Every mount of the command line."""
    return tuple(read_mount(text) for text in texts)


def read_publishes(texts: Iterable[str]) -> tuple[Publish, ...]:
    """Every published port of the command line."""
    return tuple(read_publish(text) for text in texts)


def read_labels(texts: Iterable[str]) -> dict[str, str]:
    """Every label of the command line."""
    return read_pairs(texts, "label")


def read_health(given: Mapping[str, Any]) -> Health | None:
    """A health probe from `health`, `health_interval`, `health_timeout`, `health_threshold`; None without the first."""
    from thawbox.model import Health

    if "health" not in given:
        if given:
            raise InvalidSpec("a health probe's interval, timeout or threshold is given, but no --health")
        return None
    values: dict[str, Any] = {
        name: read_span(given[f"health_{name}"]) for name in ("interval", "timeout") if f"health_{name}" in given
    }
    if "health_threshold" in given:
        values["threshold"] = given["health_threshold"]
    return Health(given["health"], **values)


def read_environment(texts: Iterable[str], files: Iterable[str] = ()) -> dict[str, str]:
    """Environment from `KEY=VALUE`, `KEY` (its value here), and files of such lines; what comes later wins."""
    lines: list[str] = []
    for file in files:
        content = _text_of(file)
        lines += [line for line in map(str.strip, content.splitlines()) if line and not line.startswith("#")]
    whole = [text if "=" in text else f"{text}={os.environ[text]}" for text in (*lines, *texts) if _has_value(text)]
    return read_pairs(whole, "environment entry")


def _has_value(text: str) -> bool:
    return "=" in text or text in os.environ


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text()
    except UnicodeDecodeError:
        raise InvalidSpec(f"{file} is not text") from None


def read_spec_file(file: str) -> dict[str, Any]:
    """The fields of a spec from a JSON file, or TOML where its name ends in `.toml`; raises InvalidSpec.

    The fields are those of `thawbox.Spec`; sizes, mounts and ports may also be written as on the command line.
    """
    content = _text_of(file)
    try:
        found: object = _decoded(content, is_toml=file.endswith(".toml"))
    except ValueError as error:  # both decoders' errors are
        raise InvalidSpec(f"the spec {file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise InvalidSpec(f"the spec {file} is not an object of fields")
    return _checked_fields({str(key): value for key, value in found.items()}, what=f"the spec {file}")  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _checked_fields(values: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    import msgspec

    from thawbox.model import Spec

    strange = sorted(set(values) - {field.name for field in fields(Spec)})
    if strange:
        raise InvalidSpec(f"{what} has a field {strange[0]!r} that no spec has")
    try:
        spec = msgspec.convert({"command": [], **_written_out(values)}, Spec)
    except msgspec.ValidationError as error:
        raise InvalidSpec(f"{what}: {error}") from None
    return {name: getattr(spec, name) for name in values}


def spec_from_fields(values: Mapping[str, Any], *, what: str) -> Spec:
    """A checked spec from fields as a spec file has them; raises InvalidSpec, naming `what`."""
    from thawbox.model import Spec, check_spec

    return check_spec(Spec(**_checked_fields(values, what=what)))


def _decoded(content: str, *, is_toml: bool) -> object:
    if is_toml:
        import tomllib

        return tomllib.loads(content)
    import msgspec

    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


def _written_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields with the command line's short forms replaced by what they mean."""
    readers = {
        "memory": read_size,
        "ready_timeout": read_span,
        "hook_timeout": read_span,
        "checkpoint_every": read_span,
    }
    lists = {"mounts": read_mount, "publish": read_publish}
    meant = dict(values)
    for name, read in readers.items():
        if isinstance(meant.get(name), str):
            meant[name] = read(meant[name])
    for name, read_one in lists.items():
        if isinstance(meant.get(name), list):
            meant[name] = [read_one(one) if isinstance(one, str) else one for one in meant[name]]
    import msgspec

    built: dict[str, Any] = msgspec.to_builtins(meant)
    return built


def spec_from(overrides: Mapping[str, Any], *, file: str | None) -> Spec:
    """A checked spec: the file's fields, if there is one, under what the command line says."""
    from thawbox.model import Spec, check_spec

    values = {**(read_spec_file(file) if file else {}), **overrides}
    if "env" in overrides and file:
        values["env"] = {**read_spec_file(file).get("env", {}), **overrides["env"]}
    values.setdefault("command", ())
    return check_spec(Spec(**values))
