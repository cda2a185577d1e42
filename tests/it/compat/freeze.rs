//! Writes what this release writes, for later ones to read. Run by `make freeze` once for each release, and never again.

use std::path::Path;
use std::time::Duration;

use p8broker::domain::change::{Actor, AuditPosition, Change, Record};
use p8broker::grpc::proto::{self, Power, TargetKind};
use p8broker::metrics::Metrics;
use p8broker::server::open_store;
use serde_json::Value;

use super::*;
use crate::backup::back_up;
use crate::bearer::{Vouching, vouched_policy};
use crate::cli::json_as;

const SECOND: &str = "spiffe://acme.internal/ns/ops/sa/second";

/// A vault on which everything has happened that can happen, and which still serves.
async fn everything() -> Broker {
    let mut broker = Broker::with(Options { anchor: true, ..Options::default() }).await;
    let mut operator = broker.as_(OPERATOR).await;
    documents(&mut operator).await;
    keys(&mut operator).await;
    revocations(&broker, &mut operator).await;
    seals(&mut broker).await;
    // A database that went back in time, and is accepted.
    broker.stop().await;
    let earlier = std::fs::read(broker.database()).unwrap();
    broker.run(None).await;
    broker.as_(OPERATOR).await.revoke(TargetKind::Client, "dns:lost.acme.internal").await.unwrap();
    broker.stop().await;
    std::fs::write(broker.database(), earlier).unwrap();
    broker.run(None).await;
    let mut operator = broker.as_(OPERATOR).await;
    let lost = operator.system.status(proto::StatusRequest {}).await.unwrap().into_inner().lost_history.unwrap();
    let (database_revision, seen_revision) = (lost.database_revision, lost.seen_revision);
    let accept = proto::AcceptHistoryRequest { database_revision, seen_revision, reason: "a disk was lost".to_owned() };
    operator.system.accept_history(accept).await.unwrap();
    broker.inner().lead_canary().await.unwrap();
    for _ in 0..5 {
        broker.as_(CLIENT).await.issue(ask_fresh()).await.unwrap();
    }
    broker
}

async fn documents(operator: &mut Client) {
    let every: Vec<Power> =
        vec![Power::Administer, Power::Custody, Power::AuthorPolicies, Power::Revoke, Power::Audit, Power::Unseal];
    let ceiling = proto::Ceiling {
        name: "two-eyes".to_owned(),
        app_groups: vec!["tools".to_owned()],
        require_approval: true,
        max_ttl: duration(900),
        never_roles: vec![proto::Role::Admin.into()],
        trust_domains: vec!["acme.internal".to_owned()],
        issuers: vec!["github".to_owned()],
        ..proto::Ceiling::default()
    };
    let group = |name: &str| proto::AppGroup {
        name: name.to_owned(),
        apps: vec!["1".to_owned()],
        ..sample().app_groups.remove(0)
    };
    let document = proto::Document {
        app_groups: vec![group("tools"), group("gone")],
        ceilings: vec![ceiling],
        operators: crate::harness::operator("second", SECOND, &every).operators,
        issuers: vec![Vouching::new().issuer()],
        policies: vec![
            vouched_policy(),
            proto::Policy { name: "emergency".to_owned(), break_glass: true, ..release_policy() },
            proto::Policy {
                name: "narrow".to_owned(),
                operations: vec!["GET /v1/apps/{app}/customerReviews".to_owned()],
                quota: Some(proto::Quota { tokens_per_hour: 60, fresh_per_minute: 6 }),
                shadow: true,
                ..release_policy()
            },
        ],
        ..proto::Document::default()
    };
    operator.apply(document).await.unwrap();
    let opening = proto::OpenBreakGlassRequest {
        policy: "emergency".to_owned(),
        duration: duration(300),
        reason: "the store is down".to_owned(),
    };
    operator.policy.open_break_glass(opening.clone()).await.unwrap();
    let policy = "emergency".to_owned();
    let close = proto::CloseBreakGlassRequest { policy, reason: "it is up".to_owned() };
    operator.policy.close_break_glass(close).await.unwrap();
    operator.policy.open_break_glass(opening).await.unwrap();
}

async fn propose(operator: &mut Client, name: &str) -> String {
    let policy = proto::Policy { name: name.to_owned(), app_group: "tools".to_owned(), ..release_policy() };
    let request = proto::ProposeRequest {
        document: Some(policies(vec![policy])),
        reason: "for the tools".to_owned(),
        ..proto::ProposeRequest::default()
    };
    operator.policy.propose(request).await.unwrap().into_inner().proposal.unwrap().proposal_id
}

async fn keys(operator: &mut Client) {
    operator.import(&import("SECONDKEY1", &new_p8())).await.unwrap();
    let individual = proto::ImportKeyRequest {
        kind: proto::KeyKind::Individual.into(),
        user: "dev@acme.example".to_owned(),
        app_access: Some(proto::AppAccess { all: false, app_ids: vec!["1234567890".to_owned()] }),
        ..import("THIRDKEY12", &new_p8())
    };
    operator.import(&individual).await.unwrap();
    operator.import(&import("FOURTHKEY1", &new_p8())).await.unwrap();
    for key_id in ["THIRDKEY12", "FOURTHKEY1"] {
        let (key_id, reason) = (key_id.to_owned(), "looked at".to_owned());
        operator.key.suspend_key(proto::SuspendKeyRequest { key_id, reason }).await.unwrap();
    }
    let (key_id, reason) = ("THIRDKEY12".to_owned(), "fine".to_owned());
    operator.key.resume_key(proto::ResumeKeyRequest { key_id, reason }).await.unwrap();
    operator.revoke(TargetKind::Key, "SECONDKEY1").await.unwrap();
    let key_id = "SECONDKEY1".to_owned();
    operator.key.confirm_revoked_at_apple(proto::ConfirmRevokedAtAppleRequest { key_id }).await.unwrap();
}

async fn revocations(broker: &Broker, operator: &mut Client) {
    let token = broker.as_(CLIENT).await.issue(ask()).await.unwrap().token_id;
    operator.revoke(TargetKind::Token, &token).await.unwrap();
    for (kind, name) in [
        (TargetKind::Client, STRANGER),
        (TargetKind::Policy, "narrow"),
        (TargetKind::AppGroup, "gone"),
        (TargetKind::Issuer, "github"),
        (TargetKind::Account, "other"),
        (TargetKind::Client, "dns:lifted.acme.internal"),
    ] {
        operator.revoke(kind, name).await.unwrap();
    }
    let target = Some(target(TargetKind::Client, "dns:lifted.acme.internal"));
    operator.revocation.reinstate(proto::ReinstateRequest { target, reason: "found".to_owned() }).await.unwrap();
    let proposal_id = propose(operator, "tools-one").await;
    let mut second = broker.as_(SECOND).await;
    second.policy.approve_proposal(proto::ApproveProposalRequest { proposal_id }).await.unwrap();
    let proposal_id = propose(operator, "tools-two").await;
    let close = proto::CloseProposalRequest { proposal_id, reason: "not now".to_owned() };
    second.policy.close_proposal(close).await.unwrap();
    propose(operator, "tools-three").await;
    broker.clock.advance(Duration::from_secs(3600));
    let now = p8broker::clock::Clock::now(&*broker.clock).seconds();
    let before = Some(prost_types::Timestamp { seconds: now - 60, nanos: 0 });
    operator.audit.prune(proto::PruneRequest { before }).await.unwrap();
}

async fn seals(broker: &mut Broker) {
    let mut operator = broker.as_(OPERATOR).await;
    operator.system.seal(proto::SealRequest { reason: "a drill".to_owned() }).await.unwrap();
    operator.system.unseal(proto::UnsealRequest::default()).await.unwrap();
    // A new key file, then a new root key.
    std::fs::write(broker.dir.path().join("new.key"), "5b".repeat(32)).unwrap();
    broker.config.unseal.previous_key_file = Some(broker.dir.path().join("unseal.key"));
    broker.config.unseal.key_file = Some(broker.dir.path().join("new.key"));
    broker.restart().await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.system.rekey(proto::RekeyRequest::default()).await.unwrap();
    operator.system.rotate(proto::RotateRequest {}).await.unwrap();
}

/// Every record of a stopped broker's vault, in the clear, with a checkpoint as the last.
async fn records(broker: &Broker) -> Vec<Value> {
    let store = open_store(&broker.config, &Metrics::new().unwrap()).await.unwrap();
    let row = store.seal_row().await.unwrap().unwrap();
    let keyring = keyring(&row);
    let mut out = Vec::new();
    for sealed in store.records_from(p8broker::id::Revision(1), 10_000).await.unwrap() {
        out.push(serde_json::to_value(sealed.open(&keyring, &row.vault).unwrap()).unwrap());
    }
    store.close().await;
    let (state, _) = fold(&out);
    let writer = state.writers().values().next_back().unwrap();
    let checkpoint = Record {
        revision: p8broker::id::Revision(state.head().revision.0 + 1),
        at: p8broker::clock::Clock::now(&*broker.clock),
        actor: Actor::broker(),
        audit: AuditPosition { writer: writer.id.clone(), sequence: writer.known_sequence },
        change: Change::Checkpoint { state: Box::new(state.snapshot()) },
    };
    out.push(serde_json::to_value(&checkpoint).unwrap());
    out
}

fn write(folder: &Path, name: &str, content: &[u8]) {
    std::fs::write(folder.join(name), content).unwrap();
}

#[tokio::test]
#[ignore = "writes test data: make freeze"]
async fn freeze() {
    let folder = super::folder().join(env!("CARGO_PKG_VERSION"));
    std::fs::create_dir(&folder).expect("a release is frozen once");
    let mut broker = everything().await;
    let backup = back_up(&broker, "frozen.backup").await;
    let (code, export) = json_as(&broker, OPERATOR, &["export"], "").await;
    assert_eq!(code, 0, "{export}");
    broker.stop().await;
    let records = records(&broker).await;
    let (state, _) = fold(&records);
    let pretty = |value: &Value| serde_json::to_vec_pretty(value).unwrap();
    write(&folder, "records.json", &pretty(&Value::Array(records)));
    write(&folder, "state.json", &pretty(&serde_json::to_value(state.snapshot()).unwrap()));
    std::fs::copy(broker.database(), folder.join("vault.db")).unwrap();
    std::fs::copy(backup, folder.join("vault.backup")).unwrap();
}
