#!/usr/bin/env bash
# Tests the Helm chart with the real Helm. What is missing is fetched once, into target/tools/helm.
#
# usage: helm.sh sync      copies what the chart shares with the rest (rules, dashboards) into it, and writes its README
#        helm.sh golden    writes tests/helm/golden anew; look at the difference
#        helm.sh test      lint, golden files, schemas, pods, configuration, refused values, upgrades
#        helm.sh full      all of it with Helm 3 and Helm 4, then both on real kube-apiservers with etcd
#        helm.sh cluster   only that; the first time kube-apiserver is built, which takes minutes
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
# shellcheck source=tests/tools.sh
. tests/tools.sh
tools=$PWD/target/tools/helm chart=deploy/helm/p8broker
helm3=v3.19.0 helm4=v4.0.0 kubernetes=1.34 oldest_kubernetes=1.30 schemas=kubernetes-validate==1.34.1 oldest_go=1.24 oldest_node=20
crds=(
    "github.com/cert-manager/cert-manager@v1.19.1 deploy/crds/cert-manager.io_certificates.yaml"
    "github.com/prometheus-operator/prometheus-operator@v0.85.0 example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml"
    "github.com/prometheus-operator/prometheus-operator@v0.85.0 example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml"
    "github.com/prometheus-operator/prometheus-operator@v0.85.0 example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml"
)

# Helm from its source, by the module proxy's checksums.
helm() {
    local major=$1 version=$2 bin=$tools/$2/helm
    if [ ! -x "$bin" ]; then
        need_go "$oldest_go"
        GOBIN=$tools/$version quietly go install "helm.sh/helm/v$major/cmd/helm@$version"
    fi
    echo "$bin"
}

prepare() {
    mkdir -p "$tools"
    command -v openssl >/dev/null || apt_install openssl
    python_with "$tools/python" "$schemas"
    PATH="$tools/python/bin:$PATH"
    need_node "$oldest_node"
    local lock
    lock=$(sha256sum <tests/helm/package-lock.json)
    if [ "$(cat "$tools/node.stamp" 2>/dev/null)" != "$lock" ]; then
        cp tests/helm/package.json tests/helm/package-lock.json "$tools/"
        (cd "$tools" && quietly npm ci --no-fund --no-audit)
        echo "$lock" >"$tools/node.stamp"
    fi
    cp tests/helm/crds.mjs "$tools/"
}

render() { "$1" template broker "$chart" --namespace tokens --kube-version "$kubernetes.0" --values "$2"; }

name() { basename "$1" -values.yaml; }

sync() {
    mkdir -p "$chart/files/dashboards"
    cp deploy/prometheus/rules.yaml "$chart/files/rules.yaml"
    rm -f "$chart"/files/dashboards/*.json
    cp deploy/grafana/*.json "$chart/files/dashboards/"
    python3 "$chart/readme.py"
}

in_sync() {
    cmp deploy/prometheus/rules.yaml "$chart/files/rules.yaml" || fail "the chart has other rules: make helm-sync"
    diff -rq --exclude=source --exclude='*.py' deploy/grafana "$chart/files/dashboards" || fail "the chart has other dashboards: make helm-sync"
    python3 "$chart/readme.py" --check
}

golden() {
    local bin values
    bin=$(helm 3 $helm3)
    mkdir -p tests/helm/golden
    for values in "$chart"/ci/*-values.yaml; do
        render "$bin" "$values" | python3 tests/helm/check.py elide >"tests/helm/golden/$(name "$values").yaml"
    done
}

# Everything with one Helm; `out` keeps what it rendered.
run_tests() {
    local bin=$1 out values file why program
    out=$(mktemp -d)
    trap 'rm -rf "$out"' RETURN
    for values in "$chart"/ci/*-values.yaml; do
        quietly "$bin" lint --strict --kube-version "$kubernetes.0" "$chart" --values "$values"
        file=$out/$(name "$values").yaml
        render "$bin" "$values" >"$file"
        python3 tests/helm/check.py elide <"$file" | diff -u "tests/helm/golden/$(name "$values").yaml" - || fail "$(name "$values") renders to something else; if it should: tests/helm.sh golden"
    done
    [ "$(find "$out" -name '*.yaml' | wc -l)" -ge 8 ] || fail "there are fewer than eight sets of values"
    [ "$(find tests/helm/golden -name '*.yaml' | wc -l)" -eq "$(find "$out" -name '*.yaml' | wc -l)" ] || fail "a golden file without values"

    # Kubernetes' own schemas; what it does not have itself, by the schemas of the CRDs.
    kubernetes-validate --kubernetes-version "$kubernetes" --strict "$out"/*.yaml >"$out/schemas.log" 2>&1 || true
    ! grep '^ERROR' "$out/schemas.log" || fail "objects that Kubernetes $kubernetes does not take"
    ! grep '^WARN' "$out/schemas.log" | grep -v 'monitoring.coreos.com/v1\|cert-manager.io/v1' || fail "objects without a schema"
    [ "$(grep -c '^INFO.*passed' "$out/schemas.log")" -ge 50 ] || fail "kubernetes-validate did not look: $(cat "$out/schemas.log")"
    python3 tests/helm/check.py crds "$out"/*.yaml >"$out/crds.jsonl"
    [ "$(wc -l <"$out/crds.jsonl")" -ge 5 ] || fail "no objects of CRDs"
    (cd "$tools" && node crds.mjs) <"$out/crds.jsonl"

    python3 tests/helm/check.py objects "$out"/*.yaml
    ! grep -rnE 'lookup |genCA|genSelfSigned|genPrivateKey|randAlpha|randNumeric|randBytes|uuidv4' "$chart/templates" || fail "the chart makes or looks up secrets"
    program=$(built_program)
    python3 tests/helm/check.py config "$program" "$out"/*.yaml

    # Values that make no sense, each with what must be said of it in its first line.
    for values in tests/helm/refused/*.yaml; do
        why=$(sed -n '1s/^# refused: //p' "$values")
        [ -n "$why" ] || fail "$values: its first line does not say what is refused"
        ! render "$bin" "$values" >"$out/refused.log" 2>&1 || fail "$values was taken"
        grep -qF "$why" "$out/refused.log" || fail "$values: not \`$why\` but: $(cat "$out/refused.log")"
    done

    # What earlier versions of the chart rendered of the same values.
    for file in tests/helm/frozen/*/*.yaml; do
        python3 tests/helm/check.py upgrade "$file" "$out/$(basename "$file")"
    done
    echo "helm $("$bin" version --template '{{.Version}}'): $(find "$chart/ci" -name '*.yaml' | wc -l) sets of values, $(find tests/helm/refused -name '*.yaml' | wc -l) refused: passed"
}

# kube-apiserver of one release, or etcd, built of the modules that its go.mod names; again only where that changes.
cluster_program() {
    local release=$1 package=$2 module=tests/helm/cluster/$1 bin version stamp flags="-s -w"
    bin=$tools/cluster/$release/$(basename "${package%/server/v3}")
    version=$(sed -n 's/.*k8s.io\/kubernetes v\([0-9.]*\).*/\1/p' "$module/go.mod")
    stamp=$(cat "$module/go.mod" "$module/go.sum" | sha256sum)
    if [ "$(cat "$bin.stamp" 2>/dev/null)" != "$stamp" ]; then
        echo "building $(basename "$bin"), for Kubernetes $version: some minutes, once" >&2
        need_go "$oldest_go"
        # Without these it takes itself for v0.0.0, and Helm it for too old.
        flags+=$(printf ' -X k8s.io/component-base/version.%s' "gitVersion=v$version" "gitMajor=${release%.*}" "gitMinor=${release#*.}")
        (cd "$module" && GOFLAGS=-mod=readonly quietly go build -trimpath -buildvcs=false -ldflags "$flags" -o "$bin" "$package")
        echo "$stamp" >"$bin.stamp"
    fi
    echo "$bin"
}

# The CRDs that an installation of cert-manager and of the Prometheus operator brings.
cluster_crds() {
    local dir=$tools/crds one module file root
    if [ "$(cat "$dir/stamp" 2>/dev/null)" != "${crds[*]}" ]; then
        need_go "$oldest_go"
        rm -rf "$dir"
        mkdir -p "$dir"
        for one in "${crds[@]}"; do
            read -r module file <<<"$one"
            root=$(cd / && go mod download -json "$module" | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')
            install -m 644 "$root/$file" "$dir/"
        done
        echo "${crds[*]}" >"$dir/stamp"
    fi
    echo "$dir"
}

cluster() {
    local etcd dir one two release program
    etcd=$(cluster_program "$kubernetes" go.etcd.io/etcd/server/v3)
    dir=$(cluster_crds)
    one=$(helm 3 $helm3)
    two=$(helm 4 $helm4)
    for release in "$kubernetes" "$oldest_kubernetes"; do
        program=$(cluster_program "$release" k8s.io/kubernetes/cmd/kube-apiserver)
        python3 tests/helm/cluster.py "$etcd" "$program" "$dir" "$chart" "$one" "$two"
    done
}

case "${1:-}" in
    sync) sync ;;
    golden) prepare; golden ;;
    test) in_sync; prepare; run_tests "$(helm 3 $helm3)" ;;
    full) in_sync; prepare; run_tests "$(helm 3 $helm3)"; run_tests "$(helm 4 $helm4)"; cluster ;;
    cluster) prepare; cluster ;;
    *) usage ;;
esac
