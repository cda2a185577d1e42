#!/usr/bin/env python3
"""Prints the SBOM of the program as CycloneDX 1.5 JSON: every crate that is compiled into it or builds it, as Cargo.lock has
them. Tests' crates are not in it. The same lock file and SOURCE_DATE_EPOCH give the same text. Standard library alone."""

import datetime
import hashlib
import json
import os
import pathlib
import subprocess
import tomllib
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main() -> None:
    lock = (ROOT / "Cargo.lock").read_bytes()
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in tomllib.loads(lock.decode())["package"]}
    root = metadata["resolve"]["root"]

    # Reached from the program by what is no test's, in the order of names.
    found, waiting = set(), [root]
    edges: dict[str, list[str]] = {}
    while waiting:
        at = waiting.pop()
        if at in found:
            continue
        found.add(at)
        edges[at] = [dep["pkg"] for dep in nodes[at]["deps"] if any(kind["kind"] != "dev" for kind in dep["dep_kinds"])]
        waiting.extend(edges[at])

    def purl(at: str) -> str:
        return f"pkg:cargo/{packages[at]['name']}@{packages[at]['version']}"

    def component(at: str) -> dict:
        package = packages[at]
        out: dict = {
            "type": "application" if at == root else "library",
            "bom-ref": purl(at),
            "name": package["name"],
            "version": package["version"],
            "purl": purl(at),
        }
        if package.get("license"):
            # Old crates write OR as a slash.
            out["licenses"] = [{"expression": package["license"].replace("/", " OR ").replace("  ", " ")}]
        if checksum := checksums[package["name"], package["version"]]:
            out["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        if package.get("repository"):
            out["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
        return out

    at = datetime.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), datetime.timezone.utc)
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=hashlib.sha256(lock).digest()[:16], version=4)}",
        "version": 1,
        "metadata": {
            "timestamp": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lifecycles": [{"phase": "build"}],
            "component": component(root),
        },
        "components": [component(at) for at in sorted(found - {root}, key=purl)],
        "dependencies": [
            {"ref": purl(at), "dependsOn": sorted({purl(to) for to in edges[at]})} for at in sorted(found, key=purl)
        ],
    }
    print(json.dumps(bom, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
