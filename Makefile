# Builds, demonstrates, tests and installs pglock. `make` lists the targets.

PREFIX  = /usr/local
DESTDIR =

CARGO  ?= cargo
TARGET  = $(or $(CARGO_TARGET_DIR),target)
BINARY  = $(TARGET)/release/pglock
DIST    = $(TARGET)/dist
SOURCES = Cargo.toml Cargo.lock build.rs $(shell find src completions -type f)

BIN  = $(DESTDIR)$(PREFIX)/bin
MAN  = $(DESTDIR)$(PREFIX)/share/man/man1
BASH = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSH  = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
FISH = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d

.PHONY: help build demo deps test test-matrix test-crowd test-failover model torture torture-report soak fuzz fuzz-parsers bench bench-growth bench-aging bench-check check check-targets audit completions dist deb test-packages install uninstall clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: $(BINARY) ## build the release binary

# A file rather than a phony target, so that `sudo make install` after `make build` does not need cargo.
$(BINARY): $(SOURCES)
	$(CARGO) build --release --locked
	@touch $@

demo: $(BINARY) ## demonstrate pglock on a throwaway PostgreSQL server
	@scripts/setup demo
	@scripts/demo $(BINARY)

deps: ## install what the tests need (Debian packages, and some from PyPI in target/)
	@scripts/setup test

# The tests mostly wait, so more of them than there are processors run at a time.
test: ## install what the tests need (not with NO_INSTALL=1), then check and test everything
	@scripts/setup test
	@$(MAKE) --no-print-directory check
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-6} $(CARGO) test --locked

test-matrix: ## run the tests on PostgreSQL 10 to 18 (Linux on x86-64, npm)
	@scripts/setup test
	@scripts/test-matrix

test-crowd: ## put 2000 waiters behind a pooler, and print the measurements
	@scripts/setup test
	PGLOCK_TEST_WAITERS=2000 $(CARGO) test --release --locked --test it a_crowd_behind -- --nocapture

test-failover: ## fail over a Patroni cluster under pglocks (RUNS; installs Patroni and etcd)
	@scripts/setup failover
	$(if $(RUNS),PGLOCK_FAILOVER_RUNS=$(RUNS)) $(CARGO) test --locked --test failover -- --nocapture --test-threads=1

# More pglocks, more faults, longer intervals: make model MODEL='3,2,1,1 2,3,1,1' (pglocks,faults,heartbeat,grace in seconds)
MODEL = 2,3,1,1 3,2,1,1

model: ## explore the model of a run exhaustively (MODEL, see src/run/state/model)
	CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 PGLOCK_MODEL='$(MODEL)' \
		$(CARGO) test --release --locked --target-dir $(TARGET)/model --bin pglock model:: -- --nocapture --test-threads=1

fuzz: ## fuzz for a few minutes (PROPTEST_CASES, PGLOCK_FUZZ_COUNT, PGLOCK_FUZZ_SEED)
	@scripts/setup test
	PROPTEST_CASES=$${PROPTEST_CASES:-20000} $(CARGO) test --release --locked --bin pglock
	PGLOCK_FUZZ_COUNT=$${PGLOCK_FUZZ_COUNT:-5000} PGLOCK_FUZZ_SEED=$${PGLOCK_FUZZ_SEED:-$$(date +%s)} \
		$(CARGO) test --release --locked --test it -- --nocapture hostile_server words::

COUNT = 100000000

fuzz-parsers: ## fuzz the parsers with libFuzzer (COUNT inputs in total, TARGETS; needs a C++ compiler)
	TARGETS='$(TARGETS)' scripts/fuzz-parsers $(COUNT)

# The benchmarks measure the binary that is released; see scripts/dist.
BENCH = $(CARGO) build --release --locked --example naive --example floor-tls && \
	PGLOCK_BENCH=$(abspath $(DIST))/pglock/pglock $(CARGO) bench --locked --bench bench --

bench: ## compare the cost with a minimal client (takes minutes; results in benches/)
	@scripts/setup test
	@scripts/dist
	$(BENCH)

bench-growth: ## measure how the cost grows with the number of holders and waiters
	@scripts/setup test
	@scripts/dist
	$(BENCH) growth

bench-aging: ## measure what waiting behind a pooler costs by how long it has lasted (half an hour)
	@scripts/setup test
	@scripts/dist
	$(BENCH) aging

bench-check: ## measure, and fail if a ratio exceeds its bound
	@scripts/setup test
	@scripts/dist
	$(BENCH) check

# To run a plan of your own: make torture SEED=7 SECONDS=3600 FAULTS=Cut,Crash CALM=4 WORKERS=4 PATIENT=2 CONTESTED=1 SEEDS=3
# SHRINK=1 REPORT=file
PLAN = $(foreach word,SEED SECONDS FAULTS CALM CONTESTED WORKERS PATIENT NEMESES,$(if $($(word)),$(word)=$($(word))))
SEED    = 1
SECONDS = 180
RUNS_OF_TORTURE = tests/torture/runs.txt
COMMIT = $(shell git describe --always --tags)$(shell git diff --quiet HEAD -- . ':!$(RUNS_OF_TORTURE)' || echo +changes)

torture: ## run many pglocks under injected faults and check them (SEED, SECONDS, see tests/torture)
	@scripts/setup test
	$(CARGO) build --release --locked --example torture-job
	PGLOCK_TORTURE='$(strip $(PLAN))' $(if $(SEEDS),PGLOCK_TORTURE_SEEDS=$(SEEDS)) $(if $(SHRINK),PGLOCK_TORTURE_SHRINK=1) \
		$(if $(REPORT),PGLOCK_TORTURE_REPORT='$(abspath $(REPORT))' PGLOCK_TORTURE_COMMIT='$(COMMIT)') \
		$(CARGO) test --release --locked --test torture -- --nocapture

torture-report: ## add up the runs of the torture test that were appended to tests/torture/runs.txt (REPORT)
	@awk -f tests/torture/totals.awk $(or $(REPORT),$(RUNS_OF_TORTURE))

# To try it: make soak MINUTES=3 CYCLE=45 HOLDERS=20 WAITERS=40
SOAK = $(foreach word,MINUTES CYCLE HOLDERS WAITERS,$(if $($(word)),$(word)=$($(word))))

soak: ## see whether memory or anything grows over restarts of the server (MINUTES, CYCLE, HOLDERS)
	@scripts/setup test
	PGLOCK_SOAK='$(strip $(SOAK))' $(CARGO) test --release --locked --test soak -- --nocapture

check: ## check formatting, lints and documentation
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- --deny warnings
	$(CARGO) clippy --test failover --test soak --locked -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' $(CARGO) doc --no-deps --document-private-items --locked
	shellcheck $$(grep -rlE '^#!.*sh$$' scripts examples .ci/run tests/torture/liar)
	mandoc -T lint -W error completions/*.1

# What cannot be installed is reported as skipped.
check-targets: ## check pglock for macOS and FreeBSD, test it for aarch64 and static musl
	-@scripts/setup targets
	@scripts/check-targets

audit: ## check the crates for known vulnerabilities (cargo-deny, needs the network)
	$(CARGO) deny --locked check

completions: ## regenerate the completions and the manual
	PGLOCK_REGENERATE=1 $(CARGO) test --locked --bin pglock is_up_to_date

dist: ## build a tarball with a static binary, in target/dist
	@scripts/dist

deb: $(BINARY) ## build a Debian package, in target/dist (cargo-deb)
	@mkdir -p $(DIST)
	scripts/third-party >$(TARGET)/release/THIRD-PARTY
	$(CARGO) deb --no-build --locked --output $(DIST)/

test-packages: dist deb ## test the packages in a fresh root (as root; debootstrap)
	scripts/test-packages $(DIST)/pglock_*.deb $(DIST)/pglock/pglock

install: $(BINARY) ## install under PREFIX (/usr/local), staged in DESTDIR
	install -d $(BIN) $(MAN) $(BASH) $(ZSH) $(FISH)
	install -m 755 $(BINARY) $(BIN)/pglock
	install -m 644 completions/*.1 $(MAN)
	install -m 644 completions/pglock.bash $(BASH)/pglock
	install -m 644 completions/_pglock $(ZSH)/_pglock
	install -m 644 completions/pglock.fish $(FISH)/pglock.fish

uninstall: ## remove the installed files
	rm -f $(BIN)/pglock $(patsubst completions/%,$(MAN)/%,$(wildcard completions/*.1)) \
		$(BASH)/pglock $(ZSH)/_pglock $(FISH)/pglock.fish

clean: ## remove the build directory
	$(CARGO) clean
