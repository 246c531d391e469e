# `make demo` and `make test` work on a fresh Debian 12 machine as root, with nothing installed by hand.
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo test lint image bench bench-quick setup-peers clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## install what is missing; the command lands at .venv/bin/thawbox
	@scripts/setup runtime

setup-dev: ## the same, with what tests and benchmarks need
	@scripts/setup dev

demo: setup ## freeze, kill, restore and clone a running agent
	.venv/bin/thawbox demo

test: setup-dev ## all tests, then lint
	.venv/bin/pytest
	@scripts/lint

lint: setup-dev ## ruff, mypy, pyright and the layers
	@scripts/lint

image: ## the images of thawbox and of the golden agent, by podman, buildah or docker
	@scripts/build-images

setup-peers: setup-dev
	@scripts/setup-peers

bench: setup-peers ## every measurement: beside all peers, then the others, one after the other (an hour)
	@mkdir -p .cache/agent
	.venv/bin/python examples/agent/build_matrix.py .cache/agent/matrix
	.venv/bin/python examples/agent/golden.py --matrix .cache/agent/matrix --name golden-agent >.cache/agent/bench.json
	.venv/bin/thawbox bench --spec .cache/agent/bench.json --nonce-path /state --out docs/benchmarks
	@for file in bench/*.py scripts/benchmark_boot.py; do .venv/bin/python "$$file" || exit 1; done

bench-quick: setup-peers ## three minutes: which ratios moved since the last report
	.venv/bin/thawbox bench --quick

clean: ## remove what set-up, tests and builds made in this checkout
	rm -rf .venv .cache native/build native/init/build build dist
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
