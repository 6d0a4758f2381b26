# Everything begins here. Bare `make` prints this help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One file pins every package, for people, containers and CI alike; pip reads it for build tools, too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Two processes: what the tests start has threads of its own, and some tests measure time.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup
CAMPAIGNS := acknowledged zombies lost_wakeups forged repeats orphans rolling floods faults kills raw_http contract strangers webhooks hostile_pictures fat_uploads slow_clients full_disk torn_log poison soak

.PHONY: help up demo test test-reliability check bench campaign browser clean

help:  ## Print this help
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 24

up: $(VENV)/.local  ## Set up and serve on http://127.0.0.1:8000 until Ctrl-C
	@$(BIN)/impasto up

demo: $(VENV)/.local  ## Set up and paint the sample pictures into out/
	@$(BIN)/impasto demo

test: $(VENV)/.dev browser  ## Set up and run the tests
	$(PYTEST) -m "not reliability"

test-reliability: $(VENV)/.dev  ## Run short campaigns, their controls and long faults
	$(PYTEST) -m reliability

check: $(VENV)/.dev  ## Style, types and the dependency rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev  ## Measure speed and delivered loss: bench/README.md
	$(BIN)/python bench/optimize.py

campaign: $(VENV)/.dev  ## Attack the real service for some hours: docs/operations.md
	@for name in $(CAMPAIGNS); do echo "== $$name"; $(BIN)/python tests/campaigns/$$name.py --seed 1 || exit 1; done

browser:  ## Install Chromium for the tests of the page, where apt and root are
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	  echo "No Chromium here and no way to install it: the tests of the page will be skipped."

clean:  ## Remove the environment and what was built (not your jobs: operations.md)
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# pip, not python: where Debian's python3-venv is missing, venv makes the one and fails before the other.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.local: $(BIN)/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --editable '.[local]'
	@touch $@

$(VENV)/.dev: $(VENV)/.local
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@
