//! Issuing over mutual TLS with durable audit on SQLite, beside a bare tonic service that only signs, in the same run.
//!
//! Server and clients share this process and its cores, for both. Rounds alternate; figures are medians over rounds, and
//! what counts is the ratio. `P8BROKER_BENCH_SECONDS` sets the length of a round (default 2).
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a benchmark")]
#![expect(clippy::print_stdout, unreachable_pub, dead_code, reason = "a benchmark that uses the tests' harness")]

#[path = "../tests/it/harness/mod.rs"]
mod harness;

mod bare;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use bare::{Served, beside, connect, median};
use harness::*;
use p8broker::clock::Stopwatch;

const IN_FLIGHT: &[usize] = &[1, 8, 64];

async fn issuing() {
    let seconds = std::env::var("P8BROKER_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let mut broker = Broker::start().await;
    let bare = Served::start(&broker).await;
    let target = broker.target(CLIENT);
    let bare_target = p8broker::client::Target { addr: bare.addr.clone(), ..target.clone() };
    println!("issuing over mTLS (TLS 1.3), server and client in one process, 3 rounds of {seconds} s, medians");
    println!("{:>9}  {:>22}  {:>28}  {:>28}", "", "bare, signs only", "fresh, durable audit", "reused, durable audit");
    println!(
        "{:>9}  {:>8} {:>6} {:>6}  {:>8} {:>6} {:>6} {:>5}  {:>8} {:>6} {:>6} {:>5}",
        "in flight", "/s", "p50 ms", "p99 ms", "/s", "p50 ms", "p99 ms", "ratio", "/s", "p50 ms", "p99 ms", "ratio"
    );
    for &in_flight in IN_FLIGHT {
        let count = in_flight.min(8);
        let (ours, theirs) = (connect(&target, count).await, connect(&bare_target, count).await);
        println!("{in_flight:>9}  {}", beside(&ours, &theirs, in_flight, seconds).await);
    }
    bare.stop().await;
    broker.stop().await;
}

/// `p8broker dev` as a process of its own.
fn spawn(dir: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p8broker"));
    command
        .args(["dev", "--dir"])
        .arg(dir)
        .env("P8BROKER_LIMITS__TOKENS_PER_SECOND", "1000000")
        .env("P8BROKER_LIMITS__REQUESTS_PER_CONNECTION_PER_SECOND", "1000000")
        .env("P8BROKER_LIMITS__SIGNATURES_PER_SECOND", "1000000")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn resident_mib(child: &Child) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn target_of(dir: &Path) -> p8broker::client::Target {
    let ready: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("ready.json")).unwrap()).unwrap();
    let addr = ready["grpc_addr"].as_str().unwrap().to_owned();
    let (cacert, cert, key) = (dir.join("ca.pem"), dir.join("client.pem"), dir.join("client-key.pem"));
    p8broker::client::Target::certified(addr, cacert, cert, key)
}

async fn process() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut starts = Vec::new();
    // The first start makes the vault; those after it are what is measured.
    for nth in 0..6 {
        let _ = std::fs::remove_file(dir.path().join("ready.json"));
        let watch = Stopwatch::start();
        let mut child = spawn(dir.path());
        eventually("ready", async || dir.path().join("ready.json").exists()).await;
        let mut client = Client::new(target_of(dir.path()).connect().await.unwrap());
        client.issue(ask()).await.unwrap();
        if nth > 0 {
            starts.push(watch.seconds());
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    println!(
        "\nfrom the start of the process to the first token, read by a poll of 20 ms: {:.0} ms",
        median(starts) * 1e3
    );
    let _ = std::fs::remove_file(dir.path().join("ready.json"));
    let mut child = spawn(dir.path());
    eventually("ready", async || dir.path().join("ready.json").exists()).await;
    let idle = resident_mib(&child);
    let mut clients = connect(&target_of(dir.path()), 1000).await;
    for client in &mut clients {
        client.issue(ask()).await.unwrap();
    }
    println!(
        "resident memory: idle {idle:.1} MiB, with 1,000 connections that each got a token {:.1} MiB",
        resident_mib(&child)
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(issuing());
    runtime.block_on(process());
}
