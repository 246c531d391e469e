"""The pods of a pool: as much room as the template's clones need, and what the pool says of them."""

from __future__ import annotations

from typing import Any

import pytest

from thawbox.cluster.backends import PLACEHOLDER_BYTES, NodeBackend

Json = dict[str, Any]


def pod_of(sandbox: Json, placeholder: Json | None = None) -> Json:
    """The spec of a placeholder pod."""
    spec = {"placeholder": placeholder} if placeholder is not None else {}
    pool = {"metadata": {"name": "web", "uid": "u"}, "spec": spec}
    template = {"metadata": {"name": "golden"}, "spec": {"sandbox": sandbox}}
    found: Json = NodeBackend(None, None, None).placeholder(pool, template)["spec"]  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("sandbox", "limits"),
    [
        ({"memory": 2 << 30}, {"memory": str((2 << 30) + PLACEHOLDER_BYTES)}),
        ({"memory": 1 << 20, "cpus": 0.5}, {"memory": str((1 << 20) + PLACEHOLDER_BYTES), "cpu": "500m"}),
        ({"memory": None}, {}),
        ({}, {}),
    ],
    ids=str,
)
def test_a_placeholder_has_the_limits_of_the_template_and_room_for_itself(sandbox: Json, limits: Json) -> None:
    (parked,) = pod_of(sandbox)["containers"]
    assert parked["resources"]["limits"] == limits


def test_what_a_pool_says_of_its_pods_is_merged_by_the_names_of_containers() -> None:
    before = pod_of({"memory": 1 << 30})
    said = {
        "containers": [
            {"name": "placeholder", "resources": {"limits": {"memory": "4Gi"}, "requests": {"cpu": None}}},
            {"name": "sidecar", "image": "proxy:1"},
        ],
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "enableServiceLinks": None,
    }
    found = pod_of({"memory": 1 << 30}, said)
    parked, sidecar = found["containers"]
    (was,) = before["containers"]
    assert parked["resources"] == {"requests": {"memory": "64Mi"}, "limits": {"memory": "4Gi"}}
    assert {**parked, "resources": was["resources"]} == was  # image and security context are as they were
    assert sidecar == {"name": "sidecar", "image": "proxy:1"}
    assert found["nodeSelector"] == {**before["nodeSelector"], "disk": "fast"}
    assert found["tolerations"] == said["tolerations"]  # what has no names is taken as it stands
    assert "enableServiceLinks" not in found
    assert found["readinessGates"] == before["readinessGates"]
