# Every target gets what it needs by itself (scripts/prepare.sh) and may be run first. PYTHON= names the interpreter.
.DEFAULT_GOAL := help
.PHONY: help demo test test-interpreters test-faults check bench bench-setup reliability fuzz docs test-ecosystem test-dialects test-isaac clean

export PYTHON
PREPARE := scripts/prepare.sh
BIN := .venv/bin
TESTS ?= tests
JOBS ?= 2
FUZZ_SECONDS ?= 60

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

demo:  ## run the ALOHA expert on an embedded server, replay it locally: outputs/remote_replay
	@$(PREPARE) demo
	$(BIN)/python examples/remote_replay.py --episodes 5

test:  ## run the tests (TESTS=tests/ssh for some of them; JOBS=0: one after another in one process)
	@$(PREPARE) test
	REMOTE_ENV_TEST_PYTHON=$(CURDIR)/.venv-far/bin/python $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTS)

test-interpreters:  ## what crosses SSH, served by Python 3.10 (numpy 1.26, gymnasium 0.29), 3.11, 3.12 and 3.13
	@$(PREPARE) interpreters
	for far in .venv-far-*; do echo "== $$far"; \
	  REMOTE_ENV_TEST_PYTHON=$(CURDIR)/$$far/bin/python $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile tests/ssh tests/cli tests/test_over_ssh*.py || exit 1; done

test-faults:  ## every fault of the list three times in a row, 200 cycles of opening and closing, links cut after every byte (an hour)
	@$(PREPARE) test
	for turn in 1 2 3; do $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m fault || exit 1; done
	REMOTE_ENV_TEST_CYCLES=200 $(BIN)/python -m pytest -q tests/test_cycles.py
	REMOTE_ENV_TEST_EXHAUSTIVE=1 $(BIN)/python -m pytest -q -n $(JOBS) tests/protocol/test_model_checked.py tests/session/test_every_byte.py

check:  ## lint, format, types, layers
	@$(PREPARE) check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

bench:  ## steps beside raw TCP and a pickle server, then policy requests beside openpi's and LeRobot's; says which machine
	@$(PREPARE) bench
	$(BIN)/python -m benchmarks.bench_step
	$(BIN)/python -m benchmarks.bench_policy

bench-setup:  ## environments of the rivals that bench leaves out when they are missing (4 GB)
	@$(PREPARE) dialects
	@$(PREPARE) rivals

reliability:  ## cut links, kill logins, silence hosts under thousands of steps, and compare with undisturbed runs (docs/reliability.md)
	@$(PREPARE) test
	$(BIN)/python -m benchmarks.reliability

fuzz:  ## mutated bytes against everything that reads a peer's, FUZZ_SECONDS= (60) for each target; an environment of its own
	scripts/fuzz.sh $(FUZZ_SECONDS)

docs:  ## build the documentation into site/
	@$(PREPARE) docs
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

test-ecosystem:  ## what needs torch, in an environment of its own: stable-baselines3, training and loading checkpoints
	@$(PREPARE) ecosystem
	.venv-ecosystem/bin/python -m pytest tests/ecosystem tests/policy/test_loading_torch.py

test-dialects:  ## LeRobot's own unmodified client, server and policies, in an environment of its own (2 GB)
	@$(PREPARE) dialects
	.venv-lerobot/bin/python -m pytest tests/dialects/lerobot

test-isaac:  ## Isaac Lab 3 on the CPU without Isaac Sim, in an environment of its own (8 GB), served over sshd
	@$(PREPARE) isaac
	REMOTE_ENV_ISAAC_PYTHON=$(CURDIR)/.venv-isaac/bin/python $(BIN)/python -m pytest tests/isaac

clean:  ## remove environments, caches and everything built
	rm -rf .venv .venv-* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist site outputs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
