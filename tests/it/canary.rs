//! The canary: that a fleet tries its own revocation, sees it, and leaves nothing behind.

use std::sync::Arc;
use std::time::Duration;

use p8broker::broker::{BrokerError, CanaryError};
use p8broker::grpc::proto;
use tokio::task::JoinSet;
use tonic::Code;

use crate::harness::fleet::{Cluster, in_step, new_database};
use crate::harness::*;

async fn shown(broker: &Broker, line: &str) -> Option<f64> {
    let (_, text) = broker.ops("/metrics").await;
    text.lines().find_map(|it| it.strip_prefix(line)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn a_run_sees_the_refusal_and_leaves_no_token_no_plan_and_no_key_behind() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let moved = broker.inner().open().unwrap().state().last_move();
    broker.inner().report().await;
    let seconds = broker.inner().lead_canary().await.unwrap();
    assert!((0.0..10.0).contains(&seconds), "{seconds}");
    let state = broker.inner().open().unwrap().state();
    assert_eq!(state.canary_suspended(), None, "it may sign again");
    assert_eq!(state.last_move(), moved, "no plan is spoiled");
    drop(state);
    // In the audit it is told what happened; no token is alive, and none was counted.
    let events = operator.all_events().await;
    let of_canary: Vec<_> = events.iter().filter(|it| it.event.starts_with("CANARY_")).collect();
    let mut names: Vec<_> = of_canary.iter().map(|it| it.event.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["CANARY_RESUMED", "CANARY_SUSPENDED", "CANARY_TOKEN", "CANARY_TOKEN"]);
    assert!(of_canary.iter().all(|it| it.token_id.is_empty() && it.caller == "broker"), "{of_canary:?}");
    broker.inner().read_gauges().await;
    let (_, text) = broker.ops("/metrics").await;
    assert!(!text.contains("p8broker_exposure_tokens{") && !text.contains("p8broker_tokens_total{"), "{text}");
    assert_eq!(shown(&broker, "p8broker_canary_runs_total{outcome=\"ok\"}").await, Some(1.0));
    assert_eq!(shown(&broker, "p8broker_canary_runs_total{outcome=\"failed\"}").await, Some(0.0));
    assert_eq!(shown(&broker, "p8broker_canary_revocation_seconds_count").await, Some(1.0));
    assert!(shown(&broker, "p8broker_canary_last_success_timestamp_seconds").await.unwrap() > 0.0);
    assert!(operator.key.list_keys(proto::ListKeysRequest::default()).await.unwrap().into_inner().keys.len() == 1);
    assert!(operator.verify().await.findings.is_empty());
    broker.restart().await;
    broker.inner().lead_canary().await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn every_replica_is_seen_to_refuse_and_a_silent_one_fails_the_run() {
    let mut cluster = Cluster::start(3).await;
    in_step(&cluster.replicas).await;
    for replica in &cluster.replicas {
        replica.inner().report().await;
    }
    let (first, second) = (cluster.replicas[0].inner(), cluster.replicas[1].inner());
    first.lead_canary().await.unwrap();
    second.lead_canary().await.unwrap();
    let url = cluster.replicas[0].config.store.url.clone().unwrap().0;
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
    let refusals: Vec<(String, i64)> = sqlx::query_as("select replica, revision from canary_refusal order by replica")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    assert_eq!(refusals.len(), 3);
    assert!(refusals.iter().all(|(_, revision)| *revision == refusals[0].1), "{refusals:?}");
    // A replica that says that it is alive, and is not seen to refuse.
    let ghost = "insert into replica (name, version, phase, revision, started_ms, seen_ms) \
        select 'ghost', version, phase, revision, started_ms, seen_ms from replica limit 1";
    sqlx::raw_sql(ghost).execute(&mut connection).await.unwrap();
    let failed = first.lead_canary().await.unwrap_err();
    assert!(failed.to_string().contains("ghost") && !failed.to_string().contains("replica-"), "{failed}");
    assert_eq!(shown(&cluster.replicas[0], "p8broker_canary_runs_total{outcome=\"failed\"}").await, Some(1.0));
    // The key is resumed all the same, and the next run succeeds once the ghost is gone.
    assert_eq!(first.open().unwrap().state().canary_suspended(), None);
    sqlx::raw_sql("delete from replica where name = 'ghost'").execute(&mut connection).await.unwrap();
    first.lead_canary().await.unwrap();
    // One that stopped said so: nobody waits for it, and it is not counted.
    let first = first.clone();
    let mut stopped = cluster.replicas.pop().unwrap();
    stopped.stop().await;
    first.lead_canary().await.unwrap();
    cluster.replicas[0].inner().read_gauges().await;
    assert_eq!(shown(&cluster.replicas[0], "p8broker_replicas").await, Some(2.0));
    cluster.stop().await;
}

#[tokio::test]
async fn one_run_at_a_time_for_the_whole_fleet() {
    let mut cluster = Cluster::start(2).await;
    let url = cluster.replicas[0].config.store.url.clone().unwrap().0;
    for replica in &mut cluster.replicas {
        replica.config.canary.every_s = 3600;
        replica.restart().await;
    }
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
    let runs = async |cluster: &Cluster| {
        let mut all = 0.0;
        for replica in &cluster.replicas {
            for outcome in ["ok", "failed"] {
                let line = format!("p8broker_canary_runs_total{{outcome=\"{outcome}\"}}");
                all += shown(replica, &line).await.unwrap();
            }
        }
        all
    };
    // Not due: an hour has not passed since the schema was made.
    for replica in &cluster.replicas {
        replica.inner().run_canary().await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(runs(&cluster).await, 0.0);
    sqlx::raw_sql("update canary set started_ms = started_ms - 3600000").execute(&mut connection).await.unwrap();
    for _ in 0..3 {
        for replica in &cluster.replicas {
            replica.inner().run_canary().await;
        }
    }
    eventually("one of them led", async || runs(&cluster).await == 1.0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(runs(&cluster).await, 1.0);
    // A leader that stops while it waits for a silent replica does not wait any longer, and its run is nobody's.
    let ghost = "insert into replica (name, version, phase, revision, started_ms, seen_ms) \
        values ('ghost', '0', 'OPEN', 1, 1, 9000000000000); update canary set started_ms = started_ms - 3600000";
    sqlx::raw_sql(ghost).execute(&mut connection).await.unwrap();
    let leader = cluster.replicas[0].inner().clone();
    leader.run_canary().await;
    eventually("it waits", async || leader.open().unwrap().state().canary_suspended().is_some()).await;
    let stopped = tokio::time::timeout(Duration::from_secs(8), cluster.replicas[0].restart());
    stopped.await.expect("it stops while its run has seconds to go");
    cluster.stop().await;
}

/// A leader that dies between suspending and resuming.
#[tokio::test]
async fn a_key_that_a_dead_leader_left_suspended_is_resumed_by_the_next_run() {
    let mut broker = Broker::start().await;
    broker.inner().suspend_canary().await.unwrap();
    broker.restart().await;
    assert!(broker.inner().open().unwrap().state().canary_suspended().is_some());
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.inner().lead_canary().await.unwrap();
    assert_eq!(broker.inner().open().unwrap().state().canary_suspended(), None);
    broker.as_(OPERATOR).await.system.seal(proto::SealRequest { reason: "a test".to_owned() }).await.unwrap();
    assert!(broker.inner().lead_canary().await.is_err(), "a sealed vault has no canary");
    assert_eq!(refused(broker.as_(CLIENT).await.issue(ask()).await).0, Code::Unavailable);
    broker.stop().await;
}

/// A run that waits for a silent replica when the vault is sealed.
#[tokio::test]
async fn p7_a_run_keeps_no_root_keys_of_a_vault_that_is_sealed_meanwhile() {
    let mut broker = Broker::with(Options { url: Some(new_database().await), ..Options::default() }).await;
    let url = broker.config.store.url.clone().unwrap().0;
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
    let ghost = "insert into replica (name, version, phase, revision, started_ms, seen_ms) \
        values ('ghost', '0', 'OPEN', 1, 1, 9000000000000)";
    sqlx::raw_sql(ghost).execute(&mut connection).await.unwrap();
    let leader = broker.inner().clone();
    let mut runs = JoinSet::new();
    runs.spawn(async move { leader.lead_canary().await });
    let open = Arc::downgrade(&broker.inner().open().unwrap());
    eventually("it waits", async || broker.inner().open().unwrap().state().canary_suspended().is_some()).await;
    broker.as_(OPERATOR).await.system.seal(proto::SealRequest { reason: "a test".to_owned() }).await.unwrap();
    // INVARIANT (P7): well before the run would give up waiting.
    let ended = tokio::time::timeout(Duration::from_secs(4), runs.join_next()).await;
    let ended = ended.expect("it ends with the vault").unwrap().unwrap();
    assert!(matches!(ended, Err(CanaryError::Broker(BrokerError::Sealed { .. }))), "{ended:?}");
    eventually("nothing holds what was open", async || open.strong_count() == 0).await;
    assert_eq!(shown(&broker, "p8broker_canary_runs_total{outcome=\"failed\"}").await, Some(0.0), "it has not failed");
    broker.stop().await;
}
