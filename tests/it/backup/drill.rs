//! Drills: a backup under load, the database destroyed, restored, and every acknowledged fact is there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tonic::Code;

use super::*;
use crate::harness::fleet::new_database;

/// What was acknowledged, in order.
#[derive(Default)]
struct Acknowledged {
    tokens: Vec<String>,
    revoked: Vec<String>,
}

/// Issues and revokes until it is told to stop, and notes what was acknowledged.
async fn load(broker: &Broker, stop: Arc<AtomicBool>, told: Arc<Mutex<Acknowledged>>) {
    let issuing = async |nth: usize| {
        let mut client = broker.as_(&format!("spiffe://acme.internal/ns/ci/sa/release-{nth}")).await;
        while !stop.load(Ordering::SeqCst) {
            let token = client.issue(ask_fresh()).await.unwrap();
            told.lock().unwrap().tokens.push(token.token_id);
        }
    };
    let revoking = async {
        let mut operator = broker.as_(OPERATOR).await;
        for nth in 0..100_000 {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            let name = format!("spiffe://acme.internal/ns/ci/sa/gone-{nth}");
            operator.revoke(proto::TargetKind::Client, &name).await.unwrap();
            told.lock().unwrap().revoked.push(name);
        }
    };
    tokio::join!(issuing(1), issuing(2), issuing(3), revoking);
}

/// Everything that was acknowledged before the backup was asked for is in what was restored.
async fn holds(restored: &Broker, before: &Acknowledged, p8: &str) {
    let mut operator = restored.as_(OPERATOR).await;
    let verified_rows = operator.verify().await;
    assert!(verified_rows.findings.is_empty(), "{:?}", verified_rows.findings);
    let events = operator.all_events().await;
    let tokens: std::collections::HashSet<&str> = events.iter().map(|event| event.token_id.as_str()).collect();
    for token in &before.tokens {
        assert!(tokens.contains(token.as_str()), "the audit lost token {token}");
    }
    for name in &before.revoked {
        let answer = restored.as_(name).await.issue(ask()).await;
        assert_eq!(refused(answer), (Code::PermissionDenied, "CLIENT_REVOKED".to_owned()), "{name}");
    }
    let token = restored.as_(CLIENT).await.issue(ask_fresh()).await.unwrap();
    verified(&token.token, p8);
}

/// A broker under load is backed up, destroyed, and restored on another database.
async fn drill(from: Options, to: StoreConfig) {
    let mut broker = Broker::bare(from).await;
    let p8 = new_p8();
    let mut operator = broker.as_(OPERATOR).await;
    operator.system.init(proto::InitRequest::default()).await.unwrap();
    operator.apply(sample()).await.unwrap();
    operator.import(&import(KEY_ID, &p8)).await.unwrap();
    // A second writer of audit rows, and rows before the ones under load.
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.restart().await;
    let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Acknowledged::default())));
    let backing = async {
        eventually("there is load", async || {
            let told = told.lock().unwrap();
            told.tokens.len() > 200 && told.revoked.len() > 5
        })
        .await;
        let before = {
            let told = told.lock().unwrap();
            Acknowledged { tokens: told.tokens.clone(), revoked: told.revoked.clone() }
        };
        let file = back_up(&broker, "vault.backup").await;
        eventually("the load goes on after it", async || told.lock().unwrap().tokens.len() > before.tokens.len() + 50)
            .await;
        stop.store(true, Ordering::SeqCst);
        (before, file)
    };
    let (_, (before, file)) = tokio::join!(load(&broker, Arc::clone(&stop), Arc::clone(&told)), backing);
    broker.stop().await;
    let mut restored = elsewhere(&broker, to);
    let config = config_file(&restored, "restored.toml", &store_of(&restored));
    let (code, proof) = verify(&file, &config);
    assert_eq!(code, 0, "{proof}");
    assert!(proof["rows"].as_u64().unwrap() as usize > before.tokens.len() && proof["keys"] == 1, "{proof}");
    if let Ok(StoreAt::Sqlite(database)) = broker.config.store.at() {
        std::fs::remove_file(database).unwrap();
    }
    let (code, done) = restore(&file, &config, &[]);
    assert_eq!(code, 0, "{done}");
    assert_eq!((&done["revision"], &done["rows"]), (&proof["revision"], &proof["rows"]));
    restored.run(None).await;
    holds(&restored, &before, &p8).await;
    restored.stop().await;
}

fn new_file(broker: &tempfile::TempDir) -> StoreConfig {
    StoreConfig::sqlite(broker.path().join("restored.db"))
}

#[tokio::test]
async fn a_backup_under_load_on_sqlite_has_every_acknowledged_fact() {
    let dir = tempfile::TempDir::new().unwrap();
    drill(Options::default(), new_file(&dir)).await;
}

#[tokio::test]
async fn a_backup_under_load_on_postgresql_has_every_acknowledged_fact() {
    let options = Options { url: Some(new_database().await), ..Options::default() };
    drill(options, StoreConfig::url(&new_database().await)).await;
}

#[tokio::test]
async fn a_vault_moves_from_sqlite_to_postgresql_by_the_same_two_commands() {
    drill(Options::default(), StoreConfig::url(&new_database().await)).await;
}

#[tokio::test]
async fn a_vault_moves_from_postgresql_to_sqlite_by_the_same_two_commands() {
    let dir = tempfile::TempDir::new().unwrap();
    let options = Options { url: Some(new_database().await), ..Options::default() };
    drill(options, new_file(&dir)).await;
}

/// A move keeps its anchor, as nothing came after the backup: it finds the same history, and the broker serves at once.
#[tokio::test]
async fn a_vault_that_moves_without_a_broker_keeps_its_anchor_and_goes_back_nowhere() {
    let mut broker = Broker::with(Options { anchor: true, ..Options::default() }).await;
    let token = broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.stop().await;
    let config = config_file(&broker, "sqlite.toml", &store_of(&broker));
    let file = broker.dir.path().join("move.backup");
    let (out, from) = (file.display().to_string(), config.display().to_string());
    assert_eq!(here(&["operator", "backup", "--config", &from, "--out", &out]).0, 0);
    let anchor = broker.config.anchor.file.clone();
    let mut moved = elsewhere(&broker, StoreConfig::url(&new_database().await));
    moved.config.anchor.file = anchor;
    let config = config_file(&moved, "postgres.toml", &store_of(&moved));
    let (code, done) = restore(&file, &config, &[]);
    assert_eq!((code, &done["accept_history"]), (0, &Value::Null), "{done}");
    moved.run(None).await;
    let request = proto::IntrospectTokenRequest { token_id: token.token_id };
    assert!(moved.as_(CLIENT).await.token.introspect_token(request).await.is_ok(), "what was handed out is known");
    moved.as_(CLIENT).await.issue(ask_fresh()).await.unwrap();
    moved.stop().await;
}
