//! Callers that a trusted issuer vouches for, over gRPC: who they are, what they need, and how they lose it.
//!
//! Over 400 lines, as one forged issuer vouches in all of it.

use std::path::PathBuf;
use std::time::Duration;

use p8broker::client::Target;
use p8broker::clock::Clock;
use p8broker::grpc::proto;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::*;
use crate::oidc::forge::{IssuerKey, b64, jwks_of};

const AUDIENCE: &str = "p8broker";
const SUBJECT: &str = "repo:acme/games:ref:refs/heads/main";
pub const VOUCHED: &str = "oidc:github:repo:acme/games:ref:refs/heads/main";

/// As the certificate's thumbprint of RFC 8705, section 3.1.
fn sha256(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().to_vec()
}

/// An issuer whose keys are pinned, so that it needs no server.
pub struct Vouching {
    key: IssuerKey,
}

impl Vouching {
    pub fn new() -> Self {
        Self { key: IssuerKey::p256("k1") }
    }

    pub fn issuer(&self) -> proto::Issuer {
        proto::Issuer {
            name: "github".to_owned(),
            kind: proto::IssuerKind::GithubActions.into(),
            jwks: jwks_of(&[&self.key]).to_string(),
            audiences: vec![AUDIENCE.to_owned()],
            algorithms: vec!["ES256".to_owned()],
            ..proto::Issuer::default()
        }
    }

    /// What GitHub says of a job, `seconds` before the token expires.
    pub fn claims(&self, broker: &Broker, seconds: i64) -> Value {
        let now = broker.clock.now().seconds();
        json!({
            "iss": "https://token.actions.githubusercontent.com",
            "aud": AUDIENCE,
            "sub": SUBJECT,
            "iat": now - 10,
            "exp": now + seconds,
            "repository": "acme/games",
            "repository_id": "583231",
            "repository_owner_id": "9919",
            "ref": "refs/heads/main",
            "run_id": "77",
        })
    }

    pub fn token(&self, claims: &Value) -> String {
        self.key.token(claims)
    }

    /// A client with a token and, where named, a certificate.
    pub async fn client(&self, broker: &Broker, token: &str, certificate: Option<&str>) -> Client {
        Client::new(bearing(broker, token, certificate).connect().await.unwrap())
    }
}

pub fn bearing(broker: &Broker, token: &str, certificate: Option<&str>) -> Target {
    let name = format!("bearer-{}.jwt", b64(&sha256(token.as_bytes())[..9]));
    let file: PathBuf = broker.pki.dir.join(name);
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let certificate = certificate.and_then(|identity| broker.target(identity).certificate);
    Target { certificate, bearer_file: Some(file), ..broker.target(CLIENT) }
}

/// A policy for the main branch of one repository, by id.
pub fn vouched_policy() -> proto::Policy {
    let value = |text: &str| proto::ClaimValues { values: vec![text.to_owned()] };
    let oidc = proto::OidcPattern {
        issuer: "github".to_owned(),
        subject: String::new(),
        claims: [("repository_id", value("583231")), ("ref", value("refs/heads/main"))]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
    };
    let clients = vec![proto::ClientPattern { pattern: Some(proto::client_pattern::Pattern::Oidc(oidc)) }];
    proto::Policy { name: "vouched".to_owned(), clients, ..release_policy() }
}

fn trusting(vouching: &Vouching, policy: proto::Policy) -> proto::Document {
    proto::Document { issuers: vec![vouching.issuer()], policies: vec![policy], ..proto::Document::default() }
}

#[tokio::test]
async fn a_job_with_a_token_and_no_certificate_gets_what_its_claims_are_granted() {
    let mut broker = Broker::start().await;
    let vouching = Vouching::new();
    let token = vouching.token(&vouching.claims(&broker, 300));
    // Before anybody is trusted, a connection takes a certificate.
    let early = Client::new(bearing(&broker, &token, None).connect().await.unwrap()).issue(ask()).await;
    assert!(early.is_err_and(|status| status.code() == Code::Unavailable || status.code() == Code::Unknown));
    let mut operator = broker.as_(OPERATOR).await;
    operator.apply(trusting(&vouching, vouched_policy())).await.unwrap();
    let issued = vouching.client(&broker, &token, None).await.issue(ask()).await.unwrap();
    assert_eq!(issued.policy, "vouched");
    // Another branch of the same repository is another matter.
    let other = json!({ "ref": "refs/heads/evil" });
    let mut claims = vouching.claims(&broker, 300);
    claims["ref"] = other["ref"].clone();
    let evil = vouching.token(&claims);
    let refusal = refused(vouching.client(&broker, &evil, None).await.issue(ask()).await);
    assert_eq!(refusal, (Code::PermissionDenied, "NO_POLICY".to_owned()));
    let events = operator.all_events().await;
    let row = events.iter().find(|event| event.token_id == issued.token_id).unwrap();
    assert_eq!(row.caller, VOUCHED);
    for fact in ["of github", "repository_id 583231", "run_id 77", r#"; claims {"ref":["refs/heads/main"]"#] {
        assert!(row.identity.contains(fact), "{fact}: {}", row.identity);
    }
    // INVARIANT (P1, of another's secret): no part of the token that could be used is in the audit.
    let signature = token.rsplit('.').next().unwrap();
    assert!(events.iter().all(|event| !format!("{event:?}").contains(signature)));
    broker.stop().await;
}

#[tokio::test]
async fn strangers_whom_one_issuer_vouches_for_share_the_rows_of_one_caller() {
    let mut broker = Broker::start().await;
    let vouching = Vouching::new();
    broker.as_(OPERATOR).await.apply(trusting(&vouching, vouched_policy())).await.unwrap();
    let token_of = |nth: u32| {
        let mut claims = vouching.claims(&broker, 300);
        claims["sub"] = json!(format!("repo:stranger-{nth}/fork:ref:refs/heads/main"));
        claims["repository_id"] = json!(nth.to_string());
        vouching.token(&claims)
    };
    for token in (0..15).map(token_of) {
        let mut stranger = vouching.client(&broker, &token, None).await;
        assert_eq!(refused(stranger.issue(ask()).await).1, "NO_POLICY");
        assert_eq!(refused(stranger.key.list_keys(proto::ListKeysRequest::default()).await).1, "NOT_AN_OPERATOR");
    }
    // Whom a policy names has rows of its own.
    let token = vouching.token(&vouching.claims(&broker, 300));
    let admin = proto::IssueTokenRequest { role: proto::Role::Admin.into(), ..ask() };
    let named = refused(vouching.client(&broker, &token, None).await.issue(admin).await);
    assert_eq!(named.1, "ROLE_NOT_GRANTED");
    broker.clock.advance(Duration::from_secs(1));
    broker.inner().flush_denials();
    let mut operator = broker.as_(OPERATOR).await;
    eventually("ten rows and one summary of strangers", async || {
        let events = operator.all_events().await;
        let denied = events.iter().filter(|event| event.outcome() == proto::Outcome::Denied);
        let (theirs, own): (Vec<_>, Vec<_>) = denied.partition(|event| event.caller.contains("stranger-"));
        // A row of no single one of them: nobody was refused as often as that.
        let summary = |event: &&&proto::AuditEvent| event.detail.starts_with("20 more refusals");
        let summarised = own.iter().find(summary).is_some_and(|it| it.caller.matches(':').count() == 1);
        theirs.len() == 10 && summarised && own.len() == 2
    })
    .await;
    let (_, text) = broker.ops("/metrics").await;
    assert!(text.contains("p8broker_denials_summarised_total 20\n"), "{text}");
    assert!(text.contains("p8broker_audit_rows_dropped_total 0\n"), "{text}");
    broker.stop().await;
}

#[tokio::test]
async fn a_seal_that_nobody_could_lift_is_refused() {
    let mut broker = Broker::start().await;
    let vouching = Vouching::new();
    let mut admin = broker.as_(OPERATOR).await;
    let powers = |powers: &[proto::Power]| powers.iter().map(|power| i32::from(*power)).collect::<Vec<_>>();
    let by_token = proto::Operator {
        name: "by-token".to_owned(),
        clients: vouched_policy().clients,
        powers: powers(&[proto::Power::Unseal]),
        app_groups: vec![],
    };
    let by_certificate = |powers| proto::Operator {
        name: "bootstrap-1".to_owned(),
        clients: vec![spiffe(OPERATOR)],
        powers,
        app_groups: vec![],
    };
    let document = proto::Document {
        operators: vec![by_token, by_certificate(powers(&[proto::Power::Administer]))],
        ..trusting(&vouching, vouched_policy())
    };
    admin.apply(document).await.unwrap();
    let token = vouching.token(&vouching.claims(&broker, 300));
    let mut sealer = vouching.client(&broker, &token, None).await;
    let seal = || proto::SealRequest { reason: "an incident".to_owned() };
    let refusal = refused(sealer.system.seal(seal()).await);
    assert_eq!(refusal, (Code::FailedPrecondition, "NOBODY_COULD_UNSEAL".to_owned()));
    vouching.client(&broker, &token, None).await.issue(ask()).await.unwrap();
    let both = powers(&[proto::Power::Administer, proto::Power::Unseal]);
    let operators = vec![by_certificate(both)];
    admin.apply(proto::Document { operators, ..proto::Document::default() }).await.unwrap();
    sealer.system.seal(seal()).await.unwrap();
    assert_eq!(refused(sealer.issue(ask()).await).1, "SEALED");
    admin.system.unseal(proto::UnsealRequest::default()).await.unwrap();
    sealer.issue(ask()).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn a_bad_token_is_refused_also_beside_a_good_certificate() {
    let mut broker = Broker::start().await;
    let vouching = Vouching::new();
    broker.as_(OPERATOR).await.apply(trusting(&vouching, vouched_policy())).await.unwrap();
    let expired = vouching.token(&vouching.claims(&broker, -100));
    for (token, reason) in [("nonsense", "BEARER_MALFORMED"), (expired.as_str(), "BEARER_EXPIRED")] {
        let refusal = refused(vouching.client(&broker, token, Some(CLIENT)).await.issue(ask()).await);
        assert_eq!(refusal, (Code::Unauthenticated, reason.to_owned()));
    }
    // No token at all; refused before it is looked at, and counted all the same.
    let mut request = tonic::Request::new(ask());
    request.metadata_mut().insert("authorization", "Basic aGk6aG8=".parse().unwrap());
    let refusal = refused(broker.as_(CLIENT).await.token.issue_token(request).await);
    assert_eq!(refusal, (Code::Unauthenticated, "BEARER_MALFORMED".to_owned()));
    let (_, metrics) = broker.ops("/metrics").await;
    let counted = r#"p8broker_bearer_refusals_total{reason="BEARER_MALFORMED"} 2"#;
    assert!(metrics.contains(counted), "{metrics}");
    // Neither a token nor a certificate.
    let nobody = Target { certificate: None, ..broker.target(CLIENT) };
    let refusal = refused(Client::new(nobody.connect().await.unwrap()).issue(ask()).await);
    assert_eq!(refusal, (Code::Unauthenticated, "IDENTITY_REFUSED".to_owned()));
    // A token names the caller: the certificate beside it grants nothing of its own.
    let mut claims = vouching.claims(&broker, 300);
    claims["repository_id"] = json!("1");
    let foreign = vouching.token(&claims);
    let refusal = refused(vouching.client(&broker, &foreign, Some(CLIENT)).await.issue(ask()).await);
    assert_eq!(refusal, (Code::PermissionDenied, "NO_POLICY".to_owned()));
    broker.stop().await;
}

#[tokio::test]
async fn connections_without_a_certificate_leave_half_of_the_places() {
    let mut broker = Broker::prepare(&Options::default());
    broker.config.tls.max_connections = 4;
    broker.run(None).await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.system.init(proto::InitRequest::default()).await.unwrap();
    broker.fill().await;
    let vouching = Vouching::new();
    operator.apply(trusting(&vouching, vouched_policy())).await.unwrap();
    let token = vouching.token(&vouching.claims(&broker, 300));
    let (mut first, mut second) =
        (vouching.client(&broker, &token, None).await, vouching.client(&broker, &token, None).await);
    for job in [&mut first, &mut second] {
        job.issue(ask()).await.unwrap();
    }
    let third = match bearing(&broker, &token, None).connect().await {
        Ok(channel) => Client::new(channel).issue(ask()).await.map(|_| ()),
        Err(_) => Err(tonic::Status::unavailable("no connection")),
    };
    assert!(third.is_err(), "a third one has no place");
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn a_policy_can_ask_for_a_certificate_and_a_token_can_be_bound_to_one() {
    let mut broker = Broker::start().await;
    let vouching = Vouching::new();
    let policy = proto::Policy { require_mtls: vec![spiffe(CLIENT)], ..vouched_policy() };
    broker.as_(OPERATOR).await.apply(trusting(&vouching, policy)).await.unwrap();
    let token = vouching.token(&vouching.claims(&broker, 300));
    for certificate in [None, Some(STRANGER)] {
        let refusal = refused(vouching.client(&broker, &token, certificate).await.issue(ask()).await);
        assert_eq!(refusal, (Code::PermissionDenied, "CERTIFICATE_REQUIRED".to_owned()));
    }
    assert!(vouching.client(&broker, &token, Some(CLIENT)).await.issue(ask()).await.is_ok());
    // RFC 8705: bound to this certificate, and to no other.
    let (file, _) = broker.pki.client(CLIENT);
    let pem = std::fs::read(file).unwrap();
    let der = <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(&pem).unwrap();
    let mut claims = vouching.claims(&broker, 300);
    claims["cnf"] = json!({ "x5t#S256": b64(sha256(&der)) });
    let bound = vouching.token(&claims);
    assert!(vouching.client(&broker, &bound, Some(CLIENT)).await.issue(ask()).await.is_ok());
    for certificate in [None, Some(STRANGER)] {
        let refusal = refused(vouching.client(&broker, &bound, certificate).await.issue(ask()).await);
        assert_eq!(refusal, (Code::Unauthenticated, "BEARER_CONFIRMATION".to_owned()));
    }
    broker.stop().await;
}

#[tokio::test]
async fn p5_taking_trust_back_ends_it_at_once() {
    let mut broker = Broker::start().await;
    let vouching = Vouching::new();
    let mut operator = broker.as_(OPERATOR).await;
    operator.apply(trusting(&vouching, vouched_policy())).await.unwrap();
    let token = vouching.token(&vouching.claims(&broker, 300));
    let mut job = vouching.client(&broker, &token, None).await;
    let issued = job.issue(ask()).await.unwrap();
    // Revoked: what is alive is told, and nothing more is issued on the open connection.
    let revoked = operator.revoke(proto::TargetKind::Issuer, "github").await.unwrap();
    assert!(revoked.exposure.iter().any(|alive| alive.token_id == issued.token_id), "{revoked:?}");
    assert_eq!(refused(job.issue(ask()).await), (Code::PermissionDenied, "ISSUER_REVOKED".to_owned()));
    let target = Some(target(proto::TargetKind::Issuer, "github"));
    let reinstate = proto::ReinstateRequest { target, reason: "a test".to_owned() };
    operator.revocation.reinstate(reinstate).await.unwrap();
    // Claims have whole seconds: in this one the same token would be signed again.
    broker.clock.advance(Duration::from_secs(2));
    assert_ne!(job.issue(ask()).await.unwrap().token_id, issued.token_id);
    // Trusted otherwise: the token is verified anew, and its audience is not the one any more.
    let narrowed = proto::Issuer { audiences: vec!["somebody-else".to_owned()], ..vouching.issuer() };
    let document = proto::Document { issuers: vec![narrowed], ..proto::Document::default() };
    operator.apply(document).await.unwrap();
    assert_eq!(refused(job.issue(ask()).await), (Code::Unauthenticated, "BEARER_AUDIENCE".to_owned()));
    // Not trusted at all.
    let everything = proto::ExportRequest {};
    let mut document = operator.policy.export(everything).await.unwrap().into_inner().document.unwrap();
    document.issuers.clear();
    document.policies.retain(|policy| policy.name != "vouched");
    let prune = proto::ApplyRequest { document: Some(document), prune: true, ..proto::ApplyRequest::default() };
    operator.policy.apply(prune).await.unwrap();
    assert_eq!(refused(job.issue(ask()).await), (Code::Unauthenticated, "BEARER_ISSUER_UNKNOWN".to_owned()));
    broker.stop().await;
}

#[tokio::test]
async fn p5_revoking_a_certificate_covers_tokens_that_came_through_it() {
    let mut broker = Broker::start().await;
    let vouching = Vouching::new();
    let mut operator = broker.as_(OPERATOR).await;
    operator.apply(trusting(&vouching, vouched_policy())).await.unwrap();
    let token = vouching.token(&vouching.claims(&broker, 300));
    let mut through = vouching.client(&broker, &token, Some(STRANGER)).await;
    let mut beside = vouching.client(&broker, &token, None).await;
    let issued = through.issue(ask()).await.unwrap();
    broker.clock.advance(Duration::from_secs(2));
    // The same job by another way has a token of its own.
    let other = beside.issue(ask()).await.unwrap();
    assert_ne!(other.token_id, issued.token_id);
    let mut watch = through.token.watch(proto::WatchRequest { from_revision: 0 }).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let revoked = operator.revoke(proto::TargetKind::Client, STRANGER).await.unwrap();
    let ids: Vec<&str> = revoked.exposure.iter().map(|alive| alive.token_id.as_str()).collect();
    assert_eq!(ids, [issued.token_id.as_str()]);
    assert_eq!(refused(through.issue(ask()).await), (Code::PermissionDenied, "CLIENT_REVOKED".to_owned()));
    let end = eventually_ends(&mut watch).await;
    assert_eq!(refused::<()>(Err(end)), (Code::PermissionDenied, "CLIENT_REVOKED".to_owned()));
    let again = through.token.watch(proto::WatchRequest { from_revision: 0 }).await;
    assert_eq!(refused(again), (Code::PermissionDenied, "CLIENT_REVOKED".to_owned()));
    // What came without the certificate is none of its holder's, and stays.
    assert_eq!(beside.issue(ask()).await.unwrap().token_id, other.token_id);
    for (id, revoked) in [(&issued.token_id, true), (&other.token_id, false)] {
        let ask = proto::IntrospectTokenRequest { token_id: id.clone() };
        let answer = operator.token.introspect_token(ask).await.unwrap().into_inner();
        assert_eq!(answer.revoked, revoked, "{answer:?}");
    }
    let reinstate = proto::ReinstateRequest {
        target: Some(target(proto::TargetKind::Client, STRANGER)),
        reason: "a test".to_owned(),
    };
    operator.revocation.reinstate(reinstate).await.unwrap();
    assert_ne!(through.issue(ask()).await.unwrap().token_id, issued.token_id);
    broker.stop().await;
}

#[tokio::test]
async fn a_watch_ends_when_its_token_is_too_old() {
    let mut broker = Broker::start().await;
    let vouching = Vouching::new();
    let issuer = proto::Issuer { max_age: duration(600), ..vouching.issuer() };
    let trusted = proto::Document { issuers: vec![issuer], ..trusting(&vouching, vouched_policy()) };
    let mut operator = broker.as_(OPERATOR).await;
    operator.apply(trusted).await.unwrap();
    // It says that it lives for hours; whoever trusts its issuer says for how long it is accepted.
    let token = vouching.token(&vouching.claims(&broker, 20_000));
    let mut job = vouching.client(&broker, &token, None).await;
    let mut watch = job.token.watch(proto::WatchRequest { from_revision: 0 }).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    broker.clock.advance(Duration::from_secs(700));
    operator.revoke(proto::TargetKind::Policy, "somebody-elses").await.unwrap();
    let end = eventually_ends(&mut watch).await;
    assert_eq!(end.code(), Code::Unauthenticated, "{end:?}");
    broker.stop().await;
}

#[tokio::test]
async fn an_operator_may_come_with_a_token_and_a_watch_ends_with_it() {
    let mut broker = Broker::start().await;
    let vouching = Vouching::new();
    let mut operator = broker.as_(OPERATOR).await;
    let robot = proto::Operator {
        name: "robot".to_owned(),
        clients: vouched_policy().clients,
        powers: vec![proto::Power::Audit.into()],
        app_groups: vec![],
    };
    let document = trusting(&vouching, vouched_policy());
    operator.apply(proto::Document { operators: vec![robot], ..document }).await.unwrap();
    let token = vouching.token(&vouching.claims(&broker, 300));
    let mut job = vouching.client(&broker, &token, None).await;
    assert!(!job.all_events().await.is_empty());
    let apply = refused(job.apply(sample()).await);
    assert_eq!(apply, (Code::PermissionDenied, "POWER_MISSING".to_owned()));
    let mut watch = job.token.watch(proto::WatchRequest { from_revision: 0 }).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    broker.clock.advance(Duration::from_secs(400));
    operator.revoke(proto::TargetKind::Policy, "somebody-elses").await.unwrap();
    let end = eventually_ends(&mut watch).await;
    assert_eq!(end.code(), Code::Unauthenticated, "{end:?}");
    broker.stop().await;
}

/// The status that a stream ends with; what comes before is let by, within bounds.
async fn eventually_ends(watch: &mut tonic::Streaming<proto::WatchResponse>) -> tonic::Status {
    for _ in 0..20 {
        let next = tokio::time::timeout(Duration::from_secs(20), watch.message()).await;
        match next.expect("the stream goes on in time") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a status"),
            Err(status) => return status,
        }
    }
    panic!("the stream did not end");
}
