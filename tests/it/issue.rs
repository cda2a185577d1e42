//! Issuing: what a token says, when it is reused, and what its lifetime is.

use std::time::Duration;

use p8broker::clock::Clock;
use p8broker::grpc::proto;
use serde_json::json;
use tokio::task::JoinSet;
use tonic::Code;

use crate::harness::*;

#[tokio::test]
async fn a_team_keys_token_has_exactly_what_apple_lists() {
    let mut broker = Broker::bare(Options::default()).await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.system.init(proto::InitRequest::default()).await.unwrap();
    operator.apply(sample()).await.unwrap();
    let p8 = new_p8();
    operator.import(&import(KEY_ID, &p8)).await.unwrap();
    let now = broker.clock.now().seconds();
    let issued =
        broker.as_(CLIENT).await.issue(proto::IssueTokenRequest { ttl: duration(300), ..ask() }).await.unwrap();
    let (header, claims) = verified(&issued.token, &p8);
    assert_eq!(header, json!({ "alg": "ES256", "kid": KEY_ID, "typ": "JWT" }));
    assert_eq!(claims, json!({ "iss": ISSUER, "iat": now - 60, "exp": now + 300, "aud": "appstoreconnect-v1" }));
    assert_eq!(issued.token_id, token_id(&issued.token));
    assert_eq!(issued.expires_at.unwrap().seconds, now + 300);
    assert_eq!(issued.expires_in.unwrap().seconds, 300);
    assert_eq!((issued.key_id.as_str(), issued.issuer_id.as_str()), (KEY_ID, ISSUER));
    assert_eq!((issued.policy.as_str(), issued.revision), ("games-release-ci", 4));
    broker.stop().await;
}

/// RFC 7515, appendix A.3: our verifier takes the vector and nothing near it, and the vector's key signs through the broker
/// what that verifier accepts.
#[tokio::test]
async fn rfc_7515_a_3_holds_for_the_verifier_and_for_what_the_broker_signs() {
    use p256::SecretKey;
    use p256::pkcs8::{EncodePrivateKey, LineEnding};
    const D: &str = "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI";
    const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9\
                         pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let secret = SecretKey::from_slice(&data_encoding::BASE64URL_NOPAD.decode(D.as_bytes()).unwrap()).unwrap();
    let p8 = secret.to_pkcs8_pem(LineEnding::LF).unwrap().to_string();
    let (header, claims) = verified(TOKEN, &p8);
    assert_eq!((header["alg"].as_str(), claims["iss"].as_str()), (Some("ES256"), Some("joe")));
    let near = TOKEN.replace("eyJpc3MiOiJqb2Ui", "eyJpc3MiOiJqb2Uj");
    assert!(std::panic::catch_unwind(|| verified(&near, &p8)).is_err());
    let mut broker = Broker::start().await;
    broker.as_(OPERATOR).await.import(&import("RFC7515A3K", &p8)).await.unwrap();
    let issued = broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    assert_eq!(issued.key_id, "RFC7515A3K", "the newest import signs");
    verified(&issued.token, &p8);
    broker.stop().await;
}

#[tokio::test]
async fn inv_issue_1_a_tightened_policy_ends_the_reuse_of_what_it_no_longer_grants() {
    let mut broker = Broker::start().await;
    let (mut operator, mut client) = (broker.as_(OPERATOR).await, broker.as_(CLIENT).await);
    let long = client.issue(ask()).await.unwrap();
    operator.apply(policies(vec![proto::Policy { max_ttl: duration(120), ..release_policy() }])).await.unwrap();
    let short = client.issue(ask()).await.unwrap();
    assert!(!short.reused && short.token != long.token);
    assert_eq!(short.expires_in.unwrap().seconds, 120);
    broker.stop().await;
}

#[tokio::test]
async fn an_individual_keys_token_names_a_user_and_no_issuer() {
    let mut broker = Broker::bare(Options::default()).await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.system.init(proto::InitRequest::default()).await.unwrap();
    operator.apply(sample()).await.unwrap();
    let p8 = new_p8();
    operator
        .import(&proto::ImportKeyRequest {
            kind: proto::KeyKind::Individual.into(),
            user: "dev@acme.example".to_owned(),
            app_access: Some(proto::AppAccess { all: false, app_ids: vec!["1234567890".to_owned()] }),
            ..import(KEY_ID, &p8)
        })
        .await
        .unwrap();
    let now = broker.clock.now().seconds();
    let scope = vec!["GET /v1/apps/1234567890/builds?limit=5".to_owned()];
    let issued = broker.as_(CLIENT).await.issue(proto::IssueTokenRequest { scope, ..ask() }).await.unwrap();
    let (header, claims) = verified(&issued.token, &p8);
    assert_eq!(header, json!({ "alg": "ES256", "kid": KEY_ID, "typ": "JWT" }));
    assert_eq!(
        claims,
        json!({ "sub": "user", "iat": now - 60, "exp": now + 600, "aud": "appstoreconnect-v1",
                "scope": ["GET /v1/apps/1234567890/builds"] })
    );
    // P9: an individual key whose apps lie within the group is the one case in which Apple enforces the group.
    let by = |limit: &str| issued.enforced_by.iter().find(|it| it.limit == limit).unwrap().enforced_by();
    assert_eq!(by("app_group"), proto::EnforcedBy::AppleIndividualAccess);
    assert_eq!(by("operations"), proto::EnforcedBy::AppleScope);
    assert_eq!(by("role"), proto::EnforcedBy::AppleKeyRole);
    assert_eq!(by("lifetime"), proto::EnforcedBy::BrokerAtIssue);
    broker.stop().await;
}

#[tokio::test]
async fn p9_a_team_keys_token_says_that_nobody_enforces_the_app_group() {
    let mut broker = Broker::start().await;
    let mut client = broker.as_(CLIENT).await;
    let issued = client.issue(ask()).await.unwrap();
    let group = issued.enforced_by.iter().find(|it| it.limit == "app_group").unwrap();
    assert_eq!(group.enforced_by(), proto::EnforcedBy::Nobody);
    assert!(group.explanation.contains("team key"), "{}", group.explanation);
    let scope = vec!["GET /v1/apps/1234567890/builds".to_owned()];
    let scoped = client.issue(proto::IssueTokenRequest { scope, ..ask() }).await.unwrap();
    let group = scoped.enforced_by.iter().find(|it| it.limit == "app_group").unwrap();
    assert_eq!(group.enforced_by(), proto::EnforcedBy::AppleScope);
    broker.stop().await;
}

#[tokio::test]
async fn a_token_is_reused_until_half_its_life_and_never_across_what_makes_it_another() {
    let mut broker = Broker::start().await;
    let mut client = broker.as_(CLIENT).await;
    let first = client.issue(ask()).await.unwrap();
    let second = client.issue(ask()).await.unwrap();
    assert!(!first.reused && second.reused && first.token == second.token);
    assert_ne!(first.decision_id, second.decision_id);
    // Another lifetime, another scope, another caller, and `fresh` each get their own.
    let shorter = client.issue(proto::IssueTokenRequest { ttl: duration(60), ..ask() }).await.unwrap();
    let scope = vec!["GET /v1/apps".to_owned()];
    let scoped = client.issue(proto::IssueTokenRequest { scope, ..ask() }).await.unwrap();
    let mut other = broker.as_("spiffe://acme.internal/ns/ci/sa/release-two").await;
    let others = other.issue(ask()).await.unwrap();
    broker.clock.advance(Duration::from_secs(1));
    let fresh = client.issue(ask_fresh()).await.unwrap();
    for it in [&shorter, &scoped, &others, &fresh] {
        assert!(!it.reused, "{it:?}");
    }
    assert_eq!(client.issue(ask()).await.unwrap().token, fresh.token, "a fresh token replaces the earlier one");
    broker.clock.advance(Duration::from_secs(299));
    assert!(client.issue(ask()).await.unwrap().reused);
    broker.clock.advance(Duration::from_secs(1));
    assert!(!client.issue(ask()).await.unwrap().reused, "half of 10 minutes is over");
    broker.stop().await;
}

#[tokio::test]
async fn first_requests_that_come_together_sign_once() {
    let mut broker = Broker::start().await;
    let client = broker.as_(CLIENT).await;
    let mut asks = JoinSet::new();
    for _ in 0..64 {
        let mut client = client.clone();
        asks.spawn(async move { client.issue(ask()).await.unwrap() });
    }
    let issued = asks.join_all().await;
    assert_eq!(issued.iter().filter(|it| !it.reused).count(), 1);
    assert!(issued.iter().all(|it| it.token == issued[0].token));
    let signed = broker.as_(OPERATOR).await.all_events().await;
    assert_eq!(signed.iter().filter(|event| event.outcome() == proto::Outcome::Signed).count(), 1);
    broker.stop().await;
}

#[tokio::test]
async fn the_lifetime_is_what_was_asked_capped_by_policy_and_by_apple() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let now = broker.clock.now().seconds();
    let long = proto::Policy {
        name: "long".to_owned(),
        clients: vec![spiffe("spiffe://acme.internal/long")],
        max_ttl: duration(1200),
        ..release_policy()
    };
    let xcode = proto::Policy {
        name: "xcode".to_owned(),
        clients: vec![spiffe("spiffe://acme.internal/xcode")],
        max_ttl: duration(90 * 86_400),
        default_ttl: duration(3600),
        operations: vec!["GET /v1/ciBuildRuns/42".to_owned()],
        ..release_policy()
    };
    let ends = proto::Policy {
        name: "ends".to_owned(),
        clients: vec![spiffe("spiffe://acme.internal/ends")],
        not_after: Some(prost_types::Timestamp { seconds: now + 100, nanos: 0 }),
        ..release_policy()
    };
    operator.apply(policies(vec![long, xcode, ends])).await.unwrap();
    let life = |issued: &proto::IssueTokenResponse| issued.expires_in.unwrap().seconds;
    let day = proto::IssueTokenRequest { ttl: duration(86_400), ..ask() };
    assert_eq!(life(&broker.as_(CLIENT).await.issue(day.clone()).await.unwrap()), 600);
    assert_eq!(life(&broker.as_("spiffe://acme.internal/long").await.issue(day.clone()).await.unwrap()), 1080);
    assert_eq!(life(&broker.as_("spiffe://acme.internal/ends").await.issue(day.clone()).await.unwrap()), 100);
    let mut reader = broker.as_("spiffe://acme.internal/xcode").await;
    assert_eq!(refused(reader.issue(day.clone()).await), (Code::PermissionDenied, "SCOPE_REQUIRED".to_owned()));
    // What an `include` reads need not be on Apple's list.
    let including = proto::Policy {
        name: "including".to_owned(),
        operations: vec!["GET /v1/ciBuildRuns/42?include=builds".to_owned()],
        max_ttl: duration(86_400),
        ..release_policy()
    };
    assert_eq!(wrong_fields(operator.apply(policies(vec![including])).await), ["policies[0].max_ttl"]);
    let scope = vec!["GET /v1/ciBuildRuns/42".to_owned()];
    assert_eq!(life(&reader.issue(proto::IssueTokenRequest { scope: scope.clone(), ..day }).await.unwrap()), 86_400);
    assert_eq!(life(&reader.issue(proto::IssueTokenRequest { scope, ..ask() }).await.unwrap()), 3600);
    broker.clock.advance(Duration::from_secs(100));
    let late = broker.as_("spiffe://acme.internal/ends").await.issue(ask()).await;
    assert_eq!(refused(late), (Code::PermissionDenied, "OUTSIDE_VALIDITY".to_owned()));
    broker.stop().await;
}

#[tokio::test]
async fn a_denial_is_safe_for_the_caller_and_whole_in_the_audit() {
    let mut broker = Broker::start().await;
    let mut stranger = broker.as_(STRANGER).await;
    let status = stranger.issue(ask()).await.unwrap_err();
    let absent =
        stranger.issue(proto::IssueTokenRequest { app_group: "no-such".to_owned(), ..ask() }).await.unwrap_err();
    assert_eq!(status.message(), absent.message(), "not yours and absent are one answer");
    use tonic_types::StatusExt;
    let details = status.get_error_details();
    let decision = details.error_info().unwrap().metadata["decision_id"].clone();
    let mut operator = broker.as_(OPERATOR).await;
    eventually("the denial is in the audit", async || {
        let filter = Some(proto::AuditFilter { decision_id: decision.clone(), ..proto::AuditFilter::default() });
        let request = proto::ListRequest { filter, ..proto::ListRequest::default() };
        let found = operator.audit.list(request).await.unwrap().into_inner().events;
        found.len() == 1 && found[0].reason == "NO_POLICY" && found[0].caller == STRANGER
    })
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn a_flood_of_denials_becomes_ten_rows_and_a_summary() {
    let mut broker = Broker::start().await;
    let mut stranger = broker.as_(STRANGER).await;
    for _ in 0..50 {
        refused(stranger.issue(ask()).await);
    }
    broker.clock.advance(Duration::from_secs(1));
    broker.inner().flush_denials();
    let mut operator = broker.as_(OPERATOR).await;
    eventually("ten rows and one summary", async || {
        let denied: Vec<_> = operator.all_events().await;
        let denied: Vec<_> = denied.into_iter().filter(|event| event.outcome() == proto::Outcome::Denied).collect();
        denied.len() == 11 && denied.iter().any(|event| event.detail.starts_with("40 more refusals"))
    })
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn a_caller_that_sends_too_much_is_told_when_to_come_back() {
    let mut broker = Broker::with(Options { tokens_per_second: 5, ..Options::default() }).await;
    let mut client = broker.as_(CLIENT).await;
    let mut limited = 0;
    for _ in 0..30 {
        if let Err(status) = client.issue(ask()).await {
            assert_eq!(refused::<()>(Err(status)), (Code::ResourceExhausted, "RATE_LIMITED".to_owned()));
            limited += 1;
        }
    }
    assert!(limited > 0);
    assert!(broker.as_("spiffe://acme.internal/ns/ci/sa/release-two").await.issue(ask()).await.is_ok());
    broker.stop().await;
}
