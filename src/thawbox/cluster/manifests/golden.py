"""The golden agent (examples/agent) on a cluster: its pods, its files on the nodes, a template and a pool of it."""

from __future__ import annotations

import re

from thawbox.cluster.crds import GROUP, POOL_LABEL, Json
from thawbox.cluster.manifests.parts import CLOSED, MANAGED, ON_CRIU_NODES, host, idle, manifest, metadata, mounted
from thawbox.cluster.manifests.settings import DeploySettings

NAME = "golden-agent"
AGENT = {"app": NAME, "golden-revision": "r1"}
"""What golden pods and their clones have in common."""
OWN = {"app.kubernetes.io/name": NAME}
"""What the Deployment's pods alone have: a budget or a selector must not count clones, which come and go by claims."""


def golden(settings: DeploySettings) -> list[Json]:
    """The golden agent: ready once it may be checkpointed, and not before."""
    deployment = manifest("apps/v1", "Deployment", metadata(NAME, settings), spec={
        "replicas": settings.golden_replicas, "selector": {"matchLabels": OWN},
        "template": _pod(settings, {**AGENT, **OWN}), "strategy": {"type": "Recreate"},
    })  # fmt: skip
    deployment["metadata"]["annotations"] = {"gke.io/pod-checkpointing": "enabled"}
    budget = manifest("policy/v1", "PodDisruptionBudget", metadata(NAME, settings), spec={
        "maxUnavailable": 1, "selector": {"matchLabels": OWN},
    })  # fmt: skip
    return [deployment, budget]


def _pod(settings: DeploySettings, labels: Json) -> Json:
    probe = {
        "httpGet": {"path": "/internal/checkpoint-ready", "port": "http"},
        "periodSeconds": 2,
        "failureThreshold": 60,
    }
    container = {
        "name": "agent", "image": settings.golden_image,
        "ports": [{"name": "http", "containerPort": settings.golden_port}],
        "readinessProbe": probe, "securityContext": {**CLOSED, "readOnlyRootFilesystem": False},
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
    }  # fmt: skip
    return {
        "metadata": {"labels": {**MANAGED, **labels}, "annotations": {"gke.io/pod-checkpointing": "enabled"}},
        "spec": {"automountServiceAccountToken": False, "containers": [container]},
    }


def image_directory(settings: DeploySettings) -> str:
    """What the golden image's files are called below `images` of each node: another image has another name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", settings.golden_image.rpartition("/")[2])


def sandbox(settings: DeploySettings) -> Json:
    """What `examples/agent/golden.py` runs, out of the agent's image instead of mounts.

    test_images.py holds the two, and the image's own words, together.
    """
    return {
        "command": ["python3", "-m", "app"], "rootfs": f"{settings.node_home}/images/{image_directory(settings)}",
        "env": {"PYTHONPATH": "/opt/agent:/opt/packages:/opt/thawbox", "PYTHONDONTWRITEBYTECODE": "1"},
        "workdir": "/opt/agent", "hooks": "guest", "memory": 2 << 30,
        "ready": f"http://127.0.0.1:{settings.golden_port}/internal/checkpoint-ready", "ready_timeout": 300,
    }  # fmt: skip


def examples(settings: DeploySettings) -> list[Json]:
    """A template and a pool of the golden agent, for the `node` back end."""
    template = manifest(f"{GROUP}/v1alpha1", "Template", metadata(NAME, settings), spec={
        "backend": "node", "sandbox": sandbox(settings), "store": settings.store, "captureSeconds": 600, "keep": 2,
    })  # fmt: skip
    pool = manifest(f"{GROUP}/v1alpha1", "Pool", metadata(NAME, settings), spec={
        "template": NAME, "low": 4, "high": 32, "limit": 256,
    })  # fmt: skip
    return [template, pool]


_COPY = """set -eu
target=/images/{directory}
[ ! -d "$target" ] || exit 0
rm -rf "$target".*
mkdir "$target.new"
cp -ax /. "$target.new"
for name in hosts hostname resolv.conf; do : > "$target.new/etc/$name"; done
mv -T "$target.new" "$target"
"""


def files(settings: DeploySettings) -> Json:
    """The golden image's files on every node, where the template's rootfs is: copied once, whole or not at all.

    Three files are the kubelet's, of the pod that copies: they would differ between nodes.
    """
    labels = {"app.kubernetes.io/name": f"{NAME}-files"}
    copy = {
        "name": "copy", "image": settings.golden_image,
        "command": ["/bin/sh", "-c", _COPY.format(directory=image_directory(settings))],
        "volumeMounts": [mounted("images", "/images")],
        "securityContext": {
            "runAsUser": 0, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
    }  # fmt: skip
    pod = {
        "metadata": {"labels": {**MANAGED, **labels}},
        "spec": {
            "automountServiceAccountToken": False, **ON_CRIU_NODES, "initContainers": [copy],
            "containers": [idle(settings)], "volumes": [host("images", f"{settings.node_home}/images")],
        },
    }  # fmt: skip
    spec = {"selector": {"matchLabels": labels}, "template": pod}
    return manifest("apps/v1", "DaemonSet", metadata(f"{NAME}-files", settings), spec=spec)


def on_gvisor(objects: list[Json]) -> list[Json]:
    """The golden Deployment of GKE: its pods run, and are restored, under gVisor."""
    objects[0]["spec"]["template"]["spec"]["runtimeClassName"] = "gvisor"
    return objects


def gke_pool(settings: DeploySettings) -> list[Json]:
    """A template of the `gke` back end: clones are pods restored from the golden agent's Pod Snapshot."""
    pod = _pod(settings, AGENT)
    pod["spec"]["runtimeClassName"] = "gvisor"
    template, pool = examples(settings)
    template["spec"] = {
        "backend": "gke", "policy": "golden-policy", "pod": pod, "captureSeconds": 600, "keep": 2,
    }  # fmt: skip
    return [template, pool]


def pod_snapshots(settings: DeploySettings) -> list[Json]:
    """Pod Snapshots, taken by hand (by the dispatcher): of golden pods, two of each revision kept; of leased clones,
    under a policy of their own, as many as there are claims. The dispatcher itself drops a claim's older ones.
    """
    group = "podsnapshot.gke.io/v1"
    gcs = {"bucket": settings.gke_bucket, "path": "golden", "tokenSource": "podKSA"}
    storage = manifest(group, "PodSnapshotStorageConfig", metadata("golden-storage"), spec={
        "snapshotStorageConfig": {"gcs": gcs},
    })  # fmt: skip
    whole: Json = {
        "storageConfigName": "golden-storage", "triggerConfig": {"type": "manual", "postCheckpoint": "resume"},
        "snapshotScope": "whole-pod", "retentionConfig": {"lastAccessTimeout": "7d"},
    }  # fmt: skip
    two_each = {"groupByLabelValue": {
        "labels": ["golden-revision"], "groupRetentionPolicy": {"maxSnapshotCountPerGroup": 2},
    }}  # fmt: skip
    policies = [
        manifest(group, "PodSnapshotPolicy", metadata(name, settings), spec={
            **whole, **rules, "selector": {
                "matchLabels": {"app": NAME}, "matchExpressions": [{"key": POOL_LABEL, "operator": operator}],
            },
        })
        for name, operator, rules in (
            ("golden-policy", "DoesNotExist", {"snapshotGroupingRules": two_each}), ("kept-policy", "Exists", {}),
        )
    ]  # fmt: skip
    return [storage, *policies]
