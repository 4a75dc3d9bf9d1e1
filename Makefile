# Two commands matter: `make app` and `make test`. Each sets up all it needs in .venv, once; `make` alone lists the rest.
# pip's own variables are passed on: PIP_EXTRA_INDEX_URL=... make app   (README.md: torch without CUDA).

# The first Python that is new enough; another one: make app PYTHON=/path/to/python3
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# Tests that share a costly setting stand in one file, and a file stays with one of the two workers. In their given order,
# the last files are short ones, and neither worker waits long for the other; xdist's own begins with many tests, not
# with long ones.
PYTEST_ARGUMENTS ?= -n 2 --dist loadfile --no-loadscope-reorder

# Which notebooks `make notebooks` executes, by how their names begin; all of them: make notebooks ONLY="03 04"
ONLY ?=

.NOTPARALLEL:
.PHONY: help app lab notebooks test test-slow test-all record

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

app: .venv/installed ## the app, in your browser
	.venv/bin/python -m minipo app

lab: .venv/installed ## the notebooks, in JupyterLab
	.venv/bin/python -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_start_here.ipynb

notebooks: .venv/installed-dev ## every notebook executed anew, its outputs refreshed (a quarter of an hour, needs chromium)
	.venv/bin/python notebooks/execute.py $(ONLY)

test: .venv/installed-dev ## linter, type checker and the fast tests
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/pyrefly check
	.venv/bin/lint-imports
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m "not slow" $(PYTEST_ARGUMENTS)

test-slow: .venv/installed-dev ## the slow tests, a browser's too
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m slow -n 2 --dist worksteal

test-all: test test-slow ## every test

record: .venv/installed ## everything recorded in data/, and the README's tables (an hour on two cores)
	.venv/bin/python data/record.py

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python .venv/bin/pip
	.venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python .venv/bin/pip
	.venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch .venv/installed $@

# Two files, for `pip` comes last: without it, an earlier try was cut short.
.venv/bin/python .venv/bin/pip:
	@python="$(PYTHON)"; python="$${python:-python3}"; say() { echo "minipo: $$1" >&2; exit 1; }; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || say \
		"No Python 3.11 or newer was found: install one, or name it, as in 'make app PYTHON=/path/to/python3'."; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || say \
		"$$python cannot make virtual environments: install its venv package (Debian, Ubuntu: apt-get install python3-venv)."; \
	"$$python" -m venv --clear .venv
