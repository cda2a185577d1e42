#!/usr/bin/env python3
"""Two replicas under load, a Prometheus that scrapes them, and every query of deploy/grafana asked of it.

Each panel must have data, so the load brings about what each shows: refusals, quotas, break-glass, revocations with a client
that watches, a run of the canary, an issuer whose keys are fetched. Then the rules: none fails, all records have data, nothing
fired before the load, and what the load brings about is pending or firing after it.

usage: live.py P8BROKER PROMETHEUS      beside a PostgreSQL of tests/postgres.sh
"""

import base64
import http.server
import json
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = ("overview", "security", "performance")
DOCUMENT = """
issuers:
  - name: ci
    kind: oidc
    url: https://ci.acme.internal
    jwks_url: https://localhost:%d/keys
    audiences: [p8broker]
policies:
  - name: games-release-ci
    clients: [{ spiffe: "spiffe://acme.internal/ns/ci/sa/release-bot" }]
    app_group: games
    roles: [APP_MANAGER]
    max_ttl: 10m
    quota: { tokens_per_hour: 1000 }
  - name: emergency
    clients: [{ spiffe: "spiffe://acme.internal/ns/lab/sa/stranger" }]
    app_group: games
    roles: [APP_MANAGER]
    max_ttl: 10m
    break_glass: true
"""


class World:
    """Everything that runs, ended by its own id."""

    def __init__(self, program: str, prometheus: str, folder: pathlib.Path):
        self.program, self.prometheus, self.dir, self.running = program, prometheus, folder, []
        self.replicas, self.tsdb = [], folder / "tsdb"

    def start(self, *command: object) -> subprocess.Popen:
        log = open(self.dir / "log", "a")
        process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.running.append(process)
        return process

    def end(self) -> None:
        for process in reversed(self.running):
            process.terminate()
        for process in reversed(self.running):
            process.wait(30)
        self.running.clear()

    def serve(self, nth: int) -> None:
        self.replicas[nth:nth + 1] = [self.start(self.program, "serve", "--config", self.dir / f"fleet-{nth}.toml")]

    def cli(self, who: str, *arguments: str, ok: bool = True, at: str = "") -> dict:
        env = dict(line.removeprefix("export ").split("=", 1) for line in (self.dir / f"{who}.env").read_text().splitlines())
        env = {name: value.strip("'") for name, value in env.items()} | {"P8BROKER_ADDR": at or self.grpc[0]}
        ran = subprocess.run([self.program, *arguments, "--output", "json"], env=env, capture_output=True, text=True, timeout=60)
        if ok and ran.returncode:
            raise SystemExit(f"{arguments}: {ran.stderr}")
        return json.loads(ran.stdout) if ran.returncode == 0 and ran.stdout.strip() else {}


def port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def wait(what: str, holds, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"never: {what}")
        time.sleep(0.2)


def keys_of_issuer(world: World) -> int:
    """Serves an empty JWK Set over TLS, as an issuer would; answers its port."""
    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    ca, ca_key, key, chain = (world.dir / f"issuer{part}.pem" for part in ("", "-ca-key", "-key", "-chain"))
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl(*new, "-subj", "/CN=CA", "-keyout", ca_key, "-out", ca)
    openssl(*new, "-subj", "/CN=issuer", "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE",
            "-CA", ca, "-CAkey", ca_key, "-keyout", key, "-out", chain)
    # RFC 7517, appendix A.1.
    keys = {"keys": [{"kty": "EC", "crv": "P-256", "kid": "1", "use": "sig", "alg": "ES256",
                      "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}

    class Keys(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(keys).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain, key)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def query(world: World, path: str, **parameters: str) -> dict:
    url = f"http://127.0.0.1:{world.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]


def has_data(world: World, expression: str) -> bool:
    return any(it["value"][1] != "NaN" for it in query(world, "query", query=expression)["result"])


def prometheus(world: World, data: pathlib.Path, config: dict) -> None:
    world.port = port()
    (world.dir / "prometheus.yaml").write_text(json.dumps(config))
    world.start(world.prometheus, f"--config.file={world.dir}/prometheus.yaml", f"--storage.tsdb.path={data}",
                f"--web.listen-address=127.0.0.1:{world.port}")
    wait("Prometheus answers", lambda: is_ready(f"127.0.0.1:{world.port}", "-/ready"))


def start(world: World, url: str, more: tuple = ()) -> None:
    """Both replicas, with `more` lines in their configuration, and Prometheus."""
    # Once as a playground, which makes certificates, a vault, a key; then as a fleet, each replica a process.
    first = world.start(world.program, "dev", "--dir", world.dir, "--store-url", url, "--replicas", 2,
                        "--grpc", "127.0.0.1:0", "--ops", "127.0.0.1:0")
    wait("the playground is ready", lambda: (world.dir / "ready.json").exists())
    first.terminate()
    first.wait(30)
    world.running.clear()
    world.grpc, world.ops = ([f"127.0.0.1:{port()}" for _ in range(2)] for _ in range(2))
    world.issuer = keys_of_issuer(world)
    for nth, name in enumerate(("p8broker", "p8broker-2")):
        lines = (world.dir / f"{name}.toml").read_text().splitlines()
        lines = [f'grpc = "{world.grpc[nth]}"' if line.startswith("grpc =") else line for line in lines]
        lines = [f'ops = "{world.ops[nth]}"' if line.startswith("ops =") else line for line in lines]
        lines += [*more, "[[oidc.hosts]]", f'name = "localhost:{world.issuer}"', "private = true", f'ca_file = "{world.dir}/issuer.pem"']
        (world.dir / f"fleet-{nth}.toml").write_text("\n".join(lines) + "\n")
        world.serve(nth)
    wait("replicas are ready", lambda: all(is_ready(address) for address in world.ops))
    rules = ROOT / "deploy/prometheus/rules.yaml"
    prometheus(world, world.tsdb, {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "p8broker", "static_configs": [{"targets": world.ops}]}]})
    wait("Prometheus scrapes both", lambda: scraped(world))


def is_ready(address: str, path: str = "readyz") -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/{path}", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def scraped(world: World) -> bool:
    try:
        return len(query(world, "query", query="p8broker_unsealed == 1")["result"]) == 2
    except OSError:
        return False


def issue(world: World, who: str, *more: str, role: str = "APP_MANAGER") -> None:
    world.cli(who, "token", "issue", "--app-group", "games", "--role", role, *more, ok=False)


def watch(world: World, address: str) -> None:
    world.start("env", f"P8BROKER_ADDR={address}", f"P8BROKER_CACERT={world.dir}/ca.pem", f"P8BROKER_CERT={world.dir}/client.pem",
                f"P8BROKER_KEY={world.dir}/client-key.pem", world.program, "token", "watch")


def bad_bearer(world: World) -> None:
    """Of the issuer, by its key's name, and signed by nobody: its keys are fetched, and it is refused."""
    now = int(time.time())
    claims = {"iss": "https://ci.acme.internal", "aud": "p8broker", "sub": "job", "iat": now - 10, "exp": now + 600}
    parts = [json.dumps({"alg": "ES256", "kid": "1"}).encode(), json.dumps(claims).encode(), b"\1" * 64]
    token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    (world.dir / "bad.jwt").write_text(token)


def load(world: World, url: str) -> None:
    (world.dir / "more.yaml").write_text(DOCUMENT % world.issuer)
    world.cli("operator", "apply", "-f", str(world.dir / "more.yaml"))
    watch(world, world.grpc[0])
    # A run of the canary is due.
    programs = subprocess.run(["bash", ROOT / "tests/postgres.sh", "bin"], check=True, capture_output=True, text=True).stdout.strip()
    due = "update canary set started_ms = started_ms - 3600000"
    subprocess.run([f"{programs}/psql", url, "--quiet", "--command", due], check=True)
    bad_bearer(world)
    issue(world, "stranger")
    world.cli("operator", "break-glass", "open", "emergency", "--for", "10m", "--reason", "a test")
    for _ in range(4):
        issue(world, "client")
        issue(world, "client", "--fresh")
        issue(world, "stranger", "--fresh")
        issue(world, "client", role="ADMIN")
        issue(world, "client", "--bearer-file", str(world.dir / "bad.jwt"))
        # Two scrapes see a counter move.
        time.sleep(2)
    live = world.cli("client", "token", "issue", "--app-group", "games", "--role", "APP_MANAGER", "--fresh")
    world.cli("operator", "revoke", "token", live["token_id"], "--reason", "a test", "--yes")


def check(world: World) -> list[str]:
    wrong, left = [], []
    for name in NAMES:
        for panel in json.loads((ROOT / f"deploy/grafana/{name}.json").read_text())["panels"]:
            for target in panel.get("targets", []):
                # Here no target has a namespace; the variable's All is `.*`, and nothing chosen is empty.
                for namespace in ("", ".*"):
                    expression = target["expr"].replace("$namespace", namespace).replace("$instance", ".*")
                    left.append((f"{name}: {panel['title']}", expression))
    end = time.monotonic() + 60
    while left and time.monotonic() < end:
        left = [(where, expression) for where, expression in left if not has_data(world, expression)]
        time.sleep(1 if left else 0)
    wrong += [f"{where} has no data: {expression}" for where, expression in left]
    for group in query(world, "rules")["groups"]:
        for rule in group["rules"]:
            if rule["health"] != "ok":
                wrong.append(f"{rule['name']}: {rule.get('lastError')}")
            if rule["type"] == "recording" and not has_data(world, rule["name"]):
                wrong.append(f"{rule['name']} has no data")
    return wrong


def alerts(world: World) -> set[str]:
    return {it["labels"]["alertname"] for it in query(world, "alerts")["alerts"]}


def main() -> None:
    program, prometheus = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        world = World(program, prometheus, pathlib.Path(folder))
        try:
            url = os.environ["P8BROKER_TEST_POSTGRES"]
            start(world, url)
            issue(world, "client")
            time.sleep(3)
            wrong = [f"in quiet times there is {name}" for name in alerts(world)]
            load(world, url)
            wrong += check(world)
            # What the load brought about, and what is brought about now.
            world.cli("operator", "revoke", "key", world.cli("operator", "key", "list")[0]["key_id"], "--reason", "a test", "--yes")
            for name in ("P8brokerBreakGlassOpen", "P8brokerRevokedKeyAlive", "P8brokerKeyNotConfirmedAtApple"):
                wait(f"{name} is pending or firing", lambda: name in alerts(world), 45)
            if wrong:
                log = (world.dir / "log").read_text().splitlines()[-20:]
                sys.exit("\n".join(wrong + log))
            print("dashboards: every query has data; records have data, rules are healthy, three alerts came, none before")
        finally:
            world.end()


if __name__ == "__main__":
    main()
