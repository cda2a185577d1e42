/** The token source against real brokers. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it, type TestContext } from "node:test";
import { status } from "@grpc/grpc-js";
import { Broker, BrokerError, LONGEST_PAUSE_MS, LONGEST_TOLD_MS, REFUSED_PAUSE_MS, type Where } from "./broker.js";
import { IssueTokenRequest } from "./gen/p8broker/v1/token_service.js";
import { Role } from "./gen/p8broker/v1/common.js";
import { CLIENT, env, eventually, Playground } from "./playground.js";
import { TokenSource } from "./token_source.js";

const GAMES = { appGroup: "games", role: Role.ROLE_APP_MANAGER };

async function start(t: TestContext): Promise<Playground> {
  const playground = await Playground.start();
  t.after(() => playground.end());
  return playground;
}

function keep(t: TestContext, where: Where, ask: Partial<IssueTokenRequest> = GAMES): TokenSource {
  const source = new TokenSource(where, ask);
  t.after(() => source.close());
  return source;
}

/** A token's id: a digest of header and payload. */
function idOf(jwt: string): string {
  return createHash("sha256").update(jwt.slice(0, jwt.lastIndexOf("."))).digest("hex");
}

async function reasonOf(source: TokenSource): Promise<string> {
  const error = await source.token().then(() => undefined, (error: unknown) => error);
  if (error !== undefined && !(error instanceof BrokerError)) throw error;
  return error?.reason ?? "";
}

function revoke(playground: Playground, jwt: string): void {
  playground.run("operator", "revoke", "token", idOf(jwt), "--reason", "test", "--yes");
}

describe("a token source", { concurrency: 4, timeout: 60_000 }, () => {
  it("replaces a token before half of its life is over", async (t) => {
    const p = await start(t);
    const started = performance.now();
    const source = keep(t, p.where("client"), { ...GAMES, ttl: { seconds: 30n, nanos: 0 } });
    const first = await source.token();
    await eventually("there is another token", async () => (await source.token()) !== first);
    assert.ok(performance.now() - started >= 12_000);
  });

  it("has many callers share one request and its token", async (t) => {
    const p = await start(t);
    const source = keep(t, p.where("client"));
    const got = await Promise.all(Array.from({ length: 50 }, () => source.token()));
    assert.deepEqual(got, Array(50).fill(await source.token()));
    assert.deepEqual([p.audited("SIGNED"), p.audited("REUSED")], [1, 0]);
    const other = keep(t, p.where("client"));
    assert.equal(await other.token(), got[0], "the broker hands it to a second process, too");
  });

  it("drops a revoked token and has another", async (t) => {
    const p = await start(t);
    const source = keep(t, p.where("client"));
    const first = await source.token();
    revoke(p, first);
    await eventually("there is another token", async () => (await source.token()) !== first);
  });

  it("replaces a token that Apple refuses, once", async (t) => {
    const p = await start(t);
    const source = keep(t, p.where("client"));
    const first = await source.token();
    for (let i = 0; i < 100; i++) source.unauthorized(first);
    await eventually("there is another token", async () => (await source.token()) !== first);
    for (let i = 0; i < 100; i++) source.unauthorized(first);
    await source.token();
    assert.equal(p.audited("SIGNED"), 2);
  });

  it("has no token for a revoked client until it is reinstated", async (t) => {
    const p = await start(t);
    const source = keep(t, p.where("client"));
    const first = await source.token();
    p.run("operator", "revoke", "client", CLIENT, "--reason", "test", "--yes");
    await eventually("the source says so", async () => (await reasonOf(source)) === "CLIENT_REVOKED");
    p.run("operator", "reinstate", "client", CLIENT, "--reason", "test");
    await eventually("it is no longer refused", async () => (await reasonOf(source)) === "");
    assert.notEqual(await source.token(), first);
  });

  it("keeps its token while the broker is away, and finds it again", async (t) => {
    const p = await start(t);
    const source = keep(t, p.where("client"));
    const first = await source.token();
    await p.down();
    source.unauthorized(first);
    assert.equal(await source.token(), first);
    const other = keep(t, p.where("client"));
    await assert.rejects(other.token(1000), new RegExp(`no answer from the broker at ${p.addr}.*ECONNREFUSED`));
    await p.up();
    await other.token();
    await eventually("the first one has another token", async () => (await source.token()) !== first);
    // Its next refresh is minutes away: only a watch that stands again can tell.
    const last = await source.token();
    revoke(p, last);
    await eventually("its watch stands again", async () => (await source.token()) !== last);
  });

  it("names the decision where there is no policy", async (t) => {
    const p = await start(t);
    await assert.rejects(keep(t, p.where("stranger")).token(), (error: BrokerError) => {
      assert.match(error.message, /NO_POLICY.*decision_id/);
      return error.reason === "NO_POLICY" && error.refused;
    });
  });

  it("names a bad certificate", async (t) => {
    const p = await start(t);
    const [mine, foreign] = [p.where("client"), (await start(t)).where("client")];
    await assert.rejects(
      keep(t, { ...mine, cert: foreign.cert, key: foreign.key }).token(1000),
      /does it take this certificate\?/,
    );
    await assert.rejects(keep(t, { ...mine, cacert: foreign.cacert }).token(1000), /no answer .* certificate signature failure/);
    assert.throws(() => new TokenSource({ ...mine, key: "nothing.pem" }, GAMES), /nothing\.pem/);
    assert.throws(() => new TokenSource({ ...mine, key: foreign.key }, GAMES), /key values mismatch/);
  });

  it("is a job by its token, and is told by a quota when to come back", async (t) => {
    const p = await start(t);
    const job: Where = { ...p.where("client"), cert: undefined, key: undefined, bearerFile: env("P8BROKER_TEST_JWT") };
    const source = keep(t, job);
    const first = await source.token();
    // The policy has one token an hour: a second one is refused, with when its hour ends.
    const broker = new Broker(job);
    await assert.rejects(broker.issue(IssueTokenRequest.fromPartial({ ...GAMES, fresh: true })), (error: BrokerError) => {
      const wait = broker.pauseMs(error, 0);
      return error.reason === "QUOTA_EXCEEDED" && wait >= 1000 && wait <= LONGEST_TOLD_MS + LONGEST_PAUSE_MS;
    });
    assert.equal(await source.token(), first);
    const bad = join(p.dir, "bad.jwt");
    writeFileSync(bad, "no token");
    assert.match(await reasonOf(keep(t, { ...job, bearerFile: bad })), /^BEARER_/);
  });

  it("pauses twice as long each time, at random", () => {
    const broker = new Broker({ addr: "", cacert: "" });
    const away = new BrokerError("away", status.UNAVAILABLE);
    for (const [failures, most] of [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000].entries()) {
      const waits = Array.from({ length: 500 }, () => broker.pauseMs(away, failures));
      assert.ok(Math.max(...waits) <= most && Math.min(...waits) < most / 4 && Math.max(...waits) > (most * 3) / 4);
    }
    assert.ok(broker.pauseMs(new BrokerError("no", status.PERMISSION_DENIED), 0) >= REFUSED_PAUSE_MS / 2);
  });
});
