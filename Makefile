# `make demo` and `make test` do all set-up themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PyTorch's own index of CPU builds, used where it can be reached; empty takes the default index.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_VERSION ?= 2.13.0

.PHONY: setup demo test test-slow test-cluster test-cluster-smoke lint

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml images/install-torch.sh
	$(PYTHON) -m venv $(VENV)
	sh images/install-torch.sh $(BIN)/python "$(TORCH_VERSION)" "$(TORCH_CPU_INDEX)"
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/nanochat doctor k8s/pipelines/demo.yaml
	$(BIN)/nanochat run k8s/pipelines/demo.yaml
	$(BIN)/nanochat report demo

test: setup
	$(BIN)/python -m pytest tests -m "not slow and not cluster"

# Tests of a minute and more: a run that is killed twenty times.
test-slow: setup
	$(BIN)/python -m pytest tests -m slow

# On a cluster that it makes with kind and removes again; NANOCHAT_KEEP_CLUSTER=1 keeps it, and uses the one there is.
test-cluster: setup
	NANOCHAT_REQUIRE_CLUSTER=1 $(BIN)/python -m pytest tests/cluster tests/operators -m cluster -s

# The heart of it, within ten minutes; skipped where kind or what it needs is missing.
test-cluster-smoke: setup
	$(BIN)/python -m pytest tests/cluster/test_smoke.py -m cluster -s -rs

lint: setup
	$(BIN)/ruff check nanochat operators tasks tests
	$(BIN)/ruff format --check nanochat operators tasks tests
	$(BIN)/pyright
	$(BIN)/lint-imports
