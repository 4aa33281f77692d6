# make demo [DATA=folder] [SIMULATE=1] [LABELS=40] [PORT=8080] [LABEL=name]
DATA ?=
SIMULATE ?=
LABELS ?=
PORT ?=
LABEL ?=

# where this is set, each of the many processes of a test would compile torch anew: 15 s instead of 5
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo lint test test-all check docs audit clean

help:
	@echo "make setup      create the virtual environments (done by the others too)"
	@echo "make demo       Label Studio and scanqueue with synthetic scans; Ctrl-C ends it"
	@echo "                SIMULATE=1 simulated annotators   DATA=folder with images/ and masks/"
	@echo "                LABELS=40 how many they label     LABEL=name of the mask   PORT=of Label Studio"
	@echo "make check      lint, types and the tests that need no server; for every edit"
	@echo "make test       all checks and tests but the longest, as CI runs them"
	@echo "make test-all   the long tests too"
	@echo "make docs       the documentation site, in build/docs"
	@echo "make audit      known vulnerabilities of the installed packages (asks the internet)"

setup:
	@scripts/setup

demo: setup
	@.venv/bin/scanqueue demo \
		$(if $(DATA),--data "$(DATA)") \
		$(if $(filter-out 0 no false,$(SIMULATE)),--simulate) \
		$(if $(LABELS),--labels $(LABELS)) \
		$(if $(LABEL),--label "$(LABEL)") \
		$(if $(PORT),--port $(PORT))

lint: lint-sources types

# No test can reach anything but this machine (where we are root; else as it is). Two files at a time, each with a thread.
# The stack runs alone in its Docker engine: twenty annotators are timed, and every packet that would leave is counted.
PYTEST = scripts/offline .venv/bin/python -m pytest
TWO = --numprocesses=2 --dist=loadfile --no-loadscope-reorder
STACK = tests/service/test_engine.py
LONG = -m "not long"

check: lint-sources
	$(MAKE) --no-print-directory --jobs=2 types quick

test: lint-sources
	$(MAKE) --no-print-directory --jobs=2 types most
	$(MAKE) --no-print-directory stack

test-all:
	$(MAKE) --no-print-directory test LONG=

.PHONY: lint-sources types doctests quick most stack
lint-sources: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types:
	.venv/bin/mypy

doctests:
	.venv/bin/python -m pytest -q --doctest-modules sampling

quick: doctests
	OMP_NUM_THREADS=1 $(PYTEST) -m "not server and not slow and not long" $(TWO)

# in one run: the short tests fill the end of the longest files, and the processes and their Label Studios start once
most: doctests
	OMP_NUM_THREADS=1 $(PYTEST) --durations=40 $(LONG) --ignore=$(STACK) $(TWO)

stack:
	$(PYTEST) --durations=10 $(LONG) $(STACK)

docs: setup
	.venv/bin/mkdocs build --strict

audit: setup
	.venv/bin/pip-audit --strict --skip-editable --progress-spinner off

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis test-output
