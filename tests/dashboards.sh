#!/usr/bin/env bash
# Tests the dashboards: they are what deploy/grafana/source says, and every query of every panel answers with data, asked of
# a real Prometheus that scrapes two real replicas on PostgreSQL under load.
#
# usage: dashboards.sh test        the above
#        dashboards.sh picture     record, then render: docs/images/overview.png, and the others in target/dashboards
#        dashboards.sh record      a quarter of an hour of two replicas under load, kept in target/dashboards/record
#        dashboards.sh render      pictures of what was recorded, by Grafana's own components; needs chromium
#        dashboards.sh types       holds the dashboards against the types that Grafana publishes
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
# shellcheck source=tests/tools.sh
. tests/tools.sh

page=target/tools/page oldest_node=20

need_page() {
    mkdir -p "$page"
    python_with target/tools/page-python
    PATH="$PWD/target/tools/page-python/bin:$PATH"
    need_node "$oldest_node"
    if ! cmp -s tests/dashboards/page/package-lock.json "$page/package-lock.json" || [ ! -d "$page/node_modules/@grafana/ui" ]; then
        cp tests/dashboards/page/package.json tests/dashboards/page/package-lock.json "$page/"
        (cd "$page" && quietly npm ci --no-fund --no-audit --ignore-scripts)
    fi
}

prometheus() { echo "$(bash tests/prometheus.sh bin)/prometheus"; }

need_openssl() { command -v openssl >/dev/null || apt_install openssl; }

record() {
    need_openssl
    bash tests/postgres.sh with python3 tests/dashboards/record.py "$(built_program)" "$(prometheus)" target/dashboards/record
}

render() {
    need_page
    command -v chromium >/dev/null || apt_install chromium
    python3 tests/dashboards/render.py "$(prometheus)" target/dashboards/record "$page" target/dashboards
    mkdir -p docs/images
    cp target/dashboards/overview.png docs/images/
    [ "$(stat -c %s docs/images/overview.png)" -lt 300000 ] || fail "docs/images/overview.png is too large"
}

case "${1:-}" in
    test)
        python3 deploy/grafana/generate.py --check
        need_openssl
        bash tests/postgres.sh with python3 tests/dashboards/live.py "$(built_program)" "$(prometheus)"
        ;;
    picture) record; render ;;
    record) record ;;
    render) render ;;
    types) types ;;
    *) usage ;;
esac
