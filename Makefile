# Every target runs one of the scripts; CONTRIBUTING.md describes them.
#   make run ARGS="--listen 127.0.0.1:5001"     REGMIRROR_CONFIG=my.toml make run     make test ARGS="-k range"
ARGS ?=
IMAGE ?= regmirror
DOCKER ?= docker
# Labels of the image; only the target `image` evaluates them.
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' regmirror/__init__.py)
REVISION = $(shell git rev-parse HEAD 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help run test soak bench bench-quick check format lock image clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## install regmirror into .venv and serve on :5000; ARGS go to `regmirror serve`
	@scripts/serve $(ARGS)

test: ## run the checks and the whole test suite; ARGS go to pytest
	@scripts/test $(ARGS)

soak: ## run the long tests, at most 20 minutes; ARGS go to pytest
	@scripts/soak $(ARGS)

bench: ## compare regmirror with other servers, 20 minutes; ARGS go to the benchmarks
	@scripts/bench $(ARGS)

bench-quick: ## run short benchmarks, 3 minutes; ARGS go to the benchmarks
	@scripts/bench --quick $(ARGS)

check: ## check style, format and types
	@scripts/check

format: ## format the code and apply the fixes of the linter
	@scripts/install --dev
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .

lock: ## update requirements/dev.lock; ARGS="--upgrade" selects the newest versions
	@scripts/lock $(ARGS)

image: ## build the container image with $(DOCKER)
	$(DOCKER) build --tag $(IMAGE) --build-arg VERSION="$(VERSION)" --build-arg REVISION="$(REVISION)" .

clean: ## remove environments, caches and build output; keep stored content under data/
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
