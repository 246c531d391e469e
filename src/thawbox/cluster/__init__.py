"""thawbox on Kubernetes: claims are bound to clones that wait in placeholder pods, on any node of a cluster.

Pure: `facts`, `placement`, `scale_plan`, `crds`, `simulate`. At work: `kube` (the API server), `index` (list and
watch), `nodes` (nodes, by HTTP), `dispatcher` and what it joins, `agent`, `reconcile` (kopf).
"""
