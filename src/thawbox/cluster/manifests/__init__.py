"""The manifests of `deploy/`, made from one settings file: `thawbox k8s render`."""
