"""What `thawbox k8s render` writes: valid, complete, least privileged, and what is committed."""

from __future__ import annotations

import shutil
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from kube.schema import admit
from thawbox.cli.app import thawbox
from thawbox.cluster.backends import pod_frame
from thawbox.cluster.crds import crds
from thawbox.cluster.manifests.render import render, write
from thawbox.cluster.manifests.settings import DeploySettings, read_settings, settings_page
from thawbox.errors import InvalidRequest

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = "1.32"
OVERLAYS = ("gke", "generic", "kind")
Json = dict[str, Any]
NOT_KUBERNETES = {"Kustomization", "Cluster", "JoinConfiguration", "KubeletConfiguration"}
GKE_KINDS = Path(__file__).parents[1] / "kube" / "podsnapshot-crds.yaml"


def documents() -> list[tuple[str, Json]]:
    found: list[tuple[str, Json]] = []
    for name, text in sorted(render(DeploySettings()).items()):
        if name.endswith(".yaml") and name != "settings.yaml":
            found += [(name, one) for one in yaml.safe_load_all(text)]
    return found


DOCUMENTS = documents()
SCHEMAS = {
    (one["spec"]["group"], one["spec"]["names"]["kind"]): one["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for one in (*crds(), *yaml.safe_load_all(GKE_KINDS.read_text()))
}


def objects(kind: str) -> list[Json]:
    return [one for _, one in DOCUMENTS if one["kind"] == kind]


def test_what_is_committed_is_what_is_rendered_from_the_committed_settings() -> None:
    rendered = render(read_settings(DEPLOY / "settings.yaml"))
    folders = {name.partition("/")[0] for name in rendered}
    there = {
        str(path.relative_to(DEPLOY)): path.read_text()
        for path in DEPLOY.rglob("*") if path.is_file() and path.relative_to(DEPLOY).parts[0] in folders
    }  # fmt: skip
    assert there == rendered


@pytest.mark.parametrize(
    ("where", "found"),
    DOCUMENTS,
    ids=[f"{name}:{one['kind']}:{number}" for number, (name, one) in enumerate(DOCUMENTS)],
)
def test_every_object_is_valid_by_its_schema(where: str, found: Json) -> None:
    if found["kind"] in NOT_KUBERNETES:
        return
    group = found["apiVersion"].rpartition("/")[0]
    if (group, found["kind"]) in SCHEMAS:
        kept, problems = admit(SCHEMAS[group, found["kind"]], found, None)
        assert not problems
        assert kept["spec"].keys() >= found["spec"].keys()  # nothing that the schema does not know
    else:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)


def test_a_wrong_object_would_be_refused() -> None:
    deployment = objects("Deployment")[0]
    wrong = {**deployment, "spec": {**deployment["spec"], "replicaz": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_builds_and_holds_the_whole_base(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on this machine: kustomizations cannot be built")
    built = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    kinds = {(one["kind"], one["metadata"]["name"]) for one in yaml.safe_load_all(built.stdout)}
    base = {(one["kind"], one["metadata"]["name"]) for name, one in DOCUMENTS
            if name.startswith("base/") and one["kind"] != "Kustomization"}  # fmt: skip
    assert base <= kinds
    assert ("Deployment", "golden-agent") in kinds


def test_every_kustomization_names_files_that_there_are() -> None:
    files = render(DeploySettings())
    for name, one in DOCUMENTS:
        if one["kind"] == "Kustomization":
            for resource in one["resources"]:
                where = Path(name).parent / resource
                assert str(where) in files or resource == "../../base"


def test_only_the_nodes_own_pods_are_privileged_and_no_role_reaches_further_than_it_must() -> None:
    for kind in ("Deployment", "DaemonSet"):
        for found in objects(kind):
            pod = found["spec"]["template"]["spec"]
            containers = [*pod["containers"], *pod.get("initContainers", [])]
            privileged = [one for one in containers if one.get("securityContext", {}).get("privileged")]
            assert not privileged or found["metadata"]["name"] in ("thawbox-node", "thawbox-bootstrap")
    assert not objects("ClusterRole")
    assert not objects("ClusterRoleBinding")
    for role in objects("Role"):
        for rule in role["rules"]:
            assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
            assert "secrets" not in rule["resources"]
    node = next(one for one in objects("Role") if one["metadata"]["name"] == "thawbox-node")
    allowed = {(name, verb) for rule in node["rules"] for name in rule["resources"] for verb in rule["verbs"]}
    assert not allowed & {("pods", "create"), ("pods", "delete"), ("claims", "patch"), ("claims", "create")}


def commands() -> list[list[str]]:
    """What the containers of our own image are started with."""
    found: list[list[str]] = []
    for kind in ("Deployment", "DaemonSet"):
        for one in objects(kind):
            pod = one["spec"]["template"]["spec"]
            found += [each["command"] for each in pod["containers"] if each.get("command", [""])[0] == "thawbox"]
    return found


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command[1:3]))
def test_every_command_and_option_that_is_rendered_is_one_of_ours(command: list[str]) -> None:
    found: click.Command | None = thawbox
    context, rest = click.Context(thawbox), command[1:]
    while isinstance(found, click.Group):
        found, rest = found.get_command(context, rest[0]), rest[1:]
    assert found is not None
    assert found.make_context(command[1], rest).args == []


def test_the_dispatcher_shows_what_the_nodes_were_given_and_has_no_key_of_theirs() -> None:
    dispatcher = next(one for one in objects("Deployment") if one["metadata"]["name"] == "thawbox-dispatcher")
    node = next(one for one in objects("DaemonSet") if one["metadata"]["name"] == "thawbox-node")
    pods = [one["spec"]["template"]["spec"] for one in (dispatcher, node)]
    dispatch, serve, agent = (one for pod in pods for one in pod["containers"])

    def secret(pod: Json, container: Json, option: str) -> tuple[str, str]:
        """The secret and its key whose file an option names."""
        path = Path(container["command"][container["command"].index(option) + 1])
        name = next(one["name"] for one in container["volumeMounts"] if Path(one["mountPath"]) == path.parent)
        return next(one["secret"]["secretName"] for one in pod["volumes"] if one["name"] == name), path.name

    shown, taken = secret(pods[0], dispatch, "--node-token-file"), secret(pods[1], serve, "--token-file")
    assert shown == taken == ("thawbox-node-token", "token")
    trusted, answered = secret(pods[0], dispatch, "--node-ca"), secret(pods[1], serve, "--tls-cert")
    assert trusted == answered == ("thawbox-node-tls", "tls.crt")
    visible = next(one["secret"] for one in pods[0]["volumes"] if one["name"] == "node-tls")
    assert [one["key"] for one in visible["items"]] == ["tls.crt"]
    url = agent["command"][agent["command"].index("--url") + 1]
    assert (url.partition(":")[0], serve["readinessProbe"]["httpGet"]["scheme"]) == ("https", "HTTPS")
    assert not {"node-token", "node-tls"} & {one["name"] for one in agent["volumeMounts"]}
    assert "add" not in agent["securityContext"]["capabilities"]


def test_clones_reach_the_outside_and_the_names_and_no_address_of_the_cluster() -> None:
    policy = next(one for one in objects("NetworkPolicy") if one["metadata"]["name"] == "thawbox-clones")["spec"]
    assert "Egress" in policy["policyTypes"]
    world, names = policy["egress"]
    (block,) = (one["ipBlock"] for one in world["to"])
    barred = [ip_network(one) for one in block["except"]]
    inside = ("10.96.0.1", "10.128.0.7", "172.18.0.2", "192.168.1.1", "169.254.169.254", "100.64.3.4")
    assert [one for one in inside if not any(ip_address(one) in each for each in barred)] == []
    assert not any(ip_address(one) in each for one in ("8.8.8.8", "151.101.1.1") for each in barred)
    assert {(one["port"], one["protocol"]) for one in names["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert all("podSelector" in one for one in names["to"])


def test_the_base_can_be_applied_before_our_kinds_are_there() -> None:
    ours = {one["spec"]["names"]["kind"] for one in crds()}
    assert [one["kind"] for name, one in DOCUMENTS if name.startswith("base/") and one["kind"] in ours] == []
    assert {one["kind"] for name, one in DOCUMENTS if name.startswith("overlays/generic/")} >= {"Template", "Pool"}


def test_a_node_has_one_region_in_its_labels_and_in_its_agent() -> None:
    settings = DeploySettings(region="here")
    files = render(settings)
    labels = yaml.safe_load(files["overlays/kind/cluster.yaml"])["nodes"][1]["labels"]
    agent = next(
        one for one in yaml.safe_load_all(files["base/node.yaml"]) if one["metadata"]["name"] == "thawbox-node"
    )
    command = agent["spec"]["template"]["spec"]["containers"][1]["command"]
    assert labels["topology.kubernetes.io/region"] == command[command.index("--region") + 1] == "here"


def test_the_golden_pod_is_annotated_and_ready_only_when_it_may_be_checkpointed() -> None:
    for deployment in (one for one in objects("Deployment") if one["metadata"]["name"] == "golden-agent"):
        pod = deployment["spec"]["template"]
        assert pod["metadata"]["annotations"]["gke.io/pod-checkpointing"]
        assert pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/internal/checkpoint-ready"


def selects(selector: Json, labels: Json) -> bool:
    """Whether a label selector takes these labels."""
    taken = all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
    wanted = {"Exists": True, "DoesNotExist": False}
    rules = selector.get("matchExpressions", [])
    return taken and all((one["key"] in labels) == wanted[one["operator"]] for one in rules)


GKE_TEMPLATE = next(one for one in objects("Template") if one["spec"]["backend"] == "gke")
CLONE = pod_frame(objects("Pool")[0] | {"metadata": {"name": "golden-agent", "uid": "u"}}, GKE_TEMPLATE, {})
CLONE_LABELS = {**GKE_TEMPLATE["spec"]["pod"]["metadata"]["labels"], **CLONE["metadata"]["labels"]}
GOLDEN_LABELS = {**GKE_TEMPLATE["spec"]["pod"]["metadata"]["labels"], "thawbox.dev/golden": "golden-agent"}
"""What the pods of GKE's back end are labelled with: clones, and the one that a capture starts."""


def test_snapshots_of_clones_are_under_a_policy_that_lets_none_of_them_push_out_another_or_the_golden_one() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in objects("PodSnapshotPolicy")}

    def of(labels: Json) -> list[str]:
        return [name for name, spec in policies.items() if selects(spec["selector"], labels)]

    assert (of(GOLDEN_LABELS), of(CLONE_LABELS)) == (["golden-policy"], ["kept-policy"])
    assert GKE_TEMPLATE["spec"]["policy"] == "golden-policy"
    assert "snapshotGroupingRules" in policies["golden-policy"]
    assert "snapshotGroupingRules" not in policies["kept-policy"]


def test_no_budget_and_no_deployment_counts_clones() -> None:
    for kind in ("PodDisruptionBudget", "Deployment", "DaemonSet"):
        for found in objects(kind):
            selector = found["spec"]["selector"]
            assert not selects(selector, CLONE_LABELS)
            assert not selects(selector, GOLDEN_LABELS)
    deployment = next(one for one in objects("Deployment") if one["metadata"]["name"] == "golden-agent")
    budget = next(one for one in objects("PodDisruptionBudget") if one["metadata"]["name"] == "golden-agent")
    assert selects(budget["spec"]["selector"], deployment["spec"]["template"]["metadata"]["labels"])


def test_the_two_node_pools_of_gke_are_ubuntu_for_criu_and_cos_for_gvisor() -> None:
    script = render(DeploySettings())["nodepools/gke.sh"]
    criu, gvisor = script.split("node-pools create")[1:]
    assert "--image-type UBUNTU_CONTAINERD" in criu
    assert "thawbox.dev/criu=true:NoSchedule" in criu
    assert "--image-type COS_CONTAINERD --sandbox type=gvisor" in gvisor
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_settings_come_from_one_file_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(settings_page(DeploySettings(namespace="other", dispatcher_replicas=5)))
    settings = read_settings(path)
    assert settings == DeploySettings(namespace="other", dispatcher_replicas=5)
    write(settings, tmp_path / "out")
    text = (tmp_path / "out" / "base" / "dispatcher.yaml").read_text()
    assert "namespace: other" in text
    assert "replicas: 5" in text
    path.write_text("replicaz: 5\n")
    with pytest.raises(InvalidRequest, match="replicaz"):
        read_settings(path)
