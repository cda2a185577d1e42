/** A real broker on loopback for a test, ended by its own process. */

import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

export const CLIENT = "spiffe://acme.internal/ns/ci/sa/release-bot";

export function env(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: run tests/clients.sh test typescript`);
  return value;
}

/** Waits until something holds. */
export async function eventually(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  for (let tries = 0; tries < 2500; tries++) {
    if (await holds()) return;
    await sleep(10);
  }
  throw new Error(`never happened: ${what}`);
}

export class Playground {
  readonly dir = mkdtempSync(join(tmpdir(), "p8broker-"));
  addr = "127.0.0.1:0";
  #process?: ChildProcess;

  static async start(): Promise<Playground> {
    const playground = new Playground();
    await playground.up();
    playground.run("operator", "apply", "-f", env("P8BROKER_TEST_DOCUMENT"));
    return playground;
  }

  async up(): Promise<void> {
    const ready = join(this.dir, "ready.json");
    rmSync(ready, { force: true });
    const options = { stdio: "ignore" as const };
    this.#process = spawn(env("P8BROKER_TEST_BIN"), ["dev", "--dir", this.dir, "--grpc", this.addr], options);
    await eventually("the playground is ready", () => existsSync(ready));
    this.addr = JSON.parse(readFileSync(ready, "utf8")).grpc_addr;
  }

  async down(): Promise<void> {
    const process = this.#process;
    if (!process || process.exitCode !== null || process.signalCode !== null) return;
    const ended = once(process, "exit");
    process.kill("SIGKILL");
    await ended;
  }

  async end(): Promise<void> {
    await this.down();
    rmSync(this.dir, { recursive: true });
  }

  /** Where it is, for somebody with a certificate. */
  where(who: string) {
    const file = (name: string) => join(this.dir, name);
    const [cert, key] = [file(`${who}.pem`), file(`${who}-key.pem`)];
    return { addr: this.addr, cacert: file("ca.pem"), cert, key, refusedPauseMs: 200 };
  }

  /** Runs the command line as somebody. */
  run(who: string, ...args: string[]): string {
    const { addr, cacert, cert, key } = this.where(who);
    const connection = ["--addr", addr, "--cacert", cacert, "--cert", cert, "--key", key, "--output", "json"];
    const ran = spawnSync(env("P8BROKER_TEST_BIN"), [...connection, ...args], { encoding: "utf8" });
    if (ran.status !== 0) throw new Error(`${args.join(" ")}: ${ran.stderr}`);
    return ran.stdout;
  }

  /** How many rows of the audit have this outcome for the client. */
  audited(outcome: string): number {
    return this.run("operator", "audit", "list", "--client", CLIENT).split(`"outcome":"${outcome}"`).length - 1;
  }
}
