#!/usr/bin/env python3
"""Looks at what the chart renders, beyond schemas: what every pod must have, that nothing secret is made, that an upgrade
changes nothing that can't be changed, and that the broker takes its configuration.

usage: check.py objects FILE...          pods, secrets
       check.py elide                    standard input, with a word for each dashboard, which must be the one of deploy/grafana
       check.py crds FILE...             prints objects that are not of Kubernetes itself, as JSON lines
       check.py upgrade OLD NEW          two renderings of the same values
       check.py config P8BROKER FILE...  asks the program
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import textwrap

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
OTHERS = ("monitoring.coreos.com/", "cert-manager.io/")
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def objects(file: str) -> list[dict]:
    return [one for one in yaml.safe_load_all(pathlib.Path(file).read_text()) if one]


def name(one: dict) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def pod_of(one: dict) -> dict | None:
    if one["kind"] == "Pod":
        return one["spec"]
    return one.get("spec", {}).get("template", {}).get("spec") if one["kind"] in ("Deployment", "StatefulSet", "Job") else None


def wrong_with_pod(pod: dict) -> list[str]:
    """The restricted Pod Security Standard, and what this chart promises beyond it."""
    out = []
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or security.get("runAsUser") == 0:
        out.append("may run as root")
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        out.append("has no seccomp profile")
    if pod.get("automountServiceAccountToken") is not False:
        out.append("mounts a service-account token")
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            out.append(f"has {field}")
    for volume in pod.get("volumes", []):
        if kinds := set(volume) - {"name"} - VOLUMES:
            out.append(f"volume {volume['name']} is a {kinds}")
    for container in pod["containers"] + pod.get("initContainers", []):
        confined = container.get("securityContext", {})
        who = f"container {container['name']}"
        if confined.get("allowPrivilegeEscalation") is not False or confined.get("privileged"):
            out.append(f"{who} may gain privileges")
        if confined.get("capabilities") != {"drop": ["ALL"]}:
            out.append(f"{who} keeps capabilities")
        if confined.get("readOnlyRootFilesystem") is not True:
            out.append(f"{who} can write to its root")
        for port in container.get("ports", []):
            if port.get("hostPort"):
                out.append(f"{who} has a host port")
    broker = [it for it in pod["containers"] if it["name"] == "broker"]
    for container in broker:
        if container.get("livenessProbe", {}).get("httpGet", {}).get("path") != "/livez":
            out.append("its liveness is not /livez: a sealed broker would be killed")
        pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if pause < 1 or pod.get("terminationGracePeriodSeconds", 30) <= pause:
            out.append("it is killed before it has drained")
    return out


def check_objects(files: list[str]) -> list[str]:
    out = []
    for file in files:
        seen = set()
        for one in objects(file):
            if name(one) in seen:
                out.append(f"{file}: {name(one)} is there twice")
            seen.add(name(one))
            if one["kind"] == "Secret":
                out.append(f"{file}: {name(one)}: the chart makes no secret")
            if one["kind"] == "Service" and one["metadata"]["name"].endswith("-headless"):
                spec = one["spec"]
                if spec.get("clusterIP") != "None" or spec.get("publishNotReadyAddresses") is not True:
                    out.append(f"{file}: {name(one)}: sealed replicas can't be reached")
            pod = pod_of(one)
            out += [f"{file}: {name(one)}: {why}" for why in wrong_with_pod(pod)] if pod else []
    return out


def elide(text: str) -> str:
    def word(found: re.Match) -> str:
        rendered, source = textwrap.dedent(found[2]).strip(), (ROOT / "deploy/grafana" / f"{found[1]}.json").read_text().strip()
        docs, nowhere = (next(it["query"] for it in json.loads(text)["templating"]["list"] if it["name"] == "docs")
                         for text in (rendered, source))
        if rendered != source.replace(nowhere, docs):
            sys.exit(f"dashboard {found[1]} is not deploy/grafana/{found[1]}.json")
        return f"  p8broker-{found[1]}.json: (deploy/grafana/{found[1]}.json{f', with {docs}' if docs != nowhere else ''})\n"

    return re.sub(r"^  p8broker-(\w+)\.json: \|\n((?:    .*\n|\n)*)", word, text, flags=re.M)


def fixed(one: dict) -> dict:
    """What Kubernetes refuses to change."""
    spec = one.get("spec", {})
    match one["kind"]:
        case "Deployment":
            return {"selector": spec["selector"]}
        case "StatefulSet":
            return {field: spec.get(field) for field in ("selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy")}
        case "Service":
            return {"clusterIP": spec.get("clusterIP")}
        case "Job" if "helm.sh/hook" not in one["metadata"].get("annotations", {}):
            return {"template": spec["template"]}
    return {}


def check_upgrade(old: str, new: str) -> list[str]:
    after = {name(one): one for one in objects(new)}
    out = []
    for one in objects(old):
        same = after.get(name(one))
        if same is None:
            # Hooks and Jobs come and go; what holds data or an address stays.
            if one["kind"] in ("StatefulSet", "Service", "Deployment", "ServiceAccount"):
                out.append(f"{new}: {name(one)} is gone: who has it loses it")
        elif fixed(one) != fixed(same):
            out.append(f"{new}: {name(one)}: an upgrade can't change {sorted(k for k in fixed(one) if fixed(one)[k] != fixed(same).get(k))}")
    return out


def check_config(program: str, files: list[str]) -> list[str]:
    out = []
    for file in files:
        texts = [one["data"]["p8broker.toml"] for one in objects(file) if "p8broker.toml" in (one.get("data") or {})]
        if len(texts) != 1:
            out.append(f"{file}: {len(texts)} configurations")
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            text = re.sub(r'"(/(?:etc|var)/)', lambda found: f'"{root}{found[1]}', texts[0])
            for path in re.findall(rf'"({root}/[^"]+)"', text):
                write(pathlib.Path(path))
            (root / "p8broker.toml").write_text(text)
            ran = subprocess.run([program, "config", "check", "--config", str(root / "p8broker.toml")], capture_output=True,
                                 text=True, env={"P8BROKER_STORE_URL": "postgres://p8broker@localhost/vault"} if "sqlite =" not in text and "url =" not in text else {})
            if ran.returncode:
                out.append(f"{file}: {ran.stderr.strip()}")
    return out


def write(path: pathlib.Path) -> None:
    """What the configuration names, as Secrets would bring it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".db", ".json") or path.exists():
        return
    if path.parent.name == "unseal":
        path.write_text("5a" * 32)
    elif path.name in ("tls.crt", "tls.key") and path.parent.name in ("tls", "db"):
        key, chain = path.with_name("tls.key"), path.with_name("tls.crt")
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=x",
                "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(chain))
    elif path.suffix in (".pem", ".crt"):
        if path.name.startswith("crl"):
            return revocation_list(path)
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=CA",
                "-keyout", "/dev/null", "-out", str(path))
    else:
        path.write_text("secret")


def revocation_list(path: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "index").touch()
        (root / "number").write_text("01")
        (root / "ca.cnf").write_text(
            f"[ca]\ndefault_ca = it\n[it]\ndatabase = {root}/index\ncrlnumber = {root}/number\ndefault_md = sha256\ndefault_crl_days = 2\n")
        key, ca = str(root / "key.pem"), str(root / "ca.pem")
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=CA",
                "-keyout", key, "-out", ca)
        openssl("ca", "-gencrl", "-config", str(root / "ca.cnf"), "-keyfile", key, "-cert", ca, "-out", str(path))


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def main() -> None:
    what, *arguments = sys.argv[1:] or [""]
    match what:
        case "objects":
            wrong = check_objects(arguments)
        case "elide":
            sys.stdout.write(elide(sys.stdin.read()))
            return
        case "crds":
            for file in arguments:
                for one in objects(file):
                    if one["apiVersion"].startswith(OTHERS):
                        print(json.dumps(one))
            return
        case "upgrade":
            wrong = check_upgrade(*arguments)
        case "config":
            wrong = check_config(arguments[0], arguments[1:])
        case _:
            sys.exit(__doc__)
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
