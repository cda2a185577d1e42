#!/usr/bin/env bash
# The whole story, told to a person: a sealed vault, a key, a token that an independent implementation verifies, a
# denial, a revoke. Everything happens in a temporary folder on this machine.
#
# usage: demo.sh FOLDER-WITH-BINARIES
set -euo pipefail

bin=${1:?usage: demo.sh FOLDER-WITH-BINARIES}
broker="$bin/p8broker"
independent="$bin/examples/independent"
work=$(mktemp -d)
pid=

stop() {
    status=$?
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    fi
    if [ "$status" -ne 0 ] && [ -s "$work/log" ]; then
        echo "the demo failed; the broker said:" >&2
        cat "$work/log" >&2
    fi
    rm -rf "$work"
}
trap stop EXIT

tell() { printf '\n== %s\n' "$*"; }
show() { printf '$ p8broker %s\n' "$*"; "$broker" "$@"; }
# Runs a command that must fail with a certain exit code.
must_fail() {
    local wanted=$1 got=0
    shift
    printf '$ p8broker %s\n' "$*"
    "$broker" "$@" 2>&1 || got=$?
    [ "$got" -eq "$wanted" ] || { echo "exit code $got instead of $wanted" >&2; return 1; }
    echo "(exit code $got)"
}
# One text field of a JSON object on standard input.
field() { sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" | head -n 1; }
as() { set -a; . "$work/vault/$1.env"; set +a; }

tell "1. A broker starts: a sealed SQLite vault, its own CA, mutual TLS, a sample policy."
"$broker" dev --dir "$work/vault" > "$work/log" 2>&1 &
pid=$!
for _ in $(seq 100); do
    [ -f "$work/vault/ready.json" ] && break
    kill -0 "$pid" || exit 1
    sleep 0.1
done
[ -f "$work/vault/ready.json" ] || { echo "the broker did not start within 10 seconds" >&2; exit 1; }
sed 's/^/  /' "$work/vault/policies.yaml"

tell "2. An operator imports a .p8 (a sample, made in Apple's form). From here on it lies sealed in the vault."
p8="$work/AuthKey_DEMO234567.p8"
"$independent" make-p8 "$p8"
as operator
show key import "$p8" --account acme --kind team --role APP_MANAGER --app-group games

tell "3. A CI job, known by its certificate alone, asks for a token. It never sees the key."
as client
printf '$ p8broker token issue --app-group games --role APP_MANAGER --output json\n'
"$broker" token issue --app-group games --role APP_MANAGER --output json | tee "$work/issued.json"
token=$(field token < "$work/issued.json")
[ "$(field key_id < "$work/issued.json")" = DEMO234567 ] || { echo "another key signed" >&2; exit 1; }

tell "4. The token, decoded and verified by an implementation that is not ours."
printf '%s' "$token" | "$independent" verify "$p8"
if command -v openssl > /dev/null; then
    # OpenSSL wants the signature as DER: two integers of at most 33 bytes (RFC 3279, section 2.2.3).
    hex=$(printf '%s==' "${token##*.}" | tr '_-' '/+' | openssl base64 -d -A | od -An -v -tx1 | tr -d ' \n')
    integer() {
        local digits=$1
        while [ "${digits:0:2}" = 00 ] && [ "$((16#${digits:2:2}))" -lt 128 ]; do digits=${digits:2}; done
        [ "$((16#${digits:0:2}))" -lt 128 ] || digits="00$digits"
        printf '02%02x%s' $((${#digits} / 2)) "$digits"
    }
    body="$(integer "${hex:0:64}")$(integer "${hex:64:64}")"
    printf '%b' "$(printf '30%02x%s' $((${#body} / 2)) "$body" | sed 's/../\\x&/g')" > "$work/signature.der"
    openssl pkey -in "$p8" -pubout -out "$work/public.pem"
    printf '%s' "${token%.*}" | openssl dgst -sha256 -verify "$work/public.pem" -signature "$work/signature.der" |
        sed "s/^/  signature: /; s/\$/, says $(openssl version | cut -d' ' -f1,2)/"
else
    echo "  (openssl is not here; with it, this would be verified a second time)"
fi

tell "5. Somebody without a policy asks, and is refused; an operator can look up why."
as stranger
must_fail 3 token issue --app-group games --role APP_MANAGER

tell "6. The client is revoked. The answer lists every token that is still alive, and when the last one dies."
as operator
show revoke client spiffe://acme.internal/ns/ci/sa/release-bot --reason "a laptop was stolen" --yes
as client
must_fail 3 token issue --app-group games --role APP_MANAGER

tell "7. Everything was written down first, in a chain that shows any change."
as operator
show audit list
show audit verify

tell "done; the folder of this demo is removed. \`p8broker dev --dir DIR\` keeps one."
