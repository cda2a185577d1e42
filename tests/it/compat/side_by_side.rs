//! A vault and a backup of every frozen release, opened by this one; and what a newer release wrote, met by this one.

use std::path::PathBuf;

use p8broker::config::{StoreAt, StoreConfig};
use p8broker::domain::change::Change;
use p8broker::grpc::proto;
use p8broker::metrics::Metrics;
use p8broker::server::open_store;
use sqlx::{AssertSqlSafe, Connection};

use super::*;
use crate::backup::{config_file, here, restore, store_of, verify};
use crate::harness::fleet::new_database;

/// A broker that does not run yet, with the key file of the frozen vaults.
fn prepared(store: Option<StoreConfig>) -> Broker {
    let mut broker = Broker::prepare(&Options::default());
    std::fs::write(broker.dir.path().join("unseal.key"), "5b".repeat(32)).unwrap();
    if let Some(store) = store {
        broker.config.store = store;
    }
    broker
}

/// It serves as the release that wrote it did.
async fn serves(broker: &mut Broker) {
    broker.run(None).await;
    let mut operator = broker.as_(OPERATOR).await;
    let verified = operator.verify().await;
    assert!(verified.findings.is_empty() && verified.rows > 10, "{verified:?}");
    broker.as_(CLIENT).await.issue(ask_fresh()).await.unwrap();
    assert_eq!(refused(broker.as_(STRANGER).await.issue(ask()).await).1, "CLIENT_REVOKED");
    let keys = operator.key.list_keys(proto::ListKeysRequest::default()).await.unwrap().into_inner().keys;
    assert_eq!(keys.len(), 4);
    operator.revoke(proto::TargetKind::Client, CLIENT).await.unwrap();
    broker.restart().await;
    assert_eq!(refused(broker.as_(CLIENT).await.issue(ask()).await).1, "CLIENT_REVOKED");
    broker.stop().await;
}

#[tokio::test]
async fn a_vault_of_every_frozen_release_is_served() {
    for release in releases() {
        let mut broker = prepared(None);
        std::fs::copy(release.join("vault.db"), broker.database()).unwrap();
        serves(&mut broker).await;
    }
}

#[tokio::test]
async fn a_backup_of_every_frozen_release_is_restored_on_either_engine() {
    for release in releases() {
        for store in [None, Some(StoreConfig::url(&new_database().await))] {
            let mut broker = prepared(store);
            let config = config_file(&broker, "p8broker.toml", &store_of(&broker));
            let file = release.join("vault.backup");
            let (code, proof) = verify(&file, &config);
            assert_eq!(code, 0, "{proof}");
            assert_eq!(restore(&file, &config, &[]).0, 0);
            serves(&mut broker).await;
        }
    }
}

/// The statements that a release sends, as it spells them: each is still understood by the schema of this one, so that an
/// older replica goes on working beside a newer one.
#[tokio::test]
async fn the_statements_of_every_frozen_release_are_understood_by_the_schema_of_this_one() {
    let url = new_database().await;
    let broker = prepared(Some(StoreConfig::url(&url)));
    open_store(&broker.config, &Metrics::new().unwrap()).await.unwrap().close().await;
    let mut postgres = sqlx::PgConnection::connect(&url).await.unwrap();
    let file = prepared(None);
    open_store(&file.config, &Metrics::new().unwrap()).await.unwrap().close().await;
    let mut sqlite = sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.database().display())).await.unwrap();
    for release in releases() {
        let text = std::fs::read_to_string(release.join("statements.sql")).unwrap();
        let (mut tried, mut engine, mut types) = (0, "both", String::new());
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(comment) = line.strip_prefix("-- ") {
                engine = comment.strip_prefix("engine ").unwrap_or(engine);
                types = comment.strip_prefix("types ").map(|types| format!("({types})")).unwrap_or_default();
                continue;
            }
            tried += 1;
            if engine != "sqlite" {
                let prepare = format!("prepare s{tried}{types} as {line}");
                types.clear();
                let done = sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut postgres).await;
                done.unwrap_or_else(|error| panic!("{}: {line}: {error}", release.display()));
            }
            if engine != "postgres" {
                let done = sqlx::raw_sql(AssertSqlSafe(format!("explain {line}"))).execute(&mut sqlite).await;
                done.unwrap_or_else(|error| panic!("{}: {line}: {error}", release.display()));
            }
        }
        assert!(tried > 30, "{tried}");
    }
}

/// What a newer release wrote of something new stops this one, with what to do; it is never skipped: it may be a revocation.
#[tokio::test]
async fn a_record_that_this_release_does_not_know_stops_it_and_says_to_upgrade() {
    let release = releases().pop().unwrap();
    for (what, change) in [
        ("a kind of record", serde_json::json!({ "change": "revoked_by_moonlight", "target": "x" })),
        ("a field", serde_json::json!({ "change": "vault_sealed", "reason": "x", "until": 5 })),
        (
            "a kind of target",
            serde_json::json!({
                "change": "revoked", "target": { "kind": "planet", "name": "mars" }, "reason": "x"
            }),
        ),
    ] {
        let mut broker = prepared(None);
        std::fs::copy(release.join("vault.db"), broker.database()).unwrap();
        let store = open_store(&broker.config, &Metrics::new().unwrap()).await.unwrap();
        let (row, head) = (store.seal_row().await.unwrap().unwrap(), store.head().await.unwrap());
        let writer = store.writer_ends().await.unwrap().remove(0).end;
        store.close().await;
        drop(store);
        let record = serde_json::json!({
            "revision": head.revision.0 + 1, "at": 1, "actor": { "name": "newer" },
            "audit": { "writer": writer.writer, "sequence": writer.sequence }, "change": change,
        });
        let sealed = sealed(&row, head, &record);
        let mut sqlite =
            sqlx::SqliteConnection::connect(&format!("sqlite://{}", broker.database().display())).await.unwrap();
        let add = sqlx::query("insert into control_log values (?, 0, ?, ?)")
            .bind(sealed.revision.0 as i64)
            .bind(sealed.previous.0.to_vec())
            .bind(&sealed.sealed);
        add.execute(&mut sqlite).await.unwrap();
        let put = sqlx::query("update control_head set revision = ?, chain = ?");
        put.bind(sealed.revision.0 as i64).bind(sealed.head().chain.0.to_vec()).execute(&mut sqlite).await.unwrap();
        sqlite.close().await.unwrap();
        broker.run(None).await;
        assert!(!broker.is_open(), "{what}");
        let status = broker.as_(OPERATOR).await.system.status(proto::StatusRequest {}).await.unwrap().into_inner();
        assert!(
            status.why.contains("was written by a newer release") && status.why.contains("upgrade"),
            "{}",
            status.why
        );
        broker.stop().await;
    }
}

/// An older binary than the database's oldest is refused before it changes anything, by every command.
#[tokio::test]
async fn a_downgrade_below_what_the_schema_says_is_refused_by_every_command() {
    let backup: PathBuf = releases().pop().unwrap().join("vault.backup");
    let url = new_database().await;
    for store in [None, Some(StoreConfig::url(&url))] {
        let mut broker = prepared(store);
        open_store(&broker.config, &Metrics::new().unwrap()).await.unwrap().close().await;
        let sql = "update schema_release set oldest = '99.0.0'";
        match broker.config.store.at().unwrap() {
            StoreAt::Sqlite(_) => crate::tamper::change(&broker, sql).await,
            StoreAt::Postgres(_) => {
                let mut postgres = sqlx::PgConnection::connect(&url).await.unwrap();
                sqlx::raw_sql(sql).execute(&mut postgres).await.map(drop).unwrap();
            }
        }
        let config = config_file(&broker, "p8broker.toml", &store_of(&broker)).display().to_string();
        let (out, from) = (broker.dir.path().join("x").display().to_string(), backup.display().to_string());
        for command in [
            &["serve", "--config", &config][..],
            &["migrate", "--config", &config],
            &["restore", "--config", &config, "--from", &from],
            &["operator", "backup", "--config", &config, "--out", &out],
            &["operator", "init", "--config", &config],
        ] {
            let (code, error) = here(command);
            let said = error["message"].as_str().unwrap();
            assert!(code == 1 && error["reason"] == "DATABASE_UNFIT", "{command:?}: {error}");
            assert!(said.contains("needs p8broker 99.0.0 or later") && said.contains("upgrade this broker"), "{said}");
        }
        broker.config.anchor.file = None;
    }
}

/// What this release can write is what the list of frozen kinds must have: a new kind is added there with the release that
/// brings it.
#[test]
fn the_names_of_changes_are_as_records_spell_them() {
    let change = Change::VaultSealed { reason: "x".to_owned() };
    assert_eq!(serde_json::to_value(change).unwrap(), serde_json::json!({ "change": "vault_sealed", "reason": "x" }));
}
