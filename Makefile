# The tour of the project: `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Variables are taken from make's command line alone: a shell has a NAME, a PORT or a SEED of its own now and then (WSL sets
# NAME), and a run must not depend on that. Only PYTHON and VENV may also come from the environment.
VARIABLES := NAME RUNS RUNNER CORPUS HELDOUT INSTRUCTIONS VOCAB_SIZE PRESET STEPS SEED LORA_RANK LORA_STEPS TASK_ITEMS MODEL_NAME \
	ARGS ENGINE BASE_IMAGE DEVICE ENDPOINT EXPERIMENT PORT NANOGPT LITGPT GPTFAST LLAMACPP
GIVEN := $(foreach name,$(VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
given = $(filter $(1),$(GIVEN))
# Their values reach the shell through the environment, never as part of its text: quotes, spaces, `$` and `;` in them mean
# nothing, there or to make.
$(foreach name,PYTHON VENV $(GIVEN),$(eval override $(name) := $$(value $(name)))$(eval export $(name)))
$(foreach name,$(filter-out $(GIVEN),$(VARIABLES)),$(eval unexport $(name)))
$(if $(word 2,$(VENV)),$(error VENV is "$(VENV)"; make takes no path with spaces, choose another))

# Parameters of `make pipeline`, all optional: `make pipeline STEPS=300 SEED=1 CORPUS=my/texts`.
# ARGS is text for the shell: ARGS="--heldout-fraction 0.1 --optimizer adamw".
words = $(if $(call given,ARGS),$(value ARGS))
option = $(if $(call given,$(1)),$(if $(value $(1)),--$(2) "$$$(1)"))
PIPELINE_OPTIONS = $(strip \
	$(call option,NAME,name) \
	$(call option,RUNS,runs) \
	$(call option,RUNNER,runner) \
	$(if $(call given,CORPUS),--corpus "$$CORPUS" $(if $(call given,HELDOUT),,--heldout "")) \
	$(if $(call given,HELDOUT),--heldout "$$HELDOUT") \
	$(call option,INSTRUCTIONS,instructions) \
	$(call option,VOCAB_SIZE,vocab-size) \
	$(call option,PRESET,preset) \
	$(call option,STEPS,steps) \
	$(call option,SEED,seed) \
	$(call option,LORA_RANK,lora-rank) \
	$(call option,LORA_STEPS,lora-steps) \
	$(call option,TASK_ITEMS,task-items) \
	$(call option,MODEL_NAME,model-name))

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 21
	@echo
	@echo 'make pipeline takes, all optional (README.md says what they are):'
	@echo '  NAME RUNS RUNNER CORPUS HELDOUT INSTRUCTIONS VOCAB_SIZE PRESET STEPS SEED LORA_RANK LORA_STEPS TASK_ITEMS MODEL_NAME'
	@echo '  ARGS="--help" for every other parameter'
	@echo 'and the others, optional too, but for ENDPOINT:'
	@echo '  setup              PYTHON VENV (as every other)'
	@echo '  sweep              as pipeline, ARGS'
	@echo '  bench              LLAMACPP (the folder of a peer to measure beside) ARGS="--help" or names: ARGS="training decoding"'
	@echo '  bench-gpu          NANOGPT LITGPT GPTFAST ARGS'
	@echo '  bench-gpus         ARGS'
	@echo '  images             ENGINE=docker|podman DEVICE=cpu|cuda BASE_IMAGE ARGS=--spark'
	@echo '  images-check       ENGINE ARGS=--spark'
	@echo '  submit             ENDPOINT EXPERIMENT NAME ARGS="corpus=s3://... instructions=s3://... steps=300"; all: ENDPOINT=x ARGS="--help"'
	@echo '  retrain-schedule   ENDPOINT EXPERIMENT NAME ARGS="corpus=s3://... instructions=s3://..."'
	@echo '  local-pipeline     NAME ARGS="steps=300"'
	@echo '  mlflow-ui          RUNS PORT'
	@echo '  free-tier-doctor   ARGS="--tfvars FILE"'

.PHONY: setup
setup: $(VENV)/installed ## Make the virtual environment and install everything

# One stamp for the whole environment; it is remade when a requirement changes.
$(VENV)/installed: pyproject.toml constraints.txt
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$("$$PYTHON" --version) is too old; install Python 3.11 or newer, or name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	@scripts/make-venv.sh "$$PYTHON" "$$VENV"
	@echo "Installing the requirements (some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: pipeline
pipeline: $(VENV)/installed ## Train, tune, convert, evaluate and register a GPT here, without a cluster
	@$(BIN)/python -m pipelines.local $(PIPELINE_OPTIONS) $(words)

# The trials of a sweep: ARGS='--trials "learning_rate=0.005 n_layers=2; learning_rate=0.01 n_layers=4"'.
.PHONY: sweep
sweep: $(VENV)/installed ## Pretrain with several learning rates and sizes, go on with the best; parameters as of make pipeline
	@$(BIN)/python -m pipelines.local --sweep $(PIPELINE_OPTIONS) $(words)

.PHONY: test
test: $(VENV)/installed ## Run the tests
	@$(BIN)/python -m pytest -n 2 --dist loadscope -m 'not slow and not engine'

.PHONY: test-slow
test-slow: $(VENV)/installed ## Run the tests that take long: full-size models, many kills, memory limits
	@$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m 'slow and not engine'

.PHONY: test-engine
test-engine: $(VENV)/installed ## Run the tests that need a container engine and the images of make images
	@$(BIN)/python -m pytest -m engine

.PHONY: lint
lint: $(VENV)/installed ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Where the peers are that are no packages: make bench LLAMACPP=path; make bench-gpu NANOGPT=path LITGPT=path GPTFAST=path.
peer = $(if $(call given,$(1)),--peer $(2)="$$$(1)")
PEER_OPTIONS = $(strip \
	$(call peer,NANOGPT,nanogpt) \
	$(call peer,LITGPT,litgpt) \
	$(call peer,GPTFAST,gptfast) \
	$(call peer,LLAMACPP,llamacpp))

.PHONY: bench
bench: $(VENV)/installed ## Measure speed beside the peers on this CPU, in five to twelve minutes
	@$(BIN)/python -m bench cpu $(PEER_OPTIONS) $(words)

.PHONY: bench-gpu
bench-gpu: $(VENV)/installed ## The same on one GPU
	@$(BIN)/python -m bench gpu $(PEER_OPTIONS) $(words)

.PHONY: bench-gpus
bench-gpus: $(VENV)/installed ## Measure how training scales with the GPUs of this machine
	@$(BIN)/python -m bench gpus $(words)

.PHONY: images
images: $(VENV)/installed ## Build the container images, with docker or podman
	@$(BIN)/python -m components.images.build $(strip $(call option,ENGINE,engine) $(call option,DEVICE,device) $(call option,BASE_IMAGE,base-image) $(words))

.PHONY: images-check
images-check: $(VENV)/installed ## Check the images: Dockerfiles, size, user, labels, secrets; write their bills of materials
	@$(BIN)/python -m components.images.check $(strip $(call option,ENGINE,engine) $(words))

.PHONY: compile
compile: $(VENV)/installed ## Compile the pipeline to pipelines/compiled/ and renew the components' READMEs
	@$(BIN)/python -m pipelines.compile
	@$(BIN)/python -m components.readme

.PHONY: submit
submit: $(VENV)/installed ## Submit a compiled pipeline to a cluster: make submit ENDPOINT=... ARGS="corpus=s3://..."
	@test -n "$$ENDPOINT" || { echo "error: ENDPOINT is not set; give the address of KFP's API: make submit ENDPOINT=http://localhost:8888" >&2; exit 1; }
	@$(BIN)/python -m pipelines.submit "$$ENDPOINT" $(call option,NAME,name) $(call option,EXPERIMENT,experiment) $(words)

.PHONY: retrain-schedule
retrain-schedule: $(VENV)/installed ## Retrain on drift, on a schedule: make retrain-schedule ENDPOINT=... ARGS="corpus=s3://..."
	@test -n "$$ENDPOINT" || { echo "error: ENDPOINT is not set; give the address of KFP's API: make retrain-schedule ENDPOINT=http://localhost:8888" >&2; exit 1; }
	@$(BIN)/python -m pipelines.recurring "$$ENDPOINT" $(call option,NAME,name) $(call option,EXPERIMENT,experiment) $(words)

.PHONY: local-pipeline
local-pipeline: $(VENV)/installed ## Run the pipeline on a kind cluster on this machine
	@$(BIN)/python -m pipelines.kind up $(call option,NAME,name) $(words)

.PHONY: local-pipeline-down
local-pipeline-down: $(VENV)/installed ## Take that cluster away, with everything in it
	@$(BIN)/python -m pipelines.kind down

.PHONY: manifests
manifests: $(VENV)/installed ## Render the Kubernetes manifests to build/manifests/ and check them
	@$(BIN)/python scripts/render-manifests.py

.PHONY: enterprise-values
enterprise-values: $(VENV)/installed ## Tell which values of the enterprise overlay are still the example's
	@$(BIN)/python scripts/enterprise-values.py

# Without the ASGI lifespan, which only clears away containers of an assistant that nobody uses here, Ctrl-C ends it without
# a traceback of uvicorn's.
.PHONY: mlflow-ui
mlflow-ui: $(VENV)/installed ## Look at the runs in MLflow: http://127.0.0.1:5000
	@MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --workers 1 --uvicorn-opts "--lifespan off" \
		--host 127.0.0.1 --port "$${PORT:-5000}" \
		--backend-store-uri "sqlite:///$${RUNS:-runs}/mlflow.db" --artifacts-destination "$${RUNS:-runs}/mlartifacts"

.PHONY: doctor
doctor: $(VENV)/installed ## Tell what is installed, what is missing and what this machine can run
	@$(BIN)/modelcore doctor

.PHONY: free-tier-doctor
free-tier-doctor: $(VENV)/installed ## Check an AWS account, its quotas and the cost before terraform apply (docs/free-tier.md)
	@$(BIN)/python -m infra.free_tier_doctor $(words)

.PHONY: clean
clean: ## Remove the virtual environment and caches; runs/ stays
	rm -rf "$$VENV" .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
