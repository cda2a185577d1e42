//! Init, unseal, seal, rekey, rotate.

use std::time::Duration;

use p8broker::grpc::proto;
use p8broker::grpc::proto::{
    InitRequest, Phase, RekeyRequest, RotateRequest, SealRequest, StatusRequest, UnsealRequest,
};
use tonic::Code;

use crate::harness::*;

async fn unseal(client: &mut Client, share: &str) -> Result<proto::UnsealResponse, tonic::Status> {
    client.system.unseal(UnsealRequest { share: share.to_owned() }).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn before_init_the_configuration_is_the_only_authority() {
    let mut broker = Broker::bare(Options::default()).await;
    let (mut operator, mut stranger) = (broker.as_(OPERATOR).await, broker.as_(STRANGER).await);
    let status = operator.system.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.phase(), Phase::NotInitialised);
    assert_eq!(refused(stranger.system.init(InitRequest::default()).await).0, Code::PermissionDenied);
    assert_eq!(refused(stranger.system.status(StatusRequest {}).await).0, Code::PermissionDenied);
    assert_eq!(refused(operator.key.list_keys(proto::ListKeysRequest::default()).await).1, "NOT_INITIALISED");
    assert_eq!(refused(stranger.issue(ask()).await).1, "NOT_INITIALISED");
    let (ready, why) = broker.ops("/readyz").await;
    assert!(ready == 503 && why.contains("operator init"), "{why}");
    assert_eq!(broker.ops("/livez").await.0, 200);
    let made = operator.system.init(InitRequest::default()).await.unwrap().into_inner();
    assert!(made.shares.is_empty() && made.threshold == 0, "a key file has no shares");
    assert_eq!(refused(operator.system.init(InitRequest::default()).await).1, "ALREADY_INITIALISED");
    assert_eq!(broker.ops("/readyz").await.0, 200);
    broker.stop().await;
}

#[tokio::test]
async fn a_vault_by_shares_opens_with_a_threshold_and_names_bad_ones() {
    let mut broker = Broker::bare(Options { by_shares: true, ..Options::default() }).await;
    let mut operator = broker.as_(OPERATOR).await;
    let bad = operator.system.init(InitRequest { shares: 3, threshold: 4 }).await;
    assert_eq!(refused(bad), (Code::InvalidArgument, "BAD_SHARE_NUMBERS".to_owned()));
    let shares = operator.system.init(InitRequest::default()).await.unwrap().into_inner().shares;
    assert_eq!(shares.len(), 5);
    broker.fill().await;
    broker.restart().await;
    let mut operator = broker.as_(OPERATOR).await;
    assert_eq!(refused(broker.as_(CLIENT).await.issue(ask()).await), (Code::Unavailable, "SEALED".to_owned()));
    assert_eq!(refused(unseal(&mut broker.as_(STRANGER).await, &shares[0]).await).0, Code::PermissionDenied);
    assert_eq!(unseal(&mut operator, &shares[4]).await.unwrap().given, 1);
    for (share, says) in [
        (shares[4].clone(), "was given before"),
        ("p8share-what".to_owned(), "mistyped"),
        (shares[0].replace("p8share", "P8SHARE"), "mistyped"),
    ] {
        let status = unseal(&mut operator, &share).await.unwrap_err();
        assert!(status.message().contains(says) && status.message().contains("1 of 3"), "{}", status.message());
    }
    assert_eq!(unseal(&mut operator, &shares[1]).await.unwrap().given, 2);
    assert!(!unseal(&mut operator, &shares[2]).await.unwrap().sealed);
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn p7_a_seal_is_sticky_and_stops_everything_at_once() {
    let mut broker = Broker::start().await;
    let (mut operator, mut client) = (broker.as_(OPERATOR).await, broker.as_(CLIENT).await);
    client.issue(ask()).await.unwrap();
    operator.system.seal(SealRequest { reason: "an incident".to_owned() }).await.unwrap();
    for request in [ask(), ask_fresh()] {
        assert_eq!(refused(client.issue(request).await), (Code::Unavailable, "SEALED".to_owned()));
    }
    assert_eq!(broker.ops("/readyz").await.0, 503);
    // The key file is there, and opens nothing by itself.
    broker.restart().await;
    let mut client = broker.as_(CLIENT).await;
    assert_eq!(refused(client.issue(ask()).await).1, "SEALED");
    let mut operator = broker.as_(OPERATOR).await;
    let status = operator.system.status(StatusRequest {}).await.unwrap().into_inner();
    assert!(status.phase() == Phase::Sealed && status.why.contains("bootstrap-1 sealed it"), "{}", status.why);
    unseal(&mut operator, "").await.unwrap();
    client.issue(ask()).await.unwrap();
    // What happened while sealed is in the audit now, and the restart did not lose the rest.
    eventually("the refusal while sealed is written down", async || {
        let events = operator.all_events().await;
        events.iter().any(|event| event.reason == "SEALED" && event.caller == CLIENT)
    })
    .await;
    let events = operator.all_events().await;
    for wanted in ["VAULT_SEALED", "VAULT_UNSEALED"] {
        assert!(events.iter().any(|event| event.event == wanted), "{wanted}");
    }
    assert!(operator.verify().await.findings.is_empty());
    broker.stop().await;
}

#[tokio::test]
async fn p7_nothing_is_released_by_requests_that_were_on_their_way() {
    let mut broker = Broker::start().await;
    let client = broker.as_(CLIENT).await;
    let sealed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut asks = tokio::task::JoinSet::new();
    for nth in 0..16 {
        let (mut client, sealed) = (client.clone(), std::sync::Arc::clone(&sealed));
        asks.spawn(async move {
            let mut before = 0;
            for count in 0..1000 {
                let was_sealed = sealed.load(std::sync::atomic::Ordering::SeqCst);
                let scope = vec![format!("GET /v1/builds/{nth}{count}")];
                match client.issue(proto::IssueTokenRequest { scope, ..ask() }).await {
                    Ok(_) => assert!(!was_sealed, "a token was asked for and received after the seal returned"),
                    Err(_) => return before,
                }
                before += 1;
            }
            before
        });
    }
    let mut operator = broker.as_(OPERATOR).await;
    eventually("tokens flow", async || operator.all_events().await.len() > 100).await;
    operator.system.seal(SealRequest { reason: "an incident".to_owned() }).await.unwrap();
    sealed.store(true, std::sync::atomic::Ordering::SeqCst);
    let before: u32 = asks.join_all().await.into_iter().sum();
    assert!(before > 0);
    broker.stop().await;
}

#[tokio::test]
async fn lifting_a_seal_takes_the_power() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let second = "spiffe://acme.internal/ns/ops/sa/second";
    let document = proto::Document {
        operators: vec![
            proto::Operator {
                name: "bootstrap-1".to_owned(),
                clients: vec![spiffe(OPERATOR)],
                powers: vec![proto::Power::Administer.into(), proto::Power::Audit.into()],
                app_groups: vec![],
            },
            proto::Operator {
                name: "second".to_owned(),
                clients: vec![spiffe(second)],
                powers: vec![proto::Power::Unseal.into()],
                app_groups: vec![],
            },
        ],
        ..proto::Document::default()
    };
    operator.apply(document).await.unwrap();
    let seal = SealRequest { reason: "an incident".to_owned() };
    assert_eq!(refused(operator.system.seal(seal.clone()).await).1, "POWER_MISSING");
    broker.as_(second).await.system.seal(seal).await.unwrap();
    // The configuration lets the first one call Unseal; the state says that it may not lift a seal.
    assert_eq!(refused(unseal(&mut operator, "").await), (Code::PermissionDenied, "POWER_MISSING".to_owned()));
    // And the other one the configuration does not know: it may not call Unseal while sealed.
    assert_eq!(refused(unseal(&mut broker.as_(second).await, "").await).0, Code::PermissionDenied);
    broker.stop().await;
    broker.config.bootstrap.operators.push(second.to_owned());
    broker.run(None).await;
    unseal(&mut broker.as_(second).await, "").await.unwrap();
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn rotating_reseals_every_key_while_tokens_are_issued() {
    let mut broker = Broker::start().await;
    let (mut operator, mut client) = (broker.as_(OPERATOR).await, broker.as_(CLIENT).await);
    let before = crate::keys::blob(&broker.database(), "select sealed from sealed_keys").await;
    for version in 2..5 {
        client.issue(ask_fresh()).await.unwrap();
        let rotated = operator.system.rotate(RotateRequest {}).await.unwrap().into_inner();
        assert_eq!(rotated.root_key_version, version);
        client.issue(ask_fresh()).await.unwrap();
    }
    assert_ne!(crate::keys::blob(&broker.database(), "select sealed from sealed_keys").await, before);
    assert!(operator.verify().await.findings.is_empty());
    broker.restart().await;
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    assert!(broker.as_(OPERATOR).await.verify().await.findings.is_empty());
    broker.stop().await;
}

#[tokio::test]
async fn a_rekey_by_shares_takes_effect_when_the_new_ones_have_arrived() {
    let mut broker = Broker::bare(Options { by_shares: true, ..Options::default() }).await;
    let mut operator = broker.as_(OPERATOR).await;
    let old = operator.system.init(InitRequest { shares: 3, threshold: 2 }).await.unwrap().into_inner().shares;
    broker.fill().await;
    let give = |shares: &[String]| RekeyRequest { shares: shares.to_vec(), new_shares: 4, new_threshold: 3 };
    let bad = RekeyRequest { shares: vec![], new_shares: 1, new_threshold: 1 };
    assert_eq!(refused(operator.system.rekey(bad).await).1, "BAD_SHARE_NUMBERS");
    assert_eq!(operator.system.rekey(give(&old[..1])).await.unwrap().into_inner().given, 1);
    assert_eq!(refused(operator.system.rekey(give(&["p8share-x".to_owned()])).await).1, "BAD_SHARE");
    let lost = operator.system.rekey(give(&old[2..])).await.unwrap().into_inner().new_shares;
    assert_eq!(lost.len(), 4);
    // Killed before they were confirmed: the old ones are in force, the new ones are named.
    broker.restart().await;
    let mut operator = broker.as_(OPERATOR).await;
    let status = unseal(&mut operator, &lost[0]).await.unwrap_err();
    assert!(status.message().contains("never confirmed"), "{}", status.message());
    unseal(&mut operator, &old[0]).await.unwrap();
    assert!(!unseal(&mut operator, &old[1]).await.unwrap().sealed);
    let confirm = |shares: &[String]| proto::ConfirmRekeyRequest { shares: shares.to_vec() };
    assert_eq!(refused(operator.system.confirm_rekey(confirm(&lost)).await).1, "NO_REKEY");
    let new = operator.system.rekey(give(&old[..2])).await.unwrap().into_inner().new_shares;
    assert_eq!(refused(operator.system.confirm_rekey(confirm(&lost[..1])).await).1, "BAD_SHARE");
    let done = operator.system.confirm_rekey(confirm(&new[..2])).await.unwrap().into_inner();
    assert_eq!((done.done, done.given, done.threshold), (false, 2, 3));
    let done = operator.system.confirm_rekey(confirm(&new[3..])).await.unwrap().into_inner();
    assert!(done.done && done.generation == 2);
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.restart().await;
    let mut operator = broker.as_(OPERATOR).await;
    let status = unseal(&mut operator, &old[0]).await.unwrap_err();
    assert!(status.message().contains("outdated"), "{}", status.message());
    for share in &new[..3] {
        unseal(&mut operator, share).await.unwrap();
    }
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn a_key_file_is_replaced_with_the_one_before_it_at_hand() {
    let mut broker = Broker::start().await;
    let (file, previous) = (broker.dir.path().join("unseal.key"), broker.dir.path().join("previous.key"));
    std::fs::rename(&file, &previous).unwrap();
    std::fs::write(&file, "a5".repeat(32)).unwrap();
    broker.config.unseal.previous_key_file = Some(previous.clone());
    broker.restart().await;
    let mut operator = broker.as_(OPERATOR).await;
    assert!(operator.system.rekey(RekeyRequest::default()).await.unwrap().into_inner().done);
    std::fs::remove_file(&previous).unwrap();
    broker.config.unseal.previous_key_file = None;
    broker.restart().await;
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    // The old file alone opens nothing any more, and says so.
    broker.stop().await;
    std::fs::write(&file, "5a".repeat(32)).unwrap();
    broker.run(None).await;
    let status = broker.as_(OPERATOR).await.system.status(StatusRequest {}).await.unwrap().into_inner();
    assert!(status.phase() == Phase::Sealed && status.why.contains("key file"), "{}", status.why);
    broker.clock.advance(Duration::from_secs(1));
    broker.stop().await;
}
