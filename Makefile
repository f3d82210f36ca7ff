# Two commands are all that is needed from a fresh clone: `make demo` and `make test`.
# Both do their own set-up (tools/prepare); nothing but system packages leaves this directory.

PYTHON = .venv/bin/python
# An ordinary user gets a user namespace where the system allows that, and a clear line where not.
WORLD = $(PYTHON) -m ubond.lab world --

.PHONY: help demo test kills guest guest-core guest-short containers containers-short fuzz sanitize bench build lint clean

help:
	@echo "make demo    watch a bond lose its active link and nothing else (under a minute)"
	@echo "make test    the whole test suite"
	@echo "make kills   killed at every call that changes something, mended in each of three ways, and with a keeper (long)"
	@echo "make guest   virtual machines: real NIC drivers, and the kernel's bond beside ours (5 minutes)"
	@echo "make conformance  random lives of a bond, the kernel's and ours side by side: SCENARIOS=200 SEED=1 (a quarter of an hour)"
	@echo "make guest-core   the core's tests on emulated NICs (NIC=virtio or e1000; TESTS: files; hours)"
	@echo "make guest-short  a bond and pulled cables on both kinds of NICs (minutes)"
	@echo "make containers  the core's tests in podman containers with two capabilities (TESTS: files; a quarter of an hour)"
	@echo "make containers-short  what is particular to such containers (a minute)"
	@echo "make fuzz    search for inputs that break a parser, TIME=60 seconds for each"
	@echo "make sanitize  the frame path's tests with AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make soak    hours of traffic and trouble, books balanced: TIME=seconds (600) SEED=number"
	@echo "make churn   a slave added and removed under load: TIME=seconds (600) RATE=changes a second (50)"
	@echo "make bench   the headline measurements, as JSON lines (about 20 minutes); WITHOUT=NAME,... contenders left out"
	@echo "make bench-full  all of them (about an hour); both write a report with plots: bench/out/report/report.md"
	@echo "make performance  docs/performance.md from the last run, or RESULTS=file"
	@echo "make build   the virtual environment and the extension"
	@echo "make modes   modes changed 1,000 times under TCP and UDP load (a few minutes)"
	@echo "make docs    write what is generated: docs/options.md and the manual's section on options"
	@echo "make lint    ruff and mypy alone"
	@echo "make clean   remove what was built"

demo:
	@tools/prepare demo
	@$(PYTHON) -m ubond.demo

test:
	@tools/prepare test
	@$(WORLD) $(PYTHON) -m pytest -m "not guest and not container" $(TESTS)

kills:
	@tools/prepare test
	@UBOND_KILL_WAYS=all $(WORLD) $(PYTHON) -m pytest tests/netns/test_live_kills.py tests/netns/test_live_keeper.py \
		-k "killed_at or died_at"

guest:
	@tools/prepare guest
	@$(PYTHON) -m pytest -m guest tests/guest

.PHONY: conformance
conformance: SCENARIOS = 200
conformance: SEED = 1
conformance:
	@tools/prepare guest
	@$(PYTHON) -m tests.conformance.run --scenarios $(SCENARIOS) --seed $(SEED) $(if $(REPLAY),--replay $(REPLAY))

NIC = virtio
guest-core:
	@tools/prepare guest
	@$(PYTHON) tests/guest/core.py $(NIC) $(TESTS)

guest-short:
	@tools/prepare guest
	@$(PYTHON) tests/guest/core.py virtio,e1000 -m short tests/netns/test_live_active_backup.py

containers-short:
	@tools/prepare containers
	@$(PYTHON) -m pytest -m container tests/containers

containers: containers-short
	@$(PYTHON) -m pytest --world=container $(or $(TESTS),$(wildcard tests/netns/test_live_*.py))

fuzz: TIME = 60
fuzz:
	@tools/prepare fuzz
	@$(PYTHON) -m tests.fuzz.run --time $(TIME) $(TARGETS)

sanitize:
	@tools/prepare test
	@$(WORLD) tools/sanitize $(TESTS)

.PHONY: soak churn
soak churn: TIME = 600
soak:
	@tools/prepare test
	@$(WORLD) $(PYTHON) tests/soak/soak.py --time $(TIME) $(if $(SEED),--seed $(SEED))

churn:
	@tools/prepare test
	@$(WORLD) $(PYTHON) tests/soak/churn.py --time $(TIME) $(if $(RATE),--rate $(RATE))

.PHONY: bench-full
bench-full: FULL = --full
bench bench-full:
	@tools/prepare bench
	@$(WORLD) $(PYTHON) bench/all.py $(FULL) $(if $(WITHOUT),--without $(WITHOUT)); missed=$$?; \
		$(PYTHON) bench/report.py bench/out/results.jsonl --into bench/out/report && exit $$missed

# docs/performance.md from the last run, or from RESULTS.
.PHONY: performance
performance:
	@tools/prepare bench
	@$(PYTHON) bench/report.py $(RESULTS)

build:
	@tools/prepare demo

lint:
	@tools/prepare test
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

.PHONY: docs modes

# Pages that are made of the option table.
docs:
	@tools/prepare demo
	@$(PYTHON) -m ubond.cli_options

# The mode or the active slave of a running bond changed 1,000 times under load.
modes:
	@tools/prepare test
	@UBOND_CHANGES=$(or $(CHANGES),1000) $(WORLD) $(PYTHON) -m pytest -k under_load tests/netns/test_live_modes.py

clean:
	rm -rf .venv build bench/bin bench/out ubond/_fastpath.c ubond/_fastpath.html ubond/*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis ubond.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
