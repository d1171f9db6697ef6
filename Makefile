PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
INSTALLED := $(VENV)/.installed
TSC := $(VENV)/node_modules/typescript/bin/tsc

MINUTES ?= 10
SEED ?= 1
BROKER ?= redis
STORED ?= 1000000
ONLY ?=
REQUIRED ?=
EVERY ?= 4

.PHONY: run test packages proofs test-containers attacks crash-points error-matrix faults bench dearest docs check lock

run: $(RUNS)
	@exec $(BIN)/eventstream up

test: $(INSTALLED) packages
	$(BIN)/pytest -n 6 --dist loadfile --no-loadscope-reorder

# The tests that take longest: kills, partitions, many workers, every order of events.
proofs: $(INSTALLED) packages
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m proof

packages:
	@command -v curl >/dev/null || { apt-get update -qq && apt-get install -qq -y curl; } || \
		echo "curl can't be installed here: the tests of the docs' curl commands are skipped"
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

# Starts and kills the services of the compose files in a Docker from Debian's packages, and compares
# the counts: as root. If this machine can't run it, it is skipped, or with REQUIRED=1 it fails.
test-containers: $(INSTALLED)
	@{ command -v mmdebstrap && command -v slirp4netns; } >/dev/null || { apt-get update -qq && apt-get install -qq -y \
		--no-install-recommends mmdebstrap slirp4netns ca-certificates debian-archive-keyring; } || \
		echo "mmdebstrap and slirp4netns can't be installed here"
	@$(BIN)/python -m tests.containers.harness $(if $(REQUIRED),--required)

# Attacks a whole collector while honest clients use it. One attack: make attacks ONLY=silent_connections
attacks: $(INSTALLED)
	$(BIN)/python -m tests.attacks.harness --seed $(SEED) $(addprefix --only ,$(ONLY))

# Ends a process at each call that it makes to Redis, MongoDB, RabbitMQ and Kafka, and compares the
# counts. One step: make crash-points ONLY="--with redis --only post". To see that it notices an event
# that counts twice: make crash-points ONLY=--without-ledger
crash-points: $(INSTALLED) packages
	$(if $(ONLY),$(BIN)/python -m tests.crash_points.harness $(ONLY))
	$(if $(ONLY),,$(BIN)/python -m tests.crash_points.harness --with redis)
	$(if $(ONLY),,$(BIN)/python -m tests.crash_points.harness --with rabbitmq)
	$(if $(ONLY),,$(BIN)/python -m tests.crash_points.harness --with kafka)
	$(if $(ONLY),,$(BIN)/python -m tests.crash_points.orders --every $(EVERY))

# Makes the database answer the commands of each step with one in three errors, and compares the counts.
# All errors take an hour: make error-matrix EVERY=1. One step: make error-matrix ONLY="--only fold"
error-matrix: EVERY = 3
error-matrix: $(INSTALLED)
	$(BIN)/python -m tests.errors.matrix --every $(EVERY) $(ONLY)

# The long version of tests/faults: kills parts of a whole collector under load, and compares counts.
# With settings: make faults SET="ARCHIVE=1 CLICK_SCOPE=user"
faults: $(INSTALLED)
	$(BIN)/python -m tests.faults.harness --minutes $(MINUTES) --seed $(SEED) --broker $(BROKER) \
		$(foreach setting,$(SET),--set $(setting))

# Measures against two baselines, into bench/results.json. Shorter: make bench STORED=20000 ONLY=counted
bench: $(INSTALLED)
	@command -v wrk >/dev/null || { apt-get update -qq && apt-get install -qq -y wrk; }
	@$(BIN)/python -m bench.run --stored $(STORED) $(addprefix --only ,$(ONLY))

# What the most expensive requests cost to read, in CPU time and memory. Some: make dearest INPUTS=host
dearest: $(INSTALLED)
	@$(BIN)/python -m bench.dearest --only '$(INPUTS)'

# The docs as a site, in build/docs.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs build/docs

check: $(INSTALLED) $(TSC)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@! test -x $(TSC) || $(BIN)/node $(TSC) --project app/web/jsconfig.json

# Node trusts only authorities that it knows itself, so it is shown those of the machine.
$(TSC): $(INSTALLED)
	@NODE_EXTRA_CA_CERTS=$(wildcard /etc/ssl/certs/ca-certificates.crt) $(BIN)/npm install --silent \
		--no-save --no-audit --no-fund --prefix $(VENV) typescript@5.9.3 && touch $@ || \
		echo "typescript can't be installed here: the types of the pages' scripts are not checked"

# Debian and Ubuntu keep the part of Python that makes virtual environments in a package of its own.
# The dependencies are installed first, with hashes. pip can't check the hash of a folder such as this.
define make_venv
	$(PYTHON) -m venv $(VENV) || { \
		echo "python3-venv is missing, installing it"; \
		apt-get update -qq && apt-get install -qq -y python3-venv && $(PYTHON) -m venv $(VENV); }
endef
PIP_INSTALL := $(BIN)/pip install --disable-pip-version-check

# What running needs: a third of what the tests need.
$(RUNS): requirements/run.lock setup.cfg setup.py
	@echo "Installing what eventstream needs to run into $(VENV); the first time it takes a minute."
	@$(make_venv)
	@$(PIP_INSTALL) --require-hashes --requirement requirements/run.lock
	@$(PIP_INSTALL) --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(INSTALLED): requirements/dev.lock setup.cfg setup.py
	$(make_venv)
	$(PIP_INSTALL) --quiet --require-hashes --requirement requirements/dev.lock
	$(PIP_INSTALL) --quiet --no-deps --no-build-isolation --editable .
	@touch $@ $(RUNS)

# Locks for all supported Pythons, with the same versions: for the image, for `make run`, and for the
# rest. pip takes the lines that apply to its own Python.
LOCK := uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --generate-hashes
SAME := --upgrade --constraint requirements/dev.lock --extra build
lock: $(INSTALLED)
	$(BIN)/pip install --quiet uv
	$(BIN)/$(LOCK) --upgrade --all-extras setup.cfg --output-file requirements/dev.lock
	$(BIN)/$(LOCK) $(SAME) --extra kafka setup.cfg --output-file requirements/image.lock
	$(BIN)/$(LOCK) $(SAME) --extra embedded setup.cfg --output-file requirements/run.lock
