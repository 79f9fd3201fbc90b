# Every target works alone on a fresh clone: it makes .venv first where that is missing or out of date.
# Another interpreter: make test PYTHON=python3.12. More test processes: make test JOBS=8.
PYTHON  ?= python3
JOBS    ?= 2
THREADS ?= 1

BIN   := .venv/bin
STAMP := .venv/.installed
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help env demo test slow lint docs bench scoreboard clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  make \1	\2/p' Makefile

env: $(STAMP)  ## make .venv with the exact versions of requirements.lock
	@:

# The lock comes first, so that the package itself can be installed without looking for anything:
# its requirement torch>=2.6, resolved freely, may fetch gigabytes of another build.
$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "interp-toolkit needs Python 3.11 or later, $(PYTHON) is %d.%d; choose one: make PYTHON=python3.12" % v[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "installing into .venv (a minute or two, once)"
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

demo: env  ## the tour: a shipped model, its heads, one report
	@$(BIN)/interp demo

# One thread per process: JOBS processes that each start a thread per core only wait for one another.
PYTEST = OMP_NUM_THREADS=$(THREADS) TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

test: env  ## all tests and notebooks but the slow ones, offline
	@$(PYTEST) --nbmake notebooks tests

slow: env  ## what is dear: large grids, every formula broken once, every architecture (no part of CI)
	@$(PYTEST) -m slow tests
	@OMP_NUM_THREADS=1 $(BIN)/python tests/mutations
	@OMP_NUM_THREADS=1 $(BIN)/python tests/architectures

lint: env  ## style, format, types, who may import whom
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports

# Notebooks run while the site is built, and again only after a change of the code. Without them: make docs NOTEBOOKS=off.
NOTEBOOKS ?= cache

docs: env  ## the site, into build/docs, warnings as errors; and the code in its pages
	@$(BIN)/python docs/_generate.py
	@OMP_NUM_THREADS=1 NOTEBOOKS=$(NOTEBOOKS) $(BIN)/sphinx-build -q -W --keep-going -n docs build/docs
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_docs.py
	@echo "site: build/docs/index.html"

bench: env  ## speed against peers and against the plain forward pass (minutes)
	@$(BIN)/interp bench

VERIFY = $(BIN)/interp zoo verify --seeds 10 --jobs $(JOBS) --markdown

scoreboard: env  ## every analysis on planted models, into docs/ (minutes)
	@mkdir -p build
	@$(VERIFY) --out docs/scoreboard.csv > build/scoreboard.table.md && mv build/scoreboard.table.md docs
	@$(VERIFY) --behaviour --out docs/behaviour.csv > build/behaviour.table.md && mv build/behaviour.table.md docs
	@$(VERIFY) --circuits --architecture llama --architecture llama-gqa --out docs/circuits.csv > build/circuits.table.md && mv build/circuits.table.md docs
	@$(VERIFY) --dictionaries --seeds 3 --out docs/dictionaries.csv > build/dictionaries.table.md && mv build/dictionaries.table.md docs

clean:  ## remove everything that make has made, .venv included
	@rm -rf .venv build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find interp circuits probes tests -name __pycache__ -type d -prune -exec rm -rf {} +
