# Two commands do everything, set-up included:   make demo     make test
# The first call makes .venv (a few minutes); later calls start at once. `make help` lists the rest.
#
#   TORCH=torch==2.13.0    the torch to install first, the CPU build by default where the registry has one for your system
#   TORCH_INDEX=URL        the package index to take it from: PyTorch's CPU index on Linux without a GPU (smaller), its CUDA index for a GPU build
#   PYTHON=python3.12      the Python to build .venv with, 3.11 or newer
#   ARGS="--seed 3"        handed to `faceid demo`

SHELL := /bin/sh
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
TORCH ?=
TORCH_INDEX ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed# The package
DEV := $(VENV)/.dev# and what the tests need
LAB := $(VENV)/.lab# and JupyterLab
SIGNALLING := 07_stop|45_finetune|91_runs# Chapters that send themselves signals: only the main thread of a kernel hears those
KEPT_TORCH := $(firstword $(shell cat $(VENV)/.torch 2>/dev/null))
WANTED_TORCH := $(or $(TORCH),$(KEPT_TORCH),torch==2.13.0)
# A chapter that was only run is not a change: git keeps its stored outputs.
FILTER := git config --local filter.notebook.clean '$(BIN)/python .githooks/same_sources.py %f'
export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test check bench notebooks lint lab outputs docs readme export hooks clean fresh FORCE
.DEFAULT_GOAL := help

# Another TORCH or TORCH_INDEX than the one installed, said on the command line, installs again.
ifneq ($(strip $(TORCH)$(TORCH_INDEX)),)
ifneq ($(strip $(shell cat $(VENV)/.torch 2>/dev/null)),$(strip $(WANTED_TORCH) $(TORCH_INDEX)))
$(STAMP): FORCE
OTHER_TORCH := yes
endif
endif

$(STAMP): settings.ini setup.py pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "No Python found. Install Python 3.11 or newer (Debian/Ubuntu: apt install python3 python3-venv; macOS: brew install python)." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version) is too old: 3.11 or newer is wanted. Install one and say: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module. Debian/Ubuntu: apt install python3-venv (or python3.12-venv for python3.12), then the same command again." >&2; exit 1; }
	@[ -x $(BIN)/python ] || { echo "Setting up .venv, once (a few minutes) ..."; $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; }
	@rm -f $(STAMP)
	@[ -z '$(OTHER_TORCH)' ] || $(BIN)/python -m pip uninstall -q -y torch 2>/dev/null
	$(BIN)/python -m pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(WANTED_TORCH)'
	@$(BIN)/python -c "from importlib.metadata import version as v; print('torch=='+v('torch'), 'torchvision<0', 'torchaudio<0', sep='\n')" > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -q -c $(VENV)/constraints.txt -e .
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { echo "OpenCV lacks system libraries. Debian/Ubuntu: apt install libgl1 libglib2.0-0 libxcb1, then the same command again." >&2; exit 1; }
	@echo "$(WANTED_TORCH) $(TORCH_INDEX)" > $(VENV)/.torch
	@touch $(STAMP)

$(DEV): $(STAMP)
	$(BIN)/python -m pip install -q -c $(VENV)/constraints.txt -e '.[dev]'
	@touch $@

$(LAB): $(STAMP)
	$(BIN)/python -m pip install -q -c $(VENV)/constraints.txt -e '.[lab]'
	@touch $@

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1 /p' Makefile | while read name what; do printf '  make %-10s %s\n' "$$name" "$$what"; done

demo: $(STAMP) ## photos and dances of a drawn person in, four videos and a report out: runs/demo/report.html
	HF_HUB_OFFLINE=1 $(BIN)/faceid demo $(ARGS)

test: lint notebooks ## everything: linter, every notebook, the laws and contracts in tests/
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests

check: lint ## before a commit, in a few minutes: linter, the laws of style and layers, the tests and chapters that changed since main
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python .ci/check.py $(WORKERS) '$(SIGNALLING)'

bench: $(STAMP) ## how fast this machine is: curation against a plain loop, refusals, the help page (more in benchmarks/)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/pace.py

lint: $(DEV) ## names that are undefined or unused
	$(BIN)/ruff check --quiet --select F821,F401 --per-file-ignores '__init__.py:F401' faceid_nb benchmarks .ci .githooks

notebooks: $(DEV) ## run every chapter of nbs/, top to bottom; tests/test_papermill.py runs those of nbs/runs
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers $(WORKERS) --skip-file-re '^($(SIGNALLING))' --skip-folder-re '^([_.]|runs$$)'
	printf '%s\n' $(foreach one,$(subst |, ,$(SIGNALLING)),$(wildcard nbs/*/$(one).ipynb)) | HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 JUPYTER_PREFER_ENV_PATH=1 \
		xargs -n 1 -P $(WORKERS) $(BIN)/jupyter execute --kernel_name=python3 --timeout=300

lab: $(LAB) ## JupyterLab, at the first page of the book; its files are those of the project, with runs/
	@$(FILTER) 2>/dev/null || true
	PYTHONPATH='$(CURDIR)/.githooks' $(BIN)/jupyter lab --FileContentsManager.post_save_hook=same_sources.settle \
		--ServerApp.contents_manager_class=lab_pages.Pages \
		--ServerApp.root_dir='$(CURDIR)' --LabApp.default_url=/lab/tree/nbs/index.ipynb $(ARGS)

outputs: $(DEV) ## git: stage the outputs of chapters whose cells are unchanged; otherwise git keeps the stored ones
	$(BIN)/nbdev-clean
	git -c filter.notebook.clean=cat add --renormalize nbs

docs: $(VENV)/.docs ## the book as a web site, built offline: _docs/index.html
	$(BIN)/python .docs/book.py site

$(VENV)/.docs: $(DEV)
	$(BIN)/python -m pip install -q -c $(VENV)/constraints.txt -e '.[dev,docs]'
	@touch $@

readme: $(DEV) ## README.md from nbs/index.ipynb
	$(BIN)/python .docs/book.py readme

export: $(DEV) ## faceid_nb/ from the notebooks, and the notebooks clean
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean

hooks: $(DEV) ## git: notebooks merge cell by cell, and are committed clean
	$(FILTER)
	git config --local core.hooksPath .githooks
	git config --local merge.jupyternotebook.name "notebooks, cell by cell"
	git config --local merge.jupyternotebook.driver "$(BIN)/nbdev-merge %O %A %B %P"
	git config --local diff.jupyternotebook.command $(BIN)/nbdev-diff-driver

clean: ## remove what was built; keeps .venv and runs/
	rm -rf _docs _proc nbs/_proc build dist *.egg-info .pytest_cache .ruff_cache nbs/.last_checked nbs/llms.txt
	find faceid_nb tests nbs -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

fresh: clean ## and .venv too
	rm -rf $(VENV)
