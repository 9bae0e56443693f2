# The commands of this repository; `make help` lists them.
# Variables are given after the target: make train-local DATA=/data/coco HPARAMS="lr=.1 epochs=3"

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# If neither CONFIG nor OVERLAY is given, train-local trains the tiny detector.
ifeq ($(origin CONFIG),undefined)
    local_overlay := experiments/overlays/mini.yaml
endif
CONFIG ?= experiments/const.yaml
# The cluster that commands use: local is the one on this machine, main the one of hosts.yml.
CLUSTER ?= main
MINI_COCO := data/mini-coco
PY := .venv/bin/python

# Packages are imported from the repository's root and from data-prep.
export PYTHONPATH := $(CURDIR):$(CURDIR)/data-prep
# Cache compiled modules (in .cache), even if the user's environment says not to: without them, each
# program that imports torch takes 15 s longer to start.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/pycache
# By default glibc returns large blocks to the system as soon as they are freed, and each training step
# allocates them again. Keeping them makes a step on a CPU up to four times as fast.
export MALLOC_MMAP_THRESHOLD_ := 34359738368
export MALLOC_TRIM_THRESHOLD_ := 34359738368

include versions.env

# Set if the command only prints its help.
asks_help = $(filter --help,$(ARGS))
# Stops a target with a message if a required variable is missing.
need = $(if $($(1))$(asks_help),,$(error $(1)= is missing: make $@ $(2)))
# The given data set, or the generated one.
data_folder = $(or $(DATA),$(MINI_COCO))
mini_if_no_data = $(if $(DATA)$(asks_help),,$(PY) -m cocodata mini $(MINI_COCO))

##@ Train

.PHONY: train-local
train-local: setup ## Train here, no cluster (DATA= CONFIG= OVERLAY= OUT= HPARAMS="lr=.1" ARGS=)
	@$(mini_if_no_data)
	@$(PY) experiments/train.py --config "$(CONFIG)" --data "$(data_folder)" \
	    $(foreach overlay,$(or $(OVERLAY),$(local_overlay)),--overlay "$(overlay)") \
	    $(if $(OUT),--out "$(OUT)") $(foreach setting,$(HPARAMS),--set '$(setting)') $(ARGS)

train_on_cluster = $(PY) -m cluster train experiments/$(1).yaml --cluster "$(CLUSTER)" \
    $(foreach overlay,$(OVERLAY),--overlay "$(overlay)") \
    $(if $(filter-out coco,$(DATASET)),--dataset "$(DATASET)") \
    $(foreach setting,$(HPARAMS),--config 'hyperparameters.$(setting)') $(ARGS)

.PHONY: train-const
train-const: setup ## Train on one slot of a cluster (CLUSTER= DATASET= OVERLAY= HPARAMS= ARGS=)
	@$(call train_on_cluster,const)

.PHONY: train-distributed
train-distributed: setup ## Train on several slots (CLUSTER= DATASET= OVERLAY= HPARAMS= ARGS=)
	@$(call train_on_cluster,distributed)

.PHONY: train-adaptive
train-adaptive: setup ## Search hyperparameters (CLUSTER= DATASET= OVERLAY= HPARAMS= ARGS=)
	@$(call train_on_cluster,adaptive)

.PHONY: follow
follow: setup ## Follow a running experiment to its end (EXPERIMENT= CLUSTER=)
	$(call need,EXPERIMENT,EXPERIMENT=12)
	@$(PY) -m cluster follow "$(EXPERIMENT)" --cluster "$(CLUSTER)"

# A folder or file on this machine, or a checkpoint that is downloaded from a cluster: EXPERIMENT= is
# an experiment's number or a checkpoint's UUID.
find_checkpoint = checkpoint=$(if $(EXPERIMENT),"$$($(PY) -m cluster fetch "$(EXPERIMENT)" \
    --cluster "$(CLUSTER)")","$(CHECKPOINT)")

.PHONY: evaluate
evaluate: setup ## Print COCO metrics (CHECKPOINT= | EXPERIMENT= CLUSTER=, DATA= OUT= MODEL= ARGS=)
	$(if $(EXPERIMENT),,$(call need,CHECKPOINT,CHECKPOINT=runs/... DATA=...))
	@$(mini_if_no_data)
	@$(find_checkpoint); $(PY) experiments/evaluate.py --checkpoint "$$checkpoint" \
	    --data "$(data_folder)" $(if $(OUT),--out "$(OUT)") $(if $(MODEL),--model "$(MODEL)") $(ARGS)

.PHONY: predict
predict: setup ## Draw detections (CHECKPOINT= | EXPERIMENT= CLUSTER=, IMAGES= OUT= MODEL= ARGS=)
	$(if $(EXPERIMENT),,$(call need,CHECKPOINT,CHECKPOINT=runs/... IMAGES=folder))
	$(call need,IMAGES,CHECKPOINT=runs/... IMAGES=folder)
	@$(find_checkpoint); $(PY) experiments/predict.py --checkpoint "$$checkpoint" \
	    --images "$(IMAGES)" $(if $(OUT),--out "$(OUT)") $(if $(MODEL),--model "$(MODEL)") $(ARGS)

.PHONY: report
report: setup ## Tables, plots and CSV of experiments (EXPERIMENTS="1 2" CLUSTER= OUT= ARGS=)
	$(call need,EXPERIMENTS,EXPERIMENTS="1 2 3")
	@$(PY) -m cluster report --cluster "$(CLUSTER)" $(if $(OUT),--out "$(OUT)") $(ARGS) -- "$(EXPERIMENTS)"

##@ One machine

.PHONY: image
image: setup ## Build the task image, which trials run in (BASE_IMAGE=)
	@$(PY) docker/build_image.py "$$(docker/image-name.sh)" --base "$(BASE_IMAGE)"

.PHONY: local-up
local-up: setup ## Start a cluster on this machine (GPUS=none AGENTS= SLOTS= PORT= DATA= ARGS=)
	@$(mini_if_no_data)
	@$(PY) -m cluster up --data "$(data_folder)" $(if $(AGENTS),--agents $(AGENTS)) \
	    $(if $(SLOTS),--slots $(SLOTS)) $(if $(PORT),--port $(PORT)) $(if $(GPUS),--gpus $(GPUS)) $(ARGS)

# PY= names another Python, whose packages are used as they are.
.PHONY: gpu-check
gpu-check: $(if $(filter command line,$(origin PY)),,setup) ## Check this machine's GPU (PARTS=parity,decode OUT= MINUTES= DEVICE=cpu PY=)
	@$(PY) -m bench.gpu_check $(if $(PARTS),--parts "$(PARTS)") $(if $(OUT),--out "$(OUT)") \
	    $(if $(MINUTES),--minutes "$(MINUTES)") $(if $(DEVICE),--device "$(DEVICE)") $(ARGS)

.PHONY: local-down
local-down: setup ## Stop the cluster on this machine; its data stays
	@$(PY) -m cluster down

.PHONY: local-destroy
local-destroy: setup ## Remove the cluster on this machine with all its data (SURE=yes)
	@$(PY) -m cluster destroy $(if $(filter yes,$(SURE)),--sure)

##@ Your machines

# Clusters on other machines (ansible/). INVENTORY= lists them; ARGS= is passed to ansible-playbook.
INVENTORY ?= hosts.yml
on_hosts = $(PY) ansible/commands/hosts.py $(1) --inventory "$(INVENTORY)" $(2) $(or $(asks_help),-- $(ARGS))
limited = $(if $(LIMIT),--limit "$(LIMIT)")

.PHONY: cluster-up
cluster-up: setup ## Make the inventory's hosts a cluster, or repair it (INVENTORY= LIMIT= ARGS=)
	@$(call on_hosts,up,$(limited))

.PHONY: cluster-status
cluster-status: setup ## Show hosts, slots, versions, experiments (INVENTORY= LIMIT= JSON=1 ARGS=)
	@$(call on_hosts,status,$(limited) $(if $(JSON),--json))

.PHONY: cluster-doctor
cluster-doctor: setup ## Check what trials need; print remedies (INVENTORY= LIMIT= JSON=1 ARGS=)
	@$(call on_hosts,doctor,$(limited) $(if $(JSON),--json))

.PHONY: cluster-drain
cluster-drain: setup ## Let a host finish its trials and take no more (HOST= INVENTORY= ARGS=)
	$(call need,HOST,HOST=node2)
	@$(call on_hosts,drain,--host "$(HOST)")

.PHONY: cluster-undrain
cluster-undrain: setup ## Let a drained host take trials again (HOST= INVENTORY= ARGS=)
	$(call need,HOST,HOST=node2)
	@$(call on_hosts,undrain,--host "$(HOST)")

.PHONY: cluster-remove
cluster-remove: setup ## Take a host out of the cluster and clean it up (HOST= INVENTORY= ARGS=)
	$(call need,HOST,HOST=node2)
	@$(call on_hosts,remove,--host "$(HOST)")

.PHONY: cluster-certificates
cluster-certificates: setup ## Renew certificates (DAYS= NEW_AUTHORITY=yes INVENTORY= LIMIT= ARGS=)
	@$(call on_hosts,certificates,$(limited) $(if $(DAYS),--days "$(DAYS)") \
	    $(if $(filter yes,$(NEW_AUTHORITY)),--new-authority))

.PHONY: cluster-secrets-export
cluster-secrets-export: setup ## Save secrets, encrypted (OUT=main.age CLUSTER= PASSPHRASE_FILE=)
	$(call need,OUT,OUT=main.age)
	@$(PY) ansible/commands/cluster_secrets.py export $(if $(OUT),"$(OUT)") --cluster "$(CLUSTER)" \
	    $(if $(PASSPHRASE_FILE),--passphrase-file "$(PASSPHRASE_FILE)") $(ARGS)

.PHONY: cluster-secrets-import
cluster-secrets-import: setup ## Bring saved secrets here (IN=main.age FORCE=yes PASSPHRASE_FILE=)
	$(call need,IN,IN=main.age)
	@$(PY) ansible/commands/cluster_secrets.py import $(if $(IN),"$(IN)") \
	    $(if $(filter yes,$(FORCE)),--force) \
	    $(if $(PASSPHRASE_FILE),--passphrase-file "$(PASSPHRASE_FILE)") $(ARGS)

.PHONY: cluster-upgrade
cluster-upgrade: setup ## Upgrade to this repository's versions (INVENTORY= LIMIT= ARGS=)
	@$(call on_hosts,upgrade,$(limited))

.PHONY: cluster-backup
cluster-backup: setup ## Save the master's database to backups/ (INVENTORY= ARGS=)
	@$(call on_hosts,backup)

.PHONY: cluster-restore
cluster-restore: setup ## Restore the master's database (FILE=backups/... INVENTORY= ARGS=)
	$(call need,FILE,FILE=backups/...)
	@$(call on_hosts,restore,--file "$(FILE)")

.PHONY: cluster-down
cluster-down: setup ## Take a cluster down (INVENTORY= SURE=yes DELETE_DATA=yes ARGS=)
	@$(call on_hosts,down,$(if $(filter yes,$(SURE)),--yes) \
	    $(if $(filter yes,$(DELETE_DATA)),--delete-data))

.PHONY: offline-bundle
offline-bundle: setup ## Collect what hosts without internet need (OUT=offline-bundle ARGS=)
	@$(PY) ansible/commands/bundle.py make --out "$(or $(OUT),offline-bundle)" $(ARGS)

##@ Data

# DATASET= names a data set other than COCO 2017.
DATASET ?= coco
# The folder on this machine that contains it.
dataset_folder = $(or $(DATA),data/$(DATASET))
archive_options = $(foreach archive,$(ARCHIVES),--archive '$(archive)') $(if $(PROXY),--proxy "$(PROXY)")

.PHONY: mini-coco
mini-coco: setup ## Generate the mini COCO in data/mini-coco (ARGS=)
	@$(PY) -m cocodata mini $(MINI_COCO) $(ARGS)

.PHONY: coco-download
coco-download: setup ## Download and unpack COCO (DATASET= DATA= MIRROR= PROXY= ARCHIVES= ARGS=)
	$(if $(filter-out coco,$(DATASET)),$(call need,ARCHIVES,DATASET=shapes ARCHIVES="https://..."))
	@$(PY) -m cocodata download "$(dataset_folder)" $(if $(MIRROR),--mirror "$(MIRROR)") \
	    $(archive_options) $(ARGS)

.PHONY: coco-check
coco-check: setup ## Check a data set as training does before it starts (DATA= ARGS=)
	$(call need,DATA,DATA=/data/coco)
	@$(PY) -m cocodata check "$(DATA)" $(ARGS)

.PHONY: coco-manifest
coco-manifest: setup ## Write a manifest: sizes, hashes and a version (DATA= ARGS=)
	$(call need,DATA,DATA=/data/coco)
	@$(PY) -m cocodata manifest "$(DATA)" $(ARGS)

.PHONY: coco-verify
coco-verify: setup ## Decode and hash all images (DATASET= DATA= REPAIR=1 ARCHIVES= PROXY= ARGS=)
	@$(PY) -m cocodata verify "$(dataset_folder)" $(if $(REPAIR),--repair $(archive_options)) $(ARGS)

.PHONY: coco-pack
coco-pack: setup ## Pack a verified data set into one image for coco-sync (DATASET= DATA= ARGS=)
	@$(PY) -m cocodata pack "$(dataset_folder)" data/packed --name "$(DATASET)" $(ARGS)

.PHONY: coco-sync
coco-sync: setup ## Copy a packed data set to hosts (DATASET= INVENTORY= LIMIT= BANDWIDTH= ARGS=)
	@$(call on_hosts,coco-sync,--dataset "$(DATASET)" $(limited) \
	    $(if $(BANDWIDTH),--bandwidth "$(BANDWIDTH)"))

.PHONY: coco-verify-hosts
coco-verify-hosts: setup ## Check a data set on the hosts (DATASET= INVENTORY= LIMIT= REPAIR=1 ARGS=)
	@$(call on_hosts,coco-verify,--dataset "$(DATASET)" $(limited) $(if $(REPAIR),--repair))

##@ Develop

.PHONY: help
help: ## List the targets with their variables
	@printf '%s\n' 'Variables follow the target: make train-local DATA=/data/coco OUT=runs/d0' \
	    'ARGS= passes more options to the command; ARGS=--help explains them: make train-local ARGS=--help'
	@awk -F ':.*## ' '/^##@ / {print "\n" substr($$0, 5)} \
	    /^[a-z-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## Make the environment .venv from the lock (PYTHON= names one of 3.11 to 3.13)
	@PYTHON="$(PYTHON)" tools/setup.sh

.PHONY: horovod
horovod: setup ## Build Horovod against this torch and install it (some minutes, once)
	@tools/horovod.sh

run_linters = .venv/bin/pre-commit run --files $$(git ls-files --cached --others --exclude-standard)

.PHONY: test
test: setup ## Lint, then run the tests (TESTS=tests/model runs some of them)
	@lint=0; $(run_linters) || lint=$$?; \
	    tests=0; $(PY) -m pytest -m "not cluster and not hosts" $(TESTS) || tests=$$?; \
	    [[ $$lint == 0 ]] || echo "make lint failed; what it found is above the tests"; \
	    exit $$((lint || tests))

.PHONY: test-sync
test-sync: setup ## Test coco-sync between hosts in namespaces, with kills (COCO_SYNC_REPEATS=)
	@$(PY) -m pytest -m hosts tests/data_prep

.PHONY: test-cluster
test-cluster: setup ## Run the tests that need Docker and Determined's images (TESTS=)
	@$(PY) -m pytest -m cluster $(or $(TESTS),tests/system/cluster tests/system/master)

.PHONY: test-hosts
test-hosts: setup ## Test a cluster on hosts (TEST_HOSTS_PROXY= TEST_HOSTS_BUNDLE= TEST_HOSTS_IMAGE=)
	@TEST_HOSTS=yes $(PY) -m pytest -m cluster tests/system/hosts

.PHONY: lint
lint: setup ## Check the style and types of all files, those not yet added to git included
	@$(run_linters)

.PHONY: format
format: setup ## Format the Python files, fix what can be fixed, write the table of settings
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .
	$(PY) tools/settings_table.py

.PHONY: bench
bench: setup ## Measure next to peers; results in bench/results (OUT= DATA= ARGS=)
	@$(PY) -m bench $(if $(OUT),--out "$(OUT)") $(if $(DATA),--data "$(DATA)") $(ARGS)

.PHONY: bench-coco-sync
bench-coco-sync: setup ## Measure coco-sync next to rsync on shaped links, as root (OUT= ARGS=)
	@$(PY) -m bench.coco_sync $(if $(OUT),--out "$(OUT)") $(ARGS)

.PHONY: lock
lock: setup ## Update requirements.lock from pyproject.toml
	.uv/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
	    --python-version 3.11 --group control --group dev pyproject.toml -o requirements.lock

.PHONY: clean
clean: ## Remove caches and built wheels; data, runs and .venv stay
	rm -rf .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./.uv -prune -o -name __pycache__ -print0 | xargs -0 rm -rf
