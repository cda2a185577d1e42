"""A kube-apiserver with etcd on free ports of 127.0.0.1, for as long as a `with` lasts, and a client for its API."""

import http.client
import json
import pathlib
import re
import secrets
import socket
import ssl
import subprocess
import time
from decimal import Decimal

START_S = 120
QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
SCALE = {"m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class Answer:
    def __init__(self, status: int, warnings: list[str], body: dict) -> None:
        self.status, self.warnings, self.body = status, warnings, body


class Api:
    """Every answer carries the warnings that came with it."""

    def __init__(self, port: int, token: str, ca: pathlib.Path) -> None:
        self.port, self.token = port, token
        self.tls = ssl.create_default_context(cafile=str(ca))
        self.connection: http.client.HTTPSConnection | None = None
        self.known: dict[tuple[str, str], tuple[str, bool]] = {}

    def ask(self, method: str, path: str, body: dict | None = None, kind: str = "application/json") -> Answer:
        if self.connection is None:
            self.connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.tls)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind, "Accept": "application/json"}
        try:
            self.connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = self.connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            self.connection = None
            raise
        try:
            answered = json.loads(text)
        except ValueError:
            answered = {"message": text.decode(errors="replace")}
        return Answer(response.status, response.headers.get_all("Warning") or [], answered)

    def must(self, answer: Answer) -> dict:
        if answer.status >= 300:
            raise SystemExit(f"the API server refuses: {answer.status} {answer.body.get('message')}")
        return answer.body

    def get(self, path: str) -> dict:
        return self.must(self.ask("GET", path))

    def delete(self, path: str) -> None:
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Background"}
        answer = self.ask("DELETE", path, options)
        if answer.status != 404:
            self.must(answer)

    def create(self, one: dict, namespace: str, dry: bool = False) -> Answer:
        return self.ask("POST", self.path_of(one, namespace) + "?fieldValidation=Strict" + ("&dryRun=All" if dry else ""), one)

    def patch(self, path: str, change: dict) -> Answer:
        return self.ask("PATCH", path, change, "application/merge-patch+json")

    def apply(self, one: dict, namespace: str) -> Answer:
        """Server-side apply, without effect."""
        how = "?fieldManager=test&force=true&dryRun=All&fieldValidation=Strict"
        return self.ask("PATCH", self.path_of(one, namespace, named=True) + how, one, "application/apply-patch+yaml")

    def resources(self, version: str) -> list[dict]:
        return self.get(self.root(version))["resources"]

    def path_of(self, one: dict, namespace: str, named: bool = False) -> str:
        version, kind = one["apiVersion"], one["kind"]
        if (version, kind) not in self.known:
            for it in self.resources(version):
                if "/" not in it["name"]:
                    self.known[version, it["kind"]] = (it["name"], it["namespaced"])
        if (version, kind) not in self.known:
            raise SystemExit(f"the API server has no {kind} of {version}")
        plural, namespaced = self.known[version, kind]
        path = self.root(version) + (f"/namespaces/{namespace}" if namespaced else "") + f"/{plural}"
        return f"{path}/{one['metadata']['name']}" if named else path

    @staticmethod
    def root(version: str) -> str:
        return f"/apis/{version}" if "/" in version else f"/api/{version}"

    def define(self, crd: dict) -> None:
        """A kind of its own, waited for until it is served."""
        self.must(self.create(crd, ""))
        spec, deadline = crd["spec"], time.monotonic() + 30
        lists = [f"/apis/{spec['group']}/{it['name']}/{spec['names']['plural']}" for it in spec["versions"] if it["served"]]
        while time.monotonic() < deadline:
            if all(self.ask("GET", path).status == 200 for path in lists):
                return
            time.sleep(0.1)
        raise SystemExit(f"{crd['metadata']['name']} is not served after 30 s")

    def everything(self, namespace: str) -> set[str]:
        """All there is in a namespace, of every kind, but events."""
        groups = [it["preferredVersion"]["groupVersion"] for it in self.get("/apis")["groups"]]
        out = set()
        for version in ["v1", *groups]:
            for it in self.resources(version):
                if it["namespaced"] and "list" in it["verbs"] and it["name"] != "events":
                    items = self.get(f"{self.root(version)}/namespaces/{namespace}/{it['name']}")["items"]
                    out |= {f"{it['kind']} {item['metadata']['name']}" for item in items}
        return out


class ApiServer:
    """etcd and kube-apiserver, ended by their own ids."""

    def __init__(self, etcd: pathlib.Path, program: pathlib.Path, folder: pathlib.Path) -> None:
        self.etcd, self.program, self.folder = etcd, program, folder
        self.processes: list[tuple[str, subprocess.Popen]] = []
        self.token = secrets.token_hex(16)
        self.kubeconfig = folder / "kubeconfig"

    def __enter__(self) -> "ApiServer":
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> None:
        folder, (one, two, port) = self.folder, free_ports(3)
        etcd, peer = f"http://127.0.0.1:{one}", f"http://127.0.0.1:{two}"
        certificate, key, accounts, tokens = (folder / it for it in ("server.crt", "server.key", "accounts.key", "tokens.csv"))
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate))
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(accounts))
        tokens.touch(mode=0o600)
        tokens.write_text(f"{self.token},admin,admin,system:masters\n")
        self.spawn(self.etcd, {
            "data-dir": folder / "etcd", "unsafe-no-fsync": "true", "log-level": "warn",
            "listen-client-urls": etcd, "advertise-client-urls": etcd,
            "listen-peer-urls": peer, "initial-advertise-peer-urls": peer, "initial-cluster": f"default={peer}"})
        self.spawn(self.program, {
            "etcd-servers": etcd, "bind-address": "127.0.0.1", "advertise-address": "127.0.0.1", "secure-port": port,
            "cert-dir": folder, "tls-cert-file": certificate, "tls-private-key-file": key,
            "token-auth-file": tokens, "anonymous-auth": "false", "authorization-mode": "RBAC",
            "service-account-issuer": "https://127.0.0.1", "service-account-key-file": accounts,
            "service-account-signing-key-file": accounts,
            "service-cluster-ip-range": "10.0.0.0/16", "endpoint-reconciler-type": "none"})
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "clusters": [{"name": "it", "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(certificate)}}],
            "users": [{"name": "it", "user": {"token": self.token}}]}))
        self.api = Api(port, self.token, certificate)
        self.wait()

    def wait(self) -> None:
        deadline, last = time.monotonic() + START_S, "no answer"
        while time.monotonic() < deadline:
            for name, process in self.processes:
                if process.poll() is not None:
                    raise SystemExit(f"{name} ended with {process.returncode}:\n{self.log(name)}")
            try:
                answer = self.api.ask("GET", "/readyz")
                if answer.status == 200:
                    return
                last = str(answer.body)
            except OSError as error:
                last = str(error)
            time.sleep(0.2)
        raise SystemExit(f"the API server is not ready after {START_S} s: {last}\n{self.log('kube-apiserver')}")

    def spawn(self, program: pathlib.Path, flags: dict) -> None:
        command = [program, *(f"--{flag}={value}" for flag, value in flags.items())]
        with open(self.folder / f"{program.name}.log", "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)
        self.processes.append((program.name, process))

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def __exit__(self, *_: object) -> None:
        for _, process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def lacks(wanted: object, found: object, at: str = "") -> list[str]:
    """Where an object of the cluster is not what was asked for. More than that may be there: defaults, status."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [it for key in wanted if key != "creationTimestamp" for it in lacks(wanted[key], found.get(key), f"{at}.{key}")]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [it for i, (a, b) in enumerate(zip(wanted, found)) for it in lacks(a, b, f"{at}[{i}]")]
    if wanted == found or (same := quantity(wanted)) is not None and same == quantity(found):
        return []
    # What is empty is left out, but a false or a nought is not the same as nothing.
    if wanted in (None, "", [], {}) and not found:
        return []
    return [f"{at} is {found!r}, not {wanted!r}"]


def quantity(it: object) -> Decimal | None:
    found = QUANTITY.match(str(it)) if isinstance(it, (str, int, float)) and not isinstance(it, bool) else None
    return Decimal(found[1]) * SCALE.get(found[2], 1) if found else None


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [it.getsockname()[1] for it in sockets]
    for it in sockets:
        it.close()
    return ports


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
