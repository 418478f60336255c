# `make demo` and `make test` are all that a reader needs; each sets itself up in a virtual environment of its own.
# Another interpreter: `make test PYTHON=python3.12`. Another place: `make test VENV=/some/folder`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-all check fmt setup clean
.DEFAULT_GOAL := demo

demo: setup
	@$(BIN)/dermkit demo --out demo

# The gate, on two cores, with its slowest 60 tests. A test file stays with one process, so that the nets of its fixtures
# are trained once. pytest comes last, so that its closing line is the last on the screen.
# A process that dies ends the run and its test is named: pytest-xdist 3.8 starts another process and then waits for ever.
# Compiled modules are kept, also where the environment says otherwise: hundreds of processes would compile them anew.
test test-all: export PYTHONDONTWRITEBYTECODE =
test: check
	@$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --max-worker-restart=0 --durations=60

test-all: check
	@$(BIN)/python -m pytest -m "slow or not slow"

check: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@MYPY_NUM_WORKERS=2 $(BIN)/mypy src tests $(wildcard benchmarks/*.py benchmarks/speed/*.py)

fmt: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

setup: $(READY)

# Quick the second time: set-up runs again only when what is to be installed has changed.
$(READY): pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dermkit needs Python 3.11 or newer: make PYTHON=python3.12")'
	@echo "Setting up $(VENV): some minutes the first time, nothing afterwards."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --requirement requirements.txt --editable '.[train,tune,export,serve,dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
