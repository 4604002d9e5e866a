# The same environment for everything: $(VENV), with the versions in constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test test-browser test-cluster image bench lint clean

demo: $(VENV)/installed ## the whole study on scanned digits; results in runs/demo
	$(BIN)/simhpc run jobs/demo.toml --out runs/demo
	$(BIN)/simhpc analyze runs/demo
	$(BIN)/simhpc report runs/demo

test: $(VENV)/installed-test ## the tests that take minutes at most
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-browser: $(VENV)/installed-browser ## the report in a real Chromium; as root on Debian it is installed if there is none
	@command -v chromium >/dev/null || tests/browser/install-chromium.sh
	$(BIN)/python -m pytest -m browser

test-cluster: image $(VENV)/installed-test ## the tests that need Slurm and Apptainer, on real ones; as root, on Debian 12
	VENV='$(VENV)' slurm/devcluster/test.sh

image: $(VENV)/installed ## containers/simhpc-cpu.sif, unless it is of this very checkout
	@command -v apptainer >/dev/null && command -v mmdebstrap >/dev/null || slurm/devcluster/install-apptainer.sh
	PYTHON='$(BIN)/python' containers/build.sh cpu

bench: $(VENV)/installed-bench ## figures beside those of what one would use instead, on the CPU; results in benchmarks/out
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.aggregation

lint: $(VENV)/installed-lint ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove the environment, not the results
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "simhpc needs Python 3.11 or later; make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: nothing that follows may choose another build of it.
$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) '.[test]'
	touch $@

$(VENV)/installed-browser: $(VENV)/installed-test
	$(INSTALL) '.[test,browser]'
	touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(INSTALL) '.[bench]'
	touch $@

$(VENV)/installed-lint: $(VENV)/installed-test
	$(INSTALL) '.[test,lint]'
	touch $@
