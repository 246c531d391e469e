"""The options that say what to run and within which limits: the same for `run` and `template create`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from thawbox.model import Spec

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--rootfs",
        metavar="SYSTEM|DIR|OCI",
        help="What it sees as /: SYSTEM (default: the host's /usr, read-only, under a private writable layer), "
        "a directory, or an OCI layout or image archive (PATH[:TAG]).",
    ),
    click.option("--memory", metavar="SIZE", help="Memory limit: 512M, 2G. Default: none."),
    click.option("--cpus", type=float, metavar="N", help="CPU limit in cores: 1.5. Default: none."),
    click.option("--pids", type=int, metavar="N", help="Limit of processes and threads. Default: 4096."),
    click.option(
        "-e",
        "--env",
        "env",
        multiple=True,
        metavar="KEY[=VALUE]",
        help="Environment entry; KEY alone takes its value from here. Repeatable.",
    ),
    click.option("--env-file", multiple=True, metavar="FILE", help="File of such entries, one a line. Repeatable."),
    click.option(
        "-u", "--user", metavar="USER[:GROUP]", help="Who runs the program. Default: root (without its powers)."
    ),
    click.option("-w", "--workdir", metavar="DIR", help="Directory it starts in. Default: /."),
    click.option(
        "--mount",
        "mounts",
        multiple=True,
        metavar="SRC:DST[:ro]",
        help="Show a file or directory of the host inside. Repeatable.",
    ),
    click.option(
        "--net",
        type=click.Choice(["none", "nat"]),
        help="Network: none (default: loopback alone) or nat (outside by address translation).",
    ),
    click.option(
        "-p",
        "--publish",
        multiple=True,
        metavar="[[ADDR:]HOST:]PORT",
        help="Forward a port of the host (on 127.0.0.1 unless ADDR is given) to one inside. "
        "Needs --net nat. Repeatable.",
    ),
    click.option(
        "--read-only", is_flag=True, default=None, help="No writable layer for the program but /dev/shm and mounts."
    ),
    click.option(
        "--ready",
        metavar="PROBE",
        help="Wait until it is ready: cmd:COMMAND, http://HOST:PORT/PATH, tcp:PORT, log:TEXT or guest.",
    ),
    click.option("--ready-timeout", metavar="SPAN", help="How long to wait for that. Default: 60s."),
    click.option(
        "--hooks",
        metavar="WHO",
        help="Who is told of checkpoints and restores: auto (default: programs that import thawbox.guest), guest, "
        "http://127.0.0.1:PORT, cmd:COMMAND or none.",
    ),
    click.option("--hook-timeout", metavar="SPAN", help="How long each of them may take. Default: 30s."),
    click.option(
        "--restart",
        type=click.Choice(["no", "on-failure", "always"]),
        help="Which ends of it `thawbox serve` answers with a restore. Default: no.",
    ),
    click.option(
        "--health",
        metavar="PROBE",
        help="Asked again and again; refusals mean that it hangs: cmd:…, http://… or tcp:PORT.",
    ),
    click.option("--health-interval", metavar="SPAN", help="Between two askings. Default: 10s."),
    click.option("--health-timeout", metavar="SPAN", help="How long each may take. Default: 5s."),
    click.option("--health-threshold", type=int, metavar="N", help="Refusals in a row that mean a hang. Default: 3."),
    click.option(
        "--checkpoint-every", metavar="SPAN", help="How often `thawbox serve` checkpoints it. Default: never."
    ),
    click.option(
        "--checkpoint-on-pressure", is_flag=True, default=None, help="Also when it comes near its memory limit."
    ),
    click.option("--checkpoint-on-drain", is_flag=True, default=None, help="Also when `thawbox serve` stops."),
    click.option("--keep", type=int, metavar="N", help="How many of those snapshots stay. Default: 3."),
    click.option(
        "--spare", is_flag=True, default=None, help="Hold the newest snapshot's memory ready, for fast recoveries."
    ),
    click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label. Repeatable."),
    click.option(
        "--spec",
        "spec_file",
        metavar="FILE",
        type=click.Path(),
        help="Take the spec from a JSON or TOML file; options given beside it win.",
    ),
)


def spec_options(command: _Decorated) -> _Decorated:
    """Give a command every option of a spec but its name; `spec_of` makes a spec of their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def spec_of(options: dict[str, Any], command: tuple[str, ...], spec_file: str | None) -> Spec:
    """A checked spec from the values of a command's options; raises InvalidSpec."""
    from thawbox.cli import spec_text
    from thawbox.model import Net, Restart

    given = {name: value for name, value in options.items() if value not in (None, ())}
    env, env_files = given.pop("env", ()), given.pop("env_file", ())
    if env or env_files:
        given["env"] = spec_text.read_environment(env, env_files)
    health = spec_text.read_health({name: given.pop(name) for name in tuple(given) if name.startswith("health")})
    if health is not None:
        given["health"] = health
    readers: dict[str, Any] = {
        "memory": spec_text.read_size,
        "ready_timeout": spec_text.read_span,
        "hook_timeout": spec_text.read_span,
        "checkpoint_every": spec_text.read_span,
        "restart": Restart,
        "net": Net,
        "mounts": spec_text.read_mounts,
        "publish": spec_text.read_publishes,
        "labels": spec_text.read_labels,
        "rootfs": _absolute,
    }
    values = {name: readers[name](value) if name in readers else value for name, value in given.items()}
    if command:
        values["command"] = command
    return spec_text.spec_from(values, file=spec_file)


def _absolute(rootfs: str) -> str:
    return rootfs if rootfs == "SYSTEM" or rootfs.startswith("/") else str(Path(rootfs).absolute())
