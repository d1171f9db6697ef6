PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

MINUTES ?= 10
SEED ?= 1
BROKER ?= redis
STORED ?= 1000000
ONLY ?=

.PHONY: run test packages proofs attacks faults bench dearest model check lock

run: $(INSTALLED)
	@exec $(BIN)/eventstream up

test: $(INSTALLED) packages
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

# The tests that take longest: kills, partitions, many workers, every order of events.
proofs: $(INSTALLED) packages
	$(BIN)/pytest -n 4 --dist load -m proof

packages:
	@command -v curl >/dev/null || { apt-get update -qq && apt-get install -qq -y curl; } || \
		echo "curl can't be installed here: the tests of the README's curl commands are skipped"
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends \
		chromium fonts-dejavu-core; } || \
		echo "chromium can't be installed here: the tests of the dashboard in a browser are skipped"
	@# Only its program: the service that comes with it is not ours to run.
	@test -x /usr/lib/rabbitmq/bin/rabbitmq-server || { apt-get update -qq && \
		RUNLEVEL=1 apt-get install -qq -y --no-install-recommends rabbitmq-server && \
		{ ! test -d /run/systemd/system || systemctl disable --quiet --now rabbitmq-server; }; } || \
		echo "rabbitmq-server can't be installed here: the tests with RabbitMQ as broker are skipped"
	@command -v ip >/dev/null || { apt-get update -qq && apt-get install -qq -y iproute2; } || \
		echo "iproute2 can't be installed here: the tests of hosts that lose each other are skipped"

# Attacks a whole collector beside honest clients. One alone: make attacks ONLY=silent_connections
attacks: $(INSTALLED)
	$(BIN)/python -m tests.attacks.harness --seed $(SEED) $(addprefix --only ,$(ONLY))

# The long version of tests/faults: kills parts of a whole collector under load, and compares.
# With settings: make faults SET="ARCHIVE=1 CLICK_SCOPE=user"
faults: $(INSTALLED)
	$(BIN)/python -m tests.faults.harness --minutes $(MINUTES) --seed $(SEED) --broker $(BROKER) \
		$(foreach setting,$(SET),--set $(setting))

# Measures beside two baselines, into bench/results.json. Shorter: make bench STORED=20000 ONLY=counted
bench: $(INSTALLED)
	@command -v wrk >/dev/null || { apt-get update -qq && apt-get install -qq -y wrk; }
	@$(BIN)/python -m bench.run --stored $(STORED) $(addprefix --only ,$(ONLY))

# What the dearest requests cost to read, in processor time and memory. Some: make dearest INPUTS=host
dearest: $(INSTALLED)
	@$(BIN)/python -m bench.dearest --only '$(INPUTS)'

# Predicts what a load comes to here, from costs that it measures the first time. Options: make model
# MODEL='--web 4 --workers 2 --rate 5000 --outage 5' ; MODEL=--compare tries two loads beside it.
model: $(INSTALLED)
	@$(BIN)/python -m bench.model $(MODEL)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Debian and Ubuntu keep the part of Python that makes virtual environments in a package of its own.
# The dependencies come first and with hashes, which pip can't check of a folder such as this one.
$(INSTALLED): requirements-dev.lock setup.cfg setup.py
	$(PYTHON) -m venv $(VENV) || { \
		echo "python3-venv is missing, installing it"; \
		apt-get update -qq && apt-get install -qq -y python3-venv && $(PYTHON) -m venv $(VENV); }
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Two locks for all supported Pythons, with the same versions: requirements-dev.lock for a checkout,
# requirements.lock for the image. pip takes the lines that apply to its own Python.
LOCK := uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --generate-hashes
lock: $(INSTALLED)
	$(BIN)/pip install --quiet uv
	$(BIN)/$(LOCK) --upgrade --all-extras setup.cfg --output-file requirements-dev.lock
	$(BIN)/$(LOCK) --upgrade --extra build --extra kafka --constraint requirements-dev.lock setup.cfg \
		--output-file requirements.lock
