# Every target sets itself up: .venv is made from requirements.lock on first use, and again when the lock changes.
#
#   make reproduce PROFILE=mini WORKERS=2     PROFILE is a folder of params/
#   make TORCH=existing PYTHON=/path/python   keep a torch that is installed already (see README.md)

PROFILE ?= mini
PYTHON  ?= python3
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 8 ] && n=8; echo $$n)

VENV  := .venv/bin/python
STAMP := .venv/.setup-done
MADE  := $(shell cat $(STAMP) 2>/dev/null)
TORCH ?= $(or $(MADE),locked)

# Packages of the user's home would shadow the locked ones; one thread per process is what makes numbers repeat.
export PYTHONNOUSERSITE := 1
RUN := OMP_NUM_THREADS=1 MPLBACKEND=agg $(VENV)

.DEFAULT_GOAL := help
.PHONY: help setup reproduce reproduce-ovd smoke studies latency demo test lint lab figures publish report doctor strip clean clean-venv clean-results

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' Makefile
	@echo "  variables: PROFILE=$(PROFILE) WORKERS=$(WORKERS) TORCH=$(TORCH) PYTHON=$(PYTHON)"

$(STAMP): requirements.lock pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "there is no $(PYTHON); say: make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" tools/set_up.py --torch $(TORCH)

ifneq ($(TORCH),$(or $(MADE),$(TORCH)))
.PHONY: $(STAMP)
endif

setup: $(STAMP) ## only make .venv

reproduce: $(STAMP) ## run every notebook of the profile, then print the result table and where everything lies
	@$(RUN) -m risf_core.run --list params/$(PROFILE)/runs.yaml --workers $(WORKERS); code=$$?; \
	 $(RUN) -m risf_core.tables --profile $(PROFILE) --show && exit $$code

reproduce-ovd: $(STAMP) ## the second system: open-vocabulary detection (RKD), and re-scoring without CLIP at test time
	@$(MAKE) --no-print-directory reproduce PROFILE=ovd

smoke: ## the same at smoke size (the numbers mean nothing)
	@$(MAKE) --no-print-directory reproduce PROFILE=smoke

demo: $(STAMP) ## a minute: a picture before and after CM-CLIP, and one paired number, from small committed weights
	@$(RUN) -m risf_core.demo

studies: $(STAMP) ## extensions and controls, on top of the mini profile, whose runs it makes where they are missing
	@$(MAKE) --no-print-directory reproduce PROFILE=studies

latency: $(STAMP) ## what re-scoring costs on this machine: one run at a time, so leave the machine alone meanwhile
	@$(MAKE) --no-print-directory reproduce PROFILE=latency WORKERS=1

test: $(STAMP) ## the whole test suite (PYTEST_ARGS="-k bnrl" for a part)
	@$(RUN) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP) ## ruff: lint and format check
	@$(VENV) -m ruff check . && $(VENV) -m ruff format --check .

lab: $(STAMP) ## JupyterLab in notebooks/; it saves when you say so, not by itself, so that looking changes no file
	@JUPYTER_CONFIG_PATH="$(CURDIR)/tools/jupyter" $(VENV) -m jupyterlab notebooks

figures: $(STAMP) ## tables and figures of the profile from its records alone (no GPU, no training)
	@$(RUN) -m risf_core.tables --profile $(PROFILE)

publish: $(STAMP) ## copy tables, figures and records of the profile to results/published/ (to be committed)
	@$(RUN) -m risf_core.tables --profile $(PROFILE) --publish

report: $(STAMP) ## results/report.html: claims, figures, tables, executed notebooks and provenance of all profiles with records
	@$(RUN) -m risf_core.report.html_report

doctor: ## check versions, device, disk, folders, optional packages; says what mends each
	@$(MAKE) -s --no-print-directory setup || true
	@python=$(VENV); [ -x $$python ] || python="$(PYTHON)"; "$$python" -m risf_core.doctor

strip: $(STAMP) ## remove outputs from notebooks/ before a commit
	@$(VENV) -m nbconvert --clear-output --inplace notebooks/*.ipynb

clean: ## remove caches (results, data and .venv stay)
	@rm -rf .pytest_cache .ruff_cache .hypothesis build
	@find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

clean-venv: ## remove .venv
	@rm -rf .venv

clean-results: ## remove the profile's results, only with SURE=yes
	@case "$(PROFILE)" in ""|published|*/*|.*) echo "PROFILE=$(PROFILE) is not a profile"; exit 1;; esac
	@[ "$(SURE)" = yes ] || { echo "would remove results/$(PROFILE); say: make clean-results PROFILE=$(PROFILE) SURE=yes"; exit 1; }
	@rm -rf "results/$(PROFILE)"
