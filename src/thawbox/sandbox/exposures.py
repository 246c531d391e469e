"""Secrets that would be frozen into a golden snapshot, and so into every clone of it: looked for before it is made.

Where they hide: environments (of the spec, and of every process as it is), and files of the writable layer, by name
and by content. No value is ever shown. The shapes of tokens are those that their issuers document for scanners.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from thawbox.errors import InvalidRequest
from thawbox.host.proc import command_name, pid_inside
from thawbox.sandbox.context import Context
from thawbox.sandbox.journal import Record
from thawbox.sandbox.shells import upper_directory
from thawbox.sandbox.uppers import PRIVATE

READ_LIMIT = 1 << 20
"""Bytes read of each file: keys and tokens stand at the beginning, or the file is not made to hold one."""

_NAME = re.compile(
    r"(^|_)(SECRETS?|PWD_HASH|CREDENTIALS?|AUTH|[^\W_]*(TOKEN|PASSWORD|PASSWD|PASSPHRASE)"
    r"|[^\W_]*(API|ACCESS|SECRET|PRIVATE|SIGNING|ENCRYPTION)_?KEYS?)(_|\d*$)"
    r"|(^|_)(?!BYPASS|COMPASS)[^\W_]*(PASS|PWD)(_?\d+)?$"
    r"|(^|_)(?<!PUBLIC_)(?<!PRIMARY_)(?<!CACHE_)(?<!SORT_)(?<!GPG_)(KEY|PAT)(_?\d+)?$",
    re.IGNORECASE,
)
"""Of names in words: `authToken` is `auth_Token`. The last line knows keys that are none: Python's own image says by
which GPG_KEY it was signed."""
_NEW_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_HARMLESS_VALUE = re.compile(r"|/.*|true|false|yes|no|none|null|\d{1,5}", re.IGNORECASE)
_SHORTEST = 6

_FILES = re.compile(
    r"(^|/)(id_(rsa|dsa|ecdsa|ed25519)|\.netrc|\.pgpass|\.git-credentials|\.env(\.[\w-]+)?|\.aws/credentials"
    r"|\.docker/config\.json|\.kube/config|application_default_credentials\.json|\.htpasswd|[^/]+\.(p12|pfx|keystore))$"
)
_EXAMPLE = re.compile(r"\.(example|sample|template|dist)$")

_CONTENTS: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    ("a private key", re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----\s*[\w+/=\r\n:, -]{64}")),
    ("an AWS access key", re.compile(rb"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b")),
    ("a GitHub token", re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})")),
    ("a GitLab token", re.compile(rb"\bglpat-[A-Za-z0-9_-]{20}")),
    ("a Slack token", re.compile(rb"\bxox[abprs]-[A-Za-z0-9-]{20,}")),
    ("a Google API key", re.compile(rb"\bAIza[A-Za-z0-9_-]{35}\b")),
    ("a Stripe key", re.compile(rb"\b[sr]k_live_[A-Za-z0-9]{20,}")),
    ("an OpenAI or Anthropic key", re.compile(rb"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}")),
    ("a Hugging Face token", re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")),
    ("an npm token", re.compile(rb"(?:\bnpm_[A-Za-z0-9]{36}\b|:_authToken=[^\s$]{8,})")),
    ("a JSON web token", re.compile(rb"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}")),
    ("a password in a URL", re.compile(rb"\b[a-z][a-z0-9+.-]{1,20}://[^/\s:@'\"{}$<>]+:[^/\s:@'\"{}$<>]{3,}@[\w.-]")),
)


@dataclass(frozen=True, slots=True)
class Exposure:
    """Something that looks like a secret: `where` is a variable, a process or a path inside; never the value."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def find_exposures(context: Context, record: Record) -> tuple[Exposure, ...]:
    """Everything in a running sandbox that looks like a secret and would be in its snapshot."""
    found = [*_in_environment(record.spec.env, "environment"), *_in_processes(context, record)]
    for name in record.layers:
        upper = upper_directory(context, record, name)
        found += scan_files(upper, inside="/" if name == "root" else f"/{name.replace('_', '/')}/")
    return tuple(dict.fromkeys(found))


def check_exposures(context: Context, record: Record, *, policy: str) -> tuple[Exposure, ...]:
    """What `find_exposures` finds; with `policy` `refuse`, raises InvalidRequest when that is anything.

    `warn` leaves it to the caller to say so; `off` does not look.
    """
    if policy == "off":
        return ()
    found = find_exposures(context, record)
    if found and policy == "refuse":
        shown = "; ".join(map(str, found[:10])) + (f"; and {len(found) - 10} more" if len(found) > 10 else "")
        raise InvalidRequest(
            f"every clone would hold what looks like secrets: {shown}",
            remediation="give them to each clone instead (secrets=…), or set THAWBOX_GOLDEN_SECRETS=warn",
        )
    return found


def scan_files(top: Path, *, inside: str = "/") -> Iterator[Exposure]:
    """Files below `top` that look like secrets by name or content, as paths below `inside`. No link is followed."""
    for directory, names, files in os.walk(top):
        if directory == str(top) and PRIVATE in names:
            names.remove(PRIVATE)  # init's own: its configuration is the environment, which has been looked at
        for name in files:
            path = Path(directory, name)
            where = inside + str(path.relative_to(top))
            with contextlib.suppress(OSError):
                what = _look_at(path, where)
                if what:
                    yield Exposure(where, what)


def _look_at(path: Path, where: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        content = file.read(READ_LIMIT)
    if content and _FILES.search(where) and not _EXAMPLE.search(where):
        return "a file of credentials, by its name"
    return next((what for what, shape in _CONTENTS if shape.search(content)), "")


def _in_processes(context: Context, record: Record) -> Iterator[Exposure]:
    known = set(record.spec.env.items())
    for pid in sorted(context.cgroup(record.id).pids() - {record.keeper_pid}):
        with contextlib.suppress(OSError):
            raw = Path(f"/proc/{pid}/environ").read_bytes()
            pairs = [entry.decode(errors="replace").partition("=") for entry in raw.split(b"\0") if b"=" in entry]
            environment = {name: value for name, _, value in pairs if (name, value) not in known}
            yield from _in_environment(environment, f"environment of process {pid_inside(pid)} ({command_name(pid)})")


def _names_secret(name: str) -> bool:
    return _NAME.search(_NEW_WORD.sub("_", name)) is not None


def _in_environment(environment: Mapping[str, str], where: str) -> Iterator[Exposure]:
    for name, value in sorted(environment.items()):
        what = next((what for what, shape in _CONTENTS if shape.search(value.encode())), "")
        if what:
            yield Exposure(f"{where}, {name}", what)
        elif _names_secret(name) and len(value) >= _SHORTEST and not _HARMLESS_VALUE.fullmatch(value):
            yield Exposure(f"{where}, {name}", "a secret, by its name")
