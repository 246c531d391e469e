"""`thawbox cluster`: the processes of the cluster layer, and the simulation of a whole cluster."""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from thawbox.cli.output import human_duration, human_ms, human_size, json_option, print_json
from thawbox.errors import InvalidRequest, Unsupported


@click.group("cluster", short_help="Kubernetes: dispatcher, node agent, simulation.")
def cluster_command() -> None:
    """Claims on a Kubernetes cluster, bound to clones that wait in placeholder pods.

    docs/kubernetes.md says how it works, `thawbox k8s render` writes the manifests. `dispatch` and `node-agent` need
    the extra `cluster` (pip install 'thawbox[cluster]').
    """


def _where(command: Any) -> Any:
    """The options that name an API server."""
    for option in reversed((
        click.option("--namespace", default="thawbox", show_default=True, help="Where our objects live."),
        click.option("--kubeconfig", default="", metavar="FILE", help="Default: the service account of this pod."),
        click.option("--server", default="", metavar="URL", help="An API server that asks for no credentials (tests)."),
    )):  # fmt: skip
        command = option(command)
    return command


def _need_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("kubernetes", "kopf") if find_spec(name) is None]
    if missing:
        raise Unsupported(
            f"the extra `cluster` is not installed: no {' and no '.join(missing)}",
            remediation="pip install 'thawbox[cluster]'",
        )


@cluster_command.command("dispatch", short_help="Bind claims to parked clones.")
@_where
@click.option("--listen", default="0.0.0.0:8080", show_default=True, metavar="HOST:PORT",
              help="Where /v1/claims is answered; port 0: any.")  # fmt: skip
@click.option("--token-file", default="", metavar="FILE", help="Who asks over HTTP must bring the token in it.")
@click.option("--node-token-file", default="", metavar="FILE", help="The token that opens every node's service.")
@click.option("--node-ca", default="", metavar="FILE",
              help="Who signed the nodes' certificates, for the name thawbox-node (PEM).")  # fmt: skip
@click.option("--identity", default="", help="This dispatcher's name among several; default: the host's.")
@click.option("--image", default="", help="Image of the placeholder pods; default: Kubernetes' own pause.")
@click.option("--lead-seconds", default=15.0, show_default=True, help="How long a dead leader keeps the lead.")
@click.option("--reconcile/--no-reconcile", default=True, show_default=True, help="Also capture golden snapshots.")
@json_option
def dispatch_command(
    *, namespace: str, kubeconfig: str, server: str, listen: str, token_file: str, node_token_file: str, node_ca: str,
    identity: str, image: str, lead_seconds: float, reconcile: bool, as_json: bool,
) -> None:  # fmt: skip
    """Bind every Claim of the namespace to a parked clone, keep pools filled, recover what lost nodes had.

    Any number of dispatchers may run: a claim is bound by one compare-and-swap; one of them leads, which scales and
    recovers. The same claims are answered over HTTP on --listen (docs/kubernetes.md). SIGTERM ends it; the next one
    goes on where it was.

    With --json: {"url"}, once it listens.
    """
    import socket

    _need_extra()
    from thawbox.cluster.backends import PLACEHOLDER_IMAGE
    from thawbox.cluster.dispatcher import Options
    from thawbox.cluster.running import Where, dispatch, read_token

    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdecimal():
        raise InvalidRequest(f"--listen {listen} is not HOST:PORT")
    options = Options(identity or socket.gethostname(), lead_seconds=lead_seconds, image=image or PLACEHOLDER_IMAGE)
    _run(dispatch(
        Where(namespace, server, kubeconfig), options, listen=(host.strip("[]"), int(port)),
        token=read_token(token_file), node_token=read_token(node_token_file), node_ca=node_ca, reconcile=reconcile,
        ready=lambda url: _say({"url": url}, f"answering on {url}", as_json=as_json),
    ))  # fmt: skip


@cluster_command.command("node-agent", short_help="Fill this node's placeholders with clones.")
@_where
@click.option("--node", required=True, help="This node's name in Kubernetes.")
@click.option("--url", required=True, help="Where the dispatcher reaches this node's `thawbox serve`.")
@click.option("--service", default="", metavar="URL", help="Where the agent reaches it; default: its own socket.")
@click.option("--region", default="", help="The node's region, as claims name it.")
@click.option("--node-token-file", default="", metavar="FILE", help="The service's admin token; its socket needs none.")
@click.option("--lease-seconds", default=15.0, show_default=True, help="Silence after which this node counts as lost.")
@click.option("--look-every", default=1.0, show_default=True, help="Seconds between looks at the clones.")
@json_option
def node_agent_command(
    *, namespace: str, kubeconfig: str, server: str, node: str, url: str, service: str, region: str,
    node_token_file: str,
    lease_seconds: float, look_every: float, as_json: bool,
) -> None:  # fmt: skip
    """Restore golden snapshots into the placeholder pods of this node, and keep its lease.

    It needs the host's /proc (hostPID) and a `thawbox serve` beside it, which freezes what is leased before a lease
    that was not renewed runs out: no claim ever runs twice. SIGTERM leaves a lease of two minutes to the agent that
    comes next.

    With --json: {"node"}, once it tends.
    """
    _need_extra()
    from thawbox.cluster.agent import AgentOptions
    from thawbox.cluster.running import Where, read_token, tend
    from thawbox.config import load_settings

    own = service or f"unix://{load_settings().home / 'serve.sock'}"
    options = AgentOptions(node, url, own, region, lease_seconds=lease_seconds, look_every=look_every)
    _run(tend(
        Where(namespace, server, kubeconfig), options, token=read_token(node_token_file),
        ready=lambda: _say({"node": node}, f"tending {node}", as_json=as_json),
    ))  # fmt: skip


@cluster_command.command("simulate", short_help="Ten thousand nodes and a million claims, on this machine.")
@click.option(
    "--trace", "trace_file", default=None, type=click.Path(path_type=Path), help="A trace as JSON (docs/scale.md)."
)
@click.option("--nodes", default=None, type=int, help="Instead of the trace's.")
@click.option("--claims", default=None, type=int, help="Instead of the trace's.")
@click.option("--seed", default=None, type=int, help="Instead of the trace's.")
@click.option(
    "--plot", default=None, type=click.Path(path_type=Path), metavar="FILE", help="Also draw it (.svg, .png)."
)
@json_option
def simulate_command(
    *,
    trace_file: Path | None,
    nodes: int | None,
    claims: int | None,
    seed: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Play a trace against a simulated cluster, with the placement and the pool plans that `dispatch` uses.

    Equal traces have equal outcomes. The default one has 10,000 nodes in five regions, a million claims in an hour,
    bursts, lost nodes and a lost region. What costs what is assumed: docs/scale.md.

    With --json: {"claims", "bound", "warm", "warm_ratio", "refused", "lost", "recovered", "latency_ms", "recovery_ms",
    "writes_per_second", "most_parked", "most_leased", "parked_bytes", "seconds", "decisions", "decision_us",
    "rss_bytes"}.
    """
    from dataclasses import replace

    from thawbox.cluster.simulate import Simulation
    from thawbox.cluster.trace import Trace, check_trace, read_trace

    trace = read_trace(trace_file) if trace_file else Trace()
    given = {"nodes": nodes, "claims": claims, "seed": seed}
    trace = check_trace(replace(trace, **{name: value for name, value in given.items() if value is not None}))  # type: ignore[arg-type]
    result = Simulation(trace).run()
    if plot is not None:
        from thawbox.cluster.plots import draw

        draw(result, trace, plot)
    if as_json:
        print_json(result.as_json())
        return
    told = result.as_json()
    click.echo(
        f"{trace.claims} claims on {trace.nodes} nodes in {human_duration(trace.seconds)}: {told['seconds']:.1f} s"
    )
    click.echo(f"bound {result.bound}, warm {100 * result.warm_ratio:.2f} %, refused {told['refused']}")
    latencies = ", ".join(f"{name} {human_ms(value)}" for name, value in result.latency_ms.items())
    click.echo(f"until the clone runs: {latencies}")
    click.echo(f"lost {result.lost}, recovered {result.recovered}, until they ran again: "
               + ", ".join(f"{name} {human_ms(value)}" for name, value in result.recovery_ms.items()))  # fmt: skip
    click.echo(f"parked at most {result.most_parked} ({human_size(result.parked_bytes)}), leased {result.most_leased}, "
               f"API writes per second {told['writes_per_second']}")  # fmt: skip


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run it, its logs on stderr; of errors that ended several tasks at once the first is told."""
    import asyncio
    import logging

    from thawbox.api.logs import set_up_logs
    from thawbox.config import load_settings

    settings = load_settings()
    set_up_logs(level=settings.log_level, as_json=settings.log_format == "json")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would tell each look at the node
    try:
        asyncio.run(work)
    except BaseExceptionGroup as several:
        raise _first(several) from several


def _first(error: BaseException) -> BaseException:
    inside: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return _first(inside[0]) if inside else error


def _say(answer: dict[str, object], words: str, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        click.echo(words)
    sys.stdout.flush()
