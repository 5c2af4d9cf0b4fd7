# Orbit: one embedding per orbit. `make help` lists the targets.
# PYTHON=python3.12 chooses the interpreter (3.11 or newer); FAISS=gpu installs faiss-gpu instead of faiss-cpu.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CANDIDATES := python3.11 python3.12 python3.13 python3 python
PYTHON ?= $(firstword $(foreach p,$(CANDIDATES),$(if $(shell command -v $(p) 2>/dev/null),$(p))))
FAISS ?= cpu
OTHER_FAISS := $(if $(filter gpu,$(FAISS)),cpu,gpu)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(FAISS)
DEMO_FLAGS ?=
TEST_FLAGS ?=

ifeq ($(filter cpu gpu,$(FAISS)),)
$(error FAISS=$(FAISS): expected cpu or gpu)
endif

.PHONY: help setup demo test check test-unit test-faults test-cluster test-scale lint types imports bench sample checkpoint tables sbom audit clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY)  ## make .venv with the pinned versions and the orbit command (FAISS=gpu for faiss-gpu)
	@echo "ready: $(BIN)/orbit --help"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "orbit: no Python found; install Python 3.11 or newer, or name it: make setup PYTHON=/path/to/python" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "orbit: $$($(PYTHON) -V) found, 3.11 or newer expected; name it: make setup PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "orbit: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }

$(READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the pinned versions into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip uninstall -q -y faiss-$(OTHER_FAISS) 2>/dev/null || true
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt setuptools
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[$(FAISS),fast,clouds,evaluate,fits,traces,dev]'
	@rm -f $(VENV)/.ready-* && touch $@

demo: $(READY)  ## the whole road on the sample that ships with the project (DEMO_FLAGS=--train trains first)
	@$(BIN)/orbit demo $(DEMO_FLAGS)

test: check test-unit  ## check, then every test

test-unit: $(READY)  ## the tests alone (TEST_FLAGS="-k index" picks some)
	@$(BIN)/python -m pytest $(TEST_FLAGS)

test-faults: $(READY)  ## the whole fault suite: minutes; ORBIT_TEST_SEED=N repeats its chances
	@$(BIN)/python -m pytest tests/faults -m "faults_slow or not faults_slow" $(TEST_FLAGS)

test-cluster: $(READY)  ## the long tests on Ray clusters, and of training on several workers: minutes
	@$(BIN)/python -m pytest -m cluster_slow $(TEST_FLAGS)

test-scale: $(READY)  ## the tests at full size: a million vectors, 10,000 connections, Ray Serve
	@$(BIN)/python -m pytest tests -m scale --timeout=0 $(TEST_FLAGS)

check: lint types imports  ## ruff, mypy --strict, import-linter

lint: $(READY)
	@$(BIN)/ruff check .

types: $(READY)
	@$(BIN)/mypy

imports: $(READY)
	@$(BIN)/lint-imports --no-cache

bench: $(READY)  ## the benchmarks in tests/bench, one after another
	@$(BIN)/python -m pytest tests/bench -o python_files='bench_*.py' -s --timeout=0 $(TEST_FLAGS)

sample: $(READY)  ## make jobs/sample again from Fashion-MNIST (DATA=folder with the IDX files, else downloaded)
	@$(BIN)/python -m jobs.sample.make_sample $(if $(DATA),--from $(DATA))

checkpoint: $(READY)  ## train the shipped model again: minutes on a large GPU, long on two cores (DATA=folder with the IDX files, DEVICE=cuda)
	@$(BIN)/python -m jobs.datasets mnist fashion-mnist --out build/data $(if $(DATA),--from $(DATA))
	@$(BIN)/orbit train build/data --out build/d4-28-grey-3 --name d4-28-grey-3 --limit 120000 \
		--images-seen 1500000 --batch-size 256 --patience 1000 --bfloat16 --device $(DEVICE)

ROWS := raw-pixels,autoencoder,mean-d4,mean-d12,attention-d4,attention-d12,gram-d4,gram-d12,recommended
EVALUATE = $(BIN)/orbit evaluate $(1) --recipe $(2) --seeds $(3) --device $(DEVICE) --data build/data --out build/evaluation
DEVICE ?= cpu

tables: $(READY)  ## make the tables of eqmodel/RESULTS.md again, hours on two cores; resumes (DATA=folder with the IDX files, DEVICE=cuda)
	@$(BIN)/python -m jobs.datasets mnist fashion-mnist --idx --out build/data $(if $(DATA),--from $(DATA))
	@for protocol in augmented-mnist mnist-rot o2-mnist augmented-fashion fashion-rot o2-fashion; do \
		$(call EVALUATE,$$protocol,$(ROWS),1); \
	done
	@for protocol in augmented-mnist mnist-rot o2-mnist; do $(call EVALUATE,$$protocol,recommended,3); done
	@for protocol in augmented-mnist mnist-rot augmented-fashion fashion-rot; do \
		$(call EVALUATE,$$protocol,recommended,1) --ceiling; \
	done
	@$(BIN)/orbit evaluate --table build/evaluation --into eqmodel/RESULTS.md

# in an environment of its own: see pyproject.toml
build/cyclonedx/bin/cyclonedx-py: pyproject.toml constraints.txt | $(READY)
	@$(BIN)/python -m venv build/cyclonedx
	@build/cyclonedx/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt cyclonedx-bom
	@touch $@

sbom: build/cyclonedx/bin/cyclonedx-py  ## write build/sbom.cdx.json: every installed package, as CycloneDX
	@build/cyclonedx/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.cdx.json $(BIN)/python
	@echo "build/sbom.cdx.json: $$($(BIN)/python -c 'import json; print(len(json.load(open("build/sbom.cdx.json"))["components"]))') packages"

audit: $(READY)  ## ask PyPI for known vulnerabilities of the pins (needs its vulnerability service)
	@$(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

clean:  ## remove the environment, caches and the demo's output
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache orbit-demo
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
