"""What the host sends to init and takes from it, as bytes."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thawbox.errors import InvalidRequest
from thawbox.host.init_wire import (
    ExecRequest,
    Rlimit,
    WireError,
    decode_sessions,
    decode_state,
    encode_config,
    encode_exec,
)

NATIVE = Path(__file__).parents[2] / "native" / "init"


@pytest.mark.parametrize(
    "request_",
    [
        ExecRequest(argv=[]),
        ExecRequest(argv=[""]),
        ExecRequest(argv=["a\0b"]),
        ExecRequest(argv=["a"], cwd="/\0"),
        ExecRequest(argv=["a"], env={"": "x"}),
        ExecRequest(argv=["a"], env={"A=B": "x"}),
        ExecRequest(argv=["a"], env={"A": "\0"}),
        ExecRequest(argv=["a"], groups=range(65)),
        ExecRequest(argv=["a"], uid=-1),
        ExecRequest(argv=["a"], uid=1 << 32),
        ExecRequest(argv=["a"] * 16385),
        ExecRequest(argv=["x" * (256 << 10)]),
    ],
)
def test_a_request_that_init_would_refuse_is_not_sent(request_):
    with pytest.raises(InvalidRequest):
        encode_exec(request_)


def test_the_bytes_of_a_request_are_those_of_the_protocol():
    raw = encode_exec(ExecRequest(argv=["ls", "-l"], env={"A": "1"}, uid=1, gid=2, groups=[3], cwd="/w", stdin=True))
    assert raw == (
        b"\x04" b"\0\0" b"\0\0" b"\1\0\0\0" b"\2\0\0\0" b"\1\0\0\0" b"\3\0\0\0" b"\2\0\0\0" b"\1\0\0\0"
        b"/w\0" b"ls\0" b"-l\0" b"A=1\0"
    )  # fmt: skip


def test_the_config_begins_with_its_magic_and_the_size_of_the_log():
    raw = encode_config(ExecRequest(argv=["a"]), rlimits=[Rlimit(7, 1, 2)], log_bytes=5, log_files=6)
    head = b"thawbox1\5\0\0\0\6\0\0\0\1\0\0\0\7\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0"
    assert raw == head + encode_exec(ExecRequest(argv=["a"]))


def test_a_log_of_no_files_is_refused():
    with pytest.raises(InvalidRequest):
        encode_config(ExecRequest(argv=["a"]), log_files=0)


@given(st.binary(max_size=200))
def test_bytes_from_a_sandbox_are_understood_or_refused(payload):
    for decode in (decode_state, decode_sessions):
        with contextlib.suppress(WireError):
            decode(payload)


def test_the_parsers_of_init_survive_random_input():
    subprocess.run(
        ["make", "-s", "-C", NATIVE, "fuzz", "FUZZ_ROUNDS=100000"], check=True, capture_output=True, timeout=120
    )
