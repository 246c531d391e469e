"""The command line's promises: fields of `--json`, exit statuses, words, and nothing left behind."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_process import COUNTING, Cli
from thawbox.host.proc import pid_inside
from traces import Traces


@pytest.fixture
def cli(open_node: object, home: Path) -> Cli:
    """The command on a home that is cleaned up, and looked at, afterwards."""
    return Cli(home)


def test_the_main_job_by_hand(cli: Cli) -> None:
    ran = cli.run(
        "--name",
        "agent",
        "--memory",
        "128M",
        "--label",
        "team=a",
        "--ready",
        "log:out 1",
        command=("sh", "-c", COUNTING),
    )
    assert set(ran) == {"id", "name", "state", "create_ms"}
    assert (ran["name"], ran["state"]) == ("agent", "running")
    assert ran["create_ms"] > 0

    made = cli("checkpoint", "agent", "--name", "warm", "--json").json()
    assert {"id", "parent", "kind", "frozen_ms", "total_ms", "bytes"} <= set(made)
    assert (made["parent"], made["kind"]) == (None, "full")
    assert 0 < made["frozen_ms"] < made["total_ms"]
    again = cli("--json", "checkpoint", "agent").json()
    assert again["parent"] == made["id"]

    assert cli("stop", "-t", "0", "agent", "--json").json() == {
        "sandboxes": [{"id": ran["id"], "name": "agent", "state": "exited"}]
    }
    back = cli("restore", "warm", "--json").json()
    assert set(back) == {"id", "name", "restore_ms", "ready_ms"}
    assert (back["id"], back["name"]) == (ran["id"], "agent")

    clones = cli("clone", "warm", "-n", "2", "--json").json()["sandboxes"]
    forked = cli("fork", "agent", "--name", "twin", "--json").json()["sandboxes"]
    assert all(set(clone) == {"id", "name", "restore_ms", "ready_ms"} for clone in (*clones, *forked))
    assert [one["name"] for one in forked] == ["twin"]

    listed = cli("ps", "--json").json()["sandboxes"]
    assert {one["id"] for one in listed} == {ran["id"], *(clone["id"] for clone in (*clones, *forked))}
    assert len({one["name"] for one in listed}) == 4
    names = cli("ps", "-q").out.decode().split()
    assert cli("rm", "-f", *names).status == 0
    assert cli("ps", "--all", "--json").json() == {"sandboxes": []}
    kept = cli("snapshots", "ls", "--json").json()["snapshots"]
    assert made["id"] in {snapshot["id"] for snapshot in kept}


def test_inspect_tells_the_spec_and_what_became_of_it(cli: Cli) -> None:
    ran = cli.run("--name", "seen", "--memory", "64M", "-e", "A=b", "--pids", "50", "-u", "nobody", "-w", "/tmp")
    seen = cli("inspect", "seen", "--json").json()
    assert {"id", "name", "state", "pid", "cgroup", "address", "parent_snapshot", "created_at", "spec"} <= set(seen)
    assert (seen["id"], seen["state"], seen["parent_snapshot"], seen["address"]) == (ran["id"], "running", None, None)
    assert pid_inside(seen["pid"]) == 2, "pid is that of init, on the host"
    assert Path(seen["cgroup"]).is_dir()
    spec = seen["spec"]
    assert (spec["command"], spec["memory"], spec["pids"]) == (["sleep", "1000"], 64 << 20, 50)
    assert (spec["env"], spec["user"], spec["workdir"]) == ({"A": "b"}, "nobody", "/tmp")
    assert "running" in cli("inspect", "seen").out.decode()
    cli("stop", "-t", "0", "seen")
    ended = cli("inspect", "seen", "--json").json()
    assert (ended["state"], ended["pid"], ended["ended_why"]) == ("exited", None, "stopped")


def test_a_program_that_ends_is_seen_with_its_status(cli: Cli) -> None:
    assert cli("run", "--name", "short", "--attach", "--", "sh", "-c", "echo out; echo err >&2; exit 7").status == 7
    seen = cli("inspect", "short", "--json").json()
    assert (seen["state"], seen["exit_status"]) == ("exited", 7)
    logs = cli("logs", "short")
    assert (logs.out, logs.err) == (b"out\n", b"err\n")


def test_attached_and_removed_a_run_is_a_plain_command(cli: Cli) -> None:
    done = cli("run", "--rm", "--attach", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.status, done.out, done.err) == (3, b"out\n", b"err\n")
    assert cli("ps", "--all", "--json").json() == {"sandboxes": []}


def test_freeze_and_thaw_show_in_ps_and_stats_go_on(cli: Cli) -> None:
    cli.run("--name", "cold")
    assert cli("freeze", "cold", "--json").json()["sandboxes"][0]["state"] == "frozen"
    refused = cli("exec", "cold", "true")
    assert (refused.status, b"thaw it first" in refused.err) == (102, True)
    stats = cli("stats", "cold", "--json").json()
    assert {"id", "name", "state", "memory", "memory_limit", "cpu_usec", "pids"} <= set(stats)
    assert stats["memory"] > 0
    assert cli("thaw", "cold").status == 0
    assert cli("exec", "cold", "true").status == 0
    assert [one["name"] for one in cli("stats", "--json").json()["sandboxes"]] == ["cold"]


def test_logs_go_where_the_program_sent_them_and_can_be_cut(cli: Cli) -> None:
    script = "for i in 1 2 3 4; do echo out $i; done; echo err >&2"
    cli("run", "--name", "said", "--attach", "--", "sh", "-c", script)
    whole = cli("logs", "said")
    assert (whole.out, whole.err) == (b"out 1\nout 2\nout 3\nout 4\n", b"err\n")
    records = cli("logs", "said", "--json").json()["records"]
    assert all(set(record) == {"time", "stream", "session", "text"} for record in records)
    assert "".join(one["text"] for one in records if one["stream"] == "stdout") == whole.out.decode()
    last = cli("logs", "said", "--tail", "2")
    assert len(last.out.splitlines()) + len(last.err.splitlines()) == 2
    assert cli("logs", "said", "--since", "2100-01-01").out == b""
    assert cli("logs", "said", "--since", "1h").out == whole.out
    stamped = cli("logs", "said", "--timestamps").out.splitlines()
    assert all(line[:2] == b"20" and b"Z out" in line for line in stamped)


def test_logs_followed_end_with_the_sandbox_and_lose_nothing_to_a_checkpoint(cli: Cli) -> None:
    cli.run("--name", "talks", "--ready", "log:out 2", command=("sh", "-c", COUNTING))
    with cli.start("logs", "--follow", "talks") as following:
        assert following.stdout is not None
        assert following.stdout.readline() == b"out 1\n"
        cli("checkpoint", "talks")
        cli("stop", "-t", "0", "talks")
        out = following.stdout.read()  # not communicate(), which passes over what readline() has read ahead
        assert following.wait(timeout=30) == 0
    numbers = [1, *(int(line.split()[1]) for line in out.splitlines())]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_reader_that_goes_away_ends_the_command_without_a_word(cli: Cli) -> None:
    cli.run("--name", "talks", "--ready", "log:out 2", command=("sh", "-c", COUNTING))
    with cli.start("logs", "--follow", "talks") as following:
        assert following.stdout is not None
        assert following.stderr is not None
        following.stdout.readline()
        following.stdout.close()
        said = following.stderr.read()
        assert following.wait(timeout=30) == 141
    assert b"Traceback" not in said
    assert b"thawbox" not in said


def test_files_are_copied_both_ways_whole(cli: Cli, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below" / "file").write_bytes(os.urandom(300_000))
    (tree / "link").symlink_to("/etc/hostname")
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    cli.run("--name", "box", "--user", "nobody")
    assert cli("cp", str(tree), "box:/tmp/", "--json").json() == {"files": 2, "bytes": 300_010, "left_out": []}
    owner = cli("exec", "-u", "root", "box", "stat", "-c", "%U %a", "/tmp/tree/run.sh").out
    assert owner == b"nobody 755\n"
    assert cli("cp", "box:/tmp/tree", str(tmp_path / "back")).status == 0
    back = tmp_path / "back"
    assert (back / "below" / "file").read_bytes() == (tree / "below" / "file").read_bytes()
    assert str((back / "link").readlink()) == "/etc/hostname"
    assert cli("cp", str(tree), "box:/tmp/", "--json").error()["code"] == "invalid", "a directory is in the way"
    assert cli("cp", "box:/nothing", str(tmp_path / "x"), "--json").error()["code"] == "not_found"
    assert not (tmp_path / "x").exists()


def test_no_link_inside_leads_a_copy_out(cli: Cli, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    outside = tmp_path / "outside"
    outside.mkdir()
    cli.run("--name", "trap")
    plant = f"ln -s {secret} /tmp/leak; ln -s {outside} /tmp/dir; ln -s /proc/1/root/tmp /tmp/magic"
    assert cli("exec", "trap", "sh", "-c", plant).status == 0
    assert cli("cp", "trap:/tmp/leak", str(tmp_path / "got")).status == 103
    assert cli("cp", str(secret), "trap:/tmp/dir/planted").status == 103
    assert cli("cp", str(secret), "trap:/tmp/magic/planted").status != 0
    assert cli("cp", str(secret), "trap:/tmp/../../../../../tmp/up").status == 0
    assert cli("exec", "trap", "cat", "/tmp/up").out == b"of the host"
    assert not list(outside.iterdir())
    assert not (tmp_path / "got").exists()


def test_snapshots_are_listed_named_kept_and_removed(cli: Cli, tmp_path: Path) -> None:
    cli.run("--name", "one")
    first = cli("checkpoint", "one", "--name", "a", "--label", "k=v", "--json").json()["id"]
    second = cli("checkpoint", "one", "--name", "b", "--delta", "--json").json()["id"]
    listed = {one["id"]: one for one in cli("snapshots", "ls", "--json").json()["snapshots"]}
    assert listed[first]["names"] == ["a"]
    assert listed[first]["labels"] == {"k": "v"}
    assert (listed[second]["kind"], listed[second]["parent"]) == ("delta", first)
    assert cli("snapshots", "ls", "-q", "--label", "k=v").out.decode().split() == [first]
    assert [one["id"] for one in cli("snapshots", "chain", "b", "--json").json()["chain"]] == [first, second]
    assert cli("snapshots", "show", first[:12], "--json").json()["chain"] == [first]
    assert cli("snapshots", "verify", "--deep", "--json").json() == {"ok": True, "problems": []}
    refused = cli("snapshots", "rm", "a", "--json")
    assert (refused.status, second[:12] in refused.error()["cause"]) == (102, True)
    cli("rm", "-f", "one")
    archive = str(tmp_path / "chain.tb")
    assert cli("snapshots", "export", "b", archive, "--json").json()["snapshots"] == [first, second]
    assert cli("snapshots", "push", "b", f"file://{tmp_path}/remote", "--json").json()["snapshots"] == [first, second]
    assert set(cli("snapshots", "rm", "a", "--cascade", "--json").json()["removed"]) == {first, second}
    assert cli("snapshots", "import", archive, "--name", "c", "--json").json() == {"snapshots": [second]}
    assert cli("snapshots", "rm", "--cascade", first).status == 0
    assert cli("snapshots", "pull", second[:8], f"file://{tmp_path}/remote", "--name", "d").status == 0
    assert cli("restore", "d", "--json").json()["name"] == "one"


def test_a_chain_is_exported_for_other_tools_with_its_memory_and_files_merged(cli: Cli, tmp_path: Path) -> None:
    program = "import time\nmarker = 'in-me' + 'mory' * 3\nwhile True: time.sleep(1)"
    cli.run("--name", "one", "--env", "A=b", command=("python3", "-c", program))
    for line in ("echo first >/root/file; echo old >/root/gone", "echo second >/root/file; rm /root/gone"):
        assert cli("exec", "one", "--", "sh", "-c", line).status == 0
        snapshot = cli("checkpoint", "one", "--json").json()
    assert snapshot["kind"] == "delta"
    file = tmp_path / "one.tar"
    made = cli("snapshots", "export", "--oci", snapshot["id"], str(file), "--json").json()
    assert made == {"snapshot": snapshot["id"], "file": str(file), "bytes": file.stat().st_size}
    with tarfile.open(file) as archive:
        found = {one.name: archive.extractfile(one) for one in archive.getmembers() if one.isfile()}
        content = {name: opened.read() for name, opened in found.items() if opened is not None}
    config, spec = json.loads(content["config.dump"]), json.loads(content["spec.dump"])
    assert (config["id"], config["name"], config["rootfsImageName"]) == (snapshot["id"], "one", "SYSTEM")
    assert (spec["process"]["args"][0], spec["process"]["env"]) == ("python3", ["A=b"])
    pages = [name for name in content if re.fullmatch(r"checkpoint/pages-\d+\.img", name)]
    assert any(b"in-memorymorymory" in content[name] for name in pages)
    assert "checkpoint/inventory.img" in content
    with tarfile.open(fileobj=io.BytesIO(content["rootfs-diff.tar"])) as diff:
        changed = diff.extractfile("root/file")
        assert changed is not None
        assert changed.read() == b"second\n"
        assert "root/gone" not in diff.getnames()
    assert json.loads(content["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert cli("snapshots", "export", "--oci", snapshot["id"], str(file), "--json").error()["code"] == "invalid"
    nowhere = str(tmp_path / "no" / "where.tar")
    assert cli("snapshots", "export", "--oci", snapshot["id"], nowhere, "--json").error()["code"] == "invalid"
    assert list(tmp_path.glob(".one*")) == []


def test_a_checkpoint_may_be_waited_for_and_a_chain_flattened(cli: Cli) -> None:
    cli.run("--name", "one")
    cli("checkpoint", "one", "--name", "base")
    begun = cli("checkpoint", "one", "--async", "--name", "later", "--delta", "--json").json()
    assert set(begun) == {"token", "frozen_ms"}
    made = cli("snapshots", "wait", begun["token"], "--json").json()
    assert (made["names"], made["kind"]) == (["later"], "delta")
    assert cli("snapshots", "wait", "0123456789abcdef").status == 103
    flat = cli("snapshots", "flatten", "later", "--name", "flat", "--json").json()
    assert (flat["names"], flat["kind"], flat["parent"]) == (["flat"], "full", None)
    cli("rm", "-f", "one")
    assert cli("restore", "flat", "--json").json()["name"] == "one"


def test_preflight_says_that_a_plain_program_can_be_frozen_and_names_what_cannot(cli: Cli) -> None:
    cli.run("--name", "plain")
    assert cli("preflight", "plain", "--json").json() == {"ok": True, "findings": []}
    traced = (
        "import ctypes, os, signal, time\n"
        "if os.fork() == 0:\n    ctypes.CDLL(None).ptrace(0, 0, 0, 0)\n    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "os.waitpid(-1, os.WUNTRACED)\nprint('traced', flush=True)\ntime.sleep(1000)\n"
    )
    cli.run("--name", "odd", "--ready", "log:traced", command=("python3", "-c", traced))
    told = cli("preflight", "odd", "--json")
    assert told.status == 104
    findings = json.loads(told.out)["findings"]
    assert [finding["program"] for finding in findings if finding["blocking"]] == ["python3"]
    assert all(finding["cause"] and finding["remediation"] for finding in findings)
    head, row, verdict = cli("preflight", "odd").out.decode().splitlines()
    assert head.split() == ["VERDICT", "PID", "PROGRAM", "WHERE", "WHAT", "CAUSE", "REMEDY"]
    assert row.startswith("refused")
    assert findings[0]["remediation"] in row
    assert verdict == "It cannot be checkpointed."
    refused = cli("checkpoint", "odd", "--json")
    assert (refused.status, "python3" in refused.error()["cause"]) == (104, True)
    assert cli("exec", "odd", "true").status == 0, "it runs on"


def test_a_damaged_snapshot_is_named_and_never_restored(cli: Cli, home: Path) -> None:
    cli.run("--name", "one")
    made = cli("checkpoint", "one", "--stop", "--json").json()["id"]
    pages = next((home / "store" / "snapshots" / made).rglob("pages-*.img"))
    content = bytearray(pages.read_bytes())
    content[len(content) // 2] ^= 1
    pages.write_bytes(content)
    found = cli("snapshots", "verify", "--json")
    assert found.status == 108
    problems = json.loads(found.out)
    assert problems["ok"] is False
    assert any(one["snapshot"] == made and pages.name in one["file"] for one in problems["problems"])
    refused = cli("restore", made, "--json")
    assert (refused.status, refused.error()["code"]) == (108, "integrity.corrupt")


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("inspect", "nobody"), 103, "not_found.sandbox"),
        (("restore", "nothing"), 103, "not_found.snapshot"),
        (("clone", "nothing", "-n", "2"), 103, "not_found.snapshot"),
        (("run", "--memory", "lots", "--", "true"), 102, "invalid.spec"),
        (("run", "--memory", "1K", "--", "true"), 102, "invalid.spec"),
        (("run", "--name", "../up", "--", "true"), 102, "invalid.spec"),
        (("run", "--rootfs", "/nowhere", "--", "true"), 102, "invalid.spec"),
        (("run", "--mount", "/nowhere:/mnt", "--", "true"), 102, "invalid.spec"),
        (("run", "--user", "nobody-at-all", "--", "true"), 102, "invalid.spec"),
        (("run", "--", "echo", "\udcff"), 102, "invalid.spec"),
        (("run", "--publish", "80:80", "--", "true"), 102, "invalid.spec"),
        (("run",), 102, "invalid.spec"),
        (("run", "--spec", "/nowhere.json"), 109, "host.enoent"),
        (("snapshots", "import", "/nowhere.tb"), 102, "invalid"),
        (("snapshots", "push", "x", "ftp://host/"), 102, "invalid"),
        (("ps", "--no-such-option"), 102, "invalid.usage"),
        (("no-such-command",), 102, "invalid.usage"),
        (("checkpoint",), 102, "invalid.usage"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_a_clear_error_and_leaves_nothing(
    cli: Cli, traces: Callable[[], Traces], words: tuple[str, ...], status: int, code: str
) -> None:
    cli("run", "--user", "nobody-at-all", "--", "true")  # a node that was used, with its directories
    before = traces()
    own = words.index("--") if "--" in words else len(words)
    told = cli(*words[:own], "--json", *words[own:])
    assert (told.status, told.out) == (status, b"")
    error = told.error()
    assert error["code"] == code
    after = traces()
    assert after.of_kernel() == before.of_kernel()
    assert after.files == before.files
    in_words = cli(*words)
    assert in_words.status == status
    assert in_words.err.startswith(b"thawbox: ")
    assert b"Traceback" not in in_words.err


def test_a_program_that_is_not_there_fails_the_run_and_leaves_nothing(cli: Cli, traces: Callable[[], Traces]) -> None:
    cli("ps")
    before = traces()
    error = cli("run", "--json", "--", "no-such-program")
    assert error.status == 107
    assert "no-such-program" in error.error()["cause"]
    assert traces().of_kernel() == before.of_kernel()
    assert cli("ps", "--all", "--json").json() == {"sandboxes": []}


def test_verbs_go_on_after_a_name_that_is_not_there(cli: Cli) -> None:
    cli.run("--name", "one")
    cli.run("--name", "two")
    done = cli("rm", "-f", "one", "nobody", "two", "--json")
    assert done.status == 103
    assert [one["name"] for one in json.loads(done.out)["sandboxes"]] == ["one", "two"]
    assert done.error()["code"] == "not_found.sandbox"


def test_without_root_it_says_so(home: Path) -> None:
    done = subprocess.run(
        Cli(home).argv("ps", "--json"), capture_output=True, env=Cli(home).environment(), timeout=60, user=65534,
        check=False,
    )  # fmt: skip
    if done.returncode == 1 and b"No module named" in done.stderr:
        pytest.skip("this checkout cannot be read by other users")
    assert done.returncode == 104
    assert "root" in json.loads(done.stderr)["error"]["cause"]


def test_a_missing_criu_fails_what_needs_it_with_a_remedy(cli: Cli) -> None:
    without = Cli(cli.home, (("THAWBOX_CRIU", "/nowhere/criu"),))
    error = without("ps", "--json")
    assert error.status == 104
    assert "make setup" in error.error()["remediation"]


def test_names_are_completed(cli: Cli) -> None:
    cli.run("--name", "findme")
    cli("checkpoint", "findme", "--name", "andme")
    cli("template", "create", "golden", "--", "sleep", "infinity")
    cli("pool", "create", "parked", "--template", "golden", "--low", "0")
    for words, cword, wanted in (
        ("thawbox exec fi", "2", b"findme"),
        ("thawbox restore an", "2", b"andme"),
        ("thawbox snapshots ver", "2", b"verify"),
        ("thawbox cp f", "2", b"findme:"),
        ("thawbox template show go", "3", b"golden"),
        ("thawbox pool acquire pa", "3", b"parked"),
        ("thawbox pool create other --template go", "5", b"golden"),
    ):
        asked = Cli(cli.home, (("_THAWBOX_COMPLETE", "bash_complete"), ("COMP_WORDS", words), ("COMP_CWORD", cword)))
        assert wanted in asked().out
    for shell in ("bash", "zsh", "fish"):
        assert b"_THAWBOX_COMPLETE" in cli("completion", shell).out
