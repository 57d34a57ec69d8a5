# Needs python3 (3.11 or later) with pip, and make. Everything it makes is in .venv, out.h5 and caches: see `clean`.
PYTHON ?= python3
# processes that run tests, and more arguments for pytest: make test JOBS=4 ARGS='-k memmap'
JOBS ?= 2
ARGS ?=

VENV := .venv
LOWEST := .venv-lowest
PEERS := .venv-peers
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP_INSTALL := $(PY) -m pip install -c constraints.txt
LOCK := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-lowest lint types format bench bench-peers torture clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \2/p' Makefile | while read -r make name what; do \
		printf '  %s %-11s %s\n' "$$make" "$$name" "$$what"; done

demo: $(VENV)/.demo ## images -> out.h5 -> one shuffled epoch of batches
	$(BIN)/bigconv convert sample_data/images out.h5 --resize 64 --overwrite
	$(BIN)/bigconv inspect out.h5
	$(PY) sample_data/demo.py out.h5

test: lint types ## linters, types, import contracts, tests
	$(PY) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-lowest: $(LOWEST)/.installed ## tests with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(VENV)/.installed ## ruff and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed ## mypy
	$(BIN)/mypy

format: $(VENV)/.installed ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed ## the benchmarks (minutes)
	$(PY) -m tests.benchmarks

bench-peers: $(PEERS)/.installed ## the same rows through litdata, streaming, webdataset, datasets (minutes)
	$(PEERS)/bin/python -W ignore -m tests.benchmarks.peers

torture: $(VENV)/.installed ## kills, power cuts, flips … at full scale, with figures (hours)
	$(PY) -m tests.torture

clean: ## remove what was installed and made, and all caches
	rm -rf $(VENV) $(LOWEST) $(PEERS) build bigconv.egg-info out.h5 out.h5.rejects.jsonl
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find bigconv tests sample_data -type d -name __pycache__ -prune -exec rm -rf {} +

# -- the virtual environment: each stamp is written last, so that what broke off is done again ----------------------

# A Python without ensurepip (Debian's, without python3-venv) makes the venv bare, and its own pip fills it.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bigconv needs Python 3.11 or later; this is " + sys.version.split()[0] + ". Choose another: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV) || { \
		$(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(PY) install pip; }
	@touch $@

# What the demo needs, without linters and tests.
$(VENV)/.demo: $(LOCK) | $(VENV)/.made
	$(PIP_INSTALL) -e '.[torch]'
	@touch $@

# What development needs holds what the demo needs.
$(VENV)/.installed: $(LOCK) | $(VENV)/.made
	$(PIP_INSTALL) -e '.[dev]'
	@touch $(VENV)/.demo $@

$(LOWEST)/.installed: $(LOCK) tests/lowest.py | $(VENV)/.made
	$(PYTHON) -m venv --clear --without-pip $(LOWEST)
	$(PY) tests/lowest.py >$(LOWEST)/versions.txt
	$(PY) -m pip --python $(LOWEST)/bin/python install -r $(LOWEST)/versions.txt -e '.[all,video]'
	@touch $@

# The torch of constraints.txt, and none of the dependencies that would bring another.
$(PEERS)/.installed: $(LOCK) tests/benchmarks/peers.txt | $(VENV)/.made
	$(PYTHON) -m venv --clear --without-pip $(PEERS)
	$(PY) -m pip --python $(PEERS)/bin/python install -c constraints.txt -e '.[torch,s3,text]'
	$(PY) -m pip --python $(PEERS)/bin/python install --no-deps -c constraints.txt -r tests/benchmarks/peers.txt
	@touch $@
