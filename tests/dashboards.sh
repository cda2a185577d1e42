#!/usr/bin/env bash
# Tests the dashboards: they are what deploy/grafana/source says and what Grafana's types allow, and every query of every panel
# answers with data, asked of a real Prometheus that scrapes two real replicas on PostgreSQL under load. And draws them.
#
# usage: dashboards.sh test        the above
#        dashboards.sh picture     record, then render: docs/images/overview.png, and the others in target/dashboards
#        dashboards.sh record      a quarter of an hour of two replicas under load, kept in target/dashboards/record
#        dashboards.sh render      pictures of what was recorded, by Grafana's own components; needs chromium
#        dashboards.sh schema      holds the dashboards against the types that Grafana publishes
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
# shellcheck source=tests/tools.sh
. tests/tools.sh

tools=$PWD/target/tools oldest_node=20

# The modules of tests/dashboards/$1, in target/tools/$1.
need_modules() {
    local from=tests/dashboards/$1 to=$tools/$1 lock
    mkdir -p "$to"
    python_with "$tools/node-python" pip
    PATH="$tools/node-python/bin:$PATH"
    need_node "$oldest_node"
    lock=$(sha256sum <"$from/package-lock.json")
    [ "$(cat "$to.stamp" 2>/dev/null)" != "$lock" ] || return 0
    cp "$from/package.json" "$from/package-lock.json" "$to/"
    (cd "$to" && quietly npm ci --no-fund --no-audit --ignore-scripts)
    echo "$lock" >"$to.stamp"
}

schema() {
    need_modules schema
    python3 tests/dashboards/schema.py "$tools/schema"
}

prometheus() { echo "$(bash tests/prometheus.sh bin)/prometheus"; }

need_openssl() { command -v openssl >/dev/null || apt_install openssl; }

record() {
    need_openssl
    bash tests/postgres.sh with python3 tests/dashboards/record.py "$(built_program)" "$(prometheus)" target/dashboards/record
}

render() {
    need_modules page
    command -v chromium >/dev/null || apt_install chromium
    python3 tests/dashboards/render.py "$(prometheus)" target/dashboards/record "$tools/page" target/dashboards
    mkdir -p docs/images
    cp target/dashboards/overview.png docs/images/
    [ "$(stat -c %s docs/images/overview.png)" -lt 300000 ] || fail "docs/images/overview.png is too large"
}

case "${1:-}" in
    test)
        python3 deploy/grafana/generate.py --check
        schema
        need_openssl
        bash tests/postgres.sh with python3 tests/dashboards/live.py "$(built_program)" "$(prometheus)"
        ;;
    picture) record; render ;;
    record) record ;;
    render) render ;;
    schema) schema ;;
    *) usage ;;
esac
