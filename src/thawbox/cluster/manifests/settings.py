"""What the manifests are made from: one YAML file, every field with a default and a reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from thawbox.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class DeploySettings:
    """Names, images and sizes. `thawbox k8s settings` prints them with their defaults and meanings."""

    namespace: str = field(default="thawbox", metadata={"doc": "where everything of ours lives"})
    image: str = field(
        default="registry.example/thawbox:0.1.0", metadata={"doc": "image of dispatcher, node agent and bootstrap"}
    )
    placeholder_image: str = field(
        default="registry.k8s.io/pause:3.10", metadata={"doc": "what is parked in placeholder pods"}
    )
    golden_image: str = field(
        default="registry.example/agent:v1", metadata={"doc": "the golden agent (examples/agent)"}
    )
    golden_replicas: int = field(default=1, metadata={"doc": "golden pods kept running for captures"})
    golden_port: int = field(default=8000, metadata={"doc": "where the golden agent answers"})
    store: str = field(default="gs://my-snapshots/golden", metadata={"doc": "where snapshots are pushed to"})
    region: str = field(default="us-central1", metadata={"doc": "region of the cluster's nodes, as claims name it"})
    dispatcher_replicas: int = field(default=2, metadata={"doc": "any number may dispatch; one of them leads"})
    node_home: str = field(default="/var/lib/thawbox", metadata={"doc": "THAWBOX_HOME on the nodes: a real disk"})
    node_port: int = field(default=7070, metadata={"doc": "the node service's port, on the node's own address"})
    gke_bucket: str = field(default="my-snapshots", metadata={"doc": "bucket for Pod Snapshots: HNS, uniform access"})
    gke_machine: str = field(
        default="n2-standard-8", metadata={"doc": "machine type of both node pools; E2 cannot take Pod Snapshots"}
    )
    gke_cluster: str = field(default="agents", metadata={"doc": "name of the GKE cluster, for its node pools"})


def read_settings(path: Path | None) -> DeploySettings:
    """The settings in a YAML file, defaults for what it does not name; raises InvalidRequest by field."""
    if path is None:
        return DeploySettings()
    import yaml

    try:
        given: Any = yaml.safe_load(path.read_text()) or {}
        return msgspec.convert(_only_known(given, path), type=DeploySettings)
    except (OSError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise InvalidRequest(f"{path} cannot be used: {error}") from None


def _only_known(given: object, path: Path) -> dict[str, object]:
    known = DeploySettings.__dataclass_fields__
    found = msgspec.convert(given, type=dict[str, object])
    for name in found:
        if name not in known:
            raise InvalidRequest(f"{path} names {name!r}, which is no setting", remediation="`thawbox k8s settings`")
    return found


def settings_page(settings: DeploySettings) -> str:
    """The settings as the YAML file that would say them, each with its meaning."""
    import yaml as untyped

    yaml: Any = untyped
    lines: list[str] = []
    for name, one in DeploySettings.__dataclass_fields__.items():
        lines.append(f"# {one.metadata['doc']}")
        lines.append(yaml.safe_dump({name: getattr(settings, name)}, width=200).rstrip())
    return "\n".join(lines) + "\n"
