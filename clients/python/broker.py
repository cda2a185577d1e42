"""Where a p8broker is and who asks it; what its errors say, and how long to wait after one."""

import json
import random
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status
from p8broker.v1 import token_service_pb2 as pb
from p8broker.v1.token_service_pb2_grpc import TokenServiceStub

REQUEST_TIMEOUT = 10.0
FIRST_PAUSE, LONGEST_PAUSE, REFUSED_PAUSE = 0.1, 10.0, 30.0
LONGEST_TOLD = 300.0  # a broker's mistake must not silence a client for a day
REFUSALS = {
    grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED,
}  # fmt: skip
OPTIONS = [
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": True}}]})),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


class BrokerError(Exception):
    """Why there is no token. `code` is the gRPC status; `reason` the broker's stable name of what is wrong, such as
    NO_POLICY, or empty where the broker did not answer."""

    def __init__(self, message: str, code: grpc.StatusCode, reason: str = "", told: float | None = None):
        super().__init__(message)
        self.code, self.reason, self.told = code, reason, told

    @property
    def refused(self) -> bool:
        """Whether trying again soon would not help."""
        return self.code in REFUSALS

    @classmethod
    def of(cls, addr: str, error: grpc.RpcError) -> "BrokerError":
        status, info, retry = rpc_status.from_call(error), ErrorInfo(), RetryInfo()
        details: list[Message] = list(status.details) if status else []
        told = any(detail.Unpack(retry) for detail in details)
        if any(detail.Unpack(info) for detail in details):
            message = f"the broker at {addr} says {info.reason} {dict(info.metadata)}: {error.details()}"
        else:
            asked = "is it there, and does it take this certificate?"
            message = f"no answer from the broker at {addr} ({asked}): {error.code().name}: {error.details()}"
        return cls(message, error.code(), info.reason, retry.retry_delay.ToTimedelta().total_seconds() if told else None)


@dataclass(frozen=True)
class Broker:
    """Where the broker is, and who asks: by a certificate and its key, or by a file with a trusted issuer's JWT."""

    addr: str  # host:port; the name may stand for many replicas
    cacert: str  # the CA of the broker's certificate, PEM
    cert: str = ""
    key: str = ""
    bearer_file: str = ""
    refused_pause: float = REFUSED_PAUSE  # the longest pause after a refusal, in seconds

    def check(self) -> None:
        """Raises OSError (ssl.SSLError is one) for files that can't be used."""
        for file in filter(None, (self.cacert, self.cert, self.key, self.bearer_file)):
            Path(file).read_bytes()  # names the file, which ssl does not
        context = ssl.create_default_context(cafile=self.cacert)
        if self.cert:
            context.load_cert_chain(self.cert, self.key)

    def connect(self) -> tuple[grpc.Channel, list[tuple[str, str]]]:
        """A connection, and the metadata of a request."""
        read = lambda file: Path(file).read_bytes() if file else None  # noqa: E731
        metadata = []
        if self.bearer_file:
            metadata.append(("authorization", f"Bearer {Path(self.bearer_file).read_text().strip()}"))
        credentials = grpc.ssl_channel_credentials(read(self.cacert), read(self.key), read(self.cert))
        return grpc.secure_channel(self.addr, credentials, OPTIONS), metadata

    def issue(self, request: pb.IssueTokenRequest) -> pb.IssueTokenResponse:
        channel, metadata = self.connect()
        with channel:
            try:
                return TokenServiceStub(channel).IssueToken(request, timeout=REQUEST_TIMEOUT, metadata=metadata)
            except grpc.RpcError as error:
                raise BrokerError.of(self.addr, error) from error

    def pause(self, error: Exception, failures: int) -> float:
        """How long to wait before the next try: exponential with full jitter, longer where waiting is idle, and never
        shorter than the broker says."""
        told = getattr(error, "told", None)
        code = getattr(error, "code", None)
        # A certificate may have been replaced since: the first time, the next connection is made at once.
        lasting = code in REFUSALS and (code != grpc.StatusCode.UNAUTHENTICATED or failures > 0)
        if lasting or (code == grpc.StatusCode.RESOURCE_EXHAUSTED and told is None):
            return self.refused_pause * random.uniform(0.5, 1)
        return min(told or 0, LONGEST_TOLD) + random.uniform(0, min(FIRST_PAUSE * 2 ** min(failures, 10), LONGEST_PAUSE))
