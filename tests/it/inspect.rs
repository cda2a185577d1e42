//! `IntrospectToken` and `Whois`: what a token is, from the database as it is now; and the revocations that name one.

use std::time::Duration;

use p8broker::grpc::proto::{self, TargetKind};
use tonic::Code;

use crate::harness::fleet::Cluster;
use crate::harness::*;

const OTHER: &str = "spiffe://acme.internal/ns/ci/sa/release-two";
const LOOKER: &str = "spiffe://acme.internal/ns/ops/sa/looker";

fn of(token_id: &str) -> proto::IntrospectTokenRequest {
    proto::IntrospectTokenRequest { token_id: token_id.to_owned() }
}

#[tokio::test]
async fn a_client_sees_its_own_tokens_and_no_difference_between_absent_and_not_its_own() {
    let mut cluster = Cluster::start(2).await;
    let mut here = cluster.replicas[0].as_(CLIENT).await;
    let mut other = cluster.replicas[1].as_(OTHER).await;
    let mut operator = cluster.replicas[1].as_(OPERATOR).await;
    let token = here.issue(ask()).await.unwrap();
    // Answered by another replica than the one that issued.
    let mut there = cluster.replicas[1].as_(CLIENT).await;
    let seen = there.token.introspect_token(of(&token.token_id)).await.unwrap().into_inner();
    assert_eq!((seen.client.as_str(), seen.policy.as_str(), seen.revoked), (CLIENT, "games-release-ci", false));
    assert_eq!((seen.expires_at, seen.key_id.as_str()), (token.expires_at, KEY_ID));
    let theirs = other.token.introspect_token(of(&token.token_id)).await.unwrap_err();
    let absent = other.token.introspect_token(of(&"0".repeat(64))).await.unwrap_err();
    assert_eq!((theirs.code(), absent.code()), (Code::NotFound, Code::NotFound));
    assert_eq!(theirs.message().replace(&token.token_id, "X"), absent.message().replace(&"0".repeat(64), "X"));
    assert_eq!(wrong_fields(other.token.introspect_token(of("x")).await), ["token_id"]);
    // An operator who may look, looks; and that is written down.
    operator.apply(crate::harness::operator("looker", LOOKER, &[proto::Power::Audit])).await.unwrap();
    let mut looker = cluster.replicas[0].as_(LOOKER).await;
    assert_eq!(looker.token.introspect_token(of(&token.token_id)).await.unwrap().into_inner().client, CLIENT);
    eventually("the look is in the audit", async || {
        let events = operator.all_events().await;
        events.iter().any(|event| event.outcome() == proto::Outcome::Read && event.caller == LOOKER)
    })
    .await;
    // Right after a revoke on another replica has returned, never from a cache.
    operator.revoke(TargetKind::AppGroup, "games").await.unwrap();
    let seen = here.token.introspect_token(of(&token.token_id)).await.unwrap().into_inner();
    assert!(seen.revoked);
    assert_eq!(seen.revoked_by, Some(target(TargetKind::AppGroup, "games")));
    // A replica whose clock runs ahead does not take a living token for dead: the database's clock has a say.
    cluster.replicas[0].clock.advance(Duration::from_secs(601));
    assert!(here.token.introspect_token(of(&token.token_id)).await.is_ok());
    let seen = operator.revoke(TargetKind::Policy, "games-release-ci").await.unwrap();
    assert_eq!(seen.exposure[0].token_id, token.token_id);
    cluster.stop().await;
}

#[tokio::test]
async fn a_dead_token_and_one_that_never_was_are_one_answer() {
    let mut broker = Broker::start().await;
    let mut client = broker.as_(CLIENT).await;
    let token = client.issue(ask()).await.unwrap();
    client.token.introspect_token(of(&token.token_id)).await.unwrap();
    broker.clock.advance(Duration::from_secs(601));
    assert_eq!(client.token.introspect_token(of(&token.token_id)).await.unwrap_err().code(), Code::NotFound);
    broker.as_(OPERATOR).await.revoke(TargetKind::Client, CLIENT).await.unwrap();
    assert_eq!(refused(client.token.introspect_token(of(&token.token_id)).await).1, "CLIENT_REVOKED");
    broker.stop().await;
}

#[tokio::test]
async fn whois_tells_who_got_a_leaked_token_and_what_stops_them() {
    let mut cluster = Cluster::start(2).await;
    let mut client = cluster.replicas[1].as_(CLIENT).await;
    let mut operator = cluster.replicas[0].as_(OPERATOR).await;
    let issued = client.issue(ask()).await.unwrap();
    client.issue(ask()).await.unwrap();
    let whois = async |operator: &mut Client, token: &str| {
        let request = proto::WhoisRequest { token: token.to_owned() };
        operator.audit.whois(request).await.map(tonic::Response::into_inner)
    };
    let found = whois(&mut operator, &issued.token).await.unwrap();
    assert_eq!((found.token_id.as_str(), found.issued_here, found.revoked), (issued.token_id.as_str(), true, false));
    let [first, second] = found.handouts.as_slice() else { panic!("{found:?}") };
    assert_eq!((first.client.as_str(), first.policy.as_str(), first.reused), (CLIENT, "games-release-ci", false));
    assert_eq!((first.replica.as_str(), first.role.as_str(), second.reused), ("replica-2", "APP_MANAGER", true));
    assert!(found.expires_in.unwrap().seconds > 500);
    let stops: Vec<_> = found.stops.iter().map(proto::Target::kind).collect();
    let ladder = [
        TargetKind::Token,
        TargetKind::Client,
        TargetKind::Policy,
        TargetKind::AppGroup,
        TargetKind::Key,
        TargetKind::Account,
    ];
    assert_eq!(stops, ladder, "from narrow to wide");
    // The other form of the same signature is the same token (ES256 signatures are malleable).
    let (signed, signature) = issued.token.rsplit_once('.').unwrap();
    let signature =
        p256::ecdsa::Signature::from_slice(&data_encoding::BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap());
    let (r, s) = signature.unwrap().split_scalars();
    let twin = p256::ecdsa::Signature::from_scalars(r, -s).unwrap();
    let twin = format!("{signed}.{}", data_encoding::BASE64URL_NOPAD.encode(&twin.to_bytes()));
    assert_ne!(twin, issued.token);
    assert_eq!(whois(&mut operator, &twin).await.unwrap().token_id, issued.token_id);
    // Also of a destroyed key, and of a dead token.
    operator.revoke(TargetKind::Key, KEY_ID).await.unwrap();
    cluster.replicas[0].clock.advance(Duration::from_secs(700));
    let found = whois(&mut operator, &issued.token).await.unwrap();
    assert!(found.revoked && found.issued_here && found.expires_in.unwrap().seconds == 0);
    assert!(found.stops.iter().all(|stop| ![TargetKind::Token, TargetKind::Key].contains(&stop.kind())));
    // What is none, what was changed, and whose key is not known.
    assert_eq!(refused(whois(&mut operator, "hunter2").await).1, "NOT_A_TOKEN");
    let forged = format!("{}A.{}", signed, issued.token.rsplit_once('.').unwrap().1);
    let reason = refused(whois(&mut operator, &forged).await).1;
    assert!(["SIGNATURE_WRONG", "NOT_A_TOKEN"].contains(&reason.as_str()), "{reason}");
    let zeros = format!("{signed}.{}", data_encoding::BASE64URL_NOPAD.encode(&[1; 64]));
    assert_eq!(refused(whois(&mut operator, &zeros).await).1, "SIGNATURE_WRONG");
    let other = data_encoding::BASE64URL_NOPAD.encode(br#"{"alg":"ES256","kid":"UNKNOWNKEY","typ":"JWT"}"#);
    let unknown = format!("{other}.{}", issued.token.split_once('.').unwrap().1);
    assert_eq!(whois(&mut operator, &unknown).await.unwrap_err().code(), Code::NotFound);
    cluster.stop().await;
}

#[tokio::test]
async fn whois_knows_a_token_that_somebody_else_signed_with_a_stolen_key() {
    let mut broker = Broker::bare(Options::default()).await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.system.init(proto::InitRequest::default()).await.unwrap();
    operator.apply(sample()).await.unwrap();
    let p8 = new_p8();
    operator.import(&import(KEY_ID, &p8)).await.unwrap();
    let now = p8broker::clock::Clock::now(&*broker.clock).seconds();
    let jwt = sign_elsewhere(
        &p8,
        &format!(r#"{{"iss":"{ISSUER}","iat":{now},"exp":{},"aud":"appstoreconnect-v1"}}"#, now + 900),
    );
    let found = operator.audit.whois(proto::WhoisRequest { token: jwt }).await.unwrap().into_inner();
    assert!(!found.issued_here && found.handouts.is_empty());
    assert_eq!(found.stops, [target(TargetKind::Key, KEY_ID)]);
    broker.stop().await;
}

#[tokio::test]
async fn a_revoked_token_is_never_handed_out_again_and_stays_revoked() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let mut client = broker.as_(CLIENT).await;
    let token = client.issue(ask()).await.unwrap();
    let revoked = operator.revoke(TargetKind::Token, &token.token_id).await.unwrap();
    assert_eq!((revoked.count, revoked.last_expires_at), (1, token.expires_at));
    assert_eq!(revoked.exposure[0].token_id, token.token_id);
    // In the same second the same claims would be the same token: it is not signed again.
    assert_eq!(refused(client.issue(ask_fresh()).await), (Code::Unavailable, "CONTENDED".to_owned()));
    broker.clock.advance(Duration::from_secs(1));
    let next = client.issue(ask()).await.unwrap();
    assert!(next.token_id != token.token_id && !next.reused);
    // Repeating it answers the same; nothing lifts it.
    assert_eq!(operator.revoke(TargetKind::Token, &token.token_id).await.unwrap().revision, revoked.revision);
    let lift = proto::ReinstateRequest {
        target: Some(target(TargetKind::Token, &token.token_id)),
        reason: "a test".to_owned(),
    };
    assert_eq!(refused(operator.revocation.reinstate(lift).await).1, "TOKEN_STAYS_REVOKED");
    assert_eq!(operator.revoke(TargetKind::Token, &"1".repeat(64)).await.unwrap_err().code(), Code::NotFound);
    // Its revocation leaves the state with it: what is told to a watch from before is what is alive.
    broker.clock.advance(Duration::from_secs(600 + 3600));
    operator.revoke(TargetKind::Policy, "unrelated").await.unwrap();
    let state = broker.inner().open().unwrap().state();
    assert_eq!(state.revocations_after(p8broker::id::Revision(0)).count(), 1);
    broker.stop().await;
}

#[tokio::test]
async fn accounts_and_issuers_are_revoked_and_reinstated() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let mut client = broker.as_(CLIENT).await;
    let token = client.issue(ask()).await.unwrap();
    let revoked = operator.revoke(TargetKind::Account, "acme").await.unwrap();
    assert_eq!((revoked.count, revoked.exposure[0].token_id.as_str()), (1, token.token_id.as_str()));
    assert!(revoked.left_at_apple.contains(KEY_ID), "{}", revoked.left_at_apple);
    assert_eq!(refused(client.issue(ask()).await).1, "ACCOUNT_REVOKED");
    let lift = |kind, name| proto::ReinstateRequest { target: Some(target(kind, name)), reason: "a test".to_owned() };
    operator.revocation.reinstate(lift(TargetKind::Account, "acme")).await.unwrap();
    client.issue(ask()).await.unwrap();
    // No client of an issuer can come in yet; revoking one by name stands all the same, and is lifted by name.
    assert_eq!(operator.revoke(TargetKind::Issuer, "github").await.unwrap().count, 0);
    operator.revocation.reinstate(lift(TargetKind::Issuer, "github")).await.unwrap();
    assert_eq!(wrong_fields(operator.revoke(TargetKind::Issuer, "Git Hub").await), ["target.name"]);
    broker.stop().await;
}

#[tokio::test]
async fn a_large_exposure_is_counted_by_client_policy_and_key() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    for (identity, count) in [(CLIENT, 700), (OTHER, 350)] {
        let mut client = broker.as_(identity).await;
        for nth in 0..count {
            let ttl = duration(100 + nth % 500);
            let scope = vec![format!("GET /v1/apps/{}", nth / 500 + 1)];
            client.issue(proto::IssueTokenRequest { ttl, scope, ..ask_fresh() }).await.unwrap();
        }
    }
    let revoked = operator.revoke(TargetKind::AppGroup, "games").await.unwrap();
    assert_eq!((revoked.count, revoked.exposure.len()), (1050, 1000));
    let count = |by: &str, name: &str| {
        let mut all = revoked.counts.iter().filter(|count| count.by == by);
        all.find(|count| count.name == name).map(|count| count.count)
    };
    assert_eq!((count("client", CLIENT), count("client", OTHER)), (Some(700), Some(350)));
    assert_eq!((count("policy", "games-release-ci"), count("key", KEY_ID)), (Some(1050), Some(1050)));
    // Everything, without revoking: what sealing the vault leaves alive.
    let all = proto::ExposureRequest::default();
    assert_eq!(operator.revocation.exposure(all).await.unwrap().into_inner().count, 1050);
    broker.stop().await;
}
