# Every target but help and clean sets up .venv first; the second time that takes a second.
PYTHON ?= python3
BIN := .venv/bin
SEED ?=
INSTRUCTION ?=
DASHBOARD ?=
export MUJOCO_GL ?= egl

.PHONY: help setup demo-setup demo test train-smoke lint format docs bench soak bench-load bench-gpu bench-train clean
.DEFAULT_GOAL := help

help:
	@echo "make setup [PYTHON=python3.12]             everything into .venv; the other targets do it by themselves"
	@echo "make demo [INSTRUCTION='...'] [SEED=...]   a robot follows a sentence; writes demo/; DASHBOARD=0: no page to watch by"
	@echo "make test                                  all quick tests (make test PYTEST_ARGS='-m slow' for the slow ones)"
	@echo "make train-smoke                           all seven training stages at toy size on the CPU (part of make test)"
	@echo "make bench-train [BENCH_ARGS='...']        training throughput and MFU on a CUDA GPU"
	@echo "make lint | format | bench                 check style and types | fix style | measure speed"
	@echo "make docs                                  the documentation site into site/; a broken link is an error"
	@echo "make soak [SOAK_ARGS='--minutes 2']        an hour of episodes over ROS 2: memory flat, no command late; runs/soak/"
	@echo "make bench-load                            how fast a checkpoint of 8B size loads; writes 14 GB and removes them"
	@echo "make bench-gpu [BENCH_ARGS='--only lite8b,2b']   measure the engine on a CUDA GPU, beside its peers"
	@echo "make clean                                 removes .venv, demo/, site/ and what builds and checks left; runs/ stays"

setup:
	@$(PYTHON) tools/setup_env.py

# Only what the demo needs; a .venv that holds everything is left as it is.
demo-setup:
	@$(PYTHON) tools/setup_env.py --for demo

demo: demo-setup
	@$(BIN)/nvila demo $(if $(SEED),--seed $(SEED)) $(if $(INSTRUCTION),--instruction '$(subst ','\'',$(INSTRUCTION))') $(if $(filter 0,$(DASHBOARD)),--no-dashboard)

test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

train-smoke: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest test/training/test_smoke.py $(PYTEST_ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: setup
	@$(BIN)/python -c "import material, mkdocstrings_handlers.python" 2>/dev/null || $(BIN)/python -m pip install -qq -c constraints.txt --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # with --quiet no warning would count
	@echo "site/index.html; with search: $(BIN)/python -m http.server --directory site --bind 127.0.0.1"

bench: setup
	@$(BIN)/python test/bench/run.py

soak: setup
	@$(BIN)/python test/bench/soak.py $(SOAK_ARGS)

bench-load: setup
	@$(BIN)/python test/bench/bench_load.py $(BENCH_ARGS)

bench-gpu: setup
	@$(BIN)/python test/bench/gpu/run.py $(BENCH_ARGS)
	@$(BIN)/python test/bench/gpu/projection.py

bench-train: setup
	@$(BIN)/python test/bench/gpu/bench_train.py $(BENCH_ARGS)

clean:
	rm -rf .venv build install log demo site .pytest_cache .ruff_cache .mypy_cache
