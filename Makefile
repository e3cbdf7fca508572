# `make demo` and `make test` do all set-up themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PyTorch's own index of CPU builds, used where it can be reached; empty takes the default index.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_VERSION ?= 2.13.0


# A local cluster. Where the registries and GitHub cannot be reached, these say what to take instead.
KIND_CLUSTER ?= nanochat
TRAINING_OPERATOR ?= -k https://github.com/kubeflow/trainer.git/manifests/overlays/standalone?ref=v1.9.4
HELM_OPTIONS ?=
# What kind-demo runs, and `--set path=value` for it.
PIPELINE ?= k8s/pipelines/cpu.yaml
PIPELINE_OPTIONS ?=

IMAGES := trainer server operator mlflow
KUBECTL := kubectl --context kind-$(KIND_CLUSTER)
LOAD := kind load docker-image $(IMAGES:%=nanochat-%:dev) --name $(KIND_CLUSTER)

.PHONY: setup demo test test-slow test-cluster test-cluster-smoke lint lock images kind-up kind-demo kind-down

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

# The images for CPUs; see images/Dockerfile for GPUs.
images:
	for target in $(IMAGES); do \
	    docker build --quiet --target $$target --build-arg ACCELERATOR=cpu --build-arg TORCH_VERSION=$(TORCH_VERSION) \
	        --build-arg TORCH_CPU_INDEX=$(TORCH_CPU_INDEX) --build-arg COMMIT=$$(git rev-parse HEAD) \
	        -t nanochat-$$target:dev -f images/Dockerfile . || exit 1; \
	done

# A cluster with everything in it.
kind-up: images
	kind get clusters | grep -qx $(KIND_CLUSTER) || kind create cluster --name $(KIND_CLUSTER) --config k8s/kind.yaml --wait 3m
	$(LOAD) || $(LOAD)  # a node that collects garbage just then loses a layer
	$(KUBECTL) apply --server-side -f - <k8s/namespace.yaml
	$(KUBECTL) apply --server-side $(TRAINING_OPERATOR)
	$(KUBECTL) -n kubeflow rollout status deployment/training-operator --timeout=5m
	helm upgrade --install nanochat helm/nanochat --kube-context kind-$(KIND_CLUSTER) -n nanochat \
	    -f helm/nanochat/values-kind.yaml $(HELM_OPTIONS)
	$(KUBECTL) -n nanochat rollout status deployment/nanochat-controller --timeout=5m

# Runs the pipeline there, follows it, and asks the model that it released a question.
kind-demo: setup
	PATH=$(CURDIR)/$(BIN):$$PATH sh k8s/kind-demo.sh kind-$(KIND_CLUSTER) $(PIPELINE) $(PIPELINE_OPTIONS)

kind-down:
	kind delete cluster --name $(KIND_CLUSTER)

# Pins what the images are made of: images/*.lock.
lock: setup
	sh images/lock.sh $(BIN)/python "$(TORCH_VERSION)" "$(TORCH_CPU_INDEX)"
