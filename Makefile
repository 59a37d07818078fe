# Building, trying, testing and installing pglock. `make` lists what there is.

PREFIX  = /usr/local
DESTDIR =

CARGO  ?= cargo
TARGET  = $(or $(CARGO_TARGET_DIR),target)
BINARY  = $(TARGET)/release/pglock
DIST    = $(TARGET)/dist
SOURCES = Cargo.toml Cargo.lock $(shell find src completions -type f)

BIN  = $(DESTDIR)$(PREFIX)/bin
MAN  = $(DESTDIR)$(PREFIX)/share/man/man1
BASH = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSH  = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
FISH = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d

.PHONY: help build demo test test-matrix test-crowd torture check audit completions dist deb test-packages install uninstall clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: $(BINARY) ## build the release binary

# A file and not a phony target, so that `sudo make install` after `make build` needs no cargo.
$(BINARY): $(SOURCES)
	$(CARGO) build --release --locked
	@touch $@

demo: $(BINARY) ## watch pglock at work on a throwaway PostgreSQL
	@scripts/setup demo
	@scripts/demo $(BINARY)

test: ## install what the tests need, then check and test everything
	@scripts/setup test
	@$(MAKE) --no-print-directory check
	$(CARGO) test --locked

test-matrix: ## run the tests on PostgreSQL 10 to 18 (Linux on x86-64, npm)
	@scripts/setup test
	@scripts/test-matrix

test-crowd: ## put 2000 waiters behind a pooler, and print what was measured
	@scripts/setup test
	PGLOCK_TEST_WAITERS=2000 $(CARGO) test --release --locked --test it a_crowd_behind -- --nocapture

# A plan of its own: make torture SEED=7 SECONDS=3600 FAULTS=Cut,Crash WORKERS=4 SEEDS=3 SHRINK=1 REPORT=file
PLAN = $(foreach word,SEED SECONDS FAULTS WORKERS NEMESES,$(if $($(word)),$(word)=$($(word))))
SEED    = 1
SECONDS = 180

torture: ## many pglocks under every fault, checked (SEED, SECONDS, see tests/torture)
	@scripts/setup test
	$(CARGO) build --release --locked --example torture-job
	PGLOCK_TORTURE='$(strip $(PLAN))' $(if $(SEEDS),PGLOCK_TORTURE_SEEDS=$(SEEDS)) $(if $(SHRINK),PGLOCK_TORTURE_SHRINK=1) \
		$(if $(REPORT),PGLOCK_TORTURE_REPORT='$(abspath $(REPORT))') \
		$(CARGO) test --release --locked --test torture -- --nocapture

check: ## formatting, lints and documentation
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' $(CARGO) doc --no-deps --document-private-items --locked
	shellcheck $$(grep -rlE '^#!.*sh$$' scripts examples .ci/run tests/torture/liar)
	mandoc -T lint -W error completions/pglock.1

audit: ## check the crates for known faults (cargo-deny, and its database by network)
	$(CARGO) deny --locked check

completions: ## regenerate the completions and the manual page
	PGLOCK_REGENERATE=1 $(CARGO) test --locked --bin pglock is_up_to_date

dist: ## make a tarball with a static binary, in target/dist
	@scripts/dist

deb: $(BINARY) ## make a Debian package, in target/dist (cargo-deb)
	@mkdir -p $(DIST)
	scripts/third-party >$(TARGET)/release/THIRD-PARTY
	$(CARGO) deb --no-build --locked --output $(DIST)/

test-packages: dist deb ## try the packages in a fresh root (as root; debootstrap)
	scripts/test-packages $(DIST)/pglock_*.deb $(DIST)/pglock/pglock

install: $(BINARY) ## install under PREFIX (/usr/local), DESTDIR in front
	install -d $(BIN) $(MAN) $(BASH) $(ZSH) $(FISH)
	install -m 755 $(BINARY) $(BIN)/pglock
	install -m 644 completions/pglock.1 $(MAN)/pglock.1
	install -m 644 completions/pglock.bash $(BASH)/pglock
	install -m 644 completions/_pglock $(ZSH)/_pglock
	install -m 644 completions/pglock.fish $(FISH)/pglock.fish

uninstall: ## remove what install put there
	rm -f $(BIN)/pglock $(MAN)/pglock.1 $(BASH)/pglock $(ZSH)/_pglock $(FISH)/pglock.fish

clean: ## remove what building left
	$(CARGO) clean
