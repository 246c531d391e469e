"""The command as its users call it: a process of its own, on a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 60
COUNTING = "i=0; while :; do i=$((i+1)); echo out $i; echo err $i >&2; sleep 0.05; done"
SLEEPING = ("sleep", "1000")


@dataclass(frozen=True, slots=True)
class Done:
    """One finished command."""

    status: int
    out: bytes
    err: bytes

    def json(self) -> Any:
        """The one object on stdout."""
        assert self.status == 0, self
        lines = self.out.decode().splitlines()
        assert len(lines) == 1, self
        return json.loads(lines[0])

    def error(self) -> dict[str, str]:
        """The error object on stderr, complete."""
        told = json.loads(self.err)["error"]
        assert {"code", "cause", "remediation"} <= set(told), self
        assert told["cause"], self
        assert told["remediation"], self
        return dict(told)


@dataclass(frozen=True, slots=True)
class Cli:
    """Runs `thawbox` with THAWBOX_HOME and further environment."""

    home: Path
    env: tuple[tuple[str, str], ...] = ()

    def environment(self) -> dict[str, str]:
        return {**os.environ, "THAWBOX_HOME": str(self.home), **dict(self.env)}

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "thawbox.cli", *words]

    def __call__(self, *words: str, stdin: bytes = b"") -> Done:
        done = subprocess.run(
            self.argv(*words), input=stdin, capture_output=True, env=self.environment(), timeout=TIMEOUT, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """The same, not waited for; pipes unless `options` say otherwise."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.argv(*words), env=self.environment(), **{**pipes, **options})

    def run(self, *words: str, command: tuple[str, ...] = SLEEPING) -> Any:
        """Start a sandbox and return what `run --json` says."""
        return self("run", "--json", *words, "--", *command).json()
