"""A whole cluster: dispatcher, nodes and agents are processes, clones are real; only the API server is simulated.
The dispatcher asks the nodes over TLS, with the one token that all of them were given.

The cluster is made once; whatever a test did to it, the next one has two nodes, a pool that is full, and no claims.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_home import Cluster, Secrets, a_cluster
from guests import interpreter_spec
from thawbox.cluster.state import is_there, pool_of
from thawbox.config import load_settings
from thawbox.node import Node

pytestmark = pytest.mark.timeout(600)

WORKLOADS = Path(__file__).parents[1] / "workloads"
PORT = 8000
NAMES = ("n1", "n2")
CLAIM: dict[str, Any] = {"pool": "tiny", "timeout": 120}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c")


@pytest.fixture(scope="module")
def cluster(scratch: Path, rootfs_cache: Path) -> Iterator[Cluster]:
    with a_cluster(scratch, rootfs_cache, Secrets.made(scratch)) as made:
        yield made
        for node in list(made.nodes.values()):
            for one in reversed(node.processes):
                one.kill()
    for home in sorted(scratch.glob("n*")):
        if (home / "journal.db").exists():
            with Node(load_settings(home=home)) as last:
                for sandbox in last.sandboxes():
                    sandbox.remove(force=True)
                last.tidy()


@pytest.fixture(scope="module")
def pooled(cluster: Cluster, scratch: Path) -> dict[str, Any]:
    """Two nodes, a dispatcher, and a pool of clones of a template."""
    store = scratch / "store"
    store.mkdir()
    for name in NAMES:
        cluster.add_node(name)
    dispatcher = cluster.dispatcher()
    mounts = [{"source": str(WORKLOADS), "target": "/workloads", "read_only": True}]
    spec = {"command": ["python3", "/workloads/tiny.py"], "mounts": mounts, "ready": f"tcp:{PORT}"}
    cluster.apply("templates", "tiny", {"sandbox": spec, "store": f"file://{store}", "captureSeconds": 120})
    cluster.apply("pools", "tiny", {"template": "tiny", "low": 4, "high": 6, "limit": 12})
    return {"dispatcher": dispatcher}


@pytest.fixture
def two_nodes(cluster: Cluster, pooled: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Two nodes, the dispatcher, and at least four clones that are parked on both. No claim is left after the test."""
    killed = [name for name in NAMES if name not in cluster.nodes]
    for name in killed:
        cluster.add_node(name)
    for pod in parked(cluster) if killed else []:  # nobody moves what is parked to a node that comes back
        cluster.delete("pods", pod["metadata"]["name"])
    cluster.until(lambda: len(parked(cluster)) >= 4 and parked_nodes(cluster) == set(NAMES), "clones on both nodes")
    yield pooled
    for claim in cluster.objects("claims"):
        cluster.delete("claims", claim["metadata"]["name"])
    cluster.until(lambda: not any(is_there(one) for one in in_state(cluster, "leased")), "the end of what was leased")


def in_state(cluster: Cluster, state: str) -> list[dict[str, Any]]:
    return [one for one in cluster.objects("pods") if one["metadata"]["labels"]["thawbox.dev/state"] == state]


def parked(cluster: Cluster, pool: str = "tiny") -> list[dict[str, Any]]:
    return [one for one in in_state(cluster, "parked") if is_there(one) and pool_of(one) == pool]


def parked_nodes(cluster: Cluster, pool: str = "tiny") -> set[str]:
    return {one["spec"]["nodeName"] for one in parked(cluster, pool)}


def ask(url: str, path: str, body: dict[str, Any] | None = None, method: str = "") -> dict[str, Any]:
    given = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url + path, given, {"Content-Type": "application/json"}, method=method or None)
    with urllib.request.urlopen(request, timeout=150) as answer:
        found: dict[str, Any] = json.loads(answer.read() or b"{}")
    return found


def told_by(cluster: Cluster, claim: dict[str, Any], word: str = "") -> list[str]:
    """What the program in a claim's clone says over its socket to this word, asked from inside the pod's network."""
    pod = cluster.get("pods", claim["pod"])
    asked = (
        f"import socket; s = socket.create_connection(('127.0.0.1', {PORT}), 60); s.sendall({word.encode()!r}); "
        "s.shutdown(socket.SHUT_WR); print(s.recv(200).decode())"
    )
    return cluster.placeholders[pod["metadata"]["uid"]].run("python3", "-c", asked).stdout.split()


def is_ready(pod: dict[str, Any]) -> bool:
    return any(
        one["type"] == "thawbox.dev/acquired" and one["status"] == "True"
        for one in pod.get("status", {}).get("conditions", [])
    )


def test_concurrent_claims_are_bound_to_parked_clones_that_nobody_shares(
    cluster: Cluster, two_nodes: dict[str, Any]
) -> None:
    url = two_nodes["dispatcher"].said["url"]
    created = len(cluster.server.call(lambda storage: storage.creations))
    with ThreadPoolExecutor(4) as threads:
        claims = list(threads.map(lambda _: ask(url, "/v1/claims", CLAIM), range(4)))
    assert {one["state"] for one in claims} == {"bound"}
    assert len({one["pod"] for one in claims}) == len({one["sandbox"]["id"] for one in claims}) == 4
    assert {one["node"] for one in claims} == set(NAMES)  # spread
    told = [told_by(cluster, one) for one in claims]
    assert len({nonce for nonce, _, _ in told}) == 1  # each goes on with the golden memory: none was started
    assert len({machine for _, _, machine in told}) == 4
    cluster.until(lambda: all(is_ready(cluster.get("pods", one["pod"])) for one in claims), "readiness of leased pods")
    began = cluster.server.call(lambda storage: storage.creations)[created:]
    bound = {one["pod"] for one in claims}
    assert not bound & {name for _, name in began}  # no pod was created for them
    for one in claims:
        ask(url, f"/v1/claims/{one['id']}", method="DELETE")
    cluster.until(lambda: not [one for one in cluster.objects("pods") if one["metadata"]["name"] in bound],
                  "the end of the released pods")  # fmt: skip


def test_a_restarted_dispatcher_has_lost_nothing_and_serves_who_came_meanwhile(
    cluster: Cluster, two_nodes: dict[str, Any]
) -> None:
    url = two_nodes["dispatcher"].said["url"]
    kept = ask(url, "/v1/claims", CLAIM)
    nonce = told_by(cluster, kept)
    two_nodes["dispatcher"].kill()
    cluster.apply("claims", "meanwhile", CLAIM)
    two_nodes["dispatcher"] = cluster.dispatcher()
    url = two_nodes["dispatcher"].said["url"]
    cluster.until(lambda: cluster.get("claims", "meanwhile").get("status", {}).get("phase") == "Bound",
                  "the claim that came while no dispatcher ran")  # fmt: skip
    again = ask(url, f"/v1/claims/{kept['id']}")
    assert (again["pod"], again["sandbox"], again["state"]) == (kept["pod"], kept["sandbox"], "bound")
    assert told_by(cluster, again) == nonce
    for name in (kept["id"], "meanwhile"):
        ask(url, f"/v1/claims/{name}", method="DELETE")


def test_a_dispatcher_with_another_token_is_told_so_and_destroys_nothing(
    cluster: Cluster, two_nodes: dict[str, Any], tmp_path: Path
) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("f" * 64)
    two_nodes["dispatcher"].kill()
    stranger = cluster.dispatcher("--node-token-file", str(wrong))
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(stranger.said["url"], "/v1/claims", CLAIM)
    told = json.loads(refused.value.read())
    assert (refused.value.code, told["code"]) == (503, "unavailable.node_refused")
    assert "does not take our token" in told["cause"]
    assert in_state(cluster, "broken") == in_state(cluster, "leased") == []
    stranger.kill()
    two_nodes["dispatcher"] = cluster.dispatcher()
    assert ask(two_nodes["dispatcher"].said["url"], "/v1/claims", CLAIM)["state"] == "bound"


def test_a_killed_nodes_claim_comes_back_on_the_other_as_itself(cluster: Cluster, two_nodes: dict[str, Any]) -> None:
    url = two_nodes["dispatcher"].said["url"]
    claim = ask(url, "/v1/claims", {**CLAIM, "checkpoint_every": 3600})
    before = told_by(cluster, claim)
    cluster.until(lambda: cluster.get("claims", claim["id"])["status"].get("snapshot"), "a replicated snapshot")
    other = (set(NAMES) - {claim["node"]}).pop()
    cluster.until(lambda: other in parked_nodes(cluster), "a clone parked on the other node")
    unreplicated = ask(url, "/v1/claims", CLAIM)
    cluster.kill_node(claim["node"])
    cluster.until(lambda: cluster.get("claims", claim["id"])["status"].get("recoveries") == 1, "the recovery")
    after = ask(url, f"/v1/claims/{claim['id']}")
    assert (after["state"], after["node"], after["sandbox"]) == ("bound", other, claim["sandbox"])
    assert told_by(cluster, after) == before  # nonce, host name, machine id
    if unreplicated["node"] == claim["node"]:
        lost = cluster.until(lambda: cluster.get("claims", unreplicated["id"])["status"]["phase"] == "Lost", "the loss")
        assert lost
    cluster.until(lambda: parked_nodes(cluster) == {other}, "the pool parked anew on what is left")


def test_a_claim_whose_pod_is_deleted_comes_back_as_itself(cluster: Cluster, two_nodes: dict[str, Any]) -> None:
    url = two_nodes["dispatcher"].said["url"]
    claim = ask(url, "/v1/claims", {**CLAIM, "checkpoint_every": 3600})
    before = told_by(cluster, claim)
    cluster.until(lambda: cluster.get("claims", claim["id"])["status"].get("snapshot"), "a replicated snapshot")
    for pod in parked(cluster):  # so that it comes back on the very node that had it
        if pod["spec"]["nodeName"] != claim["node"]:
            cluster.delete("pods", pod["metadata"]["name"])
    cluster.delete("pods", claim["pod"])
    cluster.until(lambda: cluster.get("claims", claim["id"])["status"].get("recoveries") == 1, "the recovery")
    after = ask(url, f"/v1/claims/{claim['id']}")
    assert (after["state"], after["sandbox"]) == ("bound", claim["sandbox"])
    assert after["pod"] != claim["pod"]
    assert told_by(cluster, after) == before


def test_a_claim_of_a_node_whose_agent_alone_died_comes_back_on_the_other_and_runs_nowhere_else(
    cluster: Cluster, two_nodes: dict[str, Any]
) -> None:
    url = two_nodes["dispatcher"].said["url"]
    claim = ask(url, "/v1/claims", {**CLAIM, "checkpoint_every": 3600})
    before, pod = told_by(cluster, claim), cluster.get("pods", claim["pod"])["metadata"]["uid"]
    cluster.until(lambda: cluster.get("claims", claim["id"])["status"].get("snapshot"), "a replicated snapshot")
    other = (set(NAMES) - {claim["node"]}).pop()
    cluster.until(lambda: other in parked_nodes(cluster), "a clone parked on the other node")
    node = cluster.nodes[claim["node"]]
    node.processes.pop().kill()
    try:
        cluster.until(lambda: cluster.get("claims", claim["id"])["status"].get("recoveries") == 1, "the recovery")
        assert pod not in cluster.placeholders
        after = ask(url, f"/v1/claims/{claim['id']}")
        assert (after["state"], after["node"], after["sandbox"]) == ("bound", other, claim["sandbox"])
        assert told_by(cluster, after) == before
    finally:
        node.processes.append(cluster.agent(node))


def test_a_claims_environment_is_given_to_its_clone_and_again_after_its_node_was_killed(
    cluster: Cluster, two_nodes: dict[str, Any], scratch: Path
) -> None:
    url = two_nodes["dispatcher"].said["url"]
    spec = msgspec.to_builtins(interpreter_spec("guest.when_given(lambda event: events.append(event.what))"))
    cluster.apply("templates", "told", {"sandbox": spec, "store": f"file://{scratch / 'store'}", "captureSeconds": 120})
    cluster.apply("pools", "told", {"template": "told", "low": 2, "high": 2, "limit": 4})
    wish = {**CLAIM, "pool": "told", "environment": {"WHO": "me"}, "checkpoint_every": 3600}
    claim = ask(url, "/v1/claims", wish)
    seen = "answer = [os.environ['WHO'], *events]"
    assert told_by(cluster, claim, seen) == ['{"answer":', '["me",', '"given"]}']
    cluster.until(lambda: cluster.get("claims", claim["id"])["status"].get("snapshot"), "a replicated snapshot")
    assert told_by(cluster, claim, seen) == ['{"answer":', '["me",', '"given"]}']
    other = (set(NAMES) - {claim["node"]}).pop()
    cluster.until(lambda: other in parked_nodes(cluster, "told"), "a clone parked on the other node")
    cluster.kill_node(claim["node"])
    cluster.until(lambda: cluster.get("claims", claim["id"])["status"].get("recoveries") == 1, "the recovery")
    after = ask(url, f"/v1/claims/{claim['id']}")
    assert told_by(cluster, after, seen) == ['{"answer":', '["me",', '"given",', '"given"]}']
    for plural in ("pools", "templates"):
        cluster.delete(plural, "told")
