# Every target sets up what it needs in .venv; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
# What follows on a command line: make train ARGS="experiment=stagewise lr.what=0.001"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-runs test-faults test-matrix test-base docs lint bench train report tensorboard lock clean
.PHONY: reproduce reproduce-table1 reproduce-table2 reproduce-averages reproduce-gradients reproduce-mnist

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 28

demo: $(VENV)/installed ## train stage-wise on 2-D mosaics: under a minute once installed, no data needed
	$(BIN)/python -m attnmosaic.train $(ARGS)

test: $(VENV)/installed ## run the unit tests: a few minutes, for every commit
	$(BIN)/python -m pytest $(ARGS)

test-runs: $(VENV)/installed ## complete runs, sweeps and searches, commands, browsers
	$(BIN)/python -m pytest -m 'runs and not faults' $(ARGS)

test-faults: $(VENV)/installed ## kills, clusters, hostile input, a thousand epochs (docs/reliability.md)
	$(BIN)/python -m pytest -m faults $(ARGS)

# Settings like those of other machines: CPUs without AVX or AVX-512, no C compiler, other numbers of threads, a core that another
# process keeps busy.
# Only the unit tests of numbers: pages, commands and files are the same on any machine.
COMPUTES := $(addprefix tests/,callbacks data metrics nn training)
SETTINGS ?= default avx2 no_compiler one four busy
on_default := env ATEN_CPU_CAPABILITY=default
on_avx2 := env ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
on_no_compiler := env CC=none
on_one := env OMP_NUM_THREADS=1
on_four := env OMP_NUM_THREADS=4
on_busy := $(BIN)/python -m benchmarks.busy

test-matrix: $(addprefix test-on-,$(SETTINGS)) ## the unit tests of what computes, as on other machines; SETTINGS=avx2 chooses

test-on-%: $(VENV)/installed
	$(on_$*) $(BIN)/python -m pytest $(COMPUTES) $(ARGS)

# An environment without extras and development tools; uv links its files from the cache.
test-base: $(VENV)/installed ## import every module with the base dependencies alone, in .venv-base
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-base
	$(BIN)/uv pip install --quiet --python $(VENV)-base/bin/python --constraint requirements.lock -r pyproject.toml
	PYTHONPATH=src $(VENV)-base/bin/python tests/helpers/import_everything.py

docs: $(VENV)/installed ## write docs/config.md from the comments in conf/
	$(BIN)/python docs/config_page.py

lint: $(VENV)/installed ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/installed ## measure speed and memory, against the published loop and a plain script (half an hour)
	$(BIN)/python -m benchmarks $(ARGS)

train: $(VENV)/installed ## train: make train ARGS="experiment=stagewise lr.what=0.001"
	$(BIN)/python -m attnmosaic.train $(ARGS)

# Which part of a table: make reproduce-table1 ROWS=1,3 SEEDS=0,1,2. SCALE=smoke runs it in seconds, for no result.
# CIFAR=DIR takes CIFAR-10 from a folder with train/CLASS/* and test/CLASS/*; otherwise torchvision downloads it.
ROWS ?=
SEEDS ?=
SCALE ?=
CIFAR ?=
comma := ,
cifar = $(if $(CIFAR),data=image_folder data.root=$(CIFAR))

# $(1): the table; $(2): what its rows' names begin with; $(3): further overrides. The sweep itself ends with the table;
# plots and report are made also if a job failed.
define sweep
	$(BIN)/python -m attnmosaic.train -m reproduce=$(1)$(if $(ROWS), \
		experiment=$(1)/$(2)$(subst $(comma),$(comma)$(1)/$(2),$(ROWS)))$(if $(SEEDS), \
		seed.all=$(SEEDS))$(if $(SCALE), scale=$(SCALE))$(if $(strip $(3) $(ARGS)), $(strip $(3) $(ARGS))); \
	status=$$?; test ! -d $(folder)/$(1) || { $(BIN)/python -m attnmosaic.collect $(folder)/$(1) --plots >/dev/null; \
		$(BIN)/python -m attnmosaic.report $(folder)/$(1); }; exit $$status
endef
folder = outputs$(if $(filter smoke,$(SCALE)),/smoke)

reproduce-table1: $(VENV)/installed ## Table 1 beside its published numbers; ROWS=1,3 SEEDS=0,1,2 SCALE=smoke CIFAR=DIR
	$(call sweep,table1,row,$(cifar))

reproduce-table2: $(VENV)/installed ## the same with Where first
	$(call sweep,table2,row,$(cifar))

reproduce-averages: $(VENV)/installed ## the 9 x 10 table of weighted averages
	$(call sweep,averages,dataset,$(cifar))

reproduce-gradients: $(VENV)/installed ## gradients with respect to alpha on 2-D mosaics; ROWS=joint,type1
	$(call sweep,gradients,)

reproduce-mnist: $(VENV)/installed ## digit and sum, digit and product on MNIST; ROWS=sum,product
	$(call sweep,mnist,)

reproduce: ## all of these; SEEDS, SCALE and CIFAR as above
	@status=0; for table in gradients mnist averages table1 table2; do \
		$(MAKE) reproduce-$$table ROWS= || status=1; done; exit $$status

RUN ?=
report: $(VENV)/installed ## one HTML file about the newest sweep or run, or RUN=outputs/table1
	$(BIN)/python -m attnmosaic.report $(if $(RUN),"$(RUN)") $(ARGS)

tensorboard: $(VENV)/installed ## dashboards of the newest sweep or run, or of RUN=outputs (all there are)
	@runs="$(RUN)"; runs=$${runs:-$$($(BIN)/python -m attnmosaic.runs.discovery)} && set -x && \
		exec $(BIN)/tensorboard --logdir "$$runs" $(ARGS)

lock: $(VENV)/installed ## pin the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --no-header --no-annotate \
		--extra dev pyproject.toml -o requirements.lock

clean: ## remove what can be made again: environments, caches, built packages (not outputs/)
	rm -rf $(VENV) $(VENV)-base build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "attnmosaic needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@
