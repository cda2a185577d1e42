//! `Explain`: what would be decided, and what was, on the state that it was decided on.

use std::time::Duration;

use p8broker::broker::{Caller, TokenAsk};
use p8broker::domain::claims::Claims;
use p8broker::domain::decide::TokenRequest;
use p8broker::domain::explain::imagine;
use p8broker::domain::principal::Facts;
use p8broker::domain::role::Role;
use p8broker::grpc::proto;
use p8broker::grpc::proto::explain_request::What;
use p8broker::id::AppGroupName;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::fleet::Cluster;
use crate::harness::*;

const LOOKER: &str = "spiffe://acme.internal/ns/ops/sa/looker";
const CUSTODIAN: &str = "spiffe://acme.internal/ns/ops/sa/custodian";

fn imagined(client: &str) -> proto::ImaginedRequest {
    proto::ImaginedRequest {
        client: client.to_owned(),
        app_group: "games".to_owned(),
        role: proto::Role::AppManager.into(),
        ..proto::ImaginedRequest::default()
    }
}

async fn explain(client: &mut Client, what: What) -> Result<proto::ExplainResponse, Status> {
    let request = proto::ExplainRequest { what: Some(what) };
    client.policy.explain(request).await.map(tonic::Response::into_inner)
}

async fn explain_request(client: &mut Client, request: proto::ImaginedRequest) -> proto::ExplainResponse {
    explain(client, What::Request(request)).await.unwrap()
}

async fn explain_decision(client: &mut Client, id: &str) -> proto::ExplainResponse {
    explain(client, What::DecisionId(id.to_owned())).await.unwrap()
}

/// The decision id that a refused caller was told.
fn decision(status: &Status) -> String {
    status.get_error_details().error_info().unwrap().metadata["decision_id"].clone()
}

fn considered<'a>(explained: &'a proto::ExplainResponse, name: &str) -> &'a proto::Considered {
    explained.considered.iter().find(|it| it.name == name).unwrap_or_else(|| panic!("{name}: {explained:?}"))
}

fn ceiling(name: &str) -> proto::Ceiling {
    proto::Ceiling { name: name.to_owned(), every_app_group: true, ..proto::Ceiling::default() }
}

#[tokio::test]
async fn a_denial_is_explained_on_the_state_that_it_was_made_on() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let strong = vec![proto::Role::Admin.into()];
    operator.import(&proto::ImportKeyRequest { roles: strong, ..import("STRONGKEY1", &new_p8()) }).await.unwrap();
    let admin = proto::IssueTokenRequest { role: proto::Role::Admin.into(), ttl: duration(90), ..ask() };
    let denied = broker.as_(CLIENT).await.issue(admin).await.unwrap_err();
    let decided_at = broker.inner().open().unwrap().state().head().revision.0;
    // What it was decided on has changed since: the policy says other things, and there is a second one.
    let roles = vec![proto::Role::Admin.into(), proto::Role::AppManager.into()];
    let second = proto::Policy { name: "second".to_owned(), ..release_policy() };
    operator.apply(policies(vec![proto::Policy { roles, ..release_policy() }, second])).await.unwrap();
    let explained = explain_decision(&mut operator, &decision(&denied)).await;
    assert_eq!((explained.allowed, explained.reason.as_str()), (false, "ROLE_NOT_GRANTED"));
    assert_eq!((explained.policy.as_str(), explained.revision), ("games-release-ci", decided_at));
    assert_eq!(explained.considered.len(), 1, "{:?}", explained.considered);
    let entry = considered(&explained, "games-release-ci");
    assert_eq!(entry.explanation, "it grants APP_MANAGER, and not ADMIN");
    assert_eq!(explained.smallest_change, ["add the role ADMIN to policy games-release-ci"]);
    assert!(explained.policy_may_allow && explained.archived.is_empty());
    for part in ["IssueToken: DENIED ROLE_NOT_GRANTED at ", CLIENT, "asked ttl 90s", "replica replica-1"] {
        assert!(explained.recorded.contains(part), "{part}: {}", explained.recorded);
    }
    assert!(
        explained.path[0].ends_with("for ADMIN on app group games, for 90s, without a scope"),
        "{:?}",
        explained.path
    );
    // What was said to be enough was: the same, imagined now, is granted.
    let admin = proto::ImaginedRequest { role: proto::Role::Admin.into(), ..imagined(CLIENT) };
    let now = explain_request(&mut operator, admin).await;
    assert!(now.allowed && now.recorded.is_empty() && now.considered.len() == 2, "{now:?}");
    broker.stop().await;
}

#[tokio::test]
async fn a_decision_that_granted_is_explained_with_its_key_and_its_end() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let mut client = broker.as_(CLIENT).await;
    let scope = vec!["GET /v1/apps/1234567890".to_owned(), "GET /v1/apps".to_owned()];
    let issued = client.issue(proto::IssueTokenRequest { scope, ..ask() }).await.unwrap();
    let asked_at = p8broker::clock::Clock::now(&*broker.clock);
    broker.clock.advance(Duration::from_secs(60));
    operator.import(&import("NEWERKEY01", &new_p8())).await.unwrap();
    let explained = explain_decision(&mut operator, &issued.decision_id).await;
    assert!(explained.allowed && explained.reason.is_empty() && explained.smallest_change.is_empty(), "{explained:?}");
    assert_eq!((explained.policy, explained.expires_at), (issued.policy, issued.expires_at));
    assert_eq!(explained.enforced_by, issued.enforced_by);
    assert_eq!(explained.revision, issued.revision);
    let [key] = explained.keys.as_slice() else { panic!("{:?}", explained.keys) };
    assert_eq!((key.key_id.as_str(), key.chosen), (KEY_ID, true), "the newer key came later");
    assert!(explained.path[0].contains(&format!("asks at {asked_at} ")), "at its own time: {:?}", explained.path);
    assert!(explained.path[0].ends_with("with the scope `GET /v1/apps`, `GET /v1/apps/1234567890`"));
    assert!(explained.recorded.contains(&issued.token_id), "{}", explained.recorded);
    // One that was handed out again dies when it was signed to.
    let first = client.issue(ask()).await.unwrap();
    broker.clock.advance(Duration::from_secs(60));
    let reused = client.issue(ask()).await.unwrap();
    assert!(reused.reused && reused.decision_id != first.decision_id);
    let explained = explain_decision(&mut operator, &reused.decision_id).await;
    assert!(explained.allowed && explained.recorded.contains("REUSED"), "{}", explained.recorded);
    assert_eq!(explained.expires_at, first.expires_at);
    broker.stop().await;
}

#[tokio::test]
async fn ceilings_and_keys_are_told_with_what_stands_in_the_way() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    use proto::Role::{Admin, AppManager};
    let roles = |roles: &[proto::Role]| roles.iter().map(|role| (*role).into()).collect::<Vec<i32>>();
    let wide = proto::Policy { roles: roles(&[Admin, AppManager]), ..release_policy() };
    operator.apply(policies(vec![wide])).await.unwrap();
    let strong = proto::ImportKeyRequest { roles: roles(&[Admin, AppManager]), ..import("STRONGKEY1", &new_p8()) };
    operator.import(&strong).await.unwrap();
    let never = proto::Ceiling { never_roles: roles(&[Admin]), ..ceiling("never-admin") };
    let short = proto::Ceiling { max_ttl: duration(120), ..ceiling("short") };
    let counts = proto::Ceiling { never_roles: roles(&[Admin]), shadow: true, ..ceiling("would-be") };
    operator
        .apply(proto::Document { ceilings: vec![never, short, counts], ..proto::Document::default() })
        .await
        .unwrap();
    let denied =
        explain_request(&mut operator, proto::ImaginedRequest { role: Admin.into(), ..imagined(CLIENT) }).await;
    assert_eq!((denied.reason.as_str(), denied.ceiling.as_str()), ("ROLE_OVER_CEILING", "never-admin"));
    let it = considered(&denied, "never-admin");
    assert_eq!((it.kind.as_str(), it.passes, it.reason.as_str()), ("ceiling", false, "ROLE_OVER_CEILING"));
    assert_eq!(it.explanation, "it allows nobody ADMIN");
    assert!(considered(&denied, "short").passes && considered(&denied, "would-be").passes);
    assert!(considered(&denied, "would-be").explanation.starts_with("it only counts: it would refuse this"));
    assert!(!denied.policy_may_allow);
    let wanted = "no policy may: ceiling never-admin allows nobody ADMIN; an administrator would have to change it";
    assert_eq!(denied.smallest_change, [wanted]);
    // What is granted under them: the shorter life, and the key that has no role that nobody gets.
    let granted = explain_request(&mut operator, imagined(CLIENT)).await;
    let key = |id: &str| granted.keys.iter().find(|key| key.key_id == id).unwrap();
    assert!(granted.allowed && key(KEY_ID).chosen && !key("STRONGKEY1").chosen, "{:?}", granted.keys);
    assert_eq!(key("STRONGKEY1").explanation, "it has roles that are not granted: ADMIN");
    let now = p8broker::clock::Clock::now(&*broker.clock).seconds();
    assert_eq!(granted.expires_at.unwrap().seconds, now + 120);
    assert!(granted.path.iter().any(|step| step.contains("ceiling short allows 120s")), "{:?}", granted.path);
    let issued = broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    assert_eq!((issued.key_id.as_str(), issued.expires_in), (KEY_ID, duration(120)));
    assert_eq!(issued.enforced_by, granted.enforced_by);
    broker.stop().await;
}

#[tokio::test]
async fn a_client_learns_nothing_and_reading_a_decision_takes_the_power_to_audit() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.apply(crate::harness::operator("looker", LOOKER, &[proto::Power::Audit])).await.unwrap();
    operator.apply(crate::harness::operator("custodian", CUSTODIAN, &[proto::Power::Custody])).await.unwrap();
    let never = proto::Ceiling { never_roles: vec![proto::Role::Admin.into()], ..ceiling("never-admin") };
    operator.apply(proto::Document { ceilings: vec![never], ..proto::Document::default() }).await.unwrap();
    let roles = vec![proto::Role::Admin.into(), proto::Role::AppManager.into()];
    operator.apply(policies(vec![proto::Policy { roles, ..release_policy() }])).await.unwrap();
    let mut client = broker.as_(CLIENT).await;
    let admin = proto::IssueTokenRequest { role: proto::Role::Admin.into(), ..ask() };
    let denied = client.issue(admin).await.unwrap_err();
    // Its own denial names nothing that policies, ceilings or keys are called.
    let told = format!("{denied:?} {:?}", denied.get_error_details());
    for secret in ["never-admin", "games-release-ci", KEY_ID] {
        assert!(!told.contains(secret), "{secret}: {told}");
    }
    let id = decision(&denied);
    for what in [What::DecisionId(id.clone()), What::Request(imagined(CLIENT))] {
        assert_eq!(refused(explain(&mut client, what).await), (Code::PermissionDenied, "NOT_AN_OPERATOR".to_owned()));
    }
    // Any power is enough to imagine; what was decided takes `audit`.
    let mut custodian = broker.as_(CUSTODIAN).await;
    assert!(explain_request(&mut custodian, imagined(CLIENT)).await.allowed);
    let refusal = explain(&mut custodian, What::DecisionId(id.clone())).await;
    assert_eq!(refused(refusal), (Code::PermissionDenied, "POWER_MISSING".to_owned()));
    let mut looker = broker.as_(LOOKER).await;
    assert_eq!(explain_decision(&mut looker, &id).await.ceiling, "never-admin");
    eventually("the look is in the audit, and no other", async || {
        let events = operator.all_events().await;
        let reads: Vec<_> = events.iter().filter(|it| it.outcome() == proto::Outcome::Read).collect();
        matches!(reads.as_slice(), [read] if read.caller == LOOKER && read.detail == format!("decision {id}"))
    })
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn what_is_not_known_or_no_decision_on_a_token_is_said() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let unknown = explain(&mut operator, What::DecisionId("0".repeat(32))).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    for part in ["beyond ten a second", "summary row", "pruned"] {
        assert!(unknown.message().contains(part), "{}", unknown.message());
    }
    // Of many refusals in one second the summary row has the last one.
    let mut stranger = broker.as_(STRANGER).await;
    let mut last = String::new();
    for nth in 0..30 {
        let ask = proto::IssueTokenRequest { ttl: duration(60 + nth), ..ask() };
        last = decision(&stranger.issue(ask).await.unwrap_err());
    }
    broker.clock.advance(Duration::from_secs(1));
    broker.inner().flush_denials();
    let explained = explain_decision(&mut operator, &last).await;
    assert_eq!(explained.reason, "NO_POLICY");
    assert!(explained.path[0].contains("for 89s"), "{:?}", explained.path);
    let wanted = format!("add `{STRANGER}` to the clients of policy games-release-ci");
    assert_eq!(explained.smallest_change, [wanted]);
    // A change is no decision on a token: what the audit has is said, and nothing is explained.
    let events = operator.all_events().await;
    let imported = events.iter().find(|event| event.event == "KEY_IMPORTED").unwrap();
    let explained = explain_decision(&mut operator, &imported.decision_id).await;
    assert!(explained.recorded.starts_with("KEY_IMPORTED: CHANGED OK at "), "{}", explained.recorded);
    assert!(explained.path.is_empty() && explained.considered.is_empty() && !explained.allowed);
    broker.stop().await;
}

#[tokio::test]
async fn an_answer_that_policies_did_not_give_is_said_to_be_none_of_theirs() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let denied = broker.as_(STRANGER).await.issue(ask()).await.unwrap_err();
    let explained = explain_decision(&mut operator, &decision(&denied)).await;
    assert!(explained.path.last().unwrap().ends_with("denied: NO_POLICY"), "{:?}", explained.path);
    // As something else than a policy would have refused it.
    broker.stop().await;
    crate::tamper::change(&broker, "update audit set reason = 'RAN_OUT' where reason = 'NO_POLICY'").await;
    broker.run(None).await;
    let explained = explain_decision(&mut broker.as_(OPERATOR).await, &decision(&denied)).await;
    assert!(explained.recorded.contains("DENIED RAN_OUT") && explained.reason == "NO_POLICY", "{explained:?}");
    let says = "the audit has DENIED RAN_OUT all the same";
    assert!(explained.path.last().unwrap().starts_with(says), "{:?}", explained.path);
    broker.stop().await;
}

#[tokio::test]
async fn everything_that_is_wrong_with_a_request_is_said_at_once() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let claims = [("big", "x".repeat(2000)), ("hollow", String::new()), ("good", "x".to_owned())];
    let wrong = proto::ImaginedRequest {
        client: "nobody".to_owned(),
        app_group: "Games".to_owned(),
        role: 99,
        ttl: duration(1),
        scope: vec!["GET /v1/apps".to_owned(), "POST /v1/apps".to_owned()],
        certificate: "oidc:github:x".to_owned(),
        claims: claims.map(|(name, value)| (name.to_owned(), proto::ClaimValues { values: vec![value] })).into(),
    };
    let fields = ["client", "certificate", "claims.big", "claims.hollow", "app_group", "role", "ttl", "scope[1]"];
    let fields = fields.map(|field| format!("request.{field}"));
    assert_eq!(wrong_fields(explain(&mut operator, What::Request(wrong)).await), fields);
    // What only an issuer says is not said of a certificate.
    let claims = [("ref".to_owned(), proto::ClaimValues { values: vec!["x".to_owned()] })].into();
    let by_certificate = proto::ImaginedRequest { claims, certificate: CLIENT.to_owned(), ..imagined(CLIENT) };
    let fields = wrong_fields(explain(&mut operator, What::Request(by_certificate)).await);
    assert_eq!(fields, ["request.certificate", "request.claims"]);
    assert_eq!(wrong_fields(explain(&mut operator, What::DecisionId("x".to_owned())).await), ["decision_id"]);
    assert_eq!(wrong_fields(operator.policy.explain(proto::ExplainRequest { what: None }).await), ["what"]);
    // A client of an issuer that nobody trusts is well formed: it is refused, and that is explained.
    let explained = explain_request(&mut operator, imagined("oidc:github:repo:acme/bot:ref:refs/heads/main")).await;
    assert_eq!(explained.reason, "ISSUER_NOT_TRUSTED");
    broker.stop().await;
}

/// What an issuer said of a caller is read back from the row, so that its decision can be made again.
#[tokio::test]
async fn a_decision_on_a_bearer_token_is_made_again_with_what_its_issuer_said() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let values = |values: &[&str]| proto::ClaimValues { values: values.iter().map(|it| (*it).to_owned()).collect() };
    let github = proto::Issuer {
        name: "github".to_owned(),
        kind: proto::IssuerKind::GithubActions.into(),
        audiences: vec!["p8broker".to_owned()],
        claims: [("repository_owner_id".to_owned(), values(&["7"]))].into(),
        ..proto::Issuer::default()
    };
    let pattern = proto::OidcPattern {
        issuer: "github".to_owned(),
        claims: [("repository_id".to_owned(), values(&["42"])), ("environment".to_owned(), values(&["production"]))]
            .into(),
        ..proto::OidcPattern::default()
    };
    let clients = vec![proto::ClientPattern { pattern: Some(proto::client_pattern::Pattern::Oidc(pattern)) }];
    let deploy =
        proto::Policy { name: "deploy".to_owned(), clients, require_mtls: vec![spiffe(CLIENT)], ..release_policy() };
    operator.apply(proto::Document { issuers: vec![github], ..policies(vec![deploy]) }).await.unwrap();
    let state = broker.inner().open().unwrap().state();
    let mut ids = Vec::new();
    for (environment, certificate) in [("production", true), ("production", false), ("test", true)] {
        let owner = ("repository_owner_id", "7");
        let claims = Claims::from_pairs([("repository_id", "42"), ("environment", environment), owner]);
        let facts = Facts { certificate: certificate.then(|| client_id(CLIENT)), claims };
        let principal = imagine(client_id("oidc:github:repo:acme/bot:ref:refs/heads/main"), facts, &state);
        let identity = format!("a token; {}", principal.facts(["repository_id", "environment"].into_iter()));
        let request = TokenRequest {
            principal: principal.clone(),
            app_group: AppGroupName::parse("games").unwrap(),
            role: Role::AppManager,
            ttl_s: None,
            scope: vec![],
        };
        let answer = broker.inner().issue(&Caller { principal, identity }, TokenAsk { request, fresh: true }).await;
        ids.push(answer.map_or_else(|error| decision(&Status::from(error)), |issued| issued.decision_id.to_string()));
    }
    // Whoever imagines such a caller is told what its issuer is not trusted for; one that was heard had been let in.
    let bot = imagined("oidc:github:repo:acme/bot:ref:refs/heads/main");
    let door = "issuer github is not trusted for this subject with these claims";
    assert!(explain_request(&mut operator, bot).await.path[0].starts_with(door));
    // Neither the issuer nor the policy is what it was.
    let renamed = proto::Policy { name: "deploy".to_owned(), ..release_policy() };
    operator.apply(policies(vec![renamed])).await.unwrap();
    operator.revoke(proto::TargetKind::Issuer, "github").await.unwrap();
    let reasons = ["", "CERTIFICATE_REQUIRED", "NOT_NAMED"];
    for (id, reason) in ids.iter().zip(reasons) {
        let explained = explain_decision(&mut operator, id).await;
        assert_eq!(explained.allowed, reason.is_empty(), "{explained:?}");
        assert_eq!(considered(&explained, "deploy").reason, reason, "{explained:?}");
        let unlike =
            |step: &String| step.contains("all the same") || step.contains("not in the audit") || step.contains(door);
        assert!(!explained.path.iter().any(unlike), "{:?}", explained.path);
    }
    let explained = explain_decision(&mut operator, &ids[2]).await;
    let says = "claim `environment` must be `production`, and is `test`";
    assert!(considered(&explained, "deploy").explanation.contains(says), "{explained:?}");
    broker.stop().await;
}

#[tokio::test]
async fn a_state_from_before_a_checkpoint_is_folded_again_and_one_that_is_gone_is_said_to_be() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let mut stranger = broker.as_(STRANGER).await;
    let policy = |on: bool| policies(vec![proto::Policy { require_scope: on, ..release_policy() }]);
    let before = broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    for nth in 0..1010 {
        operator.apply(policy(nth % 2 == 0)).await.unwrap();
    }
    let after = decision(&stranger.issue(ask()).await.unwrap_err());
    let checkpoint = broker.inner().open().unwrap().state().checkpoint().0;
    operator.apply(policy(true)).await.unwrap();
    let explained = explain_decision(&mut operator, &before.decision_id).await;
    assert!(explained.archived.is_empty() && explained.allowed, "{explained:?}");
    assert!(explained.revision == before.revision && explained.revision < checkpoint, "{}", explained.revision);
    let explained = explain_decision(&mut operator, &after).await;
    assert!(explained.archived.is_empty() && explained.revision > checkpoint, "{explained:?}");
    // Somebody archives what is not needed to start.
    broker.stop().await;
    crate::tamper::change(
        &broker,
        "delete from control_log where revision < (select max(revision) from control_log where checkpoint = 1)",
    )
    .await;
    broker.run(None).await;
    let mut operator = broker.as_(OPERATOR).await;
    let explained = explain_decision(&mut operator, &after).await;
    assert!(explained.archived.is_empty() && explained.reason == "NO_POLICY", "{explained:?}");
    let explained = explain_decision(&mut operator, &before.decision_id).await;
    let starts = format!("the state of revision {} is archived: ", before.revision);
    assert!(explained.archived.starts_with(&starts), "{}", explained.archived);
    assert!(explained.archived.contains("about the present state"), "{}", explained.archived);
    // Now it would be refused; what the audit has is what was done then.
    assert_eq!((explained.allowed, explained.reason.as_str()), (false, "SCOPE_REQUIRED"));
    assert!(explained.recorded.contains("SIGNED OK") && explained.revision > checkpoint, "{explained:?}");
    assert_eq!(explained.expires_at, None);
    broker.stop().await;
}

#[tokio::test]
async fn another_replica_explains_what_this_one_refused() {
    let mut cluster = Cluster::start(2).await;
    let denied = cluster.replicas[0].as_(STRANGER).await.issue(ask()).await.unwrap_err();
    let mut operator = cluster.replicas[1].as_(OPERATOR).await;
    let added = proto::Policy { clients: vec![spiffe(STRANGER)], ..release_policy() };
    operator.apply(policies(vec![added])).await.unwrap();
    let explained = explain_decision(&mut operator, &decision(&denied)).await;
    assert_eq!((explained.reason.as_str(), explained.archived.as_str()), ("NO_POLICY", ""));
    assert!(explained.recorded.contains("replica replica-1"), "{}", explained.recorded);
    cluster.stop().await;
}
