# Two commands do it all on a fresh machine with Python 3.10+ and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check docs release-check install benchmark table soak clean

# Train AALP on real digits, attack 200 held-out ones with the full AutoAttack, and put it all into a report.
demo: .venv/installed
	@run=runs/demo-$$(date +%Y%m%d-%H%M%S) && set -x && \
	$(BIN)/aalp train --config digits --run $$run --evaluation.images 200 --evaluate true && \
	$(BIN)/aalp analyze $$run --quiet && \
	$(BIN)/aalp report $$run

# Side by side, as each test uses one core; a file's tests stay together, as they share what it prepares.
test: .venv/installed-test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The site in build/site, with every warning an error. `mkdocs serve` shows it while writing.
docs: .venv/installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What is published: the archives, and the wheel installed into a new venv, away from this folder, and used there.
release-check: .venv/installed-test
	$(BIN)/python benchmarks/release_check.py

install: .venv/installed

# What a training step costs beside its bare passes and beside others' loops, and how training scales.
benchmark: .venv/installed-benchmark
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/scale.py

# The main results as one table, from their records alone; those of each record with `benchmarks/results/*/` behind the script.
table: .venv/installed
	@$(BIN)/python benchmarks/results_table.py

# 200 SIGKILLs at random moments: what is resumed has to end byte by byte as what was never killed.
soak: .venv/installed
	$(BIN)/python benchmarks/soak.py --kills 200 --out benchmarks/results/soak.json

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "aalp needs Python 3.10 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable .
	touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[test,dev]'
	touch .venv/installed $@

.venv/installed-benchmark: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[benchmark]'
	touch .venv/installed $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build dist
