PYTHON := .venv/bin/python

.PHONY: help setup build demo test lint bench profile clean

help:            ## show this
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup:           ## install what is missing: Debian packages, .venv, the extension
	@deploy/setup.sh

build: setup     ## build the extension

demo: setup      ## show a download over two uplinks, and the cut of one, in about a minute
	@$(PYTHON) -m tests.lab.demo

lint: setup      ## formatting, style, types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

test: lint       ## all that this machine can run; says what it skipped
	$(PYTHON) -m pytest

bench:           ## the figures of docs/performance.md, beside other relays (BENCH="--quick NAME...")
	@deploy/setup.sh --bench
	$(PYTHON) -m tests.bench $(BENCH)

BOX := proxy
LOAD := download
profile:         ## a flame graph of BOX=gateway under LOAD=upload (all: -m tests.bench.profile -h)
	@deploy/setup.sh --bench
	$(PYTHON) -m tests.bench.profile --box $(BOX) --load $(LOAD)

clean:           ## remove what was built
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis proxy/_seg.c proxy/*.so
