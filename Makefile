# `make help` lists what there is. Everything installs itself into .venv first, once.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test lint types notebooks bundle workflows examples docs pytest prepare lock clean
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# a checkout's tests and examples keep away from the store of its pipeline
SCRATCH := .cache/check
export MLFLOW_DISABLE_TELEMETRY := true
# an environment that was moved or copied with its project is made again
$(shell tools/install.sh $(VENV) --forget-moved)

help: ## Show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

run: $(VENV)/.run-installed ## Run the whole pipeline on real data, with embedded defaults
	@$(BIN)/churn pipeline

test: lint types notebooks bundle workflows examples docs pytest ## Run every check

$(VENV)/.run-installed: requirements.lock pyproject.toml tools/install.sh
	@tools/install.sh $(VENV) requirements.lock
	@touch $@

$(VENV)/.dev-installed: requirements-dev.lock requirements.lock pyproject.toml tools/install.sh
	@tools/install.sh $(VENV) requirements-dev.lock
	@touch $@ $(VENV)/.run-installed

lint: $(VENV)/.dev-installed ## Lint and format check
	@echo "== lint"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

types: $(VENV)/.dev-installed ## Type check
	@echo "== types"
	@$(BIN)/mypy

notebooks: $(VENV)/.dev-installed ## Notebooks clean; package, paired scripts and README in step
	@echo "== notebooks"
	@$(BIN)/python -m tools.notebooks
	@$(BIN)/python -m tools.site readme --check

bundle: $(VENV)/.dev-installed ## Check every target of the bundle, without a workspace
	@echo "== bundle"
	@$(BIN)/churn bundle check

workflows: $(VENV)/.dev-installed ## Check the workflows of GitHub Actions and Azure DevOps
	@echo "== workflows"
	@$(BIN)/python -m tools.workflows

examples: $(VENV)/.dev-installed ## Run the examples in the notebooks, and the job notebooks one after the other
	@echo "== examples"
	@rm -rf $(SCRATCH) && mkdir -p $(SCRATCH) && cp settings.ini requirements.lock $(SCRATCH)/
	@CHURN_SETTINGS="$$PWD/$(SCRATCH)/settings.ini"; export CHURN_SETTINGS; \
	  trap '$(BIN)/churn endpoint stop >/dev/null' EXIT; \
	  for notebook in nbs/jobs/*.ipynb; do \
	    report=$(SCRATCH)/$${notebook##*/}; \
	    $(BIN)/papermill --no-progress-bar --cwd nbs/jobs -p rehearsal False $$notebook $$report \
	      2>$$report.log || { cat $$report.log; exit 1; }; \
	  done
	@CHURN_SETTINGS="$$PWD/$(SCRATCH)/settings.ini" $(BIN)/nbdev-test --skip-folder-re '^(jobs|[_.])' --n-workers 2

docs: $(VENV)/.dev-installed ## Build the documentation site into site/, strictly
	@echo "== docs"
	@$(BIN)/python -m tools.site build

pytest: $(VENV)/.dev-installed ## Run the tests
	@echo "== tests"
	@$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

prepare: $(VENV)/.dev-installed ## After an edit: format, export, clean, paired scripts, README; sets up the git hooks
	@$(BIN)/python -m tools.notebooks prepare
	@$(BIN)/python -m tools.site readme
	@$(BIN)/python -m tools.hooks

lock: $(VENV)/.dev-installed ## Make both lock files anew, with the newest versions that pyproject.toml allows
	@$(BIN)/python -m tools.lock

clean: ## Remove everything that can be made again, except the store in .churn
	@rm -rf $(VENV) .cache _proc site build dist ./*.egg-info
