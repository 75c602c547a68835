# Everything a fresh Debian with git and Python needs is set up by the targets themselves: start with `make demo` or `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SETUP = $(VENV)/setup.stamp

# Without compiled modules every start of the command takes half as long again, and tests start it thousands of times.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-all lint bench bench-compare figures soak fuzz faults docs constraints packages

help:
	@echo "make demo        show the main job on a platform of this machine's own, in less than a minute"
	@echo "make test        run the tests, several at once; ARGS='-k name' goes to pytest, WORKERS=0 for one after another"
	@echo "make test-all    run them on every supported Python that is installed"
	@echo "make lint        style and types"
	@echo "make fuzz        damaged conversations, INPUTS=200000, and property tests with many more examples"
	@echo "make faults      backups killed or failing at every system call, power cuts, full disks, long random runs"
	@echo "make soak        random cycles of backup, kill and restore; DURATION=600"
	@echo "make bench       against nbdcopy, restic, borg and qemu-img; ARGS='S1 S5 --pairs 9'"
	@echo "make bench-compare  this checkout against BASE=rev; ARGS='S1 seal --pairs 9'"
	@echo "make figures     make bench, whose table and plot become those of docs/performance.md"
	@echo "make docs        write the generated pages again"
	@echo "make setup       only prepare $(VENV); PYTHON=python3.12 chooses the interpreter"

packages:
	@PYTHON=$(PYTHON) scripts/system-packages

setup: $(SETUP)

# The stamp is newer than what it was made from, or the environment is brought up to date.
$(SETUP): pyproject.toml constraints.txt | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; try: make setup PYTHON=python3.11" >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--group test --group lint --editable '.[lab,qemu]'
	@touch $@

demo: packages setup
	@$(BIN)/sfasync demo

# Tests wait for servers more than they compute: one worker more than there are processors leaves none of these idle.
WORKERS ?= $(shell expr $$(nproc) + 1)
test: packages setup
	@$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal $(ARGS)

test-all:
	@PYTHON=$(PYTHON) scripts/test-all $(ARGS)

lint: setup
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

INPUTS ?= 200000
fuzz: packages setup
	@$(BIN)/python -m fuzz --inputs $(INPUTS)
	@$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=fuzz --timeout=0 $(ARGS)

faults: packages setup
	@$(BIN)/python -m pytest -m faults $(ARGS)

DURATION ?= 600
soak: packages setup
	@$(BIN)/python -m tests.soak --seconds $(DURATION) $(ARGS)

bench: packages setup
	@scripts/system-packages bench
	@$(BIN)/sfasync bench $(ARGS)

# The figures in the documents; on a machine that does nothing else.
figures: packages setup
	@scripts/system-packages bench
	@rm -f docs/figures.*
	@$(BIN)/sfasync bench --results docs/figures $(ARGS)

BASE ?= HEAD
bench-compare: packages setup
	@scripts/system-packages bench
	@$(BIN)/python -m bench.compare $(BASE) $(ARGS)

docs: setup
	@for script in scripts/docs-*; do $(BIN)/python $$script; done

# Pins for every supported Python at once; no file records where packages are downloaded from.
constraints: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-annotate \
		--custom-compile-command 'make constraints' --output-file constraints.txt \
		--group pyproject.toml:test --group pyproject.toml:lint --group pyproject.toml:bench --extra lab --extra qemu pyproject.toml
