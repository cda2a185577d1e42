//! Ways around a second operator, none of which is one; and the way into a vault that nobody could change any more.

use std::sync::Arc;

use p8broker::broker::Caller;
use p8broker::domain::claims::Claims;
use p8broker::domain::principal::{Principal, Vouched};
use p8broker::grpc::proto::{self, Power, TargetKind};

use super::{ALICE, ALICE_TOO, BOB, approve, export, named, propose, shorter, start, two_eyes, wants};
use crate::harness::*;

#[tokio::test]
async fn nobody_gets_around_the_ceiling_alone() {
    let mut broker = start().await;
    let mut alice = broker.as_(ALICE).await;
    let before = export(&mut alice).await;
    let with = |change: fn(&mut proto::Document)| {
        let mut document = before.clone();
        change(&mut document);
        document
    };
    let position = |document: &proto::Document, name: &str| document.operators.iter().position(|it| it.name == name);
    assert!(position(&before, "alice").is_some());
    let ways: Vec<(&str, proto::Document)> = vec![
        ("without the ceiling", with(|it| it.ceilings.clear())),
        ("the ceiling over less", with(|it| it.ceilings[0] = two_eyes(&["tools"]))),
        (
            "a ceiling that asks for less",
            with(|it| {
                it.ceilings[0].require_approval = false;
                it.ceilings[0].max_ttl = duration(600);
            }),
        ),
        (
            "a second name for oneself",
            with(|it| {
                it.operators.push(named("alter-ego", &[STRANGER], &[Power::Administer, Power::AuthorPolicies]));
            }),
        ),
        ("one operator less", with(|it| it.operators.retain(|operator| operator.name != "bob"))),
        (
            "an issuer that vouches for oneself",
            with(|it| {
                it.issuers.push(proto::Issuer {
                    name: "mine".to_owned(),
                    kind: proto::IssuerKind::Oidc.into(),
                    url: "https://mine.acme.internal".to_owned(),
                    audiences: vec!["p8broker".to_owned()],
                    ..proto::Issuer::default()
                });
            }),
        ),
        ("more apps in the group", with(|it| it.app_groups[0].apps.push("3456789012".to_owned()))),
        ("without the policy", with(|it| it.policies.clear())),
        ("the policy in another group", with(|it| it.policies[0].app_group = "tools".to_owned())),
        (
            "without the group",
            with(|it| {
                it.app_groups.retain(|group| group.name != "games");
                it.policies.clear();
                it.ceilings[0] = two_eyes(&["tools"]);
            }),
        ),
    ];
    for (way, document) in ways {
        let request = proto::ApplyRequest { document: Some(document), prune: true, ..proto::ApplyRequest::default() };
        let refusal = refused(alice.policy.apply(request).await);
        let expected = if way == "without the group" { "INVALID_ARGUMENT" } else { "APPROVAL_REQUIRED" };
        assert_eq!(refusal.1, expected, "{way}");
    }
    assert_eq!(export(&mut alice).await, before, "nothing was changed");
    // Two of them can.
    let request = proto::ProposeRequest { prune: true, ..wants(with(|it| it.ceilings.clear())) };
    let id = alice.policy.propose(request).await.unwrap().into_inner().proposal.unwrap().proposal_id;
    let approved = approve(&mut broker.as_(BOB).await, &id).await.unwrap();
    let removed = approved.steps.iter().find(|step| step.action() == proto::Action::Remove).unwrap();
    assert_eq!(
        (removed.name.as_str(), removed.means.as_slice()),
        ("two-eyes", &["changes here take one operator from now on".to_owned()][..])
    );
    alice.apply(shorter(300)).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn nobody_locks_the_door_with_one_key_inside() {
    // With one administrator nobody could approve anything any more: not even that it takes one again.
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let alone = || proto::Document { ceilings: vec![two_eyes(&["games"])], ..proto::Document::default() };
    assert_eq!(wrong_fields(operator.apply(alone()).await), ["operators"]);
    let second =
        |client: &str| proto::Document { operators: vec![named("second", &[client], &[Power::Administer])], ..alone() };
    assert_eq!(wrong_fields(operator.apply(second(OPERATOR)).await), ["operators"], "the same client under two names");
    operator.apply(second(BOB)).await.unwrap();
    // Nor is it locked later; but where a revocation left one, the rest goes on.
    let request = proto::ProposeRequest {
        document: Some(proto::Document { operators: vec![named("second", &[BOB], &[Power::Revoke])], ..alone() }),
        ..wants(proto::Document::default())
    };
    assert_eq!(wrong_fields(operator.policy.propose(request).await), ["operators"]);
    operator.revoke(TargetKind::Client, BOB).await.unwrap();
    propose(&mut operator, shorter(300)).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn one_person_under_several_names_is_one_person() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let both = [Power::Administer, Power::AuthorPolicies];
    // Alice's second certificate comes first by name under another operator, too.
    let corp = proto::Issuer {
        name: "corp".to_owned(),
        kind: proto::IssuerKind::Oidc.into(),
        url: "https://login.acme.internal".to_owned(),
        audiences: vec!["p8broker".to_owned()],
        ..proto::Issuer::default()
    };
    let oidc = proto::OidcPattern { issuer: "corp".to_owned(), subject: "alice".to_owned(), ..Default::default() };
    let vouched = proto::ClientPattern { pattern: Some(proto::client_pattern::Pattern::Oidc(oidc)) };
    let document = proto::Document {
        issuers: vec![corp],
        ceilings: vec![two_eyes(&["games"])],
        operators: vec![
            named("alice", &[ALICE, ALICE_TOO], &both),
            named("admins", &[ALICE_TOO, BOB], &both),
            proto::Operator { clients: vec![vouched], ..named("by-token", &[], &both) },
        ],
        ..proto::Document::default()
    };
    operator.apply(document).await.unwrap();
    let id = propose(&mut broker.as_(ALICE).await, shorter(300)).await.unwrap().proposal_id;
    assert_eq!(refused(approve(&mut broker.as_(ALICE_TOO).await, &id).await).1, "OWN_PROPOSAL");
    // Alice with a bearer token over her own connection is Alice, whichever of the two she proposed with.
    let inner = Arc::clone(broker.inner());
    let issuer = inner.open().unwrap().state().issuers().values().next().unwrap().clone();
    let by_token = |certificate: &str| Caller {
        principal: Principal {
            client: client_id("oidc:corp:alice"),
            certificate: Some(client_id(certificate)),
            vouched: Some(Arc::new(Vouched {
                issuer: issuer.clone(),
                subject: "alice".to_owned(),
                claims: Claims::default(),
                expires_at: i64::MAX,
            })),
        },
        identity: "a test".to_owned(),
    };
    let parsed = p8broker::id::ProposalId::parse(&id).unwrap();
    assert_eq!(inner.approve(&by_token(ALICE), &parsed).await.unwrap_err().reason(), "OWN_PROPOSAL");
    let document = p8broker::domain::document::Document::from(shorter(200)).check().unwrap();
    let wanted = p8broker::broker::Wanted::new(document);
    let proposed = inner.propose(&by_token(BOB), wanted, "a test".to_owned()).await.unwrap();
    let by_certificate = proposed.proposal.id.to_string();
    assert_eq!(refused(approve(&mut broker.as_(BOB).await, &by_certificate).await).1, "OWN_PROPOSAL");
    // So is whoever else comes over the connection that it was proposed over.
    let another = |subject: &str, certificate: &str| {
        let mut caller = by_token(certificate);
        caller.principal.client = client_id(&format!("oidc:corp:{subject}"));
        caller
    };
    let own = inner.approve(&another("carol", BOB), &proposed.proposal.id).await.unwrap_err();
    assert_eq!(own.reason(), "OWN_PROPOSAL");
    // And whoever is one of the operators that the proposer was, not only the one whose power it took.
    let of_two = propose(&mut broker.as_(ALICE_TOO).await, shorter(100)).await.unwrap().proposal_id;
    for of_both in [ALICE, BOB] {
        assert_eq!(refused(approve(&mut broker.as_(of_both).await, &of_two).await).1, "OWN_PROPOSAL", "{of_both}");
    }
    // It rests on the revision that it was planned on, in a vault that remembers no moves, too.
    assert_eq!(proposed.proposal.planned_on.0 + 1, proposed.revision.0);
    // Somebody else is somebody else.
    approve(&mut broker.as_(BOB).await, &id).await.unwrap();
    drop(inner);
    broker.stop().await;
}
