"""Specs as they are written on the command line and in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from thawbox.cli import spec_text
from thawbox.cli.run import run_command
from thawbox.cli.spec_options import spec_of
from thawbox.cli.supervise import supervise_command
from thawbox.cli.template import create_command
from thawbox.errors import InvalidRequest, InvalidSpec
from thawbox.model import Health, Mount, Net, Publish, Restart
from thawbox.restart_plan import Policy, policy_of


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("512M", 512 << 20),
        ("1.5G", 3 << 29),
        ("64 MiB", 64 << 20),
        ("2kb", 2048),
        ("7B", 7),
        ("1t", 1 << 40),
    ],
)
def test_a_size_is_read_in_powers_of_1024(text: str, size: int) -> None:
    assert spec_text.read_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1e9", "512Q", "5 12", "0x10", "\u0661\u0662M"])
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidSpec, match="is not a size"):
        spec_text.read_size(text)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("250ms", 0.25), ("15m", 900), ("2h", 7200)])
def test_a_span_is_read_in_its_unit(text: str, seconds: float) -> None:
    assert spec_text.read_span(text) == seconds


def test_a_mount_is_read_with_its_mode_and_a_relative_source_counts_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert spec_text.read_mount("here:/there:ro") == Mount(f"{tmp_path}/here", "/there", read_only=True)
    assert spec_text.read_mount("/a:/b") == Mount("/a", "/b")


@pytest.mark.parametrize("text", ["", "/a", "/a:", ":/b", "/a:/b:rx", "/a:/b:ro:more"])
def test_what_is_no_mount_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match="is not a mount"):
        spec_text.read_mount(text)


@pytest.mark.parametrize(
    ("text", "publish"),
    [
        ("80", Publish(0, 80)),
        ("8080:80", Publish(8080, 80)),
        ("0.0.0.0:8080:80", Publish(8080, 80, "0.0.0.0")),
    ],
)
def test_a_published_port_is_read_in_its_three_forms(text: str, publish: Publish) -> None:
    assert spec_text.read_publish(text) == publish


def test_environment_comes_from_files_from_here_and_from_the_command_line_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_HERE", "here")
    monkeypatch.delenv("NOWHERE", raising=False)
    file = tmp_path / "env"
    file.write_text("# a comment\nA=1\n\nB=from file\nFROM_HERE\nNOWHERE\n")
    found = spec_text.read_environment(["B=2=3", "C="], [str(file)])
    assert found == {"A": "1", "B": "2=3", "FROM_HERE": "here", "C": ""}


def test_what_is_no_pair_is_told_the_form_that_is_wanted() -> None:
    assert spec_text.read_pairs(["KEY=/run/key"], "secret", form="NAME=FILE") == {"KEY": "/run/key"}
    with pytest.raises(InvalidSpec, match="the secret 'KEY' is not NAME=FILE") as refused:
        spec_text.read_pairs(["KEY"], "secret", form="NAME=FILE")
    assert refused.value.remediation == "write it as NAME=FILE"


def test_a_health_probe_is_read_with_what_is_given_beside_it() -> None:
    assert spec_text.read_health({}) is None
    assert spec_text.read_health({"health": "tcp:80"}) == Health("tcp:80")
    given = {"health": "cmd:true", "health_interval": "1m", "health_timeout": "2s", "health_threshold": 5}
    assert spec_text.read_health(given) == Health("cmd:true", interval=60, timeout=2, threshold=5)
    with pytest.raises(InvalidSpec, match="no --health"):
        spec_text.read_health({"health_interval": "1m"})


def test_what_supervise_takes_is_taken_by_run_and_by_a_template_too() -> None:
    supervise, *others = (
        {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for command in (supervise_command, run_command, create_command)
    )
    for options in others:
        assert supervise - options == {"--off"}
    spec = spec_of({"keep": 5, "spare": True, "restart": "always", "checkpoint_on_drain": None}, ("true",), None)
    assert policy_of(spec) == Policy(Restart.ALWAYS, keep=5, spare=True)


def test_a_spec_file_takes_the_command_lines_short_forms(tmp_path: Path) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(
        'command = ["sleep", "9"]\nmemory = "64M"\nready_timeout = "2m"\nmounts = ["/a:/b:ro"]\n'
        'net = "nat"\npublish = ["8080:80", {host_port = 1, port = 2}]\n[env]\nA = "1"\nB = "2"\n'
    )
    spec = spec_text.spec_from({"env": {"B": "over"}, "cpus": 2.0}, file=str(file))
    assert spec.command == ("sleep", "9")
    assert (spec.memory, spec.ready_timeout, spec.cpus, spec.net) == (64 << 20, 120.0, 2.0, Net.NAT)
    assert spec.mounts == (Mount("/a", "/b", read_only=True),)
    assert spec.publish == (Publish(8080, 80), Publish(1, 2))
    assert spec.env == {"A": "1", "B": "over"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s.json", "{", "cannot be read"),
        ("s.toml", "a = = 1", "cannot be read"),
        ("s.json", "[]", "not an object"),
        ("s.json", '{"command": ["x"], "comand": 1}', "'comand'"),
        ("s.json", '{"command": "x"}', "Expected `array`"),
        ("s.json", '{"command": ["x"], "cpus": "many"}', "cpus"),
        ("s.json", '{"command": []}', "names no command"),
        ("s.json", '{"command": ["x"], "memory": "lots"}', "is not a size"),
        ("s.json", '{"command": ["x"], "memory": 5}', "too small"),
        ("s.json", '{"command": ["x"], "name": "a/b"}', "not a legal name"),
        ("s.json", '{"command": ["x"], "env": {"A=B": "1"}}', "environment name"),
        ("s.json", b"\xff\xfe\x00", "is not text"),
    ],
)
def test_a_corrupt_spec_is_refused_and_what_is_wrong_is_named(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidRequest, match=said):
        spec_text.spec_from({}, file=str(file))
