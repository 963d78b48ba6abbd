# What this needs: make, and Python 3.10 or newer. Everything else goes into $(VENV).
#
#   make demo    serve the demo; STORE=sqlite|cookie|memory|gae HOST=127.0.0.1 PORT=8000
#   make test    every test, with branch coverage
#   make check   lint, format and types
#   make pytest  the tests alone; ARGS="-k cookie" goes to pytest
#   make bench   the benchmarks, with every peer; ARGS="codec --quick" for some of them, in seconds
#   make clean   remove what the others made
#
# Another Python: make test PYTHON=python3.12 VENV=.venv-3.12

PYTHON = python3
VENV = .venv
STORE = sqlite
HOST = 127.0.0.1
PORT = 8000
ARGS =

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test check pytest bench clean
.NOTPARALLEL:

DEMO = $(if $(filter gae,$(STORE)),demo-gae,demo)

demo: $(VENV)/.$(DEMO)
	@$(BIN)/tieredsession demo --store $(STORE) --host $(HOST) --port $(PORT)

# Tracing what switches between greenlets has hung; what these tests reach, others reach, too.
UNTRACED = tests/tiered/test_interleavings.py

test: $(VENV)/.test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --ignore=$(UNTRACED) $(ARGS)
	$(BIN)/coverage report

ifeq ($(ARGS),)
	$(BIN)/python -m pytest $(UNTRACED)
endif

check: $(VENV)/.check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

pytest: $(VENV)/.test
	$(BIN)/python -m pytest $(ARGS)

# The peers have an environment of their own, unless VENV names one.
BENCH = $(if $(filter command line,$(origin VENV)),$(VENV),.venv-bench)

bench:
	@$(MAKE) --no-print-directory VENV=$(BENCH) $(BENCH)/.bench
	$(BENCH)/bin/python -m benchmarks --results benchmarks/results --readme $(ARGS)

clean:
	rm -rf .venv .venv-* .demo build dist htmlcov .coverage .coverage.* .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache .ci/bench.json benchmarks/results/quick
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp says that the environment has what pyproject.toml asks for.

$(VENV)/.demo: pyproject.toml $(VENV)/.made
	$(PIP) install --editable ".[demo]"
	@touch $@

$(VENV)/.demo-gae: pyproject.toml $(VENV)/.made
	$(PIP) install --editable ".[demo,datastore,memcached,fakeredis]"
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.made
	$(PIP) install --editable . --group test
	@touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.made
	$(PIP) install --editable . --group bench
	@touch $@

$(VENV)/.check: pyproject.toml $(VENV)/.made
	$(PIP) install --editable . --group check
	@touch $@

# --group (PEP 735) came with pip 25.1, and no Python before 3.14 brings that.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "$(PYTHON) is not Python 3.10 or newer: name one, as in  make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: install its venv module (on Debian and Ubuntu the package python3-venv)" >&2; \
	  exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --upgrade "pip>=25.1"
	@touch $@
