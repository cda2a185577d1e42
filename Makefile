# Everything there is to do with this repository. `make demo` and `make test` need Rust, a C compiler, git and make.

CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto

.PHONY: demo test check bench fmt lint-proto deny

# The whole story on SQLite in a temporary folder, told to a person.
demo:
	$(CARGO) build --locked --bin p8broker --example independent
	bash deploy/examples/demo.sh "$$($(CARGO) metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/debug"

# Every test. What one needs, it finds or starts itself: PostgreSQL on a free port, in a folder of its own.
test:
	$(CARGO) test --locked --no-run
	bash tests/postgres.sh with $(CARGO) test --locked

# Format, lints, documentation, layers. `lint-proto` and `deny` need tools of their own and are not part of it.
check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --quiet
	$(CARGO) test --locked --quiet --test layering

# Measures; prints ratios and medians. Never part of a test.
bench:
	$(CARGO) bench --locked --bench issue
	$(CARGO) bench --locked --bench startup

fmt:
	$(CARGO) fmt

# buf's standard lint over proto/; npx fetches buf.
lint-proto:
	npx --yes @bufbuild/buf lint

# Bans, licences and sources of all dependencies; needs `cargo install cargo-deny`.
deny:
	$(CARGO) deny check bans licenses sources
