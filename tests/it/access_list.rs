//! `access list`: what one client can get, and who can touch a group, as the RPC and the command line tell it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use p8broker::grpc::proto;
use p8broker::grpc::proto::list_access_request::Of;
use serde_json::{Value, json};
use tonic::Code;

use crate::cli::BINARY;
use crate::harness::*;

const DOCUMENT: &str = "\
issuers:
  - { name: github, kind: github_actions, audiences: [p8broker] }
ceilings:
  - { name: short, every_app_group: true, max_ttl: 15m, issuers: [github], trust_domains: [acme.internal] }
policies:
  - name: bots
    clients:
      - oidc: { issuer: github, claims: { repository_id: '42', ref: [refs/heads/main, 'refs/tags/v*'] } }
      - spiffe: spiffe://elsewhere.internal/bot
    app_group: games
    roles: [APP_MANAGER]
    require_mtls: [{ spiffe: 'spiffe://acme.internal/ns/runners/sa/*' }]
    max_ttl: 20m
  - name: later
    clients: [{ spiffe: 'spiffe://acme.internal/ns/ci/sa/release-bot' }]
    app_group: games
    roles: [APP_MANAGER, DEVELOPER]
    features: ['reviews:read']
    not_before: 2999-01-01T00:00:00Z
  - name: over
    clients: [{ spiffe: 'spiffe://acme.internal/ns/ci/sa/release-bot' }]
    app_group: games
    roles: [APP_MANAGER]
    not_after: 2001-01-01T00:00:00Z
  - name: emergency
    clients: [{ spiffe: 'spiffe://acme.internal/ns/ci/sa/release-bot' }]
    app_group: games
    roles: [APP_MANAGER]
    break_glass: true
";

fn run(broker: &Broker, who: &str, arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).envs(broker.env(who)).stdin(Stdio::null()).output().unwrap()
}

fn list(broker: &Broker, arguments: &[&str]) -> Value {
    let output = run(broker, OPERATOR, &[&["access", "list", "--output", "json"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn fill(broker: &Broker, dir: &Path) {
    let file = dir.join("policies.yaml");
    std::fs::write(&file, DOCUMENT).unwrap();
    let output = run(broker, OPERATOR, &["apply", "-f", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Policy, whether now, why not, and under which conditions, of each entry.
fn told(answer: &Value) -> Vec<(String, bool, String, Vec<String>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let one = |it: &Value| {
        let conditions = it["conditions"].as_array().unwrap().iter().map(text).collect();
        (text(&it["policy"]), it["now"].as_bool().unwrap(), text(&it["reason"]), conditions)
    };
    answer["access"].as_array().unwrap().iter().map(one).collect()
}

fn entry(policy: &str, reason: &str, conditions: &[&str]) -> (String, bool, String, Vec<String>) {
    let conditions = conditions.iter().map(|it| (*it).to_owned()).collect();
    (policy.to_owned(), reason.is_empty(), reason.to_owned(), conditions)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_this_client_get() {
    let mut broker = Broker::start().await;
    let dir = broker.dir.path().to_owned();
    fill(&broker, &dir);
    let answer = list(&broker, &["--client", CLIENT]);
    let expected = json!({
        "client": CLIENT,
        "app_group": "games",
        "role": "APP_MANAGER",
        "policy": "games-release-ci",
        "key_id": KEY_ID,
        "max_ttl_s": 600,
        "needs_scope": false,
        "operations": [],
        "features": [],
        "now": true,
        "reason": "",
        "conditions": [],
    });
    assert_eq!(answer["access"][1], expected, "{answer:#}");
    assert!(answer["revision"].as_u64().unwrap() > 2);
    // What has ended is not there, and neither is a role without a key.
    let all = [entry("emergency", "BREAK_GLASS_CLOSED", &[]), entry("games-release-ci", "", &[])];
    assert_eq!(told(&answer), [&all[..], &[entry("later", "OUTSIDE_VALIDITY", &[])]].concat());
    let later = &answer["access"][2];
    assert_eq!((&later["needs_scope"], &later["features"]), (&json!(true), &json!(["reviews:read"])));
    // The same as issuing: what is listed for now is granted, with its key and for its time.
    let issued =
        broker.as_(CLIENT).await.issue(proto::IssueTokenRequest { ttl: duration(1200), ..ask() }).await.unwrap();
    assert_eq!((issued.policy.as_str(), issued.key_id.as_str()), ("games-release-ci", KEY_ID));
    assert_eq!(issued.expires_in.unwrap().seconds, 600);
    // Opened, it is there for as long as that lasts.
    let mut operator = broker.as_(OPERATOR).await;
    let open = proto::OpenBreakGlassRequest {
        policy: "emergency".to_owned(),
        duration: duration(120),
        reason: "test".to_owned(),
    };
    operator.policy.open_break_glass(open).await.unwrap();
    let opened = list(&broker, &["--client", CLIENT]);
    let left = opened["access"][0]["max_ttl_s"].as_i64().unwrap();
    assert!((1..=120).contains(&left) && opened["access"][0]["now"] == true, "{opened:#}");
    // A table for a person.
    let output = run(&broker, OPERATOR, &["access", "list", "--client", CLIENT]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("APP GROUP") && text.contains("OUTSIDE_VALIDITY"), "{text}");
    assert!(text.contains("required: reviews:read"), "{text}");
    // What is revoked is not listed.
    operator.revoke(proto::TargetKind::Client, CLIENT).await.unwrap();
    assert_eq!(told(&list(&broker, &["--client", CLIENT])), []);
    let output = run(&broker, OPERATOR, &["access", "list", "--client", STRANGER]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "this client can get nothing\n");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_that_are_not_given_are_conditions() {
    let mut broker = Broker::start().await;
    let dir = broker.dir.path().to_owned();
    fill(&broker, &dir);
    let bot = ["--client", "oidc:github:repo:acme/bot:ref:refs/heads/main"];
    let ask = |more: &[&str]| told(&list(&broker, &[&bot, more].concat()));
    let both = ["the claim ref is refs/heads/main or refs/tags/v*", "the claim repository_id is 42"];
    assert_eq!(ask(&[]), [entry("bots", "CERTIFICATE_REQUIRED", &both)]);
    let some = ["--claim", "repository_id=42"];
    assert_eq!(ask(&some), [entry("bots", "CERTIFICATE_REQUIRED", &both[..1])]);
    let all = [&some[..], &["--claim", "ref=refs/tags/v1"]].concat();
    assert_eq!(ask(&all), [entry("bots", "CERTIFICATE_REQUIRED", &[])]);
    let certificate = ["--certificate", "spiffe://acme.internal/ns/runners/sa/r1"];
    assert_eq!(ask(&[&all[..], &certificate].concat()), [entry("bots", "", &[])]);
    // One that is given is not open any more.
    assert_eq!(ask(&["--claim", "ref=refs/heads/dev"]), []);
    // Of policy, ceiling and Apple, the least.
    let answer = list(&broker, &[&bot[..], &all, &certificate].concat());
    assert_eq!(answer["access"][0]["max_ttl_s"], 900, "{answer:#}");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_can_touch_this_group() {
    let mut broker = Broker::start().await;
    let dir = broker.dir.path().to_owned();
    fill(&broker, &dir);
    let answer = list(&broker, &["--app-group", "games"]);
    let clients: Vec<_> =
        answer["access"].as_array().unwrap().iter().map(|it| it["client"].as_str().unwrap()).collect();
    // The client of another trust domain is not among the ceiling's callers: it gets nothing.
    let bots = "oidc:github:(any subject) with ref=refs/heads/main|refs/tags/v* with repository_id=42";
    assert_eq!(clients, [bots, CLIENT, "spiffe://acme.internal/ns/ci/sa/release-*", CLIENT]);
    let certificate = "its certificate is of spiffe://acme.internal/ns/runners/sa/*";
    let expected = [
        entry("bots", "", &[certificate]),
        entry("emergency", "BREAK_GLASS_CLOSED", &[]),
        entry("games-release-ci", "", &[]),
        entry("later", "OUTSIDE_VALIDITY", &[]),
    ];
    assert_eq!(told(&answer), expected);
    let mut operator = broker.as_(OPERATOR).await;
    operator.revoke(proto::TargetKind::AppGroup, "games").await.unwrap();
    assert_eq!(told(&list(&broker, &["--app-group", "games"])), []);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_that_make_no_sense_are_refused() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let mut fields = async |request| wrong_fields(operator.policy.list_access(request).await);
    let nothing = proto::ListAccessRequest::default;
    assert_eq!(fields(nothing()).await, ["of"]);
    let of = |client: &str| proto::ListAccessRequest { of: Some(Of::Client(client.to_owned())), ..nothing() };
    assert_eq!(fields(of("acme")).await, ["client"]);
    let values = || proto::ClaimValues { values: vec!["x".to_owned()] };
    let claims = || [("ref".to_owned(), values())].into();
    let certificate = || CLIENT.to_owned();
    let more = proto::ListAccessRequest { claims: claims(), certificate: certificate(), ..of(CLIENT) };
    assert_eq!(fields(more).await, ["claims", "certificate"]);
    let many = (0..201).map(|nth| (format!("c{nth}"), values())).collect();
    assert_eq!(fields(proto::ListAccessRequest { claims: many, ..of("oidc:github:x") }).await, ["claims"]);
    let hollow = [("ref", values()), ("hollow", proto::ClaimValues::default()), ("", values())];
    let claims = hollow.map(|(name, values)| (name.to_owned(), values)).into();
    let hollow = proto::ListAccessRequest { claims, ..of("oidc:github:x") };
    assert_eq!(fields(hollow).await, ["claims.", "claims.hollow"]);
    let vouched = "oidc:github:x".to_owned();
    assert_eq!(fields(proto::ListAccessRequest { certificate: vouched, ..of("oidc:github:x") }).await, ["certificate"]);
    let absent = [Of::Client("oidc:github:x".to_owned()), Of::AppGroup("nowhere".to_owned())];
    for of in absent {
        let request = proto::ListAccessRequest { of: Some(of), ..nothing() };
        assert_eq!(refused(operator.policy.list_access(request).await).0, Code::NotFound);
    }
    for arguments in [&["access", "list"][..], &["access", "list", "--client", CLIENT, "--app-group", "games"]] {
        assert_eq!(run(&broker, OPERATOR, arguments).status.code(), Some(2));
    }
    let arguments = ["access", "list", "--client", "oidc:github:x", "--claim", "ref"];
    assert_eq!(run(&broker, OPERATOR, &arguments).status.code(), Some(2));
    broker.stop().await;
}
