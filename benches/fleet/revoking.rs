//! How long a revoke takes: idle, and while every replica issues as fast as it can; with few and with many live tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use p8broker::clock::Stopwatch;
use p8broker::grpc::proto::{self, TargetKind};
use tokio::task::JoinSet;

use crate::bare::{connect, percentiles};
use crate::harness::fleet::Cluster;
use crate::harness::*;

const REVOKES: usize = 300;

pub async fn run() {
    println!("\nrevoking a client on one of three replicas, {REVOKES} times each");
    let mut cluster = Cluster::start(3).await;
    for under in [0_usize, 1000] {
        let idle = revokes(&cluster, under).await;
        println!("  {under:>5} live tokens under it, idle:            p50 {:.2} ms, p99 {:.2} ms", idle.0, idle.1);
    }
    for under in [0_usize, 1000] {
        let (tokens, busy) = under_load(&cluster, under).await;
        println!(
            "  {under:>5} live tokens under it, at full load:    p50 {:.2} ms, p99 {:.2} ms ({tokens:.0} fresh tokens/s)",
            busy.0, busy.1
        );
    }
    cluster.stop().await;
    many().await;
    storms().await;
}

fn victim(nth: usize) -> String {
    format!("spiffe://acme.internal/ns/ci/sa/release-victim-{nth}")
}

/// A client with so many live tokens: asked for through the broker's own use case, so that only the revoke is timed.
async fn with_tokens(broker: &Broker, client: &str, count: usize) {
    let caller = p8broker::broker::Caller { principal: principal(client), identity: String::new() };
    let mut asks = JoinSet::new();
    for nth in 0..count {
        let (inner, caller) = (Arc::clone(broker.inner()), caller.clone());
        asks.spawn(async move {
            let operation =
                p8broker::domain::operation::Operation::parse(&format!("GET /v1/apps/{}", nth + 1)).unwrap();
            let request = p8broker::domain::decide::TokenRequest {
                principal: caller.principal.clone(),
                app_group: p8broker::id::AppGroupName::parse("games").unwrap(),
                role: p8broker::domain::role::Role::AppManager,
                ttl_s: None,
                scope: vec![operation],
            };
            inner.issue(&caller, p8broker::broker::TokenAsk { request, fresh: true }).await.map(|_| ())
        });
        if asks.len() >= 512 {
            asks.join_next().await.unwrap().unwrap().unwrap();
        }
    }
    while let Some(done) = asks.join_next().await {
        done.unwrap().unwrap();
    }
}

async fn one_revoke(operator: &mut Client, kind: TargetKind, name: &str) -> (f64, u64) {
    let watch = Stopwatch::start();
    let revoked = operator.revoke(kind, name).await.unwrap();
    let took = watch.seconds() * 1e3;
    let lift = proto::ReinstateRequest { target: Some(target(kind, name)), reason: "again".to_owned() };
    operator.revocation.reinstate(lift).await.unwrap();
    (took, revoked.count)
}

async fn revokes(cluster: &Cluster, under: usize) -> (f64, f64) {
    let mut operator = cluster.replicas[0].as_(OPERATOR).await;
    let name = victim(under);
    with_tokens(&cluster.replicas[0], &name, under).await;
    let mut times = Vec::new();
    for _ in 0..REVOKES {
        let (took, count) = one_revoke(&mut operator, TargetKind::Client, &name).await;
        assert!(count as usize >= under, "{count} of {under}");
        times.push(took);
    }
    percentiles(times)
}

async fn under_load(cluster: &Cluster, under: usize) -> (f64, (f64, f64)) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut loads = JoinSet::new();
    for nth in 0..64 {
        let mut client = connect(&cluster.replicas[nth % 3].target(CLIENT), 1).await.remove(0);
        let stop = Arc::clone(&stop);
        loads.spawn(async move {
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                count += u64::from(client.token.issue_token(ask_fresh()).await.is_ok());
            }
            count
        });
    }
    let watch = Stopwatch::start();
    let figures = revokes(cluster, under).await;
    let seconds = watch.seconds();
    stop.store(true, Ordering::Relaxed);
    let tokens: u64 = loads.join_all().await.into_iter().sum();
    (tokens as f64 / seconds, figures)
}

/// With very many live tokens under it the answer lists the first 1,000 and counts the rest.
async fn many() {
    for count in [100_000_usize, 1_000_000] {
        let mut cluster = Cluster::start(1).await;
        let name = victim(count);
        fill(&cluster, &name, count).await;
        let mut operator = cluster.replicas[0].as_(OPERATOR).await;
        let mut times = Vec::new();
        for _ in 0..5 {
            let (took, found) = one_revoke(&mut operator, TargetKind::Client, &name).await;
            assert_eq!(found as usize, count);
            times.push(took);
        }
        println!("  {count:>7} live tokens under it, idle: median of 5 {:.0} ms", percentiles(times).0);
        cluster.stop().await;
    }
}

/// Rows as signed tokens have them, straight into the table: only the revoke is measured.
async fn fill(cluster: &Cluster, client: &str, count: usize) {
    let url = cluster.replicas[0].config.store.url.clone().unwrap().0;
    let now = p8broker::clock::Clock::now(&*cluster.replicas[0].clock).seconds();
    let sql = format!(
        "insert into audit (writer, sequence, at_ms, event, outcome, reason, decision_id, caller, identity, detail, policy, \
         key_id, app_group, role, scope, token_id, issued_at, expires_at, revision, key_version, chain) \
         select repeat('f', 32), n, {now}000, 'IssueToken', 'SIGNED', 'OK', md5(n::text), '{client}', '', '', \
         'games-release-ci', '{KEY_ID}', 'games', 'APP_MANAGER', null, md5(n::text) || md5((n + 1)::text), {now}, \
         {now} + 3600 + n % 600, 1, 1, '\\x00' from generate_series(1, {count}) as n; analyze audit"
    );
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
}

/// Neither side starves the other: issuing under a storm of revokes, and changes of three replicas without pause.
async fn storms() {
    let mut cluster = Cluster::start(3).await;
    let seconds = crate::seconds();
    let mut clients = Vec::new();
    for nth in 0..9 {
        clients.extend(connect(&cluster.replicas[nth % 3].target(CLIENT), 1).await);
    }
    let calm = issue_for(&clients, seconds).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut storm = JoinSet::new();
    for (nth, replica) in cluster.replicas.iter().enumerate() {
        let mut operator = replica.as_(OPERATOR).await;
        let stop = Arc::clone(&stop);
        storm.spawn(async move {
            let mut times = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                times.push(one_revoke(&mut operator, TargetKind::Policy, &format!("storm-{nth}")).await.0);
            }
            times
        });
    }
    let stormy = issue_for(&clients, seconds).await;
    stop.store(true, Ordering::Relaxed);
    let changes = storm.join_all().await;
    println!(
        "\nissuing with 9 in flight on three replicas, calm and in a storm of revokes by each replica, for {seconds} s each"
    );
    println!("  calm:  {:>6.0} tokens/s, p99 {:.1} ms, {} refused", calm.0, calm.1, calm.2);
    println!("  storm: {:>6.0} tokens/s, p99 {:.1} ms, {} refused", stormy.0, stormy.1, stormy.2);
    for (nth, times) in changes.into_iter().enumerate() {
        let count = times.len();
        let (p50, p99) = percentiles(times);
        println!(
            "  replica {}: {:>5.0} revokes/s beside as many reinstatements, p50 {p50:.1} ms, p99 {p99:.1} ms",
            nth + 1,
            count as f64 / seconds
        );
    }
    cluster.stop().await;
}

async fn issue_for(clients: &[Client], seconds: f64) -> (f64, f64, u64) {
    let mut tasks = JoinSet::new();
    let whole = Stopwatch::start();
    for client in clients {
        let mut client = client.clone();
        tasks.spawn(async move {
            let (mut times, mut refused) = (Vec::new(), 0_u64);
            while whole.seconds() < seconds {
                let one = Stopwatch::start();
                match client.token.issue_token(ask_fresh()).await {
                    Ok(_) => times.push(one.seconds() * 1e3),
                    Err(_) => refused += 1,
                }
            }
            (times, refused)
        });
    }
    let (mut times, mut refused) = (Vec::new(), 0);
    for (some, none) in tasks.join_all().await {
        times.extend(some);
        refused += none;
    }
    let rate = times.len() as f64 / seconds;
    (rate, percentiles(times).1, refused)
}
