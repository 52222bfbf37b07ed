# Everything a fresh clone needs: `make demo` and `make test` make the virtual environment first.

# Both start hundreds of processes. Where bytecode is not kept, each compiles again all that it imports.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEER := peers/hftbacktest

.PHONY: demo test proof bench-peers check lint types generate lock clean

demo: $(READY)
	@$(BIN)/l2 demo

# With COVERAGE=1 the same tests are measured: 90 % of what is not a compiled kernel, 87 % in each room.
test: $(READY)
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(if $(COVERAGE),--cov --cov-report=)
	@$(if $(COVERAGE),$(BIN)/python -m tests.coverage_by_room --least 90 --least-room 87)

# Every long proof, one after the other, in hours; results go to docs/ by hand, with seeds and date.
proof: $(READY) bench-peers
	$(BIN)/l2 synth --check --profile default --seeds 502,503
	$(BIN)/l2 synth --ic 48
	$(BIN)/l2 study --synthetic --days 20 --every 3000
	$(BIN)/python -m proving.soak --seconds 600 --rate 10000
	$(BIN)/python -m tests.market.corpus --seconds 600 --seed 1000
	nice $(BIN)/l2 torture --seeds 1-10000 --table
	$(BIN)/l2 torture --planted
	for area in market capture lake backtest execution synth sandbox; do $(BIN)/l2 bench $$area || exit 1; done

# The independent engine, in an environment of its own; then what is marked for it: the simulator
# must answer as it does, order for order.
bench-peers: $(READY) $(PEER)/.ready
	@$(BIN)/python -m pytest -m peers

check: lint types test

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)
	@$(BIN)/mypy

# uv installs in seconds what takes pip minutes; its own hash comes from the same lock file.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, and {sys.executable} is {v[0]}.{v[1]}; set PYTHON=python3.11")'
	@echo "installing into $(VENV) (some 220 packages, 1.3 GB)"
	@$(PYTHON) -m venv $(VENV)
	@awk '/^[a-z]/ {take = /^uv==/} take' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps --editable .
	@touch $@

$(PEER)/.ready: tests/peers/hftbacktest.lock $(READY)
	@echo "installing the peer into $(PEER) (some 45 packages, 1 GB)"
	@$(BIN)/python -m venv --without-pip $(PEER)
	@$(BIN)/uv pip sync --quiet --python $(PEER)/bin/python --require-hashes $<
	@touch $@

# After a change of a feature, a bar column, the horizons or a limit: SQL, contracts and their docs.
generate: $(READY)
	@$(BIN)/python -m market.features.rendering
	@$(BIN)/python -m assets.contracts
	@$(BIN)/python -m proving.synthetic.page
	@$(BIN)/python -m live.runbook
	@$(BIN)/python -m proving.rooms

# Renews the lock files: ours from pyproject.toml, the peer's from the one line that names it.
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-header --no-annotate --quiet
lock: $(READY)
	@$(BIN)/$(COMPILE) pyproject.toml --extra cluster --group dev --output-file requirements.lock
	@$(BIN)/$(COMPILE) tests/peers/hftbacktest.in --output-file tests/peers/hftbacktest.lock

clean:
	rm -rf $(VENV) $(PEER) .pytest_cache .mypy_cache .ruff_cache dbt_project/target
