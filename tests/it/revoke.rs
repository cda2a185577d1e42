//! Revoking, and the law of P5: after a revoke returned, no client receives a token under it whose id is not in its
//! exposure.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use p8broker::grpc::proto;
use p8broker::grpc::proto::TargetKind;
use tokio::task::JoinSet;
use tonic::Code;

use crate::harness::*;

#[tokio::test]
async fn a_revoke_lists_what_is_alive_and_only_reinstating_lifts_it() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let mut client = broker.as_(CLIENT).await;
    let short = client.issue(proto::IssueTokenRequest { ttl: duration(60), ..ask() }).await.unwrap();
    let long = client.issue(ask()).await.unwrap();
    broker.as_("spiffe://acme.internal/ns/ci/sa/release-two").await.issue(ask()).await.unwrap();
    broker.clock.advance(Duration::from_secs(60));
    let seen = operator
        .revocation
        .exposure(proto::ExposureRequest {
            target: Some(proto::Target { kind: TargetKind::Client.into(), name: CLIENT.to_owned() }),
            page_token: String::new(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (seen.count, seen.exposure[0].token_id.as_str()),
        (1, long.token_id.as_str()),
        "{} is dead",
        short.token_id
    );
    let revoked = operator.revoke(TargetKind::Client, CLIENT).await.unwrap();
    assert_eq!(revoked.exposure, seen.exposure);
    assert_eq!(revoked.last_expires_at, long.expires_at);
    assert_eq!(refused(client.issue(ask()).await), (Code::PermissionDenied, "CLIENT_REVOKED".to_owned()));
    // Applying a document lifts nothing; a restart neither.
    operator.apply(sample()).await.unwrap();
    broker.restart().await;
    let (mut operator, mut client) = (broker.as_(OPERATOR).await, broker.as_(CLIENT).await);
    assert_eq!(refused(client.issue(ask()).await).1, "CLIENT_REVOKED");
    let target = Some(proto::Target { kind: TargetKind::Client.into(), name: CLIENT.to_owned() });
    let reinstate = proto::ReinstateRequest { target, reason: "found the laptop".to_owned() };
    operator.revocation.reinstate(reinstate.clone()).await.unwrap();
    assert_eq!(refused(operator.revocation.reinstate(reinstate).await).1, "NOT_REVOKED");
    let new = client.issue(ask()).await.unwrap();
    assert_ne!(new.token_id, long.token_id, "what was issued before the revoke stays revoked");
    broker.stop().await;
}

#[tokio::test]
async fn policies_and_groups_are_revoked_by_name_and_stay_so() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let mut client = broker.as_(CLIENT).await;
    client.issue(ask()).await.unwrap();
    for (kind, name, reason) in [
        (TargetKind::Policy, "games-release-ci", "POLICY_REVOKED"),
        (TargetKind::AppGroup, "games", "APP_GROUP_REVOKED"),
    ] {
        let revoked = operator.revoke(kind, name).await.unwrap();
        assert_eq!(revoked.count, 1);
        assert_eq!(refused(client.issue(ask()).await).1, reason);
        let request = proto::PlanRequest { document: Some(sample()), ..proto::PlanRequest::default() };
        let plan = operator.policy.plan(request).await.unwrap().into_inner();
        let step = plan.steps.iter().find(|step| step.name == name).unwrap();
        assert_eq!(step.note, "revoked, stays revoked");
        let target = Some(proto::Target { kind: kind.into(), name: name.to_owned() });
        let lift = proto::ReinstateRequest { target, reason: "a test".to_owned() };
        operator.revocation.reinstate(lift).await.unwrap();
    }
    client.issue(ask()).await.unwrap();
    // The name itself is revoked, whatever it will say.
    operator.revoke(TargetKind::Policy, "later").await.unwrap();
    let later = proto::Policy { name: "later".to_owned(), clients: vec![spiffe(STRANGER)], ..release_policy() };
    operator.apply(policies(vec![later])).await.unwrap();
    assert_eq!(refused(broker.as_(STRANGER).await.issue(ask()).await).1, "POLICY_REVOKED");
    broker.stop().await;
}

#[tokio::test]
async fn inv_plan_2_nobody_can_lock_the_last_administrator_out() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let locked = operator.revoke(TargetKind::Client, OPERATOR).await;
    assert_eq!(refused(locked), (Code::FailedPrecondition, "LAST_ADMINISTRATOR".to_owned()));
    let second = "spiffe://acme.internal/ns/ops/sa/second";
    let powers = [proto::Power::Administer, proto::Power::Revoke];
    operator.apply(crate::harness::operator("second", second, &powers)).await.unwrap();
    operator.revoke(TargetKind::Client, OPERATOR).await.unwrap();
    let mut second = broker.as_(second).await;
    assert_eq!(
        refused(second.revoke(TargetKind::Client, "spiffe://acme.internal/ns/ops/sa/second").await).1,
        "LAST_ADMINISTRATOR"
    );
    let target = Some(proto::Target { kind: TargetKind::Client.into(), name: OPERATOR.to_owned() });
    let lift = proto::ReinstateRequest { target, reason: "a test".to_owned() };
    second.revocation.reinstate(lift).await.unwrap();
    assert!(operator.key.list_keys(proto::ListKeysRequest::default()).await.is_ok());
    broker.stop().await;
}

#[tokio::test]
async fn a_large_exposure_comes_in_pages() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let client = broker.as_(CLIENT).await;
    let mut asks = JoinSet::new();
    for worker in 0..8 {
        let mut client = client.clone();
        asks.spawn(async move {
            let mut ids = Vec::new();
            for nth in 0..150 {
                // One second has one claim set: another scope makes another token.
                let scope = vec![format!("GET /v1/builds/{worker}{nth:03}")];
                let request = proto::IssueTokenRequest { scope, ..ask() };
                ids.push(client.issue(request).await.unwrap().token_id);
            }
            ids
        });
    }
    let issued: HashSet<String> = asks.join_all().await.into_iter().flatten().collect();
    assert_eq!(issued.len(), 1200);
    let revoked = operator.revoke(TargetKind::Policy, "games-release-ci").await.unwrap();
    assert_eq!((revoked.count, revoked.exposure.len()), (1200, 1000));
    let target = Some(proto::Target { kind: TargetKind::Policy.into(), name: "games-release-ci".to_owned() });
    let (mut seen, mut page_token) = (HashSet::new(), String::new());
    loop {
        let request = proto::ExposureRequest { target: target.clone(), page_token };
        let page = operator.revocation.exposure(request).await.unwrap().into_inner();
        seen.extend(page.exposure.into_iter().map(|token| token.token_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, issued);
    broker.stop().await;
}

/// P5, the law: clients issue without pause while everything they issue under is revoked and reinstated; whatever a
/// client received after a revoke returned must be in that revoke's exposure, or be of a later reinstatement.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p5_no_token_escapes_a_revoke() {
    let mut broker = Broker::start().await;
    let stop = Arc::new(AtomicBool::new(false));
    // Counts revokes that have returned and reinstatements that have begun: odd while something is revoked.
    let epoch = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for nth in 0..8_u32 {
        let mut client = broker.as_(CLIENT).await;
        let (stop, epoch) = (Arc::clone(&stop), Arc::clone(&epoch));
        clients.spawn(async move {
            let mut received = Vec::new();
            let mut count = 0_u64;
            while !stop.load(Ordering::SeqCst) {
                count += 1;
                let before = epoch.load(Ordering::SeqCst);
                let scope = vec![format!("GET /v1/builds/{nth}{}", count % 40)];
                let request = proto::IssueTokenRequest { fresh: count.is_multiple_of(3), scope, ..ask() };
                if let Ok(issued) = client.issue(request).await {
                    received.push((before, epoch.load(Ordering::SeqCst), issued.token_id));
                }
            }
            received
        });
    }
    let mut operator = broker.as_(OPERATOR).await;
    let mut exposures: Vec<(u64, HashSet<String>)> = Vec::new();
    let targets =
        [(TargetKind::Client, CLIENT), (TargetKind::Policy, "games-release-ci"), (TargetKind::AppGroup, "games")];
    for round in 0..240 {
        let (kind, name) = targets[round % targets.len()];
        // Requests are on their way again when the next revoke comes.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let revoked = operator.revoke(kind, name).await.unwrap();
        let returned = epoch.fetch_add(1, Ordering::SeqCst) + 1;
        // The answer itself must be whole: a page that is read later would hide what was committed too late.
        let ids: HashSet<String> = revoked.exposure.iter().map(|token| token.token_id.clone()).collect();
        assert_eq!(u64::try_from(ids.len()).unwrap(), revoked.count, "fewer than a thousand are alive");
        // Answers that were on their way when the revoke returned arrive now.
        tokio::time::sleep(Duration::from_millis(3)).await;
        exposures.push((returned, ids));
        epoch.fetch_add(1, Ordering::SeqCst);
        let target = Some(proto::Target { kind: kind.into(), name: name.to_owned() });
        let reinstate = proto::ReinstateRequest { target, reason: "next round".to_owned() };
        // The tokens of this round die, so that the next exposure is short.
        broker.clock.advance(Duration::from_secs(700));
        operator.revocation.reinstate(reinstate).await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let received: Vec<_> = clients.join_all().await.into_iter().flatten().collect();
    assert!(received.len() > 200, "the race has to be one: {} tokens", received.len());
    let mut within = 0;
    for (returned, ids) in &exposures {
        for (before, after, id) in &received {
            // Received while the revoke of this epoch stood: the answer arrived before the reinstatement began.
            if before <= returned && after == returned {
                within += 1;
                assert!(ids.contains(id), "token {id} was received in epoch {returned} and is not in its exposure");
            }
        }
    }
    println!("{} tokens, {within} of them received while a revoke stood", received.len());
    assert!(within > 0, "the race has to be one: no answer crossed a revoke");
    assert!(operator.verify().await.findings.is_empty());
    broker.stop().await;
}
