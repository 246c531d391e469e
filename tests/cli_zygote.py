"""The command many times over: a process that has imported everything forks one that runs each command line.

A command is the same code in a process of its own, with its own exit status; only the third of a second for which
Python starts and imports is paid once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from cli_process import Done

IMPORTED = ("thawbox.node", "thawbox.engines.criu", "thawbox.engines.criu_delta", "thawbox.pool", "thawbox.supervisor")


class Zygote(AbstractContextManager["Zygote"]):
    """Runs `thawbox` on a home; not for several threads."""

    def __init__(self, home: Path) -> None:
        environment = {**os.environ, "THAWBOX_HOME": str(home)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0
        self._process.stdout.close()

    def __call__(self, *words: str) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        status, out, err = json.loads(self._process.stdout.readline())
        return Done(status, out.encode("latin-1"), err.encode("latin-1"))


def run(words: Sequence[str]) -> tuple[int, bytes, bytes]:
    """One command line in a fork."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            become(words, out.fileno(), err.fileno())
        _, status = os.waitpid(pid, 0)
        out.seek(0)
        err.seek(0)
        return os.waitstatus_to_exitcode(status), out.read(), err.read()


def become(words: Sequence[str], out: int, err: int) -> None:
    """The command, in this process; never returns."""
    from thawbox.cli.app import main

    status = 70
    try:
        nowhere = os.open(os.devnull, os.O_RDONLY)
        for fd, number in ((nowhere, 0), (out, 1), (err, 2)):
            os.dup2(fd, number)
        sys.argv = ["thawbox", *words]
        main(words)
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        status, out, err = run(json.loads(line))
        print(json.dumps([status, out.decode("latin-1"), err.decode("latin-1")]), flush=True)
