//! Issuing over mutual TLS with durable audit on SQLite, beside a bare tonic service that only signs, in the same run.
//!
//! Server and clients share this process and its cores, for both. Rounds alternate; figures are medians over rounds, and
//! what counts is the ratio. `P8BROKER_BENCH_SECONDS` sets the length of a round (default 2).
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a benchmark")]
#![expect(clippy::print_stdout, unreachable_pub, dead_code, reason = "a benchmark that uses the tests' harness")]

#[path = "../tests/it/harness.rs"]
mod harness;

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use data_encoding::BASE64URL_NOPAD;
use harness::*;
use p8broker::clock::{Stopwatch, SystemClock};
use p8broker::grpc::proto;
use p8broker::grpc::proto::token_service_server::{TokenService, TokenServiceServer};
use p8broker::metrics::Metrics;
use p8broker::tls::Tls;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

const ROUNDS: usize = 3;
const IN_FLIGHT: &[usize] = &[1, 8, 64];

/// Signs a claim set, and does nothing else.
struct Bare(EcdsaKeyPair);

#[tonic::async_trait]
impl TokenService for Bare {
    type WatchStream = tokio_stream::Empty<Result<proto::WatchResponse, Status>>;

    async fn watch(&self, _: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("a benchmark"))
    }

    async fn introspect_token(
        &self,
        _: Request<proto::IntrospectTokenRequest>,
    ) -> Result<Response<proto::IntrospectTokenResponse>, Status> {
        Err(Status::unimplemented("a benchmark"))
    }

    async fn issue_token(
        &self,
        _: Request<proto::IssueTokenRequest>,
    ) -> Result<Response<proto::IssueTokenResponse>, Status> {
        let claims = r#"{"iss":"57246542-96fe-1a63-e053-0824d011072a","iat":1,"exp":2,"aud":"appstoreconnect-v1"}"#;
        let mut token = "eyJhbGciOiJFUzI1NiIsImtpZCI6IjJYOVI0SFhGMzQiLCJ0eXAiOiJKV1QifQ.".to_owned();
        BASE64URL_NOPAD.encode_append(claims.as_bytes(), &mut token);
        let signature = self.0.sign(&SystemRandom::new(), token.as_bytes()).map_err(|_| Status::internal("sign"))?;
        token.push('.');
        BASE64URL_NOPAD.encode_append(signature.as_ref(), &mut token);
        Ok(Response::new(proto::IssueTokenResponse { token, ..proto::IssueTokenResponse::default() }))
    }
}

/// Requests a second, and seconds at the 50th and 99th percentile.
#[derive(Clone, Copy)]
struct Figures {
    rate: f64,
    p50: f64,
    p99: f64,
}

async fn load(clients: &[Client], in_flight: usize, request: &proto::IssueTokenRequest, seconds: f64) -> Figures {
    let mut tasks = JoinSet::new();
    let whole = Stopwatch::start();
    for nth in 0..in_flight {
        let (mut client, request) = (clients[nth % clients.len()].clone(), request.clone());
        tasks.spawn(async move {
            let mut times = Vec::with_capacity(100_000);
            while whole.seconds() < seconds {
                let one = Stopwatch::start();
                client.token.issue_token(request.clone()).await.unwrap();
                times.push(one.seconds());
            }
            times
        });
    }
    let mut times: Vec<f64> = tasks.join_all().await.into_iter().flatten().collect();
    let took = whole.seconds();
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    Figures { rate: times.len() as f64 / took, p50: at(0.5), p99: at(0.99) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn connect(target: &p8broker::client::Target, count: usize) -> Vec<Client> {
    let mut out = Vec::new();
    for _ in 0..count {
        out.push(Client::new(target.connect().await.unwrap()));
    }
    out
}

async fn issuing() {
    let seconds = std::env::var("P8BROKER_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let mut broker = Broker::start().await;
    // The bare service, with the same certificates and the same acceptor.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let tls = Arc::new(Tls::load(broker.config.tls_files(), Arc::new(SystemClock), Metrics::new().unwrap()).unwrap());
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let connections = tls.accept(listener, 100, &tasks, stop.clone());
    let bare = Bare(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());
    let serving = tonic::transport::Server::builder()
        .add_service(TokenServiceServer::new(bare))
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.clone().cancelled_owned());
    tasks.spawn(async move { serving.await.unwrap() });

    let target = broker.target(CLIENT);
    let bare_target = p8broker::client::Target { addr, ..target.clone() };
    println!("issuing over mTLS (TLS 1.3), server and client in one process, {ROUNDS} rounds of {seconds} s, medians");
    println!("{:>9}  {:>22}  {:>28}  {:>28}", "", "bare, signs only", "fresh, durable audit", "reused, durable audit");
    println!(
        "{:>9}  {:>8} {:>6} {:>6}  {:>8} {:>6} {:>6} {:>5}  {:>8} {:>6} {:>6} {:>5}",
        "in flight", "/s", "p50 ms", "p99 ms", "/s", "p50 ms", "p99 ms", "ratio", "/s", "p50 ms", "p99 ms", "ratio"
    );
    for &in_flight in IN_FLIGHT {
        let count = in_flight.min(8);
        let (ours, theirs) = (connect(&target, count).await, connect(&bare_target, count).await);
        // Warm up: caches, connections, and the token that is reused.
        for clients in [&ours, &theirs] {
            load(clients, in_flight, &ask(), 0.3).await;
        }
        let mut rounds: [Vec<Figures>; 3] = Default::default();
        for _ in 0..ROUNDS {
            rounds[0].push(load(&theirs, in_flight, &ask(), seconds).await);
            rounds[1].push(load(&ours, in_flight, &ask_fresh(), seconds).await);
            rounds[2].push(load(&ours, in_flight, &ask(), seconds).await);
        }
        let figure = |which: usize, part: fn(&Figures) -> f64| median(rounds[which].iter().map(part).collect());
        let ratio =
            |which: usize| median((0..ROUNDS).map(|nth| rounds[which][nth].rate / rounds[0][nth].rate).collect());
        let row = |which: usize| {
            let (p50, p99) = (figure(which, |it| it.p50) * 1e3, figure(which, |it| it.p99) * 1e3);
            format!("{:>8.0} {p50:>6.2} {p99:>6.2}", figure(which, |it| it.rate))
        };
        println!("{in_flight:>9}  {}  {} {:>5.2}  {} {:>5.2}", row(0), row(1), ratio(1), row(2), ratio(2));
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    broker.stop().await;
}

/// `p8broker dev` as a process of its own.
fn spawn(dir: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p8broker"));
    command
        .args(["dev", "--dir"])
        .arg(dir)
        .env("P8BROKER_LIMITS__TOKENS_PER_SECOND", "1000000")
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
    p8broker::client::Target { addr, cacert, cert, key, server_name: None }
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
