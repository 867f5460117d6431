# `make help` lists what there is. Everything installs itself into .venv first, once.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test check lint types notebooks bundle workflows examples docs pytest test-times rehearsal coverage lab prepare lock clean
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# a checkout's tests and examples keep away from the store of its pipeline
SCRATCH := .cache/check
export MLFLOW_DISABLE_TELEMETRY := true
# an environment that was moved or copied with its project is made again
$(shell tools/install.sh $(VENV) --forget-moved)
# what `make pytest` and `make examples` are to run: a file, a test or a notebook; all of them when empty
T :=
NB :=

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

run: $(VENV)/.run-installed ## Run the whole pipeline on real data, with embedded defaults
	@$(BIN)/churn pipeline

test: lint types notebooks bundle workflows examples docs pytest ## Run every check

check: lint types notebooks ## Run the quick checks: format, lint, layers, types, notebooks in step

$(VENV)/.run-installed: requirements.lock pyproject.toml tools/install.sh
	@tools/install.sh $(VENV) requirements.lock
	@touch $@

$(VENV)/.dev-installed: requirements-dev.lock requirements.lock pyproject.toml tools/install.sh
	@tools/install.sh $(VENV) requirements-dev.lock
	@touch $@ $(VENV)/.run-installed $(VENV)/.lint-installed

$(VENV)/.lint-installed: requirements-dev.lock requirements.lock pyproject.toml tools/install.sh
	@tools/install.sh $(VENV) requirements-dev.lock lint
	@touch $@

# of jobs that can sign in to Databricks: what they need, as its hashes say
$(VENV)/.deploy-installed: requirements-deploy.lock pyproject.toml tools/install.sh
	@tools/install.sh $(VENV) requirements-deploy.lock --hashes
	@touch $@

$(VENV)/.monitor-installed: requirements-monitor.lock pyproject.toml tools/install.sh
	@tools/install.sh $(VENV) requirements-monitor.lock --hashes
	@touch $@

lint: $(VENV)/.lint-installed ## Lint, format check, words, layers of the package
	@echo "== lint"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/python -m tools.words
	@$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache

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

ifdef NB
examples: $(VENV)/.dev-installed
	@mkdir -p $(SCRATCH) && cp settings.ini requirements.lock $(SCRATCH)/
	@CHURN_SETTINGS="$$PWD/$(SCRATCH)/settings.ini" $(BIN)/nbdev-test "$(NB)" --n-workers 1 --do-print
else
examples: $(VENV)/.dev-installed ## Run the job notebooks and all examples, or one notebook: make examples NB=nbs/...
	@echo "== examples"
	@$(BIN)/python -m tools.real_run copy $(SCRATCH)
	@trap 'CHURN_SETTINGS="$$PWD/$(SCRATCH)/settings.ini" $(BIN)/churn endpoint stop >/dev/null' EXIT; \
	  CHURN_SETTINGS="$$PWD/$(SCRATCH)/settings.ini" $(BIN)/nbdev-test --skip-folder-re '^(jobs|[_.])' --n-workers 2
endif

docs: $(VENV)/.dev-installed ## Build the documentation site into site/, strictly
	@echo "== docs"
	@$(BIN)/python -m tools.site build

# two processes on two cores: threads of theirs would only wait for each other
examples pytest test-times coverage: export OMP_NUM_THREADS := 1

PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder

pytest: $(VENV)/.dev-installed ## Run the tests, or some of them: make pytest T=tests/...
	@echo "== tests"
	@$(BIN)/python -m pytest -q $(if $(T),$(T),$(PARALLEL))

test-times: $(VENV)/.dev-installed ## Run the tests and list the slowest twenty
	@$(BIN)/python -m pytest -q $(PARALLEL) --durations 20

rehearsal: $(VENV)/.dev-installed ## Live 120 days in two environments, and write their table for the documentation
	@$(BIN)/python -m tests.days

coverage: $(VENV)/.dev-installed ## Run the tests and say which share of the lines and branches they reach
	@mkdir -p .cache/coverage && $(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -q $(PARALLEL)
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report --skip-covered --sort=cover

lab: $(VENV)/.dev-installed ## Open the notebooks in JupyterLab, with the kernel of this environment
	@$(BIN)/jupyter lab --notebook-dir=nbs

prepare: $(VENV)/.dev-installed ## After an edit: format, export, clean, paired scripts, README; sets up the git hooks
	@$(BIN)/python -m tools.notebooks prepare
	@$(BIN)/python -m tools.flow
	@$(BIN)/python -m tools.site readme
	@$(BIN)/python -m tools.hooks

lock: $(VENV)/.dev-installed ## Lock again, with the newest versions that pyproject.toml allows
	@$(BIN)/python -m tools.lock

clean: ## Remove everything that can be made again, except the store in .churn
	@rm -rf $(VENV) .cache _proc site build dist ./*.egg-info
