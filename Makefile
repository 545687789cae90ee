# Every target does its own set-up: on a fresh machine with Python (3.11 or newer), make and git, `make demo` just works.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo demo-quick test soak lint clean

demo: $(READY)          ## train, capture, fit, replay, report: about two minutes
	$(BIN)/gradstats demo --out demo.zarr --overwrite

demo-quick: $(READY)    ## the same in about twenty seconds; feedback rows are labelled unsettled
	$(BIN)/gradstats demo --quick --out demo.zarr --overwrite

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint              ## ruff, mypy --strict, pytest with doctests
	$(BIN)/python -m pytest

soak: $(READY)          ## the full numbers of the tests marked soak: about four minutes, 4 GB of memory
	$(BIN)/python analyses/07_soak/run.py

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo.zarr demo.results
