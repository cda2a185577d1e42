#!/usr/bin/env python3
"""A quarter of an hour in the life of two replicas, scraped by a Prometheus whose data is kept, for pictures of the dashboards.

Real processes, real tokens: three teams ask all the time, now more, now less; then things happen that whoever is on call should see
(PLAN). Rates are of five minutes, so the first five only fill them.

usage: record.py P8BROKER PROMETHEUS OUT      beside a PostgreSQL of tests/postgres.sh; OUT gets the data and the time at its end
"""

import json
import math
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import live

LENGTH, SHOWN = 900, 600
DOCUMENT = """
app_groups:
  - { name: shop, account: acme, apps: ["3456789012"] }
  - { name: tools, account: acme, apps: ["4567890123"] }
issuers:
  - { name: ci, kind: oidc, url: https://ci.acme.internal, jwks_url: https://localhost:%d/keys, audiences: [p8broker] }
policies:
  - name: shop-release-ci
    clients: [{ spiffe: "spiffe://acme.internal/ns/ci/sa/release-bot" }]
    app_group: shop
    roles: [DEVELOPER]
    max_ttl: 5m
    quota: { tokens_per_hour: 500 }
  - name: tools-nightly
    clients: [{ spiffe: "spiffe://acme.internal/ns/ci/sa/release-bot" }]
    app_group: tools
    roles: [DEVELOPER]
    max_ttl: 2m
    quota: { tokens_per_hour: 2000 }
  - name: games-emergency
    clients: [{ spiffe: "spiffe://acme.internal/ns/lab/sa/stranger" }]
    app_group: games
    roles: [APP_MANAGER]
    max_ttl: 5m
    break_glass: true
"""


class Day:
    def __init__(self, world: live.World):
        self.world, self.begin, self.over = world, time.monotonic(), threading.Event()

    def now(self) -> float:
        return time.monotonic() - self.begin

    def ask(self, who: str, group: str, role: str, *more: str) -> dict:
        # Whichever replica answers first in the list; each is first as often.
        at = ",".join(random.sample(self.world.grpc, 2))
        return self.world.cli(who, "token", "issue", "--app-group", group, "--role", role, *more, ok=False, at=at)

    def team(self, group: str, role: str, per_second: float, wave_s: float, fresh: float) -> None:
        """Asks all day; `fresh` of the times for a new token."""
        while not self.over.is_set():
            rate = per_second * (1 + 0.6 * math.sin(2 * math.pi * self.now() / wave_s))
            self.over.wait(random.expovariate(rate))
            self.ask("client", group, role, *(["--fresh"] if random.random() < fresh else []))

    def lab(self) -> None:
        """A stranger who may do nothing but in an emergency, and a CI job whose token nobody signed."""
        while not self.over.is_set():
            self.over.wait(random.uniform(4, 12))
            self.ask("stranger", "games", "APP_MANAGER")
            if random.random() < 0.5:
                self.ask("client", "games", "APP_MANAGER", "--bearer-file", str(self.world.dir / "bad.jwt"))

    def operator(self, *arguments: str) -> dict:
        return self.world.cli("operator", *arguments, at=",".join(self.world.grpc))

    def wrong_role(self) -> None:
        for _ in range(60):
            self.ask("client", "games", "ADMIN")

    def restart(self) -> None:
        self.world.replicas[1].terminate()
        self.world.replicas[1].wait(60)
        self.over.wait(40)
        self.world.serve(1)

    def open_break_glass(self) -> None:
        self.operator("break-glass", "open", "games-emergency", "--for", "8m", "--reason", "a release is stuck")

    def revoke_token(self) -> None:
        token = self.ask("client", "tools", "DEVELOPER", "--fresh")
        if token:
            self.operator("revoke", "token", token["token_id"], "--reason", "a drill", "--yes")

    def revoke_busiest_key(self) -> None:
        busiest = live.query(self.world, "query", query="topk(1, max by (key_id) (p8broker_exposure_key_tokens))")["result"]
        self.operator("revoke", "key", busiest[0]["metric"]["key_id"], "--reason", "a drill", "--yes")


# By the second at which it happens.
PLAN = [(t, Day.revoke_token) for t in range(60, LENGTH - 60, 75)] + [
    (345, Day.wrong_role),
    (420, Day.restart),
    (600, Day.open_break_glass),
    (750, Day.revoke_busiest_key),
]


def import_key(day: Day, key_id: str, role: str, group: str) -> None:
    path = day.world.dir / f"AuthKey_{key_id}.p8"
    new = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(path)]
    subprocess.run(new, check=True, capture_output=True)
    day.operator("key", "import", str(path), "--account", "acme", "--kind", "team", "--role", role, "--app-group", group)


def record(world: live.World, url: str) -> None:
    live.start(world, url, ("[canary]", "every_s = 60", "[oidc]", "jwks_refresh_s = 120"))
    day = Day(world)
    (world.dir / "more.yaml").write_text(DOCUMENT % world.issuer)
    day.operator("apply", "-f", str(world.dir / "more.yaml"))
    import_key(day, "GAMES22KEY", "APP_MANAGER", "games")
    import_key(day, "SHOP234KEY", "DEVELOPER", "shop")
    import_key(day, "TOOLS23KEY", "DEVELOPER", "tools")
    live.bad_bearer(world)
    for address in (*world.grpc, world.grpc[0]):
        live.watch(world, address)
    teams = [("games", "APP_MANAGER", 2.0, 240, 0.4), ("shop", "DEVELOPER", 0.9, 400, 0.3), ("tools", "DEVELOPER", 0.5, 150, 0.8)]
    threads = [threading.Thread(target=day.team, args=team) for team in teams] + [threading.Thread(target=day.lab)]
    for thread in threads:
        thread.start()
    try:
        for second, event in sorted(PLAN, key=lambda it: it[0]):
            day.over.wait(max(0.0, second - day.now()))
            print(f"{day.now():4.0f} s: {event.__name__}", flush=True)
            thread = threading.Thread(target=event, args=(day,))
            threads.append(thread)
            thread.start()
        day.over.wait(max(0.0, LENGTH - day.now()))
    finally:
        day.over.set()
        for thread in threads:
            thread.join()


def main() -> None:
    program, prometheus, out = sys.argv[1:]
    out = pathlib.Path(out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        world = live.World(program, prometheus, pathlib.Path(folder))
        world.tsdb = out / "tsdb"
        try:
            record(world, os.environ["P8BROKER_TEST_POSTGRES"])
            end = time.time()
        finally:
            world.end()
            shutil.copy(world.dir / "log", out / "log")
    (out / "record.json").write_text(json.dumps({"from": end - SHOWN, "to": end}))


if __name__ == "__main__":
    main()
