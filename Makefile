# make run    set up and run the whole pipeline          make test   set up and run all tests
# make run CONFIG=config/qwen3-4b.yaml    another config, and the build of torch that it needs
# make test-gpu   the GPU tests, on the GPU of this machine
# make recover    ready for a new run after kills        make test-kill   kill runs at random (KILLS=200 SEED=1)
# make test-slurm   the pipeline on a cluster of Slurm that is set up here (root; slurmctld slurmd munge)
# make lint   ruff and mypy                              make wheel  dist/fgod-VERSION-py3-none-any.whl
# make clean  remove what runs and set-up made
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run recover test test-gpu test-slurm test-kill lint format wheel clean

run: .venv/ready
	$(if $(CONFIG),$(BIN)/python -m fgod.torch_build $(CONFIG))
	$(BIN)/snakemake $(if $(CONFIG),--configfile $(CONFIG))

recover: .venv/ready
	$(BIN)/fgod recover

test: .venv/ready-dev
	$(BIN)/python -m pytest

test-gpu: .venv/ready-dev
	$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make test-gpu: torch finds no CUDA device; expected a GPU and a CUDA build of torch")'
	$(BIN)/python -m pytest -m gpu -rs

test-slurm: .venv/ready-dev
	$(BIN)/pip install --quiet --requirement requirements-slurm.lock
	$(BIN)/python -m pytest -n 0 tests/slurm_cluster.py

# In slices too: what was done is kept in a folder below $TMPDIR, and the same command goes on until KILLS are done.
KILLS ?= 200
SEED ?= 1
test-kill: .venv/ready-dev
	$(BIN)/python -m tests.kills --count $(KILLS) --seed $(SEED)

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fgod

format: .venv/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules workflow/report.smk

# build/ is left by setuptools, which would put files that are no more from there into the next wheel.
wheel: .venv/ready
	rm -rf build dist
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build

# torch comes first and pinned: where the machine has a CPU build at hand, nothing later replaces it.
.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("fgod needs Python 3.11 or newer, found %d.%d: make PYTHON=/path/to/python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.lock requirements-kernels.lock
	$(BIN)/pip install --quiet --requirement requirements-dev.lock
	$(BIN)/pip install --quiet --no-deps --upgrade --target .venv/kernels --requirement requirements-kernels.lock
	touch $@

clean:
	rm -rf .venv .snakemake artifacts results build dist
