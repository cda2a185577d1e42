//! How long until those who watch are told: one client, idle; the last of a thousand on three replicas, idle and under load,
//! beside a bare server that pushes one message to a thousand streams; and what a watch takes of memory.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use p8broker::client::Target;
use p8broker::clock::Stopwatch;
use p8broker::grpc::proto::{self, TargetKind, watch_response::Event};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Streaming;

use crate::bare::{Served, connect, median, percentiles};
use crate::harness::fleet::{Cluster, in_step};
use crate::harness::*;

const WATCHES: usize = 1000;
/// Clients among which they are spread, each with one connection: fewer than the 64 watches that one client may have.
const CLIENTS: usize = 20;
const ROUNDS: usize = 15;
const POLICY: &str = "games-watch";

fn watcher(nth: usize) -> String {
    format!("spiffe://acme.internal/ns/ci/sa/release-watcher-{nth}")
}

/// Reads a stream and tells when something other than a heartbeat came; of a bare one, when anything came.
async fn read(mut stream: Streaming<proto::WatchResponse>, told: mpsc::UnboundedSender<()>, bare: bool) {
    while let Ok(Some(answer)) = stream.message().await {
        if (bare && answer.revision > 0) || matches!(answer.event, Some(Event::Revoked(_))) {
            let _ = told.send(());
        }
    }
}

async fn open(
    target: impl Fn(usize) -> Target,
    count: usize,
    bare: bool,
) -> (JoinSet<()>, mpsc::UnboundedReceiver<()>) {
    let (told, hears) = mpsc::unbounded_channel();
    let mut readers = JoinSet::new();
    let mut clients = Vec::new();
    for nth in 0..CLIENTS {
        clients.extend(connect(&target(nth), 1).await);
    }
    for nth in 0..count {
        let mut stream = clients[nth % CLIENTS].token.watch(proto::WatchRequest::default()).await.unwrap().into_inner();
        stream.message().await.unwrap();
        readers.spawn(read(stream, told.clone(), bare));
    }
    (readers, hears)
}

async fn wait_for(hears: &mut mpsc::UnboundedReceiver<()>, count: usize) {
    for _ in 0..count {
        hears.recv().await.unwrap();
    }
}

async fn reinstate(operator: &mut Client, kind: TargetKind, name: &str) {
    let lift = proto::ReinstateRequest { target: Some(target(kind, name)), reason: "again".to_owned() };
    operator.revocation.reinstate(lift).await.unwrap();
}

pub async fn run() {
    let mut cluster = Cluster::start(3).await;
    one(&cluster).await;
    // The watchers' tokens are under a policy of their own: its longer life makes it the one that grants.
    let policy = proto::Policy {
        name: POLICY.to_owned(),
        clients: vec![spiffe("spiffe://acme.internal/ns/ci/sa/release-watcher-*")],
        max_ttl: duration(900),
        default_ttl: duration(900),
        ..release_policy()
    };
    cluster.replicas[0].as_(OPERATOR).await.apply(policies(vec![policy])).await.unwrap();
    in_step(&cluster.replicas).await;
    let bare = Served::start(&cluster.replicas[0]).await;
    // Every watching client has a token under what is revoked.
    for nth in 0..CLIENTS {
        cluster.replicas[nth % 3].as_(&watcher(nth)).await.issue(ask()).await.unwrap();
    }
    let ours = |nth: usize| cluster.replicas[nth % 3].target(&watcher(nth));
    let (mut readers, mut hears) = open(ours, WATCHES, false).await;
    let bare_target = |nth: usize| Target { addr: bare.addr.clone(), ..cluster.replicas[0].target(&watcher(nth)) };
    let (mut bare_readers, mut bare_hears) = open(bare_target, WATCHES, true).await;
    let mut operator = cluster.replicas[0].as_(OPERATOR).await;
    println!(
        "\nto the last of {WATCHES} watches on three replicas, from the start of the Revoke call, {ROUNDS} rounds"
    );
    for loaded in [false, true] {
        let stop = Arc::new(AtomicBool::new(false));
        let mut loads = JoinSet::new();
        for nth in (0..64).filter(|_| loaded) {
            let mut client = connect(&cluster.replicas[nth % 3].target(CLIENT), 1).await.remove(0);
            let stop = Arc::clone(&stop);
            loads.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let _ = client.token.issue_token(ask_fresh()).await;
                }
            });
        }
        let (mut times, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let watch = Stopwatch::start();
            bare.push.send(1).unwrap();
            wait_for(&mut bare_hears, WATCHES).await;
            theirs.push(watch.seconds() * 1e3);
            let watch = Stopwatch::start();
            // The loading client's own tokens are not under it: what is told is the watchers'.
            operator.revoke(TargetKind::Policy, POLICY).await.unwrap();
            wait_for(&mut hears, WATCHES).await;
            times.push(watch.seconds() * 1e3);
            reinstate(&mut operator, TargetKind::Policy, POLICY).await;
        }
        stop.store(true, Ordering::Relaxed);
        loads.join_all().await;
        let ratio = median(times.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect());
        println!(
            "  {}: median {:.1} ms, bare push {:.1} ms, ratio {ratio:.2}",
            if loaded { "under full issue load" } else { "idle" },
            median(times),
            median(theirs)
        );
    }
    readers.abort_all();
    bare_readers.abort_all();
    bare.stop().await;
    cluster.stop().await;
    for count in [1000, 10_000] {
        memory(count).await;
    }
}

async fn one(cluster: &Cluster) {
    let mut operator = cluster.replicas[0].as_(OPERATOR).await;
    let mut client = cluster.replicas[1].as_(CLIENT).await;
    client.issue(ask()).await.unwrap();
    let mut stream = client.token.watch(proto::WatchRequest::default()).await.unwrap().into_inner();
    stream.message().await.unwrap();
    let (told, mut hears) = mpsc::unbounded_channel();
    let mut reader = JoinSet::new();
    reader.spawn(read(stream, told, false));
    let (mut calls, mut times) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let watch = Stopwatch::start();
        let revoke = async {
            operator.revoke(TargetKind::Policy, "games-release-ci").await.unwrap();
            watch.seconds() * 1e3
        };
        let hear = async {
            hears.recv().await.unwrap();
            watch.seconds() * 1e3
        };
        let (call, heard) = tokio::join!(revoke, hear);
        calls.push(call);
        times.push(heard);
        reinstate(&mut operator, TargetKind::Policy, "games-release-ci").await;
    }
    let ((p50, p99), (call50, call99)) = (percentiles(times), percentiles(calls));
    println!(
        "\none watching client told, on another replica than the revoke's, idle, from the start of the Revoke call: \
         p50 {p50:.2} ms, p99 {p99:.2} ms (the call itself: p50 {call50:.2} ms, p99 {call99:.2} ms)"
    );
    reader.abort_all();
}

/// A broker in a process of its own.
struct Process(Child);

impl Process {
    fn resident_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn memory(count: usize) {
    let broker = Broker::prepare(&Options::default());
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (pki, dir) = (broker.pki.dir.display(), broker.dir.path().display());
    let text = format!(
        "[listen]\ngrpc = \"127.0.0.1:{port}\"\nops = \"127.0.0.1:0\"\n[tls]\ncertificate = \"{pki}/server.pem\"\n\
         key = \"{pki}/server-key.pem\"\n[[tls.client_cas]]\nfile = \"{pki}/ca.pem\"\ntrust_domains = [\"acme.internal\"]\n\
         [store]\nurl = \"sqlite://{dir}/vault.db\"\n[unseal]\nkey_file = \"{dir}/unseal.key\"\n\
         [bootstrap]\noperators = [\"{OPERATOR}\"]\n[limits]\nadmin_per_second = 1000000\n[log]\nlevel = \"error\"\n"
    );
    let config = broker.dir.path().join("p8broker.toml");
    std::fs::write(&config, text).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_p8broker"))
        .args(["serve", "--config"])
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process(child);
    let at = |identity: &str| {
        let (cert, key) = broker.pki.client(identity);
        Target::certified(format!("127.0.0.1:{port}"), broker.pki.dir.join("ca.pem"), cert, key)
    };
    eventually("it listens", async || at(OPERATOR).connect().await.is_ok()).await;
    let mut operator = connect(&at(OPERATOR), 1).await.remove(0);
    operator.system.init(proto::InitRequest::default()).await.unwrap();
    let clients = count.div_ceil(60);
    let mut open = Vec::new();
    for nth in 0..clients {
        open.extend(connect(&at(&watcher(nth)), 1).await);
    }
    let before = process.resident_mib();
    let mut streams = Vec::new();
    for nth in 0..count {
        let mut stream = open[nth % clients].token.watch(proto::WatchRequest::default()).await.unwrap().into_inner();
        stream.message().await.unwrap();
        streams.push(stream);
    }
    let after = process.resident_mib();
    println!(
        "resident memory with {count} watches over {clients} connections: {after:.1} MiB, {:.1} KiB a watch",
        (after - before) * 1024.0 / count as f64
    );
}
