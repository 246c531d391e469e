"""The two processes of the cluster layer, run until a signal ends them: dispatcher and node agent."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from thawbox.cluster.agent import Agent, AgentOptions, find_pid
from thawbox.cluster.dispatcher import Options, dispatching
from thawbox.cluster.kube import connected
from thawbox.cluster.nodes import Nodes
from thawbox.errors import InvalidRequest, Unavailable


@dataclass(frozen=True, slots=True)
class Where:
    """Which API server and namespace."""

    namespace: str = "thawbox"
    server: str = ""
    kubeconfig: str = ""


def read_token(path: str) -> str:
    """The token in a file; empty without one. Raises InvalidRequest for an empty file."""
    if not path:
        return ""
    try:
        token = Path(path).read_text().strip()
    except OSError as error:
        raise InvalidRequest(f"the token file {path} cannot be read: {error.strerror}") from error
    if not token:
        raise InvalidRequest(f"the token file {path} is empty", remediation="put one token into it")
    return token


async def dispatch(
    where: Where, options: Options, *, listen: tuple[str, int], token: str, node_token: str, node_ca: str,
    reconcile: bool, ready: Callable[[str], None],
) -> None:  # fmt: skip
    """Dispatch, and answer `/v1/claims` on `listen` (port 0: any), until SIGTERM or SIGINT."""
    import uvicorn

    from thawbox.cluster.claims_app import create_app
    from thawbox.cluster.reconcile import reconciling

    no_kopf = contextlib.nullcontext()
    with socket.create_server(listen, backlog=512) as listening:
        async with (
            connected(namespace=where.namespace, server=where.server, kubeconfig=where.kubeconfig) as kube,
            Nodes(token=node_token, ca=node_ca) as nodes, dispatching(kube, nodes, options) as dispatcher,
            reconciling(dispatcher, server=where.server, now=time.time) if reconcile else no_kopf,
        ):  # fmt: skip
            app = create_app(dispatcher, token=token)
            server = uvicorn.Server(uvicorn.Config(
                    app, lifespan="off", log_level="warning", access_log=False, timeout_graceful_shutdown=5,
                ))  # fmt: skip
            host, port = listening.getsockname()[:2]
            ready(f"http://{host}:{port}")
            await server.serve(sockets=[listening])


async def tend(where: Where, options: AgentOptions, *, token: str, ready: Callable[[], None]) -> None:
    """Run a node's agent until SIGTERM or SIGINT; then the node counts as there for a while, for the next one."""
    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    async with (
        connected(namespace=where.namespace, server=where.server, kubeconfig=where.kubeconfig) as kube,
        Nodes(token=token) as nodes,
    ):
        machine = await _machine(nodes, options.own)
        agent = Agent(kube, nodes, replace(options, machine=machine), pid_of=find_pid)
        running = asyncio.create_task(agent.run())
        waiting = asyncio.create_task(ending.wait())
        ready()
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await agent.hand_over()


async def _machine(nodes: Nodes, own: str) -> str:
    """The facts of this machine, as its service tells them, once it answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return msgspec.json.encode(await nodes.machine(own), order="sorted").decode()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)
