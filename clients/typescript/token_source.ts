/**
 * Keeps a fresh App Store Connect token of a p8broker at hand.
 *
 * One loop asks for tokens: the first at once, each next one before half of its life is over, one at a time for all callers.
 * Another hears the broker's watch, and drops what is revoked. Each request and each watch has a connection of its own, for
 * which the files are read anew: replaced certificates and moved replicas are found without more ado.
 */

import { EventEmitter, once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { status, type ClientReadableStream, type ServiceError } from "@grpc/grpc-js";
import { Broker, BrokerError, LONGEST_PAUSE_MS, millis, type Where } from "./broker.js";
import { IssueTokenRequest, WatchResponse, type IssueTokenResponse } from "./gen/p8broker/v1/token_service.js";

const SILENCE_MS = 40_000; // the longest of a watch; the broker says something every 15 s

interface Held {
  jwt: string;
  id: string;
  refresh: number; // on the monotonic clock, as is expiry: a wrong wall clock does no harm
  expiry: number;
}

/** Keeps one token. Close it, or the process goes on. */
export class TokenSource {
  readonly #broker: Broker;
  readonly #request: IssueTokenRequest;
  readonly #closed = new AbortController();
  readonly #events = new EventEmitter().setMaxListeners(0);
  #held?: Held;
  #error?: unknown; // why the last request brought none
  #news = 0; // counts what was heard: an answer asked for before may hold a revoked token
  #from = 0n; // the revision that the next watch starts at
  #watch?: ClientReadableStream<WatchResponse>;
  #wake = () => {};

  /** Throws for files that can't be used; a broker that is away is no error. Hears of each failed request, if asked to. */
  constructor(where: Where, ask: Partial<IssueTokenRequest>, private readonly onFailure: (error: unknown) => void = () => {}) {
    this.#broker = new Broker(where);
    this.#request = IssueTokenRequest.fromPartial(ask);
    this.#broker.connect()[0].close(); // sends nothing
    void this.#keep();
    void this.#listen();
  }

  close(): void {
    this.#closed.abort();
    this.#watch?.cancel();
    this.#wake();
    this.#events.emit("ended");
  }

  /** A valid JWT: at once where there is one, else as soon as there is one. Rejects where the broker refuses, or where there
   * is none in time; `cause` is the last failure. */
  async token(timeoutMs = 10_000): Promise<string> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      if (this.#held && performance.now() < this.#held.expiry) return this.#held.jwt;
      if (this.#error instanceof BrokerError && this.#error.refused) throw this.#error;
      const left = deadline - performance.now();
      if (left > 0 && !this.#closed.signal.aborted) {
        await once(this.#events, "ended", { signal: AbortSignal.timeout(Math.ceil(left)) }).catch(() => {});
      } else {
        throw new Error(`no token is valid, and there is no other yet: ${this.#error}`, { cause: this.#error });
      }
    }
  }

  /** Apple answered 401 to this token: a new one is asked for, once for each token. */
  unauthorized(jwt: string): void {
    if (this.#held?.jwt === jwt) this.#held.refresh = 0;
    this.#wake();
  }

  /** Forgets the token if it is meant; the keeper asks anew. */
  #drop(meant: (id: string) => boolean): void {
    this.#news += 1;
    if (this.#held && meant(this.#held.id)) this.#held = undefined;
    this.#wake();
  }

  async #keep(): Promise<void> {
    for (let failures = 0; !this.#closed.signal.aborted; ) {
      const due = this.#held ? this.#held.refresh - performance.now() : 0;
      if (due > 0) {
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, due);
          this.#wake = () => (clearTimeout(timer), resolve());
        });
        continue;
      }
      try {
        await this.#issue();
        failures = 0;
      } catch (error) {
        this.onFailure(error);
        await this.#pause(error, failures++);
      }
    }
  }

  async #issue(): Promise<void> {
    // Fresh, as the broker hands out the last one again until half of its life is over.
    const [news, fresh] = [this.#news, this.#held !== undefined];
    const asked = performance.now(); // before it is asked for: a slow network only shortens a life
    let answer: IssueTokenResponse;
    try {
      answer = await this.#broker.issue({ ...this.#request, fresh });
    } catch (error) {
      this.#error = error;
      this.#events.emit("ended");
      throw error;
    }
    if (this.#news !== news) {
      throw new BrokerError("something was revoked while the token was on its way", status.ABORTED);
    }
    const life = millis(answer.expiresIn);
    this.#held = {
      jwt: answer.token,
      id: answer.tokenId,
      refresh: asked + life * (0.4 + 0.08 * Math.random()),
      expiry: asked + life - Math.min(5000, life / 10), // so that what is sent with it arrives in time
    };
    this.#error = undefined;
    this.#from ||= answer.revision;
    this.#events.emit("ended");
  }

  /** Keeps a watch open, from the revision of the first token on. */
  async #listen(): Promise<void> {
    while (!this.#from && !this.#closed.signal.aborted) await once(this.#events, "ended");
    for (let failures = 0; !this.#closed.signal.aborted; ) {
      const opened = performance.now();
      const error = await this.#hear().catch((error: unknown) => error);
      if (error instanceof BrokerError && error.reason === "CLIENT_REVOKED") this.#drop(() => true);
      if (performance.now() - opened > LONGEST_PAUSE_MS) failures = 0; // one that stood is no failure like those before it
      await this.#pause(error, failures++);
    }
  }

  /** Hears one stream to its end, which is always a failure. */
  async #hear(): Promise<never> {
    const [client, metadata] = this.#broker.connect();
    const stream = (this.#watch = client.watch({ fromRevision: this.#from }, metadata));
    const alarm = setTimeout(() => stream.cancel(), SILENCE_MS);
    try {
      for await (const { event, revision } of stream as AsyncIterable<WatchResponse>) {
        alarm.refresh();
        if (event?.$case === "revoked") this.#drop((id) => event.revoked.tokenIds.includes(id));
        else if (event?.$case === "resynchronise") this.#drop(() => true); // something may be missing
        else if (event?.$case === "heartbeat") this.#from = revision; // all up to here has been told
      }
      throw new BrokerError("the broker ended the watch", status.UNAVAILABLE);
    } catch (error) {
      throw error instanceof BrokerError ? error : BrokerError.of(this.#broker.where.addr, error as ServiceError);
    } finally {
      clearTimeout(alarm);
      client.close();
    }
  }

  async #pause(error: unknown, failures: number): Promise<void> {
    await sleep(this.#broker.pauseMs(error, failures), undefined, { signal: this.#closed.signal }).catch(() => {});
  }
}
