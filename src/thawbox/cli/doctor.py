"""`thawbox doctor`: can this machine do the main job? Found out by doing it."""

from __future__ import annotations

import subprocess
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from thawbox.cli import exit_status
from thawbox.cli.output import human_ms, json_option, print_json
from thawbox.errors import ThawboxError

if TYPE_CHECKING:
    from thawbox.config import Settings
    from thawbox.host.probe import Check
    from thawbox.sandbox import Sandbox

_WHY = "the main job: a program goes on after it was frozen, killed and restored"
_WHY_SHARED = "clones that share memory are made many times faster; without, each reads it from the files"
_BUILD_OURS = "build criu with our patches: `make setup`, with THAWBOX_CRIU unset"
_PROGRAM = "nonce=$(cat /proc/sys/kernel/random/uuid); i=0; while :; do i=$((i+1)); echo $nonce $i; sleep 0.02; done"
_PATIENCE = 20.0
"""Seconds for a shell to print a line; more than any machine that is not stuck needs."""


@click.command("doctor", short_help="Find out whether this machine can do all that thawbox needs.")
@json_option
def doctor_command(as_json: bool) -> int:
    """Check every kernel feature, tool, permission, the disk and the clock, and freeze and restore a tiny program.

    Everything is found out by doing it, in a directory of its own that is removed. For what is not as it should be:
    why it matters, and what to do. The exit status says whether the main job can run here; warnings do not count.

    With --json: {"ok", "checks": [{"name", "state" (ok, warn or fail), "detail", "remedy", "why"}]}.
    """
    from thawbox.config import load_settings
    from thawbox.host.probe import State, can_run

    checks = examine(load_settings())
    if as_json:
        shown = [{**asdict(check), "state": check.state.value} for check in checks]
        print_json({"ok": can_run(checks), "checks": shown})
    else:
        colours = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}
        for check in checks:
            state = click.style(f"{check.state.value:4}", fg=colours[check.state])
            click.echo(f"{state}  {check.name:20} {check.detail}")
            if check.state is not State.OK:
                click.echo(f"      {'':20} why it matters: {check.why}")
                click.echo(f"      {'':20} what to do: {check.remedy}")
        click.echo("The main job can run here." if can_run(checks) else "The main job cannot run here.")
    return 0 if can_run(checks) else exit_status.UNFIT


def examine(settings: Settings) -> tuple[Check, ...]:
    """Every check of the host, and at last the main job itself, tried only where nothing it needs has failed."""
    from thawbox.host.probe import Check, Ground, State, can_run, probe_host
    from thawbox.node import cache_directory, locate_programs

    programs = locate_programs(settings)
    run_directory = cache_directory(settings.home)
    ground = Ground(settings.home, programs.criu, programs.init, programs.launcher, run_directory)
    checks = probe_host(ground)
    name = "freeze and restore"
    if not can_run(checks):
        failed = next(check.name for check in checks if check.state is State.FAIL)
        detail, remedy = f"not tried, because of {failed}", "mend what failed above"
        return (*checks, Check(name, State.FAIL, detail, remedy, _WHY))
    try:
        detail, shares = _main_job(settings)
    except ThawboxError as error:
        remedy = error.remediation or "see docs/errors.md"
        return (*checks, Check(name, State.FAIL, f"{error.cause} {error.log}".strip(), remedy, _WHY))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return (*checks, Check(name, State.FAIL, str(error), "a defect of thawbox: report it", _WHY))
    if shares:
        shared = Check("shared clones", State.OK, "a clone took its memory from a template", "", _WHY_SHARED)
    else:
        shared = Check("shared clones", State.WARN, "this criu has no template servers", _BUILD_OURS, _WHY_SHARED)
    return (*checks, Check(name, State.OK, detail, "", _WHY), shared)


def _main_job(settings: Settings) -> tuple[str, bool]:
    """Run, checkpoint, kill, restore a program that made a nonce in memory; it must go on with it.

    What is to be said of it, and whether a clone of it shares its memory.
    """
    from thawbox.cli.scratch import scratch_node
    from thawbox.errors import RestoreFailed
    from thawbox.model import Spec

    with scratch_node(settings) as node:
        spec = Spec(("/bin/sh", "-c", _PROGRAM), name="doctor", ready="log: 2\n", ready_timeout=_PATIENCE)
        sandbox = node.run(spec)
        snapshot = sandbox.checkpoint()
        sandbox.stop(timeout=0)
        nonce, count = _last_line(sandbox)
        restored, times = snapshot.restore()
        deadline = time.monotonic() + _PATIENCE
        while (now := _last_line(restored))[1] <= count and now[0] == nonce:
            if time.monotonic() > deadline:
                raise RestoreFailed("the restored program prints nothing", remediation="report it with `doctor --json`")
            time.sleep(0.01)  # nothing to wait on: the log is a file
        if now[0] != nonce:
            raise RestoreFailed("the restored program began anew", remediation="report it with `doctor --json`")
        shares = snapshot.warm(shells=0)
        if shares:
            snapshot.clone().remove(force=True)
        report = snapshot.report
        frozen = human_ms(report.frozen_ms) if report is not None else "?"
    detail = f"frozen for {frozen}, restored in {human_ms(times.ready_ms)}, and went on with what it had in memory"
    return detail, shares


def _last_line(sandbox: Sandbox) -> tuple[str, int]:
    """The nonce and the number in the last whole line that the program printed."""
    printed = b"".join(record.content for record in sandbox.logs()).decode()
    nonce, _, count = printed[: printed.rindex("\n")].rpartition("\n")[2].partition(" ")
    return nonce, int(count)
