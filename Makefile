# flatopt: every command of the README, from a clean checkout. `make` lists them.
#   PYTHON=python3.12 make venv     another interpreter
#   DEMO_FLAGS="--resume --seed 1" make demo     further flags for a command

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

DEMO_OUTPUT ?= out/demo
# a second `make demo` shows the finished comparison; clear $(DEMO_OUTPUT) to run it anew
DEMO_FLAGS ?= --resume
RESULTS_FLAGS ?=
THEORY_FLAGS ?=
BENCH_FLAGS ?=
TEST_FLAGS ?=
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv demo rlhf theory test test-slow results bench bench-slow lint wheel \
	docs docs-serve clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

venv: $(INSTALLED)  ## build the virtual environment, or bring it up to date

# Rebuilt when the dependencies change. setuptools comes first and pinned, so that installing
# flatopt itself builds with it and not with whatever is newest that day.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt setuptools wheel
	$(PY) -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[trl,plots,dev,docs]"
	touch $@

# The main job: the same policy trained against a judge that can be hacked, with and without
# gradient regularization; prints the comparison and leaves metrics and plots in $(DEMO_OUTPUT).
demo: $(INSTALLED)  ## the main job: RL against a judge, with no regularization and with GR
	$(PY) -m integrations judge --method none gr --seed 0 --jobs $(JOBS) --output $(DEMO_OUTPUT) $(DEMO_FLAGS)

rlhf: $(INSTALLED)  ## RLHF in two small worlds: no regularization, GR and KL (minutes)
	$(PY) -m integrations rlhf --method none gr kl gr+kl --jobs $(JOBS) --output out/rlhf --resume

theory: $(INSTALLED)  ## every statement of the theory, predicted beside measured (minutes)
	OMP_NUM_THREADS=1 $(PY) -m theory --plots out/theory --json out/theory/checks.json $(THEORY_FLAGS)

# One thread per worker: the models are tiny, and more threads than cores cost time.
test test-slow: export OMP_NUM_THREADS = 1
test test-slow: export TOKENIZERS_PARALLELISM = false
test test-slow: export HF_HUB_OFFLINE = 1

test: $(INSTALLED)  ## the tests, all but the slow ones
	$(PY) -m pytest -n $(JOBS) --dist loadfile $(TEST_FLAGS)

test-slow: $(INSTALLED)  ## the slow tests alone
	$(PY) -m pytest -n $(JOBS) --dist loadfile -m slow $(TEST_FLAGS)

results: $(INSTALLED)  ## every number of the results pages, measured again (hours)
	OMP_NUM_THREADS=1 $(PY) -m integrations.results.judge --jobs $(JOBS) $(RESULTS_FLAGS)
	OMP_NUM_THREADS=1 $(PY) -m integrations.results.rlhf --jobs $(JOBS)
	OMP_NUM_THREADS=1 $(PY) -m integrations.results.cheaper --jobs $(JOBS)
	OMP_NUM_THREADS=1 $(PY) -m integrations.results.judges --jobs $(JOBS)
	OMP_NUM_THREADS=1 $(PY) -m integrations.results.rules --jobs $(JOBS)
	OMP_NUM_THREADS=1 $(PY) -m integrations.results.ladder --jobs $(JOBS)
	OMP_NUM_THREADS=1 $(PY) -m integrations.results.ladder_closer --jobs $(JOBS)

bench: $(INSTALLED)  ## what a step costs, in time and memory, as ratios to the plain one (minutes)
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.cost $(BENCH_FLAGS)
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.memory
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.loop

bench-slow: $(INSTALLED)  ## precision of H g, cheaper terms, and the table of faults (an hour)
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.precision
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.fraction
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.faults

lint: $(INSTALLED)  ## ruff and pyright
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

# build/ goes first: setuptools would pack modules that an earlier build left there.
wheel: $(INSTALLED)  ## the wheel, in dist/
	rm -rf build dist
	$(PY) -m build --wheel --no-isolation --outdir dist

# mkdocs-material prints an advertisement for its successor unless told not to.
docs docs-serve: export NO_MKDOCS_2_WARNING = 1

docs: $(INSTALLED)  ## the documentation as a site, in site/; a dead link or anchor is an error
	$(PY) -m mkdocs build --strict

docs-serve: $(INSTALLED)  ## the site at http://127.0.0.1:8000, rebuilt when a page changes
	$(PY) -m mkdocs serve

clean:  ## remove what the other targets made, but for the environment and out/
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
