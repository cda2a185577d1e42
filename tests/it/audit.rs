//! The audit: listing, following, verifying, pruning.

use std::time::Duration;

use p8broker::grpc::proto;

use crate::harness::*;

#[tokio::test]
async fn rows_are_filtered_and_paged() {
    let mut broker = Broker::start().await;
    let (mut operator, mut client) = (broker.as_(OPERATOR).await, broker.as_(CLIENT).await);
    for _ in 0..5 {
        client.issue(ask_fresh()).await.unwrap();
        broker.clock.advance(Duration::from_secs(1));
    }
    client.issue(ask()).await.unwrap();
    let middle =
        prost_types::Timestamp { seconds: p8broker::clock::Clock::now(&*broker.clock).seconds() - 2, nanos: 0 };
    let lister = operator.clone();
    let count = async |filter: proto::AuditFilter| {
        let mut operator = lister.clone();
        let (mut found, mut page_token) = (0, String::new());
        loop {
            let request = proto::ListRequest { filter: Some(filter.clone()), page_size: 2, page_token };
            let page = operator.audit.list(request).await.unwrap().into_inner();
            found += page.events.len();
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return found;
            }
        }
    };
    let none = proto::AuditFilter::default;
    assert_eq!(count(proto::AuditFilter { outcome: proto::Outcome::Signed.into(), ..none() }).await, 5);
    assert_eq!(count(proto::AuditFilter { outcome: proto::Outcome::Reused.into(), ..none() }).await, 1);
    assert_eq!(count(proto::AuditFilter { client: CLIENT.to_owned(), ..none() }).await, 6);
    assert_eq!(count(proto::AuditFilter { key_id: KEY_ID.to_owned(), ..none() }).await, 7);
    assert_eq!(count(proto::AuditFilter { policy: "games-release-ci".to_owned(), ..none() }).await, 6);
    assert_eq!(count(proto::AuditFilter { policy: "x' or 1=1 --".to_owned(), ..none() }).await, 0);
    let client_rows = proto::AuditFilter { client: CLIENT.to_owned(), ..none() };
    assert_eq!(count(proto::AuditFilter { from: Some(middle), ..client_rows.clone() }).await, 3);
    assert_eq!(count(proto::AuditFilter { until: Some(middle), ..client_rows }).await, 3);
    let counted = count(none()).await;
    assert_eq!(counted, operator.all_events().await.len());
    broker.stop().await;
}

#[tokio::test]
async fn a_follower_sees_rows_as_they_come() {
    let mut broker = Broker::start().await;
    let (mut operator, mut client) = (broker.as_(OPERATOR).await, broker.as_(CLIENT).await);
    let mut rows = operator.audit.follow(proto::FollowRequest { filter: None }).await.unwrap().into_inner();
    for nth in 0..3 {
        let issued = client.issue(proto::IssueTokenRequest { ttl: duration(60 + nth), ..ask() }).await.unwrap();
        let next = tokio::time::timeout(Duration::from_secs(10), rows.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(next.event.unwrap().token_id, issued.token_id);
    }
    let from = Some(prost_types::Timestamp { seconds: 0, nanos: 0 });
    let filter = Some(proto::AuditFilter { from, ..proto::AuditFilter::default() });
    let mut past = operator.audit.follow(proto::FollowRequest { filter }).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while seen.len() < 7 {
        let next = tokio::time::timeout(Duration::from_secs(10), past.message()).await.unwrap().unwrap().unwrap();
        seen.push(next.event.unwrap().event);
    }
    assert!(seen.contains(&"VAULT_INITIALISED".to_owned()), "{seen:?}");
    // A stop does not wait for followers.
    broker.stop().await;
}

#[tokio::test]
async fn every_change_says_who_and_what() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.revoke(proto::TargetKind::Client, STRANGER).await.unwrap();
    let events = operator.all_events().await;
    let row = events.iter().find(|event| event.event == "REVOKED").unwrap();
    assert_eq!((row.caller.as_str(), row.outcome()), (OPERATOR, proto::Outcome::Changed));
    assert_eq!(row.detail, format!("client {STRANGER}: a test"));
    assert!(row.identity.starts_with("certificate sha256:"), "{}", row.identity);
    for wanted in ["VAULT_INITIALISED", "WRITER_STARTED", "DOCUMENT_APPLIED", "KEY_IMPORTED"] {
        assert!(events.iter().any(|event| event.event == wanted), "{wanted}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn pruning_keeps_rows_of_live_tokens_and_the_chain_stays_whole() {
    let mut broker = Broker::start().await;
    let (mut operator, mut client) = (broker.as_(OPERATOR).await, broker.as_(CLIENT).await);
    client.issue(proto::IssueTokenRequest { ttl: duration(30), ..ask() }).await.unwrap();
    let alive = client.issue(ask()).await.unwrap();
    client.issue(proto::IssueTokenRequest { ttl: duration(31), ..ask() }).await.unwrap();
    broker.clock.advance(Duration::from_secs(60));
    let before = operator.all_events().await;
    let now = p8broker::clock::Clock::now(&*broker.clock).seconds();
    let cut = Some(prost_types::Timestamp { seconds: now, nanos: 0 });
    let pruned = operator.audit.prune(proto::PruneRequest { before: cut }).await.unwrap().into_inner();
    let after = operator.all_events().await;
    assert_eq!(after[0].token_id, alive.token_id, "the first row kept is that of the live token");
    // All before the live token's row, of both writers; and one row more for the prune itself.
    assert_eq!(usize::try_from(pruned.rows).unwrap(), before.len() - 2);
    assert!(operator.verify().await.findings.is_empty());
    let exposed = operator.revoke(proto::TargetKind::Client, CLIENT).await.unwrap();
    assert_eq!(exposed.exposure[0].token_id, alive.token_id);
    broker.restart().await;
    let mut operator = broker.as_(OPERATOR).await;
    assert!(operator.verify().await.findings.is_empty());
    let tomorrow = Some(prost_types::Timestamp { seconds: now + 86_400, nanos: 0 });
    assert_eq!(wrong_fields(operator.audit.prune(proto::PruneRequest { before: tomorrow }).await), ["before"]);
    broker.stop().await;
}

#[tokio::test]
async fn a_checkpoint_is_where_a_start_begins() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let request = |on: bool| proto::Policy { require_scope: on, ..release_policy() };
    for nth in 0..1010 {
        operator.apply(policies(vec![request(nth % 2 == 0)])).await.unwrap();
    }
    let checkpoints = "select revision || '' from control_log where checkpoint = 1";
    assert!(!crate::keys::blob(&broker.database(), checkpoints).await.is_empty());
    broker.restart().await;
    let mut operator = broker.as_(OPERATOR).await;
    assert!(operator.verify().await.findings.is_empty());
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    // Records before the checkpoint are not needed any more.
    broker.stop().await;
    crate::tamper::change(
        &broker,
        "delete from control_log where revision < (select max(revision) from control_log where checkpoint = 1)",
    )
    .await;
    broker.run(None).await;
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.stop().await;
}
