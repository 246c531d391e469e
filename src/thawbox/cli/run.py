"""`thawbox run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thawbox.cli.names import opened
from thawbox.cli.output import json_option, print_json

if TYPE_CHECKING:
    from thawbox.model import Spec
    from thawbox.sandbox import Sandbox


@click.command("run", context_settings={"allow_interspersed_args": False}, short_help="Start a sandbox.")
@click.option("--name", help="Its name; also its host name. Default: one is made up.")
@click.option(
    "--rootfs",
    metavar="SYSTEM|DIR|OCI",
    help="What it sees as /: SYSTEM (default: the host's /usr, read-only, under a private writable layer), "
    "a directory, or an OCI layout or image archive (PATH[:TAG]).",
)
@click.option("--memory", metavar="SIZE", help="Memory limit: 512M, 2G. Default: none.")
@click.option("--cpus", type=float, metavar="N", help="CPU limit in cores: 1.5. Default: none.")
@click.option("--pids", type=int, metavar="N", help="Limit of processes and threads. Default: 4096.")
@click.option(
    "-e",
    "--env",
    "env",
    multiple=True,
    metavar="KEY[=VALUE]",
    help="Environment entry; KEY alone takes its value from here. Repeatable.",
)
@click.option("--env-file", multiple=True, metavar="FILE", help="File of such entries, one a line. Repeatable.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Who runs the program. Default: root (without its powers).")
@click.option("-w", "--workdir", metavar="DIR", help="Directory it starts in. Default: /.")
@click.option(
    "--mount",
    "mounts",
    multiple=True,
    metavar="SRC:DST[:ro]",
    help="Show a file or directory of the host inside. Repeatable.",
)
@click.option(
    "--net",
    type=click.Choice(["none", "nat"]),
    help="Network: none (default: loopback alone) or nat (outside by address translation).",
)
@click.option(
    "-p",
    "--publish",
    multiple=True,
    metavar="[[ADDR:]HOST:]PORT",
    help="Forward a port of the host (on 127.0.0.1 unless ADDR is given) to one inside. Needs --net nat. Repeatable.",
)
@click.option(
    "--read-only", is_flag=True, default=None, help="No writable layer for the program but /dev/shm and mounts."
)
@click.option(
    "--ready", metavar="PROBE", help="Wait until it is ready: cmd:COMMAND, http://HOST:PORT/PATH, tcp:PORT or log:TEXT."
)
@click.option("--ready-timeout", metavar="SPAN", help="How long to wait for that. Default: 60s.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label. Repeatable.")
@click.option(
    "--spec",
    "spec_file",
    metavar="FILE",
    type=click.Path(),
    help="Take the spec from a JSON or TOML file; options given beside it win.",
)
@click.option("-a", "--attach", is_flag=True, help="Print its output until it ends, and exit with its status.")
@click.option(
    "--rm", "remove", is_flag=True, help="With --attach: remove the sandbox in the end, whatever that end is."
)
@json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND [ARG]...")
def run_command(
    *, spec_file: str | None, attach: bool, remove: bool, as_json: bool, command: tuple[str, ...], **options: Any
) -> int | None:
    """Start COMMAND in a new sandbox and leave it running; print the sandbox's name.

    Returns once the program was started, or, with --ready, once the probe succeeds. If it does not, nothing is left.

    \b
      thawbox run --name web --memory 512M --ready tcp:8000 -- python3 -m http.server
      thawbox run --rm --attach -- sh -c 'echo hello'

    With --json: {"id", "name", "state", "create_ms"}; create_ms is the time until the program was started.
    """
    if remove and not attach:
        raise click.UsageError("--rm needs --attach: a sandbox left running is removed with `thawbox rm`")
    spec = _spec(options, command, spec_file)
    with opened() as node:
        sandbox, create_ms = node.run_timed(spec)
        if attach:
            from thawbox.cli.attach import follow_to_end

            return follow_to_end(node, sandbox, remove=remove)
        if as_json:
            print_json(_answer(sandbox, create_ms))
        else:
            click.echo(sandbox.name)
    return None


def _answer(sandbox: Sandbox, create_ms: float) -> dict[str, object]:
    state = sandbox.state.value
    return {"id": sandbox.id, "name": sandbox.name, "state": state, "create_ms": round(create_ms, 3)}


def _spec(options: dict[str, Any], command: tuple[str, ...], spec_file: str | None) -> Spec:
    from thawbox.cli import spec_text
    from thawbox.model import Net

    given = {name: value for name, value in options.items() if value not in (None, ())}
    env, env_files = given.pop("env", ()), given.pop("env_file", ())
    if env or env_files:
        given["env"] = spec_text.read_environment(env, env_files)
    readers: dict[str, Any] = {
        "memory": spec_text.read_size,
        "ready_timeout": spec_text.read_span,
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
