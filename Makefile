# The commands of the project. `make` without a target prints the help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One file pins every package for developers, containers and CI; pip uses it for build tools too.
# GPU=legacy chooses the other one, with a torch for cards below compute capability 7.5.
GPU :=
ifneq ($(filter-out legacy,$(GPU)),)
$(error GPU is either legacy (Titan X, Xp, V) or not set)
endif
CONSTRAINTS := $(if $(GPU),constraints-legacy-gpu.txt,constraints.txt)
export PIP_CONSTRAINT := $(CURDIR)/$(CONSTRAINTS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# An environment of an older Python, or a broken one, is of no use: the next command makes a new one.
# Not for targets that need none, nor with -n, and no other folder.
IS_RECENT := import sys; sys.exit(sys.version_info < (3, 11))
ifneq ($(filter-out help clean browser,$(MAKECMDGOALS)),)
ifeq ($(VENV)$(findstring n,$(firstword -$(MAKEFLAGS))),.venv)
$(shell [ ! -f .venv/pyvenv.cfg ] || .venv/bin/python -c '$(IS_RECENT)' 2>/dev/null || \
  { echo 'Replacing .venv, which is not of Python 3.11 or newer.' >&2; rm -rf .venv; })
endif
endif
# Two processes, because tests start multi-threaded processes and some tests measure time.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup
CAMPAIGNS := acknowledged zombies lost_wakeups forged repeats orphans rolling mixed_versions floods faults kills raw_http contract isolation webhooks hostile_pictures fat_uploads fair_turns slow_clients full_disk torn_log poison soak failover

.PHONY: help up demo test test-reliability check bench campaign docs browser node clean

help:  ## Print this help
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 24

up: $(VENV)/.local$(GPU)  ## Set up and serve on http://127.0.0.1:8000 until Ctrl-C; GPU=legacy: for a Titan X, Xp, V
	@$(BIN)/impasto up

demo: $(VENV)/.local$(GPU)  ## Set up and run the sample pictures through a service, into out/
	@$(BIN)/impasto demo

test: $(VENV)/.dev$(GPU) browser node  ## Set up and run the tests
	$(PYTEST) -m "not reliability"

test-reliability: $(VENV)/.dev$(GPU)  ## Run the short campaigns with their controls, and long faults
	$(PYTEST) -m reliability

check: $(VENV)/.dev$(GPU)  ## Check style, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev$(GPU)  ## Measure speed and final loss: bench/README.md
	$(BIN)/python bench/optimize.py speed
	$(BIN)/python bench/optimize.py recipes

campaign: $(VENV)/.dev$(GPU)  ## Run all campaigns against the real service for hours: docs/operations.md
	@for name in $(CAMPAIGNS); do echo "== $$name"; $(BIN)/python tests/campaigns/$$name.py --seed 1 || exit 1; done

docs: $(VENV)/.dev$(GPU)  ## Build the documentation's site into out/site
	@$(BIN)/python docs/site/build.py out/site && echo out/site/index.html

browser:  ## Install Chromium, Firefox, nginx and Prometheus for the tests (needs apt and root)
	@{ command -v chromium && { command -v firefox-esr || command -v firefox; } && \
	  command -v prometheus && PATH=$$PATH:/usr/sbin command -v nginx; } >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends chromium firefox-esr nginx prometheus >/dev/null; } || \
	  echo "Chromium, Firefox, nginx or Prometheus is missing and cannot be installed: the tests that need it are skipped."

node: $(BIN)/pip  ## Install the generator of the TypeScript client (needs npm, or apt and root)
	@cmp -s integrations/typescript/package-lock.json $(VENV)/node/done || { \
	  { command -v npm >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null; }; } && \
	  mkdir -p $(VENV)/node && \
	  cp integrations/typescript/package.json integrations/typescript/package-lock.json \
	    integrations/typescript/.npmrc $(VENV)/node && \
	  npm ci --silent --prefix $(VENV)/node && \
	  cp integrations/typescript/package-lock.json $(VENV)/node/done; } || \
	  echo "npm or its packages are missing and cannot be installed: the test that needs them is skipped."

clean:  ## Remove the environment and all build outputs, but not your jobs
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# The target is pip: without Debian's python3-venv, venv creates python and fails before pip.
$(BIN)/pip:
	@$(PYTHON) -c '$(IS_RECENT)' || { \
	  echo "Impasto needs Python 3.11 or newer, and $(PYTHON) is not. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)

# Each set of packages has its own mark, and removes the other one's.
$(VENV)/.local$(GPU): $(BIN)/pip pyproject.toml $(CONSTRAINTS)
	@rm -f $(VENV)/.local* $(VENV)/.dev*
	$(BIN)/pip install --quiet --editable '.[local]'
	@touch $@

$(VENV)/.dev$(GPU): $(VENV)/.local$(GPU)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@
