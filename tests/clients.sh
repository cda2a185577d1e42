#!/usr/bin/env bash
# The clients in other languages: makes their stubs from proto/ and tests them against real brokers on loopback.
# What is missing is installed; what is fetched is kept in target/tools/clients.
#
# usage: clients.sh generate [go|python|typescript]...    stubs beside the sources; git ignores them
#        clients.sh test [go|python|typescript]...        all three at once where none is named
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
# shellcheck source=tests/tools.sh
. tests/tools.sh
root=$PWD tools=$PWD/target/tools/clients
oldest_go=1.26 oldest_node=20

# Runs STEP unless it has run for these very contents of these files.
once() {
    local step=$1 stamp
    stamp=$(cat "${@:2}" "$root/tests/clients.sh" "$root/tests/tools.sh" | sha256sum)
    [ "$(cat "$tools/$step.stamp" 2>/dev/null)" = "$stamp" ] && return
    "$step"
    echo "$stamp" >"$tools/$step.stamp"
}

python_tools() {
    python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3 python3-venv
    python3 -m venv --clear "$tools/python"
    quietly "$tools/python/bin/pip" install --quiet --disable-pip-version-check -r clients/python/requirements-dev.txt
}

go_tools() {
    need_go "$oldest_go"
    (cd clients/go && GOBIN=$tools/bin quietly go install tool)
}

typescript_tools() {
    need_node "$oldest_node"
    (cd clients/typescript && quietly npm ci --no-fund --no-audit)
}

protoc() { "$tools/python/bin/python" -m grpc_tools.protoc -I proto "$@"; }

# The messages and the one service that a client needs.
protos=(p8broker/v1/token_service.proto p8broker/v1/common.proto)

generate() {
    local language out
    for language in "$@"; do
        case $language in
            python)
                out=clients/python/p8broker
                rm -rf "$out"
                protoc --python_out=clients/python --pyi_out=clients/python --grpc_python_out=clients/python "${protos[@]}"
                ;;
            go)
                out=clients/go/p8brokerpb
                rm -rf "$out"
                mkdir -p "$out"
                local map="example.com/p8broker/p8brokerpb" options=() proto
                for proto in "${protos[@]}"; do options+=("--go_opt=M$proto=$map" "--go-grpc_opt=M$proto=$map"); done
                protoc --plugin="$tools/bin/protoc-gen-go" --plugin="$tools/bin/protoc-gen-go-grpc" "${options[@]}" \
                    --go_opt=module=example.com/p8broker --go-grpc_opt=module=example.com/p8broker \
                    --go_out=clients/go --go-grpc_out=clients/go "${protos[@]}"
                ;;
            typescript)
                out=clients/typescript/gen
                rm -rf "$out"
                mkdir -p "$out"
                protoc -I "$("$tools/python/bin/python" -c 'import google.rpc; print(*google.rpc.__path__)' | sed 's|/google/rpc$||')" \
                    --plugin=clients/typescript/node_modules/.bin/protoc-gen-ts_proto --ts_proto_out="$out" \
                    --ts_proto_opt=outputServices=grpc-js,forceLong=bigint,esModuleInterop=true,oneof=unions,importSuffix=.js \
                    "${protos[@]}" google/rpc/status.proto google/rpc/error_details.proto
                ;;
        esac
    done
}

prepare() {
    mkdir -p "$tools"
    once python_tools clients/python/requirements*.txt
    PATH="$tools/python/bin:$PATH"
    local language
    for language in "$@"; do
        case $language in
            go) once go_tools clients/go/go.mod clients/go/go.sum ;;
            typescript) once typescript_tools clients/typescript/package-lock.json ;;
        esac
    done
    generate "$@"
}

# An issuer of tokens for CI jobs, made up here: its keys in the brokers' document, and one token of it.
issuer() {
    local key=$1/issuer.pem now modulus head body signature
    now=$(date +%s)
    b64() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }
    quietly openssl genrsa -out "$key" 2048
    modulus=$(openssl rsa -in "$key" -noout -modulus | sed 's/^Modulus=//' | xxd -r -p | b64)
    sed "s|@JWKS@|{\"keys\":[{\"kty\":\"RSA\",\"kid\":\"1\",\"alg\":\"RS256\",\"use\":\"sig\",\"e\":\"AQAB\",\"n\":\"$modulus\"}]}|" \
        clients/testing.yaml >"$1/policies.yaml"
    head=$(printf '{"alg":"RS256","kid":"1","typ":"JWT"}' | b64)
    body=$(printf '{"iss":"https://ci.acme.internal","aud":"p8broker","sub":"project:games:job:release","iat":%d,"exp":%d}' \
        $((now - 10)) $((now + 900)) | b64)
    signature=$(printf '%s.%s' "$head" "$body" | openssl dgst -sha256 -sign "$key" -binary | b64)
    printf '%s.%s.%s\n' "$head" "$body" "$signature" >"$1/job.jwt"
}

run_go() { cd clients/go && go vet ./... && go test -count=1 -race ./...; }
run_python() { cd clients/python && GRPC_VERBOSITY=NONE python -W error::ResourceWarning -m unittest -v; }
run_typescript() { cd clients/typescript && npm test --silent; }

run_tests() {
    local language bin code=0 pids=()
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    command -v openssl >/dev/null && command -v xxd >/dev/null || apt_install openssl xxd
    bin=$(built_program)
    issuer "$work"
    # What a test of a client is told: the program, a document for it, a job's token.
    export P8BROKER_TEST_BIN=$bin P8BROKER_TEST_DOCUMENT=$work/policies.yaml P8BROKER_TEST_JWT=$work/job.jwt
    for language in "$@"; do
        ("run_$language") >"$work/$language.log" 2>&1 &
        pids+=($!)
    done
    for language in "$@"; do
        if wait "${pids[0]}"; then echo "clients/$language: passed"; else code=1; echo "clients/$language: FAILED"; fi
        pids=("${pids[@]:1}")
        sed "s/^/  /" "$work/$language.log"
    done
    return "$code"
}

command=${1:-}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- go python typescript
for language in "$@"; do
    case $language in go | python | typescript) ;; *) command='' ;; esac
done
case $command in
    generate) prepare "$@" ;;
    test) prepare "$@"; run_tests "$@" ;;
    *) usage ;;
esac
