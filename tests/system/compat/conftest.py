"""What the run of the compatibility list found, printed as the table of docs/compatibility.md."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_found: dict[str, tuple[str, str]] = {}


@pytest.fixture
def verdict(request: pytest.FixtureRequest) -> Callable[[str, str, str], None]:
    """Takes down a program's name, version and verdict for the table."""

    def take_down(program: str, version: str, said: str) -> None:
        _found[program] = (version, said)

    return take_down


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _found:
        return
    terminalreporter.section("programs that were frozen, brought back and cloned")
    terminalreporter.line("| program | version | verdict |")
    terminalreporter.line("|---|---|---|")
    for program, (version, said) in sorted(_found.items(), key=lambda item: item[0].lower()):
        terminalreporter.line(f"| {program} | {version} | {said} |")
