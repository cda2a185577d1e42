//! Policies for emergencies: closed unless somebody holds them open, for a while and for a reason.

use std::time::Duration;

use p8broker::clock::Clock;
use p8broker::grpc::proto::{self, Power, TargetKind};
use tonic::{Code, Status};

use crate::cli::{json_as, run_as};
use crate::harness::*;

const ONCALL: &str = "spiffe://acme.internal/ns/ops/sa/oncall";
const LEAD: &str = "spiffe://acme.internal/ns/games/sa/lead";
const OTHER_LEAD: &str = "spiffe://acme.internal/ns/tools/sa/lead";

fn emergency() -> proto::Policy {
    proto::Policy { name: "emergency".to_owned(), break_glass: true, ..release_policy() }
}

/// A vault whose only policy is for emergencies; with somebody who may revoke, and authors of two groups.
async fn start() -> Broker {
    let broker = Broker::bare(Options::default()).await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.system.init(proto::InitRequest::default()).await.unwrap();
    let mut document = sample();
    document.policies = vec![emergency()];
    let tools =
        proto::AppGroup { name: "tools".to_owned(), apps: vec!["1".to_owned()], ..document.app_groups[0].clone() };
    document.app_groups.push(tools);
    let lead = |name: &str, client: &str, group: &str| proto::Operator {
        name: name.to_owned(),
        clients: vec![spiffe(client)],
        powers: vec![Power::AuthorPolicies.into()],
        app_groups: vec![group.to_owned()],
    };
    document.operators = crate::harness::operator("oncall", ONCALL, &[Power::Revoke]).operators;
    document.operators.extend([lead("lead", LEAD, "games"), lead("other-lead", OTHER_LEAD, "tools")]);
    operator.apply(document).await.unwrap();
    operator.import(&import(KEY_ID, &new_p8())).await.unwrap();
    broker
}

async fn open(client: &mut Client, policy: &str, seconds: i64) -> Result<i64, Status> {
    let (policy, reason) = (policy.to_owned(), "the store is down".to_owned());
    let request = proto::OpenBreakGlassRequest { policy, duration: duration(seconds), reason };
    client.policy.open_break_glass(request).await.map(|answer| answer.into_inner().until.unwrap().seconds)
}

async fn close(client: &mut Client, reason: &str) -> Result<u64, Status> {
    let request = proto::CloseBreakGlassRequest { policy: "emergency".to_owned(), reason: reason.to_owned() };
    client.policy.close_break_glass(request).await.map(|answer| answer.into_inner().revision)
}

async fn open_now(broker: &Broker, wanted: i64) {
    eventually("the metric says how many are open", async || {
        broker.ops("/metrics").await.1.contains(&format!("\np8broker_break_glass_open {wanted}\n"))
    })
    .await;
}

#[tokio::test]
async fn it_grants_while_it_is_held_open_and_no_token_outlives_that() {
    let mut broker = start().await;
    let (mut operator, mut client) = (broker.as_(OPERATOR).await, broker.as_(CLIENT).await);
    let shut = (Code::PermissionDenied, "BREAK_GLASS_CLOSED".to_owned());
    assert_eq!(refused(client.issue(ask()).await), shut);
    let now = broker.clock.now().seconds();
    let until = open(&mut operator, "emergency", 300).await.unwrap();
    assert_eq!(until, now + 300);
    let policy = proto::GetPolicyRequest { name: "emergency".to_owned() };
    let seen = operator.policy.get_policy(policy.clone()).await.unwrap().into_inner();
    assert_eq!(seen.open_until.unwrap().seconds, until);
    open_now(&broker, 1).await;
    // Ten minutes are asked for, and five are left.
    let token = client.issue(proto::IssueTokenRequest { ttl: duration(600), ..ask() }).await.unwrap();
    assert_eq!(token.expires_at.unwrap().seconds, until);
    broker.clock.advance(Duration::from_secs(200));
    assert_eq!(client.issue(ask_fresh()).await.unwrap().expires_at.unwrap().seconds, until);
    // The clock closes it, to the second; nobody has to.
    broker.clock.advance(Duration::from_secs(99));
    let late = client.issue(ask_fresh()).await;
    assert!(late.is_err() || late.unwrap().expires_at.unwrap().seconds <= until);
    broker.clock.advance(Duration::from_secs(1));
    assert_eq!(refused(client.issue(ask()).await), shut);
    assert!(operator.policy.get_policy(policy).await.unwrap().into_inner().open_until.is_none());
    open_now(&broker, 0).await;
    // Opened again it is open again, also after a restart. What is handed out is counted, also what is reused.
    open(&mut operator, "emergency", 3600).await.unwrap();
    let counted = async || {
        let (_, metrics) = broker.ops("/metrics").await;
        let of =
            |line: &str| line.strip_prefix("p8broker_break_glass_tokens_total{policy=\"emergency\"} ")?.parse().ok();
        metrics.lines().find_map(of).unwrap_or(0_u32)
    };
    let before = counted().await;
    let answers = [client.issue(ask()).await.unwrap().reused, client.issue(ask()).await.unwrap().reused];
    assert_eq!((answers, counted().await), ([false, true], before + 2));
    assert!(before >= 2, "{before}");
    broker.restart().await;
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn it_is_opened_by_those_who_could_have_written_it_and_closed_by_more() {
    let mut broker = start().await;
    let (mut lead, mut oncall) = (broker.as_(LEAD).await, broker.as_(ONCALL).await);
    let mut client = broker.as_(CLIENT).await;
    for seconds in [0, -1, 59, 86_401, i64::MAX] {
        assert_eq!(wrong_fields(open(&mut lead, "emergency", seconds).await), ["duration"], "{seconds}");
    }
    let request = proto::OpenBreakGlassRequest { policy: "Emergency".to_owned(), ..Default::default() };
    assert_eq!(wrong_fields(lead.policy.open_break_glass(request).await), ["policy", "duration", "reason"]);
    assert_eq!(refused(open(&mut lead, "absent", 300).await).0, Code::NotFound);
    assert_eq!(refused(open(&mut broker.as_(OTHER_LEAD).await, "emergency", 300).await).1, "OUTSIDE_APP_GROUP");
    assert_eq!(refused(open(&mut oncall, "emergency", 300).await).1, "POWER_MISSING");
    assert_eq!(refused(open(&mut client, "emergency", 300).await).1, "POWER_MISSING");
    broker.as_(OPERATOR).await.apply(policies(vec![release_policy()])).await.unwrap();
    assert_eq!(
        refused(open(&mut lead, "games-release-ci", 300).await),
        (Code::FailedPrecondition, "NOT_BREAK_GLASS".to_owned())
    );
    broker.as_(OPERATOR).await.revoke(TargetKind::Policy, "games-release-ci").await.unwrap();
    // An author of the group opens it; whoever may revoke closes it, and says why.
    open(&mut lead, "emergency", 300).await.unwrap();
    client.issue(ask()).await.unwrap();
    assert_eq!(wrong_fields(close(&mut oncall, "").await), ["reason"]);
    assert_eq!(refused(close(&mut broker.as_(OTHER_LEAD).await, "no").await).1, "OUTSIDE_APP_GROUP");
    assert_eq!(refused(close(&mut client, "no").await).1, "POWER_MISSING");
    for (name, power) in [("auditor", Power::Audit), ("custodian", Power::Custody), ("unsealer", Power::Unseal)] {
        let identity = format!("spiffe://acme.internal/ns/ops/sa/{name}");
        broker.as_(OPERATOR).await.apply(crate::harness::operator(name, &identity, &[power])).await.unwrap();
        assert_eq!(refused(close(&mut broker.as_(&identity).await, "no").await).1, "POWER_MISSING", "{name}");
    }
    let revision = close(&mut oncall, "it is over").await.unwrap();
    assert_eq!(refused(client.issue(ask()).await).1, "BREAK_GLASS_CLOSED");
    assert_eq!(close(&mut oncall, "it is over").await.unwrap(), revision, "closed already");
    let events = broker.as_(OPERATOR).await.all_events().await;
    let told =
        |event: &str| events.iter().find(|it| it.event == event).map(|it| (it.caller.as_str(), it.detail.as_str()));
    let (caller, detail) = told("BREAK_GLASS_OPENED").unwrap();
    assert!(
        caller == LEAD && detail.starts_with("policy emergency until 20") && detail.ends_with(": the store is down")
    );
    assert_eq!(told("BREAK_GLASS_CLOSED"), Some((ONCALL, "policy emergency: it is over")));
    broker.stop().await;
}

#[tokio::test]
async fn what_is_changed_was_not_opened_by_anybody() {
    let mut broker = start().await;
    let (mut lead, mut client) = (broker.as_(LEAD).await, broker.as_(CLIENT).await);
    open(&mut lead, "emergency", 3600).await.unwrap();
    client.issue(ask()).await.unwrap();
    // The same once more is no change.
    lead.apply(policies(vec![emergency()])).await.unwrap();
    client.issue(ask()).await.unwrap();
    let wider = proto::Policy { clients: vec![spiffe(CLIENT), spiffe(STRANGER)], ..emergency() };
    lead.apply(policies(vec![wider])).await.unwrap();
    for identity in [CLIENT, STRANGER] {
        assert_eq!(refused(broker.as_(identity).await.issue(ask()).await).1, "BREAK_GLASS_CLOSED");
    }
    open_now(&broker, 0).await;
    // Removed and made anew it is closed, too; and a revocation stands above an opening.
    open(&mut lead, "emergency", 3600).await.unwrap();
    let mut operator = broker.as_(OPERATOR).await;
    let exported = operator.policy.export(proto::ExportRequest {}).await.unwrap().into_inner().document.unwrap();
    let without = proto::Document { policies: vec![], ..exported.clone() };
    let prune = proto::ApplyRequest { document: Some(without), prune: true, ..proto::ApplyRequest::default() };
    operator.policy.apply(prune).await.unwrap();
    operator.apply(exported).await.unwrap();
    assert_eq!(refused(client.issue(ask()).await).1, "BREAK_GLASS_CLOSED");
    operator.revoke(TargetKind::Policy, "emergency").await.unwrap();
    open(&mut lead, "emergency", 3600).await.unwrap();
    assert_eq!(refused(client.issue(ask()).await).1, "POLICY_REVOKED");
    broker.stop().await;
}

#[tokio::test]
async fn the_command_line_opens_and_closes_and_shows_what_is_open() {
    let mut broker = start().await;
    let open = ["break-glass", "open", "emergency", "--for", "30m", "--reason", "the store is down"];
    let (code, opened) = json_as(&broker, LEAD, &open, "").await;
    assert_eq!((code, &opened["policy"]), (0, &"emergency".into()));
    assert!(opened["until"].as_str().unwrap().ends_with('Z') && opened["revision"].is_u64(), "{opened}");
    let (_, policy) = json_as(&broker, LEAD, &["get", "policy", "emergency"], "").await;
    assert_eq!(policy["open_until"], opened["until"]);
    let (_, text, _) = run_as(&broker, LEAD, &["get", "policy", "emergency"], "").await;
    assert!(text.contains(&format!("# held open until {}\n", opened["until"].as_str().unwrap())), "{text}");
    let close = ["break-glass", "close", "emergency", "--reason", "it is over"];
    let (code, closed) = json_as(&broker, ONCALL, &close, "").await;
    assert_eq!((code, &closed["until"]), (0, &serde_json::Value::Null));
    assert_eq!(closed["revision"].as_u64(), opened["revision"].as_u64().map(|it| it + 1));
    // Who closes need not say why: the audit then says that it was not the clock.
    assert_eq!(json_as(&broker, LEAD, &open, "").await.0, 0);
    assert_eq!(json_as(&broker, ONCALL, &close[..3], "").await.0, 0);
    let events = broker.as_(OPERATOR).await.all_events().await;
    let details = events.iter().filter(|it| it.event == "BREAK_GLASS_CLOSED").map(|it| it.detail.as_str());
    let mut details: Vec<_> = details.collect();
    details.sort_unstable();
    assert_eq!(details, ["policy emergency: closed by hand", "policy emergency: it is over"]);
    for (who, arguments, code, reason) in [
        (LEAD, &["break-glass", "open", "emergency", "--for", "soon", "--reason", "x"][..], 2, "USAGE"),
        (LEAD, &["break-glass", "open", "emergency", "--for", "30m"], 2, "USAGE"),
        (LEAD, &["break-glass", "open", "emergency", "--reason", "x"], 2, "USAGE"),
        (LEAD, &["break-glass", "open", "emergency", "--for", "2days", "--reason", "x"], 1, "INVALID_ARGUMENT"),
        (LEAD, &["break-glass", "open", "absent", "--for", "30m", "--reason", "x"], 1, "NOT_FOUND"),
        (OTHER_LEAD, &open, 3, "OUTSIDE_APP_GROUP"),
        (ONCALL, &open, 3, "POWER_MISSING"),
    ] {
        let (found, error) = json_as(&broker, who, arguments, "").await;
        assert_eq!((found, error["reason"].as_str()), (code, Some(reason)), "{arguments:?}");
    }
    broker.stop().await;
}
