"""The objects, one function each: settings in, plain JSON out."""

from __future__ import annotations

from thawbox.cluster.backends import PLACEHOLDER_IMAGE
from thawbox.cluster.crds import GROUP, POOL_LABEL, Json
from thawbox.cluster.manifests.settings import DeploySettings

CRIU_LABEL = f"{GROUP}/criu"
MANAGED = {"app.kubernetes.io/part-of": "thawbox"}
ON_CRIU_NODES: Json = {
    "nodeSelector": {CRIU_LABEL: "true"},
    "tolerations": [{"key": CRIU_LABEL, "operator": "Exists", "effect": "NoSchedule"}],
}
PRIVATE = ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
"""Addresses that are nobody's outside (RFC 1918, 6598, 3927): clusters have their nodes, services and pods there."""
CLOSED = {
    "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"}, "runAsNonRoot": True, "runAsUser": 65532,
}  # fmt: skip


def metadata(name: str, settings: DeploySettings | None = None, **labels: str) -> Json:
    where = {"namespace": settings.namespace} if settings else {}
    return {"name": name, **where, "labels": {**MANAGED, "app.kubernetes.io/name": name, **labels}}


def manifest(api: str, kind: str, meta: Json, **rest: object) -> Json:
    return {"apiVersion": api, "kind": kind, "metadata": meta, **rest}


def namespace(settings: DeploySettings) -> Json:
    """Privileged, because of the node agent: nothing else in it is."""
    meta = metadata(settings.namespace)
    meta["labels"]["pod-security.kubernetes.io/enforce"] = "privileged"
    return manifest("v1", "Namespace", meta)


def accounts(settings: DeploySettings) -> list[Json]:
    names = ("thawbox-dispatcher", "thawbox-node", "thawbox-bootstrap")
    return [
        manifest(
            "v1", "ServiceAccount", metadata(name, settings), automountServiceAccountToken=name != "thawbox-bootstrap"
        )
        for name in names
    ]


def _rule(group: str, *resources: str, verbs: str) -> Json:
    return {"apiGroups": [group], "resources": list(resources), "verbs": verbs.split()}


def roles(settings: DeploySettings) -> list[Json]:
    """The least that each needs: a node may say what it parked, and bind nobody."""
    dispatcher = [
        _rule("", "pods", verbs="get list watch create patch delete"),
        _rule("", "pods/status", verbs="patch"),
        _rule(GROUP, "claims", verbs="get list watch create patch delete"),
        _rule(GROUP, "pools", "templates", verbs="get list watch patch"),
        _rule(GROUP, "claims/status", "pools/status", "templates/status", verbs="patch"),
        _rule("coordination.k8s.io", "leases", verbs="get list watch create update delete"),
        _rule("podsnapshot.gke.io", "podsnapshotmanualtriggers", verbs="get list watch create delete"),
        _rule("podsnapshot.gke.io", "podsnapshots", verbs="get list watch patch delete"),
    ]
    node = [
        _rule("", "pods", verbs="get list watch patch"),
        _rule(GROUP, "claims", "pools", "templates", verbs="get list watch"),
        _rule(GROUP, "claims/status", verbs="patch"),
        _rule("coordination.k8s.io", "leases", verbs="get create update"),
    ]
    found: list[Json] = []
    for name, rules in (("thawbox-dispatcher", dispatcher), ("thawbox-node", node)):
        found.append(manifest("rbac.authorization.k8s.io/v1", "Role", metadata(name, settings), rules=rules))
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        subject = {"kind": "ServiceAccount", "name": name, "namespace": settings.namespace}
        bound = manifest("rbac.authorization.k8s.io/v1", "RoleBinding", metadata(name, settings), roleRef=role)
        found.append({**bound, "subjects": [subject]})
    return found


def priority(settings: DeploySettings) -> list[Json]:
    """A lane of the API server for claims: pods that come up by the thousand must not hold them up."""
    level = manifest(
        "flowcontrol.apiserver.k8s.io/v1", "PriorityLevelConfiguration", metadata("thawbox-claims"),
        spec={"type": "Limited", "limited": {
            "nominalConcurrencyShares": 30, "lendablePercent": 50,
            "limitResponse": {"type": "Queue", "queuing": {"queues": 16, "handSize": 4, "queueLengthLimit": 200}},
        }},
    )  # fmt: skip
    here = [settings.namespace]
    account = {
        "kind": "ServiceAccount",
        "serviceAccount": {"name": "thawbox-dispatcher", "namespace": settings.namespace},
    }
    rules = {"subjects": [account], "resourceRules": [
        {"apiGroups": [GROUP], "resources": ["claims", "claims/status"], "verbs": ["*"], "namespaces": here},
        {"apiGroups": [""], "resources": ["pods", "pods/status"], "verbs": ["patch"], "namespaces": here},
    ]}  # fmt: skip
    flow = manifest(
        "flowcontrol.apiserver.k8s.io/v1", "FlowSchema", metadata("thawbox-claims"),
        spec={"matchingPrecedence": 900, "priorityLevelConfiguration": {"name": "thawbox-claims"}, "rules": [rules]},
    )  # fmt: skip
    return [level, flow]


_NODE_TOKEN, _NODE_TLS = "/etc/thawbox/node", "/etc/thawbox/node-tls"


def _secret(name: str, path: str) -> Json:
    return {"name": name, "mountPath": path, "readOnly": True}


def dispatcher(settings: DeploySettings) -> list[Json]:
    labels = {"app.kubernetes.io/name": "thawbox-dispatcher"}
    port = 8080
    probe: Json = {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 2}
    command = [
        "thawbox", "cluster", "dispatch", "--namespace", settings.namespace, "--listen", f"0.0.0.0:{port}",
        "--token-file", "/etc/thawbox/dispatch/token", "--node-token-file", f"{_NODE_TOKEN}/token",
        "--node-ca", f"{_NODE_TLS}/tls.crt",
        "--identity", "$(POD_NAME)", "--image", settings.placeholder_image or PLACEHOLDER_IMAGE,
    ]  # fmt: skip
    container = {
        "name": "dispatcher", "image": settings.image, "command": command,
        "ports": [{"name": "http", "containerPort": port}],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "readinessProbe": probe,
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10, "failureThreshold": 3},
        "resources": {"requests": {"cpu": "500m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": CLOSED,
        "volumeMounts": [
            _secret("dispatch-token", "/etc/thawbox/dispatch"), _secret("node-token", _NODE_TOKEN),
            _secret("node-tls", _NODE_TLS),
        ],
    }  # fmt: skip
    spread = {
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels},
    }  # fmt: skip
    pod = {
        "metadata": {"labels": {**MANAGED, **labels}},
        "spec": {
            "serviceAccountName": "thawbox-dispatcher", "containers": [container],
            "topologySpreadConstraints": [spread],
            "volumes": [
                {"name": "dispatch-token", "secret": {"secretName": "thawbox-dispatch-token"}},
                {"name": "node-token", "secret": {"secretName": "thawbox-node-token"}},
                {"name": "node-tls", "secret": {  # the certificate alone: the key is the nodes'
                    "secretName": "thawbox-node-tls", "items": [{"key": "tls.crt", "path": "tls.crt"}],
                }},
            ],
        },
    }  # fmt: skip
    return [
        manifest("apps/v1", "Deployment", metadata("thawbox-dispatcher", settings), spec={
            "replicas": settings.dispatcher_replicas, "selector": {"matchLabels": labels}, "template": pod,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        }),
        manifest("v1", "Service", metadata("thawbox-dispatcher", settings), spec={
            "selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        }),
        manifest("policy/v1", "PodDisruptionBudget", metadata("thawbox-dispatcher", settings), spec={
            "minAvailable": 1, "selector": {"matchLabels": labels},
        }),
    ]  # fmt: skip


def host(name: str, path: str, kind: str = "DirectoryOrCreate") -> Json:
    return {"name": name, "hostPath": {"path": path, "type": kind}}


def mounted(name: str, path: str) -> Json:
    return {"name": name, "mountPath": path}


def node(settings: DeploySettings) -> Json:
    """The only privileged thing: the node's service, and beside it the agent, which asks it over its socket as root."""
    labels = {"app.kubernetes.io/name": "thawbox-node"}
    env = [
        {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
        {"name": "THAWBOX_HOME", "value": settings.node_home},
    ]  # fmt: skip
    mounts = [
        mounted("home", settings.node_home), mounted("cgroups", "/sys/fs/cgroup"), mounted("run", "/run/thawbox"),
    ]  # fmt: skip
    secrets = [_secret("node-token", _NODE_TOKEN), _secret("node-tls", _NODE_TLS)]
    serve = {
        "name": "serve", "image": settings.image, "env": env, "volumeMounts": [*mounts, *secrets],
        "command": [
            "thawbox", "serve", "--host", "$(HOST_IP)", "--port", str(settings.node_port),
            "--token-file", f"{_NODE_TOKEN}/token",
            "--tls-cert", f"{_NODE_TLS}/tls.crt", "--tls-key", f"{_NODE_TLS}/tls.key",
        ],
        "ports": [{"name": "https", "containerPort": settings.node_port}], "securityContext": {"privileged": True},
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": "https", "scheme": "HTTPS"}, "periodSeconds": 5,
        },
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}},
    }  # fmt: skip
    agent = {
        "name": "agent", "image": settings.image, "env": env, "volumeMounts": mounts,
        "command": [
            "thawbox", "cluster", "node-agent", "--namespace", settings.namespace, "--node", "$(NODE_NAME)",
            "--url", f"https://$(HOST_IP):{settings.node_port}", "--region", settings.region,
        ],
        "securityContext": {
            "runAsUser": 0, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
    }  # fmt: skip
    pod = {
        "metadata": {"labels": {**MANAGED, **labels}},
        "spec": {
            "serviceAccountName": "thawbox-node", "hostPID": True, "hostNetwork": True,
            "dnsPolicy": "ClusterFirstWithHostNet", **ON_CRIU_NODES,
            "priorityClassName": "system-node-critical", "containers": [serve, agent],
            "volumes": [
                host("home", settings.node_home), host("cgroups", "/sys/fs/cgroup", "Directory"),
                {"name": "run", "emptyDir": {"medium": "Memory"}},
                {"name": "node-token", "secret": {"secretName": "thawbox-node-token"}},
                {"name": "node-tls", "secret": {"secretName": "thawbox-node-tls"}},
            ],
        },
    }  # fmt: skip
    update = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}
    spec = {"selector": {"matchLabels": labels}, "template": pod, "updateStrategy": update}
    return manifest("apps/v1", "DaemonSet", metadata("thawbox-node", settings), spec=spec)


def idle(settings: DeploySettings) -> Json:
    """What a pod of a DaemonSet does whose work its init container has done."""
    return {
        "name": "done", "image": settings.placeholder_image, "securityContext": {**CLOSED, "runAsUser": 65535},
        "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}, "limits": {"memory": "16Mi"}},
    }  # fmt: skip


_BOOTSTRAP = """set -eu
# our programs onto the node: static, so that they run on any distribution of it
install -d /host/usr/local/libexec/thawbox
install -m 0755 /usr/local/libexec/thawbox/criu /usr/local/libexec/thawbox/thawbox-init \\
  /usr/local/libexec/thawbox/thawbox-launch /host/usr/local/libexec/thawbox/
# what clones need of the kernel: pids enough for many trees, inotify and descriptors for their programs
cat > /host/etc/sysctl.d/90-thawbox.conf <<SETTINGS
kernel.pid_max = 4194304
fs.inotify.max_user_instances = 8192
fs.inotify.max_user_watches = 1048576
vm.overcommit_memory = 1
vm.max_map_count = 1048576
SETTINGS
nsenter --target 1 --mount -- sysctl --quiet --load /etc/sysctl.d/90-thawbox.conf
thawbox doctor --json
"""


def bootstrap(settings: DeploySettings) -> Json:
    """Makes a node fit, and finds out by doing whether it is: its pod stays unready where `thawbox doctor` says no."""
    labels = {"app.kubernetes.io/name": "thawbox-bootstrap"}
    first = {
        "name": "install", "image": settings.image, "command": ["/bin/sh", "-c", _BOOTSTRAP],
        "env": [{"name": "THAWBOX_HOME", "value": settings.node_home}], "securityContext": {"privileged": True},
        "volumeMounts": [
            mounted("host", "/host"), mounted("home", settings.node_home), mounted("cgroups", "/sys/fs/cgroup"),
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
    }  # fmt: skip
    pod = {
        "metadata": {"labels": {**MANAGED, **labels}},
        "spec": {
            "serviceAccountName": "thawbox-bootstrap", "automountServiceAccountToken": False, "hostPID": True,
            **ON_CRIU_NODES, "initContainers": [first], "containers": [idle(settings)],
            "volumes": [
                host("host", "/", "Directory"), host("home", settings.node_home),
                host("cgroups", "/sys/fs/cgroup", "Directory"),
            ],
        },
    }  # fmt: skip
    spec = {"selector": {"matchLabels": labels}, "template": pod}
    return manifest("apps/v1", "DaemonSet", metadata("thawbox-bootstrap", settings), spec=spec)


def policies(settings: DeploySettings) -> list[Json]:
    """Nothing reaches a clone, the dispatcher or a golden pod that has no business there, and clones, whose programs
    nobody vouches for, reach the outside and the cluster's names: no API server, no kubelet, no node's service.
    """
    world = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": list(PRIVATE)}}]}
    names = {
        "to": [{
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        }],
        "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
    }  # fmt: skip
    dispatcher = {"matchLabels": {"app.kubernetes.io/name": "thawbox-dispatcher"}}
    clones = {"matchExpressions": [{"key": POOL_LABEL, "operator": "Exists"}]}
    callers = [{"namespaceSelector": {"matchLabels": {f"{GROUP}/callers": "true"}}}]
    return [
        manifest("networking.k8s.io/v1", "NetworkPolicy", metadata("thawbox-default", settings), spec={
            "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [],
        }),
        manifest("networking.k8s.io/v1", "NetworkPolicy", metadata("thawbox-dispatcher", settings), spec={
            "podSelector": dispatcher, "policyTypes": ["Ingress"],
            "ingress": [{"from": callers, "ports": [{"port": 8080, "protocol": "TCP"}]}],
        }),
        manifest("networking.k8s.io/v1", "NetworkPolicy", metadata("thawbox-clones", settings), spec={
            "podSelector": clones, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": callers}],
            "egress": [world, names],
        }),
    ]  # fmt: skip


def runtime_class() -> Json:
    """gVisor, for clusters that bring their own; on GKE the class of this name is there already."""
    sandboxed = {"sandbox.gke.io/runtime": "gvisor"}
    toleration = {"key": "sandbox.gke.io/runtime", "operator": "Equal", "value": "gvisor", "effect": "NoSchedule"}
    return manifest(
        "node.k8s.io/v1", "RuntimeClass", metadata("gvisor"), handler="runsc",
        scheduling={"nodeSelector": sandboxed, "tolerations": [toleration]},
        overhead={"podFixed": {"cpu": "50m", "memory": "64Mi"}},
    )  # fmt: skip
