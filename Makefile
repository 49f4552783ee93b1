# Every target is one of the scripts; see CONTRIBUTING.md.
#   make run ARGS="--listen 127.0.0.1:5001"     REGMIRROR_CONFIG=my.toml make run     make test ARGS="-k range"
ARGS ?=
IMAGE ?= regmirror
DOCKER ?= docker

.DEFAULT_GOAL := help
.PHONY: help run test soak bench bench-quick check format lock image clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## install what is needed and serve on :5000; ARGS go to `regmirror serve`
	@scripts/serve $(ARGS)

test: ## checks and the whole test suite; ARGS go to pytest
	@scripts/test $(ARGS)

soak: ## the long tests, at most 20 minutes; ARGS go to pytest
	@scripts/soak $(ARGS)

bench: ## measure regmirror beside other servers, 20 minutes; ARGS go to the benchmarks
	@scripts/bench $(ARGS)

bench-quick: ## the same in 3 minutes, with less of everything
	@scripts/bench --quick $(ARGS)

check: ## lint, format, types
	@scripts/check

format: ## put the code into the one format and mend what the linter can
	@scripts/install --dev
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .

lock: ## pin the packages of development anew; ARGS="--upgrade" takes the newest
	@scripts/lock $(ARGS)

image: ## build the container image with $(DOCKER)
	$(DOCKER) build --tag $(IMAGE) .

clean: ## remove environments, caches and build output; stored content under data/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
