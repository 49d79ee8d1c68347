# Every target sets itself up; `make help` lists them.
PYTHON ?= python3
OUT ?= demo
BENCH ?= all
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test images check docs bench stubs clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(READY) ## make .venv with everything in it, at the versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## train, predict, explain and report: on a phantom, or on your own with COHORT=DIR LABELS=FILE; OUT=demo
	$(BIN)/python examples/demo.py --out '$(OUT)' $(if $(COHORT),--cohort '$(COHORT)') $(if $(LABELS),--labels '$(LABELS)')

test: $(READY) ## run all tests
	$(BIN)/python -m pytest

images: $(READY) ## build the container images whole, as root with buildah, and run the manifests' pods out of them
	LIMNER_IMAGES=whole $(BIN)/python -m pytest tests/deploy/test_images.py

check: $(READY) ## lint, format, types, whether the stubs are those of the protos, and the documentation's build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p limner -p limner_server
	$(BIN)/mypy examples benchmarks tools
	$(BIN)/python -m pytest --quiet tests/repository/test_stubs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs: $(READY) ## build the documentation into site/, the API reference with it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY) ## run every benchmark, or BENCH=NAME, and write the results into docs/performance.md
	$(BIN)/python -m benchmarks $(BENCH) --json --record
	$(BIN)/python -m benchmarks.report

stubs: $(READY) ## generate client_sdk/limner/v1 from protos/
	$(BIN)/python tools/stubs.py

clean: ## remove the demo, caches and builds; keep .venv and model_repository
	rm -rf demo build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
