//! Two operators for one change: proposed by one, approved by another, and made as it was reviewed or not at all.

mod evasion;

use std::time::Duration;

use p8broker::grpc::proto::{self, Power, TargetKind};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::cli::{json_as, run_as};
use crate::harness::*;

const ALICE: &str = "spiffe://acme.internal/ns/ops/sa/alice";
const ALICE_TOO: &str = "spiffe://acme.internal/ns/ops/sa/alice-laptop";
const BOB: &str = "spiffe://acme.internal/ns/ops/sa/bob";
const LEAD: &str = "spiffe://acme.internal/ns/tools/sa/lead";
const WATCHER: &str = "spiffe://acme.internal/ns/ops/sa/watcher";

fn named(name: &str, clients: &[&str], powers: &[Power]) -> proto::Operator {
    proto::Operator {
        name: name.to_owned(),
        clients: clients.iter().map(|client| spiffe(client)).collect(),
        powers: powers.iter().map(|power| (*power).into()).collect(),
        app_groups: vec![],
    }
}

fn two_eyes(app_groups: &[&str]) -> proto::Ceiling {
    proto::Ceiling {
        name: "two-eyes".to_owned(),
        app_groups: app_groups.iter().map(|group| (*group).to_owned()).collect(),
        require_approval: true,
        ..proto::Ceiling::default()
    }
}

/// A vault where changes of `games` take two operators, and changes of `tools` take one.
async fn start() -> Broker {
    let broker = Broker::start().await;
    let both = [Power::Administer, Power::AuthorPolicies, Power::Revoke, Power::Audit, Power::Custody];
    let lead =
        proto::Operator { app_groups: vec!["tools".to_owned()], ..named("lead", &[LEAD], &[Power::AuthorPolicies]) };
    let tools =
        proto::AppGroup { name: "tools".to_owned(), apps: vec!["1".to_owned()], ..sample().app_groups.remove(0) };
    let document = proto::Document {
        app_groups: vec![tools],
        ceilings: vec![two_eyes(&["games"])],
        operators: vec![
            named("alice", &[ALICE, ALICE_TOO], &both),
            named("bob", &[BOB], &both),
            lead,
            named("watcher", &[WATCHER], &[Power::Audit]),
        ],
        ..proto::Document::default()
    };
    broker.as_(OPERATOR).await.apply(document).await.unwrap();
    broker
}

fn shorter(seconds: i64) -> proto::Document {
    policies(vec![proto::Policy { max_ttl: duration(seconds), ..release_policy() }])
}

fn wants(document: proto::Document) -> proto::ProposeRequest {
    proto::ProposeRequest { document: Some(document), reason: "a test".to_owned(), ..proto::ProposeRequest::default() }
}

async fn propose(client: &mut Client, document: proto::Document) -> Result<proto::Proposal, Status> {
    Ok(client.policy.propose(wants(document)).await?.into_inner().proposal.unwrap())
}

async fn approve(client: &mut Client, id: &str) -> Result<proto::ApproveProposalResponse, Status> {
    let request = proto::ApproveProposalRequest { proposal_id: id.to_owned() };
    client.policy.approve_proposal(request).await.map(tonic::Response::into_inner)
}

async fn close(client: &mut Client, id: &str, reason: &str) -> Result<u64, Status> {
    let request = proto::CloseProposalRequest { proposal_id: id.to_owned(), reason: reason.to_owned() };
    client.policy.close_proposal(request).await.map(|answer| answer.into_inner().revision)
}

async fn get(client: &mut Client, id: &str) -> Result<proto::Proposal, Status> {
    let request = proto::GetProposalRequest { proposal_id: id.to_owned() };
    Ok(client.policy.get_proposal(request).await?.into_inner().proposal.unwrap())
}

async fn export(client: &mut Client) -> proto::Document {
    client.policy.export(proto::ExportRequest {}).await.unwrap().into_inner().document.unwrap()
}

/// That only the vault's having moved is in the way, and what moved.
#[track_caller]
fn stale<T: std::fmt::Debug>(answer: Result<T, Status>) -> String {
    let status = answer.expect_err("it must be refused");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "PLAN_STALE", "{status:?}");
    let moved = details.precondition_failure().unwrap().violations.iter().map(|it| it.description.clone());
    moved.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn what_a_ceiling_guards_takes_two_operators_and_lands_as_it_was_reviewed() {
    let mut broker = start().await;
    let (mut alice, mut bob) = (broker.as_(ALICE).await, broker.as_(BOB).await);
    let status = alice.apply(shorter(300)).await.unwrap_err();
    let details = status.get_error_details();
    assert_eq!(
        (status.code(), details.error_info().unwrap().reason.as_str()),
        (Code::FailedPrecondition, "APPROVAL_REQUIRED")
    );
    assert_eq!(details.precondition_failure().unwrap().violations[0].subject, "two-eyes");
    let request = proto::PlanRequest { document: Some(shorter(300)), ..proto::PlanRequest::default() };
    let plan = alice.policy.plan(request).await.unwrap().into_inner();
    assert_eq!(plan.steps[0].approval_by_ceiling, "two-eyes");
    // What takes one operator still does.
    let of_tools = proto::Policy { name: "tools".to_owned(), app_group: "tools".to_owned(), ..release_policy() };
    alice.apply(policies(vec![of_tools])).await.unwrap();
    let before = export(&mut alice).await;
    let proposal = propose(&mut alice, shorter(300)).await.unwrap();
    assert_eq!((proposal.reason.as_str(), proposal.proposed.as_ref().unwrap().by.as_str()), ("a test", "alice"));
    assert_eq!(export(&mut alice).await, before, "nothing is done yet");
    // Nobody approves what they proposed, with no certificate; nor does somebody without the power, or with it elsewhere.
    let id = proposal.proposal_id.as_str();
    let own = (Code::PermissionDenied, "OWN_PROPOSAL".to_owned());
    assert_eq!(refused(approve(&mut alice, id).await), own);
    assert_eq!(refused(approve(&mut broker.as_(ALICE_TOO).await, id).await), own);
    assert_eq!(refused(approve(&mut broker.as_(WATCHER).await, id).await).1, "POWER_MISSING");
    assert_eq!(refused(approve(&mut broker.as_(LEAD).await, id).await).1, "OUTSIDE_APP_GROUP");
    assert_eq!(refused(approve(&mut broker.as_(CLIENT).await, id).await).1, "POWER_MISSING");
    assert_eq!(export(&mut alice).await, before, "nothing is done by those who may not");
    // Another one looks at it, and with that word it is so: this, and nothing else.
    let seen = get(&mut bob, id).await.unwrap();
    assert_eq!((&seen.steps, seen.moved.len()), (&proposal.steps, 0));
    assert!(seen.steps[0].means.contains(&"its clients lose longer tokens: at most 300s, before 600s".to_owned()));
    let approved = approve(&mut bob, id).await.unwrap();
    assert_eq!(approved.steps, seen.steps);
    let mut wanted = before;
    let policy = wanted.policies.iter_mut().find(|policy| policy.name == "games-release-ci").unwrap();
    (policy.max_ttl, policy.default_ttl) = (duration(300), duration(300));
    assert_eq!(export(&mut alice).await, wanted);
    assert_eq!(refused(approve(&mut bob, id).await).0, Code::NotFound, "once");
    let events = alice.all_events().await;
    let row = |reason: &str| events.iter().find(|event| event.event == reason).unwrap_or_else(|| panic!("{reason}"));
    let (proposed, approved) = (row("CHANGE_PROPOSED"), row("PROPOSAL_APPROVED"));
    assert!(proposed.caller == ALICE && approved.caller == BOB);
    for event in [proposed, approved] {
        assert!(
            event.detail.starts_with(&format!("proposal {id}: update policy games-release-ci (")),
            "{}",
            event.detail
        );
        assert!(event.detail.contains("max_ttl: 600s -> 300s"), "{}", event.detail);
    }
    eventually("refused approvals are in the audit", async || {
        let events = alice.all_events().await;
        events.iter().filter(|event| event.reason == "OWN_PROPOSAL").count() == 2
    })
    .await;
    assert!(alice.verify().await.findings.is_empty());
    broker.stop().await;
}

#[tokio::test]
async fn a_proposal_does_what_it_did_when_it_was_proposed_or_nothing() {
    let mut broker = start().await;
    let (mut alice, mut bob) = (broker.as_(ALICE).await, broker.as_(BOB).await);
    let first = propose(&mut alice, shorter(300)).await.unwrap();
    let second = propose(&mut bob, shorter(200)).await.unwrap().proposal_id;
    // What others do elsewhere is in nobody's way, however often: their policies, a key, a revocation, a restart.
    let mut lead = broker.as_(LEAD).await;
    for seconds in [100, 200] {
        let of_tools = proto::Policy { name: "tools".to_owned(), app_group: "tools".to_owned(), ..release_policy() };
        lead.apply(policies(vec![proto::Policy { max_ttl: duration(seconds), ..of_tools }])).await.unwrap();
    }
    bob.import(&import("SECONDKEY2", &new_p8())).await.unwrap();
    bob.revoke(TargetKind::Client, STRANGER).await.unwrap();
    broker.restart().await;
    let (mut alice, mut bob) = (broker.as_(ALICE).await, broker.as_(BOB).await);
    let seen = get(&mut bob, &first.proposal_id).await.unwrap();
    assert_eq!((&seen.steps, seen.moved.len()), (&first.steps, 0));
    // What it would do otherwise by now is not what was reviewed: here, it would not bring the policy back to life.
    bob.revoke(TargetKind::Policy, "games-release-ci").await.unwrap();
    let what = stale(approve(&mut bob, &first.proposal_id).await);
    assert!(what.contains("by bob: REVOKED") && what.contains("by lead: DOCUMENT_APPLIED: put policy tools"), "{what}");
    assert_eq!(get(&mut bob, &first.proposal_id).await.unwrap().moved.join("\n"), what);
    assert_eq!(export(&mut bob).await.policies[0].max_ttl, duration(600));
    let target = Some(target(TargetKind::Policy, "games-release-ci"));
    let reinstate = proto::ReinstateRequest { target, reason: "a test".to_owned() };
    bob.revocation.reinstate(reinstate).await.unwrap();
    // Of two for the same thing one lands.
    approve(&mut bob, &first.proposal_id).await.unwrap();
    let what = stale(approve(&mut alice, &second).await);
    assert!(what.contains(&format!("by bob: PROPOSAL_APPROVED: proposal {}", first.proposal_id)), "{what}");
    assert_eq!(export(&mut bob).await.policies[0].max_ttl, duration(300));
    broker.stop().await;
}

#[tokio::test]
async fn a_proposal_is_refused_where_it_can_be_no_more_or_its_proposer_may_be_another() {
    let mut broker = start().await;
    let (mut alice, mut bob) = (broker.as_(ALICE).await, broker.as_(BOB).await);
    // The group goes for which a policy was proposed.
    let of_tools = proto::Policy { name: "tools".to_owned(), app_group: "tools".to_owned(), ..release_policy() };
    let late = propose(&mut alice, policies(vec![of_tools])).await.unwrap().proposal_id;
    let mut document = export(&mut bob).await;
    document.app_groups.retain(|group| group.name != "tools");
    document.operators.retain(|operator| operator.name != "lead");
    let prune = proto::ProposeRequest { prune: true, ..wants(document) };
    let gone = bob.policy.propose(prune).await.unwrap().into_inner().proposal.unwrap().proposal_id;
    let other = propose(&mut alice, shorter(300)).await.unwrap().proposal_id;
    approve(&mut alice, &gone).await.unwrap();
    let what = stale(approve(&mut bob, &late).await);
    assert!(what.contains("policies[0].app_group"), "{what}");
    // Operators were changed, too: who proposed may not be who that was.
    let what = stale(approve(&mut bob, &other).await);
    assert!(what.contains("by alice: PROPOSAL_APPROVED"), "{what}");
    let again = propose(&mut alice, shorter(300)).await.unwrap().proposal_id;
    approve(&mut bob, &again).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn whoever_loses_the_power_between_takes_the_proposal_with_them() {
    let mut broker = start().await;
    let (mut alice, mut bob) = (broker.as_(ALICE).await, broker.as_(BOB).await);
    let id = propose(&mut alice, shorter(300)).await.unwrap().proposal_id;
    bob.revoke(TargetKind::Client, ALICE).await.unwrap();
    let what = stale(approve(&mut bob, &id).await);
    assert!(what.contains(&format!("client {ALICE}")), "{what}");
    broker.stop().await;
}

#[tokio::test]
async fn proposals_are_closed_and_expire_and_what_is_late_is_in_nobodys_way() {
    let mut broker = start().await;
    let (mut alice, mut bob) = (broker.as_(ALICE).await, broker.as_(BOB).await);
    // Taken back by who made it, turned down by who could make it; by nobody else, and never without a reason.
    let id = propose(&mut alice, shorter(300)).await.unwrap().proposal_id;
    assert_eq!(wrong_fields(close(&mut alice, &id, " ").await), ["reason"]);
    assert_eq!(refused(close(&mut broker.as_(WATCHER).await, &id, "no").await).1, "POWER_MISSING");
    assert_eq!(refused(close(&mut broker.as_(LEAD).await, &id, "no").await).1, "OUTSIDE_APP_GROUP");
    close(&mut alice, &id, "not needed").await.unwrap();
    assert_eq!(refused(approve(&mut bob, &id).await).0, Code::NotFound);
    assert_eq!(refused(close(&mut alice, &id, "again").await).0, Code::NotFound);
    let id = propose(&mut alice, shorter(300)).await.unwrap().proposal_id;
    close(&mut bob, &id, "too short").await.unwrap();
    let events = alice.all_events().await;
    let closed: Vec<_> = events.iter().filter(|event| event.event == "PROPOSAL_CLOSED").collect();
    let told = |event: &proto::AuditEvent| (event.caller.clone(), event.detail.ends_with("too short"));
    assert_eq!(
        closed.iter().map(|event| told(event)).collect::<Vec<_>>(),
        [(ALICE.to_owned(), false), (BOB.to_owned(), true)]
    );
    // A reason is read by others: it must look like what it is. And what changes nothing is nothing to propose.
    let lies = proto::ProposeRequest { reason: "harmless \u{202e}lla evomer".to_owned(), ..wants(shorter(300)) };
    assert_eq!(wrong_fields(alice.policy.propose(lies).await), ["reason"]);
    let silent = proto::ProposeRequest { reason: String::new(), ..wants(shorter(300)) };
    assert_eq!(wrong_fields(alice.policy.propose(silent).await), ["reason"]);
    assert_eq!(wrong_fields(propose(&mut alice, policies(vec![release_policy()])).await), ["document"]);
    assert_eq!(wrong_fields(get(&mut alice, "nonsense").await), ["proposal_id"]);
    // As many as anybody can look through.
    let mut ids = Vec::new();
    for nth in 0..100 {
        ids.push(propose(&mut alice, shorter(100 + nth)).await.unwrap().proposal_id);
    }
    let list = async |client: &mut Client| {
        client.policy.list_proposals(proto::ListProposalsRequest {}).await.unwrap().into_inner().proposals
    };
    assert_eq!(list(&mut broker.as_(WATCHER).await).await.len(), 100);
    assert_eq!(refused(propose(&mut alice, shorter(99)).await).1, "TOO_MANY_PROPOSALS");
    // A week later they are gone, and others have their place.
    broker.clock.advance(Duration::from_secs(7 * 86_400 - 60));
    assert_eq!(get(&mut bob, &ids[0]).await.unwrap().proposal_id, ids[0]);
    broker.clock.advance(Duration::from_secs(60));
    assert_eq!(refused(approve(&mut bob, &ids[0]).await).0, Code::NotFound);
    assert_eq!(refused(get(&mut bob, &ids[0]).await).0, Code::NotFound);
    assert_eq!(list(&mut bob).await.len(), 0);
    let id = propose(&mut alice, shorter(300)).await.unwrap().proposal_id;
    assert_eq!(list(&mut bob).await.len(), 1);
    approve(&mut bob, &id).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn the_command_line_proposes_shows_approves_and_closes() {
    let mut broker = start().await;
    let text = "policies:\n  - name: games-release-ci\n    clients: [{ spiffe: spiffe://acme.internal/ns/ci/sa/release-* }]\n    \
                app_group: games\n    roles: [APP_MANAGER]\n    max_ttl: 5m\n";
    let (code, error) = json_as(&broker, ALICE, &["apply", "-f", "-"], text).await;
    assert_eq!((code, error["reason"].as_str()), (1, Some("APPROVAL_REQUIRED")));
    let (code, plan, _) = run_as(&broker, ALICE, &["apply", "-f", "-", "--plan"], text).await;
    assert!(code == 0 && plan.contains("    => takes two operators, by ceiling two-eyes\n"), "{plan}");
    let propose = ["apply", "-f", "-", "--propose", "--reason", "shorter lives"];
    let (code, proposed) = json_as(&broker, ALICE, &propose, text).await;
    assert_eq!((code, &proposed["applied"]), (0, &false.into()));
    let id = proposed["proposal_id"].as_str().unwrap();
    let (_, list) = json_as(&broker, BOB, &["proposal", "list"], "").await;
    assert_eq!(
        (&list["proposals"][0]["proposal_id"], &list["proposals"][0]["reason"]),
        (&id.into(), &"shorter lives".into())
    );
    let (_, table, _) = run_as(&broker, BOB, &["proposal", "list"], "").await;
    assert!(table.starts_with("PROPOSAL") && table.contains(id) && table.contains("shorter lives"), "{table}");
    let (_, shown) = json_as(&broker, BOB, &["proposal", "show", id], "").await;
    assert_eq!((&shown["steps"][0]["action"], &shown["proposed"]["by"]), (&"UPDATE".into(), &"alice".into()));
    assert!(shown["expires_at"].is_string() && shown["moved"] == serde_json::json!([]), "{shown}");
    // Whoever approves is shown what, and asked.
    let (code, _, asked) = run_as(&broker, BOB, &["proposal", "approve", id], "no\n").await;
    assert!(code == 1 && asked.contains("max_ttl: 600s -> 300s") && asked.contains("NOT_CONFIRMED"), "{asked}");
    let (code, error) = json_as(&broker, BOB, &["proposal", "approve", id], "yes\n").await;
    assert_eq!((code, error["reason"].as_str()), (1, Some("NOT_CONFIRMED")), "a program can't be asked");
    let (code, error) = json_as(&broker, ALICE, &["proposal", "approve", id, "--yes"], "").await;
    assert_eq!((code, error["reason"].as_str()), (3, Some("OWN_PROPOSAL")));
    let (code, out, _) = run_as(&broker, BOB, &["proposal", "approve", id], "yes\n").await;
    assert!(code == 0 && out.contains("approved and applied; revision"), "{out}");
    // One that would do anything else by now says so, and is closed.
    let again = text.replace("5m", "4m");
    let (_, proposed) = json_as(&broker, ALICE, &propose, &again).await;
    let id = proposed["proposal_id"].as_str().unwrap();
    broker.as_(BOB).await.revoke(TargetKind::Policy, "games-release-ci").await.unwrap();
    let (_, text, _) = run_as(&broker, BOB, &["proposal", "show", id], "").await;
    let moved = "by bob: REVOKED: policy games-release-ci";
    assert!(text.contains("it can't be approved any more") && text.contains(moved), "{text}");
    let (code, error) = json_as(&broker, BOB, &["proposal", "approve", id, "--yes"], "").await;
    assert_eq!((code, error["reason"].as_str()), (1, Some("PLAN_STALE")));
    assert!(error["violations"][0]["message"].as_str().unwrap().contains(moved), "{error}");
    let (code, closed) = json_as(&broker, BOB, &["proposal", "close", id, "--reason", "stale"], "").await;
    assert!(code == 0 && closed["proposal_id"] == id && closed["revision"].is_u64());
    let (code, error) = json_as(&broker, BOB, &["proposal", "show", id], "").await;
    assert_eq!((code, error["reason"].as_str()), (1, Some("NOT_FOUND")));
    let (_, none, _) = run_as(&broker, BOB, &["proposal", "list"], "").await;
    assert_eq!(none, "nothing waits for approval\n");
    broker.stop().await;
}
