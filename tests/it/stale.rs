//! Optimistic concurrency: a plan of one state is refused on another, with what moved; and a refusal always arrives.

use p8broker::grpc::proto::{self, TargetKind};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::desired::plan;
use crate::harness::*;

const OTHER: &str = "spiffe://acme.internal/ns/ci/sa/release-two";

/// What moved since a plan, as a refusal tells it.
#[track_caller]
fn moved(answer: Result<proto::ApplyResponse, Status>) -> Vec<String> {
    let status = answer.expect_err("it must be refused");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "PLAN_STALE");
    details.precondition_failure().unwrap().violations.iter().map(|it| it.description.clone()).collect()
}

#[tokio::test]
async fn a_plan_of_another_state_is_refused_with_what_moved() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let shorter = |seconds| {
        let mut document = sample();
        document.policies[0].max_ttl = duration(seconds);
        document
    };
    let planned =
        async |operator: &mut Client, seconds| plan(operator, shorter(seconds), false).await.unwrap().revision;
    let apply = async |operator: &mut Client, seconds, planned_revision| {
        let document = Some(shorter(seconds));
        let request = proto::ApplyRequest { document, planned_revision, ..proto::ApplyRequest::default() };
        operator.policy.apply(request).await.map(tonic::Response::into_inner)
    };
    // Another's apply.
    let revision = planned(&mut operator, 500).await;
    operator.apply(policies(vec![proto::Policy { name: "second".to_owned(), ..release_policy() }])).await.unwrap();
    let what = moved(apply(&mut operator, 500, revision).await);
    assert_eq!(what, [format!("revision {} by bootstrap-1: DOCUMENT_APPLIED: put policy second", revision + 1)]);
    // A revoke, and with it what lifts it.
    let revision = planned(&mut operator, 500).await;
    operator.revoke(TargetKind::Client, OTHER).await.unwrap();
    assert!(moved(apply(&mut operator, 500, revision).await)[0].contains(&format!("client {OTHER}: a test")));
    let lift = proto::ReinstateRequest { target: Some(target(TargetKind::Client, OTHER)), reason: "a test".to_owned() };
    operator.revocation.reinstate(lift).await.unwrap();
    let what = moved(apply(&mut operator, 500, revision).await);
    assert!(what.len() == 2 && what[1].contains("REINSTATED"), "{what:?}");
    // A key: imported, suspended, resumed.
    let revision = planned(&mut operator, 500).await;
    operator.import(&import("SECONDKEY2", &new_p8())).await.unwrap();
    let (key_id, reason) = ("SECONDKEY2".to_owned(), "a test".to_owned());
    operator.key.suspend_key(proto::SuspendKeyRequest { key_id, reason }).await.unwrap();
    let what = moved(apply(&mut operator, 500, revision).await);
    assert!(what[0].contains("KEY_IMPORTED SECONDKEY2") && what[1].contains("KEY_SUSPENDED SECONDKEY2"), "{what:?}");
    // Nothing of all this was changed by a plan that was refused; a new plan is taken, and one without a revision always.
    let revision = planned(&mut operator, 500).await;
    assert_eq!(apply(&mut operator, 500, revision).await.unwrap().revision, revision + 1);
    assert_eq!(apply(&mut operator, 400, 0).await.unwrap().revision, revision + 2);
    // A token's own revocation, a look, a rotation, an audit that is pruned and a restart move nothing that a plan rests on.
    let revision = planned(&mut operator, 500).await;
    let token = broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    operator.revoke(TargetKind::Token, &token.token_id).await.unwrap();
    operator.verify().await;
    operator.system.rotate(proto::RotateRequest {}).await.unwrap();
    broker.restart().await;
    let mut operator = broker.as_(OPERATOR).await;
    let applied = apply(&mut operator, 500, revision).await.unwrap();
    assert!(applied.revision > revision + 3, "there were records in between: {}", applied.revision);
    broker.stop().await;
}

#[tokio::test]
async fn a_checkpoint_moves_nothing_and_remembers_what_moved() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let first = plan(&mut operator, sample(), false).await.unwrap().revision;
    operator.import(&import("SECONDKEY2", &new_p8())).await.unwrap();
    let second = plan(&mut operator, sample(), false).await.unwrap().revision;
    // Proposals that come and go are records, and nothing that a plan rests on.
    let wanted = proto::Policy { name: "new".to_owned(), ..release_policy() };
    let propose = proto::ProposeRequest {
        document: Some(policies(vec![wanted.clone()])),
        reason: "a test".to_owned(),
        ..proto::ProposeRequest::default()
    };
    while broker.inner().open().unwrap().state().checkpoint().0 == 0 {
        let proposal = operator.policy.propose(propose.clone()).await.unwrap().into_inner().proposal.unwrap();
        let (proposal_id, reason) = (proposal.proposal_id, "a test".to_owned());
        operator.policy.close_proposal(proto::CloseProposalRequest { proposal_id, reason }).await.unwrap();
    }
    broker.restart().await;
    let mut operator = broker.as_(OPERATOR).await;
    let apply = async |operator: &mut Client, planned_revision| {
        let document = Some(policies(vec![wanted.clone()]));
        let request = proto::ApplyRequest { document, planned_revision, ..proto::ApplyRequest::default() };
        operator.policy.apply(request).await.map(tonic::Response::into_inner)
    };
    let what = moved(apply(&mut operator, first).await);
    assert!(what.len() == 1 && what[0].contains("KEY_IMPORTED SECONDKEY2"), "{what:?}");
    apply(&mut operator, second).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn a_refusal_fits_into_its_headers_whatever_there_is_to_say() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let revision = plan(&mut operator, sample(), false).await.unwrap().revision;
    for nth in 0..120 {
        let many = (0..10).map(|it| proto::Policy {
            name: format!("a-policy-with-a-long-name-{it}"),
            max_ttl: duration(100 + nth),
            ..release_policy()
        });
        operator.apply(policies(many.collect())).await.unwrap();
    }
    let document = Some(sample());
    let request = proto::ApplyRequest { document, planned_revision: revision, ..proto::ApplyRequest::default() };
    let what = moved(operator.policy.apply(request).await.map(tonic::Response::into_inner));
    assert!(what.last().unwrap().starts_with("and ") && what.len() > 5, "{what:?}");
    let bad =
        |it| proto::Policy { app_group: format!("no-such-group-{it}"), name: format!("p{it}"), ..release_policy() };
    let fields = wrong_fields(operator.apply(policies((0..900).map(bad).collect())).await);
    assert!(fields.len() > 20 && fields.last().unwrap().is_empty(), "{}", fields.len());
    let request = proto::PlanRequest {
        document: Some(policies(
            (0..60).map(|it| proto::Policy { name: format!("q{it}"), ..release_policy() }).collect(),
        )),
        prune: false,
        refuse_advisory: true,
    };
    assert_eq!(refused(operator.policy.plan(request).await).1, "ADVISORY_LIMITS");
    broker.stop().await;
}
