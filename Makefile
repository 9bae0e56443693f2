# The commands of this repository; `make help` lists them.
# Variables are given after the target: make train-local DATA=/data/coco HPARAMS="lr=.1 epochs=3"

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# Without a word about the experiment, train-local trains the tiny detector.
ifeq ($(origin CONFIG),undefined)
    local_overlay := experiments/overlays/mini.yaml
endif
CONFIG ?= experiments/const.yaml
# The cluster that commands talk to: local is this machine's, main the inventory's.
CLUSTER ?= main
MINI_COCO := data/mini-coco
PY := .venv/bin/python

# The rooms import each other by name from the repository's root.
export PYTHONPATH := $(CURDIR):$(CURDIR)/data-prep
# Compiled modules are kept, even where the user's environment says not to, and out of the tree:
# without them each start of a program that imports torch takes 15 s more.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/pycache
# glibc hands large blocks back to the system as soon as they are free, and a training step asks for
# the same ones again: keeping them makes a step on a CPU up to four times as fast.
export MALLOC_MMAP_THRESHOLD_ := 34359738368
export MALLOC_TRIM_THRESHOLD_ := 34359738368

include versions.env

# Stops a target with a message if a variable that it needs is not given.
need = $(if $($(1)),,$(error $(1)= is missing: make $@ $(2)))
# The data set given, or the generated one.
data_folder = $(or $(DATA),$(MINI_COCO))
mini_if_no_data = $(if $(DATA),,$(PY) -m cocodata mini $(MINI_COCO))

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## Make the environment .venv from the lock (PYTHON= names one of 3.11 to 3.13)
	@PYTHON="$(PYTHON)" tools/setup.sh

.PHONY: horovod
horovod: setup ## Build Horovod against this torch and install it (some minutes, once)
	@tools/horovod.sh

.PHONY: mini-coco
mini-coco: setup ## Generate the mini COCO in data/mini-coco
	@$(PY) -m cocodata mini $(MINI_COCO)

.PHONY: coco-check
coco-check: setup ## Look at a data set as training does before it starts (DATA=)
	$(call need,DATA,DATA=/data/coco)
	@$(PY) -m cocodata check "$(DATA)"

# The data set's way to the hosts. DATASET= names another one than COCO 2017.
DATASET ?= coco
# The folder that it is downloaded to and packed from.
dataset_folder = $(or $(DATA),data/$(DATASET))
archive_options = $(foreach archive,$(ARCHIVES),--archive '$(archive)') $(if $(PROXY),--proxy "$(PROXY)")

.PHONY: coco-download
coco-download: setup ## Download, check and unpack COCO 2017 (DATA= MIRROR= PROXY= ARCHIVES=)
	$(if $(filter-out coco,$(DATASET)),$(call need,ARCHIVES,DATASET=shapes ARCHIVES="https://..."))
	@$(PY) -m cocodata download "$(dataset_folder)" $(if $(MIRROR),--mirror "$(MIRROR)") \
	    $(archive_options) $(ARGS)

.PHONY: coco-verify
coco-verify: setup ## Decode every image, compare all hashes; REPAIR=1 mends (DATA= ARCHIVES= PROXY=)
	@$(PY) -m cocodata verify "$(dataset_folder)" $(if $(REPAIR),--repair $(archive_options)) $(ARGS)

.PHONY: coco-pack
coco-pack: setup ## Seal a verified data set into one image for coco-sync (DATASET= DATA=)
	@$(PY) -m cocodata pack "$(dataset_folder)" data/packed --name "$(DATASET)"

# A live display reaches the terminal past Ansible.
coco_playbook = ANSIBLE_CONFIG=ansible/ansible.cfg PATH="$(CURDIR)/.venv/bin:$$PATH" \
    .venv/bin/ansible-playbook --inventory "$(INVENTORY)" $(if $(LIMIT),--limit "$(LIMIT)") \
    --extra-vars "coco_dataset=$(DATASET) coco_bandwidth=$(BANDWIDTH) coco_terminal=$$(tty | grep ^/ || true)" \
    $(1) $(ARGS) ansible/coco-sync.yml

.PHONY: coco-sync
coco-sync: setup ## Bring a packed data set to all hosts (DATASET= INVENTORY= LIMIT= BANDWIDTH=)
	@$(coco_playbook)

.PHONY: coco-verify-hosts
coco-verify-hosts: setup ## Read all bytes of the data set on the hosts; REPAIR=1 mends (INVENTORY=)
	@$(call coco_playbook,--extra-vars "coco_verify=true coco_repair=$(if $(REPAIR),true,false)")

.PHONY: coco-manifest
coco-manifest: setup ## Write a data set's manifest: sizes, hashes and its version (DATA=)
	$(call need,DATA,DATA=/data/coco)
	@$(PY) -m cocodata manifest "$(DATA)"

.PHONY: train-local
train-local: setup ## Train here without a cluster (DATA= CONFIG= OVERLAY= OUT= HPARAMS="lr=.1")
	@$(mini_if_no_data)
	@$(PY) experiments/train.py --config "$(CONFIG)" --data "$(data_folder)" \
	    $(foreach overlay,$(or $(OVERLAY),$(local_overlay)),--overlay "$(overlay)") \
	    $(if $(OUT),--out "$(OUT)") $(foreach setting,$(HPARAMS),--set '$(setting)') $(ARGS)

# A folder or file here; or, with EXPERIMENT= (its id, or a checkpoint's UUID), one of a cluster's.
find_checkpoint = checkpoint=$(if $(EXPERIMENT),"$$($(PY) -m cluster fetch "$(EXPERIMENT)" \
    --cluster "$(CLUSTER)")","$(CHECKPOINT)")

.PHONY: evaluate
evaluate: setup ## Print COCO's metrics (CHECKPOINT= or EXPERIMENT=, DATA= OUT= MODEL=)
	$(if $(EXPERIMENT),,$(call need,CHECKPOINT,CHECKPOINT=runs/... DATA=...))
	@$(mini_if_no_data)
	@$(find_checkpoint); $(PY) experiments/evaluate.py --checkpoint "$$checkpoint" \
	    --data "$(data_folder)" $(if $(OUT),--out "$(OUT)") $(if $(MODEL),--model "$(MODEL)") $(ARGS)

.PHONY: predict
predict: setup ## Draw detections (CHECKPOINT= or EXPERIMENT=, IMAGES= OUT= MODEL=)
	$(if $(EXPERIMENT),,$(call need,CHECKPOINT,CHECKPOINT=runs/... IMAGES=folder))
	$(call need,IMAGES,CHECKPOINT=runs/... IMAGES=folder)
	@$(find_checkpoint); $(PY) experiments/predict.py --checkpoint "$$checkpoint" \
	    --images "$(IMAGES)" $(if $(OUT),--out "$(OUT)") $(if $(MODEL),--model "$(MODEL)") $(ARGS)

.PHONY: image
image: setup ## Build the task image, which trials run in (BASE_IMAGE=)
	@$(PY) docker/build_image.py "$$(docker/image-name.sh)" --base "$(BASE_IMAGE)"

.PHONY: local-up
local-up: setup ## Start a cluster on this machine (AGENTS= SLOTS= PORT= DATA=)
	@$(mini_if_no_data)
	@$(PY) -m cluster up --data "$(data_folder)" $(if $(AGENTS),--agents $(AGENTS)) \
	    $(if $(SLOTS),--slots $(SLOTS)) $(if $(PORT),--port $(PORT))

.PHONY: local-down
local-down: setup ## Stop the cluster on this machine; its data stays
	@$(PY) -m cluster down

.PHONY: local-destroy
local-destroy: setup ## Remove the cluster on this machine with all its data (SURE=yes)
	@$(PY) -m cluster destroy $(if $(filter yes,$(SURE)),--sure)

train_on_cluster = $(PY) -m cluster train experiments/$(1).yaml --cluster "$(CLUSTER)" \
    $(foreach overlay,$(OVERLAY),--overlay "$(overlay)") \
    $(if $(filter-out coco,$(DATASET)),--dataset "$(DATASET)") \
    $(foreach setting,$(HPARAMS),--config 'hyperparameters.$(setting)') $(ARGS)

.PHONY: train-const
train-const: setup ## Train on one slot of a cluster (CLUSTER= OVERLAY= HPARAMS=)
	@$(call train_on_cluster,const)

.PHONY: train-distributed
train-distributed: setup ## Train on several slots of a cluster (CLUSTER= OVERLAY= HPARAMS=)
	@$(call train_on_cluster,distributed)

.PHONY: train-adaptive
train-adaptive: setup ## Search hyperparameters on a cluster (CLUSTER= OVERLAY= HPARAMS=)
	@$(call train_on_cluster,adaptive)

.PHONY: follow
follow: setup ## Follow an experiment to its end (EXPERIMENT= CLUSTER=)
	$(call need,EXPERIMENT,EXPERIMENT=12)
	@$(PY) -m cluster follow "$(EXPERIMENT)" --cluster "$(CLUSTER)"

.PHONY: report
report: setup ## Tables, plots, CSV of a cluster's experiments (EXPERIMENTS="1 2" CLUSTER= OUT=)
	$(call need,EXPERIMENTS,EXPERIMENTS="1 2 3")
	@$(PY) -m cluster report --cluster "$(CLUSTER)" $(if $(OUT),--out "$(OUT)") -- "$(EXPERIMENTS)"

# Clusters on hosts of one's own (ansible/). INVENTORY= names them, ARGS= goes to ansible-playbook.
INVENTORY ?= hosts.yml
on_hosts = $(PY) ansible/command.py $(1) --inventory "$(INVENTORY)" $(2) -- $(ARGS)
limited = $(if $(LIMIT),--limit "$(LIMIT)")

.PHONY: cluster-up
cluster-up: setup ## Make a cluster of the inventory's hosts (INVENTORY= LIMIT=)
	@$(call on_hosts,up,$(limited))

.PHONY: cluster-status
cluster-status: setup ## Show hosts, slots, versions, experiments (INVENTORY= LIMIT= JSON=1)
	@$(call on_hosts,status,$(limited) $(if $(JSON),--json))

.PHONY: cluster-doctor
cluster-doctor: setup ## Check all that trials need, with remedies (INVENTORY= LIMIT= JSON=1)
	@$(call on_hosts,doctor,$(limited) $(if $(JSON),--json))

.PHONY: cluster-drain
cluster-drain: setup ## Let a host finish its trials and take no more (HOST= INVENTORY=)
	$(call need,HOST,HOST=node2)
	@$(call on_hosts,drain,--host "$(HOST)")

.PHONY: cluster-undrain
cluster-undrain: setup ## Let a drained host take trials again (HOST= INVENTORY=)
	$(call need,HOST,HOST=node2)
	@$(call on_hosts,undrain,--host "$(HOST)")

.PHONY: cluster-remove
cluster-remove: setup ## Take a host out of the cluster and clean it (HOST= INVENTORY=)
	$(call need,HOST,HOST=node2)
	@$(call on_hosts,remove,--host "$(HOST)")

.PHONY: cluster-upgrade
cluster-upgrade: setup ## Bring a cluster to this repository's versions (INVENTORY= LIMIT=)
	@$(call on_hosts,upgrade,$(limited))

.PHONY: cluster-down
cluster-down: setup ## Take a cluster down (INVENTORY= SURE=yes DELETE_DATA=yes)
	@$(call on_hosts,down,$(if $(filter yes,$(SURE)),--yes) \
	    $(if $(filter yes,$(DELETE_DATA)),--delete-data))

.PHONY: cluster-backup
cluster-backup: setup ## Write the master's database into backups/ (INVENTORY=)
	@$(call on_hosts,backup)

.PHONY: cluster-restore
cluster-restore: setup ## Put the master's database back (FILE=backups/... INVENTORY=)
	$(call need,FILE,FILE=backups/...)
	@$(call on_hosts,restore,--file "$(FILE)")

.PHONY: offline-bundle
offline-bundle: setup ## Gather all that hosts without internet need (OUT=offline-bundle)
	@$(PY) ansible/bundle.py make --out "$(or $(OUT),offline-bundle)" $(ARGS)

.PHONY: test-hosts
test-hosts: setup ## Test a cluster's whole life on hosts in containers (45 minutes, 35 GB)
	@TEST_HOSTS=yes $(PY) tools/run_tests.py --no-lint -m cluster tests/ansible

.PHONY: test
test: setup ## Lint, then run the tests (TESTS= chooses some)
	@$(PY) tools/run_tests.py -m "not cluster and not hosts" $(TESTS)

.PHONY: test-sync
test-sync: setup ## Sync a data set among hosts in network namespaces, with kills (minutes)
	@$(PY) tools/run_tests.py --no-lint -m hosts tests/data_prep

.PHONY: test-cluster
test-cluster: setup ## Run the tests that need Docker and Determined's images (TESTS= chooses some)
	@$(PY) tools/run_tests.py --no-lint -m cluster $(or $(TESTS),tests/cluster)

.PHONY: lint
lint: setup ## Look for faults of style and type in all files
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy bench cluster data-prep docker model experiments tools
	.venv/bin/mypy --ignore-missing-imports $$(git ls-files 'ansible/*.py')
	.venv/bin/yamllint --strict $$(git ls-files '*.yaml' '*.yml' .yamllint)
	.venv/bin/shellcheck --external-sources $$(git ls-files '*.sh' .ci/run)
	.venv/bin/hadolint docker/Dockerfile

.PHONY: format
format: setup ## Format the Python files and mend what can be mended
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

.PHONY: bench
bench: setup ## Measure side by side with peers; results in bench/results (OUT= DATA= ARGS=)
	@$(PY) -m bench $(if $(OUT),--out "$(OUT)") $(if $(DATA),--data "$(DATA)") $(ARGS)

.PHONY: bench-coco-sync
bench-coco-sync: setup ## Measure coco-sync beside rsync on shaped links, as root (OUT= ARGS=)
	@$(PY) -m bench.coco_sync $(if $(OUT),--out "$(OUT)") $(ARGS)

.PHONY: lock
lock: setup ## Write requirements.lock anew from pyproject.toml
	.uv/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
	    --python-version 3.11 --group control --group dev pyproject.toml -o requirements.lock

.PHONY: clean
clean: ## Remove caches and built wheels; data, runs and .venv stay
	rm -rf .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./.uv -prune -o -name __pycache__ -print0 | xargs -0 rm -rf
