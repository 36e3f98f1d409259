# Every command of the project. Each works on a clean checkout: what it needs is installed first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin

.PHONY: help
help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | while IFS='|' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

.PHONY: local dev node
local:
	@tools/prepare local
dev:
	@tools/prepare dev
node:
	@tools/prepare node

.PHONY: demo
demo: local ## show the problem and the cure on this machine (ARGS="--json" …)
	@$(BIN)/emberpool demo $(ARGS)

.PHONY: up
up: local ## run PostgreSQL and the proxy here until Ctrl-C (ARGS="--proxy-port 6432" …)
	@$(BIN)/emberpool up $(ARGS)

.PHONY: chaos
chaos: dev ## let faults happen to the real parts under load, and judge (ARGS="--seed 7 --each" …)
	@$(BIN)/emberpool chaos $(ARGS)

.PHONY: test
test: dev node ## run every test (ARGS="-k budget" …)
	@$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

.PHONY: explore
explore: dev node ## run the property tests with examples that are new each time
	@$(BIN)/pytest -n 2 -m hypothesis --hypothesis-profile=explore $(ARGS)

.PHONY: stalls
stalls: dev node ## run the tests while all of their processes stall at random (ARGS="--stall-seed 7 tests/whole_path" …)
	@$(BIN)/python -m tests.stalls $(ARGS)

.PHONY: lint
lint: dev ## check style, formatting, imports and shell scripts
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports --no-cache
	@bash -n tools/prepare requirements/compile .ci/run

.PHONY: types
types: dev ## check types (mypy, strict)
	@$(BIN)/mypy

.PHONY: format
format: dev ## rewrite the code in the project's format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: synth
synth: dev node ## synthesize the CDK stacks into cdk.out (ARGS="-c database=existing" …)
	@node_modules/.bin/cdk synth --quiet $(ARGS) && echo "The stacks' templates are in cdk.out"

.PHONY: snapshot
snapshot: dev ## accept the stacks as they are now: writes tests/infra/snapshot for you to review
	@$(BIN)/python -m tests.infra.stack_snapshot

.PHONY: deploy-local
deploy-local: dev node ## run the real cdk bootstrap and deploy against a simulated AWS on this machine
	@$(BIN)/emberpool deploy-local $(ARGS)

.PHONY: bench
bench: dev ## measure against what a user would pick instead: all benchmarks, one page (ARGS="--quick" …)
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: bench-layer
bench-layer: dev ## measure the layer: warm path, cold start, import (ARGS="--page FILE" …)
	@$(BIN)/python -m benchmarks.layer $(ARGS)

.PHONY: bench-proxy
bench-proxy: dev ## measure one task: overhead, cold-start storms, recovery, the agent (ARGS="--only recovery" …)
	@$(BIN)/python -m benchmarks.proxy $(ARGS)

.PHONY: bench-fleet
bench-fleet: dev ## measure tasks that share one budget: reaction, skew, cost (ARGS="--only skew" …)
	@$(BIN)/python -m benchmarks.fleet $(ARGS)

.PHONY: bench-data
bench-data: dev ## measure the data endpoint: latency, CPU, memory (ARGS="--only memory" …)
	@$(BIN)/python -m benchmarks.data $(ARGS)

.PHONY: bench-path
bench-path: dev ## measure invocations over a network delay: naive, warm only, emberpool (ARGS="--page FILE" …)
	@$(BIN)/python -m benchmarks.whole_path $(ARGS)

.PHONY: bench-scale
bench-scale: dev ## simulate the slots of 500 tasks and 100,000 environments (ARGS="--tasks 1000" …)
	@$(BIN)/python -m benchmarks.scale $(ARGS)

.PHONY: bench-cost
bench-cost: dev ## compute dollars a month against RDS Proxy and the RDS Data API (ARGS="--page FILE" …)
	@$(BIN)/python -m benchmarks.cost $(ARGS)

.PHONY: docs
docs: dev ## write the generated pages of docs/ again
	@$(BIN)/python docs/generate.py

.PHONY: layer
layer: dev ## build the Lambda layer's zips into dist/ (ARGS="--with-powertools" …)
	@$(BIN)/python infra/build_layers.py $(ARGS)

.PHONY: image
image: dev ## build the proxy's container image and try it out (needs docker)
	@$(BIN)/python infra/build_image.py $(ARGS)

.PHONY: lock
lock: dev ## resolve the dependencies again and write requirements/*.txt
	@UV=$(BIN)/uv requirements/compile

.PHONY: clean
clean: ## remove everything that the commands above made in this folder
	rm -rf .venv node_modules cdk.out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
