"""A real broker on loopback for a test, ended by its own process."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from broker import Broker

CLIENT = "spiffe://acme.internal/ns/ci/sa/release-bot"
PROGRAM = os.environ["P8BROKER_TEST_BIN"]


def eventually(what: str, holds: Callable[[], bool]) -> None:
    """Waits until something holds."""
    for _ in range(2500):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError(f"never happened: {what}")


class Playground:
    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.dir = Path(self.folder.name)
        self.addr = "127.0.0.1:0"
        self.up()
        self.run("operator", "apply", "-f", os.environ["P8BROKER_TEST_DOCUMENT"])

    def up(self) -> None:
        ready = self.dir / "ready.json"
        ready.unlink(missing_ok=True)
        arguments = [PROGRAM, "dev", "--dir", str(self.dir), "--grpc", self.addr]
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually("the playground is ready", ready.exists)
        self.addr = json.loads(ready.read_text())["grpc_addr"]

    def down(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.down()
        self.folder.cleanup()

    def broker(self, who: str) -> Broker:
        """Where it is, for somebody with a certificate."""
        file = lambda name: str(self.dir / name)  # noqa: E731
        return Broker(self.addr, file("ca.pem"), file(f"{who}.pem"), file(f"{who}-key.pem"), refused_pause=0.2)

    def run(self, who: str, *arguments: str) -> str:
        """Runs the command line as somebody."""
        b = self.broker(who)
        connection = ["--addr", b.addr, "--cacert", b.cacert, "--cert", b.cert, "--key", b.key, "--output", "json"]
        ran = subprocess.run([PROGRAM, *connection, *arguments], capture_output=True, text=True)
        assert ran.returncode == 0, f"{arguments}: {ran.stderr}"
        return ran.stdout

    def audited(self, outcome: str) -> int:
        """How many rows of the audit have this outcome for the client."""
        rows = self.run("operator", "audit", "list", "--client", CLIENT)
        return rows.count(f'"outcome":"{outcome}"')
