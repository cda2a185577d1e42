#!/usr/bin/env bash
# The only place that knows how to get Prometheus' programs for tests: those in PATH, or Debian's package, unpacked into
# target/tools and not installed, so that no service is started.
#
# usage: prometheus.sh bin       the folder with prometheus and promtool, fetched if need be
#        prometheus.sh rules     checks deploy/prometheus/rules.yaml and runs its unit tests
set -euo pipefail

here=$(dirname "$(realpath "$0")")
tools=$here/../target/tools/prometheus

fail() { echo "prometheus.sh: $*" >&2; exit 1; }

fetch() {
    local sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo -n)
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    mkdir -p "$tools"
    (
        cd "$tools"
        apt-get download --quiet prometheus >&2 || { "${sudo[@]}" apt-get update --quiet >&2; apt-get download --quiet prometheus >&2; }
        dpkg -x prometheus_*.deb unpacked
        rm -f prometheus_*.deb
    )
}

bin() {
    local found
    if found=$(command -v promtool) && command -v prometheus >/dev/null; then
        dirname "$(realpath "$found")"
        return
    fi
    [ -x "$tools/unpacked/usr/bin/promtool" ] || fetch ||
        fail "promtool is not here, and apt-get could not fetch it: install prometheus"
    realpath "$tools/unpacked/usr/bin"
}

case "${1:-}" in
    bin) bin ;;
    rules)
        promtool=$(bin)/promtool
        cd "$here/../deploy/prometheus"
        "$promtool" check rules rules.yaml
        "$promtool" test rules rules_test.yaml
        ;;
    *) sed -n 's/^# \{0,1\}//; 2,7p' "$0" >&2; exit 2 ;;
esac
