# bertha_socket: set up, test, show.  A fresh clone on Debian 12 needs nothing but make and network access.
#
#   make demo    sets everything up and shows the main job: redis, plain and under bertha-run
#   make test    sets everything up and runs all tests
#   make lint    ruff, mypy, clang-format, cppcheck
#   make bench   the measurements behind the figures (`bertha bench`; minutes)
#   make venv    only the development environment, .venv/
#   make help    the rest

# The first Python that is new enough; looked up when it is used, because `make deps` may install it.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$$p"; exit; }; done; echo python3)
NATIVE = $(MAKE) --no-print-directory --silent -j$(shell nproc 2>/dev/null || echo 2) -C native
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
BENCH_ARGS ?= fig3
C_FILES = $(shell find native bertha_socket/_bench examples -name build -prune -o -name '*.[ch]' -print 2>/dev/null | sort)

# What the extension is made from.
EXTENSION_SOURCES := setup.py $(wildcard native/cffi_build.py native/cffi/*.[ch] native/chunnels/reliable*.[ch] native/carrier/buffer.h native/carrier/carrier.h native/python/*.c native/core/*.[ch])

.PHONY: help demo test test-native test-python lint lint-python lint-native format bench venv _venv native \
        deps deps-build deps-demo deps-test deps-lint deps-bench wheel asan tsan aarch64 fuzz clean distclean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:
	@sed -n 's/^#   //p' Makefile
	@echo 'make test PYTEST_ARGS="-m \"not slow\""   less of it    make asan   the sanitized library'
	@echo 'make format   rewrites the sources in the one style   make wheel  dist/*.whl'
	@echo 'make fuzz     bounded fuzzing                         make clean  removes what was built (distclean: .venv too)'

# ---- what the machine needs ----------------------------------------------------------------------------

# Once there is an environment, its Python is the one that has to fit.
DEPS = PYTHON="$(if $(wildcard $(VENV)/stamp-python),$(BIN)/python,$(PYTHON))" sh tools/deps.sh

deps:
	@$(DEPS) build demo test lint bench
deps-build:
	@$(DEPS) build
deps-demo:
	@$(DEPS) build demo
deps-test:
	@$(DEPS) build demo test
deps-lint:
	@$(DEPS) build lint
deps-bench:
	@$(DEPS) build bench

# ---- the environment -----------------------------------------------------------------------------------

# One at a time, also when two makes run in one checkout.
venv: deps-build
	@mkdir -p build
	@flock build/venv.lock $(MAKE) --no-print-directory _venv

_venv: native $(VENV)/stamp-extension

native:
	@$(NATIVE)

$(VENV)/stamp-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "venv: $(PYTHON) is older than Python 3.11: give another one with PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "venv: $(PYTHON) -> $(VENV)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "venv: '$(PYTHON) -m venv' failed: install python3-venv, or give PYTHON=/path/to/python3.11" >&2; exit 1; }
	@touch $@

# The build's own requirements first, so that building again is quick and asks no index.
$(VENV)/stamp-packages: $(VENV)/stamp-python pyproject.toml
	@echo "venv: installing what the package, its tests and its benchmarks need"
	@$(BIN)/python tools/requirements.py dev bench >$(VENV)/requirements.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/stamp-extension: $(VENV)/stamp-packages $(EXTENSION_SOURCES)
	@echo "venv: building bertha_socket into $(VENV)"
	@rm -f bertha_socket/_native*.so bertha_socket/_native.c bertha_socket/_rings*.so bertha_socket/_rings.c bertha_socket/_direct*.so
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# ---- the jobs ------------------------------------------------------------------------------------------

demo: deps-demo venv
	@$(BIN)/bertha demo

# pytest comes last: its summary is the last thing to be read.
test: deps-test venv test-native test-python

# Also under sanitizers, and each fuzzer for some seconds: `make fuzz` takes longer.
test-native: venv
	@$(NATIVE) test
	@$(NATIVE) test VARIANT=asan
	@$(NATIVE) test VARIANT=tsan
	@if command -v clang >/dev/null; then $(NATIVE) fuzz FUZZ_SECONDS=2; \
	else echo "native: clang is not installed: no fuzzing"; fi

# Two tests side by side, each in a network namespace of its own (tests/harness/workers.py), where that can be had.
WORKERS = $(shell [ "$$(id -u)" = 0 ] && unshare -n true 2>/dev/null && [ "$$(nproc)" -gt 1 ] && echo "-n2 --dist=loadfile")

# Thousands of agents and commands are started: none of them shall compile its modules again, also where Python is told to
# leave no compiled modules behind (PYTHONDONTWRITEBYTECODE).
test-python: venv
	@$(BIN)/python -m compileall -q bertha_socket
	@$(BIN)/python -m pytest -q $(WORKERS) $(PYTEST_ARGS)

lint: deps-lint venv lint-python lint-native

lint-python: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A warning of the compiler fails here, and here alone: another compiler's new warning breaks no installation.
# cppcheck's information is kept to what it is sure of: it sees no caller outside of the sources, and the
# headers of the system are not its business.
lint-native: venv
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	@$(NATIVE) lib extension benchtools WERROR=-Werror BUILD=../build/lint \
	  LIBDIR=../build/lint BENCH_OUT=../build/lint/bench
	@if command -v cppcheck >/dev/null; then \
	  set -x; cppcheck --quiet --std=c11 --language=c --enable=warning,performance,portability --inline-suppr \
	    --error-exitcode=1 --suppress=missingIncludeSystem --suppress=unmatchedSuppression \
	    --suppressions-list=native/cppcheck-suppressions.txt -D__linux__ -D__x86_64__ -D__GNUC__=12 \
	    '-DBERTHA_VERSION="lint"' -Inative/core -Inative/calls native/core native/calls native/cffi native/carrier native/chunnels native/door native/relay; \
	else echo "lint: cppcheck is not installed: skipped"; fi

format: venv
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

bench: deps-bench venv
	$(BIN)/bertha bench $(BENCH_ARGS)

wheel: venv
	@rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .

asan tsan aarch64 fuzz: deps-test
	@$(NATIVE) $@

clean:
	@$(NATIVE) clean
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f bertha_socket/_native*.so bertha_socket/_native.[co] bertha_socket/_rings*.so bertha_socket/_rings.[co] bertha_socket/_direct*.so
	find bertha_socket tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	rm -f $(VENV)/stamp-extension

distclean: clean
	rm -rf $(VENV)
