"""Which words a spec takes for its hooks."""

from __future__ import annotations

import pytest

from thawbox.errors import InvalidSpec
from thawbox.model import Spec, check_spec

GOOD = ["auto", "guest", "none", "cmd:/opt/hook", "cmd:echo a b\n", "http://127.0.0.1:8000", "http://localhost"]
BAD = ["", "cmd:", "http://example.org:80", "http://127.0.0.1.evil.example", "https://127.0.0.1", "http://127.0.0.1/x"]


@pytest.mark.parametrize("hooks", GOOD)
def test_every_kind_of_hooks_is_taken(hooks: str) -> None:
    assert check_spec(Spec(("true",), hooks=hooks)).hooks == hooks


@pytest.mark.parametrize("hooks", BAD)
def test_hooks_outside_the_sandbox_or_of_no_known_kind_are_refused(hooks: str) -> None:
    with pytest.raises(InvalidSpec, match="hooks"):
        check_spec(Spec(("true",), hooks=hooks))


@pytest.mark.parametrize("seconds", [0, -1, 1e9])
def test_a_hook_without_a_sensible_time_limit_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidSpec, match="hook_timeout"):
        check_spec(Spec(("true",), hook_timeout=seconds))
