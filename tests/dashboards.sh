#!/usr/bin/env bash
# Tests the dashboards: they are what deploy/grafana/source says, and every query of every panel answers with data, asked of
# a real Prometheus that scrapes two real replicas on PostgreSQL under load.
#
# usage: dashboards.sh test
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
# shellcheck source=tests/tools.sh
. tests/tools.sh
case "${1:-}" in
    test)
        python3 deploy/grafana/generate.py --check
        prometheus=$(bash tests/prometheus.sh bin)/prometheus
        command -v openssl >/dev/null || apt_install openssl
        bash tests/postgres.sh with python3 tests/dashboards/live.py "$(built_program)" "$prometheus"
        ;;
    *) usage ;;
esac
