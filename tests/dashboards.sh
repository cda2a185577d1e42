#!/usr/bin/env bash
# Tests the dashboards: they are what deploy/grafana/source says, and every query of every panel answers with data, asked of
# a real Prometheus that scrapes two real replicas on PostgreSQL under load.
#
# usage: dashboards.sh test
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
    test)
        python3 deploy/grafana/generate.py --check
        prometheus=$(bash tests/prometheus.sh bin)/prometheus
        cargo build --locked --quiet --bin p8broker
        program=$(cargo metadata --format-version 1 --no-deps --locked | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/debug/p8broker
        bash tests/postgres.sh with python3 tests/dashboards/live.py "$program" "$prometheus"
        ;;
    *) sed -n 's/^# *usage: /usage: /p' "$0" >&2; exit 2 ;;
esac
