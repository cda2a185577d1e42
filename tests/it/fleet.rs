//! Replicas on one PostgreSQL: what one does holds on all of them, from the moment it returns.

use std::time::Duration;

use p8broker::grpc::proto;
use p8broker::grpc::proto::TargetKind;
use p8broker::grpc::proto::watch_response::Event;
use tonic::Code;

use crate::harness::fleet::{Cluster, in_step, new_database};
use crate::harness::*;
use crate::store::faults::deaf as deaf_store;

#[tokio::test]
async fn p5_a_revoke_on_one_replica_binds_all_of_them_at_once() {
    let mut cluster = Cluster::start(3).await;
    let mut operators = Vec::new();
    let mut clients = Vec::new();
    for replica in &cluster.replicas {
        operators.push(replica.as_(OPERATOR).await);
        clients.push(replica.as_(CLIENT).await);
    }
    for round in 0..20 {
        let mut ids = Vec::new();
        for client in &mut clients {
            ids.push(client.issue(ask()).await.unwrap().token_id);
        }
        ids.sort();
        ids.dedup();
        // Nothing is waited for between the answer of one and the question to the others.
        let revoked = operators[round % 3].revoke(TargetKind::Client, CLIENT).await.unwrap();
        for client in &mut clients {
            for request in [ask(), ask_fresh()] {
                assert_eq!(refused(client.issue(request).await).1, "CLIENT_REVOKED");
            }
        }
        let mut exposed: Vec<_> = revoked.exposure.iter().map(|token| token.token_id.clone()).collect();
        exposed.dedup();
        assert!(ids.iter().all(|id| exposed.contains(id)), "what was handed out is in the answer");
        let lift =
            proto::ReinstateRequest { target: Some(target(TargetKind::Client, CLIENT)), reason: "a test".to_owned() };
        operators[(round + 1) % 3].revocation.reinstate(lift).await.unwrap();
    }
    assert!(operators[0].verify().await.findings.is_empty());
    cluster.stop().await;
}

/// "It is so already" is an answer about the newest state, also where a replica has not heard of it. Found by `make chaos`.
#[tokio::test]
async fn p5_a_replica_that_hears_nothing_answers_changes_from_the_newest_state_all_the_same() {
    let mut cluster = Cluster::start(2).await;
    let mut deaf = cluster.replicas[0].sibling(3);
    deaf.run(Some(deaf_store())).await;
    let mut there = cluster.replicas[0].as_(OPERATOR).await;
    let mut here = deaf.as_(OPERATOR).await;
    let mut client = cluster.replicas[1].as_(CLIENT).await;
    let lift =
        || proto::ReinstateRequest { target: Some(target(TargetKind::Client, CLIENT)), reason: "a test".to_owned() };
    for _ in 0..5 {
        here.revoke(TargetKind::Client, CLIENT).await.unwrap();
        there.revocation.reinstate(lift()).await.unwrap();
        // To the deaf one it is still revoked; its answer must be a revoke all the same.
        here.revoke(TargetKind::Client, CLIENT).await.unwrap();
        assert_eq!(refused(client.issue(ask_fresh()).await).1, "CLIENT_REVOKED");
        there.revocation.reinstate(lift()).await.unwrap();
        there.revoke(TargetKind::Client, CLIENT).await.unwrap();
        here.revocation.reinstate(lift()).await.unwrap();
        client.issue(ask_fresh()).await.unwrap();
        // And what was granted elsewhere is granted here.
        deaf.as_(CLIENT).await.issue(ask_fresh()).await.unwrap();
    }
    deaf.stop().await;
    cluster.stop().await;
}

#[tokio::test]
async fn what_one_replica_imports_rotates_and_rekeys_all_of_them_go_on_with() {
    let mut cluster = Cluster::start(3).await;
    let mut one = cluster.replicas[0].as_(OPERATOR).await;
    let mut two = cluster.replicas[1].as_(OPERATOR).await;
    // The newest import of equal keys is the one that signs.
    one.import(&import("SECONDKEY1", &new_p8())).await.unwrap();
    for replica in &cluster.replicas {
        eventually("the new key signs on every replica", async || {
            replica.as_(CLIENT).await.issue(ask_fresh()).await.unwrap().key_id == "SECONDKEY1"
        })
        .await;
    }
    one.system.rotate(proto::RotateRequest {}).await.unwrap();
    two.import(&import("THIRDKEY11", &new_p8())).await.unwrap();
    two.system.rekey(proto::RekeyRequest::default()).await.unwrap();
    one.system.rotate(proto::RotateRequest {}).await.unwrap();
    one.import(&import("FOURTHKEY1", &new_p8())).await.unwrap();
    in_step(&cluster.replicas).await;
    for replica in &cluster.replicas {
        let issued = replica.as_(CLIENT).await.issue(ask_fresh()).await.unwrap();
        assert_eq!(issued.key_id, "FOURTHKEY1");
        let status = replica.as_(OPERATOR).await.system.status(proto::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.root_key_version, status.unseal_generation), (3, 2));
    }
    one.revoke(TargetKind::Key, "FOURTHKEY1").await.unwrap();
    for replica in &cluster.replicas {
        assert_eq!(replica.as_(CLIENT).await.issue(ask_fresh()).await.unwrap().key_id, "THIRDKEY11");
    }
    assert!(two.verify().await.findings.is_empty());
    for replica in &mut cluster.replicas {
        replica.restart().await;
        assert!(replica.is_open(), "every replica opens what the others made of it");
    }
    cluster.stop().await;
}

#[tokio::test]
async fn p7_a_seal_reaches_every_replica_and_lifting_it_too() {
    let mut cluster = Cluster::start(3).await;
    let mut operator = cluster.replicas[0].as_(OPERATOR).await;
    let mut clients = Vec::new();
    for replica in &cluster.replicas {
        clients.push(replica.as_(CLIENT).await);
        clients.last_mut().unwrap().issue(ask()).await.unwrap();
    }
    operator.system.seal(proto::SealRequest { reason: "a test".to_owned() }).await.unwrap();
    for client in &mut clients {
        assert_eq!(refused(client.issue(ask()).await), (Code::Unavailable, "SEALED".to_owned()));
    }
    // A restarted replica meets the seal; nothing lifts it by itself.
    cluster.replicas[2].restart().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for replica in &cluster.replicas {
        assert!(!replica.is_open());
    }
    let mut other = cluster.replicas[1].as_(OPERATOR).await;
    other.system.unseal(proto::UnsealRequest::default()).await.unwrap();
    for replica in &cluster.replicas {
        eventually("every replica with the key file opens again", async || replica.is_open()).await;
        replica.as_(CLIENT).await.issue(ask()).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_vault_that_one_replica_makes_is_found_by_the_others_and_all_describe_themselves() {
    let options = Options { url: Some(new_database().await), anchor: true, ..Options::default() };
    let mut first = Broker::bare(options).await;
    let mut second = first.sibling(2);
    std::fs::remove_file(second.config.anchor.file.as_ref().unwrap()).unwrap();
    second.run(None).await;
    let mut operator = second.as_(OPERATOR).await;
    operator.system.init(proto::InitRequest::default()).await.unwrap();
    eventually("the other one finds the vault", async || first.is_open()).await;
    let mut operator = first.as_(OPERATOR).await;
    eventually("both have described themselves", async || {
        let status = operator.system.status(proto::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.replica, "replica-1");
        let open: Vec<_> = status.replicas.iter().filter(|it| it.phase() == proto::Phase::Open).collect();
        open.len() == 2 && open[0].name == "replica-1" && open[1].version == env!("CARGO_PKG_VERSION")
    })
    .await;
    let again = operator.system.init(proto::InitRequest::default()).await;
    assert_eq!(refused(again).1, "ALREADY_INITIALISED");
    // The one that waited has started its anchor by itself.
    assert!(first.config.anchor.file.as_ref().unwrap().exists());
    first.restart().await;
    assert!(first.is_open());
    first.stop().await;
    second.stop().await;
}

/// Copies every table into another, or back: COLUMNS are those of TABLE that can be written.
async fn tables(url: &str, statement: &str) {
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(url).await.unwrap();
    let tables = ["seal", "control_head", "control_log", "sealed_keys", "audit_writer", "audit"];
    let mut statements = Vec::new();
    for table in tables {
        let columns = "select string_agg(column_name, ',') from information_schema.columns \
            where table_schema = current_schema and table_name = $1 and is_generated = 'NEVER'";
        let columns: String = sqlx::query_scalar(columns).bind(table).fetch_one(&mut connection).await.unwrap();
        statements.push(statement.replace("TABLE", table).replace("COLUMNS", &columns));
    }
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("begin; {}; commit", statements.join("; "))))
        .execute(&mut connection)
        .await
        .unwrap();
}

#[tokio::test]
async fn p2_a_database_that_went_back_is_refused_until_an_operator_accepts_it_by_name() {
    let mut cluster = Cluster::with(3, Options { anchor: true, ..Options::default() }).await;
    let url = cluster.replicas[0].config.store.url.clone().unwrap().0;
    let mut operator = cluster.replicas[0].as_(OPERATOR).await;
    in_step(&cluster.replicas).await;
    tables(&url, "create table old_TABLE as table TABLE").await;
    operator.revoke(TargetKind::Client, STRANGER).await.unwrap();
    let seen = operator.revoke(TargetKind::Client, CLIENT).await.unwrap().revision;
    in_step(&cluster.replicas).await;
    // An asynchronous failover that lost both revokes.
    tables(&url, "delete from TABLE; insert into TABLE (COLUMNS) select COLUMNS from old_TABLE").await;
    for replica in &cluster.replicas {
        let mut client = replica.as_(CLIENT).await;
        eventually("every replica refuses", async || refused(client.issue(ask_fresh()).await).1 == "REFUSING_TO_SERVE")
            .await;
    }
    let lost = operator.system.status(proto::StatusRequest {}).await.unwrap().into_inner();
    assert!(lost.why.contains(&format!("revisions {} to {seen} are missing", seen - 1)), "{}", lost.why);
    let lost = lost.lost_history.unwrap();
    assert_eq!((lost.seen_revision, lost.database_revision), (seen, seen - 2));
    // One that is started anew knows it by its anchor.
    cluster.replicas[2].restart().await;
    let mut third = cluster.replicas[2].as_(OPERATOR).await;
    assert_eq!(third.system.status(proto::StatusRequest {}).await.unwrap().into_inner().lost_history, Some(lost));
    let accept = |database_revision, seen_revision| proto::AcceptHistoryRequest {
        database_revision,
        seen_revision,
        reason: "the old primary is lost".to_owned(),
    };
    let mut client = cluster.replicas[0].as_(CLIENT).await;
    assert_eq!(refused(client.system.accept_history(accept(seen - 2, seen)).await).1, "POWER_MISSING");
    assert_eq!(refused(operator.system.accept_history(accept(seen - 2, seen + 1)).await).1, "HISTORY_MOVED");
    operator.system.accept_history(accept(seen - 2, seen)).await.unwrap();
    for replica in &cluster.replicas {
        eventually("every replica serves again", async || replica.is_open()).await;
        replica.as_(CLIENT).await.issue(ask_fresh()).await.unwrap();
    }
    assert!(operator.all_events().await.iter().any(|event| event.event == "HISTORY_ACCEPTED"));
    // A watch that goes on from what is lost is told so: its revision is another one here.
    in_step(&cluster.replicas).await;
    let request = proto::WatchRequest { from_revision: seen };
    let mut watch = client.token.watch(request).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert!(first.revision >= seen && matches!(first.event, Some(Event::Resynchronise(_))), "{first:?}");
    drop(watch);
    assert!(operator.verify().await.findings.is_empty());
    assert_eq!(refused(operator.system.accept_history(accept(seen - 2, seen)).await).1, "HISTORY_UNCHANGED");
    // The acceptance is about this loss: the next one is refused again, also where it goes back to before it.
    in_step(&cluster.replicas).await;
    tables(&url, "delete from TABLE; insert into TABLE (COLUMNS) select COLUMNS from old_TABLE").await;
    for replica in &cluster.replicas {
        eventually("every replica refuses again", async || !replica.is_open()).await;
    }
    cluster.replicas[2].restart().await;
    assert!(!cluster.replicas[2].is_open());
    cluster.stop().await;
}

#[tokio::test]
async fn a_record_that_a_newer_release_wrote_stops_a_replica() {
    let mut cluster = Cluster::start(2).await;
    let url = cluster.replicas[0].config.store.url.clone().unwrap().0;
    // Nothing that this release can seal is unknown to it; one that does not open is not skipped either.
    let sql = "insert into control_log select revision + 1, 0, h.chain, '\\x01'::bytea from control_head h; \
               update control_head set revision = revision + 1, chain = decode(repeat('ab', 32), 'hex')";
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    for replica in &cluster.replicas {
        eventually("it refuses", async || !replica.is_open()).await;
        let mut client = replica.as_(CLIENT).await;
        assert_eq!(refused(client.issue(ask()).await).1, "REFUSING_TO_SERVE");
    }
    cluster.stop().await;
}

/// A client stopped in the middle of a statement holds the lock of the fence: in the middle of a commit of rows or of a
/// change. Whoever waits for it ends it and goes on, a revoke as well as a token.
#[tokio::test]
async fn p5_a_client_that_hangs_while_it_holds_the_fence_is_ended() {
    let mut cluster = Cluster::start(2).await;
    let url = cluster.replicas[0].config.store.url.clone().unwrap().0;
    for lock in ["pg_advisory_xact_lock_shared", "pg_advisory_xact_lock"] {
        let mut hanging = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
        let hold = format!("begin; select {lock}('control_head'::regclass::bigint)");
        sqlx::raw_sql(sqlx::AssertSqlSafe(hold)).execute(&mut hanging).await.unwrap();
        let mut client = cluster.replicas[0].as_(CLIENT).await;
        let mut operator = cluster.replicas[0].as_(OPERATOR).await;
        // The revoke queues behind a token that waits for the same lock.
        let token = client.issue(ask_fresh());
        let revoke = operator.revoke(TargetKind::Client, STRANGER);
        let both = async { tokio::join!(token, revoke) };
        let (token, revoke) = tokio::time::timeout(Duration::from_secs(3), both).await.expect("within 3 s");
        token.unwrap();
        revoke.unwrap();
        assert!(sqlx::raw_sql("select 1").execute(&mut hanging).await.is_err(), "its connection is gone");
        let lift =
            proto::ReinstateRequest { target: Some(target(TargetKind::Client, STRANGER)), reason: "a test".to_owned() };
        operator.revocation.reinstate(lift).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_replica_whose_database_is_away_says_that_it_is_not_ready_and_recovers_by_itself() {
    let mut cluster = Cluster::start(1).await;
    let replica = &cluster.replicas[0];
    assert_eq!(replica.ops("/readyz").await.0, 200);
    let url = replica.config.store.url.clone().unwrap().0;
    let name = url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let server = url.replace(&format!("/{name}?"), "/postgres?");
    let mut admin = <sqlx::PgConnection as sqlx::Connection>::connect(&server).await.unwrap();
    let away = format!(
        "alter database {name} allow_connections false; select pg_terminate_backend(pid) from pg_stat_activity \
         where datname = '{name}'"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(away)).execute(&mut admin).await.unwrap();
    let mut client = replica.as_(CLIENT).await;
    assert_eq!(refused(client.issue(ask_fresh()).await), (Code::Unavailable, "AUDIT_UNAVAILABLE".to_owned()));
    eventually("it is not ready", async || {
        let (status, why) = replica.ops("/readyz").await;
        status == 503 && why.contains("DATABASE_UNAVAILABLE")
    })
    .await;
    let back = format!("alter database {name} allow_connections true");
    sqlx::raw_sql(sqlx::AssertSqlSafe(back)).execute(&mut admin).await.unwrap();
    eventually("it issues again", async || client.issue(ask_fresh()).await.is_ok()).await;
    eventually("it is ready again", async || replica.ops("/readyz").await.0 == 200).await;
    assert!(replica.ops("/metrics").await.1.contains("p8broker_listener_up"));
    cluster.stop().await;
}

/// Two replicas that reach the same tables by different search paths are held by one fence.
#[tokio::test]
async fn p5_the_lock_of_the_fence_is_the_tables_own_whatever_path_leads_there() {
    let mut cluster = Cluster::start(1).await;
    let url = cluster.replicas[0].config.store.url.clone().unwrap().0;
    let mut elsewhere = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
    let hold = "create schema other; set search_path = other, public; begin; \
                select pg_advisory_xact_lock('control_head'::regclass::bigint)";
    sqlx::raw_sql(hold).execute(&mut elsewhere).await.unwrap();
    let mut client = cluster.replicas[0].as_(CLIENT).await;
    let waiting = tokio::time::timeout(Duration::from_millis(300), client.issue(ask_fresh())).await;
    assert!(waiting.is_err(), "a token waits for a change that holds the fence");
    sqlx::raw_sql("rollback").execute(&mut elsewhere).await.unwrap();
    client.issue(ask_fresh()).await.unwrap();
    cluster.stop().await;
}
