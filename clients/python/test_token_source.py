"""The token source against real brokers."""

import hashlib
import logging
import os
import threading
import time
import unittest
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
from broker import LONGEST_PAUSE, LONGEST_TOLD, REFUSED_PAUSE, Broker, BrokerError
from p8broker.v1 import token_service_pb2 as pb
from playground import CLIENT, Playground, eventually
from token_source import TokenSource

logging.disable()  # what fails here is meant to


def id_of(jwt: str) -> str:
    """A token's id: a digest of header and payload."""
    return hashlib.sha256(jwt.rpartition(".")[0].encode()).hexdigest()


class TokenSourceTest(unittest.TestCase):
    def setUp(self) -> None:
        self.playground = self.start()

    def start(self) -> Playground:
        playground = Playground()
        self.addCleanup(playground.end)
        return playground

    def keep(self, broker: Broker, ttl: timedelta | None = None) -> TokenSource:
        return self.enterContext(TokenSource(broker, "games", "APP_MANAGER", ttl))

    def revoke(self, jwt: str) -> None:
        self.playground.run("operator", "revoke", "token", id_of(jwt), "--reason", "test", "--yes")

    def reason(self, source: TokenSource) -> str:
        try:
            source.token()
        except BrokerError as error:
            return error.reason
        return ""

    def test_many_callers_share_one_request_and_its_token(self) -> None:
        source = self.keep(self.playground.broker("client"))
        got: list[str] = []
        callers = [threading.Thread(target=lambda: got.append(source.token())) for _ in range(50)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        self.assertEqual(got, [source.token()] * 50)
        self.assertEqual((self.playground.audited("SIGNED"), self.playground.audited("REUSED")), (1, 0))
        other = self.keep(self.playground.broker("client"))
        self.assertEqual(other.token(), source.token(), "the broker hands it to a second process, too")

    def test_a_token_is_replaced_before_half_of_its_life_is_over(self) -> None:
        started = time.monotonic()
        source = self.keep(self.playground.broker("client"), timedelta(seconds=30))
        first = source.token()
        eventually("there is another token", lambda: source.token() != first)
        self.assertGreaterEqual(time.monotonic() - started, 12)

    def test_a_revoked_token_is_dropped_and_replaced(self) -> None:
        source = self.keep(self.playground.broker("client"))
        first = source.token()
        self.revoke(first)
        eventually("there is another token", lambda: source.token() != first)

    def test_a_token_that_apple_refuses_is_replaced_once(self) -> None:
        source = self.keep(self.playground.broker("client"))
        first = source.token()
        for _ in range(100):
            source.unauthorized(first)
        eventually("there is another token", lambda: source.token() != first)
        for _ in range(100):
            source.unauthorized(first)
        source.token()
        self.assertEqual(self.playground.audited("SIGNED"), 2)

    def test_a_revoked_client_has_no_token_until_it_is_reinstated(self) -> None:
        source = self.keep(self.playground.broker("client"))
        first = source.token()
        self.playground.run("operator", "revoke", "client", CLIENT, "--reason", "test", "--yes")
        eventually("the source says so", lambda: self.reason(source) == "CLIENT_REVOKED")
        self.playground.run("operator", "reinstate", "client", CLIENT, "--reason", "test")
        eventually("it is no longer refused", lambda: self.reason(source) == "")
        self.assertNotEqual(source.token(), first)

    def test_a_broker_that_is_away_takes_no_token_away_and_is_found_again(self) -> None:
        source = self.keep(self.playground.broker("client"))
        first = source.token()
        self.playground.down()
        source.unauthorized(first)
        self.assertEqual(source.token(), first)
        other = self.keep(self.playground.broker("client"))
        with self.assertRaisesRegex(TimeoutError, f"no answer from the broker at {self.playground.addr}.*refused"):
            other.token(timeout=1)
        self.playground.up()
        other.token()
        eventually("the first one has another token", lambda: source.token() != first)
        # Its next refresh is minutes away: only a watch that stands again can tell.
        last = source.token()
        self.revoke(last)
        eventually("its watch stands again", lambda: source.token() != last)

    def test_without_a_policy_the_refusal_names_the_decision(self) -> None:
        with self.assertRaisesRegex(BrokerError, "NO_POLICY.*decision_id") as raised:
            self.keep(self.playground.broker("stranger")).token()
        self.assertEqual((raised.exception.reason, raised.exception.refused), ("NO_POLICY", True))

    def test_a_bad_certificate_is_named(self) -> None:
        mine, foreign = self.playground.broker("client"), self.start().broker("client")
        with self.assertRaisesRegex(TimeoutError, "does it take this certificate?"):
            self.keep(replace(mine, cert=foreign.cert, key=foreign.key)).token(timeout=1)
        with self.assertRaisesRegex(TimeoutError, "handshake failed"):
            self.keep(replace(mine, cacert=foreign.cacert)).token(timeout=1)
        with self.assertRaisesRegex(OSError, "nothing.pem"):
            TokenSource(replace(mine, key="nothing.pem"), "games", "APP_MANAGER")
        with self.assertRaisesRegex(OSError, "KEY_VALUES_MISMATCH"):
            TokenSource(replace(mine, key=foreign.key), "games", "APP_MANAGER")

    def test_a_jobs_token_names_the_caller_and_a_quota_says_when_to_come_back(self) -> None:
        job = replace(self.playground.broker("client"), cert="", key="", bearer_file=os.environ["P8BROKER_TEST_JWT"])
        source = self.keep(job)
        first = source.token()
        # The policy has one token an hour: a second one is refused, with when its hour ends.
        with self.assertRaisesRegex(BrokerError, "QUOTA_EXCEEDED") as raised:
            job.issue(pb.IssueTokenRequest(app_group="games", role="ROLE_APP_MANAGER", fresh=True))
        self.assertTrue(1 <= job.pause(raised.exception, 0) <= LONGEST_TOLD + LONGEST_PAUSE)
        self.assertEqual(source.token(), first)
        bad = self.playground.dir / "bad.jwt"
        Path(bad).write_text("no token")
        self.assertRegex(self.reason(self.keep(replace(job, bearer_file=str(bad)))), "BEARER_")


class PauseTest(unittest.TestCase):
    def test_pauses_double_and_are_random(self) -> None:
        broker = Broker("", "")
        away = BrokerError("away", grpc.StatusCode.UNAVAILABLE)
        for failures, most in enumerate([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]):
            waits = [broker.pause(away, failures) for _ in range(500)]
            self.assertLessEqual(max(waits), most)
            self.assertLess(min(waits), most / 4)
            self.assertGreater(max(waits), most * 3 / 4)
        refusal = BrokerError("no", grpc.StatusCode.PERMISSION_DENIED)
        self.assertGreaterEqual(broker.pause(refusal, 0), REFUSED_PAUSE / 2)
