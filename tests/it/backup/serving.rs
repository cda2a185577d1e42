//! What goes on while a backup is made, and who may make one.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use p8broker::broker::Backup;
use p8broker::broker::BrokerError;
use p8broker::clock::UnixMillis;
use p8broker::id::Revision;
use p8broker::metrics::Metrics;
use p8broker::secret::UnsealKey;
use p8broker::server::open_store;
use p8broker::store::sqlite::SqliteStore;
use p8broker::store::{Replica, Store, StoreError};
use tokio::task::JoinSet;
use tonic::Code;

use super::*;
use crate::harness::fleet::new_database;

async fn pieces(operator: &mut Client) -> tonic::Streaming<proto::BackupResponse> {
    operator.system.backup(proto::BackupRequest {}).await.unwrap().into_inner()
}

/// A backup that nobody reads on holds up nothing: least of all the destruction of a key, which empties SQLite's log and
/// writes PostgreSQL's tables anew.
#[tokio::test]
async fn a_backup_that_nobody_reads_holds_up_nobody() {
    for url in [None, Some(new_database().await)] {
        let mut broker = Broker::with(Options { url, ..Options::default() }).await;
        let mut operator = broker.as_(OPERATOR).await;
        let mut client = broker.as_(CLIENT).await;
        for _ in 0..20 {
            client.issue(ask_fresh()).await.unwrap();
        }
        let mut backup = pieces(&mut operator).await;
        backup.message().await.unwrap().unwrap();
        let revoking = operator.revoke(proto::TargetKind::Key, KEY_ID);
        tokio::time::timeout(Duration::from_secs(4), revoking).await.expect("nothing was in its way").unwrap();
        drop(backup);
        broker.stop().await;
    }
}

/// The tables of keys are emptied and filled anew by the destruction of a key: whoever reads them at that moment sees the keys.
#[tokio::test]
async fn a_snapshot_never_misses_keys_while_others_are_destroyed() {
    let mut broker = Broker::with(Options { url: Some(new_database().await), ..Options::default() }).await;
    let store = open_store(&broker.config, &Metrics::new().unwrap()).await.unwrap();
    let scrubbing = async {
        for _ in 0..60 {
            // While it is read it gives way, and is tried again.
            match store.scrub().await {
                Ok(()) | Err(StoreError::Unavailable(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let reading = async {
        for _ in 0..60 {
            let snapshot = store.snapshot().await.unwrap().expect("there is a vault");
            assert_eq!(snapshot.keys.len(), 1, "a key was missed");
        }
    };
    tokio::join!(scrubbing, reading);
    store.close().await;
    broker.stop().await;
}

/// Whoever asked may go at any moment: no connection stays behind that sees an old moment for ever.
#[tokio::test]
async fn a_snapshot_that_nobody_waits_for_leaves_no_transaction_behind() {
    let dir = tempfile::TempDir::new().unwrap();
    let store = Arc::new(SqliteStore::open(&dir.path().join("vault.db")).await.unwrap());
    let mut dropped = 0;
    for nth in 0..150 {
        let patience = Duration::from_micros(5 * nth);
        match tokio::time::timeout(patience, store.snapshot()).await {
            Ok(snapshot) => assert!(snapshot.expect("a snapshot is read").is_none()),
            Err(_) => dropped += 1,
        }
    }
    assert!(dropped > 0, "nobody went");
    let replica = Replica {
        name: "new".to_owned(),
        version: "0".to_owned(),
        phase: "OPEN".to_owned(),
        revision: Revision(1),
        started: UnixMillis(1),
        seen: UnixMillis(1),
    };
    store.report(&replica, UnixMillis(0)).await.unwrap();
    // Over every connection for reading.
    let mut asking = JoinSet::new();
    for _ in 0..64 {
        let store = Arc::clone(&store);
        asking.spawn(async move { store.replicas().await.unwrap().len() });
    }
    assert_eq!(asking.join_all().await, [1; 64], "a connection sees an old moment");
    store.close().await;
}

#[tokio::test]
async fn a_backup_ends_when_the_vault_is_sealed_and_a_sealed_one_gives_none() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let mut client = broker.as_(CLIENT).await;
    // More than fits between a broker and a caller who does not read.
    let detail = "x".repeat(900);
    for nth in 0..1500 {
        let name = format!("spiffe://acme.internal/ns/ci/sa/{detail}{nth}");
        if nth % 100 == 0 {
            client.issue(ask_fresh()).await.unwrap();
        }
        operator.revoke(proto::TargetKind::Client, &name).await.unwrap();
    }
    // One who takes what fits a small window, and reads no more.
    let stream = crate::bad_input::raw(&broker, Some(OPERATOR), &rustls::version::TLS13).await.unwrap();
    let mut http2 = h2::client::Builder::new();
    let (mut sender, connection) = http2.initial_window_size(1024).handshake::<_, Bytes>(stream).await.unwrap();
    let mut stalling = JoinSet::new();
    stalling.spawn(connection);
    // How many hold a broker whose vault is sealed.
    let seal = || proto::SealRequest { reason: "a test".to_owned() };
    operator.system.seal(seal()).await.unwrap();
    let mut before = usize::MAX;
    eventually("what served is gone", async || {
        let now = Arc::strong_count(broker.inner());
        std::mem::replace(&mut before, now) == now
    })
    .await;
    operator.system.unseal(proto::UnsealRequest::default()).await.unwrap();
    let url = format!("https://{}/p8broker.v1.SystemService/Backup", broker.grpc());
    let request = http::Request::post(url).header("content-type", "application/grpc").header("te", "trailers");
    let (response, mut message) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    message.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    let unread = response.await.unwrap();
    let mut backup = pieces(&mut operator).await;
    backup.message().await.unwrap().unwrap();
    operator.system.seal(seal()).await.unwrap();
    // INVARIANT (P7): nobody reads, and what made the backup is gone all the same, with the root keys that it had.
    eventually("the backup is let go", async || Arc::strong_count(broker.inner()) <= before).await;
    let end = loop {
        match backup.message().await {
            Ok(Some(answer)) => assert!(answer.done.is_none(), "it went on to its end"),
            end => break end,
        }
    };
    assert_eq!(refused(end), (Code::Unavailable, "SEALED".to_owned()));
    drop((unread, sender, stalling));
    let out = broker.dir.path().join("never.backup").display().to_string();
    let (code, error) = json_as(&broker, OPERATOR, &["operator", "backup", "--out", &out], "").await;
    assert_eq!((code, error["reason"].as_str()), (4, Some("SEALED")), "{error}");
    broker.stop().await;
    // On the machine itself a sealed vault is backed up, too, and restored it is sealed.
    let config = config_file(&broker, "p8broker.toml", &store_of(&broker));
    let (code, done) = here(&["operator", "backup", "--out", &out, "--config", config.to_str().unwrap()]);
    assert_eq!(code, 0, "{done}");
    let mut restored = elsewhere(&broker, StoreConfig::sqlite(broker.dir.path().join("restored.db")));
    let config = config_file(&restored, "restored.toml", &store_of(&restored));
    assert_eq!(restore(Path::new(&out), &config, &[]).0, 0);
    restored.run(None).await;
    assert_eq!(refused(restored.as_(CLIENT).await.issue(ask()).await).1, "SEALED");
    restored.stop().await;
}

/// Rows that are pruned while they are copied are found missing: half an audit is no backup.
#[tokio::test]
async fn a_prune_in_the_middle_of_a_backup_gives_it_up_and_the_next_one_is_whole() {
    let mut broker = Broker::start().await;
    for _ in 0..30 {
        broker.as_(CLIENT).await.issue(ask_fresh()).await.unwrap();
    }
    broker.stop().await;
    let store = open_store(&broker.config, &Metrics::new().unwrap()).await.unwrap();
    let key = UnsealKey::from_slice(&[0x5a; 32]).unwrap();
    let open = |row: &p8broker::vault::unseal::SealRow| Ok::<_, BrokerError>(row.open(&key).unwrap());
    let begin = || Backup::begin(std::sync::Arc::clone(&store), open, UnixMillis(0), "test");
    let mut backup = begin().await.unwrap();
    assert!(backup.next().await.unwrap().is_some());
    let writer = store.writer_ends().await.unwrap().remove(0).end.writer;
    assert!(store.remove_rows(&writer, 10, 100).await.unwrap() > 0);
    let error = loop {
        match backup.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("rows are missing and nobody says so"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason(), "BACKUP_GIVEN_UP");
    store.close().await;
    drop((store, backup));
    // What was pruned by the broker itself, with its record, is no hole.
    let mut broker = Broker::start().await;
    for _ in 0..5 {
        broker.as_(CLIENT).await.issue(ask_fresh()).await.unwrap();
    }
    broker.clock.advance(Duration::from_secs(3 * 3600));
    let before = Some(prost_types::Timestamp {
        seconds: UnixMillis(p8broker::clock::Clock::now(&*broker.clock).0).seconds() - 60,
        nanos: 0,
    });
    let pruned = broker.as_(OPERATOR).await.audit.prune(proto::PruneRequest { before }).await.unwrap().into_inner();
    assert!(pruned.rows > 5, "{pruned:?}");
    let file = back_up(&broker, "pruned.backup").await;
    broker.stop().await;
    let mut restored = elsewhere(&broker, StoreConfig::sqlite(broker.dir.path().join("restored.db")));
    let config = config_file(&restored, "restored.toml", &store_of(&restored));
    let (code, done) = restore(&file, &config, &[]);
    assert_eq!(code, 0, "{done}");
    restored.run(None).await;
    assert!(restored.as_(OPERATOR).await.verify().await.findings.is_empty());
    restored.stop().await;
}

#[tokio::test]
async fn custody_or_administer_may_back_up_and_that_is_in_the_audit() {
    let mut broker = Broker::start().await;
    let robot = "spiffe://acme.internal/ns/ops/sa/backup";
    let mut operator = broker.as_(OPERATOR).await;
    operator.apply(operator_with(robot, proto::Power::Custody)).await.unwrap();
    let out = broker.dir.path().join("by-robot.backup").display().to_string();
    assert_eq!(json_as(&broker, robot, &["operator", "backup", "--out", &out], "").await.0, 0);
    eventually("it is in the audit", async || {
        let events = operator.all_events().await;
        events
            .iter()
            .any(|event| event.event == "Backup" && event.caller == robot && event.outcome() == proto::Outcome::Read)
    })
    .await;
    operator.apply(operator_with(robot, proto::Power::Audit)).await.unwrap();
    let again = broker.dir.path().join("again.backup").display().to_string();
    let (code, error) = json_as(&broker, robot, &["operator", "backup", "--out", &again], "").await;
    assert_eq!((code, error["reason"].as_str()), (3, Some("POWER_MISSING")), "{error}");
    broker.stop().await;
}

fn operator_with(identity: &str, power: proto::Power) -> proto::Document {
    crate::harness::operator("backup-robot", identity, &[power])
}

/// A restore that ends half-way leaves an empty database, on either engine.
#[tokio::test]
async fn a_restore_that_is_given_up_half_way_leaves_nothing() {
    let mut broker = Broker::start().await;
    let file = back_up(&broker, "vault.backup").await;
    broker.stop().await;
    let whole = open_store(&broker.config, &Metrics::new().unwrap()).await.unwrap();
    let snapshot = whole.snapshot().await.unwrap().unwrap();
    let records = whole.records_from(p8broker::id::Revision(1), 100).await.unwrap();
    whole.close().await;
    for store in [StoreConfig::sqlite(broker.dir.path().join("half.db")), StoreConfig::url(&new_database().await)] {
        let mut half = elsewhere(&broker, store);
        let store = open_store(&half.config, &Metrics::new().unwrap()).await.unwrap();
        let (sender, receiver) = tokio::sync::mpsc::channel(1000);
        for record in records.clone() {
            sender.send(Ok(p8broker::store::part::Part::Record(record))).await.unwrap();
        }
        drop(sender);
        let ended = store.restore(&snapshot.seal, snapshot.head, receiver).await;
        assert!(matches!(&ended, Err(StoreError::Unavailable(why)) if why.contains("half-way")), "{ended:?}");
        assert!(!store.is_used().await.unwrap() && store.seal_row().await.unwrap().is_none());
        store.close().await;
        drop(store);
        let config = config_file(&half, "half.toml", &store_of(&half));
        assert_eq!(restore(&file, &config, &[]).0, 0);
        half.run(None).await;
        half.as_(CLIENT).await.issue(ask()).await.unwrap();
        half.stop().await;
    }
}
