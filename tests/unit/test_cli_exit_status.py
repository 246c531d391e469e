"""Every error has an exit status, and every exit status a meaning."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import thawbox
from thawbox.cli import exit_status
from thawbox.errors import ThawboxError

for _module in pkgutil.walk_packages(thawbox.__path__, "thawbox."):
    if not _module.name.endswith("__main__") and ".proto." not in _module.name:
        importlib.import_module(_module.name)


def below(error: type[ThawboxError]) -> Iterator[type[ThawboxError]]:
    for child in error.__subclasses__():
        yield child
        yield from below(child)


@pytest.mark.parametrize("error", sorted(set(below(ThawboxError)), key=lambda kind: kind.__name__))
def test_every_error_exits_with_the_status_of_its_family(error: type[ThawboxError]) -> None:
    status = exit_status.exit_status_of(error("something is wrong"))
    family = [kind for kind in error.__mro__ if kind in exit_status.EXIT_STATUSES]
    assert family, f"{error.__name__} belongs to no family"
    assert status == exit_status.EXIT_STATUSES[family[0]]


def test_no_two_families_share_a_status() -> None:
    statuses = list(exit_status.EXIT_STATUSES.values())
    assert len(set(statuses)) == len(statuses)


def test_every_status_has_a_meaning() -> None:
    own = {value for name, value in vars(exit_status).items() if name.isupper() and isinstance(value, int)}
    assert own | set(exit_status.EXIT_STATUSES.values()) | {0} == set(exit_status.MEANINGS)
