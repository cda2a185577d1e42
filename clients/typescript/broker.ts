/** Where a p8broker is and who asks it; what its errors say, and how long to wait after one. */

import { readFileSync } from "node:fs";
import { credentials, Metadata, status, type ServiceError } from "@grpc/grpc-js";
import type { Duration } from "./gen/google/protobuf/duration.js";
import { ErrorInfo, RetryInfo } from "./gen/google/rpc/error_details.js";
import { Status } from "./gen/google/rpc/status.js";
import { IssueTokenRequest, IssueTokenResponse, TokenServiceClient } from "./gen/p8broker/v1/token_service.js";

const REQUEST_TIMEOUT_MS = 10_000;
const FIRST_PAUSE_MS = 100;
export const LONGEST_PAUSE_MS = 10_000;
export const REFUSED_PAUSE_MS = 30_000;
export const LONGEST_TOLD_MS = 300_000; // a broker's mistake must not silence a client for a day
const REFUSALS = [
  status.PERMISSION_DENIED, status.INVALID_ARGUMENT, status.NOT_FOUND, status.UNIMPLEMENTED, status.UNAUTHENTICATED,
];
const OPTIONS = {
  "grpc.service_config": JSON.stringify({ loadBalancingConfig: [{ pick_first: { shuffleAddressList: true } }] }),
  "grpc.keepalive_time_ms": 20_000,
  "grpc.keepalive_timeout_ms": 10_000,
};

/** Why there is no token. `code` is the gRPC status; `reason` the broker's stable name of what is wrong, such as NO_POLICY,
 * or empty where the broker did not answer. */
export class BrokerError extends Error {
  constructor(message: string, readonly code: status, readonly reason = "", readonly toldMs?: number, cause?: unknown) {
    super(message, { cause });
  }

  /** Whether trying again soon would not help. */
  get refused(): boolean {
    return REFUSALS.includes(this.code);
  }

  static of(addr: string, error: ServiceError): BrokerError {
    const packed = error.metadata?.get("grpc-status-details-bin")[0];
    const details = packed ? Status.decode(packed as Buffer).details : [];
    const find = (name: string) => details.find((detail) => detail.typeUrl.endsWith(`/google.rpc.${name}`))?.value;
    const [retry, info] = [find("RetryInfo"), find("ErrorInfo")];
    const told = retry && millis(RetryInfo.decode(retry).retryDelay);
    if (info) {
      const { reason, metadata } = ErrorInfo.decode(info);
      const message = `the broker at ${addr} says ${reason} ${JSON.stringify(metadata)}: ${error.details}`;
      return new BrokerError(message, error.code, reason, told, error);
    }
    const hint = "is it there, and does it take this certificate?";
    const message = `no answer from the broker at ${addr} (${hint}): ${status[error.code]}: ${error.details}`;
    return new BrokerError(message, error.code, "", told, error);
  }
}

/** Where the broker is, and who asks: by a certificate and its key, or by a file with a trusted issuer's JWT. */
export interface Where {
  /** host:port; the name may stand for many replicas. */
  addr: string;
  /** File with the CA of the broker's certificate, PEM. */
  cacert: string;
  cert?: string;
  key?: string;
  bearerFile?: string;
  /** The longest pause after a refusal. */
  refusedPauseMs?: number;
}

export class Broker {
  constructor(readonly where: Where) {}

  /** A connection, and the metadata of a request. Throws for files that can't be used. */
  connect(): [TokenServiceClient, Metadata] {
    const { addr, cacert, cert, key, bearerFile } = this.where;
    const metadata = new Metadata();
    if (bearerFile) metadata.set("authorization", `Bearer ${readFileSync(bearerFile, "utf8").trim()}`);
    const read = (file?: string) => (file ? readFileSync(file) : null);
    try {
      const tls = credentials.createSsl(read(cacert), read(key), read(cert));
      return [new TokenServiceClient(addr, tls, OPTIONS), metadata];
    } catch (cause) {
      throw new Error(`CA ${cacert}, certificate ${cert} and key ${key} can't be used: ${cause}`, { cause });
    }
  }

  issue(request: IssueTokenRequest): Promise<IssueTokenResponse> {
    const [client, metadata] = this.connect();
    const answered = new Promise<IssueTokenResponse>((resolve, reject) => {
      client.issueToken(request, metadata, { deadline: Date.now() + REQUEST_TIMEOUT_MS }, (error, answer) =>
        error ? reject(BrokerError.of(this.where.addr, error)) : resolve(answer),
      );
    });
    return answered.finally(() => client.close());
  }

  /** How long to wait before the next try: exponential with full jitter, longer where waiting is idle, and never shorter
   * than the broker says. */
  pauseMs(error: unknown, failures: number): number {
    const { code, toldMs, refused } = error instanceof BrokerError ? error : new BrokerError("", status.UNKNOWN);
    // A certificate may have been replaced since: the first time, the next connection is made at once.
    const lasting = refused && (code !== status.UNAUTHENTICATED || failures > 0);
    if (lasting || (code === status.RESOURCE_EXHAUSTED && toldMs === undefined)) {
      return (this.where.refusedPauseMs ?? REFUSED_PAUSE_MS) * (0.5 + 0.5 * Math.random());
    }
    const most = Math.min(FIRST_PAUSE_MS * 2 ** failures, LONGEST_PAUSE_MS);
    return Math.min(toldMs ?? 0, LONGEST_TOLD_MS) + most * Math.random();
  }
}

export function millis(duration?: Duration): number {
  return duration ? Number(duration.seconds) * 1000 + duration.nanos / 1e6 : 0;
}
