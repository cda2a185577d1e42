//! What must not grow: a decision with the number of policies, a start with the number of audit rows.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a benchmark")]

mod deciding;

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use p8broker::broker::{Broker, KeySource, Parts, Phase};
use p8broker::clock::{Clock, Stopwatch, SystemClock};
use p8broker::domain::audit::{AuditEvent, AuditedToken, Outcome};
use p8broker::id::{ClientId, TokenId};
use p8broker::metrics::Metrics;
use p8broker::store::sqlite::SqliteStore;
use p8broker::store::{AuditBatch, Store};
use p8broker::vault::unseal::parse_key_file;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn open(dir: &Path) -> (Arc<dyn Store>, Arc<Broker>) {
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&dir.join("vault.db")).await.unwrap());
    let broker = Broker::new(Parts {
        store: Arc::clone(&store),
        clock: Arc::new(SystemClock),
        metrics: Metrics::new().unwrap(),
        key_source: KeySource::Files { current: dir.join("unseal.key"), previous: None },
        bootstrap: vec![],
        anchor: None,
        replica: "bench".to_owned(),
        signatures_per_second: NonZeroU32::MAX,
        canary_every_s: 0,
    });
    broker.start().await;
    (store, broker)
}

/// Adds rows as a writer of this vault would.
async fn add_rows(dir: &Path, rows: u32) {
    let store = SqliteStore::open(&dir.join("vault.db")).await.unwrap();
    let row = store.seal_row().await.unwrap().unwrap();
    let key = parse_key_file(&std::fs::read(dir.join("unseal.key")).unwrap()).unwrap();
    let keyring = row.open(&key).unwrap();
    let (head, now) = (store.head().await.unwrap(), SystemClock.now());
    let mut end = store.writer_ends().await.unwrap().remove(0).end;
    for batch in 0..rows / 1000 {
        let mut out = Vec::with_capacity(1000);
        for nth in 0..1000_u32 {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&(batch * 1000 + nth).to_be_bytes());
            let token = AuditedToken {
                id: TokenId::from_digest(&digest),
                issued_at: now.seconds(),
                expires_at: now.seconds() + 600,
            };
            let event = AuditEvent {
                at: now,
                event: "IssueToken".to_owned(),
                outcome: Outcome::Signed,
                reason: "OK".to_owned(),
                decision_id: format!("{nth:032x}"),
                caller: "spiffe://acme.internal/ns/ci/sa/release-bot".to_owned(),
                identity: "certificate sha256:00".to_owned(),
                detail: "ttl default, 0 scope entries".to_owned(),
                policy: Some("games-release-ci".to_owned()),
                key_id: Some("AAAAAAAAAA".to_owned()),
                app_group: Some("games".to_owned()),
                role: Some("APP_MANAGER".to_owned()),
                scope: None,
                token: Some(token),
                revision: head.revision,
            };
            out.push(end.push(&keyring, event).unwrap());
        }
        end = end.sealed(&keyring, &row.vault).unwrap();
        let _ = store.commit_rows(None, &AuditBatch { rows: out, quota: vec![], end: end.clone() }).await.unwrap();
    }
    store.close().await;
}

async fn starting() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("unseal.key"), "5a".repeat(32)).unwrap();
    let (_, broker) = open(dir.path()).await;
    let operator = ClientId::parse("spiffe://acme.internal/ops").unwrap();
    broker.init(None, None, &[operator]).await.unwrap();
    broker.stop().await;
    drop(broker);
    println!("from opening the database to an open vault, median of 9 starts:");
    let mut medians = Vec::new();
    for rows in [0, 1_000_000] {
        if rows > 0 {
            add_rows(dir.path(), rows).await;
        }
        let mut times = Vec::new();
        for _ in 0..9 {
            let watch = Stopwatch::start();
            let (_, broker) = open(dir.path()).await;
            times.push(watch.seconds());
            assert!(matches!(&*broker.phase(), Phase::Open(_)));
            broker.stop().await;
        }
        medians.push(median(times));
        println!("  {rows:>9} audit rows: {:.1} ms", medians[medians.len() - 1] * 1e3);
    }
    println!("  ratio: {:.2}", medians[1] / medians[0]);
}

fn main() {
    deciding::run();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(starting());
}
