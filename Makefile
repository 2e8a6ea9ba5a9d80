# Everything starts from here; `make help` lists it. Each target but help first calls setup, which does nothing
# when nothing has changed.
.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV := $(CURDIR)/.venv
PY := $(VENV)/bin/python
# A setting of the caller's, e.g. make test RANKS="1 2".
RANKS ?= 1 2 3 4
NP ?= 2
EPOCHS ?= 4
REVIEWS ?=
ROWS ?= 1000000
PYTHON ?=
EXTRAS := export simulate cost benchmarks_baseline benchmarks_balance

# Open MPI refuses root, which is who you are in most containers; nothing is set for anyone else.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif

.PHONY: help setup demo test unit extras mpi faults faults-short cluster lint types bench engines docs clean
help:
	@echo 'make setup    .venv with everything in it (again only what has changed)'
	@echo "make demo     reviews in, a trained model out, on NP=2 ranks; REVIEWS='path/*.json.gz' NP=3 EPOCHS=5"
	@echo 'make test     all tests: unit, on 1 to 4 ranks, faults, on test hosts'
	@echo '              (each alone: make unit, mpi, mpi-3, faults-short, cluster)'
	@echo 'make extras   the optional packages (pictures, the linear baseline, ONNX), and the tests that need them'
	@echo 'make faults   faults by the hundred, counted: two hours'
	@echo 'make lint     ruff;  make types  mypy'
	@echo 'make bench    benchmarks, about 50 minutes (each alone: .venv/bin/python -m benchmarks.NAME --help)'
	@echo 'make engines  the preprocessing jobs on Spark, Hadoop and EMR (moto), ROWS=1000000 generated reviews; needs a JDK'
	@echo 'make docs     the documentation and the API as HTML, in build/docs; every link is checked'
	@echo 'make clean    remove what was built, data of benchmarks included; .venv and the cached Horovod stay'

setup:
	@python=$$(PYTHON='$(PYTHON)' sh .setup/find-python.sh) && exec "$$python" .setup/bootstrap.py

demo: setup
	@REVIEWS='$(REVIEWS)' NP='$(NP)' EPOCHS='$(EPOCHS)' bash examples/demo.sh

test: unit mpi faults-short cluster

# A test that hangs is a failure too, hence the time limits: far above what the slowest machine should need.
unit: setup
	timeout 2400 $(PY) -m pytest tests/unit

mpi: $(RANKS:%=mpi-%)

# One rule for the same suite on any number of ranks. Rank 0 speaks; the others' output is shown when something failed.
# More ranks than cores is usual here: waiting ranks give their core away, and each computes with one thread.
mpi-%: setup
	@if [ -d tests/mpi ]; then MPIRUN='$(VENV)/bin/mpirun' bash .setup/run-ranks.sh $* $(PY) -m pytest tests/mpi; \
	 else echo 'make mpi: there are no tests/mpi in this version'; fi

# What single targets need and setup leaves out, from a list of its own; constraints.txt holds what both have.
$(VENV)/%-installed: .setup/%.txt .setup/constraints.txt
	@echo '$*: installing what .setup/$*.txt lists'
	@$(PY) -m pip install --quiet --disable-pip-version-check -c .setup/constraints.txt -r .setup/$*.txt
	@touch $@

# 350 MB that the engine does without, and the other tests too: they see what it then says.
extras: setup
	@$(MAKE) --no-print-directory $(VENV)/extras-installed
	timeout 1200 $(PY) -m pytest $(EXTRAS:%=tests/unit/test_%.py)

# One after the other even under make -j: they share two cores.
.NOTPARALLEL:

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup
	$(PY) -m mypy

faults-short: setup
	timeout 1500 $(PY) -m pytest tests/faults

# Counted faults, two hours: 100 kills, 50 signals, 20 hangs, 10 cut cables, 200,000 mutations of files, a soak.
faults: setup
	$(PY) tests/faults/campaign.py
	$(PY) -m tests.fuzz --count 200000
	bash tests/fuzz/sanitized.sh --count 200000

# Over a network, on hosts made of namespaces: skipped, with the reason, without root or sshd.
cluster: setup
	timeout 1200 $(PY) -m pytest tests/cluster

bench: setup
	$(PY) -m benchmarks

# pyspark is 400 MB, so it is no part of setup.
engines: setup
	@$(MAKE) --no-print-directory $(VENV)/engines-installed
	ROWS='$(ROWS)' timeout 7200 $(PY) -m pytest tests/engines

# Sphinx is 80 MB that nothing else needs, so no part of setup either. Everything is made anew: pages that are gone must
# not satisfy a link. Warnings are errors.
docs: setup
	@$(MAKE) --no-print-directory $(VENV)/docs-installed
	@rm -rf build/docs
	@$(PY) -m sphinx --quiet --fail-on-warning --keep-going --fresh-env -d build/doctrees docs build/docs
	@$(PY) docs/check_links.py build/docs
	@echo 'docs: build/docs/index.html'

clean:
	rm -rf build dist *.egg-info native/*.so
