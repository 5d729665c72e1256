# The first Python that runs and fits; another one with `make test PYTHON=python3.12`, and in a folder of its own
# with `VENV=.venv-3.12`.
PYTHON ?= $(shell .ci/find_python 2>/dev/null)
PYTHON := $(PYTHON)
VENV := .venv
BIN := $(VENV)/bin
TESTS :=
PYTEST = $(BIN)/python -m pytest --numprocesses auto --dist loadfile
LOCK := requirements.lock
DOCS_LOCK := requirements-docs.lock
UV_VERSION := 0.13.9
TORCH_VERSION := 2.13.0
EVOSAX_VERSION := 0.3.2

# Empty files touched last, so that an interrupted set-up starts again. The first is named after the
# interpreter: another PYTHON makes a new environment.
VERSION := $(if $(PYTHON),$(shell $(PYTHON) -c 'import sys; print("%s-%d.%d" % (sys.implementation.name, *sys.version_info[:2]))' 2>/dev/null))
INSTALLED := $(VENV)/.installed-$(VERSION)
READY := $(INSTALLED)-project
WITH_PEERS := $(READY)-peers
WITH_DOCS := $(READY)-docs

# What has no wheel (promise, below tensorflow-datasets) is built with the setuptools of the lock.
# The second name is for pip >= 25.3.
VERSIONS := $(VENV)/versions.txt
install = PIP_CONSTRAINT=$(VERSIONS) PIP_BUILD_CONSTRAINT=$(VERSIONS) $(BIN)/python -m pip install --disable-pip-version-check --quiet

# Says how a command ended that failed: some end without a word.
define run
@echo "$(1)"; $(1) || { status=$$?; \
    if [ $$status -gt 128 ]; then how="signal $$((status - 128)), SIG$$(kill -l $$status)"; else how="exit code $$status"; fi; \
    echo "make $@: $(firstword $(1)) ended with $$how$(2)" >&2; exit 1; }
endef

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help setup peers demo test test-all lint format docs docs-check lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(READY)  ## create .venv from the lock file

peers: $(WITH_PEERS)  ## install PyTorch (CPU) and evosax, which benchmarks compare the library with

demo: $(READY)  ## train ten rules on MNIST, offline, into results/microlearning; run again to resume
	$(call run,$(BIN)/python -m experiments.microlearning --out results/microlearning --resume)

test: lint  ## check style and types, run the fast tests and docstring examples, or only TESTS
	$(call run,$(PYTEST) -m "not slow" $(TESTS),; TESTS=--capture=no may show more)
	@echo 'make test: style, types and tests are in order'

test-all: lint  ## the same, including the slow tests
	$(call run,$(PYTEST) $(TESTS),; TESTS=--capture=no may show more)
	@echo 'make test-all: style, types and tests are in order'

lint: $(READY)  ## check style and types
	$(call run,$(BIN)/ruff check)
	$(call run,$(BIN)/ruff format --check)
	$(call run,$(BIN)/pyright --pythonpath $(BIN)/python)

format: $(READY)  ## format the code, sort the imports
	$(BIN)/ruff check --select I --fix
	$(BIN)/ruff format

SPHINX = $(BIN)/python -m sphinx --fail-on-warning --quiet

docs: $(WITH_DOCS)  ## build the site into docs/_build/html, offline; only changed scripts run
	$(call run,$(SPHINX) docs docs/_build/html)

docs-check: $(WITH_DOCS)  ## the same without running the scripts, into docs/_build/check
	$(call run,$(SPHINX) -D plot_gallery=0 -D draw_rule_figures=0 docs docs/_build/check)

lock: $(INSTALLED)  ## update the lock files to the newest versions
	$(BIN)/python -m pip install --disable-pip-version-check --quiet uv==$(UV_VERSION)
	$(BIN)/uv lock --quiet --upgrade --system-certs
	$(BIN)/uv export --quiet --frozen --no-emit-project --no-header --format requirements.txt \
	    --extra experiments --extra flax --extra test --group build --output-file $(LOCK).new
	mv $(LOCK).new $(LOCK)
	$(BIN)/uv export --quiet --frozen --no-emit-project --no-header --format requirements.txt \
	    --only-group docs --output-file $(DOCS_LOCK).new
	mv $(DOCS_LOCK).new $(DOCS_LOCK)

clean:  ## remove the environment and the caches, keep the results
	rm -rf $(VENV) .venv-* .pytest_cache .ruff_cache .hypothesis .jax_cache dist docs/_build docs/api docs/auto_gallery docs/auto_tutorials
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment whose interpreter is gone is made anew.
ifneq ($(shell $(BIN)/python -c 'print("runs")' 2>/dev/null),runs)
.PHONY: $(INSTALLED)
endif
$(INSTALLED): $(LOCK)
	@.ci/find_python $(PYTHON) >/dev/null
	$(PYTHON) -m venv --clear $(VENV)
	sed -n 's/^\([^ #][^\]*\).*/\1/p' $(LOCK) > $(VERSIONS)
	$(install) --require-hashes --requirement $(LOCK)
	@touch $@

# PyTorch's own registry has builds without CUDA; they come first in the order of versions.
$(WITH_PEERS): $(READY)
	$(install) --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==$(TORCH_VERSION)
	$(install) torch==$(TORCH_VERSION) evosax==$(EVOSAX_VERSION)
	@touch $@

$(WITH_DOCS): $(READY) $(DOCS_LOCK)
	$(install) --require-hashes --requirement $(DOCS_LOCK)
	@touch $@

$(READY): $(INSTALLED) pyproject.toml
	$(install) --no-deps --no-build-isolation --editable .
	@touch $@
