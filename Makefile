# make demo: set up and run everything once on the embedded data.  make test: set up and run the tests.
# make test-launch: those on several hosts, which are network namespaces; as root, each skips what the machine lacks.
# The whole matrices of signals and faults, an hour and more: pytest -m launch tests/launch.
PYTHON ?= python3.11
VENV ?= .venv
WORKERS ?= 2
STAMP := $(VENV)/.installed

.PHONY: demo test test-launch check clean

demo: $(STAMP)
	$(VENV)/bin/matloom demo

test: $(STAMP)
	$(VENV)/bin/python -m pytest --numprocesses $(WORKERS)

test-launch: $(STAMP)
	$(VENV)/bin/python -m pytest -m "launch and not slow" -rs tests/launch

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[dev]' $(PIP_EXTRA)
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs mlflow.db mlruns
