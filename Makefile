# make run: the main job; make preview: a front without training; make test: the fast tests;
# make experiments: every experiment in full, and one table; make docs: the pages as a site, in site/;
# make lint: style and types; make slow: all slow tests;
# make families: of the slow tests one of each family, and all faults.
# Each installs into .venv first, anew only when pyproject.toml has changed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Side by side, one thread each: two processes with two threads on two cores would wait for one another.
# Bytecode is kept, for each worker and each process that a test starts.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
BESIDE := -n auto --maxprocesses 4

.PHONY: run preview experiments test slow families faults docs lint clean

run: $(VENV)/.installed
	$(BIN)/python -m orchestrator +experiment=resnet50

preview: $(VENV)/.installed
	$(BIN)/python -m orchestrator +experiment=resnet50 job=preview study.name=preview study.n_trials=7 search.allocations=0

experiments: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/experiments.py

# A file stays with one worker: many train a network once for all their tests. In the order of their names, since
# those with few tests are long ones, and would come last.
test: $(VENV)/.installed-dev
	$(PYTEST) $(BESIDE) --dist loadfile --no-loadscope-reorder -m "not slow"

# In one run: faults wait for processes that end, and others compute meanwhile.
slow: $(VENV)/.installed-dev
	$(PYTEST) $(BESIDE) --dist worksteal -m slow

families: $(VENV)/.installed-dev
	$(PYTEST) $(BESIDE) --dist worksteal -m "slow and family"

faults: $(VENV)/.installed-dev
	$(PYTEST) $(BESIDE) --dist worksteal -m slow tests/faults

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.installed
