# Everything there is to do with this repository. `make demo` and `make test` need Rust, a C compiler, git and make.

CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto

.PHONY: demo test promtest clients-test helm-test helm-test-full helm-sync deploy-test dashboards-test dashboards-picture dashboards docs check sim race differential chaos bench freeze fmt lint-proto deny

# The whole story on SQLite in a temporary folder, told to a person.
demo:
	$(CARGO) build --locked --bin p8broker --example independent
	bash deploy/examples/demo.sh "$$($(CARGO) metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/debug"

# Every test. What one needs, it finds or starts itself: PostgreSQL on a free port, in a folder of its own.
test:
	$(CARGO) test --locked --no-run
	bash tests/postgres.sh with $(CARGO) test --locked
	$(MAKE) promtest clients-test helm-test deploy-test dashboards-test

# Alerts and recording rules, by Prometheus' own promtool: each alert fires, and does not fire.
promtest:
	bash tests/prometheus.sh rules

# The clients in Go, Python and TypeScript against real brokers. What they need is fetched once, into target/tools.
clients-test:
	bash tests/clients.sh test

# The Helm chart with the real Helm: lint, golden files, Kubernetes' schemas, pods, configuration, refused values, upgrades.
helm-test:
	bash tests/helm.sh test

# The same with Helm 3 and Helm 4; then both on real kube-apiservers with etcd, built from source the first time (some minutes).
helm-test-full:
	bash tests/helm.sh full

# Copies rules and dashboards into the chart, and writes its README.
helm-sync:
	bash tests/helm.sh sync

# The image's contents list, the systemd unit, the compose file.
deploy-test:
	bash tests/deploy.sh test

# Every query of every dashboard against a real Prometheus that scrapes real brokers under load.
dashboards-test:
	bash tests/dashboards.sh test

# Writes the pages that are made from the code: metrics, schema, references.
docs:
	UPDATE_DOCS=1 $(CARGO) test --locked --lib the_page_is_of

# Records a quarter of an hour of two replicas, and draws the dashboards: docs/images/overview.png, the others in target/dashboards.
dashboards-picture:
	bash tests/dashboards.sh picture

# Writes the dashboards from deploy/grafana/source.
dashboards:
	python3 deploy/grafana/generate.py

# Format, lints, documentation, layers. `lint-proto` and `deny` need tools of their own and are not part of it.
check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --quiet
	$(CARGO) test --locked --quiet --test layering

# The long forms of three tests; `sim` and `chaos` print `operations N revokes M violations 0 seed S` as their last line.
# Random operations and faults on three replicas, against a model: SIM_OPS, SIM_SEED.
sim:
	rm -f target/sim-report.txt
	SIM_OPS=$${SIM_OPS:-100000} SIM_REPORT="$(CURDIR)/target/sim-report.txt" bash tests/postgres.sh with \
		$(CARGO) test --locked --test it -- --exact sim::p5_holds_in_a_simulated_fleet --nocapture
	@cat target/sim-report.txt

# Commits and revokes racing on PostgreSQL, beside each lock strategy that was rejected: RACE_OPS.
race:
	RACE_OPS=$${RACE_OPS:-100000} bash tests/postgres.sh with \
		$(CARGO) test --locked --test it -- store::race --nocapture --test-threads=1

# The decision beside a naive one, straight from docs/policies.md, a million times in half a minute: DIFF_OPS, DIFF_SEED.
differential:
	DIFF_OPS=$${DIFF_OPS:-1000000} $(CARGO) test --locked --test it -- --exact \
		naive::the_decision_agrees_with_the_naive_one_of_the_document --nocapture

# Real processes on a real PostgreSQL, killed, stopped, cut off and failed over: CHAOS_ROUNDS, CHAOS_SEED, CHAOS_ONLY.
chaos:
	rm -f target/chaos-report.txt
	CHAOS_ROUNDS=$${CHAOS_ROUNDS:-5} CHAOS_REPORT="$(CURDIR)/target/chaos-report.txt" bash tests/postgres.sh with \
		$(CARGO) test --locked --test it -- --exact chaos::p5_holds_under_real_faults --nocapture
	@cat target/chaos-report.txt

# Measures; prints ratios and medians. Never part of a test.
bench:
	$(CARGO) bench --locked --bench issue
	$(CARGO) bench --locked --bench startup
	$(CARGO) bench --locked --bench overhead
	$(CARGO) bench --locked --no-run --bench fleet
	bash tests/postgres.sh with $(CARGO) bench --locked --bench fleet
	bash tests/postgres.sh with $(CARGO) bench --locked --bench backup

fmt:
	$(CARGO) fmt

# buf's standard lint over proto/; npx fetches buf.
lint-proto:
	npx --yes @bufbuild/buf lint

# Bans, licences and sources of all dependencies; needs `cargo install cargo-deny`.
deny:
	$(CARGO) deny check bans licenses sources

# Writes what this release writes into tests/it/compat/frozen, for later ones to read; once for each release, with its tag.
freeze:
	$(CARGO) test --locked --test it -- --ignored --exact compat::freeze::freeze
