# `quickstart` and `test` are the two commands of the README; `fast` is what one runs between changes. Each sets up a
# virtual environment first. The static checks and the tests run at the same time.
PYTHON ?= python3
VENV ?= .venv

.PHONY: quickstart test checks tests fast unit-tests slow exhaustive coverage test-faults audit fuzz format clean

quickstart: $(VENV)/.runtime
	$(VENV)/bin/accelerate launch recipes/tagging.py

test: $(VENV)/.development
	$(MAKE) --no-print-directory --jobs 2 checks tests

checks: $(VENV)/.development
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

tests: $(VENV)/.development
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --durations 10

# The checks of `test`, and the tests of single modules, but for pictures, pages, tables and commands, which take longer.
fast: $(VENV)/.development
	$(MAKE) --no-print-directory --jobs 2 checks unit-tests

LONGER = audio/test_audio_augmentation.py audio/test_container_headers.py catalogue plotting prediction pretraining \
  publishing tasks/test_separation_task.py test_cli.py test_configs.py test_init_from.py test_python_api.py \
  test_run_folder.py test_shipped.py
unit-tests: $(VENV)/.development
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal tests/unit $(LONGER:%=--ignore tests/unit/%)

# Whole programs and whatever else takes seconds a test. CI runs them too.
slow: $(VENV)/.development
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --durations 10 -m "slow and not exhaustive"

# Data that ships, whole programs that run several times, and members of matrices that repeat a path. CONTRIBUTING.md has
# the parts, and when to run them.
exhaustive: $(VENV)/.development
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m exhaustive

# The tests of `test`, with the lines that they run.
coverage: $(VENV)/.development
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --cov --cov-report term

# Longer than its part in `test`: kills 24 real processes and compares what became of their runs.
test-faults: $(VENV)/.development
	$(VENV)/bin/python -m pytest tests/faults
	$(VENV)/bin/python benchmarks/kills.py

# Known vulnerabilities of the pinned versions, in an environment of its own. It asks a server, so it is no part of `test`,
# and CI goes on without. A version of which the server knows nothing is a failure (--strict): without that, nothing at all
# may have been looked up. It needs pypi.org itself or OSV (--vulnerability-service osv), and has had neither yet: the
# versions of constraints.txt are not audited.
audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

# The same as in `test`, with so many damaged files of each kind.
INPUTS ?= 5000
fuzz: $(VENV)/.development
	M2V_FUZZ_INPUTS=$(INPUTS) $(VENV)/bin/python -m pytest tests/fuzz

format:
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean:
	rm -rf $(VENV) $(VENV)-audit build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# pip brings torch, as it knows the index of CPU builds where a person has set one; uv brings the rest, in a third of the
# time of pip alone. uv does not read pip's settings: where it cannot reach an index, pip brings the rest, too.
$(VENV)/bin/uv: constraints.txt | $(VENV)/bin/python
	$(PIP) torch uv
	touch $@

PIP = $(VENV)/bin/python -m pip install --no-compile --constraint constraints.txt
INSTALL = $(VENV)/bin/uv pip install --system-certs --python $(VENV) --constraint constraints.txt
$(VENV)/.runtime: pyproject.toml $(VENV)/bin/uv
	$(INSTALL) --editable . || $(PIP) --editable .
	touch $@

# Compiled, as tests start many processes, also where Python may not keep what it compiles.
$(VENV)/.development: pyproject.toml $(VENV)/bin/uv
	$(INSTALL) --compile-bytecode --editable ".[dev]" || $(PIP) --editable ".[dev]"
	touch $@ $(VENV)/.runtime
