# Everything in one command each. Python 3.11 to 3.14 with venv and pip is all that is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help install demo test test-faults test-slurm test-servers lint format bench clean

help:
	@echo "make demo      evaluate a small real model on a few bundled samples, and make the page"
	@echo "make test      install what the tests need and run them"
	@echo "make test-faults   kill, fill up, damage: the whole fault campaign"
	@echo "make test-slurm    the jobs on a real SLURM of one node (root, Debian packages)"
	@echo "make test-servers  real vLLM, llama-server and transformers serve, on the CPU"
	@echo "make install   everything for development into $(VENV)"
	@echo "make lint      ruff, mypy and an audit of the pinned dependencies"
	@echo "make bench     the measured times and ratios beside their targets"

# torch goes first, alone: later installs then find it there and fetch no other build.
$(BIN)/.evalkit: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e .
	touch $@

$(BIN)/.evalkit-dev: $(BIN)/.evalkit
	$(PIP) -c constraints.txt -e .[dev]
	touch $@

install: $(BIN)/.evalkit-dev

demo: $(BIN)/.evalkit
	$(BIN)/evalkit prepare model=smollm2-135m
	$(BIN)/evalkit model=smollm2-135m suite=sample limit=2 generation.output_length=100 offline=true out=results/demo
	$(BIN)/evalkit replay judgments=example out=results/demo/mt-bench-example
	$(BIN)/evalkit leaderboard results/demo --partial

# Three test files at a time, each on one core: tests wait a third of their time. In their order, for the last ones are short.
test: $(BIN)/.evalkit-dev
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-faults: $(BIN)/.evalkit-dev
	$(BIN)/python -m pytest tests/faults -m "campaign or not campaign"

# Their environments are built once, in $$EVALKIT_SERVERS (.venv-servers).
test-servers: $(BIN)/.evalkit-dev
	$(BIN)/evalkit prepare model=smollm2-135m
	$(BIN)/python -m pytest tests/engines/servers/test_real_servers.py -m servers

# As root it installs Debian's packages. Without them the tests are skipped and say why. Jobs mostly wait.
SLURM := slurm-wlm munge slurmdbd mariadb-server
test-slurm: $(BIN)/.evalkit-dev
	@for name in slurmctld munged slurmdbd mariadbd; do command -v $$name >/dev/null || missing=yes; done; \
	if [ "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SLURM) || true; \
	fi
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/slurm -m slurm -n 4

lint: $(BIN)/.evalkit-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/audit.py

format: $(BIN)/.evalkit-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BIN)/.evalkit-dev
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
