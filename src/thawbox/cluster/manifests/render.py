"""The files of `deploy/`, by path: kustomize base and overlays, node pools, and how they hang together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from thawbox.cluster.crds import Json, crds
from thawbox.cluster.manifests import golden, parts
from thawbox.cluster.manifests.nodepools import gke_node_pools, kubeadm_nodes
from thawbox.cluster.manifests.settings import DeploySettings, settings_page

HEAD = "# Made by `thawbox k8s render`; edit deploy/settings.yaml and render again.\n"


def render(settings: DeploySettings) -> dict[str, str]:
    """Every file of `deploy/`: its path below it, and its content."""
    agent = [*golden.golden(settings), golden.files(settings), *golden.examples(settings)]
    files = {
        "base/crds.yaml": _documents(crds()),
        "base/namespace.yaml": _documents([parts.namespace(settings)]),
        "base/rbac.yaml": _documents([*parts.accounts(settings), *parts.roles(settings)]),
        "base/priority.yaml": _documents(parts.priority(settings)),
        "base/dispatcher.yaml": _documents(parts.dispatcher(settings)),
        "base/node.yaml": _documents([parts.bootstrap(settings), parts.node(settings)]),
        "base/network-policies.yaml": _documents(parts.policies(settings)),
        "overlays/gke/golden-agent.yaml": _documents(golden.on_gvisor(golden.golden(settings))),
        "overlays/gke/pod-snapshots.yaml": _documents(golden.pod_snapshots(settings)),
        "overlays/gke/pool.yaml": _documents(golden.gke_pool(settings)),
        "overlays/generic/runtime-class.yaml": _documents([parts.runtime_class()]),
        "overlays/generic/golden-agent.yaml": _documents(agent),
        "overlays/kind/golden-agent.yaml": _documents(agent),
        "overlays/kind/cluster.yaml": _documents([_kind_cluster(settings)]),
        "nodepools/gke.sh": gke_node_pools(settings),
        "nodepools/kubeadm.yaml": _documents(kubeadm_nodes(settings)),
        "settings.yaml": settings_page(settings),
    }
    base = sorted(name.removeprefix("base/") for name in files if name.startswith("base/"))
    files["base/kustomization.yaml"] = _kustomization(base)
    for overlay, patches in (("gke", []), ("generic", []), ("kind", [_one_replica()])):
        own = [name.rpartition("/")[2] for name in files if name.startswith(f"overlays/{overlay}/")]
        resources = ["../../base", *sorted(name for name in own if name != "cluster.yaml")]
        files[f"overlays/{overlay}/kustomization.yaml"] = _kustomization(resources, patches)
    return files


def write(settings: DeploySettings, out: Path) -> list[Path]:
    """Write every file below `out`, and return their paths."""
    written: list[Path] = []
    for name, content in sorted(render(settings).items()):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        if name.endswith(".sh"):
            path.chmod(0o755)
        written.append(path)
    return written


def differences(settings: DeploySettings, out: Path) -> list[str]:
    """The files below `out` that are other than they would be rendered, by name."""
    found: list[str] = []
    for name, content in sorted(render(settings).items()):
        path = out / name
        if not path.exists() or path.read_text() != content:
            found.append(name)
    return found


def _documents(objects: Iterable[Json]) -> str:
    import json

    import yaml as untyped

    yaml: Any = untyped
    apart = (json.loads(json.dumps(one)) for one in objects)  # a value used twice would be written as a YAML alias
    return HEAD + "---\n".join(yaml.safe_dump(one, sort_keys=False, width=110) for one in apart)


def _kustomization(resources: list[str], patches: list[Json] | None = None) -> str:
    whole: Json = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources}
    return _documents([{**whole, **({"patches": patches} if patches else {})}])


def _one_replica() -> Json:
    patch = "- op: replace\n  path: /spec/replicas\n  value: 1\n"
    return {"target": {"kind": "Deployment", "name": "thawbox-dispatcher"}, "patch": patch}


def _kind_cluster(settings: DeploySettings) -> Json:
    """What `kind create cluster --config` is given: one worker whose clones wait in placeholders."""
    worker = {"role": "worker", "labels": {parts.CRIU_LABEL: "true", "topology.kubernetes.io/region": settings.region}}
    return {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": [{"role": "control-plane"}, worker]}
