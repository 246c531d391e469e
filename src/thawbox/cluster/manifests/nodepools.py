"""Nodes: two pools on GKE, since Ubuntu has CRIU's kernel and GKE Sandbox needs Container-Optimized OS; and kubeadm."""

from __future__ import annotations

from thawbox.cluster.crds import Json
from thawbox.cluster.manifests.parts import CRIU_LABEL
from thawbox.cluster.manifests.settings import DeploySettings

SYSCTLS = {"net.core.somaxconn": "4096", "vm.max_map_count": "1048576"}
"""What GKE lets a node pool set; the rest is the bootstrap DaemonSet's."""


def gke_node_pools(settings: DeploySettings) -> str:
    """The commands that make both node pools, and the system configuration of the first."""
    return f"""#!/usr/bin/env bash
# Made by `thawbox k8s render`; edit deploy/settings.yaml and render again.
# Two node pools: `criu` runs Ubuntu, where the bootstrap DaemonSet installs CRIU (back end `node`); `gvisor` runs
# Container-Optimized OS, the only image GKE Sandbox has, for Pod Snapshots (back end `gke`).
set -euo pipefail

cat > /tmp/thawbox-node-system.yaml <<'CONFIG'
linuxConfig:
  sysctl:
{chr(10).join(f"    {name}: '{value}'" for name, value in SYSCTLS.items())}
  cgroupMode: CGROUP_MODE_V2
CONFIG

gcloud container node-pools create criu --cluster {settings.gke_cluster} --region {settings.region} \\
  --image-type UBUNTU_CONTAINERD --machine-type {settings.gke_machine} --disk-type pd-ssd \\
  --system-config-from-file /tmp/thawbox-node-system.yaml \\
  --node-labels {CRIU_LABEL}=true --node-taints {CRIU_LABEL}=true:NoSchedule \\
  --enable-autoscaling --min-nodes 1 --max-nodes 100

gcloud container node-pools create gvisor --cluster {settings.gke_cluster} --region {settings.region} \\
  --image-type COS_CONTAINERD --sandbox type=gvisor --machine-type {settings.gke_machine} \\
  --enable-autoscaling --min-nodes 1 --max-nodes 100
"""


def kubeadm_nodes(settings: DeploySettings) -> list[Json]:
    """`kubeadm join --config` of a node that runs clones: its labels, its taint, pids enough for its pods."""
    labels = f"{CRIU_LABEL}=true,topology.kubernetes.io/region={settings.region}"
    join = {
        "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "JoinConfiguration",
        "discovery": {"bootstrapToken": {
            "apiServerEndpoint": "CONTROL_PLANE:6443", "token": "TOKEN", "caCertHashes": ["sha256:HASH"],
        }},
        "nodeRegistration": {
            "kubeletExtraArgs": [{"name": "node-labels", "value": labels}],
            "taints": [{"key": CRIU_LABEL, "value": "true", "effect": "NoSchedule"}],
        },
    }  # fmt: skip
    kubelet = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "podPidsLimit": 16384,
        "maxPods": 250, "cgroupDriver": "systemd",
    }  # fmt: skip
    return [join, kubelet]
