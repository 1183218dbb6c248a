# Everything runs in .venv, made on first use from requirements.lock.

SUPPORTED = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(p) -c '$(SUPPORTED)' 2>/dev/null && echo $(p))))
BIN := .venv/bin
READY := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
PEERS_BIN := .venv-peers/bin
PEERS_READY := .venv-peers/.installed
PEERS_PIP := $(PEERS_BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-quick test-integration faults lint bench bench-peers bank bank-tuning bank-test bank-small lock clean

demo: $(READY)
	@$(BIN)/promotion-gate demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not integration"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m integration

test-quick: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not integration"

test-integration: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m integration

# Every kill point and every fault of promotion and rollback against real servers: a quarter of an hour.
# FAULTS holds further options, "--help" among them.
faults: $(READY)
	$(BIN)/python tests/faults/campaign.py $(FAULTS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python tests/bench/bench.py
	$(BIN)/python tests/bench/rollback.py
	$(BIN)/python tests/bench/scaling.py
	$(BIN)/python tests/bench/scan.py
	$(BIN)/python tests/bench/hashing.py
	$(BIN)/python tests/bench/near.py
	$(BIN)/python tests/bench/monitor.py

# Published detectors on the models of "make bank-test"; PEERS holds further options, "--help" among them.
bench-peers: $(PEERS_READY)
	@$(PEERS_BIN)/python tests/bench/peers.py --bank bank/test --readme README.md $(PEERS)

# The models that the table of accuracies is counted on: hours, and each goes on where it was interrupted.
bank: bank-tuning bank-test
	$(BIN)/python -m promotion_gate.drill.bank table --test bank/test --tuning bank/tuning --readme README.md

bank-tuning bank-test bank-small: bank-%: $(READY)
	$(BIN)/python -m promotion_gate.drill.bank run $* --out bank/$*

# Pins what .venv holds now: change pyproject.toml, "pip install -U" there what should move, then run this.
lock:
	@{ printf '%s\n' \
	  '# Every package of .venv, the tools for tests, lint and the build included; "make lock" writes this file' \
	  '# from what is installed. torch carries no build suffix, so that the CPU and the CUDA build both fit.'; \
	  $(PIP) freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+cpu$$//' | LC_ALL=C sort -f; \
	} > requirements.lock.new && mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv .venv-peers build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Installing into .venv, once; torch alone is several hundred megabytes."
	@$(PYTHON) -m venv .venv
	@$(PIP) install --quiet --requirement requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# An environment of its own, since "make lock" pins everything that is in .venv.
$(PEERS_READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Installing the peers into .venv-peers, once."
	@$(PYTHON) -m venv .venv-peers
	@$(PEERS_PIP) install --quiet --requirement requirements.lock
	@$(PEERS_PIP) install --quiet --constraint requirements.lock --no-build-isolation --editable ".[peers]"
	@touch $@
