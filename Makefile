# What a developer types. Every target does its own set-up; only Python 3.10+ and make are needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Written when the environment is complete; older than what describes it, it is made anew.
STAMP := $(VENV)/.installed

# What every relay has to do alike; the rest of the scenarios runs on the one that the system has.
RELAYED := $(patsubst %,tests/scenarios/test_%.py,first_byte tcp_bytes tcp_endings tcp_stalled \
	tcp_dialing tcp_limits tcp_rate tcp_proxy_header tcp_modes udp_datagrams udp_flows udp_load \
	workers)

# Tests wait more than they compute: three at a time keep two cores busy, and more would keep each
# other from their deadlines. The slowest scenarios must not end up behind each other.
EACH_TEST := -n 3 --dist worksteal
# Some files make what all of their tests need, once.
WHOLE_FILES := -n 3 --dist loadfile

# By ARGS a part of the tests may have none to run, which pytest calls status 5.
NONE_IS_FINE := $(if $(ARGS),|| test $$? -eq 5)

# Of mixed load in `make soak`.
MINUTES ?= 10

.DEFAULT_GOAL := help
.PHONY: help install demo test test-scenarios test-parts test-portable soak interop lint types docs bench bench-growth bench-latency bench-master bench-memory bench-workers dist check-install clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

install: $(STAMP) ## create .venv with nodepass (editable) and every tool

demo: $(STAMP) ## a tunnel at work on this machine, until Ctrl-C
	$(BIN)/nodepass demo

test: test-scenarios test-parts test-portable ## the whole test suite; ARGS="-k name" for a part of it

test-scenarios: $(STAMP)
	$(BIN)/python -m pytest -p twisted $(EACH_TEST) tests/scenarios $(ARGS) $(NONE_IS_FINE)

test-parts: $(STAMP)
	$(BIN)/python -m pytest $(WHOLE_FILES) tests/unit tests/integration $(ARGS) $(NONE_IS_FINE)

test-portable: $(STAMP)
	NP_RELAY=portable $(BIN)/python -m pytest -p twisted $(EACH_TEST) $(RELAYED) $(ARGS) $(NONE_IS_FINE)

soak: $(STAMP) ## the long forms of tests: 20,000 sessions, floods of 10,000; mixed load, an hour by MINUTES=60
	NP_TEST_SESSIONS=20000 NP_TEST_RATE_SECONDS=10 $(BIN)/python -m pytest -p twisted \
	  tests/scenarios/test_tcp_churn.py tests/scenarios/test_tcp_rate.py $(ARGS)
	NP_TEST_FLOOD=10000 $(BIN)/python -m pytest -p twisted \
	  tests/scenarios/test_master_floods.py $(ARGS)
	NP_TEST_EXAMPLES=200 $(BIN)/python -m pytest tests/integration/test_master_openapi.py $(ARGS)
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

interop: $(STAMP) ## ours with the Go programs that NODEPASS_GO names, beside two of them; ARGS="-k tcp" for a part
	$(BIN)/python -m pytest -p twisted tests/interop $(ARGS)

lint: $(STAMP) ## style and common mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

docs: $(STAMP) ## the documentation, in build/html
	$(BIN)/sphinx-build -W --keep-going -q -b html doc build/html

bench: $(STAMP) ## beside other tunnels, in ten minutes; ARGS=--quick for a look in one
	$(BIN)/python -m benchmarks $(ARGS)

bench-growth: $(STAMP) ## the cost of a session and of a tunnel, as there are more of them
	$(BIN)/python -m benchmarks.growth $(ARGS)

bench-latency: $(STAMP) ## over a line of 100 ms that loses packets, beside a direct connection; for root
	$(BIN)/python -m benchmarks.latency $(ARGS)

bench-workers: $(STAMP) ## what more worker processes bring, here and on more cores
	$(BIN)/python -m benchmarks.workers $(ARGS)

bench-memory: $(STAMP) ## what both ends take at start, and a link and an idle session on top
	$(BIN)/python -m benchmarks.memory $(ARGS)

bench-master: $(STAMP) ## a master with 200 instances: start, latency and memory
	$(BIN)/python -m benchmarks.master $(ARGS)

dist: $(STAMP) ## sdist and wheel, in dist/
	rm -rf dist
	$(BIN)/python -m build

check-install: dist ## install wheel, sdist and checkout in turn, elsewhere, and try each
	PYTHON=$(PYTHON) scripts/check-install dist

clean: ## remove everything that the other targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .tox
	rm -f twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): setup.cfg setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "nodepass needs Python 3.10 or newer, and $(PYTHON) is not: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) can't make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "installing nodepass and its tools into $(VENV); this takes a minute or two ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev,docs]'
	@touch $@
