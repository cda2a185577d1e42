"""Keeps a fresh App Store Connect token of a p8broker at hand.

One thread asks for tokens: the first at once, each next one before half of its life is over, one at a time for all callers.
Another hears the broker's watch, and drops what is revoked. Each request and each watch has a connection of its own, for
which the files are read anew: replaced certificates and moved replicas are found without more ado.
"""

import logging
import random
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

import grpc
from broker import LONGEST_PAUSE, Broker, BrokerError
from p8broker.v1 import token_service_pb2 as pb
from p8broker.v1.token_service_pb2_grpc import TokenServiceStub

SILENCE = 40.0  # the longest of a watch; the broker says something every 15 s

log = logging.getLogger(__name__)


@dataclass
class Held:
    jwt: str
    id: str
    refresh: float  # on the monotonic clock, as is expiry: a wrong wall clock does no harm
    expiry: float


class TokenSource:
    """Keeps one token, for any number of threads. Raises OSError for files that can't be used; a broker that is away is no
    error. Close it, or use it in a `with` statement."""

    def __init__(self, broker: Broker, app_group: str, role: str, ttl: timedelta | None = None, scope: tuple[str, ...] = ()):
        broker.check()
        self._broker = broker
        self._request = pb.IssueTokenRequest(app_group=app_group, role=f"ROLE_{role}", ttl=ttl, scope=scope)
        self._changed = threading.Condition()  # guards what follows
        self._held: Held | None = None
        self._error: Exception | None = None  # why the last request brought none
        self._news = 0  # counts what was heard: an answer asked for before may hold a revoked token
        self._from = 0  # the revision that the next watch starts at
        self._watch: grpc.Future | None = None
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._keep, self._listen)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "TokenSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
            if self._watch:
                self._watch.cancel()
        for thread in self._threads:
            thread.join()

    def token(self, timeout: float = 10.0) -> str:
        """A valid JWT: at once where there is one, else as soon as there is one. Raises BrokerError or OSError where the
        broker refuses, and TimeoutError, caused by the last failure, where there is none in time."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                if self._held and time.monotonic() < self._held.expiry:
                    return self._held.jwt
                if isinstance(self._error, BrokerError) and self._error.refused:
                    raise self._error
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"no token is valid, and there is no other yet: {self._error}") from self._error

    def unauthorized(self, jwt: str) -> None:
        """Apple answered 401 to this token: a new one is asked for, once for each token."""
        with self._changed:
            if self._held and self._held.jwt == jwt:
                self._held.refresh = 0
                self._changed.notify_all()

    def _drop(self, ids: list[str] | None) -> None:
        """Forgets the token if it is one of these, or whatever it is; the keeper asks anew."""
        with self._changed:
            self._news += 1
            if self._held and (ids is None or self._held.id in ids):
                self._held = None
            self._changed.notify_all()

    def _keep(self) -> None:
        failures = 0
        while not self._closed.is_set():
            with self._changed:
                due = self._held.refresh - time.monotonic() if self._held else 0
                if due > 0:
                    self._changed.wait(due)
                    continue
            try:
                self._issue()
                failures = 0
            except (BrokerError, OSError) as error:
                log.warning("no new token: %s", error)
                self._closed.wait(self._broker.pause(error, failures))
                failures += 1

    def _issue(self) -> None:
        with self._changed:
            # Fresh, as the broker hands out the last one again until half of its life is over.
            news, self._request.fresh = self._news, self._held is not None
        asked = time.monotonic()  # before it is asked for: a slow network only shortens a life
        try:
            answer, error = self._broker.issue(self._request), None
        except (BrokerError, OSError) as failure:
            answer, error = None, failure
        with self._changed:
            if answer and self._news != news:
                raise BrokerError("something was revoked while the token was on its way", grpc.StatusCode.ABORTED)
            self._error = error
            if answer:
                life = answer.expires_in.ToTimedelta().total_seconds()
                refresh = asked + life * random.uniform(0.40, 0.48)
                # So that what is sent with it arrives in time.
                self._held = Held(answer.token, answer.token_id, refresh, asked + life - min(5, life / 10))
                self._from = self._from or answer.revision
            self._changed.notify_all()
        if error:
            raise error

    def _listen(self) -> None:
        """Keeps a watch open, from the revision of the first token on."""
        with self._changed:
            self._changed.wait_for(lambda: self._from or self._closed.is_set())
        failures = 0
        while not self._closed.is_set():
            opened = time.monotonic()
            try:
                self._hear()
            except (BrokerError, OSError) as error:
                if getattr(error, "reason", "") == "CLIENT_REVOKED":
                    self._drop(None)
                if time.monotonic() - opened > LONGEST_PAUSE:
                    failures = 0  # a watch that stood for a while is no failure like those before it
                self._closed.wait(self._broker.pause(error, failures))
                failures += 1

    def _hear(self) -> None:
        """Hears one stream to its end."""
        channel, metadata = self._broker.connect()
        with channel:
            with self._changed:
                call = TokenServiceStub(channel).Watch(pb.WatchRequest(from_revision=self._from), metadata=metadata)
                self._watch = call
                if self._closed.is_set():
                    call.cancel()
            alarm = threading.Timer(SILENCE, call.cancel)
            alarm.start()
            try:
                for message in call:
                    alarm.cancel()
                    alarm = threading.Timer(SILENCE, call.cancel)
                    alarm.start()
                    match message.WhichOneof("event"):
                        case "revoked":
                            self._drop(list(message.revoked.token_ids))
                        case "resynchronise":  # something may be missing
                            self._drop(None)
                        case "heartbeat":  # all up to here has been told
                            with self._changed:
                                self._from = message.revision
                raise BrokerError("the broker ended the watch", grpc.StatusCode.UNAVAILABLE)
            except grpc.RpcError as error:
                raise BrokerError.of(self._broker.addr, error) from error
            finally:
                alarm.cancel()
