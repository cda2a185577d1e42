//! A vault on SQLite with as many audit rows as are asked for.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use p8broker::broker::{Broker, KeySource, Parts};
use p8broker::clock::{Clock, SystemClock};
use p8broker::domain::audit::{AuditEvent, AuditedToken, Outcome};
use p8broker::id::TokenId;
use p8broker::metrics::Metrics;
use p8broker::store::sqlite::SqliteStore;
use p8broker::store::{AuditBatch, Store};
use p8broker::vault::unseal::parse_key_file;

/// Opens the vault in a folder, or is ready to make one.
pub(crate) async fn open(dir: &Path) -> (Arc<dyn Store>, Arc<Broker>) {
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
pub(crate) async fn add_rows(dir: &Path, rows: u32) {
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
