//! Gauges: what the metrics say of a vault and its fleet, beside what is so.

use std::time::Duration;

use p8broker::grpc::proto;
use p8broker::grpc::proto::TargetKind;

use crate::harness::fleet::{Cluster, in_step};
use crate::harness::*;

/// The value of one line of the metrics; `None` where it is not there.
async fn value(broker: &Broker, line: &str) -> Option<f64> {
    let (_, text) = broker.ops("/metrics").await;
    text.lines().find_map(|it| it.strip_prefix(line)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn what_is_alive_is_shown_by_app_group_and_by_key_until_it_is_dead() {
    let mut broker = Broker::start().await;
    let mut client = broker.as_(CLIENT).await;
    let first = client.issue(ask()).await.unwrap();
    broker.clock.advance(Duration::from_secs(1));
    client.issue(ask_fresh()).await.unwrap();
    client.issue(ask()).await.unwrap();
    broker.inner().read_gauges().await;
    let key = format!("{{key_id=\"{}\"}}", first.key_id);
    let shown =
        async |broker: &Broker, name: &str, labels: &str| value(broker, &format!("p8broker_{name}{labels}")).await;
    let group = "{app_group=\"games\"}";
    assert_eq!(shown(&broker, "exposure_tokens", group).await, Some(2.0));
    assert_eq!(shown(&broker, "exposure_key_tokens", &key).await, Some(2.0));
    assert_eq!(shown(&broker, "exposure_last_expiry_seconds", group).await, Some(600.0));
    assert_eq!(shown(&broker, "exposure_key_last_expiry_seconds", &key).await, Some(600.0));
    let issued = |outcome: &str| format!("{{app_group=\"games\",outcome=\"{outcome}\",role=\"APP_MANAGER\"}}");
    assert_eq!(shown(&broker, "tokens_total", &issued("SIGNED")).await, Some(2.0));
    assert_eq!(shown(&broker, "tokens_total", &issued("REUSED")).await, Some(1.0));
    for step in ["authenticate", "decide", "sign", "commit"] {
        let count = shown(&broker, "issue_step_seconds_count", &format!("{{step=\"{step}\"}}")).await.unwrap();
        assert!(count >= 2.0, "{step}: {count}");
    }
    assert_eq!(shown(&broker, "commit_wait_seconds_count", "").await, Some(3.0));
    // Under a key that is revoked here they go on until it is revoked at Apple, too.
    assert_eq!(shown(&broker, "revoked_exposure_tokens", "").await, Some(0.0));
    let mut operator = broker.as_(OPERATOR).await;
    operator.revoke(TargetKind::Key, &first.key_id).await.unwrap();
    broker.inner().read_gauges().await;
    assert_eq!(shown(&broker, "revoked_exposure_tokens", "").await, Some(2.0));
    assert_eq!(shown(&broker, "keys", "{state=\"REVOKED\"}").await, Some(1.0));
    assert_eq!(shown(&broker, "revocation_apply_seconds_count", "").await, Some(1.0));
    broker.clock.advance(Duration::from_secs(600));
    broker.inner().read_gauges().await;
    assert_eq!(shown(&broker, "exposure_tokens", group).await, None, "nothing is alive");
    assert_eq!(shown(&broker, "revoked_exposure_tokens", "").await, Some(0.0));
    broker.stop().await;
}

#[tokio::test]
async fn keys_quotas_phases_and_certificates_are_shown() {
    let mut broker = Broker::start().await;
    let quota = Some(proto::Quota { tokens_per_hour: 10, fresh_per_minute: 0 });
    let mut operator = broker.as_(OPERATOR).await;
    operator.apply(policies(vec![proto::Policy { quota, ..release_policy() }])).await.unwrap();
    for _ in 0..4 {
        broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    }
    operator.import(&import("SECONDKEY2", &new_p8())).await.unwrap();
    broker.inner().read_gauges().await;
    broker.inner().show_present();
    for (line, wanted) in [
        ("p8broker_quota_used_ratio{policy=\"games-release-ci\"}", 0.4),
        ("p8broker_account_keys_ratio{account=\"acme\"}", 0.04),
        ("p8broker_keys{state=\"ACTIVE\"}", 2.0),
        ("p8broker_keys{state=\"SUSPENDED\"}", 0.0),
        ("p8broker_phase{phase=\"OPEN\"}", 1.0),
        ("p8broker_phase{phase=\"SEALED\"}", 0.0),
        ("p8broker_database_up", 1.0),
        ("p8broker_control_lag_revisions", 0.0),
        ("p8broker_audit_lag_seconds", 0.0),
        ("p8broker_client_certificates_near_expiry", 0.0),
    ] {
        assert_eq!(value(&broker, line).await, Some(wanted), "{line}");
    }
    let imported = "p8broker_key_import_timestamp_seconds{account=\"acme\",key_id=\"SECONDKEY2\"}";
    let now_s = p8broker::clock::Clock::now(&*broker.clock).seconds();
    assert_eq!(value(&broker, imported).await.map(f64::floor), Some(now_s as f64));
    let ca = value(&broker, "p8broker_ca_certificate_expiry_timestamp_seconds").await.unwrap();
    assert!(ca > now_s as f64, "{ca}");
    operator.system.seal(proto::SealRequest { reason: "a test".to_owned() }).await.unwrap();
    broker.inner().show_present();
    assert_eq!(value(&broker, "p8broker_phase{phase=\"SEALED\"}").await, Some(1.0));
    assert_eq!(value(&broker, "p8broker_phase{phase=\"OPEN\"}").await, Some(0.0));
    broker.stop().await;
}

#[tokio::test]
async fn a_sealed_vault_shows_tokens_die_and_nothing_that_it_does_not_know() {
    let mut broker = Broker::start().await;
    let key = broker.as_(CLIENT).await.issue(ask()).await.unwrap().key_id;
    let mut operator = broker.as_(OPERATOR).await;
    operator.revoke(TargetKind::Key, &key).await.unwrap();
    broker.inner().read_gauges().await;
    assert_eq!(value(&broker, "p8broker_revoked_exposure_tokens").await, Some(1.0));
    assert_eq!(value(&broker, "p8broker_account_keys_ratio{account=\"acme\"}").await, Some(0.02));
    operator.system.seal(proto::SealRequest { reason: "a test".to_owned() }).await.unwrap();
    for _ in 0..3 {
        broker.inner().show_present();
        broker.inner().read_gauges().await;
    }
    for (line, wanted) in [
        ("p8broker_revoked_exposure_tokens", Some(1.0)),
        ("p8broker_exposure_tokens{app_group=\"games\"}", Some(1.0)),
        ("p8broker_account_keys_ratio{account=\"acme\"}", None),
        ("p8broker_keys_unconfirmed_at_apple", Some(0.0)),
        ("p8broker_break_glass_open", Some(0.0)),
        ("p8broker_audit_lag_seconds", Some(0.0)),
        ("p8broker_database_up", Some(1.0)),
        // Looking is no request.
        ("p8broker_requests_while_sealed_total", Some(0.0)),
    ] {
        assert_eq!(value(&broker, line).await, wanted, "{line}");
    }
    refused(broker.as_(CLIENT).await.issue(ask()).await);
    assert_eq!(value(&broker, "p8broker_requests_while_sealed_total").await, Some(1.0));
    broker.clock.advance(Duration::from_secs(600));
    broker.inner().read_gauges().await;
    assert_eq!(value(&broker, "p8broker_revoked_exposure_tokens").await, Some(0.0), "they are dead");
    assert_eq!(value(&broker, "p8broker_exposure_tokens{app_group=\"games\"}").await, None);
    broker.stop().await;
}

#[tokio::test]
async fn telling_a_client_that_watches_is_measured_and_nothing_where_nobody_watches() {
    let mut broker = Broker::start().await;
    let count = async |broker: &Broker| value(broker, "p8broker_watch_delivery_seconds_count").await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.revoke(TargetKind::Client, "dns:nobody.acme.internal").await.unwrap();
    assert_eq!(count(&broker).await, Some(0.0));
    let mut client = broker.as_(CLIENT).await;
    let token = client.issue(ask()).await.unwrap().token_id;
    let mut watch = client.token.watch(proto::WatchRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap().expect("a first heartbeat");
    broker.clock.advance(Duration::from_secs(1));
    operator.revoke(TargetKind::Token, &token).await.unwrap();
    watch.message().await.unwrap().expect("what was revoked");
    assert_eq!(count(&broker).await, Some(1.0));
    drop(watch);
    broker.stop().await;
}

#[tokio::test]
async fn every_replica_shows_the_fleet_and_a_database_that_is_away() {
    let mut cluster = Cluster::start(2).await;
    cluster.replicas[0].as_(CLIENT).await.issue(ask()).await.unwrap();
    in_step(&cluster.replicas).await;
    for replica in &cluster.replicas {
        replica.inner().report().await;
    }
    for replica in &cluster.replicas {
        replica.inner().read_gauges().await;
        assert_eq!(value(replica, "p8broker_replicas").await, Some(2.0));
        assert_eq!(value(replica, "p8broker_exposure_tokens{app_group=\"games\"}").await, Some(1.0));
        assert_eq!(value(replica, "p8broker_database_up").await, Some(1.0));
        assert_eq!(value(replica, "p8broker_database_connections{state=\"used\"}").await, Some(0.0));
    }
    cluster.stop().await;
}
