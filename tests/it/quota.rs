//! Quotas, over gRPC: how much a client gets, what it is told then, and that nobody else notices.

use std::time::Duration;

use p8broker::clock::{Clock, SystemClock};
use p8broker::grpc::proto;
use p8broker::id::PolicyName;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::cli::json_as;
use crate::harness::fleet::{Cluster, in_step};
use crate::harness::tables::Tables;
use crate::harness::*;
use crate::store::faults::{contended, deaf as deaf_store};

const POLICY: &str = "games-release-ci";
const OTHER: &str = "spiffe://acme.internal/ns/ci/sa/release-two";
const THIRD: &str = "spiffe://acme.internal/ns/ci/sa/release-three";

fn bounded(tokens_per_hour: u32, fresh_per_minute: u32) -> proto::Document {
    let quota =
        Some(proto::Quota { tokens_per_hour: tokens_per_hour.into(), fresh_per_minute: fresh_per_minute.into() });
    policies(vec![proto::Policy { quota, ..release_policy() }])
}

/// A broker whose policy has a quota, and whose windows do not end during a test.
async fn broker(tokens_per_hour: u32, fresh_per_minute: u32) -> (Broker, Tables) {
    let broker = Broker::start().await;
    broker.as_(OPERATOR).await.apply(bounded(tokens_per_hour, fresh_per_minute)).await.unwrap();
    let tables = Tables::of(&broker);
    for client in [CLIENT, OTHER, THIRD] {
        tables.pin(POLICY, client).await;
    }
    (broker, tables)
}

/// Which bound a refusal names, and when to come back.
#[track_caller]
fn over<T: std::fmt::Debug>(answer: Result<T, Status>) -> (String, u64) {
    let status = answer.expect_err("it must be refused");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(info.reason, "QUOTA_EXCEEDED");
    assert_eq!(info.metadata["decision_id"].len(), 32);
    let retry_s = details.retry_info().unwrap().retry_delay.unwrap().as_secs();
    assert!(status.message().contains(&format!("try again in {retry_s} s")), "{}", status.message());
    (info.metadata["bound"].clone(), retry_s)
}

fn over_hour<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let (bound, retry_s) = over(answer);
    // Pinned an hour ahead, a while ago.
    assert!(bound == "tokens_per_hour" && (3500..=7200).contains(&retry_s), "{bound} {retry_s}");
}

fn over_minute<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let (bound, retry_s) = over(answer);
    assert!(bound == "fresh_per_minute" && (100..=240).contains(&retry_s), "{bound} {retry_s}");
}

async fn denials(broker: &Broker) -> Vec<proto::AuditEvent> {
    let events = broker.as_(OPERATOR).await.all_events().await;
    events.into_iter().filter(|event| event.outcome() == proto::Outcome::Denied).collect()
}

#[tokio::test]
async fn a_client_gets_its_tokens_and_then_is_told_when_to_come_back() {
    let (mut broker, tables) = broker(3, 0).await;
    let mut client = broker.as_(CLIENT).await;
    let first = client.issue(ask()).await.unwrap();
    for _ in 0..2 {
        assert!(client.issue(ask()).await.unwrap().reused, "what is reused counts as well");
    }
    for request in [ask(), ask_fresh(), ask()] {
        over_hour(client.issue(request).await);
    }
    let status = client.issue(ask()).await.unwrap_err();
    assert!(status.message().contains("tokens per hour"), "{}", status.message());
    // A script sees that the same may do later, and when.
    let issue = ["token", "issue", "--app-group", "games", "--role", "APP_MANAGER"];
    let (code, error) = json_as(&broker, CLIENT, &issue, "").await;
    assert_eq!((code, error["reason"].as_str()), (4, Some("QUOTA_EXCEEDED")));
    assert!(error["retry_after_s"].as_u64().is_some_and(|it| (3500..=7200).contains(&it)), "{error}");
    // Others have windows of their own.
    broker.as_(OTHER).await.issue(ask()).await.unwrap();
    let counts = tables.counts(POLICY, CLIENT).await.unwrap();
    assert_eq!((counts.hour_count, counts.minute_count), (3, 1));
    // A denial like any other: a row, without a token, and counted.
    eventually("the denials are in the audit", async || denials(&broker).await.len() == 5).await;
    for denial in denials(&broker).await {
        assert_eq!((denial.reason.as_str(), denial.caller.as_str()), ("QUOTA_EXCEEDED", CLIENT));
        assert_eq!((denial.policy.as_str(), denial.app_group.as_str()), (POLICY, "games"));
        assert!(denial.token_id.is_empty() && denial.key_id.is_empty(), "{denial:?}");
        assert!(denial.detail.ends_with("; tokens_per_hour"), "{}", denial.detail);
    }
    let (_, metrics) = broker.ops("/metrics").await;
    assert!(metrics.contains("p8broker_denials_total{reason=\"QUOTA_EXCEEDED\"} 5"), "{metrics}");
    // The decision that was told is found.
    let decision = status.get_error_details().error_info().unwrap().metadata["decision_id"].clone();
    assert!(denials(&broker).await.iter().any(|denial| denial.decision_id == decision));
    assert!(broker.as_(OPERATOR).await.verify().await.findings.is_empty());
    // What was handed out stays what it is.
    let revoked = broker.as_(OPERATOR).await.revoke(proto::TargetKind::Client, CLIENT).await.unwrap();
    assert_eq!(revoked.exposure.iter().map(|token| &token.token_id).collect::<Vec<_>>(), [&first.token_id]);
    broker.stop().await;
}

#[tokio::test]
async fn signed_tokens_are_bounded_by_the_minute_and_reused_ones_are_not() {
    let (mut broker, tables) = broker(0, 2).await;
    let mut client = broker.as_(CLIENT).await;
    let first = client.issue(ask()).await.unwrap();
    broker.clock.advance(Duration::from_secs(1));
    let second = client.issue(ask_fresh()).await.unwrap();
    assert!(!first.reused && !second.reused && first.token != second.token);
    for _ in 0..2 {
        over_minute(client.issue(ask_fresh()).await);
        let reused = client.issue(ask()).await.unwrap();
        assert!(reused.reused && reused.token == second.token, "no bound for these");
    }
    // Without a token to reuse, one would have to be signed.
    over_minute(client.issue(proto::IssueTokenRequest { ttl: duration(60), ..ask() }).await);
    let counts = tables.counts(POLICY, CLIENT).await.unwrap();
    assert_eq!((counts.hour_count, counts.minute_count), (4, 2));
    broker.stop().await;
}

/// One row that is over is refused; the batch is not, nor are others that wait with it.
#[tokio::test]
async fn a_full_quota_refuses_rows_one_by_one_and_never_the_batch() {
    const BOUND: usize = 40;
    let (mut broker, tables) = broker(BOUND.try_into().unwrap(), 0).await;
    let mut operator = broker.as_(OPERATOR).await;
    let free = proto::Policy {
        name: "free".to_owned(),
        clients: vec![spiffe("spiffe://acme.internal/free")],
        ..release_policy()
    };
    operator.apply(policies(vec![free])).await.unwrap();
    // All at once, from all of them, so that their rows stand in the same batches.
    let mut asks = JoinSet::new();
    for identity in [CLIENT, OTHER, "spiffe://acme.internal/free"] {
        let client = broker.as_(identity).await;
        let count = if identity == OTHER { BOUND } else { 3 * BOUND };
        for _ in 0..count {
            let mut client = client.clone();
            asks.spawn(async move { (identity, client.issue(ask()).await) });
        }
    }
    let answers = asks.join_all().await;
    let granted = |identity| answers.iter().filter(|(of, answer)| *of == identity && answer.is_ok()).count();
    assert_eq!(granted(CLIENT), BOUND, "exactly its bound");
    assert_eq!(granted(OTHER), BOUND, "to the last one");
    assert_eq!(granted("spiffe://acme.internal/free"), 3 * BOUND);
    for (identity, answer) in answers.iter().filter(|(_, answer)| answer.is_err()) {
        assert_eq!(*identity, CLIENT);
        over_hour(answer.clone());
    }
    assert_eq!(tables.counts(POLICY, CLIENT).await.unwrap().hour_count, 40);
    assert!(operator.verify().await.findings.is_empty(), "the chain is whole, whatever was tried");
    let handed_out = |event: &&proto::AuditEvent| event.caller == CLIENT && !event.token_id.is_empty();
    assert_eq!(operator.all_events().await.iter().filter(handed_out).count(), BOUND);
    broker.stop().await;
}

#[tokio::test]
async fn three_replicas_share_one_quota() {
    const BOUND: usize = 100;
    let mut cluster = Cluster::start(3).await;
    let mut operator = cluster.replicas[0].as_(OPERATOR).await;
    operator.apply(bounded(BOUND.try_into().unwrap(), 0)).await.unwrap();
    in_step(&cluster.replicas).await;
    let tables = Tables::of(&cluster.replicas[0]);
    tables.pin(POLICY, CLIENT).await;
    let mut asks = JoinSet::new();
    for replica in &cluster.replicas {
        let (client, other) = (replica.as_(CLIENT).await, replica.as_(OTHER).await);
        for nth in 0..80 {
            let (mut client, mut other) = (client.clone(), other.clone());
            asks.spawn(async move {
                if nth % 4 == 0 {
                    other.issue(ask()).await.expect("others are not touched");
                }
                client.issue(ask()).await
            });
        }
    }
    let answers = asks.join_all().await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), BOUND, "one quota for all replicas");
    for answer in answers.into_iter().filter(Result::is_err) {
        over_hour(answer);
    }
    assert_eq!(tables.counts(POLICY, CLIENT).await.unwrap().hour_count, 100);
    for replica in &cluster.replicas {
        over_hour(replica.as_(CLIENT).await.issue(ask()).await);
    }
    // The next hour.
    tables.roll().await;
    cluster.replicas[0].clock.advance(Duration::from_hours(2));
    for replica in &cluster.replicas {
        replica.as_(CLIENT).await.issue(ask()).await.unwrap();
    }
    assert_eq!(tables.counts(POLICY, CLIENT).await.unwrap().hour_count, 3);
    assert!(operator.verify().await.findings.is_empty());
    cluster.stop().await;
}

/// A full window is known, and costs no question; the knowledge ends with the window.
#[tokio::test]
async fn inv_quota_2_a_full_window_is_remembered_and_forgotten_when_it_ends() {
    let (mut broker, tables) = broker(2, 1).await;
    let mut client = broker.as_(CLIENT).await;
    client.issue(ask()).await.unwrap();
    over_minute(client.issue(ask_fresh()).await);
    client.issue(ask()).await.unwrap();
    over_hour(client.issue(ask()).await);
    eventually("the denials are written", async || denials(&broker).await.len() == 2).await;
    // Behind the broker's back there is room again, and it does not ask.
    tables.roll().await;
    over_hour(client.issue(ask()).await);
    eventually("the denial is written", async || denials(&broker).await.len() == 3).await;
    assert_eq!(tables.counts(POLICY, CLIENT).await.unwrap().hour_count, 2, "nobody asked");
    // It was told that the window ends within two hours.
    broker.clock.advance(Duration::from_hours(2));
    assert!(!client.issue(ask()).await.unwrap().reused);
    let counts = tables.counts(POLICY, CLIENT).await.unwrap();
    assert_eq!((counts.hour_count, counts.minute_count), (1, 1));
    broker.stop().await;
}

#[tokio::test]
async fn inv_quota_2_a_changed_quota_holds_at_once_on_every_replica() {
    let mut cluster = Cluster::start(2).await;
    let mut deaf = cluster.replicas[0].sibling(3);
    deaf.run(Some(deaf_store())).await;
    let mut operator = cluster.replicas[0].as_(OPERATOR).await;
    let mut clients =
        vec![cluster.replicas[0].as_(CLIENT).await, cluster.replicas[1].as_(CLIENT).await, deaf.as_(CLIENT).await];
    operator.apply(bounded(1, 0)).await.unwrap();
    Tables::of(&deaf).pin(POLICY, CLIENT).await;
    for client in &mut clients {
        let _ = client.issue(ask()).await;
    }
    for client in &mut clients {
        over_hour(client.issue(ask()).await);
    }
    // Raised on one replica: nobody refuses from memory what is granted now, also who has not heard of it.
    operator.apply(bounded(4, 0)).await.unwrap();
    for client in clients.iter_mut().rev() {
        client.issue(ask()).await.unwrap();
    }
    for client in &mut clients {
        over_hour(client.issue(ask()).await);
    }
    // Lowered: what was handed out counts. Who has not heard of it signs on the old bound, and is held to the new one.
    operator.apply(bounded(10, 0)).await.unwrap();
    clients[2].issue(ask()).await.unwrap();
    operator.apply(bounded(5, 0)).await.unwrap();
    for client in clients.iter_mut().rev() {
        over_hour(client.issue(ask()).await);
    }
    // And lifted.
    operator.apply(policies(vec![release_policy()])).await.unwrap();
    for client in &mut clients {
        client.issue(ask()).await.unwrap();
    }
    assert!(operator.verify().await.findings.is_empty());
    deaf.stop().await;
    cluster.stop().await;
}

/// Where others are always faster, the rows of that quota come back and are tried again, a bounded number of times; who
/// waits with them is served.
#[tokio::test]
async fn a_contended_quota_is_given_up_after_a_while_and_holds_up_nobody() {
    let mut broker = Broker::with(Options { wrap: Some(contended()), ..Options::default() }).await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.apply(bounded(10, 0)).await.unwrap();
    let free = proto::Policy { name: "free".to_owned(), clients: vec![spiffe(STRANGER)], ..release_policy() };
    operator.apply(policies(vec![free])).await.unwrap();
    let mut asks = JoinSet::new();
    for identity in [CLIENT, STRANGER, CLIENT, STRANGER] {
        let mut client = broker.as_(identity).await;
        asks.spawn(async move { (identity, client.issue(ask_fresh()).await) });
    }
    for (identity, answer) in asks.join_all().await {
        if identity == STRANGER {
            answer.unwrap();
        } else {
            assert_eq!(refused(answer), (Code::Unavailable, "CONTENDED".to_owned()));
        }
    }
    assert!(operator.verify().await.findings.is_empty());
    broker.stop().await;
}

#[tokio::test]
async fn a_quota_is_shown_as_it_was_applied_and_zero_is_no_bound() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    for (tokens_per_hour, fresh_per_minute) in [(60, 5), (60, 0), (0, 5)] {
        operator.apply(bounded(tokens_per_hour, fresh_per_minute)).await.unwrap();
        let request = proto::GetPolicyRequest { name: POLICY.to_owned() };
        let shown = operator.policy.get_policy(request).await.unwrap().into_inner();
        assert_eq!(
            shown.policy.unwrap().quota,
            Some(proto::Quota { tokens_per_hour: tokens_per_hour.into(), fresh_per_minute: fresh_per_minute.into() })
        );
        let by = shown.enforced_by.iter().find(|it| it.limit == "quota").unwrap().enforced_by();
        assert_eq!(by, proto::EnforcedBy::BrokerAtIssue, "P9");
    }
    operator.apply(bounded(0, 0)).await.unwrap();
    let state = broker.inner().open().unwrap().state();
    assert_eq!(state.policies()[&PolicyName::parse(POLICY).unwrap()].quota, None);
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    assert_eq!(Tables::of(&broker).counts(POLICY, CLIENT).await, None, "what is not bounded is not counted");
    broker.restart().await;
    broker.stop().await;
}

/// What is on the disk outlives the process: a restart gives nobody more.
#[tokio::test]
async fn a_restart_does_not_begin_a_window_anew() {
    let (mut broker, _) = broker(2, 0).await;
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.restart().await;
    let mut client = broker.as_(CLIENT).await;
    client.issue(ask()).await.unwrap();
    over_hour(client.issue(ask()).await);
    broker.stop().await;
}

#[tokio::test]
async fn a_window_is_the_databases_whatever_the_brokers_clock_says() {
    let mut broker = Broker::start().await;
    broker.as_(OPERATOR).await.apply(bounded(60, 0)).await.unwrap();
    broker.clock.advance(Duration::from_hours(100));
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    let (hour, now) =
        (Tables::of(&broker).counts(POLICY, CLIENT).await.unwrap().hour, SystemClock.now().seconds() / 3600);
    assert!((now - 1..=now).contains(&hour));
    broker.stop().await;
}
