"""Linux: processes, files, namespaces, cgroups, networks. Knows nothing of snapshots."""
