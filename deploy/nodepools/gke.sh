#!/usr/bin/env bash
# Made by `thawbox k8s render`; edit deploy/settings.yaml and render again.
# Two node pools: `criu` runs Ubuntu, where the bootstrap DaemonSet installs CRIU (back end `node`); `gvisor` runs
# Container-Optimized OS, the only image GKE Sandbox has, for Pod Snapshots (back end `gke`).
set -euo pipefail

cat > /tmp/thawbox-node-system.yaml <<'CONFIG'
linuxConfig:
  sysctl:
    net.core.somaxconn: '4096'
    vm.max_map_count: '1048576'
  cgroupMode: CGROUP_MODE_V2
CONFIG

gcloud container node-pools create criu --cluster agents --region us-central1 \
  --image-type UBUNTU_CONTAINERD --machine-type n2-standard-8 --disk-type pd-ssd \
  --system-config-from-file /tmp/thawbox-node-system.yaml \
  --node-labels thawbox.dev/criu=true --node-taints thawbox.dev/criu=true:NoSchedule \
  --enable-autoscaling --min-nodes 1 --max-nodes 100

gcloud container node-pools create gvisor --cluster agents --region us-central1 \
  --image-type COS_CONTAINERD --sandbox type=gvisor --machine-type n2-standard-8 \
  --enable-autoscaling --min-nodes 1 --max-nodes 100
