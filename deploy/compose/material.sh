#!/usr/bin/env bash
# Makes what the services of deploy/compose.yaml share: one CA and its certificates, the key that unseals, passwords. What is
# there stays as it is. The CA's key is thrown away: to add a client, remove the volumes, or bring a CA of your own.
#
# usage: material.sh DIR      DIR has a folder for each of broker, operator, postgres, grafana, anchor-1, anchor-2
set -euo pipefail
cd "${1:?usage: material.sh DIR}"
umask 077
days=825

# Who reads what: the broker's user, PostgreSQL's and Grafana's in their images.
give() { [ "$(id -u)" -ne 0 ] || chown -R "$@"; }

if [ ! -e broker/done ]; then
    ca=$(mktemp -d -p broker)
    trap 'rm -rf "$ca"' EXIT
    key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null ||
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }
    key "$ca/key.pem"
    openssl req -x509 -new -key "$ca/key.pem" -sha256 -days "$days" -subj "/CN=p8broker compose CA" -out "$ca/ca.pem" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign"
    # certificate FOLDER NAME PURPOSE NAMES
    certificate() {
        key "$1/$2-key.pem"
        openssl req -new -key "$1/$2-key.pem" -subj "/CN=$2" -out "$ca/request.pem"
        printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=%s\nsubjectAltName=%s\n' \
            "$3" "$4" >"$ca/extensions"
        openssl x509 -req -in "$ca/request.pem" -CA "$ca/ca.pem" -CAkey "$ca/key.pem" -CAcreateserial -sha256 \
            -days "$days" -extfile "$ca/extensions" -out "$1/$2.pem" 2>/dev/null
    }
    certificate broker server serverAuth "DNS:broker-1,DNS:broker-2,DNS:localhost,IP:127.0.0.1"
    certificate postgres server serverAuth "DNS:postgres,DNS:localhost,IP:127.0.0.1"
    certificate operator operator clientAuth "URI:spiffe://acme.internal/ns/ops/sa/admin"
    # A first client; deploy/compose/policies has a policy for it.
    certificate operator client clientAuth "URI:spiffe://acme.internal/ns/ci/sa/release-bot"
    for folder in broker operator postgres; do install -m 0644 "$ca/ca.pem" "$folder/ca.pem"; done
    openssl rand -hex 32 >broker/unseal-key
    openssl rand -hex 24 | tr -d '\n' | tee broker/password >postgres/password
    openssl rand -hex 12 | tr -d '\n' >grafana/password
    # A replica starts its anchor from an empty file.
    for nth in 1 2; do [ -e "anchor-$nth/anchor.json" ] || : >"anchor-$nth/anchor.json"; done
    touch broker/done
fi
give 65532:65532 broker operator anchor-1 anchor-2
give 999:999 postgres
give 472:0 grafana
echo "the material is there"
