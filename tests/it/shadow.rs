//! Shadow mode: what only counts refuses nothing, and the report of all replicas says what it would have refused.

use crate::harness::fleet::Cluster;
use crate::harness::*;
use p8broker::grpc::proto;

/// A tight policy beside the wide one, and a tight ceiling, both only counting.
fn shadows() -> proto::Document {
    let tight = proto::Policy { name: "tight".to_owned(), require_scope: true, shadow: true, ..release_policy() };
    let ceiling = proto::Ceiling {
        name: "no-app-managers".to_owned(),
        every_app_group: true,
        never_roles: vec![proto::Role::AppManager.into()],
        max_ttl: duration(60),
        shadow: true,
        ..proto::Ceiling::default()
    };
    proto::Document { policies: vec![tight], ceilings: vec![ceiling], ..proto::Document::default() }
}

async fn report(operator: &mut Client) -> Vec<(String, String, String, u64)> {
    let counts = operator.policy.report_shadows(proto::ReportShadowsRequest {}).await.unwrap().into_inner().counts;
    let mut out: Vec<_> = counts.into_iter().map(|it| (it.kind, it.name, it.reason, it.count)).collect();
    out.sort();
    out
}

#[tokio::test]
async fn what_only_counts_refuses_nothing_and_is_reported() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.apply(shadows()).await.unwrap();
    let mut client = broker.as_(CLIENT).await;
    let issued = client.issue(ask()).await.unwrap();
    assert_eq!(issued.policy, "games-release-ci", "a policy in shadow mode grants nothing");
    assert!(issued.expires_in.unwrap().seconds > 60, "a ceiling in shadow mode cuts nothing");
    client.issue(ask()).await.unwrap();
    // With a scope, the tight policy would have granted; nobody else is counted.
    let scoped = proto::IssueTokenRequest { scope: vec!["GET /v1/apps".to_owned()], ..ask() };
    client.issue(scoped).await.unwrap();
    let text =
        |kind: &str, name: &str, reason: &str, count| (kind.to_owned(), name.to_owned(), reason.to_owned(), count);
    let expected =
        [text("ceiling", "no-app-managers", "ROLE_OVER_CEILING", 3), text("policy", "tight", "SCOPE_REQUIRED", 2)];
    assert_eq!(report(&mut operator).await, expected);
    let events = operator.all_events().await;
    let row = events.iter().find(|event| event.token_id == issued.token_id).unwrap();
    assert!(row.detail.contains("policy tight would refuse: SCOPE_REQUIRED"), "{}", row.detail);
    let (_, metrics) = broker.ops("/metrics").await;
    assert!(
        metrics.contains(r#"p8broker_shadow_refusals_total{kind="policy",name="tight",reason="SCOPE_REQUIRED"} 2"#)
    );
    // In force, they refuse what was counted; and what is in shadow mode no more is reported no more.
    let mut document = shadows();
    document.ceilings[0].shadow = false;
    operator.apply(document).await.unwrap();
    assert_eq!(refused(client.issue(ask()).await).1, "ROLE_OVER_CEILING");
    assert_eq!(report(&mut operator).await, [text("policy", "tight", "SCOPE_REQUIRED", 2)]);
    // Back in shadow mode it is counted anew, and so is what has changed; what stays the same is not.
    operator.apply(shadows()).await.unwrap();
    assert_eq!(report(&mut operator).await, [text("policy", "tight", "SCOPE_REQUIRED", 2)]);
    let mut document = shadows();
    document.policies[0].max_ttl = duration(100);
    client.issue(ask()).await.unwrap();
    operator.apply(document).await.unwrap();
    assert_eq!(report(&mut operator).await, [text("ceiling", "no-app-managers", "ROLE_OVER_CEILING", 1)]);
    // What waits to be added is, before a restart.
    client.issue(ask()).await.unwrap();
    broker.restart().await;
    let expected =
        [text("ceiling", "no-app-managers", "ROLE_OVER_CEILING", 2), text("policy", "tight", "SCOPE_REQUIRED", 1)];
    assert_eq!(report(&mut broker.as_(OPERATOR).await).await, expected);
    broker.stop().await;
}

#[tokio::test]
async fn the_report_is_of_all_replicas() {
    let mut cluster = Cluster::start(2).await;
    let mut operator = cluster.replicas[0].as_(OPERATOR).await;
    operator.apply(shadows()).await.unwrap();
    crate::harness::fleet::in_step(&cluster.replicas).await;
    for replica in &cluster.replicas {
        replica.as_(CLIENT).await.issue(ask()).await.unwrap();
        replica.inner().flush_shadows().await;
    }
    let counts = report(&mut operator).await;
    assert!(counts.iter().all(|(.., count)| *count == 2) && counts.len() == 2, "{counts:?}");
    cluster.stop().await;
}
