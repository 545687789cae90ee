# Every target does its own set-up: on a fresh machine with Python (3.11 or newer), make and git, `make demo` just works.
PYTHON  ?= python3
WORKERS ?= 2
VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
PYTEST  := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Set-up leaves compiling to the first import: it must be allowed to write.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help demo demo-quick fast test soak mutants limits gpu lint style clean

help:                   ## what can be made: this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(READY)          ## train, capture, fit, replay, report: about two minutes
	$(BIN)/gradstats demo --out demo.zarr --overwrite

demo-quick: $(READY)    ## the same in about twenty seconds; feedback rows are labelled unsettled
	$(BIN)/gradstats demo --quick --out demo.zarr --overwrite

style: $(READY)         ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: style             ## ruff, mypy --strict: a minute the first time, then two seconds
	$(BIN)/mypy --num-workers $(WORKERS)

fast: style             ## what to run on every change: ruff and all tests but those marked slow, about three minutes
	$(PYTEST) -m 'not slow and not soak'

test: style             ## all that continuous integration runs: ruff, mypy --strict, pytest with doctests, twelve to twenty minutes
	@$(BIN)/mypy --num-workers $(WORKERS) & types=$$!; $(PYTEST); tests=$$?; wait $$types && exit $$tests

soak: $(READY)          ## the full numbers of the tests marked soak, and the mutants: about an hour, 4 GB of memory
	$(BIN)/python analyses/07_soak/run.py
	$(BIN)/python analyses/07_soak/mutants.py --workers $(WORKERS)

mutants: $(READY)       ## small errors in a copy of the code, each of which a test has to notice: about forty minutes
	$(BIN)/python analyses/07_soak/mutants.py --workers $(WORKERS)

limits: $(READY)        ## speeds as ratios inside one run, small sizes: fails where one is much worse than committed
	$(BIN)/python analyses/14_limits/run.py --quick

gpu: $(READY)           ## check and time everything on a GPU of your own: about six minutes
	$(BIN)/python analyses/11_gpu/run.py
	$(BIN)/python analyses/11_gpu/plot.py

clean:                  ## remove the virtual environment and what the demo wrote
	rm -rf $(VENV) demo.zarr demo.results

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	touch $@
