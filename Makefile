# make reproduce | test | bench | lab | site | lint | lock: each makes .venv when it is missing or older than its lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

PROFILE ?= laptop
DATA ?= phantom
LOCK ?= requirements.lock
RUN ?=
SEED ?= 0

.PHONY: install notebooks badges reproduce test test-browser bench lab site lint lock

install: $(READY)

$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

reproduce: $(READY)
	$(BIN)/python -m echo reproduce --profile $(PROFILE) --data "$(DATA)" --run "$(RUN)" --seed $(SEED)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# One thread in each of two processes: two processes of two threads on two cores run many times slower.
test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout 600 \
		--nbval-sanitize-with tests/nbval_sanitize.cfg -W default notebooks

# Every notebook in JupyterLab, and the site, in a headless Chromium; screenshots in test-artefacts/.
test-browser: export OMP_NUM_THREADS = 1
test-browser: $(READY)
	@command -v chromium > /dev/null || { apt-get update -qq && apt-get install -y -qq chromium; } \
		|| $(BIN)/python -m playwright install --with-deps chromium
	$(BIN)/python -m pytest -n 2 -m browser tests

# The published computation against ours, on this machine; nothing else should run beside it.
bench: $(READY)
	$(BIN)/python -m tools.bench
	$(BIN)/python -m tools.bench_cascade

lab: $(READY)
	$(BIN)/python -m jupyterlab --notebook-dir . $(if $(filter 0,$(shell id -u)),--allow-root)

# README and notebooks as static pages: open _site/index.html, or serve the folder from anywhere.
site: $(READY)
	$(BIN)/python -m tools.site

# Execute the committed notebooks in place, after a change to one or to results/.
notebooks: $(READY)
	for notebook in notebooks/*.ipynb; do \
		$(BIN)/python -m jupyter nbconvert --to notebook --execute --inplace $$notebook || exit 1; done
	$(BIN)/ruff format notebooks

# Colab's badge and bootstrap cell into every notebook; run `make notebooks` when a cell is new.
badges: $(READY)
	$(BIN)/python -m tools.badges

# uv keeps what requirements.lock pins, where it can. torch's own CUDA packages come with torch, where it wants them. With
# them and with hashes, the same pins stand in requirements-gpu.lock; torch's builds for a CPU alone have other hashes.
COMPILE = $(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-annotate --no-header --quiet
lock: $(READY)
	$(COMPILE) --output-file requirements.lock
	sed -i.old -E '/^(nvidia-|cuda-|triton)/d' requirements.lock && rm requirements.lock.old
	$(COMPILE) --generate-hashes --constraint requirements.lock --output-file requirements-gpu.lock
