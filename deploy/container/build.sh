#!/usr/bin/env bash
# Builds what the image holds: the program, its licence and its SBOM. The Dockerfile runs this, and so can you, without a
# container engine. The same commit and toolchain give the same bytes in any folder and at any time.
#
# usage: build.sh OUT      makes OUT/rootfs and OUT/rootfs.tar; builds in OUT/target, or in CARGO_TARGET_DIR
#
# SOURCE_DATE_EPOCH dates files and SBOM; the commit's time where it is absent.
set -euo pipefail

out=$(realpath -m "${1:?usage: build.sh OUT}")
cd "$(dirname "$(realpath "$0")")/../.."
root=$PWD
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
umask 022

CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-$out/target}")
cargo_home=$(realpath "${CARGO_HOME:-$HOME/.cargo}")
export CARGO_TARGET_DIR
# No path of this machine goes into the program: not of sources, of the registry, nor of what C code calls itself. Of several
# that fit the last one counts, so the narrower ones come last.
rust=() c=()
for map in "$root=/src" "$cargo_home=/cargo" "$(rustc --print sysroot)=/rust" "$CARGO_TARGET_DIR=/target"; do
    rust+=("--remap-path-prefix=$map")
    c+=("-ffile-prefix-map=$map")
done
# Line tables stay out: panics say their place without them.
export CARGO_ENCODED_RUSTFLAGS CFLAGS="${c[*]} -g0" CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_INCREMENTAL=0
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${rust[*]}")
cargo build --locked --release --bin p8broker

rm -rf "$out/rootfs" "$out/rootfs.tar"
install -D -m 0755 "$CARGO_TARGET_DIR/release/p8broker" "$out/rootfs/usr/local/bin/p8broker"
install -D -m 0644 LICENSE "$out/rootfs/usr/share/doc/p8broker/LICENSE"
python3 deploy/container/sbom.py >"$out/sbom.cdx.json"
install -D -m 0644 "$out/sbom.cdx.json" "$out/rootfs/usr/share/doc/p8broker/sbom.cdx.json"
find "$out/rootfs" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
tar --create --file="$out/rootfs.tar" --directory="$out/rootfs" --sort=name --format=posix --owner=0 --group=0 \
    --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime .
sha256sum "$out/rootfs/usr/local/bin/p8broker" "$out/rootfs.tar"
